"""What is computed for a report from logged figures: curves, smoothing, thinning, errors, spikes, where overfitting begins.

Numbers in, numbers out: knows no files, no plots and no words. Imports no torch, so the rules it shares with train/symptoms.py and
evaluate/held_out.py are written here for arrays and held against those by tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 1e30  # figures beyond it are treated as no number, as in train/symptoms.py
FEW = 10  # logged losses below which nothing is said about overfitting
ROSE = 0.01  # share of the best held-out loss: less of a rise is none
SPIKE_WINDOW = 20  # logged losses whose median a loss is held against
FINE = 2000  # points that are smoothed
STRETCHES = 300  # a drawn curve has at most two points of each
DEVIATIONS = 1.96  # standard errors on either side: a 95 % interval


@dataclass(frozen=True)
class Curve:
    """steps: int64 [N], ascending; values: float64 [N], finite"""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> float | None:
        """The value at a step; None where there is none."""
        place = int(np.searchsorted(self.steps, step))
        return float(self.values[place]) if place < len(self) and self.steps[place] == step else None


def is_number(value: object) -> bool:
    """A finite figure, neither a truth value nor beyond all sense."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LIMIT < value < LIMIT


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """A figure of metrics.jsonl over the steps; of several rows of one step the last counts, values that are no number are left out."""
    found = {row["step"]: float(row[key]) for row in rows if is_number(row.get("step")) and is_number(row.get(key))}
    steps = sorted(found)
    return Curve(np.array(steps, np.int64), np.array([found[step] for step in steps], np.float64))


def broken(rows: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    """Steps at which a figure was logged that is no finite number."""
    return sorted({row["step"] for row in rows if isinstance(row.get(key), float) and not is_number(row[key])})


def smooth(found: Curve) -> Curve:
    """A local linear fit with Gaussian weights (Fan and Gijbels 1996), 1/40 of the curve wide but at least two points.

    Unlike an exponential mean it does not lag, and it is true at both ends. More than FINE points are first averaged over so many equal
    stretches. Steps between points are taken to be equal.
    """
    if len(found) < 4:
        return found
    if len(found) > FINE:
        stretches = np.array_split(np.arange(len(found)), FINE)
        steps, means = zip(*((found.steps[places[len(places) // 2]], found.values[places].mean()) for places in stretches), strict=True)
        found = Curve(np.array(steps), np.array(means))
    width = max(2.0, len(found) / 40)
    reach = min(len(found) - 1, math.ceil(3 * width))
    offsets = np.arange(reach, -reach - 1, -1)  # of a neighbour from its point, in the order in which np.convolve meets them
    weights = np.exp(-0.5 * (offsets / width) ** 2)

    def total(values: np.ndarray, power: int) -> np.ndarray:
        """At each point the sum over its neighbours of weight * offset ** power * value."""
        return np.convolve(values, weights * offsets.astype(float) ** power)[reach : reach + len(values)]

    ones = np.ones(len(found))
    s0, s1, s2 = (total(ones, power) for power in range(3))
    t0, t1 = total(found.values, 0), total(found.values, 1)
    return Curve(found.steps, (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))


def thin(found: Curve) -> Curve:
    """At most two points of each of STRETCHES equal stretches, the lowest and the highest, so that no spike is lost; and both ends."""
    if len(found) <= 2 * STRETCHES:
        return found
    kept = {0, len(found) - 1}
    for places in np.array_split(np.arange(len(found)), STRETCHES):
        kept |= {int(places[found.values[places].argmin()]), int(places[found.values[places].argmax()])}
    chosen = np.array(sorted(kept))
    return Curve(found.steps[chosen], found.values[chosen])


def spikes(losses: Curve, factor: float) -> list[int]:
    """Steps whose loss is above `factor` times the median of the SPIKE_WINDOW losses before, as `train.loss_spike` counts them."""
    found = []
    for place in range(SPIKE_WINDOW, len(losses)):
        if losses.values[place] > factor * float(np.median(losses.values[place - SPIKE_WINDOW : place])):
            found.append(int(losses.steps[place]))
    return found


def overfitting_begins(losses: Curve, held_out: Curve) -> int | None:
    """The step of the best held-out loss, where that loss has risen since by 1 % or more while the training loss fell; else None.

    Risen: at the last evaluation, of three or more. Fallen: the mean of the last losses is below that of the last ones up to that step, a
    fifth of all losses each, one to ten. A best one before the first step is none: there the learning rate was too high, or what is
    held out is of another kind.
    """
    if len(losses) < FEW or len(held_out) < 3:
        return None
    place = int(held_out.values.argmin())
    best, step = float(held_out.values[place]), int(held_out.steps[place])
    if place == 0 or float(held_out.values[-1]) - best <= ROSE * abs(best):
        return None
    size = max(1, min(10, len(losses) // 5))
    before = losses.values[losses.steps <= step][-size:]
    return step if len(before) and losses.values[-size:].mean() < before.mean() else None


def difference_error(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> float | None:
    """Standard error of a change in nats per token, paired by sample; None where the samples are not the same, or fewer than two.

    before, after: one part of a line of held_out.jsonl, {"nats": [N], "tokens": [N], ...}. A ratio estimator (Cochran, Sampling Techniques,
    section 2.11).
    """
    if not before or not after or before.get("tokens") != after.get("tokens"):
        return None
    tokens = np.array(after["tokens"], np.float64)
    totals = np.array(after["nats"], np.float64) - np.array(before["nats"], np.float64)
    if len(tokens) < 2:
        return None
    residuals = totals - totals.sum() / tokens.sum() * tokens
    return float(math.sqrt((residuals**2).sum() / (len(tokens) - 1) / len(tokens)) / tokens.mean())


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one part of the held-out text fares against its origin, in nats per token.

    before: at the origin; after: with the adapter that was kept; error: of their difference, None if unknown
    """

    before: float
    after: float
    error: float | None = None

    @property
    def nats(self) -> float:
        """Below 0 is better."""
        return self.after - self.before

    @property
    def share(self) -> float:
        """Change of perplexity: -0.5 is half of it."""
        return grown(self.nats)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `share`."""
        if self.error is None:
            return None
        return grown(self.nats - DEVIATIONS * self.error), grown(self.nats + DEVIATIONS * self.error)

    @property
    def direction(self) -> int:
        """-1 fell, 1 rose, 0 where the interval holds no change, or there is no change."""
        if self.interval is not None and self.interval[0] <= 0 <= self.interval[1]:
            return 0
        return (self.nats > 0) - (self.nats < 0)


def perplexity(loss: float) -> float:
    """exp(nats per token); infinity where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf


def grown(nats: float) -> float:
    """Change of perplexity for a change in nats per token: 0.1 is 10 % more."""
    return math.expm1(nats) if nats < 700 else math.inf


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points (forgetting, gain) that no other one beats: by no more forgetting and no less gain, not both being equal."""
    return [
        number for number, (x, y) in enumerate(points)
        if not any(a <= x and b >= y and (a < x or b > y) for a, b in points)
    ]  # fmt: skip
