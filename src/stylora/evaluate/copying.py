"""What a text has verbatim from the training text: the longest piece, and the share of it that lies in long pieces. A memorisation alarm.

Characters count without white space; punctuation stays. The training text is sorted once by what follows each of its places (a suffix
array, Manber and Myers 1993), by doubling and to a depth of 24 characters; what agrees so far is compared character by character. So every
answer is exact, and no hash can lie. Knows nothing of models.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from .repetition import squeeze

BETWEEN = "\0"  # stands between two texts and in none
BITS = 21  # of a character: three fit in 63
DEPTH = 24  # characters that suffixes are sorted by: 3, doubled three times


class TrainingText:
    """An index over what a model was trained on. texts: documents, in any order; no match runs from one into the next"""

    def __init__(self, texts: Sequence[str]) -> None:
        self.text = BETWEEN.join(map(_body, texts))
        self.codes = np.concatenate([_codes(self.text), np.zeros(1, np.uint32)])  # an end that no character equals
        self.order = _sorted_suffixes(self.codes[:-1])

    def longest_match(self, text: str) -> tuple[int, str]:
        """(characters, the piece): the longest piece of `text` that stands in the training text, the first of several; (0, "") for none."""
        body = _body(text)
        best = where = 0
        for i in range(len(body)):
            if i + best >= len(body):
                break
            found = self._match(body, i)
            if found > best:
                best, where = found, i
        return best, body[where : where + best]

    def copied_share(self, text: str, run: int = 20) -> float:
        """0..1: the share of `text` in characters that lies in pieces of at least `run` characters of the training text; 0 for no text."""
        return self.overlap([text], run)

    def overlap(self, texts: Sequence[str], run: int = 20) -> float:
        """0..1: the same of several texts together. For text that is to be held out anything but 0 is a warning."""
        bodies = [_body(text) for text in texts]
        characters = sum(map(len, bodies))
        return sum(self._copied(body, run) for body in bodies) / characters if characters else 0.0

    def _copied(self, body: str, run: int) -> int:
        """How many characters lie in matches of at least `run`.

        Most of a text is no copy, and is passed over in strides: the pieces of `run` characters that start in one stride all hold the
        same `half`, and where that is not in the training text none of them is.
        """
        half = (run + 1) // 2
        stride = run - half + 1
        count = end = i = 0  # all before `end` is counted
        while i + run <= len(body):
            if self._match(body, i + stride - 1, enough=half) < half:
                i += stride
                continue
            found = self._match(body, i)
            if found < run:
                i += 1
                continue
            count += i + found - max(i, end)
            end = i + found
            i = end - run + 1  # a match that starts before ends where this one ends, or can be found from here too
        return count

    def _match(self, body: str, i: int, *, enough: int = sys.maxsize) -> int:
        """How many characters from i on stand in the training text in one piece; where it is more than `enough`, perhaps less than all."""
        wanted = body[i : i + DEPTH]

        def head(place: np.int64) -> str:
            return self.text[place : place + len(wanted)]

        at = bisect_left(self.order, wanted, key=head)
        common = max((_common(head(place), wanted) for place in self.order[max(at - 1, 0) : at + 1]), default=0)
        if common < DEPTH or common >= enough:
            return common
        places = self.order[at : bisect_right(self.order, wanted, lo=at, key=head)] + common
        rest = _codes(body[i + DEPTH :])
        for code in rest:  # those that agree with one character more
            places = places[self.codes[places] == code] + 1
            if not len(places):
                break
            common += 1
        return common


def _body(text: str) -> str:
    return squeeze(text).replace(BETWEEN, "")


def _codes(text: str) -> np.ndarray:
    """uint32 [N] of N characters."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _sorted_suffixes(codes: np.ndarray) -> np.ndarray:
    """int64 [N]: the places of a text, ordered by the DEPTH characters that follow. codes: uint32 [N]"""
    key = _from(codes, 0) << np.uint64(2 * BITS) | _from(codes, 1) << np.uint64(BITS) | _from(codes, 2)
    span = 3
    while span < DEPTH:
        rank = _ranks(key)
        key = _from(rank, 0) * np.uint64(len(codes) + 1) + _from(rank, span)
        span *= 2
    return np.argsort(key)


def _ranks(key: np.ndarray) -> np.ndarray:
    """uint32 [N]: equal keys have equal ranks from 1 on, smaller ones smaller; 0 is left for the end of the text. key: uint64 [N]"""
    order = np.argsort(key)
    key = key[order]
    rank = np.empty(len(key), np.uint32)
    rank[order] = np.cumsum(np.concatenate([np.ones(min(len(key), 1), bool), key[1:] != key[:-1]]), dtype=np.uint32)
    return rank


def _from(values: np.ndarray, first: int) -> np.ndarray:
    """uint64 [N]: the values from index `first` on, then zeros."""
    result = np.zeros(len(values), np.uint64)
    result[: max(len(values) - first, 0)] = values[first:]
    return result


def _common(one: str, other: str) -> int:
    """The length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
