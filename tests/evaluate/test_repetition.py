"""Distinct and repeated n-grams against counting by hand; the rule for degenerate texts on real passages and on constructed loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.evaluate.repetition import COPIES, degenerate, distinct, fault, looped, repeated, squeeze

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
PROSE = "却说那日天色已晚，二人走到一座山前，只见林中转出一个老者，手提灯笼，问道：“客官从何处来？”"
TEXTS = st.text(alphabet="天地人。 ", max_size=30)


def naive_looped(body: str) -> int:
    """Every piece at every place, copied as long as it goes; a last part copy counts too."""
    longest = 0
    for start in range(len(body)):
        for period in range(1, len(body) - start):
            end = start + period
            while end < len(body) and body[end] == body[end - period]:
                end += 1
            if end - start >= COPIES * period:
                longest = max(longest, end - start)
    return longest


def test_figures_by_hand():
    assert distinct(["abab"], 2) == 2 / 3 and distinct(["abab", "ab"], 2) == 2 / 4, "over all texts together, none across two"
    assert repeated("abcdabcd") == 1 - 4 / 5 and repeated("abcdefgh") == 0
    assert repeated("aaaaaaaa") == 1 - 1 / 5
    assert math.isnan(distinct(["a", ""], 2)) and repeated("abc") == 0
    assert distinct(["a b\na　b"], 2) == distinct(["abab"], 2), "white space does not count"


@given(texts=st.lists(TEXTS, max_size=4), n=st.integers(1, 5))
def test_equal_to_counting(texts, n):
    grams = [body[i : i + n] for body in map(squeeze, texts) for i in range(len(body)) if i + n <= len(body)]
    if grams:
        assert distinct(texts, n) == len(set(grams)) / len(grams)
    for text in texts:
        own = [gram for gram in (squeeze(text)[i : i + n] for i in range(len(text))) if len(gram) == n]
        seen: set[str] = set()
        again = [gram in seen or seen.add(gram) is not None for gram in own]
        assert repeated(text, n) == pytest.approx(sum(again) / len(own) if own else 0)


@given(body=st.text(alphabet="天地人", max_size=24))
def test_the_longest_loop_is_that_of_trying_all(body):
    assert looped(body) == naive_looped(body)


@pytest.mark.parametrize("text, expected", [
    ("", "empty"), ("  \n　", "empty"), ("。", "empty"), ("嗯。", "empty"), ("好的。", None), (PROSE, None),
    ("……" * 20 + "他说", "not text"), ("!@#$%^&*()" * 3 + "abc", "not text"), (PROSE + "\ufffd" * 6, "not text"), (PROSE + "\ufffd", None),
    ("的" * 40, "loop"), ("他走了。" * 12, "loop"), (PROSE * 3, "loop"), (PROSE + "哈哈哈", None),
    ("".join(f"他走到第{n}座山前，看见了一个老人，" for n in "一二三四五六七八"), "repeats"),
])  # fmt: skip
def test_the_rule(text, expected):
    assert fault(text) == expected and degenerate(text) is (expected is not None)


@settings(max_examples=200)
@given(
    piece=st.integers(0, len(PROSE) - 2).flatmap(lambda a: st.integers(a + 2, len(PROSE)).map(lambda b: PROSE[a:b])),
    copies=st.integers(3, 8), cut=st.floats(0, 0.9), share=st.floats(0, 0.95), spaced=st.booleans(),
)  # fmt: skip
def test_every_loop_over_half_of_a_text_is_caught(piece, copies, cut, share, spaced):
    """Any piece, at least three times, cut off anywhere after, behind sound prose that is shorter than the loop."""
    loop = piece * copies + piece[: int(cut * len(piece))]
    before = (PROSE[::-1] * 9)[: int(share * len(loop))]
    text = before + ("\n".join(loop) if spaced else loop)
    assert degenerate(text)


def test_a_loop_of_less_than_half_is_not():
    assert not degenerate(PROSE + "，他走了" * 3)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the public corpora are not there")
@pytest.mark.parametrize("part", ["style", "general"])
@pytest.mark.parametrize("length", [40, 150, 600])
def test_real_passages_are_sound(part, length):
    """Less than 1 % of the passages of novels, statutes, recipes, documentation and single sentences."""
    rng = np.random.default_rng(length)
    passages = []
    for path in sorted((CORPUS / part).glob("*.txt")):
        text = squeeze(path.read_text(encoding="utf-8"))
        passages += [text[start : start + length] for start in rng.integers(0, len(text) - length, size=60)]
    assert len(passages) >= 600
    assert np.mean([degenerate(passage) for passage in passages]) < 0.01
