"""The MODEL argument: a run, a stage, a `stack.json`, a PEFT folder, a model folder, or a hub id, opened for use.

What a `stack.json` says is checked: a base or adapter that changed since is refused. Finding a model loads nothing, so that several of
them can be checked first, and put on one base in turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.model.adapter import activate, load_adapter
from stylora.model.base import Base, fingerprint, load_base, same_base
from stylora.model.device import Device
from stylora.recipe.recipe import load_recipe
from stylora.train.checkpoint import MANIFEST

from .folder import adapter_file, adapter_hash, parent_stage


@dataclass(frozen=True, kw_only=True)
class Found:
    """What MODEL names, before anything is loaded.

    name: MODEL itself; base: name of its base; adapters: their folders, bottom to top; stack: its stack.json, None where it has none
    fingerprint: of the base it was trained on, None where nothing says it
    load_in_4bit: is its base packed, as its recipe had it?
    """

    name: str
    base: str
    adapters: tuple[Path, ...] = ()
    stack: Path | None = None
    fingerprint: dict[str, Any] | None = None
    load_in_4bit: bool = False

    @property
    def adapter(self) -> Path | None:
        """The one that was trained last, at the top; None for a bare base."""
        return self.adapters[-1] if self.adapters else None

    @property
    def where(self) -> str:
        """What names the base, for messages."""
        return str(self.stack or self.adapter or "MODEL")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """base, and the model to call: a PeftModel where there is an adapter, else the base's own"""

    base: Base
    model: PeftModel | PreTrainedModel
    adapter: Path | None


def open_model(name: str, device: Device, *, base: str | None = None, trust_remote_code: bool = False) -> Opened:
    """Open MODEL. base: replaces the base named by a PEFT folder. Raises UserError when it is none of the forms, or was changed."""
    found = find_model(name, base=base)
    opened = load_base(
        found.base, device, trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
    )
    return put_on(opened, found)


def find_model(name: str, *, base: str | None = None) -> Found:
    """What MODEL names. Raises UserError for a folder that is none of the forms, and for an adapter that was changed after training."""
    path = Path(name)
    stack = _find_stack(path)
    if stack is not None:
        return _read_stack(name, stack, base)
    if (path / "adapter_config.json").is_file():
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        stage = parent_stage(path)
        return Found(
            name=name, base=base or config["base_model_name_or_path"], adapters=(*_below(path), path),
            load_in_4bit=stage is not None and load_recipe(stage.recipe).load_in_4bit,
        )  # fmt: skip
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(name, got="a folder without a finished run or model", expected="a run, stage, stack.json, PEFT or model folder")
    return Found(name=name, base=name)


def put_on(base: Base, found: Found) -> Opened:
    """The model on its base, which has no adapter yet. Raises UserError for a base it was not trained on."""
    if found.fingerprint is not None:
        _check_base(found.where, found.fingerprint, base.name, fingerprint(base), "open its adapter/ folder, with --base, to use it anyway")
    model: PeftModel | PreTrainedModel = base.model
    for number, folder in enumerate(found.adapters):
        top = number == len(found.adapters) - 1
        model = load_adapter(model, folder, name="default" if top else f"frozen{number}")
    if isinstance(model, PeftModel) and len(found.adapters) > 1:  # one by itself is active, of whatever type it is
        activate(model, trainable=None)
    return Opened(base=base, model=model.eval(), adapter=found.adapter)


def check_adapter(folder: Path, name: str, base: dict[str, Any], below: Sequence[Path]) -> None:
    """May the adapter be trained on, or under another one, on this base? Of one that is no stage's own only the shapes can tell.

    name, base: the base's name and fingerprint; below: the adapters it is put on
    Raises UserError for an adapter that was changed after its training, of another base, or trained on adapters that are not below it.
    """
    stage = parent_stage(folder)
    if stage is not None and (folder / MANIFEST).is_file():
        manifest = read_object(folder / MANIFEST)
        theirs, needed = manifest["base"], manifest.get("frozen", [])
    elif stage is not None and stage.stack.is_file() and stage.adapter.resolve() == folder.resolve():
        described = read_object(stage.stack)
        _check_hash(folder, described["adapters"][-1]["hash"])
        theirs, needed = described["base"]["fingerprint"], [entry["hash"] for entry in described["adapters"][:-1]]
    else:
        return
    if not {*needed} <= {adapter_hash(path) for path in below}:
        raise UserError(
            str(folder), got="an adapter that was trained on other adapters", expected="those below it, without which it is another model",
            do="name them in adapter.frozen, as the recipe.yaml of its run does",
        )  # fmt: skip
    _check_base(str(folder), theirs, name, base, "train it on the base it belongs to")


def _below(folder: Path) -> tuple[Path, ...]:
    """The frozen adapters that a checkpoint was trained on, without which it is another model; none for other folders.

    Raises UserError where one of them is not what it was.
    """
    stage = parent_stage(folder) if (folder / MANIFEST).is_file() else None
    if stage is None:
        return ()
    frozen = [Path(path) for path in load_recipe(stage.recipe).stages[0].adapter.frozen]
    hashes = read_object(folder / MANIFEST).get("frozen", [])
    for path, expected in zip(frozen, hashes, strict=True):
        _check_hash(path, expected)
    return tuple(frozen)


def _find_stack(path: Path) -> Path | None:
    if path.name == "stack.json" and path.is_file():
        return path
    if not path.is_dir():
        return None
    if (path / "stack.json").is_file():
        return path / "stack.json"
    stages = sorted(path.glob("*/stack.json"), key=lambda p: p.stat().st_mtime)
    return stages[-1] if stages else None


def _read_stack(name: str, stack: Path, base: str | None) -> Found:
    described = read_object(stack)
    folders = [stack.parent / entry["path"] for entry in described["adapters"]]
    for folder, entry in zip(folders, described["adapters"], strict=True):
        _check_hash(folder, entry["hash"])
    return Found(
        name=name, base=base or described["base"]["name"], adapters=tuple(folders), stack=stack,
        fingerprint=described["base"]["fingerprint"], load_in_4bit=described["base"].get("load_in_4bit", False),
    )  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """A stack.json or checkpoint.json. Raises UserError for one that a power cut or an editor left broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(str(path), got="broken JSON", expected="what training wrote there", do="train it again") from error


def _check_hash(folder: Path, expected: str) -> None:
    if adapter_file(folder) is None:
        raise UserError(str(folder), got="no adapter_model.safetensors", expected="the adapter that stack.json names")
    if adapter_hash(folder) != expected:
        raise UserError(
            str(folder), got="an adapter that was changed after training", expected=f"hash {expected}",
            do="open the adapter/ folder itself to use it as it is",
        )  # fmt: skip


def _check_base(where: str, theirs: dict[str, Any], name: str, ours: dict[str, Any], do: str) -> None:
    if not same_base(ours, theirs):
        raise UserError(where, got=f"{name}, which is not the base it was trained on", expected="that base, unchanged", do=do)
