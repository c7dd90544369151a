"""Does a text turn in circles? Distinct n-grams, repeated n-grams, and a rule for texts that are no text any more.

All of it counts characters without white space, and knows neither models nor styles. None of these figures is a quality: a list of
random characters is as distinct as can be. Read them beside the base's perplexity (evaluate/fluency.py).

References: distinct-n, Li et al. 2016 (arXiv 1510.03055); repeated n-grams within a text, Welleck et al. 2019 (arXiv 1908.04319).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np

Fault = Literal["empty", "not text", "loop", "repeats"]
FEWEST = 2  # letters
LETTERS = 0.5  # share of a text's characters
FOREIGN = 0.05  # share of characters that no text has
LOOPED = 0.5  # share of a text that one piece and its copies cover
COPIES = 3  # of a piece, to be a loop
REPEATED = 0.5  # rep-4


def squeeze(text: str) -> str:
    """The text without white space: what is counted here."""
    return "".join(text.split())


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n: different n-grams of characters over all of them, in all texts together; 0..1, nan where there are none.

    It falls with the amount of text, so only figures of about equally much text compare.
    """
    grams = [gram for text in texts for gram in _grams(squeeze(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repeated(text: str, n: int = 4) -> float:
    """rep-n: the share of a text's n-grams of characters that stand in it before already; 0..1, 0 for a text of less than n characters.

    repeated("abcdabcd", 4) == 1 - 4 / 5
    """
    grams = _grams(squeeze(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def degenerate(text: str) -> bool:
    """Is this no text any more? See `fault` for the rule."""
    return fault(text) is not None


def fault(text: str) -> Fault | None:
    """The first of these that holds of a text, None for a sound one.

    empty      fewer than 2 letters (digits and Chinese characters count as letters)
    not text   less than half of the characters are letters, or more than 5 % are replacement, control or private characters
    loop       one piece, copied at least three times without a gap, covers more than half of the text
    repeats    more than half of the 4-grams stand in it before already (rep-4), loops with small changes in them
    """
    body = squeeze(text)
    letters = sum(map(str.isalnum, body))
    if letters < FEWEST:
        return "empty"
    foreign = sum(letter == "\ufffd" or unicodedata.category(letter).startswith("C") for letter in body)
    if letters < LETTERS * len(body) or foreign > FOREIGN * len(body):
        return "not text"
    if looped(body) > LOOPED * len(body):
        return "loop"
    return "repeats" if repeated(body) > REPEATED else None


def looped(body: str) -> int:
    """The characters that the longest loop covers: one piece of any length, at least three times without a gap.

    looped("他说好的好的好的。") == 6
    """
    codes = np.frombuffer(body.encode("utf-32-le", "surrogatepass"), np.uint32)
    longest = 0
    for period in range(1, len(codes) // COPIES + 1):
        same = np.flatnonzero(codes[period:] != codes[:-period])
        run = int(np.diff(same, prepend=-1, append=len(codes) - period).max()) - 1  # neighbours that equal what stands a period before
        if run >= (COPIES - 1) * period:
            longest = max(longest, run + period)
    return longest


def _grams(body: str, n: int) -> list[str]:
    return [body[i : i + n] for i in range(len(body) - n + 1)]
