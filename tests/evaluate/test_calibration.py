"""Temperature: the answers stay, the confidence becomes what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.evaluate.calibration import calibration_error, fit_temperature, probabilities

SCORES = st.lists(st.floats(-50, 0), min_size=2, max_size=6).map(np.array)


@given(SCORES, st.floats(0.05, 20))
def test_shares_that_keep_their_order(scores, temperature):
    share = probabilities(scores, temperature)
    assert share.sum() == pytest.approx(1) and share[scores.argmax()] == share.max()
    if temperature == 1:
        np.testing.assert_allclose(share, np.exp(scores) / np.exp(scores).sum())


def test_it_finds_the_temperature_that_rows_were_drawn_at():
    rng = np.random.default_rng(0)
    scores = list(rng.normal(0, 4, (4000, 5)))
    gold = [int(rng.choice(5, p=probabilities(row, 2.5))) for row in scores]
    fitted = fit_temperature(scores, gold)
    assert fitted == pytest.approx(2.5, rel=0.08)
    right = [row.argmax() == best for row, best in zip(scores, gold, strict=True)]
    errors = [calibration_error([probabilities(row, t).max() for row in scores], right) for t in (1.0, fitted)]
    assert errors[1] < 0.03 < errors[0]


def test_no_error_makes_it_no_surer():
    """An easy task, or a few rows: the likeliest temperature would be 0."""
    assert fit_temperature([np.log([0.8, 0.2])] * 200, [0] * 200) == pytest.approx(1, abs=1e-3)


def test_nothing_to_fit_on():
    assert fit_temperature([], []) == 1 and calibration_error([], []) == 0


def test_the_error_by_hand():
    # two rows at 0.9 of which one is right, two at 0.3 of which none is: (2 x 0.4 + 2 x 0.3) / 4
    assert calibration_error([0.9, 0.9, 0.3, 0.3], [True, False, False, False]) == pytest.approx(0.35)
    assert calibration_error([1.0], [True]) == 0
