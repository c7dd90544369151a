"""`stylora doctor`: is this machine fit, and if not, what to do. Every check is one line: ok, warning or failure.

A failure means that something in this program can't work here; a warning, that it will work worse or only in part.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from stylora.errors import UserError

if TYPE_CHECKING:
    from stylora.model.device import Device

GIB = 1 << 30
LITTLE_MEMORY, LITTLE_DISK = 2 * GIB, 2 * GIB
NO_PEER_TO_PEER = ("RTX 40", "RTX 50")  # GeForce: the driver has no peer-to-peer copies between cards
COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """name: what was looked at; found: what is there; do: what to do about a warning or failure"""

    name: str
    status: Status
    found: str
    do: str = ""


def doctor() -> list[Check]:
    """All checks, in the order in which they are shown. Where a package is missing or too old, nothing that needs it is tried."""
    checks = [
        Check("python", "ok", f"{platform.python_version()} ({platform.python_implementation()})"),
        Check("platform", "ok", platform.platform()),
        disk(Path.cwd()),
        parallelism(os.environ.get("TOKENIZERS_PARALLELISM")),
        *packages(),
    ]
    return [*checks, *machine()] if fit(checks) else checks


def machine() -> list[Check]:
    """What the packages find here."""
    import psutil
    import torch
    from huggingface_hub import constants

    from stylora.model.device import choose_device

    from .plan import cache_folder

    device = choose_device()
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        Check("cores", "ok", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"),
        memory(psutil.virtual_memory().available, psutil.virtual_memory().total),
        torch_build(torch.__version__, torch.version.cuda or torch.version.hip, nvidia=shutil.which("nvidia-smi") is not None),
        *precision(device),
        *graphics_cards([(card.name, card.total_memory) for card in cards], os.environ),
        *hub(constants.ENDPOINT, offline=constants.HF_HUB_OFFLINE),
        folder("hub cache", Path(constants.HF_HUB_CACHE), do="set HF_HOME to a folder that can be written"),
        folder("token cache", cache_folder(), do="set STYLORA_CACHE to a folder that can be written"),
        bundled_base(device),
    ]


def memory(available: int, total: int) -> Check:
    """Main memory, in bytes."""
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if available < LITTLE_MEMORY:
        return Check("memory", "warning", found, "close other programs; lower train.tokens_per_microbatch")
    return Check("memory", "ok", found)


def disk(where: Path) -> Check:
    """Free space where runs are written."""
    free = shutil.disk_usage(where).free
    found = f"{free / GIB:.1f} GiB free in {where}"
    if free < LITTLE_DISK:
        return Check("disk", "warning", found, "free some space, or set output_dir and STYLORA_CACHE to another disk")
    return Check("disk", "ok", found)


def torch_build(installed: str, accelerator: str | None, *, nvidia: bool) -> Check:
    """accelerator: CUDA or ROCm version of the build, None for a CPU build; nvidia: there is a driver"""
    found = f"{installed} ({accelerator or 'CPU build'})"
    if accelerator is None and nvidia:
        return Check("torch build", "warning", found + ", but there is an NVIDIA driver", "install a CUDA build: https://pytorch.org/get-started/locally/")
    return Check("torch build", "ok", found)


def precision(device: Device) -> Iterator[Check]:
    """The device that training would choose, and whether it multiplies bf16 fast."""
    yield Check("device", "ok", f"{device.device.type}; {device.why}")
    if device.precision == "bf16":
        yield Check("bf16", "ok", "in hardware")
    else:
        told = f"not in hardware; {device.precision} instead"
        yield Check("bf16", "warning", told, "expect 2 to 6 times slower steps, and twice the memory in fp32")


def graphics_cards(found: Sequence[tuple[str, int]], environment: Mapping[str, str]) -> Iterator[Check]:
    """found: name and memory in bytes of every card"""
    for number, (name, size) in enumerate(found):
        yield Check(f"gpu {number}", "ok", f"{name}, {size / GIB:.1f} GiB")
    geforce = [name for name, _ in found if any(mark in name for mark in NO_PEER_TO_PEER)]
    if len(found) > 1 and geforce:
        unset = [name for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE") if environment.get(name) != "1"]
        told = f"{geforce[0]} copies between cards through main memory only"
        if unset:
            export = " ".join(f"{name}=1" for name in unset)
            yield Check("peer-to-peer", "warning", told, f"training on several cards may hang: export {export}")
        else:
            yield Check("peer-to-peer", "ok", f"{told}, and NCCL knows")


def packages() -> Iterator[Check]:
    """Every package that stylora needs, against its metadata."""
    try:
        needed = requires("stylora") or []
    except PackageNotFoundError:
        yield Check("stylora", "failure", "not installed, only found on the path", "pip install -e . in its folder")
        return
    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        yield package(requirement, installed)


def package(requirement: Requirement, installed: str | None) -> Check:
    """installed: its version, None where it is missing"""
    do = f"pip install '{requirement}'"
    if installed is None:
        return Check(requirement.name, "failure", "not installed", do)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Check(requirement.name, "failure", f"{installed}, expected {requirement.specifier}", do)
    return Check(requirement.name, "ok", f"{installed} ({requirement.specifier})")


def hub(endpoint: str, *, offline: bool) -> Iterator[Check]:
    """Where bases come from. endpoint: HF_ENDPOINT or the hub's own; offline: HF_HUB_OFFLINE"""
    yield Check("HF_ENDPOINT", "ok", endpoint)
    if offline:
        yield Check("HF_HUB_OFFLINE", "warning", "set: nothing is fetched", "name bases by a folder, or unset it")
    else:
        yield Check("HF_HUB_OFFLINE", "ok", "not set: bases are fetched when they are named")


