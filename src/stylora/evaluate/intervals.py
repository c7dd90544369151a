"""A mean and how far it can be trusted: intervals by resampling what was drawn, which is the prompts.

Percentiles of a seeded bootstrap, corrected for bias and acceleration (BCa; Efron 1987, Better Bootstrap Confidence Intervals). It asks
nothing of the shape of the values, and knows nothing of what they measure. It speaks of other prompts like these, not of another seed of
the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 5000
ROUNDING = 1e-12  # relative; values that differ by less are equal


class Interval(NamedTuple):
    """A figure with the bounds of its interval; nan where there is nothing to say."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """null for nan, which JSON does not have."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


def interval(values: Sequence[float] | np.ndarray, *, seed: int, level: float = 0.95) -> Interval:
    """The mean of N independent values, one for each prompt, with its bootstrap interval. values: [N], finite

    no value          nan, nan, nan
    one value         the value, nan, nan: one says nothing of its spread
    all values equal  the value three times: no resample has another mean. It is no certainty: of 32 texts none of which is degenerate
                      the next may be (with n such texts the share may be as large as 3 / n, the rule of three)
    """
    return _interval(lambda x, axis: x.mean(axis), [np.asarray(values, float)], seed, level)


def ratio_interval(
    totals: Sequence[float] | np.ndarray, sizes: Sequence[float] | np.ndarray, *, seed: int, level: float = 0.95
) -> Interval:
    """totals.sum() / sizes.sum() over N independent pairs with its bootstrap interval, as `interval` otherwise: nats per token of N texts.

    totals: [N]; sizes: [N], not negative. Pairs of size 0 say nothing and are left out.
    """
    over, under = np.asarray(totals, float), np.asarray(sizes, float)
    return _interval(lambda a, b, axis: a.sum(axis) / b.sum(axis), [over[under > 0], under[under > 0]], seed, level)


def _interval(statistic: Callable[..., np.ndarray], columns: list[np.ndarray], seed: int, level: float) -> Interval:
    assert all(np.isfinite(column).all() for column in columns), "a text without a value must be left out, and counted, by the caller"
    count = len(columns[0])
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    figure = float(statistic(*columns, axis=0))
    if count == 1:
        return Interval(figure, math.nan, math.nan)
    single = statistic(*[column[:, None] for column in columns], axis=1)
    if np.ptp(single) <= ROUNDING * np.abs(single).max():
        return Interval(figure, figure, figure)
    found = bootstrap(
        columns, statistic, n_resamples=RESAMPLES, confidence_level=level, paired=len(columns) > 1, vectorized=True, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(figure, float(found.low), float(found.high))
