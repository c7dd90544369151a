"""The MODEL argument: a run, a stage, a `stack.json`, a PEFT folder, a model folder, or a hub id, opened for use.

    runs/wuxia/instruct                a stage: its stack.json names base and adapters
    runs/wuxia/instruct@style=0.5      the same with another weight for the adapter called `style`; 0 leaves it out

What a `stack.json` says is checked: a base or adapter that changed since is refused, unless forced, which is then said with whatever
comes of it. Finding a model loads nothing, so that several of them can be checked first, and put on one base in turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.model.adapter import load_adapter, read_branches
from stylora.model.base import Base, fingerprint, load_base, same_base
from stylora.model.device import Device
from stylora.model.rope_2d import install
from stylora.model.stack import TOP, activate, frozen_name, weigh
from stylora.model.stack_names import weights_of
from stylora.recipe.recipe import load_recipe
from stylora.samples.branch_settings import Branches, place
from stylora.train.checkpoint import MANIFEST

from .folder import (
    ADAPTER_INFO,
    adapter_file,
    adapter_hash,
    adapter_name,
    config_hash,
    frozen_entries,
    parent_stage,
    read_object,
    stack_names,
)

WEIGHTS = re.compile(r"@([^@=,]+=[^@=,]+(?:,[^@=,]+=[^@=,]+)*)$")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An adapter of a stack: what it is called, where it lies, the factor of its update."""

    name: str
    folder: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What MODEL names, before anything is loaded.

    name: MODEL itself; base: name of its base; layers: its adapters, bottom to top; stack: its stack.json, None where it has none
    fingerprint: of the base it was trained on, None where nothing says it
    load_in_4bit: is its base packed, as its recipe had it?
    weighted: were weights given with its name? Then it is not the model its stack.json describes
    force: open what is not as it was when it was trained; forced: what that was
    """

    name: str
    base: str
    layers: tuple[Layer, ...] = ()
    stack: Path | None = None
    fingerprint: dict[str, Any] | None = None
    load_in_4bit: bool = False
    weighted: bool = False
    force: bool = False
    forced: tuple[str, ...] = ()

    @property
    def adapters(self) -> tuple[Path, ...]:
        """Folders of the adapters, bottom to top."""
        return tuple(layer.folder for layer in self.layers)

    @property
    def as_trained(self) -> bool:
        """Is it what its stack.json describes, nothing forced and no weight changed?"""
        return not (self.force or self.weighted)

    @property
    def adapter(self) -> Path | None:
        """The one that was trained last, at the top; None for a bare base."""
        return self.adapters[-1] if self.adapters else None

    @property
    def where(self) -> str:
        """What names the base, for messages."""
        return str(self.stack or self.adapter or "MODEL")

    @property
    def branches(self) -> Branches | None:
        """How branches are laid out (`agreed`)."""
        return agreed({layer.name: read_branches(layer.folder) for layer in self.layers if layer.weight}, where=self.name)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """base, and the model to call: a PeftModel where there is an adapter, else the base's own; forced: what is not as it was in training

    branches: how they are laid out, None where no adapter was trained on any; where they carry a coordinate the model does, too
    """

    base: Base
    model: PeftModel | PreTrainedModel
    adapter: Path | None
    forced: tuple[str, ...] = ()
    branches: Branches | None = None


def open_model(
    name: str, device: Device, *, base: str | None = None, trust_remote_code: bool = False, force: bool = False
) -> Opened:
    """Open MODEL. base: replaces the base named by a PEFT folder; force: also what was changed after training.

    Raises UserError when it is none of the forms, or was changed.
    """
    found = find_model(name, base=base, force=force)
    opened = load_base(
        found.base, device, trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
    )
    return put_on(opened, found)


def find_model(name: str, *, base: str | None = None, force: bool = False) -> Found:
    """What MODEL names. Raises UserError for a folder that is none of the forms, for weights of adapters it does not have, for adapters
    that do not stand at the same positions, and, unless forced, for an adapter that was changed after training."""
    place, weights = _with_weights(name)
    found = _find(name, Path(place), place, base, force)
    weights_of([layer.name for layer in found.layers], weights, where=name)  # says which names there are
    layers = [replace(layer, weight=weights.get(layer.name, layer.weight)) for layer in found.layers]
    found = replace(found, layers=tuple(layers), weighted=bool(weights), force=force)
    _ = found.branches  # refuses adapters that do not agree
    return found


def agreed(branches: Mapping[str, Branches | None], *, where: str) -> Branches | None:
    """The layout of the topmost adapter that has one. branches: of each adapter by its name, bottom to top

    Those that carry a coordinate come first, and must stand at the same positions: raises UserError where two do not.
    """
    said = {name: each for name, each in branches.items() if each is not None}
    turned = {name: each for name, each in said.items() if each.rope_2d_ratio} or said
    if len({place(each) for each in turned.values()}) > 1:
        raise UserError(
            where, got="; ".join(f"{name} at {place(each)}" for name, each in turned.items()),
            expected="adapters that were trained at the same positions", do="leave all but one out, as in @NAME=0",
        )  # fmt: skip
    return next(reversed(turned.values()), None)


def _with_weights(name: str) -> tuple[str, dict[str, float]]:
    """`runs/a@style=0.5` -> (`runs/a`, {"style": 0.5}). Raises UserError for a weight that is no number."""
    found = None if Path(name).exists() else WEIGHTS.search(name)
    if found is None:
        place, at, said = name.rpartition("@")
        if at and not Path(name).exists() and Path(place).exists():
            raise UserError(name, got=f"{said!r} behind @", expected="names and weights, as in @style=0.5,instruct=1")
        return name, {}
    weights: dict[str, float] = {}
    for each in found[1].split(","):
        called, _, text = each.partition("=")
        if called.strip() in weights:
            raise UserError(name, got=f"two weights for {called.strip()!r}", expected="one")
        try:
            weights[called.strip()] = float(text)
        except ValueError:
            weights[called.strip()] = math.nan
        if not math.isfinite(weights[called.strip()]):
            raise UserError(name, got=f"{text!r} as a weight", expected="a number, as in @style=0.5")
    return name[: found.start()], weights


def _find(name: str, path: Path, place: str, base: str | None, force: bool) -> Found:
    stack = _find_stack(path)
    if stack is not None:
        return _read_stack(name, stack, base, force)
    if (path / "adapter_config.json").is_file():
        config = read_object(path / "adapter_config.json")
        if base is None and not config.get("base_model_name_or_path"):
            raise UserError(str(path), got="an adapter that names no base", expected="the base it was trained on", do="give it with --base")
        stage = parent_stage(path)
        layers, forced = _below(path, force)
        return Found(
            name=name, base=base or config["base_model_name_or_path"], layers=(*layers, Layer(name=_called(path), folder=path)),
            load_in_4bit=stage is not None and load_recipe(stage.recipe).load_in_4bit, forced=forced,
        )  # fmt: skip
    several = sorted(child.name for child in path.glob("*/") if (child / "adapter_config.json").is_file()) if path.is_dir() else []
    if len(several) > 1:
        do = f"name one of them: {', '.join(several)}"
        raise UserError(name, got="a folder of several adapters, as plain PEFT saves a stack", expected="one adapter", do=do)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(name, got="a folder without a finished run or model", expected="a run, stage, stack.json, PEFT or model folder")
    return Found(name=name, base=place)


def put_on(base: Base, found: Found) -> Opened:
    """The model on its base, which has no adapter yet, at the positions it was trained at. Raises UserError for a base it was not trained
    on, unless forced, and for one whose rotary pairs can't carry its branches."""
    forced, branches = check_fingerprint(base, found), found.branches
    model: PeftModel | PreTrainedModel = base.model
    for number, layer in enumerate(found.layers):
        name = TOP if number == len(found.layers) - 1 else frozen_name(number)
        model = load_adapter(model, layer.folder, name=name)
        if layer.weight != 1:
            weigh(model, name, layer.weight)
    if isinstance(model, PeftModel) and len(found.layers) > 1:  # one by itself is active, of whatever type it is
        activate(model, trainable=None)
    install(base.model, branches)
    return Opened(base=base, model=model.eval(), adapter=found.adapter, forced=forced, branches=branches)


