"""Bootstrap intervals: how often they hold the truth, and what they say of none, one and equal values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.evaluate.intervals import Interval, interval, ratio_interval

VALUES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=2, max_size=20)


@pytest.mark.parametrize("draw, mean", [("beta", 0.5), ("skewed", 0.25)])
def test_it_holds_the_truth_about_as_often_as_it_says(draw, mean):
    """Of 300 draws of 32 values in 0..1, most of them near the ends, 95 % intervals hold the mean they were drawn with."""
    rng = np.random.default_rng(7)
    shape = {"beta": (0.5, 0.5), "skewed": (0.5, 1.5)}[draw]
    found = [interval(rng.beta(*shape, size=32), seed=n) for n in range(300)]
    assert 0.91 <= np.mean([each.low <= mean <= each.high for each in found]) <= 0.98


def test_near_the_textbook_interval_where_values_are_normal():
    values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    found, half = interval(values, seed=0), 1.96 * values.std(ddof=1) / 20
    assert found.mean == values.mean()
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_a_higher_level_is_wider():
    values = np.random.default_rng(4).random(40)
    narrow, wide = interval(values, seed=0, level=0.5), interval(values, seed=0, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


@settings(max_examples=40, deadline=None)
@given(values=VALUES, seed=st.integers(0, 2**31))
def test_between_the_extremes_and_the_same_from_the_same_seed(values, seed):
    found = interval(values, seed=seed)
    assert found == interval(values, seed=seed)
    assert min(values) - 1e-9 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(np.mean(values))


def test_other_seeds_resample_otherwise():
    values = np.random.default_rng(5).random(30)
    assert len({interval(values, seed=seed).low for seed in range(5)}) > 1


def test_no_value_one_value_equal_values():
    assert all(map(math.isnan, interval([], seed=0)))
    one = interval([0.25], seed=0)
    assert one.mean == 0.25 and math.isnan(one.low) and math.isnan(one.high)
    assert interval([0.5] * 9, seed=0) == (0.5, 0.5, 0.5)


def test_a_value_that_is_none_is_the_callers_to_leave_out():
    with pytest.raises(AssertionError, match="left out"):
        interval([1.0, math.nan], seed=0)


def test_json_has_null_where_there_is_nothing_to_say():
    assert json.loads(json.dumps(interval([2.0], seed=0).as_json(), allow_nan=False)) == {"mean": 2.0, "low": None, "high": None}
    assert Interval(1.0, 0.5, 2.0).as_json() == {"mean": 1.0, "low": 0.5, "high": 2.0}


def test_ratios_weigh_pairs_by_their_size():
    totals, sizes = np.array([2.0, 30.0, 4.0, 9.0]), np.array([1.0, 10.0, 3.0, 4.0])
    found = ratio_interval(totals, sizes, seed=0)
    assert found.mean == 45 / 18 and found.low < found.mean < found.high
    padded = ratio_interval([*totals, 0.0, 0.0], [*sizes, 0.0, 0.0], seed=0)
    assert padded == found, "texts without tokens say nothing"
    assert ratio_interval(3 * sizes, sizes, seed=0) == (3.0, 3.0, 3.0)
    assert all(map(math.isnan, ratio_interval([0.0], [0.0], seed=0)))


def test_ratios_of_equal_sizes_are_means():
    values = np.random.default_rng(6).random(25)
    assert ratio_interval(4 * values, np.full(25, 4.0), seed=1) == pytest.approx(interval(values, seed=1), rel=1e-9)
