"""Several stages of one recipe, carried out one after the other: which are to do, and what each begins with.

A stage is carried out as a recipe of its own, the one that lies in its folder: `continue: style` has become
`adapter.path: .../style/adapter`, `on: [style]` has become `adapter.frozen`. So it can be trained again or resumed without the others.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from stylora.errors import UserError, did_you_mean
from stylora.model.processes import leave_processes, rank
from stylora.model.settings import OF_STACK, Adapter
from stylora.model.stack_names import weights_of
from stylora.recipe.recipe import Recipe, Stage, load_recipe
from stylora.samples.objective import check_vocabulary, read_vocabulary
from stylora.train.interruption import Interrupted, Interruption

from .folder import Claim, adapter_hash, claim_stage, longer, parent_stage, run_folder, stack_names, stage_folder
from .plan import open_tokenizer, plan_steps, read_data

if TYPE_CHECKING:
    from .measuring import Outcome


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage to carry out. recipe: of this stage alone; claim: what lay in its folder when the command began"""

    recipe: Recipe
    claim: Claim


def train_stages(
    recipe: Recipe, *, name: str, console: Console, force: bool = False, extend: float = 0, cache: Path | None = None,
    only: str | None = None, start: str | None = None,
) -> dict[str, Outcome | None]:  # fmt: skip
    """Carry out the stages of a recipe that are not done yet, in their order; None for one that was done.

    name: of the run, where the recipe sets no output_dir; force: begin the chosen stages anew; extend: so many epochs more
    only: this stage alone; start: this stage and those after it
    Raises what `train` raises, and UserError for a stage that begins with another one that is not done. What is wrong with a later stage's
    text or settings is told before the first is trained.
    """
    from .train import train

    if rank():
        console = Console(quiet=True)
    parts = plan_stages(recipe, name=name, force=force, extend=extend, only=only, start=start)
    left = {part.recipe.stages[0].name: part for part in parts if part.claim.state != "done"}
    for stage in recipe.stages:
        for line in rate_warnings(recipe, stage) if stage.name in left else []:
            console.print(f"warning    {line}", markup=False, highlight=False)
    check_later(list(left.values()), console, cache=cache)
    outcomes: dict[str, Outcome | None] = {}
    for number, part in enumerate(parts, 1):
        stage = part.recipe.stages[0]
        if len(parts) > 1:
            console.print(f"stage      {stage.name}, {number} of {len(parts)}", markup=False, highlight=False)
        outcomes[stage.name] = train(part.recipe, name=name, console=console, force=force, extend=extend, cache=cache)
        if outcomes[stage.name] is not None:
            gc.collect()  # its model makes room for that of the next
    leave_processes()
    return outcomes


def plan_stages(
    recipe: Recipe, *, name: str, force: bool = False, extend: float = 0, only: str | None = None, start: str | None = None
) -> list[Part]:
    """The chosen stages, each claimed before anything is computed. Raises UserError; as `train_stages`."""
    names = [stage.name for stage in recipe.stages]
    for flag, asked in (("--stage", only), ("--from", start)):
        if asked is not None and asked not in names:
            raise UserError(flag, got=repr(asked), expected="a stage of the recipe", do=did_you_mean(asked, names))
    if only is not None and start is not None:
        raise UserError("--from", got="--stage beside it", expected="one of them")
    chosen = [only] if only is not None else names[names.index(start) if start is not None else 0 :]
    if extend and len(chosen) > 1:
        raise UserError("--extend", got=f"{len(chosen)} stages", expected="one, for its epochs are meant", do=f"add --stage {chosen[-1]}")
    folder, parts = run_folder(recipe, name), []
    for number, stage in enumerate(recipe.stages):
        if stage.name not in chosen:
            continue
        for parent in _parents(stage):
            if parent not in chosen:
                _check_done(alone(recipe, names.index(parent), folder), folder, stage.name)
        own = alone(recipe, number, folder)
        stacked = stack_names(own.stages[0])
        weights_of(stacked[:-1], own.stages[0].adapter.weights, where=f"stage {stage.name!r}: adapter.weights")
        claim = claim_stage(folder, longer(own, extend), force=force, extend=bool(extend))
        parts.append(Part(recipe=own, claim=claim))
    return parts


