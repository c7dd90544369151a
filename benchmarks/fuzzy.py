"""What a search for the nearest training text makes of the two tasks of `stylora data make`, without any model: the baseline.

    unified   the label of the nearest training text, among those of the same kind
    columns   each column for itself: the field of the nearest training column, or none where that means none

Nearest is by fuzzy matching (RapidFuzz: `ratio`, the normalised edit distance without substitutions, and `WRatio`, the best of that and of
matches of parts and of words), on words in lower case and common width, without punctuation. What a language model is worth shows on
`test_unseen`: names that stand in no training row.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rapidfuzz import fuzz, process, utils

from .report import Json

SCORERS: dict[str, Callable[..., float]] = {"ratio": fuzz.ratio, "WRatio": fuzz.WRatio}


def baseline(task: str, train: Sequence[Json], held: Sequence[Json]) -> dict[str, Json]:
    """Scorer -> its figures: {"accuracy"} of `unified`, pair figures of `columns`."""
    measure = {"unified": label_figures, "columns": pair_figures}[task]
    return {name: measure(train, held, scorer) for name, scorer in SCORERS.items()}


def read_rows(path: Path) -> list[Json]:
    """Of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(row: Json) -> str:
    """What the user says."""
    return row["messages"][-2]["content"]


def answer(row: Json) -> str:
    """What is to be answered."""
    return row["messages"][-1]["content"]


# ------------------------------------------------------------------------------------------------------------- unified


def label_figures(train: Sequence[Json], held: Sequence[Json], scorer: Callable[..., float]) -> Json:
    """{"accuracy"}"""
    found = fuzzy_labels(train, [asked(row) for row in held], scorer)
    return {"accuracy": sum(label == answer(row) for label, row in zip(found, held, strict=True)) / len(held)}


def fuzzy_labels(train: Sequence[Json], texts: Sequence[str], scorer: Callable[..., float] = fuzz.WRatio) -> list[str]:
    """[N]: of each text the label of the nearest training text that begins with the same `[kind]`; the first of equally near ones."""
    pairs = [(*marked(asked(row)), answer(row)) for row in train]
    return nearest(pairs, [marked(text) for text in texts], scorer)


def marked(text: str) -> tuple[str, str]:
    """(kind, what stands behind it) of `[kind] text`."""
    kind, _, rest = text.partition("] ")
    return kind.removeprefix("["), rest


def nearest(known: Sequence[tuple[str, str, str]], wanted: Sequence[tuple[str, str]], scorer: Callable[..., float]) -> list[str]:
    """[N]: the label of the nearest known text of the same kind. known: (kind, text, label); wanted: [N] (kind, text)"""
    found = [""] * len(wanted)
    for kind in {kind for kind, _ in wanted}:
        texts, labels = zip(*((text, label) for other, text, label in known if other == kind), strict=True)
        places = [place for place, (other, _) in enumerate(wanted) if other == kind]
        own = [wanted[place][1] for place in places]
        best = process.cdist(own, texts, scorer=scorer, processor=words).argmax(axis=1)
        for place, at in zip(places, best, strict=True):
            found[place] = labels[at]
    return found


def words(text: str) -> str:
    """
    >>> words("GpsSpeed（ｋｍ/h）")
    'gps speed km h'
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", unicodedata.normalize("NFKC", text))
    return " ".join(utils.default_process(parted).split())


# ------------------------------------------------------------------------------------------------------------- columns


def pair_figures(train: Sequence[Json], held: Sequence[Json], scorer: Callable[..., float]) -> Json:
    """{"pair_precision", "pair_recall", "pair_f1", "exact"}: over the pairs of all rows; exact: share of rows with all pairs right"""
    known = sorted({(kind, name, field) for row in train for kind, name, field in columns_of(row)})
    wanted = [(kind, name) for row in held for kind, name, _ in columns_of(row)]
    fields = iter(nearest(known, wanted, scorer))
    hits = got = expected = exact = 0
    for row in held:
        right = {(name, field) for _, name, field in columns_of(row) if field}
        found = {(name, field) for (_, name, _), field in zip(columns_of(row), fields, strict=False) if field}
        hits, got, expected, exact = hits + len(right & found), got + len(found), expected + len(right), exact + (right == found)
    return {
        "pair_precision": hits / max(1, got), "pair_recall": hits / expected, "pair_f1": 2 * hits / (got + expected),
        "exact": exact / len(held),
    }  # fmt: skip


def columns_of(row: Json) -> Iterator[tuple[str, str, str]]:
    """(kind, name, field) of each column of a table; "" for a column that means no field."""
    kind, names = marked(asked(row))
    mapping = json.loads(answer(row))
    yield from ((kind, name, mapping.get(name, "")) for name in json.loads(names))
