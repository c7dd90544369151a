"""three_way.json on the page: a row a variant, bars that are the shares, and whatever a hand may have written stays text or a blank."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.report.made import HOSTILE, stage, three_way, two_stages

from stylora.report.page import page
from stylora.report.panel import tracks
from stylora.report.three_way import Cell, compared, read
from stylora.report.words import WORDS, Said

KEYS = ["variants", "settings", "voice", "warnings", "key", "name", "follows", "mean", "low", "high", "style_kept", "held_out",
        "perplexity", "answers", "question", "text", "breach", "stopped", "expected", "shape",
        "lines", "shortest", "longest", "endings", "typical",
        "questions", "accuracy", "passages", "length"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=25,
)  # fmt: skip


def test_rows_and_columns():
    found = read(three_way())
    assert [column.en for column in found.columns if isinstance(column, Said)] == [
        "follows", "stops", "in style", "of style's gain", "answers, perplexity", "distinct-2", "distinct-4", "repeated", "degenerate",
        "length",
    ]  # fmt: skip
    assert [(what.en, name) for what, name, _ in found.rows] == [
        ("base", "base"), ("style only", "base + style"), ("style and instructions", "base + style + instruct"),
        ("instructions only", "base + instruct"),
    ]  # fmt: skip
    cells = found.rows[2][2]
    assert cells[0] == Cell(figure="97 %", interval="90 % … 100 %", bar=97.0)
    assert cells[3] == Cell(figure="85 %", interval="70 % … 95 %", bar=85.0)
    assert found.rows[0][2][3] == Cell(figure=""), "the base keeps no share of a gain"
    assert cells[4].bar is None and cells[4].figure == "30.0"


def test_answers_side_by_side():
    (first, *_) = read(three_way()).asked
    question, expected, given_answers = first
    assert (question, expected) == ("写一写：渡口 0", "话说那渡口。")
    assert [(what, text, apart) for what, _, text, apart in given_answers] == [
        (WORDS["variant_base"], "答 base 0", WORDS["breach_ran_on"]), (WORDS["variant_style"], "答 style 0", WORDS["breach_ran_on"]),
        (WORDS["variant_stack"], "答 stack 0", ""), (WORDS["variant_instruct"], "答 instruct 0", ""),
    ]  # fmt: skip


def test_what_was_not_measured_is_no_column():
    told = three_way()
    for each in told["variants"]:
        each |= {"follows": None, "style_score": None, "style_kept": None, "held_out": None}
    assert [column.en for column in read(told).columns if isinstance(column, Said)][:2] == ["stops", "distinct-2"]


def test_only_stages_that_were_compared():
    first, second = two_stages()
    found = tracks([first, second], compared=False)
    assert compared(found) == []
    found = tracks([first, stage(name="instruct", parent=0, three_way=three_way())], compared=False)
    ((track, _),) = compared(found)
    assert track.name == "instruct"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_has_a_section(language):
    text = page([stage(three_way=three_way())], title="x", language=language, version="0.1.0")
    for said in ("The stack and its parts", "叠加与各部分的对比", "话说那渡口。", "width: 97.0%", "held-out conversations of the stage",
                 '30.0<br><small class="quiet">'):  # fmt: skip
        assert said in text, said
    assert "The stack and its parts" not in page([stage()], title="x", language=language, version="0.1.0")


def test_hostile_text_stays_text():
    told = three_way(warnings=[HOSTILE])
    for each in told["variants"]:
        each["name"] = each["key"] = HOSTILE
        each["answers"] = [{"question": HOSTILE, "expected": HOSTILE, "text": HOSTILE, "stopped": True, "breach": HOSTILE}]
    text = page([stage(three_way=told)], title="x", language="en", version="0.1.0")
    assert HOSTILE not in text and "&lt;/script&gt;" in text


@settings(max_examples=40)
@given(JSON)
@example({"variants": [None]})
def test_anything_can_be_read(told):
    for each in compared(tracks([stage(three_way=told)], compared=False)):
        assert all(cell.bar is None or 0 <= cell.bar <= 100 for _, _, cells in each[1].rows for cell in cells)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8))
def test_any_variant_can_be_read(variant):
    found = read({"variants": [variant], "settings": variant, "voice": variant})
    assert len(found.rows) == 1
