"""Where a stage goes on: the last sound checkpoint of an unfinished run, of the run before a loss spike, or the best one at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from stylora.errors import UserError
from stylora.model.adapter import restore_adapter
from stylora.model.base import same_base
from stylora.model.processes import agreed, rank
from stylora.recipe.recipe import Recipe
from stylora.train.checkpoint import Checkpoint, find_checkpoint, sweep, unsound
from stylora.train.trainer import ForestTrainer, LossSpike, TrainingStopped

from .folder import StageFolder, adapter_hash, keep_recipe, make_stage

SLOWEST_RATE = 1 / 8  # after three roll-backs


def identity(recipe: Recipe, data: str, base: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint must agree with to be gone on from beside the recipe: fingerprints of data and base, and the hashes of the adapter
    it began with, if it was not a fresh one, and of those below it."""
    adapter = recipe.stages[0].adapter
    frozen = [adapter_hash(Path(path)) for path in adapter.frozen]
    return {"data": data, "base": base, "start": adapter.path and adapter_hash(Path(adapter.path)), "frozen": frozen}


def open_folder(
    recipe: Recipe, folder: StageFolder, state: str, same: dict[str, Any], console: Console
) -> Checkpoint | None:
    """Make a new run's folder, or find where an unfinished one stopped; None is the beginning.

    Raises UserError where data or base are not those the run began with.
    """
    if state == "new":
        make_stage(folder, recipe)
        return None
    checkpoint, complaints = find_checkpoint(folder.checkpoints)
    for complaint in complaints:
        console.print(f"checkpoint {complaint}", markup=False, highlight=False)
    if checkpoint is None and folder.stack.is_file():
        raise UserError(
            str(folder.checkpoints), got="no sound checkpoint of the finished run", expected="its last one, to go on from",
            do="give --force to begin anew; its adapter stays as it is until then",
        )  # fmt: skip
    if checkpoint is None:
        console.print("resume     no checkpoint to go on from; from the beginning")
        make_stage(folder, recipe)
        return None
    if checkpoint.manifest["data"] != same["data"]:
        raise UserError(
            str(checkpoint.path), got="a checkpoint trained on other text than is there now", expected="the text the run began with",
            do="put it back, set output_dir, or give --force to begin anew",
        )  # fmt: skip
    if (checkpoint.manifest["start"], checkpoint.manifest.get("frozen", [])) != (same["start"], same["frozen"]):
        begun = ", ".join([*recipe.stages[0].adapter.frozen, *filter(None, [recipe.stages[0].adapter.path])])
        raise UserError(
            str(checkpoint.path), got=f"a checkpoint begun from another adapter than {begun} is now",
            expected="the adapter the run began with", do="put it back, set output_dir, or give --force to begin anew",
        )  # fmt: skip
    if not same_base(checkpoint.manifest["base"], same["base"]):
        raise UserError(
            str(checkpoint.path), got=f"a checkpoint of another base than {recipe.base} is now", expected="the base the run began with",
            do="put it back, set output_dir, or give --force to begin anew",
        )  # fmt: skip
    sweep(folder.checkpoints, checkpoint.step)
    keep_recipe(folder, recipe)  # with more epochs it is another one
    console.print(f"resume     from {checkpoint.path}", markup=False, highlight=False)
    return checkpoint


def carry_out(trainer: ForestTrainer, folder: StageFolder, checkpoint: Checkpoint | None, console: Console) -> None:
    """Train to the end; after a spike from the last checkpoint at half the rate, where the recipe says so.

    Which rates are tried depends on the losses alone, so a run that is killed between two tries comes to the same end.
    """
    rate = None
    while True:
        try:
            return trainer.run(checkpoint, rate=rate)
        except LossSpike as spike:
            checkpoint = agreed(find_checkpoint(folder.checkpoints)[0] if rank() == 0 else None)
            rate = trainer.progress.rate / 2
            if checkpoint is None or rate < SLOWEST_RATE:
                why = "there is no checkpoint yet" if checkpoint is None else "going back did not help"
                raise TrainingStopped(f"{spike} ({why})") from None
            if rank() == 0:
                sweep(folder.checkpoints, checkpoint.step)
            console.print(f"roll back  {spike}; from {checkpoint.path.name} at {rate:g} of the rate", markup=False, highlight=False)


def take_best(trainer: ForestTrainer, folder: StageFolder, console: Console) -> None:
    """Where a metric chooses, put the best checkpoint's weights into the model."""
    best = trainer.state.best_global_step
    if trainer.settings.metric_for_best_model is None or best is None:
        return
    path = folder.checkpoints / f"checkpoint-{best}"
    trouble = unsound(path)
    if trouble is not None:
        console.print(f"best       step {best}, but {path.name} is damaged ({trouble}): the last adapter is kept instead", markup=False)
        return
    restore_adapter(trainer.peft_model, path)
    console.print(f"best       step {best} of {trainer.state.global_step}: {trainer.settings.metric_for_best_model} "
                  f"{trainer.state.best_metric:.4f}")  # fmt: skip
