"""What a split hides: contradictions with their rows, and near copies, against a plain loop over all pairs."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from stylora.samples.conversations import Conversation, conversation
from stylora.samples.split_checks import contradictions, near_copies, normalised, without_frame


def row(question: str, answer: str, line: int = 0, **more) -> Conversation:
    return conversation({"prompt": question, "completion": answer, **more}, origin=f"rows.jsonl:{line}", source="rows")


def test_contradictions_name_their_rows():
    rows = [row("a", "x", 1), row("b", "x", 2), row("a", "y", 3), row("a", "x", 4), row("b", "x", 5), row("a", "y", 6, system="S")]
    assert contradictions(rows) == [("rows.jsonl:1", "rows.jsonl:4", "rows.jsonl:3")]
    assert contradictions([rows[0], rows[1], rows[3], rows[4], rows[5]]) == []


def test_a_contradiction_is_of_the_last_learned_answer_and_all_before_it():
    def talk(first: str, last: str) -> Conversation:
        turns = [("user", "a"), ("assistant", first), ("user", "b"), ("assistant", last), ("user", "c"), ("assistant", "-")]
        messages = [{"role": role, "content": text} for role, text in turns]
        messages[-1]["weight"] = 0
        return conversation({"messages": messages}, origin=last, source="rows")

    assert contradictions([talk("x", "1"), talk("x", "2")]) == [("1", "2")]
    assert contradictions([talk("x", "1"), talk("y", "2")]) == []


def test_normalised():
    assert normalised(["ＰＭ 10，是？", "12+35", "Bus, No. 3!"]) == ["pm是", "12+35", "busno"]
    assert without_frame(["请问公交车属于", "请问货车属于", "请问校车属于"]) == ["公交", "货", "校"]
    assert without_frame(["一", "一"]) == ["", ""] and without_frame([]) == []


QUESTIONS = st.text("公交货校车,是 1", min_size=1, max_size=9)


@given(st.lists(st.tuples(QUESTIONS, st.sampled_from("xy")), min_size=2, max_size=20), st.integers(1, 9))
def test_near_copies_are_those_of_a_plain_loop(made, cut):
    rows = [row(question.strip() or "?", answer) for question, answer in made]
    cut = min(cut, len(rows) - 1)
    texts = without_frame(normalised([each.messages[0]["content"] for each in rows]))
    expected = sum(
        bool(texts[h]) and any(
            made[t][1] == made[h][1] and Indel.normalized_similarity(texts[t], texts[h]) >= 0.8 for t in range(cut)
        )
        for h in range(cut, len(rows))
    )  # fmt: skip
    assert near_copies(rows[:cut], rows[cut:], 0) == (expected, len(rows) - cut)


def made_of(names: list[str]) -> list[Conversation]:
    """Each name in six wordings, with an answer that two names share."""
    forms = ("请问{}是哪种车型？", "{}", "把{}归类", "{}！", "麻烦看看{} 3", "车辆：{}")
    return [row(form.format(name), f"L{number // 2}", group=name) for number, name in enumerate(names) for form in forms]


def test_augmented_rows_are_near_copies_and_a_split_by_group_has_none():
    rng = np.random.default_rng(0)
    names = ["".join(chr(0x4E00 + n) for n in rng.integers(0, 9000, 7)) for _ in range(40)]
    rows = made_of(names)
    held = rng.permutation(len(rows))[:60].tolist()
    torn = near_copies([each for n, each in enumerate(rows) if n not in held], [rows[n] for n in held], 0)
    apart = near_copies([each for each in rows if each.group not in names[:10]], [each for each in rows if each.group in names[:10]], 0)
    assert torn[0] > 0.5 * torn[1] and torn[1] == 60 and apart[0] <= 0.1 * apart[1]


def test_many_rows_are_soon_compared_and_long_ones_sampled():
    rng = np.random.default_rng(0)

    def rows(count: int, length: int) -> list[Conversation]:
        return [row("".join(map(chr, rng.integers(0x4E00, 0x9000, length))), f"L{n % 2}") for n in range(count)]

    short = rows(5000, 14)
    begun = time.process_time()
    assert near_copies(short[:4000], short[4000:], 0) == (0, 500) and contradictions(short) == []
    assert time.process_time() - begun < 4
    assert near_copies(short[:4000], short[:1000], 0) == (500, 500)
    long = rows(600, 300)
    assert near_copies(long[:400], long[400:], 0) == (0, 200)
    copied = [*long[:400]] * 10, long[:400]
    assert near_copies(*copied, 0) == (400, 400), "the same question twice is compared once"
    many = rows(3000, 200)
    found, compared = near_copies(many, many, 0)
    assert found == compared and 20 <= compared < 500
