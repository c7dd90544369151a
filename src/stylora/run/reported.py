"""Folders of runs as the plain values a report is made of.

A stage is followed to the ones it goes on from, wherever they lie, to find the base's own figures. A file that can't be read is among the
stage's troubles and stops nothing. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from stylora.report.evaluated import base_losses
from stylora.report.figures import curve, is_number
from stylora.report.stage import HELD_OUT, Origin, Stage

from .folder import parent_stage
from .runs import RUNS, Run, find_run, is_stage, read_object, read_rows, read_run


@dataclass(frozen=True, kw_only=True)
class Reported:
    """stages: each behind the one it goes on from; folder: of the run, or of the one stage that was asked for"""

    stages: list[Stage]
    folder: Path
    title: str


def read(name: str) -> Reported:
    """The run or stage of that name. Raises UserError where there is none."""
    runs = find_run(name)
    alone = len(runs) == 1 and _is_asked_for(name, runs[0])
    folder = runs[0].folder.path if alone or runs[0].folder.layout != "stages" else runs[0].folder.path.parent
    stages = read_stages([runs])
    title = f"{stages[0].run} / {stages[0].name}" if alone and runs[0].folder.layout == "stages" else stages[0].run
    return Reported(stages=stages, folder=folder, title=title)


def _is_asked_for(name: str, run: Run) -> bool:
    return run.folder.path in (Path(name), Path("runs") / name)


def read_stages(groups: Sequence[Sequence[Run]]) -> list[Stage]:
    """Every stage of several runs, each behind the one it goes on from, otherwise in the order given."""
    runs = [(run, group) for group, several in enumerate(groups) for run in several]
    before = {_place(run): _parent_place(run) for run, _ in runs}
    order: list[Path] = []
    for run, _ in sorted(runs, key=lambda one: (one[1], one[0].when)):
        chain = [_place(run)]
        while (parent := before[chain[-1]]) in before and parent not in chain and parent not in order:
            chain.append(parent)
        order += [place for place in reversed(chain) if place not in order]
    known = {_place(run): (run, group) for run, group in runs}
    found: list[Stage] = []
    for place in order:
        run, group = known[place]
        parent = before[place]
        number = order.index(parent) if parent in order and order.index(parent) < len(found) else None
        found.append(replace(read_stage(run), group=group, parent=number))
    folders = {(stage.run, place.parent if known[place][0].folder.layout == "stages" else place)
               for stage, place in zip(found, order, strict=True)}  # fmt: skip
    shared = [name for name, _ in folders]
    return [replace(stage, run=readable(known[place][0].name)) if shared.count(stage.run) > 1 else stage
            for stage, place in zip(found, order, strict=True)]  # fmt: skip


def _place(run: Run) -> Path:
    return run.folder.path.resolve()


def _parent_place(run: Run) -> Path | None:
    """The folder of the stage whose adapter this one began with, or which lies frozen below it; None where it began with the base.

    A run that was moved with all its stages, and is still called so, finds them beside it.
    """
    if run.recipe is None:
        return None
    adapter = run.recipe.stages[0].adapter
    start = adapter.path or (adapter.frozen[-1] if adapter.frozen else None)
    if start is None:
        return None
    places, home = [Path(start)], run.folder.path.parent.resolve()
    if home.name in places[0].parts:
        places.append(home.joinpath(*places[0].parts[places[0].parts.index(home.name) + 1 :]))
    return next((stage.path.resolve() for place in places if (stage := parent_stage(place)) is not None), None)


def read_stage(run: Run) -> Stage:
    """What a stage's folder holds, as plain values."""
    path, troubles = run.folder.path, list(run.troubles)
    held_out = _held_out(read_rows(path / "held_out.jsonl", troubles))
    evaluation = read_object(path / "evaluation.json", troubles)
    rows = read_rows(path / "metrics.jsonl", [])  # what can't be read of it is among the run's troubles already
    scores = _scores(path, troubles)
    recipe = run.recipe.model_dump(mode="json") if run.recipe else {}
    stage = run.recipe.stages[0] if run.recipe else None
    runtimes = [row["train_runtime"] for row in rows if is_number(row.get("train_runtime"))]
    chooses = stage is not None and stage.train.metric_for_best_model is not None
    kl = stage.objective.kl if stage is not None else None
    return Stage(
        run=readable(_run_name(run)), name=readable(run.stage), state=run.state, step=run.step, steps=run.steps,
        when=datetime.fromtimestamp(run.when).astimezone().isoformat(timespec="seconds"), seconds=runtimes[-1] if runtimes else None,
        base=readable(run.recipe.base) if run.recipe else "?", scores=scores, rows=rows, held_out=held_out,
        samples=_samples(read_rows(path / "samples.jsonl", troubles)), evaluation=evaluation or None, three_way=_three_way(path, troubles),
        environment=read_object(path / "environment.json", troubles), rejects=_rejects(path / "rejects.jsonl", troubles),
        recipe={**{key: value for key, value in recipe.items() if key != "stages"}, **recipe["stages"][0]} if recipe else {},
        asked=_asked(run), recipe_text=yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False) if recipe else "",
        metric=run.metric if chooses else None, more_is_better=bool(chooses and stage is not None and stage.train.more_is_better),
        spike_factor=stage.train.loss_spike_factor if stage is not None else 2.0, beta=kl.beta if kl is not None else 0.0,
        origin=find_origin(run, rows, held_out, evaluation), troubles=troubles,
    )  # fmt: skip


