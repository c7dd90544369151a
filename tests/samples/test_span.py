"""Span masking: the drawing, the shares (15 % of tokens, half in spans, 80/10/10), the original targets, whole words, fresh every epoch."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.forest import MASK
from stylora.samples.objective import Objective, Vocabulary, build_sample
from stylora.samples.span import choose, span

ORDINARY = np.arange(1000, 2000, dtype=np.int32)  # no window below has such a token: a replaced token is seen to be one
EXAMPLE = Path(__file__).parents[2] / "examples" / "wuxia" / "古寺钟声记.txt"


def window(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, size=length, dtype=np.int32)


def noised(ids, seed, *, mask_ratio=0.15, span_ratio=0.5, span_length=(3, 5), word_starts=None, ordinary=ORDINARY):
    return span(
        ids, np.random.default_rng(seed), ordinary=ordinary, mask_ratio=mask_ratio, span_ratio=span_ratio, span_length=span_length,
        word_starts=word_starts,
    )  # fmt: skip


def runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each run of neighbouring positions."""
    borders = np.flatnonzero(np.diff(chosen) > 1)
    return list(zip(chosen[np.append(0, borders + 1)].tolist(), (chosen[np.append(borders, -1)] + 1).tolist(), strict=True))


def test_the_drawing_of_the_module():
    """Some seed draws the picture; what it draws then is asserted in full."""
    a, b, c, d, e, f, g, h = ids = np.arange(8, dtype=np.int32)
    x = 1000
    drawing = [a, b, MASK, x, e, f, g, h]
    for seed in count():
        sample = noised(ids, seed, mask_ratio=3 / 7, span_length=(2, 2), ordinary=np.array([x], np.int32))
        if sample.forest.ids.tolist() == drawing and len(sample.edges) == 3 and sample.edges.source[-1] == 5:
            break
    assert sample.edges.source.tolist() == [1, 2, 5]
    assert sample.edges.target.tolist() == [c, d, g]
    assert sample.edges.weight.tolist() == [1, 1, 1]
    assert sample.forest.time.tolist() == list(range(8)) and sample.forest.is_chain


