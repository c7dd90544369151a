"""One item = one optimizer step: which samples it reads and how they are packed is a pure function of the step's number.

Knows neither models nor recipes: it is handed an order per epoch and a way to build a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stylora.forest import MicroBatch, Sample, pack


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step: its micro-batches, the divisor W = sum of all their edge weights, and what it costs.

    tokens: as the samples have them; forest_tokens: computed, after prefixes were shared
    """

    batches: list[MicroBatch]
    weight: float
    samples: int
    tokens: int
    forest_tokens: int


class Steps:
    """Every optimizer step of a run, by number; a map-style dataset for a `DataLoader`.

    order: epoch -> int64 indices in training order, of equal length for every epoch
    build: (index, epoch) -> sample, deterministic
    max_steps: -1 to go by epochs
    packs: whether the model was proved to keep documents in a row apart; without it rows are never packed
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
    ) -> None:
        self.order, self.build = order, build
        self.samples_per_step = samples_per_step
        self.tokens_per_microbatch = tokens_per_microbatch
        self.row_tokens = row_tokens if packs else None
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
        batches = pack(samples, tokens_per_microbatch=self.tokens_per_microbatch, row_tokens=self.row_tokens)
        return Step(
            batches=batches,
            weight=float(sum(batch.edge_weight.sum(dtype=np.float64) for batch in batches)),
            samples=len(samples),
            tokens=sum(map(len, samples)),
            forest_tokens=sum(batch.tokens for batch in batches),
        )
