"""Files of a task's data, and which aliases stand in which: aliases are parted first and worded afterwards.

    train         its own aliases
    validation    half of the rows: aliases of no other file; the other half: aliases of `train` in wordings of their own
    test_seen     aliases of `train`, in wordings that stand in no other file
    test_unseen   aliases that stand in no other file

A random split after wording would let every test row's alias be trained, and measure nothing but that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .draws import generator, shuffled

TRAIN, VALIDATION, TEST_SEEN, TEST_UNSEEN = FILES = ("train", "validation", "test_seen", "test_unseen")
HELD = {TEST_UNSEEN: 0.2, VALIDATION: 0.12}  # of the aliases of a class that stand in that file alone

Row = dict[str, Any]
Homes = dict[str, str]
"""alias -> the file that it belongs to: train, validation or test_unseen"""


def homes(aliases: Sequence[str], seed: int, name: str) -> Homes:
    """Of one class, called `name`. The first alias is its standard name, which is always trained."""
    others = iter(shuffled(generator(seed, "homes", name), aliases[1:]))
    counts = {file: max(1, round(share * len(aliases))) for file, share in HELD.items()}
    held = {next(others): file for file, count in counts.items() for _ in range(count)}
    return {alias: held.get(alias, TRAIN) for alias in aliases}


def demands(rows: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """(file, the home of the aliases it takes, rows): a file's part of one kind of alias. rows: of each file"""
    yield TRAIN, TRAIN, rows[TRAIN]
    yield VALIDATION, VALIDATION, rows[VALIDATION] // 2
    yield VALIDATION, TRAIN, rows[VALIDATION] - rows[VALIDATION] // 2
    yield TEST_SEEN, TRAIN, rows[TEST_SEEN]
    yield TEST_UNSEEN, TEST_UNSEEN, rows[TEST_UNSEEN]


def living_in(home: str, found: Homes) -> list[str]:
    """The aliases of that file, in their own order."""
    return [alias for alias, file in found.items() if file == home]


def row(system: str, user: str, answer: str, *, group: str, source: str) -> Row:
    """A conversation. group: the alias it came from; source: the kind of name or table"""
    turns = (("system", system), ("user", user), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns], "group": group, "source": source}


def in_random_order(files: dict[str, list[Row]], seed: int) -> dict[str, list[Row]]:
    """Each file's rows, shuffled."""
    return {name: shuffled(generator(seed, "order", name), rows) for name, rows in files.items()}
