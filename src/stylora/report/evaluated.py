"""What `stylora evaluate` measured: points on the plane, and a table with a row for each model and a column for each figure that any has.

evaluation.json was written by another version perhaps, or by hand: a figure that is not there, or is no number, is a blank cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .figures import is_number
from .panel import Track
from .stage import Stage
from .words import WORDS, Said, Text, part_name, word
from .written import share, short, whole

SHARES = ("style_score", "degenerate", "stopped", "copied", "repeated", "distinct_2", "distinct_4")
GENERATION = {
    "style_score": "style_score", "function_words": "function_words", "fluency": "base_perplexity", "distinct_2": "distinct_2",
    "distinct_4": "distinct_4", "repeated": "repeated", "degenerate": "degenerate", "stopped": "stopped", "length": "length",
    "longest_copy": "longest_copy", "copied": "copied",
}  # fmt: skip
"""key of `generation` -> what its column is called"""

Table = tuple[list[Text], list[tuple[Text, list[tuple[str, str]]]]]
"""(columns, rows), where a row is (model, [(figure, its interval)])"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """held_out, generation: tables; voice: how good the style classifier is; warnings: as told; samples: (model, its texts)"""

    held_out: Table
    generation: Table
    voice: Said | None = None
    warnings: list[str] = field(default_factory=list)
    samples: list[tuple[Text, list[Mapping[str, Any]]]] = field(default_factory=list)


def together(found: Sequence[Track]) -> list[tuple[list[Track], Measured]]:
    """The tables of stages that were evaluated; those that were measured alike, on the same base, in one."""
    groups: list[list[Track]] = []
    for track in found:
        if models(track.stage):
            alike = next((group for group in groups if _yardstick(group[0].stage) == _yardstick(track.stage)), None)
            groups.append([track]) if alike is None else alike.append(track)
    return [(group, _measured([track.stage for track in group])) for group in groups]


def _yardstick(stage: Stage) -> Any:
    """What figures must have in common to stand in one table: how they were measured, and what the base's are."""
    return (stage.evaluation or {}).get("settings"), models(stage)[0]


def _measured(stages: Sequence[Stage]) -> Measured:
    first = stages[0].evaluation or {}
    found = [models(stages[0])[0], *(model for stage in stages for model in models(stage)[1:])]
    told = [warning for stage in stages for warning in _list(stage.evaluation or {}, "warnings")]
    parts = dict.fromkeys(part for model in found for part in _mapping(model, "held_out"))
    held: dict[Text, list[tuple[str, str]]] = {}
    for part in parts:
        name = part_name(part)
        figures = [_mapping(_mapping(model, "held_out"), part) for model in found]
        held[Said(f"{name.en}, perplexity", f"{name.zh}困惑度")] = [figure(one.get("perplexity")) for one in figures]
        held[Said(f"{name.en}, per character", f"{name.zh}，每字符")] = [figure(one.get("perplexity_per_character")) for one in figures]
    for part, title in (("style", "kl_style"), ("general", "kl_general")):
        held[WORDS[title]] = [figure(_mapping(model, "kl_to_base").get(part)) for model in found]
    written: dict[Text, list[tuple[str, str]]] = {
        WORDS[title]: [figure(_mapping(model, "generation").get(key), percent=key in SHARES) for model in found]
        for key, title in GENERATION.items()
    }
    voice = _mapping(first, "voice")
    accuracy, passages = _written(voice.get("accuracy"), True), voice.get("passages")
    return Measured(
        held_out=_table(found, held), generation=_table(found, written),
        voice=word("voice", accuracy, passages) if accuracy and is_number(passages) else None,
        warnings=list(dict.fromkeys(map(str, told))), samples=[(row_name(model), texts) for model in found if (texts := _texts(model))],
    )  # fmt: skip


def row_name(model: Mapping[str, Any]) -> Text:
    """What its row is called."""
    if model.get("name") == "base":
        return WORDS["base"]
    return " · ".join(filter(None, (str(model.get("name", "?")), state(model))))


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    inner = value.get(key)
    return inner if isinstance(inner, list) else []


def _table(found: list[Mapping[str, Any]], columns: dict[Text, list[tuple[str, str]]]) -> Table:
    """Without the columns that are blank from top to bottom."""
    kept = {title: cells for title, cells in columns.items() if any(figure for figure, _ in cells)}
    return list(kept), [(row_name(model), [cells[number] for cells in kept.values()]) for number, model in enumerate(found)]


def figure(value: Any, *, percent: bool = False) -> tuple[str, str]:
    """(the figure, its interval) of a number or of {mean, low, high}; blank where there is none."""
    inner = value if isinstance(value, dict) else {"mean": value}
    told = [_written(inner.get(key), percent) for key in ("mean", "low", "high")]
    return told[0], f"{told[1]} … {told[2]}" if told[1] and told[2] else ""


def _written(value: Any, percent: bool) -> str:
    if not is_number(value):
        return ""
    return share(value) if percent else whole(value) if isinstance(value, int) else short(value)


def _texts(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its samples with what is told of each: prompt, text, and figures by name."""
    return [
        {"prompt": str(one.get("prompt", "")), "text": str(one["text"]), "figures": list(_figures(one))}
        for one in _list(model, "samples") if isinstance(one, dict) and "text" in one
    ]  # fmt: skip


def _figures(sample: Mapping[str, Any]) -> Any:
    for key in ("style_score", "base_perplexity", "longest_copy"):
        if told := figure(sample.get(key), percent=key == "style_score")[0]:
            yield WORDS[key], told
    if isinstance(sample.get("stopped"), bool):
        yield WORDS["stopped" if sample["stopped"] else "cut"], ""


# --------------------------------------------------------------------------------------------------------------- models


def placed(stage: Stage) -> Iterator[tuple[str, float, float]]:
    """(name, forgetting, style gained) of every model of evaluation.json behind the base, which is its first, nats per token."""
    base, *others = models(stage) or [{}]
    origin = {part: loss_of(base, part) for part in ("style", "general")}
    for model in others:
        losses = {part: loss_of(model, part) for part in origin}
        if None not in (*losses.values(), *origin.values()):
            yield state(model) or str(model.get("name", "?")), losses["general"] - origin["general"], origin["style"] - losses["style"]  # type: ignore[operator]


def base_losses(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """part -> held-out loss of the base, nats per token; empty where it was not measured."""
    base = next((model for model in _list(evaluation, "models") if isinstance(model, dict)), {})
    return {part: loss for part in _mapping(base, "held_out") if (loss := loss_of(base, part)) is not None}


def models(stage: Stage) -> list[Mapping[str, Any]]:
    """The models of evaluation.json, the base first."""
    return [model for model in _list(stage.evaluation or {}, "models") if isinstance(model, dict)]


def loss_of(model: Mapping[str, Any], part: str) -> float | None:
    """A model's held-out loss of a part; None where it was not measured."""
    loss = _mapping(_mapping(model, "held_out"), part).get("loss")
    return float(loss) if is_number(loss) else None  # type: ignore[arg-type]


def state(model: Mapping[str, Any]) -> str:
    """Its checkpoint and the weight of its adapter; empty for what a stage ended with, as it was trained."""
    told = []
    if model.get("checkpoint") is not None:
        told.append(f"checkpoint-{model['checkpoint']}")
    if is_number(model.get("weight")) and model["weight"] != 1:
        told.append(f"× {model['weight']:g}")
    return " ".join(told)
