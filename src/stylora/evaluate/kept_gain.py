"""How much of what one change brings another one keeps: the share of a gain, with an interval over prompts.

    before 0.1   full 0.9   kept 0.7        (0.7 - 0.1) / (0.9 - 0.1) = 75 %

The three were measured on the same prompts, and whole prompts are resampled (BCa, as in `intervals`). Where the gain itself may be 0 the
share may be anything; then no bounds are given. Knows nothing of what the values measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

from .intervals import RESAMPLES, Interval, interval


def kept_gain(
    before: Sequence[float] | np.ndarray, full: Sequence[float] | np.ndarray, kept: Sequence[float] | np.ndarray, *, seed: int,
    level: float = 0.95,
) -> Interval:  # fmt: skip
    """(kept - before) / (full - before) of the means over N prompts. before, full, kept: [N], finite

    no gain                               nan, nan, nan
    a gain whose own interval holds 0     the share, nan, nan
    """
    start, most, own = (np.asarray(values, float) for values in (before, full, kept))
    if not len(start) or most.mean() <= start.mean():
        return Interval(math.nan, math.nan, math.nan)
    share = float(_share(start, most, own, 0))
    if not interval(most - start, seed=seed, level=level).low > 0:
        return Interval(share, math.nan, math.nan)
    if np.ptp(own - start - share * (most - start)) == 0:  # no resample has another share
        return Interval(share, share, share)
    found = bootstrap(
        (start, most, own), _share, n_resamples=RESAMPLES, confidence_level=level, paired=True, vectorized=True, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(share, float(found.low), float(found.high))


def _share(before: np.ndarray, full: np.ndarray, kept: np.ndarray, axis: int) -> np.ndarray:
    start = before.mean(axis)
    return (kept.mean(axis) - start) / (full.mean(axis) - start)
