"""Conversations that begin alike: every one stands in one row or is counted, and a row with its branch is the conversation again."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stylora.samples.branch_rows import parse_row
from stylora.samples.conversations import Conversation, conversation
from stylora.samples.shared_context import share_contexts


def talk(*said: str, **more) -> Conversation:
    """`s...` a system prompt, `a...` an answer, anything else a user."""
    roles = {"s": "system", "a": "assistant"}
    messages = [{"role": roles.get(each[0], "user"), "content": each} for each in said]
    return conversation({"messages": messages, **more}, origin="", source="")


def shared(*rows: Conversation, least: int = 2, most: int = 8) -> tuple[list[list], dict[str, int]]:
    left_out: Counter[str] = Counter()
    made = list(share_contexts(rows, least=least, most=most, left_out=left_out))
    words = [[[each["content"] for each in part] for part in (row["main"], *row["branches"])] for row in made]
    return words, dict(+left_out)


def test_the_drawing():
    rows = [talk("s", "c", "a0", "q1", "a1"), talk("s", "c", "a0", "q2", "a2"), talk("s", "c", "a0", "q3", "a3", "q4", "a4")]
    assert shared(*rows) == ([[["s", "c", "a0"], ["q1", "a1"], ["q2", "a2"], ["q3", "a3", "q4", "a4"]]], {})


def test_a_system_prompt_alone_is_shared_by_single_questions():
    rows = [talk("s", f"q{n}", f"a{n}") for n in range(5)]
    made, left_out = shared(*rows, most=3)
    assert [len(row) - 1 for row in made] == [2, 3] and {tuple(row[0]) for row in made} == {("s",)} and left_out == {}


def test_what_is_left_out_is_counted():
    rows = [
        talk("q", "a"), talk("s1", "q", "a"), talk("s2", "q", "a1", "q2", "a2"), talk("s2", "other", "a1", "q2", "a2"),
        talk("s", "q", "a", tools=[{"name": "f"}]), talk("s3", "q1", "a1"), talk("s3", "q2", "a2"), talk("s3", "q1", "a1"),
    ]  # fmt: skip
    made, left_out = shared(*rows)
    assert made == [[["s3"], ["q1", "a1"], ["q2", "a2"]]]
    assert left_out == {"conversations that share no context": 4, "conversations with tools": 1, "conversations that stand there twice": 1}


def test_weights_go_with_the_answers():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    answers = [{"role": "assistant", "content": f"a{n}", "weight": n + 1} for n in (0, 1)]
    rows = [conversation({"messages": [*messages, answer]}, origin="", source="") for answer in answers]
    (made,) = share_contexts(rows, least=2, most=8, left_out=Counter())
    assert [branch.weights for branch in parse_row(made, "").branches] == [(0.0, 1.0), (0.0, 2.0)]


@given(st.lists(st.lists(st.sampled_from("xy"), min_size=1, max_size=4), max_size=12), st.integers(1, 3), st.integers(5, 7))
def test_nothing_is_lost_or_made_up(questions, least, most):
    rows = [talk("s", *(part for question in each for part in (question, "a" + question))) for each in questions]
    left_out: Counter[str] = Counter()
    made = list(share_contexts(rows, least=least, most=most, left_out=left_out))
    again = [[*row["main"], *branch] for row in made for branch in row["branches"]]
    there = [list(row.messages) for row in rows]
    assert all(each in there for each in again) and len(again) + sum(left_out.values()) == len(rows)
    assert all(least <= len(row["branches"]) <= most for row in made) and all(parse_row(row, "") for row in made)
