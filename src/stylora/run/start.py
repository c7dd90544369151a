"""What `stylora train` does before and after the training itself: read the recipe, say what became of it, choose the number of processes.

With several processes the recipe is checked and the text is read here, before they start: mistakes are told once, and nobody waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stylora.errors import UserError, did_you_mean
from stylora.model.processes import rank, ranks
from stylora.recipe.older_flags import COMMAND_FLAGS, FLAGS
from stylora.recipe.recipe import Recipe, load_flags_told, load_recipe_told

from .plan import open_tokenizer, read_data
from .stages import plan_stages


def start_training(
    words: Sequence[str], *, console: Console, force: bool = False, resume: bool = False, extend: float = 0,
    nproc: int = 1, only: str | None = None, start: str | None = None,
) -> int:  # fmt: skip
    """Train a recipe; the exit code. Raises UserError.

    words: a recipe file and its overrides, or flags of an older trainer; only, start: one stage, or the first of those to train
    """
    if nproc > 1 and ranks() > 1:
        raise UserError("--nproc", got=f"{nproc} inside {ranks()} processes", expected="one or the other", do="leave --nproc out")
    recipe, told, name = read_words(words, processes=max(nproc, ranks()))
    if rank() == 0 and nproc == 1:
        for line in told:
            console.print(f"recipe     {line}", markup=False, highlight=False)
    parts = plan_stages(recipe, name=name, force=force, extend=extend, only=only, start=start)
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
        return launch(nproc, ["train", *words, *flags])
    return train_here(recipe, name, console, force=force, extend=extend, only=only, start=start)


def read_words(words: Sequence[str], *, processes: int) -> tuple[Recipe, list[str], str]:
    """(the recipe, a sentence for whatever was translated or overridden, the name of the run). processes: that train together

    Raises UserError where the words are neither a recipe with overrides nor flags.
    """
    if not words:
        expected = "a recipe, as in `stylora train recipe.yaml`, or the flags --base_model and --data_path"
        raise UserError("stylora train", got="neither a recipe nor flags", expected=expected, do="`stylora init FOLDER` writes a recipe")
    flags = [word for word in words if word.startswith("-")]
    if words[0] in flags or "=" in words[0] and flags:
        recipe, told, overrides = load_flags_told(words, processes=processes)
        name = "branches"
    else:
        if flags:
            known = (*COMMAND_FLAGS, *FLAGS)
            told_of = "a key of the older form, beside a recipe" if flags[0].partition("=")[0] in FLAGS else "an unknown flag"
            raise UserError(flags[0], got=told_of, expected="overrides behind a recipe, as in train.learning_rate=1e-4",
                            do=did_you_mean(flags[0], known) if told_of == "an unknown flag" else "leave out one of them")  # fmt: skip
        overrides = list(words[1:])
        recipe, told = load_recipe_told(Path(words[0]), overrides, processes=processes)
        name = Path(words[0]).stem
    return recipe, [*told, *(f"override: {override}" for override in overrides)], name


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