def check_fingerprint(base: Base, found: Found, ours: dict[str, Any] | None = None) -> tuple[str, ...]:
    """What was forced, the base itself included. ours: the base's fingerprint, taken before it had adapters; None where it has none yet

    Raises UserError for a base that MODEL was not trained on, unless forced.
    """
    if found.fingerprint is None:
        return found.forced
    ours = fingerprint(base) if ours is None else ours
    if same_base(ours, found.fingerprint):
        return found.forced
    if not found.force:
        do = "open its adapter/ folder, with --base, to use it anyway, or use --force"
        _check_base(found.where, found.fingerprint, base.name, ours, do)
    return (*found.forced, f"{base.name}: not the base it was trained on")


def check_adapter(folder: Path, name: str, base: dict[str, Any], below: Mapping[Path, float | None]) -> None:
    """May the adapter be trained on, or under another one, on this base? Of one that is no stage's own only the shapes can tell.

    name, base: the base's name and fingerprint; below: the adapters it is put on, and their weights, None where the user chose them
    Raises UserError for an adapter that was changed after its training, of another base, or trained on adapters that are not below it, or
    have another weight now that nobody chose.
    """
    stage = parent_stage(folder)
    if stage is not None and (folder / MANIFEST).is_file():
        manifest = read_object(folder / MANIFEST)
        theirs, needed = manifest["base"], manifest.get("frozen", [])
        stage_then = load_recipe(stage.recipe).stages[0]
        weights = weights_of(stack_names(stage_then)[:-1], stage_then.adapter.weights, where=str(stage.recipe))
    elif stage is not None and stage.stack.is_file() and stage.adapter.resolve() == folder.resolve():
        described = read_object(stage.stack)
        _check_hash(folder, described["adapters"][-1]["hash"], described["adapters"][-1].get("config_hash"))
        theirs, needed = described["base"]["fingerprint"], [entry["hash"] for entry in described["adapters"][:-1]]
        weights = tuple(entry.get("weight", 1.0) for entry in described["adapters"][:-1])
    else:
        return
    now = {adapter_hash(path): (path, weight) for path, weight in below.items()}
    if not {*needed} <= now.keys():
        raise UserError(
            str(folder), got="an adapter that was trained on other adapters", expected="those below it, without which it is another model",
            do="name them in adapter.frozen, as the recipe.yaml of its run does",
        )  # fmt: skip
    for hash, then in zip(needed, weights, strict=True):
        path, weight = now[hash]
        if weight is not None and weight != then:
            raise UserError(
                str(folder), got=f"{path} below it at weight {weight:g}", expected=f"{then:g}, with which it was trained",
                do="say its weight in adapter.weights",
            )  # fmt: skip
    _check_base(str(folder), theirs, name, base, "train it on the base it belongs to")


