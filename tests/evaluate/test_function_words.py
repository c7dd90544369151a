"""Burrows' Delta against the formula written out; its intervals against independent draws; what it says of real prose."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stylora.evaluate.function_words import COMMON, WORDS, Habit, habit_of, word_counts
from stylora.evaluate.passages import cut, plain

EXAMPLES = Path(__file__).parents[2] / "examples"


def passages(part: str, length: int = 150) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in sorted((EXAMPLES / part).glob("*.txt"))]
    return cut(texts, length, most=10_000, rng=np.random.default_rng(0)).texts


@pytest.fixture(scope="module")
def parts() -> tuple[list[str], list[str]]:
    """As many passages of the wuxia books as of the modern texts, in random order."""
    own, other = passages("wuxia"), passages("modern")
    count = min(len(own), len(other))
    rng = np.random.default_rng(1)
    return [own[i] for i in rng.permutation(len(own))[:count]], [other[i] for i in rng.permutation(len(other))[:count]]


@pytest.fixture(scope="module")
def habit(parts) -> Habit:
    return habit_of(*parts)


def test_the_list_has_every_word_once():
    assert len(WORDS) == len(set(WORDS)) > 150
    assert set("的了着过是在和与之乎者也矣焉哉乃便却道") | {"只见"} <= set(WORDS)
    assert all(word == plain(word) for word in WORDS)


def test_the_longest_word_counts():
    counts = dict(zip(WORDS, word_counts(["只见他没有说道，但是只要的的"])[0], strict=True))
    assert {word: n for word, n in counts.items() if n} == {"只见": 1, "他": 1, "没有": 1, "说道": 1, "但是": 1, "只": 1, "要": 1, "的": 2}
    assert word_counts([]).shape == (0, len(WORDS))


def test_delta_is_the_formula(parts, habit):
    """mean over words of |(f - m) / s - (f_style - m) / s|, with m and s over the passages of both parts."""
    style, general = parts
    everything = [*style, *general]
    text = general[0] + style[0]
    expected = []
    for column, word in enumerate(WORDS):
        rates = [word_counts([each])[0, column] / len(each) for each in everything]
        if np.mean([rate > 0 for rate in rates]) < COMMON:
            continue
        mean, scale = np.mean(rates), np.std(rates)
        of_text = (word_counts([text])[0, column] / len(text) - mean) / scale
        of_style = (np.mean(rates[: len(style)]) - mean) / scale
        expected.append(abs(of_text - of_style))
        assert column in habit.column, word
    assert len(expected) == len(habit.column) > 30
    assert habit.distance([text])[0] == pytest.approx(np.mean(expected))


def test_one_text_pooled_is_that_text(habit, parts):
    one = habit.pooled(parts[1][:1], seed=0, level=0.95)
    assert one.mean == pytest.approx(habit.distance(parts[1][:1])[0]) and math.isnan(one.low) and math.isnan(one.high)
    both = habit.pooled(["".join(parts[1][:2]), ""], seed=0, level=0.95)
    assert both.mean == pytest.approx(habit.pooled(parts[1][:2], seed=0, level=0.95).mean)


def test_nothing_to_measure(habit):
    assert math.isnan(habit.distance([""])[0])
    assert all(map(math.isnan, habit.pooled([], seed=0, level=0.95))) and all(map(math.isnan, habit.pooled(["", ""], seed=0, level=0.95)))


def test_more_text_is_nearer_its_own_part(habit, parts):
    style, general = (habit.pooled(part[:40], seed=0, level=0.95) for part in parts)
    assert style.high < general.low
    alone = habit.distance(parts[0][:40])
    assert style.mean < 0.5 * alone.mean(), "a passage alone is mostly noise"
    for found, part in zip((style, general), habit.scales(40 * 150, seed=0), strict=True):
        assert found.mean == pytest.approx(part, rel=0.25)


def test_the_scale_falls_with_the_amount_of_text(habit):
    scales = [habit.scales(characters, seed=0) for characters in (150, 1500, 15_000)]
    assert scales[0][0] > 2 * scales[1][0] > 4 * scales[2][0], "style: noise alone"
    assert all(own < other for own, other in scales)
    assert habit.scales(1500, seed=0) == scales[1]


def test_the_interval_is_as_wide_as_independent_draws_differ(habit, parts):
    """Deltas of 200 fresh draws of 30 passages spread as one draw's interval says."""
    rng = np.random.default_rng(2)
    drawn = [[parts[1][i] for i in rng.integers(0, len(parts[1]), size=30)] for _ in range(200)]
    figures = [habit.pooled(texts, seed=0, level=0.95) for texts in drawn[:20]]
    spread = np.std([habit.pooled([*texts], seed=0, level=0.95).mean for texts in drawn])
    width = np.mean([figure.high - figure.low for figure in figures])
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.25)
    near = habit.pooled(parts[0][:30], seed=0, level=0.95)
    for figure in (*figures, near):  # a plain percentile interval lies wholly above a small figure: resampling adds noise
        assert 0.3 < (figure.mean - figure.low) / (figure.high - figure.low) < 0.7
    assert habit.pooled(drawn[0], seed=3, level=0.95) == habit.pooled(drawn[0], seed=3, level=0.95)
