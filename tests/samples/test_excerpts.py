"""Excerpts of a novel: whole sentences, short enough, none twice, nothing in them that the text has not."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.samples.excerpts import END, PAIRS, excerpts, sentences

TEXT = st.text(alphabet="剑光一闪道。！？…：，“”「」（）. a\n\ufffd", max_size=120)


def test_the_drawing():
    paragraph = "天色将晚。那汉子推门进来，道：“店家，打酒！要热的。”说罢坐下。他腰间挂着一口刀"
    assert list(sentences(paragraph)) == ["天色将晚。", "那汉子推门进来，道：“店家，打酒！要热的。”", "说罢坐下。"]
    assert list(excerpts(paragraph, shortest=20, longest=30)) == ["天色将晚。那汉子推门进来，道：“店家，打酒！要热的。”"]
    assert list(excerpts(paragraph, shortest=1, longest=12)) == ["天色将晚。", "说罢坐下。"]
    assert list(excerpts(paragraph, shortest=4, longest=4)) == []


def test_a_quotation_that_nobody_closes_is_in_none():
    assert list(excerpts("他走了。“谁？我不知道。他来了。", shortest=1, longest=50)) == ["他走了。"]


def test_paragraphs_are_not_joined_and_broken_bytes_left_out():
    text = "第一回 风雪\n剑光一闪。\n刀也一闪。\n坏\ufffd字。好字。"
    assert list(excerpts(text, shortest=4, longest=50)) == ["剑光一闪。", "刀也一闪。"]


@settings(max_examples=300, deadline=None)
@given(text=TEXT, shortest=st.integers(1, 12), more=st.integers(0, 30))
def test_of_any_text(text, shortest, more):
    """They stand in the text one behind the other, are as long as was asked, end with a sentence and close what they open."""
    at = 0
    for excerpt in excerpts(text, shortest=shortest, longest=shortest + more):
        found = text.find(excerpt, at)
        assert found >= at
        at = found + len(excerpt)
        assert shortest <= len(excerpt) <= shortest + more and "\n" not in excerpt and "\ufffd" not in excerpt
        assert re.search(f"(?:{END.pattern})$", excerpt)
        assert all(excerpt.count(opening) == excerpt.count(closing) for opening, closing in PAIRS)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=20))
def test_nothing_that_fits_is_left_out(lengths):
    """Of sentences that are each short enough, every one is in an excerpt where one alone is long enough."""
    text = "".join("剑" * (n - 1) + "。" for n in lengths)
    assert "".join(excerpts(text, shortest=2, longest=20)) == text
