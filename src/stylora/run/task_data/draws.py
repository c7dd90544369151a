"""Seeded draws that are the same on every platform and with every version of Python, and what makes two texts the same text.

Only `random()` of Python's generator is promised never to change (its documentation, "Notes on Reproducibility"), so the rest is made
of it.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def generator(seed: int, *words: str) -> random.Random:
    """A generator of its own for what the words name, so that a name that is added changes no other's draws."""
    return random.Random(" ".join([str(seed), *words]))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of them, each as likely."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """All of them in random order."""
    return [item for _, item in sorted(((rng.random(), item) for item in items), key=lambda pair: pair[0])]


def deal(rng: random.Random, items: Sequence[T]) -> Iterator[T]:
    """Without end, like cards: each comes once before any comes again."""
    while True:
        yield from shuffled(rng, items)


def key(text: str) -> str:
    """What is left of a text without case, width, blanks and punctuation: `ＣＯ₂ ` and `co2` are one.

    >>> key("Passenger-Car （柴油）")
    'passengercar柴油'
    """
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())


class Claims:
    """Who a text belongs to: each key to one owner, the first that asked for it.

    An owner is an alias in a file, so no text can get two answers, and none stands in two files, not even in other case or punctuation.
    """

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, str]] = {}

    def claim(self, text: str, alias: str, file: str) -> bool:
        """Is it theirs, from now on or already?"""
        return self._owners.setdefault(key(text), (alias, file)) == (alias, file)