@settings(deadline=None)
@given(
    length=st.one_of(st.integers(0, 4), st.integers(5, 300)), mask_ratio=st.floats(0.001, 1), span_ratio=st.floats(0, 1),
    low=st.integers(1, 6), more=st.integers(0, 4), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_whatever_the_settings(length, mask_ratio, span_ratio, low, more, seed):
    """The wanted share exactly; targets are the original tokens, sources stand before them; nothing else changes."""
    ids = window(length, seed)
    before = ids.copy()
    sample = noised(ids, seed, mask_ratio=mask_ratio, span_ratio=span_ratio, span_length=(low, low + more))
    chosen = sample.edges.source + 1
    assert len(chosen) == (0 if length < 2 else max(1, round(mask_ratio * (length - 1))))
    assert (np.diff(chosen) > 0).all() and (chosen >= 1).all() and (chosen < length).all()
    assert (sample.edges.target == ids[chosen]).all()
    assert (ids == before).all(), "the window itself was changed"
    untouched = np.setdiff1d(np.arange(length), chosen)
    assert (sample.forest.ids[untouched] == ids[untouched]).all()
    seen = sample.forest.ids[chosen]
    assert ((seen == MASK) | (seen == ids[chosen]) | np.isin(seen, ORDINARY)).all()


@pytest.mark.parametrize(("length", "edges"), [(1, []), (2, [(0, 1)]), (3, None)])
def test_very_short_windows(length, edges):
    """One token predicts nothing, two can only predict the second, three predict one of two."""
    sample = noised(window(length), 0)
    found = list(zip(sample.edges.source.tolist(), (sample.edges.source + 1).tolist(), strict=True))
    assert len(sample) == length
    assert found == edges if edges is not None else found in ([(0, 1)], [(1, 2)])


def test_80_10_10():
    fates = np.zeros(3, int)
    for seed in range(300):
        ids = window(1000, seed)
        sample = noised(ids, seed)
        seen, original = sample.forest.ids[sample.edges.source + 1], sample.edges.target
        fates += [(seen == MASK).sum(), np.isin(seen, ORDINARY).sum(), (seen == original).sum()]
    total = 300 * 150
    assert fates.sum() == total
    expected = np.array([0.8, 0.1, 0.1])
    sigma = np.sqrt(expected * (1 - expected) / total)
    assert (abs(fates / total - expected) < 5 * sigma).all(), fates / total


def test_replacements_are_drawn_from_all_ordinary_tokens():
    drawn = np.concatenate([noised(window(1000, seed), seed, mask_ratio=1.0).forest.ids for seed in range(100)])
    drawn = drawn[drawn >= 1000]
    assert len(np.unique(drawn)) > 990 and drawn.max() < 2000  # 10 000 draws of 1 000 tokens miss e^-10 of them


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lengths", [(3, 5), (1, 1), (4, 4), (2, 9)])
def test_spans_have_the_lengths_asked_for(seed, lengths):
    """At span_ratio 1 every run is a span, but for one cut by the end of the window and one that had to be shorter to fit the share."""
    chosen = choose(1000, np.random.default_rng(seed), 0.15, 1.0, lengths, None)
    inside = [end - start for start, end in runs(chosen) if end < 1000]
    assert sum(not lengths[0] <= run <= lengths[1] for run in inside) <= 1
    assert max(inside) <= lengths[1]


def test_half_of_it_lies_in_spans_and_half_is_single():
    """The spans of a half share are drawn first and alike; what is added to them is single tokens in random places."""
    in_runs = []
    for seed in range(50):
        spans = choose(1000, np.random.default_rng(seed), 0.075, 1.0, (3, 5), None)
        both = choose(1000, np.random.default_rng(seed), 0.15, 0.5, (3, 5), None)
        assert len(both) == 150 and len(spans) == 75
        assert (~np.isin(spans, both)).sum() <= 5, "all spans but the last, which is cut to fit the share"
        singles = choose(1000, np.random.default_rng(seed), 0.15, 0.0, (3, 5), None)
        in_runs.append([sum(end - start for start, end in runs(c) if end - start >= 3) for c in (spans, singles)])
    of_spans, of_singles = np.mean(in_runs, axis=0)
    assert of_spans > 70  # 75 but for the last
    assert of_singles < 15  # 150 random places of 1000: 8 in runs of three and more on average


def test_every_position_but_the_first_is_chosen_equally_often():
    times = np.zeros(40, int)
    for seed in range(4000):
        times[choose(40, np.random.default_rng(seed), 0.15, 0.0, (3, 5), None)] += 1
    assert times[0] == 0
    expected = 4000 * 6 / 39
    assert (abs(times[1:] - expected) < 5 * np.sqrt(expected)).all()


@settings(deadline=None)
@given(words=st.lists(st.integers(1, 7), min_size=2, max_size=60), mask_ratio=st.floats(0.01, 1), seed=st.integers(0, 2**32))
def test_words_are_never_split(words, mask_ratio, seed):
    """words: tokens of each. The word at position 0 has nothing before it and is left alone."""
    starts = np.zeros(sum(words), bool)
    borders = np.cumsum([0, *words])
    starts[borders[:-1]] = True
    sample = noised(window(len(starts)), seed, mask_ratio=mask_ratio, word_starts=starts)
    hidden = np.isin(np.arange(len(starts)), sample.edges.source + 1)
    for first, last in zip(borders[:-1], borders[1:], strict=True):
        assert hidden[first:last].all() or not hidden[first:last].any()
    assert not hidden[: words[0]].any()
    wanted = min(max(1, round(mask_ratio * (len(starts) - 1))), len(starts) - words[0])
    assert wanted <= hidden.sum() < wanted + max(words)


def test_one_word_that_fills_the_window_is_learned_as_far_as_it_can_be():
    starts = np.array([True, False, False, False])
    assert noised(window(4), 0, mask_ratio=1.0, word_starts=starts).edges.source.tolist() == [0, 1, 2]


def test_words_of_real_chinese(bpe):
    """No hidden stretch begins or ends inside one of jieba's words."""
    import jieba

    from stylora.samples.store import word_starts

    text = EXAMPLE.read_text(encoding="utf-8")[:3000]
    encoding = bpe.encode(text)
    starts = word_starts(text, encoding).astype(bool)
    borders = set(np.cumsum([0, *map(len, jieba.cut(text))]).tolist())
    begins = [first for first, _ in encoding.offsets] + [len(text)]
    split = 0
    for seed in range(10):
        chosen = noised(np.array(encoding.ids, np.int32), seed, word_starts=starts).edges.source + 1
        for first, last in runs(chosen):
            assert begins[first] in borders and begins[last] in borders, text[begins[first] : begins[last]]
        free = noised(np.array(encoding.ids, np.int32), seed).edges.source + 1
        split += sum(begins[first] not in borders or begins[last] not in borders for first, last in runs(free))
    assert split > 50, "without word starts words are split: the test above can fail"


def test_fresh_every_epoch_and_the_same_in_every_run():
    vocabulary = Vocabulary(ordinary=ORDINARY, fim=None)

    def draw(*key: int) -> tuple[list[int], list[int]]:
        sample = build_sample(Objective(kind="span"), window(200), vocabulary=vocabulary, key=key)
        return sample.forest.ids.tolist(), sample.edges.source.tolist()

    seed, epoch, source, number = 42, 0, 2**63 - 1, 5
    assert draw(seed, epoch, source, number) == draw(seed, epoch, source, number)
    others = [(43, epoch, source, number), (seed, 1, source, number), (seed, epoch, 7, number), (seed, epoch, source, 6)]
    for other in others:
        assert draw(*other) != draw(seed, epoch, source, number)
        assert draw(*other)[1] != draw(seed, epoch, source, number)[1]
