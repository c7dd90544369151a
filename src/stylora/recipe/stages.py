"""Several stages in one recipe: what a stage takes over from the one it continues, before anything is validated.

    stages:
      - name: style
        data: {train: novels, window: 512}
        train: {learning_rate: 2.0e-4}
      - name: align
        continue: style                     # the same adapter trained on: data, objective, adapter, train, prompts and sampling are style's
        objective: {kl: {beta: 0.1}}        # but for what is said here, key by key
        train: {learning_rate: 5.0e-5}
      - name: instruct
        on: [align]                         # a new adapter on align's, which is frozen: only the base is taken over
        data: {format: chat, train: instruct.jsonl}

Works on plain mappings, as they come from YAML; knows only how stages hang together.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from stylora.errors import UserError, did_you_mean
from stylora.evaluate.task_settings import OF_ANSWERS
from stylora.samples.objective import READ_BY as OBJECTIVE_READ_BY
from stylora.samples.settings import READ_BY as DATA_READ_BY
from stylora.train.settings import current_names

INHERITED = ("data", "objective", "adapter", "train", "task", "branches", "prompts", "sampling")
READ_BY: dict[str, tuple[str, Mapping[str, Container[str]]]] = {
    "data": ("format", DATA_READ_BY),
    "objective": ("kind", {kind: {*keys, "kind", "kl"} for kind, keys in OBJECTIVE_READ_BY.items()}),
}  # fmt: skip
"""section -> the key that says which other keys there may be, and for each of its values which these are"""


def inherit(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The recipe's values with every stage written out. name: of the recipe file, for messages

    Raises UserError for two stages of one name, an unknown parent, one that comes later, stages that hang on each other in a circle, and
    an adapter that would count twice.
    """
    stages = values.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return values  # validation says what is wrong
    stages = [_with_on(stage) for stage in stages]
    names = [stage.get("name", "style") for stage in stages]
    for number, each in enumerate(names):
        if str(each).casefold() in [str(other).casefold() for other in names[:number]]:  # some disks do not tell `Style` from `style`
            raise UserError(f"{name}: stages[{number}].name", got=f"{each!r} again", expected="a name of its own, for its folder has it")
    written: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        where = f"{name}: stages[{number}]"
        for key in ("continue", "on"):
            for parent in _as_list(stage.get(key)):
                _check_parent(stages, names, number, parent, f"{where}.{key}")
        parent = stage.get("continue")
        if isinstance(parent, list):
            raise UserError(f"{where}.continue", got=repr(parent), expected="the name of one stage", do="use `on` to build on several")
        if parent is not None and stage.get("on"):
            raise UserError(f"{where}.on", got="`continue` beside it", expected="one of them: go on with an adapter, or put one on it")
        if stage.get("on"):
            _refuse_twice(stages, names, number, f"{where}.on")
        written.append(stage if parent is None else _continued(written[names.index(parent)], stage, f"{where}.adapter"))
    return {**values, "stages": written}


def _refuse_twice(stages: Sequence[dict[str, Any]], names: Sequence[Any], number: int, where: str) -> None:
    """Raises UserError where a stack would hold an adapter and one that goes on with it: what the first learned would count twice."""
    by_name = dict(zip(names, stages, strict=True))

    def before(name: Any) -> list[Any]:
        parent = by_name[name].get("continue")
        return [] if parent is None else [parent, *before(parent)]

    def below(name: Any) -> list[Any]:
        parent = by_name[name].get("continue")
        return below(parent) if parent is not None else [each for one in _as_list(by_name[name].get("on")) for each in [*below(one), one]]

    stack = below(names[number])
    for one in stack:
        for other in stack:
            if other in before(one):
                raise UserError(where, got=f"{one!r} and {other!r}, which it goes on with", expected="one of them, or it counts twice",
                                do=f"leave {other!r} out")  # fmt: skip


