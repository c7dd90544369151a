"""The folder of a run: `runs/<run>/<stage>/`, what lies in it, and whether it may be written.

    recipe.yaml        the resolved recipe of this stage: run it again with `stylora train`
    environment.json   versions, device, proofs
    metrics.jsonl      one JSON object a line; events.* for TensorBoard beside it
    samples.json       the fixed prompts, continued at every evaluation
    checkpoints/       checkpoint-N: adapter, optimizer, scheduler, generators
    adapter/           the adapter in plain PEFT format, the tokenizer beside it
    stack.json         base and adapters with their hashes: what generate opens; written last, so it marks a finished stage
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stylora.errors import UserError
from stylora.model.base import hash_file
from stylora.recipe.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """Paths of one stage."""

    path: Path

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """checkpoint-N folders."""
        return self.path / "checkpoints"

    @property
    def stack(self) -> Path:
        """stack.json; it exists when the stage is done."""
        return self.path / "stack.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"


def run_folder(recipe: Recipe, name: str) -> Path:
    """Where a run lies: the recipe's `output_dir`, else `runs/<name>`."""
    return Path(recipe.output_dir) if recipe.output_dir else Path("runs") / name


def claim_stage(folder: Path, recipe: Recipe, *, force: bool) -> StageFolder | None:
    """The stage's folder, before anything is computed or written; None when this very recipe is already done there.

    force: replace a run that lies there, another one or an unfinished one; never files that are no run
    Raises UserError for a file in its place, for files that are no run, and unless forced for another or an unfinished run.
    """
    stage = StageFolder(path=folder / recipe.stages[0].name)
    file = next((path for path in [stage.path, *stage.path.parents] if path.is_file()), None)
    if file is not None:
        raise UserError(str(file), got="a file", expected="a folder for the run", do="set output_dir to another place")
    if not stage.path.exists() or not any(stage.path.iterdir()):
        return stage
    there = _kept_recipe(stage)
    if there is None:
        raise UserError(
            str(stage.path), got="files that are no run", expected="an empty folder or this recipe's own run", do="set output_dir"
        )  # fmt: skip
    if force:
        return stage
    if there != recipe.model_dump(mode="json"):
        raise UserError(
            str(stage.path), got="another run", expected="an empty folder or this recipe's own run",
            do="set output_dir, or give --force to replace it",
        )  # fmt: skip
    if stage.stack.is_file():
        return None
    raise UserError(
        str(stage.path), got="an unfinished run of this recipe", expected="an empty folder", do="give --force to start it again"
    )  # fmt: skip


def make_stage(stage: StageFolder, recipe: Recipe, *, need_bytes: int) -> None:
    """Make the claimed folder anew and leave the resolved recipe in it.

    need_bytes: what the run will write at most. Raises UserError for a disk with less free space.
    """
    parent = next(p for p in [stage.path, *stage.path.parents] if p.exists())
    free = shutil.disk_usage(parent).free
    if free < need_bytes:
        raise UserError(
            str(stage.path), got=f"{free / 2**20:,.0f} MB free", expected=f"{need_bytes / 2**20:,.0f} MB for adapter and checkpoints",
            do="free some space, set output_dir to another disk, or lower train.save_total_limit",
        )  # fmt: skip
    if stage.path.exists():
        shutil.rmtree(stage.path)
    stage.path.mkdir(parents=True)
    write_text(stage.recipe, yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False))


def _kept_recipe(stage: StageFolder) -> Any:
    """What the `recipe.yaml` lying there says; None where there is none that can be read."""
    try:
        return yaml.safe_load(stage.recipe.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return None


def write_stack(stage: StageFolder, *, base_name: str, base_fingerprint: dict[str, Any]) -> None:
    """Describe base and adapter; whoever opens the stage checks it against these hashes."""
    adapter = {"name": "default", "path": "adapter", "role": "trained", "weight": 1.0, "hash": adapter_hash(stage.adapter)}
    write_json(stage.stack, {"base": {"name": base_name, "fingerprint": base_fingerprint}, "adapters": [adapter]})


def adapter_hash(folder: Path) -> str:
    """Hash of the adapter's weights."""
    return hash_file(folder / "adapter_model.safetensors")


def write_json(path: Path, value: Any) -> None:
    """JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2))


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
