"""Probabilities that mean what they say: one temperature over the log probabilities of labels, and how far confidence is from accuracy.

Fine-tuned models are too sure of themselves. Dividing the log probabilities by one number, fitted on rows nobody trained on, changes no
answer and mends most of that (Guo et al. 2017, arXiv 1706.04599). Plain NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 10
WIDEST = 20.0  # temperatures are looked for between 1 and it


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """float64 [L]: of the labels among themselves. scores: [L] log probabilities"""
    scaled = (scores - scores.max()) / temperature
    raised = np.exp(scaled)
    return raised / raised.sum()


def fit_temperature(scores: Sequence[np.ndarray], gold: Sequence[int]) -> float:
    """The temperature, at least 1, at which the right labels of these rows are likeliest; 1 where there are none.

    Below 1 it would make the model surer than it is, and few rows without an error, as of an easy task, always ask for that.

    scores: [L] each, log probabilities; gold: index of the right label in each
    """
    if not scores:
        return 1.0

    def nats(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        # a row that is certainly wrong must cost something finite
        return -sum(np.log(max(probabilities(row, temperature)[right], 1e-12)) for row, right in zip(scores, gold, strict=True))

    found = minimize_scalar(nats, bounds=(0.0, np.log(WIDEST)), method="bounded")
    return float(np.exp(found.x))


def calibration_error(confidence: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015): |accuracy - mean confidence| in ten bins of confidence, weighted by their rows."""
    sure, hits = np.asarray(confidence, float), np.asarray(right, float)
    if not len(sure):
        return 0.0
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    apart = [abs(float(hits[place == b].sum() - sure[place == b].sum())) for b in range(BINS)]
    return sum(apart) / len(sure)
