"""The form of answers, learned from answers: what is like them follows, and each way of being unlike them is told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.evaluate.answer_shape import AnswerShape, count_lines, learn_shape
from stylora.evaluate.instructions import INSTRUCTIONS

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
ROOT = Path(__file__).parents[2]


def answers(*lengths: int, ending: str = "。") -> list[str]:
    return ["字" * (length - 1) + ending for length in lengths]


@pytest.fixture(scope="module")
def shape() -> AnswerShape:
    """Of a hundred answers of 40 to 60 characters."""
    return learn_shape(answers(*[40] * 5, *[50] * 90, *[60] * 5), SPECIAL)


def test_the_form_is_that_of_the_answers(shape):
    assert shape == AnswerShape(lines=1, shortest=20, longest=120, endings=("。",), marks=("system", "user", "assistant", *SPECIAL))
    assert shape.as_json() == {"lines": 1, "shortest": 20, "longest": 120, "endings": ["。"]}


@pytest.mark.parametrize(
    ("text", "stopped", "breach"),
    [
        ("字" * 40 + "。", True, None),
        ("字" * 40 + "。", False, "ran on"),
        ("字" * 40 + "\n字。", True, "lines"),
        ("\n\n" + "字" * 40 + "。\n", True, None),  # blank lines around it are none of its own
        ("字" * 18 + "。", True, "length"),
        ("字" * 19 + "。", True, None),
        ("字" * 119 + "。", True, None),
        ("字" * 120 + "。", True, "length"),
        ("", True, "length"),
        ("字" * 40 + "，", True, "ending"),
        ("字" * 40, True, "ending"),
        ("字" * 40 + "user字。", True, "template"),
        ("字" * 40 + "<|im_start|>。", True, "template"),
        ("字" * 200 + "，", False, "ran on"),  # the first of several
    ],
)
def test_each_way_of_being_unlike(shape, text, stopped, breach):
    assert shape.breach(text, stopped=stopped) == breach


def test_a_special_token_that_the_text_leaves_out(shape):
    text = "字" * 40 + "。"
    assert shape.breach(text, stopped=True, written=text + "<|im_start|>") == "template"
    assert shape.breach(text, stopped=True, written=text) is None


def test_what_answers_have_themselves_is_no_mark():
    shape = learn_shape(["the user asked."] * 10, SPECIAL)
    assert "user" not in shape.marks and "assistant" in shape.marks
    assert shape.breach("the user spoke.", stopped=True) is None


def test_endings_count_where_answers_end_with_punctuation():
    mostly = answers(*[40] * 95) + answers(*[40] * 5, ending="字")
    assert learn_shape(mostly, []).endings == ("。", "字"), "a usual ending that is no punctuation is usual"
    less = answers(*[40] * 94) + answers(*[40] * 6, ending="字")
    assert learn_shape(less, []).endings is None
    assert learn_shape(less, []).breach("字" * 40, stopped=True) is None
    rare = answers(*[40] * 199) + answers(40, ending="！")
    assert learn_shape(rare, []).endings == ("。",), "one in two hundred is no usual ending"


LETTERS = st.characters(exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"])


@given(st.lists(st.text(LETTERS, min_size=1, max_size=60), min_size=1, max_size=40))
def test_most_answers_have_their_own_form(bodies):
    """An answer is unlike the others only by a rare ending, or where it is less than half or more than twice as long as nearly all."""
    shape = learn_shape(bodies, SPECIAL)
    for body in bodies:
        breach = shape.breach(body, stopped=True)
        assert breach in (None, "length", "ending")
        assert breach != "ending" or sum(other[-1] == body[-1] for other in bodies) < 0.01 * len(bodies)
    low, high = np.percentile([len(body) for body in bodies], [1, 99])
    assert all(shape.breach(body, stopped=True) != "length" for body in bodies if low / 2 <= len(body) <= high * 2)


def test_lines():
    assert [count_lines(text) for text in ("", "a", "a\nb", "a\n\nb\n", " \n")] == [0, 1, 2, 2, 0]


def test_the_shipped_rows_follow_the_form_of_one_another():
    """Learned from nine tenths, the rest has it too."""
    rows = [json.loads(line) for line in (ROOT / "examples/instruct/wuxia.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [row["messages"][-1]["content"] for row in rows]
    shape = learn_shape(told[: len(told) * 9 // 10], SPECIAL)
    assert shape.lines == 1 and shape.endings is not None and {"。", "”"} <= {*shape.endings}
    assert all(shape.breach(answer, stopped=True) is None for answer in told[len(told) * 9 // 10 :])


def test_the_built_in_instructions():
    assert [len(texts) for texts in INSTRUCTIONS.values()] == [10, 10, 10]
    every = [text for texts in INSTRUCTIONS.values() for text in texts]
    assert len({*every}) == 30 and not any(word in text for text in every for word in ("武侠", "说书", "文风", "之", "曰"))
