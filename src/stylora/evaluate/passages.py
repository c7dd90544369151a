"""Documents -> passages of equal length, of what a voice is made of: Chinese characters and sentence punctuation.

White space, line breaks, Latin letters, digits and marks of formatting tell where a text was published, not how it is written, and a
classifier would take them first; full-width and half-width punctuation become one, and so do all quotation marks. Knows no classifiers.

    units      documents of a passage or more, shorter ones joined to one
    folds      the passages in five parts, none of which shares a unit with another where there are units enough
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5
NOT_LOOKED_AT = re.compile(r"[^\u3400-\u9fff\U00020000-\U0003ffff，。？！：；、…—（）《》\"]+")
ONE_FORM = str.maketrans("“”‘’「」『』＂,?!:;()", '"""""""""，？！：；（）')


def plain(text: str) -> str:
    """The Chinese characters and the sentence punctuation of a text, one after the other; nothing of a text without the former."""
    body = NOT_LOOKED_AT.sub("", text.translate(ONE_FORM))
    return body if any(map(str.isalnum, body)) else ""


@dataclass(frozen=True, kw_only=True)
class Passages:
    """N passages.

    texts: [N], each of `length` characters; unit: int [N], the document a passage is of; fold: int [N], 0..4, every one of them in use
    apart: no unit is in two folds
    """

    texts: list[str]
    unit: np.ndarray
    fold: np.ndarray
    apart: bool

    def __len__(self) -> int:
        return len(self.texts)


def cut(documents: Sequence[str], length: int, *, most: int, rng: np.random.Generator) -> Passages:
    """At most `most` passages of `length` characters, from all documents alike as far as they reach, in the order of the text."""
    units = _units([plain(document) for document in documents], length)
    pieces = [(number, start) for number, unit in enumerate(units) for start in range(0, len(unit) - length + 1, length)]
    number = np.array([piece[0] for piece in pieces], int)
    turn = np.empty(len(pieces), int)  # a unit's passages in random order; all units' first come before any unit's second
    for each in range(len(units)):
        here = np.flatnonzero(number == each)
        turn[here] = rng.permutation(len(here))
    chosen = np.sort(np.lexsort([rng.random(len(pieces)), turn])[:most])
    unit = number[chosen]
    apart = len(np.unique(unit)) >= FOLDS
    fold = _balanced(unit) if apart else np.arange(len(unit)) * FOLDS // max(len(unit), 1)
    texts = [units[pieces[i][0]][pieces[i][1] : pieces[i][1] + length] for i in chosen]
    return Passages(texts=texts, unit=unit if apart else fold, fold=fold, apart=apart)


def _units(bodies: list[str], length: int) -> list[str]:
    """Bodies of at least `length` characters; neighbours that are shorter are joined, and what is left over is dropped."""
    units, short = [], ""
    for body in bodies:
        if len(body) >= length:
            units.append(body)
            continue
        short += body
        if len(short) >= length:
            units.append(short)
            short = ""
    return units


def _balanced(unit: np.ndarray) -> np.ndarray:
    """int [N]: whole units in folds of about equal size, the largest first to the lightest."""
    fold = np.empty(len(unit), int)
    sizes = np.zeros(FOLDS, int)
    names, counts = np.unique(unit, return_counts=True)
    for name, count in sorted(zip(names, counts, strict=True), key=lambda pair: -pair[1]):
        lightest = int(sizes.argmin())
        fold[unit == name] = lightest
        sizes[lightest] += count
    return fold
