"""Which device, dtype and attention a model runs with, chosen once and said aloud.

Knows nothing of recipes beyond plain values.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Device:
    """device: "cuda", "mps" or "cpu"; dtype: of the frozen base and of autocast; why: the reason, for the start-up print"""

    device: torch.device
    dtype: torch.dtype
    why: str

    @property
    def precision(self) -> str:
        """`bf16`, `fp16` or `fp32`, as recipes name it."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.dtype)


def choose_device(precision: str | None = None) -> Device:
    """The best device here. precision: "bf16", "fp16" or "fp32"; None takes what the device multiplies fastest.

    bf16 matrix products run 5-6 times faster than fp32 on CPUs with AVX512-BF16, so bf16 is the default there too.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        device, best = torch.device("cuda"), "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif torch.backends.mps.is_available():
        device, best, name = torch.device("mps"), "fp32", "Apple GPU"
    else:
        device, best = torch.device("cpu"), "bf16" if cpu_multiplies_bf16() else "fp32"
        name = f"CPU, {torch.get_num_threads()} threads"
    why = f"{name}: " + (f"{precision} as asked" if precision else f"{best} is fastest here")
    return Device(device=device, dtype=DTYPES[precision or best], why=why)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products: AVX512-BF16 or AMX on x86, what oneDNN says elsewhere."""
    if platform.machine().lower() in ("x86_64", "amd64"):  # oneDNN says yes to plain AVX512 too, where it emulates
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks instead of returning them to the system; elsewhere nothing happens.

    A training step on the CPU allocates and frees the same hundreds of megabytes over and over; the page faults cost a third of the
    step. See mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # not glibc: musl and macOS have no mallopt, Windows no CDLL(None)
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_mmap_threshold, 2**30)
