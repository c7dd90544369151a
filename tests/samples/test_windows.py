"""Windows cover every token, are no longer than told, overlap exactly, and end with sentences where they can."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stylora.samples.windows import cut_windows, sentence_end_table

END = np.array([False, True])  # token 1 ends a sentence


def text(marked: str) -> np.ndarray:
    """`ab|c` -> 0 1 0: a token before | ends a sentence."""
    return np.array([int(marked[i + 1 : i + 2] == "|") for i, letter in enumerate(marked) if letter != "|"])


def test_the_drawing_of_the_module():
    assert cut_windows(text("abcdefg|hijklmnopq|rs"), END, 8, 0, 3).tolist() == [[0, 7], [7, 15], [15, 19]]
    assert cut_windows(text("abcdefghij"), END, 8, 0, 3).tolist() == [[0, 5], [5, 10]]
    assert cut_windows(text("abcdefghij"), END, 8, 0, 2).tolist() == [[0, 8], [8, 10]]
    assert cut_windows(text("abcdefghijkl"), END, 8, 2, 3).tolist() == [[0, 8], [6, 12]]


def test_a_run_of_ends_stays_together():
    """。」 and a newline: the cut comes after the last of them, or, where that does not fit, at an earlier sentence."""
    assert cut_windows(text("abcde|f|g|hijk"), END, 8, 0, 1)[0].tolist() == [0, 7]
    assert cut_windows(text("abcdef|gh|i|jk"), END, 8, 0, 1)[0].tolist() == [0, 6]


def test_even_halves_meet_at_a_sentence_near_the_middle():
    """16 wide, 20 tokens, a tail of 4 < 6: the middle is 10, a sentence ends at 9."""
    assert cut_windows(text("abcdefghi|jklmnopqrst"), END, 16, 0, 6).tolist() == [[0, 9], [9, 20]]


def test_text_shorter_than_everything_is_kept():
    assert cut_windows(text("ab"), END, 8, 0, 4).tolist() == [[0, 2]]
    assert cut_windows(text(""), END, 8, 0, 4).shape == (0, 2)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_properties(data):
    window = data.draw(st.integers(1, 40))
    overlap = data.draw(st.integers(0, window - 1))
    min_window = data.draw(st.integers(1, max(1, window // 2)))
    ids = np.array(data.draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=200)))
    windows = cut_windows(ids, END, window, overlap, min_window)
    starts, ends = windows.T
    lengths = ends - starts
    assert starts[0] == 0 and ends[-1] == len(ids)
    assert (starts[1:] == ends[:-1] - overlap).all()  # covered without a gap, and repeated exactly as asked
    assert (ends[1:] > ends[:-1]).all() and lengths.max() <= window
    assert lengths.min() >= min(min_window, len(ids))
    assert (windows == cut_windows(ids.copy(), END, window, overlap, min_window)).all()
    assert windows.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=30, max_size=200))
def test_a_window_is_cut_inside_a_sentence_only_where_its_last_quarter_has_no_end(tokens):
    ids = np.array(tokens)
    borders = {i + 1 for i in range(len(ids)) if ids[i] == 1 and (i + 1 == len(ids) or ids[i + 1] == 0)}
    for start, end in cut_windows(ids, END, 16).tolist()[:-1]:
        assert end == max((b for b in borders if start + 12 <= b <= start + 16), default=start + 16)


def test_sentence_ends_of_a_vocabulary(bpe):
    table = sentence_end_table(bpe)
    vocabulary = bpe.get_vocab()
    assert table.shape == (len(vocabulary),)

    def ends(word: str) -> bool:
        ids = bpe.encode(word, add_special_tokens=False).ids
        return bool(table[ids[-1]])

    assert all(ends(mark) for mark in ("。", "！", "？", "……", "”", "\n", ".", "!", "?", "。\n", "。”"))
    assert not any(ends(word) for word in ("，", "、", "“", "他", "a", " ", "：", ".a"))
    for token in range(0, len(table), 7):
        assert table[token] == bpe.decode([token], skip_special_tokens=False).endswith(tuple("。！？….!?」』”’\n"))


@pytest.mark.parametrize("size", [151_936])
def test_a_large_vocabulary_takes_one_pass(size):
    words = {f"词{i}": i for i in range(size - 1)} | {"好。": size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="词0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    table = sentence_end_table(tokenizer)
    assert table.shape == (size,) and np.flatnonzero(table).tolist() == [size - 1]
