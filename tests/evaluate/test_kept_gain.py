"""The share of a gain that is kept: the ratio of means, with bounds that hold it, and none where there is nothing to divide by."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stylora.evaluate.kept_gain import kept_gain


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 0.2, 60)
    full = rng.uniform(0.7, 1, 60)
    return before, full, before + 0.8 * (full - before) + rng.normal(0, 0.05, 60)


def test_it_is_the_ratio_of_means(drawn):
    before, full, kept = drawn
    found = kept_gain(*drawn, seed=0)
    assert found.mean == pytest.approx((kept.mean() - before.mean()) / (full.mean() - before.mean()))
    assert found.low < 0.8 < found.high and found.high - found.low < 0.06
    assert kept_gain(*drawn, seed=0) == found


def test_prompts_are_resampled_whole(drawn):
    """Paired: what the columns have in common does not widen the interval."""
    before, full, kept = drawn
    apart = kept_gain(before, full, np.random.default_rng(1).permutation(kept), seed=0)
    together = kept_gain(*drawn, seed=0)
    assert together.high - together.low < apart.high - apart.low


def test_without_a_gain_there_is_no_share(drawn):
    before, full, kept = drawn
    for found in (kept_gain(full, before, kept, seed=0), kept_gain(before, before, kept, seed=0), kept_gain([], [], [], seed=0)):
        assert all(map(math.isnan, found))


def test_a_gain_that_may_be_none_gives_no_bounds():
    before, full = [0.4, 0.6, 0.5, 0.5], [0.5, 0.5, 0.6, 0.5]
    found = kept_gain(before, full, full, seed=0)
    assert found.mean == pytest.approx(1) and math.isnan(found.low) and math.isnan(found.high)


def test_one_prompt_has_no_bounds_and_equal_shares_have_no_width():
    assert kept_gain([0.0], [1.0], [0.5], seed=0).mean == 0.5 and math.isnan(kept_gain([0.0], [1.0], [0.5], seed=0).low)
    assert kept_gain([0.0] * 5, [1.0] * 5, [0.5] * 5, seed=0) == (0.5, 0.5, 0.5)
