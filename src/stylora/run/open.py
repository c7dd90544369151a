"""The MODEL argument: a run, a stage, a `stack.json`, a PEFT folder, a model folder, or a hub id, opened for use.

What a `stack.json` says is checked: a base or adapter that changed since is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.model.adapter import load_adapter
from stylora.model.base import Base, fingerprint, load_base, same_base
from stylora.model.device import Device

from .folder import adapter_hash


@dataclass(frozen=True, kw_only=True)
class Opened:
    """base, and the model to call: a PeftModel where there is an adapter, else the base's own"""

    base: Base
    model: PeftModel | PreTrainedModel
    adapter: Path | None


def open_model(name: str, device: Device, *, base: str | None = None, trust_remote_code: bool = False) -> Opened:
    """Open MODEL. base: replaces the base named by a PEFT folder. Raises UserError when it is none of the forms, or was changed."""
    path = Path(name)
    stack = _find_stack(path)
    if stack is not None:
        return _open_stack(stack, device, base, trust_remote_code)
    if (path / "adapter_config.json").is_file():
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        opened = load_base(base or config["base_model_name_or_path"], device, trust_remote_code=trust_remote_code, where=str(path))
        return Opened(base=opened, model=load_adapter(opened.model, path).eval(), adapter=path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(name, got="a folder without a finished run or model", expected="a run, stage, stack.json, PEFT or model folder")
    opened = load_base(name, device, trust_remote_code=trust_remote_code, where="MODEL")
    return Opened(base=opened, model=opened.model, adapter=None)


def _find_stack(path: Path) -> Path | None:
    if path.name == "stack.json" and path.is_file():
        return path
    if not path.is_dir():
        return None
    if (path / "stack.json").is_file():
        return path / "stack.json"
    stages = sorted(path.glob("*/stack.json"), key=lambda p: p.stat().st_mtime)
    return stages[-1] if stages else None


def _open_stack(stack: Path, device: Device, base: str | None, trust_remote_code: bool) -> Opened:
    described = json.loads(stack.read_text(encoding="utf-8"))
    (entry,) = described["adapters"]
    folder = stack.parent / entry["path"]
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(str(folder), got="no adapter_model.safetensors", expected="the adapter that stack.json names")
    if adapter_hash(folder) != entry["hash"]:
        raise UserError(
            str(folder), got="an adapter that was changed after training", expected=f"hash {entry['hash']}",
            do="open the adapter/ folder itself to use it as it is",
        )  # fmt: skip
    name = base or described["base"]["name"]
    opened = load_base(name, device, trust_remote_code=trust_remote_code, where=str(stack))
    if not same_base(fingerprint(opened), described["base"]["fingerprint"]):
        raise UserError(
            str(stack), got=f"{name}, which is not the base it was trained on", expected="that base, unchanged",
            do="open the adapter/ folder itself, with --base, to use it on another one",
        )  # fmt: skip
    return Opened(base=opened, model=load_adapter(opened.model, folder).eval(), adapter=folder)