def _three_way(path: Path, troubles: list[str]) -> dict[str, Any] | None:
    """three_way.json, where it measured the adapters that stack.json names: trained again or further, they are others."""
    told, stack = read_object(path / "three_way.json", troubles), read_object(path / "stack.json", [])
    measured = _hashes(told.get("settings"))
    return told if measured and measured == _hashes(stack) else None


def _hashes(described: Any) -> list[Any]:
    adapters = described.get("adapters") if isinstance(described, dict) else None
    return [each.get("hash") for each in adapters if isinstance(each, dict)] if isinstance(adapters, list) else []


def _asked(run: Run) -> dict[str, Any]:
    """What the recipe sets otherwise than by default."""
    if run.recipe is None:
        return {}
    values = run.recipe.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in values.items() if key != "stages"} | values["stages"][0]


def _run_name(run: Run) -> str:
    """Without the stage, where that has a folder of its own: `runs/wuxia/style` is `wuxia`."""
    path = run.folder.path.resolve()
    place = path.parent if run.folder.layout == "stages" else path
    return place.relative_to(RUNS.resolve()).as_posix() if RUNS.resolve() in place.parents else place.name


def readable(name: str) -> str:
    """A name without what can't be printed: a file's name may hold any bytes."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _held_out(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of held_out.jsonl, with those parts whose columns are numbers and of one length."""
    return [{"step": row["step"], **{part: found for part, found in row.items() if _is_columns(found)}} for row in rows]


def _is_columns(found: object) -> bool:
    columns = [found.get(name) for name in ("nats", "tokens", "characters")] if isinstance(found, dict) else []
    numbers = [column for column in columns if isinstance(column, list) and column and all(map(is_number, column))]
    return len(numbers) == 3 and len(set(map(len, numbers))) == 1


def _scores(path: Path, troubles: list[str]) -> list[str]:
    """Names of the numbers that task.jsonl has."""
    rows = [row["metrics"] for row in read_rows(path / "task.jsonl", troubles) if isinstance(row.get("metrics"), dict)]
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value) and name != "rows"))


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, str]]]:
    return [
        (row["step"], {prompt: text for prompt, text in row["samples"].items() if isinstance(text, str)})
        for row in rows if isinstance(row.get("samples"), dict)
    ]  # fmt: skip


def _rejects(path: Path, troubles: list[str]) -> list[dict[str, str]]:
    """Where each row of rejects.jsonl came from, and why it could not be used."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            row = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError):
            row = None
        if isinstance(row, dict):
            found.append({key: str(row.get(key, "")) for key in ("where", "reason")})
        else:
            troubles.append(f"{path}:{number}: no JSON object")
    return found


# --------------------------------------------------------------------------------------------------------------- origin


def find_origin(
    run: Run, rows: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]
) -> Origin | None:  # fmt: skip
    """What each part of the held-out text cost the base: where the chain of stages began, if the same text was held out there; else by
    evaluation.json; else what it cost at this stage's own first evaluation, and then that is said. None where there was no evaluation."""
    own, own_held = _first(rows, held_out, _scores(run.folder.path, []))
    if not own:
        return None
    root, knows_base = _root(run)
    far, far_held = (own, own_held) if root is run else _first(*_logged(root.folder.path), _scores(root.folder.path, []))
    measured = base_losses(evaluation)
    losses, held, is_base = {}, {}, True
    for part, loss in own.items():
        same = root is run or (part in far and _sizes(far_held.get(part)) == _sizes(own_held.get(part)))
        if knows_base and same:
            losses[part], held[part] = far[part], far_held.get(part)
        elif part in measured:
            losses[part] = measured[part]
        else:
            losses[part], held[part], is_base = loss, own_held.get(part), False
    return Origin(losses=losses, held_out=held, is_base=is_base)


def _root(run: Run) -> tuple[Run, bool]:
    """The first stage of the chain that this one stands at the end of, and whether that one began with the base itself."""
    seen = {_place(run)}
    while (place := _parent_place(run)) is not None and place not in seen and is_stage(place):
        seen.add(place)
        parent = read_run(place)
        if parent.recipe is None or run.recipe is None or parent.recipe.base != run.recipe.base:
            break
        run = parent
    adapter = run.recipe.stages[0].adapter if run.recipe else None
    return run, adapter is not None and adapter.path is None and not adapter.frozen


def _logged(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return read_rows(path / "metrics.jsonl", []), _held_out(read_rows(path / "held_out.jsonl", []))


def _first(
    rows: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], scores: Sequence[str]
) -> tuple[dict[str, float], Mapping[str, Any]]:
    """(part -> loss, the line of held_out.jsonl) of the evaluation before the first step; empty where there was none. scores: no losses"""
    keys = dict.fromkeys(key for row in rows if row["step"] == 0 for key in row if key.startswith(HELD_OUT))
    found = {key.removeprefix(HELD_OUT): curve(rows, key).at(0) for key in keys}
    losses = {part: loss for part, loss in found.items() if loss is not None and part not in scores}
    return losses, next((row for row in held_out if row["step"] == 0), {})


def _sizes(found: Any) -> Any:
    return (found["tokens"], found["characters"]) if found else None
