"""Passages: what is dropped, how documents are cut, and that no document is on both sides of a fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.evaluate.passages import FOLDS, cut, plain


def body(name: str, length: int) -> str:
    """`length` different characters, of which those of two names share none: a passage tells its document and its place."""
    start = 0x4E00 + 400 * "甲乙丙丁戊己庚辛壬癸".index(name)
    return "".join(map(chr, range(start, start + length)))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("text, expected", [
    ("　　却说那日，\n天色 已晚。", "却说那日，天色已晚。"),
    ("使用 React 18 的 `useState`：", "使用的："),
    ("他说:「好!」", '他说："好！"'), ("他说：“好！”", '他说："好！"'), ("她问：『真的?』", '她问："真的？"'),
    ("|表|格|\n|---|---|\n# 标题 * **重点**", "表格标题重点"), ("天……——", "天……——"), ("𠀀㐀", "𠀀㐀"),
    ("Plain English, 123.", ""), ("……", ""), ("", ""),
])  # fmt: skip
def test_what_a_voice_is_made_of(text, expected):
    assert plain(text) == expected


def test_documents_are_cut_one_after_the_other():
    documents = [body(name, 35) for name in "甲乙丙丁戊"]
    found = cut(documents, 10, most=99, rng=rng())
    assert found.texts == [each[start : start + 10] for each in documents for start in (0, 10, 20)]
    assert found.unit.tolist() == [number for number in range(5) for _ in range(3)] and found.apart


def test_short_documents_are_joined_and_a_rest_is_dropped():
    documents = [body("甲", 6), body("乙", 6), body("丙", 25), body("丁", 9), body("戊", 3)]
    found = cut(documents, 12, most=99, rng=rng())
    assert found.texts == [documents[0] + documents[1], documents[2][:12], documents[2][12:24], documents[3] + documents[4]]
    assert not found.apart, "three units are too few to hold whole ones out five times"


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 120), max_size=10), most=st.integers(1, 60), length=st.integers(3, 20), seed=st.integers(0, 99)
)
def test_folds(lengths, most, length, seed):
    documents = [body(name, n) for name, n in zip("甲乙丙丁戊己庚辛壬癸", lengths, strict=False)]
    found = cut(documents, length, most=most, rng=np.random.default_rng(seed))
    everything = "".join(documents)
    assert len(found) == len(found.unit) == len(found.fold) <= most
    assert all(len(text) == length and set(text) <= set(everything) for text in found.texts) and len(set(found.texts)) == len(found)
    long = [text for text in found.texts if text in everything]
    assert long == sorted(long, key=everything.index), "in the order of the text"
    if len(found) >= FOLDS:
        assert set(found.fold.tolist()) == set(range(FOLDS))
    for unit in np.unique(found.unit):
        assert len(np.unique(found.fold[found.unit == unit])) == 1
    if found.apart:
        fold_of: dict[str, set] = {}
        for text, fold in zip(found.texts, found.fold, strict=True):
            for n, document in enumerate(documents):
                if set(text) & set(document) and len(document) >= length:
                    fold_of.setdefault(str(n), set()).add(fold)
        assert all(len(folds) == 1 for folds in fold_of.values())


def test_long_documents_do_not_crowd_short_ones_out():
    documents = [body(name, n) for name, n in zip("甲乙丙丁戊", (400, 400, 40, 50, 30), strict=True)]
    found = cut(documents, 10, most=25, rng=rng())
    assert np.bincount(found.unit).tolist() in ([7, 7, 4, 4, 3], [6, 7, 4, 5, 3], [7, 6, 4, 5, 3]), "as equal as their lengths allow"


def test_folds_are_of_about_one_size():
    documents = [body(name, n) for name, n in zip("甲乙丙丁戊己庚辛", (300, 100, 100, 100, 100, 100, 100, 300), strict=True)]
    found = cut(documents, 10, most=999, rng=rng())
    assert sorted(np.bincount(found.fold).tolist()) == [20, 20, 20, 30, 30]


def test_few_documents_are_held_out_in_stretches():
    found = cut([body("甲", 200), body("乙", 100)], 10, most=999, rng=rng())
    assert not found.apart and found.fold.tolist() == [n // 6 for n in range(30)]
    assert found.unit.tolist() == found.fold.tolist()


def test_other_seeds_choose_others():
    documents = [body(name, 300) for name in "甲乙丙丁戊"]
    assert len({tuple(cut(documents, 10, most=20, rng=np.random.default_rng(seed)).texts) for seed in range(4)}) == 4
    assert cut(documents, 10, most=20, rng=rng()).texts == cut(documents, 10, most=20, rng=rng()).texts
