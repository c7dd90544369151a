"""Matches with the training text against trying every piece of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.evaluate.copying import DEPTH, TrainingText

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
FEW = st.text(alphabet="天地", max_size=60)  # two letters: long matches by chance, each in many places
MORE = st.text(alphabet="天地玄黄𠀀 \n", max_size=60)


def stands_in(training: list[str], piece: str) -> bool:
    return any(piece in "".join(text.split()) for text in training)


def brute_force(training: list[str], text: str, run: int) -> tuple[int, str, float]:
    """(longest match, the first such piece, share covered by matches of at least `run`)"""
    body = "".join(text.split())
    pieces = sorted((-length, i) for i in range(len(body)) for length in range(1, len(body) - i + 1))
    longest = next(((-length, i) for length, i in pieces if stands_in(training, body[i : i - length])), (0, 0))
    covered = [False] * len(body)
    for i in range(len(body) - run + 1):
        if stands_in(training, body[i : i + run]):
            covered[i : i + run] = [True] * run
    return longest[0], body[longest[1] : longest[1] + longest[0]], sum(covered) / len(body) if body else 0.0


@settings(max_examples=150, deadline=None)
@given(data=st.data(), letters=st.sampled_from([FEW, MORE]), run=st.integers(1, 30))
def test_equal_to_trying_every_piece(data, letters, run):
    training = data.draw(st.lists(letters, max_size=4))
    text = data.draw(letters)
    if training and data.draw(st.booleans()):  # copies longer than the index is deep
        source = "".join(training)
        a, b = sorted((data.draw(st.integers(0, len(source))), data.draw(st.integers(0, len(source)))))
        text = text[:20] + source[a:b] + text[20:]
    length, piece, share = brute_force(training, text, run)
    index = TrainingText(training)
    assert index.longest_match(text) == (length, piece)
    assert index.copied_share(text, run) == share


def test_longer_than_the_index_is_deep_the_longest_of_several_places_wins():
    common = "一二三四五六七八九十甲乙丙丁戊己庚辛壬癸子丑寅卯"
    assert len(common) == DEPTH
    index = TrainingText([common + "辰", common + "辰巳午", common + "辰巳", common])
    assert index.longest_match("前" + common + "辰巳午未") == (DEPTH + 3, common + "辰巳午")
    assert index.longest_match(common + "未") == (DEPTH, common)


def test_no_match_runs_from_one_text_into_the_next():
    index = TrainingText(["天地", "玄黄"])
    assert index.longest_match("天地玄黄") == (2, "天地")
    assert index.longest_match("地\0玄") == (1, "地")
    assert index.copied_share("天地玄黄", 2) == 1.0 and index.copied_share("天地玄黄", 3) == 0.0


def test_white_space_does_not_count_and_punctuation_does():
    index = TrainingText(["却说\n　　那日，天色 已晚。"])
    assert index.longest_match("却说那日，\n天色已晚。") == (10, "却说那日，天色已晚。")
    assert index.longest_match("却说那日天色已晚") == (4, "却说那日")


def test_overlap_is_by_characters_of_all_texts():
    index = TrainingText(["甲乙丙丁戊己庚辛"])
    assert index.overlap(["甲乙丙丁戊", "一二三"], run=5) == 5 / 8
    assert index.overlap(["乙丙丁", "戊己庚"], run=4) == 0.0, "a run is of one text"
    assert index.overlap([]) == 0.0 == index.overlap(["", " "])


@pytest.mark.parametrize("training", [[], [""], [" \n"], ["", ""]])
def test_nothing_to_copy_from(training):
    index = TrainingText(training)
    assert index.longest_match("天地") == (0, "") and index.copied_share("天地", 1) == 0.0


def test_a_long_text_repeated_is_no_trouble():
    index = TrainingText(["天" * 5000])
    assert index.longest_match("地" + "天" * 4000)[0] == 4000
    assert index.copied_share("天" * 4000) == 1.0


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the public corpora are not there")
def test_a_novel_against_another():
    paths = [CORPUS / "style" / f"{name}.txt" for name in ("绿牡丹", "五鼠闹东京")]
    book, other = (path.read_text(encoding="utf-8") for path in paths)
    index = TrainingText([book])
    rng = np.random.default_rng(0)
    squeezed, unseen = "".join(book.split()), "".join(other.split())
    for start in rng.integers(0, len(squeezed) - 300, size=5):
        copied = squeezed[start : start + 60]
        text = unseen[start % 9000 :][:70] + copied + unseen[:70]
        length, piece = index.longest_match(text)
        assert length >= 60 and copied in piece
        assert 60 / 200 <= index.copied_share(text) <= 70 / 200
    assert index.overlap([other]) < 0.01 and index.overlap([book[5000:90_000]]) == 1.0
    passage = unseen[3000:3400]
    assert index.longest_match(passage)[:2] == brute_force_by_length(squeezed, passage)


def brute_force_by_length(training: str, text: str) -> tuple[int, str]:
    length = 0
    while any(text[i : i + length + 1] in training for i in range(len(text) - length)):
        length += 1
    return length, next(text[i : i + length] for i in range(len(text)) if text[i : i + length] in training)