def folder(name: str, path: Path, *, do: str) -> Check:
    """A cache: its size, and whether it can be written."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()) if path.is_dir() else 0
    found = f"{path}, {size / GIB:.2f} GiB"
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Check(name, "ok", found)
    except OSError as error:
        return Check(name, "failure", f"{found}, cannot be written ({error.strerror})", do)


def parallelism(value: str | None) -> Check:
    """value: of TOKENIZERS_PARALLELISM, as the tokenizers library reads it"""
    if value is not None and value.lower() in ("0", "false", "off", "no", "n", "f", ""):
        return Check("tokenizers", "warning", f"TOKENIZERS_PARALLELISM={value}: one core", "unset it: text is read several times faster")
    return Check("tokenizers", "ok", "on all cores")


def bundled_base(device: Device) -> Check:
    """The bundled base opens here, and what training relies on holds on it."""
    from stylora.model.base import TINY, load_base
    from stylora.model.proofs import prove_base

    if not (TINY / "model.safetensors").is_file():
        return Check("base tiny", "failure", f"not in {TINY}", "install stylora again")
    try:
        base = load_base("tiny", device)
        proofs = prove_base(base.model, words=len(base.tokenizer))
    except UserError as error:
        return Check("base tiny", "failure", str(error), "install stylora again")
    if not proofs.packs:
        return Check("base tiny", "warning", "; ".join(proofs.lines), "rows will hold one sample each: slower, not wrong")
    return Check("base tiny", "ok", "; ".join(proofs.lines))


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks and whether none failed."""
    return {"fit": fit(checks), "checks": [asdict(check) for check in checks]}


def fit(checks: Sequence[Check]) -> bool:
    """Nothing failed."""
    return all(check.status != "failure" for check in checks)


def show(checks: Sequence[Check], console: Console) -> None:
    """One line a check; what to do stands below it."""
    for check in checks:
        line = Text(f"{check.status:<8}", style=COLOURS[check.status])
        line.append(f"{check.name:<20}{check.found}", style="default not bold")
        console.print(line, soft_wrap=True)
        if check.do:
            console.print(Text(f"{'':<28}→ {check.do}"), soft_wrap=True)
