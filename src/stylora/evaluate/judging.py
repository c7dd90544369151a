"""Answers beside what was expected: exactness, accuracy and macro-F1 of labels, pairs of JSON. Knows no models and no files.

A pair of JSON is a leaf with the keys that lead to it, so that the order of keys means nothing; so does the order of a list: each of its
items is one pair, as a whole. Numbers are compared as numbers (1.0 is 1, as in RFC 8785), and what is no JSON has no pairs.

    {"time": "t", "share": {"car": 1.0}, "bus": ["a", "b"]}     (time) "t"     (share car) 1     (bus []) "a"     (bus []) "b"

Precision, recall and F1 of pairs are micro-averaged: hits, pairs got and pairs expected are summed over all rows first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["text", "label", "json"]
Pair = tuple[tuple[str | None, ...], str]  # (keys, None where a list begins; the leaf as canonical JSON)
OTHER = "(other)"
INVALID = object()  # no JSON value is this one


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question with its answer.

    origin: file and row; input: what was asked; expected, got: the right answer and the model's, as text
    confidence: 0..1; label_set: the set that the answer is one of, "" where there is one set
    """

    origin: str
    input: str
    expected: str
    got: str
    confidence: float
    label_set: str = ""


def judge(kind: Kind, rows: Sequence[Answered], labels: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """The figures of one or more rows; shares are 0..1.

    rows, exact: how many, and the share that is right: equal after stripping, JSON equal as values
    label: accuracy, macro_f1 (the mean over the labels of all sets), sets: {set: {rows, accuracy, macro_f1, confusion: {labels, matrix}}};
        matrix[expected][got] counts rows, and an answer that is not in the set is `(other)`, the last
    json: json_valid, pair_precision, pair_recall, pair_f1

    labels: the labels of each set; None where every expected answer is one. A label occurs where it is expected or got, and only those that
    occur count in macro_f1. `(other)` is no label: such an answer costs the expected one its recall.
    """
    assert rows, "nothing to judge"
    figures: dict[str, Any] = {"rows": len(rows), "exact": float(np.mean([_is_right(row, kind) for row in rows]))}
    if kind == "label":
        figures |= _judge_labels(rows, labels)
    elif kind == "json":
        figures |= _judge_json(rows)
    return figures


def errors(rows: Sequence[Answered], kind: Kind) -> Iterator[dict[str, Any]]:
    """The rows whose answer is wrong, in order, as `errors.jsonl` has them."""
    for row in rows:
        if not _is_right(row, kind):
            yield {"where": row.origin, "input": row.input, "expected": row.expected, "got": row.got, "confidence": row.confidence}


def _is_right(row: Answered, kind: Kind) -> bool:
    if kind != "json":
        return row.expected.strip() == row.got.strip()
    got = _parsed(row.got)
    return got is not INVALID and _canonical(got) == _canonical(_expected(row))


# ------------------------------------------------------------------------------------------------------------ labels


def _judge_labels(rows: Sequence[Answered], labels: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    sets: dict[str, Any] = {}
    every_f1: list[float] = []
    for name in dict.fromkeys(row.label_set for row in rows):
        own = [row for row in rows if row.label_set == name]
        names = list(dict.fromkeys([*(labels or {}).get(name, ()), *(row.expected.strip() for row in own)]))
        matrix = _confusion(own, names)
        f1 = _f1_scores(matrix)
        every_f1 += f1
        right = int(np.trace(matrix)) / len(own)
        confusion = {"labels": [*names, OTHER], "matrix": matrix.tolist()}
        sets[name] = {"rows": len(own), "accuracy": right, "macro_f1": float(np.mean(f1)), "confusion": confusion}
    accuracy = sum(one["accuracy"] * one["rows"] for one in sets.values()) / len(rows)
    return {"accuracy": accuracy, "macro_f1": float(np.mean(every_f1)), "sets": sets}


def _confusion(rows: Sequence[Answered], names: Sequence[str]) -> np.ndarray:
    """int [L+1, L+1], expected by got; the last is any other answer. Every expected answer is among the L names."""
    number = {name: i for i, name in enumerate(names)}
    matrix = np.zeros((len(names) + 1, len(names) + 1), int)
    for row in rows:
        matrix[number[row.expected.strip()], number.get(row.got.strip(), len(names))] += 1
    return matrix


def _f1_scores(matrix: np.ndarray) -> list[float]:
    """Of the labels that occur: hits over the mean of how often expected and how often got."""
    hits = matrix.diagonal()[:-1]
    seen = (matrix.sum(axis=0) + matrix.sum(axis=1))[:-1]
    return [float(2 * hit / both) for hit, both in zip(hits, seen, strict=True) if both]


# -------------------------------------------------------------------------------------------------------------- JSON


def _judge_json(rows: Sequence[Answered]) -> dict[str, float]:
    valid = hits = n_got = n_expected = 0
    for row in rows:
        got, expected = _parsed(row.got), _pairs(_expected(row))
        n_expected += expected.total()
        if got is INVALID:
            continue
        pairs = _pairs(got)
        valid += 1
        n_got += pairs.total()
        hits += (pairs & expected).total()
    return {
        "json_valid": valid / len(rows), "pair_precision": hits / n_got if n_got else 0.0, "pair_recall": hits / n_expected,
        "pair_f1": 2 * hits / (n_got + n_expected),
    }  # fmt: skip


def _pairs(value: object) -> Counter[Pair]:
    """The multiset of a value's pairs, never empty: an empty object or list is a leaf."""
    found: Counter[Pair] = Counter()
    waiting: list[tuple[tuple[str | None, ...], object]] = [((), value)]
    while waiting:
        path, here = waiting.pop()
        if isinstance(here, dict) and here:
            waiting += [((*path, key), part) for key, part in here.items()]
        elif isinstance(here, list) and here:
            found.update(((*path, None), _canonical(item)) for item in here)
        else:
            found[path, _canonical(here)] += 1
    return found


def _expected(row: Answered) -> object:
    value = _parsed(row.expected)
    assert value is not INVALID, f"{row.origin}: rows whose answer is no JSON are refused when they are read"
    return value


def _parsed(text: str) -> object:
    """The value of a JSON text, INVALID for any other."""
    try:
        value = json.loads(text, parse_float=_number, parse_constant=_refuse)
        _canonical(value)  # as deep as it is to be written again
    except (ValueError, RecursionError):
        return INVALID
    return value


def _number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
