"""Figures against their references: numpy's weighted fit, the training's own symptoms, the held-out error, brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stylora.evaluate.held_out import ratio_error
from stylora.report import figures
from stylora.report.figures import Change, Curve, broken, curve, difference_error, frontier, overfitting_begins, smooth, spikes, thin
from stylora.train import symptoms, trainer

losses = st.lists(st.floats(0.1, 9.0), min_size=0, max_size=40)


def series(values) -> Curve:
    """At steps 1, 2, ..."""
    return Curve(np.arange(1, len(values) + 1), np.array(values, float))


def test_a_curve_is_ascending_finite_and_has_the_last_of_each_step():
    rows = [
        {"step": 3, "loss": 1.0}, {"step": 1, "loss": 2}, {"step": 3, "loss": 4.0}, {"step": 2, "loss": math.nan}, {"step": 5, "x": 1.0},
        {"step": 6, "loss": math.inf}, {"step": 7, "loss": True}, {"step": 8, "loss": "1"}, {"step": 9, "loss": 1e300},
    ]  # fmt: skip
    found = curve(rows, "loss")
    assert found.steps.tolist() == [1, 3] and found.values.tolist() == [2.0, 4.0]
    assert found.at(3) == 4.0 and found.at(2) is None and found.at(9) is None
    assert broken(rows, "loss") == [2, 6, 9]
    assert symptoms.curve(rows, "loss") == {1: 2.0, 3: 4.0}  # the same of them is a figure there


@given(arrays(float, st.integers(4, 90), elements=st.floats(-5, 5)))
@settings(max_examples=30, deadline=None)
def test_smoothing_is_a_weighted_line_through_the_neighbours_of_each_point(values):
    found, steps = smooth(series(values)), np.arange(len(values), dtype=float)
    width = max(2.0, len(values) / 40)
    for place in range(0, len(values), 7):
        weights = np.exp(-0.5 * ((steps - place) / width) ** 2)
        weights[np.abs(steps - place) > math.ceil(3 * width)] = 0
        slope, level = np.polyfit(steps - place, values, 1, w=np.sqrt(weights))
        assert found.values[place] == pytest.approx(level, abs=1e-8)


def test_smoothing_leaves_a_line_as_it_is_and_a_long_curve_in_its_place():
    line = np.linspace(7, 3, 20_000)
    found = smooth(series(line))
    assert len(found) == figures.FINE
    assert np.abs(found.values - np.interp(found.steps, np.arange(1, 20_001), line)).max() < 0.01
    assert smooth(series([1.0, 5.0, 2.0])).values.tolist() == [1.0, 5.0, 2.0]


@given(arrays(float, st.integers(1, 3000), elements=st.floats(-5, 5)))
@settings(max_examples=30, deadline=None)
def test_a_thinned_curve_is_small_and_keeps_ends_and_extremes(values):
    found = thin(series(values))
    assert len(found) <= 2 * figures.STRETCHES + 2 and (np.diff(found.steps) > 0).all()
    assert (found.values == values[found.steps - 1]).all()
    assert {found.values.min(), found.values.max()} == {values.min(), values.max()}
    assert found.steps[0] == 1 and found.steps[-1] == len(values)


def test_a_spike_is_what_training_calls_one():
    assert figures.SPIKE_WINDOW == trainer.SPIKE_WINDOW
    values = [2.0] * 30
    values[24], values[27] = 4.1, 3.9
    assert spikes(series(values), 2.0) == [25]
    assert spikes(series(values), 1.9) == [25, 28]
    assert spikes(series([2.0] * 19 + [9.0]), 2.0) == []  # too early to know what is usual


@given(losses, st.lists(st.tuples(st.integers(0, 45), st.floats(0.1, 9.0)), max_size=8, unique_by=lambda one: one[0]))
@settings(max_examples=300)
def test_overfitting_is_what_training_says_of_it(training, measured):
    held = dict(sorted(measured))
    said = symptoms.overfitting({step: value for step, value in enumerate(training, 1)}, held)
    found = overfitting_begins(series(training), Curve(np.array(list(held), np.int64), np.array(list(held.values()), float)))
    assert (said is None) == (found is None)
    assert said is None or f"best at step {found} " in said.figures


def test_overfitting_needs_a_rise_and_a_falling_training_loss():
    falling, held = series(np.linspace(6, 3, 40)), Curve(np.array([0, 10, 20, 30, 40]), np.array([5.0, 4.0, 3.5, 3.6, 3.7]))
    assert overfitting_begins(falling, held) == 20
    assert overfitting_begins(series(np.linspace(3, 6, 40)), held) is None
    assert overfitting_begins(falling, Curve(held.steps, np.array([5.0, 4.0, 3.6, 3.5, 3.5]))) is None
    assert overfitting_begins(falling, Curve(held.steps, np.array([3.0, 4.0, 3.5, 3.6, 3.7]))) is None  # never better than the base


@given(st.lists(st.tuples(st.floats(1, 500), st.floats(1, 500), st.integers(1, 300)), min_size=2, max_size=30))
def test_the_error_of_a_change_is_that_of_the_paired_samples(samples):
    before, after, tokens = (list(map(float, column)) for column in zip(*samples, strict=True))
    found = difference_error({"nats": before, "tokens": tokens}, {"nats": after, "tokens": tokens})
    assert found == pytest.approx(ratio_error(np.array(after) - np.array(before), np.array(tokens)), rel=1e-9, abs=1e-12)


def test_samples_that_are_not_the_same_have_no_error():
    line = {"nats": [1.0, 2.0], "tokens": [1.0, 1.0]}
    assert difference_error(line, {"nats": [1.0, 2.0], "tokens": [1.0, 2.0]}) is None
    assert difference_error(None, line) is None and difference_error(line, {}) is None
    assert difference_error({"nats": [1.0], "tokens": [1.0]}, {"nats": [1.0], "tokens": [1.0]}) is None


def test_a_change_within_its_error_has_no_direction():
    assert Change(before=5.0, after=4.9, error=0.01).direction == -1
    assert Change(before=5.0, after=5.1, error=0.01).direction == 1
    assert Change(before=5.0, after=5.01, error=0.01).direction == 0
    assert Change(before=5.0, after=5.01).direction == 1  # nothing speaks against it
    assert Change(before=0.0, after=math.log(2)).share == pytest.approx(1.0)
    low, high = Change(before=5.0, after=4.0, error=0.1).interval or (0, 0)
    assert low == pytest.approx(math.exp(-1.196) - 1) and high == pytest.approx(math.exp(-0.804) - 1)
    assert Change(before=0.0, after=5000.0).share == math.inf and figures.perplexity(5000.0) == math.inf


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_is_what_nothing_beats(points):
    ahead = frontier(points)
    for number, (x, y) in enumerate(points):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert (number in ahead) == (not beaten)
