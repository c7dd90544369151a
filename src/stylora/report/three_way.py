"""What `stylora evaluate --three-way` measured: a row for each variant of a stack, its shares with a bar under each, answers side by side.

three_way.json was written by another version perhaps, or by hand: a figure that is not there, or is no number, is a blank cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .evaluated import figure
from .figures import is_number
from .panel import Track
from .words import WORDS, Said, Text, word
from .written import whole

SHARES = {"follows": "follows", "stops": "stops", "style_score": "in_style", "style_kept": "style_kept"}
COUNTS = ("distinct_2", "distinct_4", "repeated", "degenerate", "length")
PERCENT = (*SHARES, "repeated", "degenerate", "distinct_2", "distinct_4")
VARIANTS = {"base": "variant_base", "style": "variant_style", "stack": "variant_stack", "instruct": "variant_instruct"}
BREACHES = {
    "ran on": "breach_ran_on", "template": "breach_template", "lines": "breach_lines", "length": "breach_length",
    "ending": "breach_ending",
}  # fmt: skip
SHOWN = 6  # questions whose answers are on the page


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure as it is written, its interval, and how far its bar goes: 0 to 100, None for no bar."""

    figure: str
    interval: str = ""
    bar: float | None = None


@dataclass(frozen=True, kw_only=True)
class ThreeWay:
    """columns: what the figures are called; rows: (what the variant is, its name, its cells); notes: how to read them; warnings: as told
    asked: (question, the expected answer or None, [(what the variant is, its name, its answer, what sets that apart)])"""

    columns: list[Text]
    rows: list[tuple[Text, str, list[Cell]]]
    notes: list[Said] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    asked: list[tuple[str, str | None, list[tuple[Text, str, str, Text]]]] = field(default_factory=list)


def compared(found: Sequence[Track]) -> list[tuple[Track, ThreeWay]]:
    """Of every stage that was compared with its parts."""
    return [(track, read(track.stage.three_way)) for track in found if _list(track.stage.three_way, "variants")]


def read(told: Any) -> ThreeWay:
    """three_way.json for the page. told: an object with a list `variants`"""
    entries = [each for each in _list(told, "variants") if isinstance(each, dict)]
    columns: dict[Text, list[Cell]] = {WORDS[title]: [_cell(each.get(key), key) for each in entries] for key, title in SHARES.items()}
    columns[WORDS["answer_perplexity"]] = [_cell(_mapping(each, "held_out").get("perplexity"), "perplexity") for each in entries]
    columns |= {WORDS[key]: [_cell(each.get(key), key) for each in entries] for key in COUNTS}
    kept = {title: cells for title, cells in columns.items() if any(cell.figure for cell in cells)}
    names = [(_variant(each), str(each.get("name", "?"))) for each in entries]
    return ThreeWay(
        columns=list(kept), rows=[(*name, [cells[i] for cells in kept.values()]) for i, name in enumerate(names)],
        notes=list(_notes(told)), warnings=[str(each) for each in _list(told, "warnings")], asked=_asked(entries, names),
    )  # fmt: skip


def _cell(value: Any, key: str) -> Cell:
    written, around = figure(value, percent=key in PERCENT)
    mean = value.get("mean") if isinstance(value, dict) else value
    if key not in SHARES or mean is None or not is_number(mean):
        return Cell(figure=written, interval=around)
    return Cell(figure=written, interval=around, bar=min(100.0, max(0.0, 100.0 * mean)))


def _variant(entry: Mapping[str, Any]) -> Text:
    key = str(entry.get("key", "?"))
    return WORDS[VARIANTS[key]] if key in VARIANTS else key


def _notes(told: Any) -> list[Said]:
    settings, voice, found = _mapping(told, "settings"), _mapping(told, "voice"), []
    if is_number(settings.get("questions")):
        found.append(word("three_way_asked", whole(settings["questions"]), settings.get("source", "")))
    shape = _mapping(settings, "shape")
    if all(is_number(shape.get(key)) for key in ("lines", "shortest", "longest")):
        endings = shape.get("endings")
        last = " ".join(map(str, endings)) if isinstance(endings, list) else ""
        found.append(word("three_way_shape", whole(shape["lines"]), whole(shape["shortest"]), whole(shape["longest"])))
        found += [word("three_way_endings", last)] if last else []
    if is_number(voice.get("accuracy")) and is_number(voice.get("passages")) and is_number(settings.get("typical")):
        found.append(word("three_way_style", whole(settings["typical"])))
        found.append(word("voice", figure(voice["accuracy"], percent=True)[0], voice["passages"]))
    return found


def _asked(entries: Sequence[Mapping[str, Any]], names: Sequence[tuple[Text, str]]) -> list[Any]:
    answers = [[one for one in _list(each, "answers") if isinstance(one, dict)] for each in entries]
    found = []
    for i in range(min(SHOWN, min(map(len, answers), default=0))):
        first = answers[0][i]
        expected = first.get("expected")
        given = [(*name, str(each[i].get("text", "")), _apart(each[i])) for name, each in zip(names, answers, strict=True)]
        found.append((str(first.get("question", "")), expected if isinstance(expected, str) else None, given))
    return found


def _apart(answer: Mapping[str, Any]) -> Text:
    """What sets an answer apart, for a label."""
    breach = answer.get("breach")
    if isinstance(breach, str):
        return WORDS[BREACHES[breach]] if breach in BREACHES else breach
    return WORDS["cut"] if answer.get("stopped") is False else ""


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _list(value: Any, key: str) -> list[Any]:
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, list) else []
