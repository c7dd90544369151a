"""What `stylora train` does before and after the training itself: read the recipe, say what became of it, choose the number of processes.

With several processes the recipe is checked and the text is read here, before they start: mistakes are told once, and nobody waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stylora.errors import UserError
from stylora.model.processes import rank, ranks
from stylora.recipe.recipe import Recipe, load_recipe_told

from .plan import open_tokenizer, read_data
from .stages import plan_stages


def start_training(
    path: Path, overrides: Sequence[str], *, console: Console, force: bool = False, resume: bool = False, extend: float = 0,
    nproc: int = 1, only: str | None = None, start: str | None = None,
) -> int:  # fmt: skip
    """Train a recipe file; the exit code. only, start: one stage, or the first of those to train. Raises UserError."""
    if nproc > 1 and ranks() > 1:
        raise UserError("--nproc", got=f"{nproc} inside {ranks()} processes", expected="one or the other", do="leave --nproc out")
    recipe, told = load_recipe_told(path, overrides, processes=max(nproc, ranks()))
    if rank() == 0 and nproc == 1:
        for line in [*told, *(f"override: {override}" for override in overrides)]:
            console.print(f"recipe     {line}", markup=False, highlight=False)
    parts = plan_stages(recipe, name=path.stem, force=force, extend=extend, only=only, start=start)
    left = [part for part in parts if part.claim.state != "done"]
    if resume and not any(part.claim.state == "resume" for part in left):
        found = "nothing to go on with" if left else "a finished run"
        where = (left or parts)[0].claim.stage.path
        raise UserError("--resume", got=f"{found} in {where}", expected="an unfinished run of this recipe", do="leave --resume out")
    if nproc > 1 and left:
        for part in left:
            read_data(part.recipe, open_tokenizer(recipe.base))  # into the cache, from where each process opens it
        from .launch import launch

        flags = ["--force"] * force + ["--extend", str(extend)] * bool(extend)
        flags += [*(["--stage", only] if only is not None else []), *(["--from", start] if start is not None else [])]
        return launch(nproc, ["train", str(path), *overrides, *flags])
    return train_here(recipe, path.stem, console, force=force, extend=extend, only=only, start=start)


def train_here(recipe: Recipe, name: str, console: Console, *, force: bool, extend: float, only: str | None, start: str | None) -> int:
    """Train in this process, alone or one of several."""
    from stylora.train.interruption import Interrupted
    from stylora.train.trainer import TrainingStopped

    from .stages import train_stages

    try:
        train_stages(recipe, name=name, console=console, force=force, extend=extend, only=only, start=start)
    except TrainingStopped as stopped:
        Console(stderr=True, soft_wrap=True).print(f"[red]stopped:[/red] {stopped}", highlight=False)
        return 1
    except Interrupted as stop:
        return stop.exit_code
    return 0
