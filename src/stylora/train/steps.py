"""One item = one optimizer step: which samples it reads and how they are packed is a pure function of the step's number.

With several processes each builds the whole step and keeps its share, so the divisors need no message and the shares no agreement.
Knows neither models nor recipes: it is handed an order per epoch and a way to build a sample.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stylora.forest import MicroBatch, Sample, edges, pack


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step: this process's micro-batches, the divisors of all processes together, and what it costs.

    weight: W, the sum of all edge weights of the step; anchor_weight: V, of all its anchors
    samples, tokens: of the whole step, as the samples have them; forest_tokens: computed here, after prefixes were shared
    """

    batches: list[MicroBatch]
    weight: float
    anchor_weight: float
    samples: int
    tokens: int
    forest_tokens: int


class Steps:
    """Every optimizer step of a run, by number; a map-style dataset for a `DataLoader`.

        units 3 4 4 1 9 2, 8 a step      | 3 4 | 4 1 | 9 | 2 |      in order, while they fit; at least one

    order: epoch -> int64 indices in training order, of equal length for every epoch
    build: (index, epoch) -> sample, deterministic
    samples_per_step: units that make a step
    counts: epoch -> int64 units of each sample, by its index (branches, for one); None counts every sample as 1. With it epochs may differ
        in their steps
    max_steps: -1 to go by epochs
    packs: whether the model was proved to keep documents in a row apart; without it rows are never packed
    share_prefixes: merge samples that begin alike into tries; needs `packs`
    rank, ranks: which of how many processes this is
    """

    def __init__(
        self,
        order: Callable[[int], np.ndarray],
        build: Callable[[int, int], Sample],
        *,
        samples_per_step: int,
        tokens_per_microbatch: int,
        row_tokens: int | None,
        num_train_epochs: float,
        max_steps: int,
        packs: bool,
        counts: Callable[[int], np.ndarray] | None = None,
        share_prefixes: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.order, self.build, self.counts = order, build, counts
        self.samples_per_step = samples_per_step
        self.tokens_per_microbatch = tokens_per_microbatch
        self.row_tokens = row_tokens if packs else None
        self.share_prefixes = share_prefixes and packs
        self.rank, self.ranks = rank, ranks
        self._epoch, self._order, self._cuts = -1, np.empty(0, np.int64), np.zeros(1, np.int64)
        self._open(0)
        self.per_epoch = len(self._cuts) - 1
        self.ends = self._all_epochs(num_train_epochs, max_steps)
        self.total = self.ends[-1]

    def _all_epochs(self, epochs: float, most: int) -> list[int]:
        """How many steps are done at the end of each epoch; the last may be cut short. most: steps instead of epochs, where above 0"""
        if self.counts is None:
            total = most if most > 0 else max(1, math.ceil(epochs * self.per_epoch))
            return [*range(self.per_epoch, total, self.per_epoch), total]
        ends: list[int] = []
        while True:
            self._open(len(ends))
            whole = len(self._cuts) - 1
            before, left = ends[-1] if ends else 0, epochs - len(ends)
            share = whole if left >= 1 else max(1, math.ceil(left * whole))
            ends.append(min(before + whole, most) if most > 0 else before + share)
            if ends[-1] == most or (most <= 0 and left <= 1):
                return ends

    def _open(self, epoch: int) -> None:
        """Lay an epoch out: its order, and where its steps begin and end there."""
        if epoch == self._epoch:
            return
        self._epoch, self._order = epoch, self.order(epoch)
        if self.counts is None:
            self._cuts = np.append(np.arange(0, len(self._order), self.samples_per_step), len(self._order))
        else:
            self._cuts = cuts(self.counts(epoch)[self._order], self.samples_per_step)

    def begin(self, epoch: int) -> int:
        """The number of an epoch's first step."""
        return self.ends[epoch - 1] if epoch else 0

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        return bisect_right(self.ends, step)

    def epochs_done(self, steps: int) -> float:
        """Epochs that are over after so many steps, with the share of the one that is not."""
        if self.counts is None:
            return steps / self.per_epoch
        if steps == 0:
            return 0.0
        epoch = self.epoch_of(steps - 1)
        self._open(epoch)
        return epoch + (steps - self.begin(epoch)) / (len(self._cuts) - 1)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < self.total:
            raise IndexError(step)
        epoch = self.epoch_of(step)
        self._open(epoch)
        place = step - self.begin(epoch)
        indices = self._order[self._cuts[place] : self._cuts[place + 1]]
        samples = [self.build(index, epoch) for index in indices.tolist()]
        own = shares(samples, self.ranks)[self.rank]
        batches = pack(
            own, tokens_per_microbatch=self.tokens_per_microbatch, row_tokens=self.row_tokens,
            share_prefixes=self.share_prefixes and bool(own),  # a trie of no samples would be a row of no tokens
        )  # fmt: skip
        return Step(
            batches=batches or [idle(samples)],
            weight=sum(float(sample.edges.weight.sum(dtype=np.float64)) for sample in samples),
            anchor_weight=sum(float(sample.anchors.weight.sum(dtype=np.float64)) for sample in samples),
            samples=len(samples),
            tokens=sum(map(len, samples)),
            forest_tokens=sum(batch.tokens for batch in batches),
        )


def cuts(units: np.ndarray, size: int) -> np.ndarray:
    """int64 [S + 1]: where S steps begin in a row of samples, and its end. Each takes samples in order while their units fit `size`, and at
    least one."""
    ends = np.cumsum(units)
    found = [0]
    while found[-1] < len(units):
        start = found[-1]
        room = size + (int(ends[start - 1]) if start else 0)
        found.append(max(start + 1, int(np.searchsorted(ends, room, side="right"))))
    return np.array(found, np.int64)


def shares(samples: Sequence[Sample], ranks: int) -> list[list[Sample]]:
    """The samples of a step, dealt out so that every process computes about as many tokens.

    Longest first, each to the process with the fewest tokens so far (Graham 1969, LPT: at most 4/3 of the best possible). One process
    gets them in their order.
    """
    if ranks == 1:
        return [list(samples)]
    dealt: list[list[Sample]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for sample in sorted(samples, key=len, reverse=True):
        least = tokens.index(min(tokens))
        dealt[least].append(sample)
        tokens[least] += len(sample)
    return dealt


def idle(samples: Sequence[Sample]) -> MicroBatch:
    """A micro-batch that teaches nothing, for a process without a share: it must take part when gradients are summed."""
    shortest = min((sample for sample in samples if len(sample)), key=len)
    (batch,) = pack([Sample(forest=shortest.forest, edges=edges([], []))], tokens_per_microbatch=len(shortest))
    return batch