def _called(folder: Path) -> str:
    """The name of an adapter that no stack.json names."""
    stage = parent_stage(folder)
    return load_recipe(stage.recipe).stages[0].name if stage is not None else adapter_name(folder.as_posix())


def _below(path: Path, force: bool) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """(The frozen adapters that an adapter was trained on, without which it is another model, and what was forced); none for one by itself.

    Raises UserError where one of them is not there or not what it was, unless forced.
    """
    if (path / ADAPTER_INFO).is_file():
        return _read_entries(path, read_object(path / ADAPTER_INFO).get("below", []), force)  # the original script's has no such key
    stage = parent_stage(path) if (path / MANIFEST).is_file() else None
    if stage is None:
        return (), ()
    entries = frozen_entries(path, load_recipe(stage.recipe).stages[0], {"frozen": read_object(path / MANIFEST).get("frozen", [])})
    return _read_entries(path, [{**entry, "config_hash": None} for entry in entries], force)


def _find_stack(path: Path) -> Path | None:
    if path.name == "stack.json" and path.is_file():
        return path
    if not path.is_dir():
        return None
    if (path / "stack.json").is_file():
        return path / "stack.json"
    stages = sorted(path.glob("*/stack.json"), key=lambda p: p.stat().st_mtime)
    return stages[-1] if stages else None


def _read_stack(name: str, stack: Path, base: str | None, force: bool) -> Found:
    described = read_object(stack)
    _check_keys(stack, described, "base", "adapters")
    theirs = described["base"]
    _check_keys(stack, theirs, "name", "fingerprint")
    layers, forced = _read_entries(stack.parent, described["adapters"], force)
    return Found(
        name=name, base=base or theirs["name"], layers=layers, stack=stack, fingerprint=theirs["fingerprint"],
        load_in_4bit=theirs.get("load_in_4bit", False), forced=forced,
    )  # fmt: skip


def _read_entries(start: Path, entries: Sequence[dict[str, Any]], force: bool) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Adapters as stack.json has them, and what of them is not as it was but forced. start: the folder that their paths begin in"""
    for entry in entries:
        _check_keys(start, entry, "name", "path", "hash")
        weight = entry.get("weight", 1.0)
        if not (isinstance(weight, int | float) and math.isfinite(weight)):
            raise UserError(str(start), got=f"{weight!r} as the weight of {entry['name']}", expected="a number", do="put it right")
    layers = [Layer(name=entry["name"], folder=start / entry["path"], weight=float(entry.get("weight", 1.0))) for entry in entries]
    both = zip(layers, entries, strict=True)
    checked = [_check_hash(layer.folder, entry["hash"], entry.get("config_hash"), force) for layer, entry in both]
    return tuple(layers), tuple(filter(None, checked))


def _check_keys(where: Path, found: Any, *keys: str) -> None:
    """Raises UserError where something that training wrote is not there any more."""
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(str(where), got=f"no {', '.join(missing)}", expected="what training wrote there", do="train it again")


def _check_hash(folder: Path, expected: str, config: str | None, force: bool = False) -> str | None:
    """What is not as it was, where that is forced; else None. Raises UserError where it is not forced, and for a missing file.

    config: hash of its adapter_config.json, which scale and modules depend on; None where a stack.json of earlier versions lacks it
    """
    if adapter_file(folder) is None:
        raise UserError(str(folder), got="no adapter_model.safetensors", expected="the adapter that stack.json names")
    changed = None
    if adapter_hash(folder) != expected:
        changed = "an adapter that was changed after training"
    elif config is not None and config_hash(folder) != config:
        changed = "an adapter_config.json that was changed after training"
    if changed is not None and not force:
        raise UserError(str(folder), got=changed, expected=f"hash {expected}", do="train what lies on it again, or use --force")
    return None if changed is None else f"{folder}: {changed}"


def _check_base(where: str, theirs: dict[str, Any], name: str, ours: dict[str, Any], do: str) -> None:
    if not same_base(ours, theirs):
        raise UserError(where, got=f"{name}, which is not the base it was trained on", expected="that base, unchanged", do=do)