def check_later(parts: Sequence[Part], console: Console, *, cache: Path | None) -> None:
    """Read and lay out what the stages after the first will train on. Raises UserError; Interrupted after a signal."""
    made = [part.claim.stage.adapter for part in parts]
    with Interruption() as interruption:
        try:
            with interruption.at_once():
                for part in parts[1:]:
                    _check(part.recipe, made, cache)
        except Interrupted as stop:
            console.print(f"stopped by {stop}: the same command starts again")
            raise


def _check(recipe: Recipe, made: Sequence[Path], cache: Path | None) -> None:
    """made: folders of adapters that are not there yet"""
    from stylora.model.device import choose_device
    from stylora.train.optimizer import check_optimizer
    from stylora.train.trainer import check_trackers

    stage, tokenizer = recipe.stages[0], open_tokenizer(recipe.base)
    check_trackers(stage.train.report_to)
    check_optimizer(stage.train.optim, choose_device(stage.train.precision).device.type)
    for start in filter(None, [stage.adapter.path, *stage.adapter.frozen]):
        if Path(start) not in made:
            adapter_hash(Path(start))
    vocabulary = read_vocabulary(tokenizer)
    check_vocabulary(stage.objective, vocabulary)
    plan_steps(stage, read_data(recipe, tokenizer, cache=cache), vocabulary, packs=True)


def alone(recipe: Recipe, number: int, folder: Path) -> Recipe:
    """The recipe of stage `number` by itself, in the run's folder: its parents are adapters there."""
    stage = recipe.stages[number]
    if not _parents(stage):
        return recipe.model_copy(update={"stages": [stage]})
    stages = {each.name: each for each in recipe.stages}
    adapter: dict[str, Any]
    if stage.continues is not None:
        parent = stages[stage.continues]
        adapter = {key: getattr(stage.adapter, key) for key in OF_STACK} | {"path": _adapter(folder, recipe, parent)}
        adapter |= {"frozen": _below(parent, stages, folder, recipe)}
    else:
        adapter = {**stage.adapter.model_dump(exclude_unset=True), "frozen": _below(stage, stages, folder, recipe)}
    values = {"adapter": Adapter.model_validate(adapter), "continues": None, "on": ()}
    return recipe.model_copy(update={"stages": [stage.model_copy(update=values)]})


def _below(stage: Stage, stages: dict[str, Stage], folder: Path, recipe: Recipe) -> tuple[str, ...]:
    """The adapters under a stage's own, bottom to top, each once."""
    if stage.continues is not None:
        return _below(stages[stage.continues], stages, folder, recipe)
    found: list[str] = []
    for parent in stage.on:
        found += [*_below(stages[parent], stages, folder, recipe), _adapter(folder, recipe, stages[parent])]
    return tuple(dict.fromkeys([*stage.adapter.frozen, *found]))


def _adapter(folder: Path, recipe: Recipe, stage: Stage) -> str:
    return stage_folder(folder, recipe.model_copy(update={"stages": [stage]})).adapter.as_posix()


def _parents(stage: Stage) -> list[str]:
    return [*([stage.continues] if stage.continues is not None else []), *stage.on]


def _check_done(parent: Recipe, folder: Path, child: str) -> None:
    claim = claim_stage(folder, parent, force=False)
    if claim.state != "done":
        name = parent.stages[0].name
        raise UserError(
            str(claim.stage.path), got=f"stage {name!r} not trained to its end", expected=f"it done, for {child!r} begins with it",
            do="leave --stage and --from out",
        )  # fmt: skip


def rate_warnings(recipe: Recipe, stage: Stage) -> Iterator[str]:
    """A stage that goes on as fast as the one before unlearns it: the parent's rate is in the recipe, or beside its adapter."""
    parent = next((each for each in recipe.stages if each.name == stage.continues), None)
    if parent is None and stage.adapter.path is not None and (folder := parent_stage(Path(stage.adapter.path))) is not None:
        parent = load_recipe(folder.recipe).stages[0]
    if parent is not None and stage.train.learning_rate >= parent.train.learning_rate:
        yield (
            f"stage {stage.name!r}: train.learning_rate {stage.train.learning_rate:g} is not below {parent.train.learning_rate:g}, that of "
            f"{parent.name!r}, whose adapter it trains on; smaller steps keep what was learned"
        )
