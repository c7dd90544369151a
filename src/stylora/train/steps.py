"""One item = one optimizer step: which samples it reads and how they are packed is a pure function of the step's number.

With several processes each builds the whole step and keeps its share, so the divisors need no message and the shares no agreement.
Knows neither models nor recipes: it is handed an order per epoch and a way to build a sample.
"""

from __future__ import annotations

import math
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

    order: epoch -> int64 indices in training order, of equal length for every epoch
    build: (index, epoch) -> sample, deterministic
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
        share_prefixes: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.order, self.build = order, build
        self.samples_per_step = samples_per_step
        self.tokens_per_microbatch = tokens_per_microbatch
        self.row_tokens = row_tokens if packs else None
        self.share_prefixes = share_prefixes and packs
        self.rank, self.ranks = rank, ranks
        self.per_epoch = math.ceil(len(order(0)) / samples_per_step)
        self.total = max_steps if max_steps > 0 else max(1, math.ceil(num_train_epochs * self.per_epoch))
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < self.total:
            raise IndexError(step)
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        indices = self._order[place * self.samples_per_step : (place + 1) * self.samples_per_step]
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
