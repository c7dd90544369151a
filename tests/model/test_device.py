"""The device and its dtype are chosen by what is there, and said."""

from __future__ import annotations

import ctypes

import pytest
import torch

from stylora.model.device import DTYPES, choose_device, cpu_multiplies_bf16, keep_freed_memory


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("precision", list(DTYPES))
def test_precision_as_asked(precision, no_accelerator):
    device = choose_device(precision)
    assert (device.device.type, device.dtype, device.precision) == ("cpu", DTYPES[precision], precision)
    assert f"{precision} as asked" in device.why and "CPU" in device.why


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_cpu_takes_bf16_where_it_is_fast(fast, expected, no_accelerator, monkeypatch):
    monkeypatch.setattr("stylora.model.device.cpu_multiplies_bf16", lambda: fast)
    device = choose_device()
    assert device.dtype is expected and device.why.endswith(f"{device.precision} is fastest here")


@pytest.mark.parametrize(("new", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_first(new, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 4090")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: new and not including_emulation)
    device = choose_device()
    assert (device.device.type, device.dtype) == ("cuda", expected)
    assert device.why.startswith("RTX 4090: ")


@pytest.mark.parametrize(
    ("machine", "bf16", "amx", "onednn", "expected"),
    [
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("x86_64", False, False, True, False),  # plain AVX512: oneDNN takes bf16 and emulates it
        ("aarch64", False, False, True, True),
        ("arm64", True, True, False, False),
    ],
)
def test_bf16_needs_instructions_for_it(machine, bf16, amx, onednn, expected, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert cpu_multiplies_bf16() is expected


def test_mps_computes_in_fp32(no_accelerator, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = choose_device()
    assert (device.device.type, device.dtype) == ("mps", torch.float32)


def test_keeping_freed_memory_asks_glibc_for_both_thresholds(monkeypatch):
    class Glibc:
        calls: list[tuple[int, int]] = []

        def mallopt(self, option: int, value: int) -> int:
            self.calls.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Glibc())
    keep_freed_memory()
    assert Glibc.calls == [(-1, 2**31 - 1), (-3, 2**30)]


@pytest.mark.parametrize("error", [AttributeError, TypeError, OSError])
def test_elsewhere_nothing_happens(error, monkeypatch):
    def missing(_):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()