def stage_number(values: dict[str, Any], name: str) -> int | None:
    """Which stage has this name."""
    stages = values.get("stages")
    names = [stage.get("name", "style") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    return names.index(name) if name in names else None


def _with_on(stage: dict[Any, Any]) -> dict[str, Any]:
    """With `on` under its name, which YAML 1.1 reads as true, and as a list; left out where it says nothing."""
    named = {"on" if key is True else key: value for key, value in stage.items()}
    if isinstance(named.get("on"), str):
        named["on"] = [named["on"]]
    return {key: value for key, value in named.items() if key != "on" or value is not None}


def _check_parent(stages: Sequence[dict[str, Any]], names: Sequence[Any], number: int, parent: Any, where: str) -> None:
    if parent not in names:
        raise UserError(where, got=repr(parent), expected="the name of an earlier stage", do=did_you_mean(str(parent), map(str, names)))
    path, later = [names[number]], parent
    while later in names and later not in path:  # follow the first of each: a circle is closed by one of them
        path.append(later)
        later = next(iter(_parents(stages[names.index(later)])), None)
    if later in path:
        circle = " -> ".join(map(str, [*path[path.index(later) :], later]))
        raise UserError(where, got=f"a circle, {circle}", expected="a stage that is trained before this one")
    if names.index(parent) > number:
        raise UserError(where, got=f"{parent!r}, which comes later", expected="an earlier stage", do=f"move {parent!r} up")


def _parents(stage: dict[str, Any]) -> list[Any]:
    return [*_as_list(stage.get("continue")), *_as_list(stage.get("on"))]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _continued(parent: dict[str, Any], stage: dict[str, Any], where: str) -> dict[str, Any]:
    """`stage` with what it does not say filled in from `parent`, which is written out already."""
    if stage.get("adapter"):
        said = ", ".join(map(str, stage["adapter"])) if isinstance(stage["adapter"], dict) else repr(stage["adapter"])
        raise UserError(where, got=said, expected=f"nothing: it goes on with the adapter of {stage['continue']!r}",
                        do="remove it, or use `on` for a new one")  # fmt: skip
    written = dict(stage)
    for section in INHERITED:
        if section not in parent:
            continue
        theirs, before, now = parent[section], parent.get("data"), written.get("data")
        if _rows(now) != _rows(before):
            if section in ("task", "branches", "prompts"):
                continue  # a line of a novel is nothing to ask a task, and text has no answers to judge, nor branches to lay out
            if section == "objective":
                theirs = _only(theirs, {"kl"})  # kinds for text mean nothing to conversations, nor the other way round
        elif section == "task" and _answers(now) != _answers(before):
            theirs = _without(theirs, OF_ANSWERS)
        written[section] = _merged(section, theirs, stage[section]) if section in stage else theirs
    return written


def _rows(data: Any) -> str:
    """What the data are: `chat`, `branches` or text, whose two formats have the same objectives."""
    format = data.get("format") if isinstance(data, dict) else None
    return format if format in ("chat", "branches") else "text"


def _answers(data: Any) -> Any:
    return data.get("answers", "text") if isinstance(data, dict) else None


def _without(section: Any, keys: Container[str]) -> Any:
    return {key: value for key, value in section.items() if key not in keys} if isinstance(section, dict) else section


def _only(section: Any, keys: Container[str]) -> Any:
    return {key: value for key, value in section.items() if key in keys} if isinstance(section, dict) else section


def _merged(section: str, theirs: Any, ours: Any) -> Any:
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ours
    if section == "train":
        theirs, ours = _named(theirs), _named(ours)
        if "num_train_epochs" in ours:  # max_steps would win over it
            theirs = {key: value for key, value in theirs.items() if key != "max_steps"}
    if section in READ_BY and READ_BY[section][0] in ours:
        chooses, readers = READ_BY[section]
        theirs = _only(theirs, readers.get(str(ours[chooses] or "clm"), theirs))  # another kind may have no use for some of them
    return _deep(theirs, ours)


def _named(train: dict[str, Any]) -> dict[str, Any]:
    try:
        return current_names(train)
    except ValueError:
        return train  # two names for one setting: validation meets them again and says so


def _deep(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    both = dict(theirs)
    for key, value in ours.items():
        there = both.get(key)
        both[key] = _deep(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return both
