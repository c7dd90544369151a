"""Which conversations are held out, and which of the others are used.

    rows of one group (an alias in twenty wordings) and equal rows       always on one side
    no groups                                                            a share of the different rows, by seed
    groups                                                               those whose rows come nearest to the share, by seed
    very many small groups                                               one by one in the seed's order, until the share is reached

A split by rows after augmentation measures memory: the held-out wording of an alias was learned in nineteen others. A split by
group measures what the user wants to know. Knows no files, no templates and no tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from stylora.corpus.split import choose_validation, counting_unit

from .conversations import Conversation


def held_out(rows: Sequence[Conversation], share: float, seed: int) -> list[bool]:
    """Is this row held out? At least one, never all; 0 holds out none, and so does a share of a single group."""
    names = inseparable(rows)
    if not share:
        return [False] * len(rows)
    if any(row.group is not None for row in rows):
        sizes = Counter(names)
        too_coarse = counting_unit(sizes, share) > min(sizes.values())  # a row would count as several
        chosen = one_by_one(sizes, share, seed) if too_coarse else choose_validation(sizes, share, seed)
    else:
        different = sorted(set(names))
        count = min(len(different) - 1, max(1, round(share * len(different)))) if different else 0
        chosen = frozenset(different[i] for i in np.random.default_rng(seed).permutation(len(different))[:count].tolist())
    return [name in chosen for name in names]


def one_by_one(sizes: Mapping[str, int], share: float, seed: int) -> frozenset[str]:
    """The names to hold out: each in the seed's order that still fits into `share` of the total; at least one, never all.

    What is left over is smaller than any group that is not taken. The order of the mapping is without meaning.
    """
    names, room = sorted(sizes), share * sum(sizes.values())
    chosen = set()
    for i in np.random.default_rng(seed).permutation(len(names)).tolist():
        if sizes[names[i]] <= room:
            chosen.add(names[i])
            room -= sizes[names[i]]
    if not chosen and len(names) > 1:
        chosen.add(min(names, key=sizes.__getitem__))
    return frozenset(chosen)


def inseparable(rows: Sequence[Conversation]) -> list[str]:
    """A name for each row, equal for rows that are equal, or of one group, or linked by others that are (union-find)."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for row in rows:
        own = root(("row", row.fingerprint))
        if row.group is not None:
            group = root(("group", row.group))
            parent[max(own, group)] = min(own, group)
    return [" ".join(root(("row", row.fingerprint))) for row in rows]


def subset(count: int, fraction: float, seed: int) -> list[int]:
    """Numbers of the rows used, in order: `fraction` of `count` by seed, at least one. A smaller fraction is part of a larger one."""
    used = max(1, round(fraction * count)) if count else 0
    return sorted(np.random.default_rng(seed).permutation(count)[:used].tolist())
