"""Holds text out for validation without leaks: whole books, or whole chapters when there is one book.

Windows of one book share characters, places and phrases, and overlapping windows share text; so the cut is made on
names and sizes, before anything is windowed, and `leaked_share` measures what crossed it all the same (the same novel
under two names, a chapter in two editions). Knows neither text nor tokens: sizes are any integers in one unit, and
the leak check reads integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

_TABLE_BITS = 1 << 26  # memory of the subset-sum table: 8 MB, whatever the number of books
_CHUNK = 1 << 20  # integers hashed at a time


def choose_validation(sizes: Mapping[str, int], share: float, seed: int) -> frozenset[str]:
    """The names to hold out: together as near `share` of the total as whole books allow; at least one, never all.

    Subset sums up to twice the target, as a table of bits (exact where the target has fewer units than the table has
    columns, else to 2**-20 of the target for a handful of books); among equally good choices the seed decides. With
    fewer than two books of any size there is nothing to hold out: the set is empty. The order of the mapping is
    without meaning.
    """
    assert 0 < share < 1 and min(sizes.values(), default=0) >= 0
    names = sorted(name for name, size in sizes.items() if size)
    if len(names) < 2:
        return frozenset()
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    highest = _highest(sizes, share)
    unit = counting_unit(sizes, share)
    units = [max(1, round(sizes[name] / unit)) for name in names]
    limit = (1 << int(highest / unit) + 2) - 1
    reach = [1]  # reach[i]: bit s is set where some of the first i books sum up to s units
    for size in units:
        reach.append((reach[-1] | reach[-1] << size) & limit)
    best = _nearest(reach[-1] & ~(1 << sum(units)), share * sum(sizes.values()) / unit)
    chosen = set()
    for i in range(len(names), 0, -1):
        if not reach[i - 1] >> best & 1:
            chosen.add(names[i - 1])
            best -= units[i - 1]
    assert best == 0 and 0 < len(chosen) < len(names)
    return frozenset(chosen)


def counting_unit(sizes: Mapping[str, int], share: float) -> int:
    """What `choose_validation` counts sizes in: 1 where its sums are exact. A smaller size counts as a whole unit."""
    return max(1, -(-int(_highest(sizes, share)) * sum(size > 0 for size in sizes.values()) // _TABLE_BITS))


def _highest(sizes: Mapping[str, int], share: float) -> float:
    """The highest sum that is looked at."""
    there = [size for size in sizes.values() if size]
    return min(max(2 * share * sum(there), min(there, default=0)), sum(there))


def _nearest(bits: int, target: float) -> int:
    """The set bit (not bit 0) whose number is nearest to the target; the lower one of two."""
    below = (bits & ((1 << int(target) + 1) - 1)).bit_length() - 1
    rest = bits >> int(target) + 1
    above = int(target) + (rest & -rest).bit_length() if rest else None
    if above is None:
        return below
    return below if below > 0 and target - below <= above - target else above


def contiguous_validation(sizes: Sequence[int], share: float) -> range:
    """The chapters of one book to hold out: the run at its end whose size is nearest to `share` of the book.

    Only one border lies between training and validation. At least one chapter, never all; raises `UserError` where
    there is only one.
    """
    assert 0 < share < 1
    if len(sizes) < 2:
        raise UserError(
            "data.validation",
            got=f"one book with {len(sizes)} chapter{'s' * (len(sizes) != 1)}",
            expected="two books, or one book with two chapters, to hold one out",
            do="add a book, give a validation file, or set validation to 0",
        )
    tails = np.cumsum(np.asarray(sizes, dtype=np.int64)[::-1])[::-1]
    first = 1 + int(np.abs(tails[1:] - share * tails[0])[::-1].argmin())  # of equals, the shorter run
    return range(len(sizes) - first, len(sizes))


def leaked_share(train: Iterable[NDArray[np.integer]], validation: NDArray[np.integer], run: int = 24) -> float:
    """The share of the runs of `run` integers of `validation` that occur in any array of `train`, in 0..1.

    Runs are compared by 64-bit hashes of mixed integers. For 350 M training and 20 M validation runs, 0.0004 pairs
    are expected to agree by accident. Memory: 16 bytes per validation run and a table of up to 128 MB; training arrays
    are read in pieces and may come one after the other.
    """
    hashes, counts = np.unique(_run_hashes(validation, run), return_counts=True)
    if not len(hashes):
        return 0.0
    shift = np.uint64(64 - min(27, max(10, len(hashes).bit_length() + 4)))
    maybe = np.zeros(1 << 64 - int(shift), bool)  # by the high bits: most training runs need no search
    maybe[hashes >> shift] = True
    found = np.zeros(len(hashes), bool)
    for array in train:
        for start in range(0, len(array) - run + 1, _CHUNK):
            candidates = _run_hashes(array[start : start + _CHUNK + run - 1], run)
            candidates = candidates[maybe[candidates >> shift]]
            at = np.minimum(np.searchsorted(hashes, candidates), len(hashes) - 1)
            found[at[hashes[at] == candidates]] = True
    return float(counts[found].sum() / counts.sum())


def _run_hashes(integers: NDArray[np.integer], run: int) -> NDArray[np.uint64]:
    """`[n - run + 1]`: a hash of every run, by doubling: the hash of 2k integers is that of k times a power, plus k.

    Polynomial modulo 2**64 over integers that splitmix64 has mixed first (Steele et al. 2014), mixed once more at the
    end: without that its low bits depend on the low bits alone, and regular sequences collide.
    """
    count = len(integers) - run + 1
    if count < 1:
        return np.empty(0, np.uint64)
    block, size, power = _mix(np.asarray(integers).astype(np.uint64)), 1, 0x9E3779B97F4A7C15
    result, taken = np.zeros(count, np.uint64), 0
    while taken < run:
        if run >> (size.bit_length() - 1) & 1:
            result = result * np.uint64(power) + block[taken : taken + count]
            taken += size
        if taken < run:
            block = block[:-size] * np.uint64(power) + block[size:]
            size, power = 2 * size, power * power % 2**64
    return _mix(result)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
