"""Fill in the middle: the drawings, the window comes back whole, which tokens are learned, shares, and where it is refused."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from stylora.errors import UserError
from stylora.samples.fim import FAMILIES, FimTokens, fim, find_fim_tokens
from stylora.samples.objective import Objective, Vocabulary, build_sample, check_vocabulary, read_vocabulary

P, S, M, END = 900, 901, 902, 903
TOKENS = FimTokens(prefix=P, suffix=S, middle=M, end=END)


def draw(ids, seed, *, suffix_first, middle_only=False):
    return fim(np.asarray(ids, np.int32), np.random.default_rng(seed), tokens=TOKENS, suffix_first=suffix_first, middle_only=middle_only)


def learned(sample) -> list[tuple[int, int, int]]:
    """(place, token there, token predicted from there)."""
    row = sample.forest.ids
    return [(s, row[s], t) for s, t in zip(sample.edges.source.tolist(), sample.edges.target.tolist(), strict=True)]


def parts(row: list[int]) -> tuple[list[int], list[int], list[int]]:
    """(prefix, middle or prefix + middle, suffix) as the sentinels mark them."""
    s, m = row.index(S), row.index(M)
    assert row[0] == P and row.count(P) == row.count(S) == row.count(M) == 1 and s < m
    return (row[1:s], row[m + 1 :], row[s + 1 : m])


a, b, c, d, e = range(5)
PSM = [P, a, b, S, d, e, M, c]
SPM = [P, S, d, e, M, a, b, c]


@pytest.mark.parametrize(
    ("suffix_first", "middle_only", "row", "expected"),
    [
        (False, False, PSM, [(P, a), (a, b), (S, d), (d, e), (M, c), (c, END)]),
        (False, True, PSM, [(M, c), (c, END)]),
        (True, False, SPM, [(S, d), (d, e), (M, a), (a, b), (b, c), (c, END)]),
        (True, True, SPM, [(b, c), (c, END)]),
    ],
)
def test_the_drawings_of_the_module(suffix_first, middle_only, row, expected):
    """Some seed cuts the text as the drawing does: prefix a b, middle c, suffix d e."""
    for seed in count():
        sample = draw(range(5), seed, suffix_first=suffix_first, middle_only=middle_only)
        if sample.forest.ids.tolist() == row and len(sample.edges) == len(expected):
            break
    assert [(token, target) for _, token, target in learned(sample)] == expected
    assert sample.forest.is_chain and sample.forest.time.tolist() == list(range(8))
    assert sample.edges.weight.tolist() == [1] * len(expected)


@given(length=st.integers(1, 80), seed=st.integers(0, 2**32), suffix_first=st.booleans())
def test_the_window_comes_back_whole(length, seed, suffix_first):
    ids = np.random.default_rng(seed).integers(0, 900, size=length).tolist()
    before, rest, suffix = parts(draw(ids, seed, suffix_first=suffix_first).forest.ids.tolist())
    assert not (suffix_first and before), "in SPM the prefix stands with the middle"
    assert before + rest + suffix == ids


@given(length=st.integers(1, 80), seed=st.integers(0, 2**32), suffix_first=st.booleans())
def test_what_is_learned(length, seed, suffix_first):
    """`all`: every token of the window but the first of what no token stands before; never a sentinel; the end of text last.

    `middle`: the middle and the end of text, a part of `all`, and the last edge leaves the last token.
    """
    ids = np.arange(length)
    everything = draw(ids, seed, suffix_first=suffix_first)
    middle = draw(ids, seed, suffix_first=suffix_first, middle_only=True)
    assert (everything.forest.ids == middle.forest.ids).all()
    row = everything.forest.ids.tolist()
    assert sorted(t for *_, t in learned(everything)) == [*range(length), END], "each token of the window once, and the end"
    for place, _, target in learned(everything):
        assert target == (row[place + 1] if place + 1 < len(row) else END)
    assert learned(everything)[-1] == (length + 2, row[-1], END)
    count_ = len(learned(middle))
    assert 1 <= count_ <= length + 1 and learned(middle) == learned(everything)[-count_:]
    if not suffix_first:
        assert count_ == len(row) - row.index(M), "in PSM all that follows <M> is the middle"
    else:
        other = draw(ids, seed, suffix_first=False, middle_only=True)
        assert [t for *_, t in learned(other)] == [t for *_, t in learned(middle)], "the order changes nothing about what the middle is"


def test_cuts_are_spread_over_the_whole_window():
    """Prefix, middle and suffix are each a third of it on average (two uniform cuts), and each may be empty."""
    rows = [draw(range(30), seed, suffix_first=False).forest.ids.tolist() for seed in range(3000)]
    sizes = np.array([[len(part) for part in parts(row)] for row in rows])
    assert (abs(sizes.mean(0) - 10) < 0.7).all()
    assert (sizes.min(0) == 0).all() and (sizes.max(0) == 30).all()


def test_rates():
    """Half of the windows are reordered, a third of those as SPM."""
    objective = Objective(kind="fim", fim_rate=0.5, spm_rate=1 / 3)
    vocabulary = Vocabulary(ordinary=np.arange(900, dtype=np.int32), fim=TOKENS)
    ids, kinds = np.arange(20, dtype=np.int32), []
    for number in range(3000):
        sample = build_sample(objective, ids, vocabulary=vocabulary, key=(0, 0, 1, number))
        row = sample.forest.ids.tolist()
        kinds.append("clm" if row == ids.tolist() else "spm" if row[:2] == [P, S] and row[2:3] != [M] else "psm")
        if kinds[-1] == "clm":
            assert sample.edges.target.tolist() == ids[1:].tolist()
    assert abs(kinds.count("clm") / 3000 - 0.5) < 0.05
    # a PSM window with an empty prefix begins <P> <S> as well: one in 21 / 2
    assert abs(kinds.count("spm") / (3000 - kinds.count("clm")) - (1 / 3 + 2 / 3 * 0.09)) < 0.06


def test_loss_middle_reaches_the_sample():
    vocabulary = Vocabulary(ordinary=np.arange(900, dtype=np.int32), fim=TOKENS)
    built = [
        build_sample(Objective(kind="fim", fim_rate=1.0, loss=loss), np.arange(50, dtype=np.int32), vocabulary=vocabulary, key=(0, 0, 1, 2))
        for loss in ("all", "middle")
    ]
    assert built[0].forest.ids.tolist() == built[1].forest.ids.tolist()
    assert len(built[1].edges) < len(built[0].edges) == 51


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizers_own_tokens(family):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(["<other>", *family])
    ids = [tokenizer.token_to_id(token) for token in family]
    assert find_fim_tokens(tokenizer) == FimTokens(prefix=ids[0], suffix=ids[1], middle=ids[2], end=ids[3])


def test_vocabulary_of_a_tokenizer(tokenizer):
    """Ordinary tokens are all but the added ones; the FIM tokens are found."""
    vocabulary = read_vocabulary(tokenizer.backend_tokenizer)
    assert vocabulary.ordinary.tolist() == list(range(256))
    ids = tokenizer.convert_tokens_to_ids(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"])
    assert vocabulary.fim == FimTokens(prefix=ids[0], suffix=ids[1], middle=ids[2], end=ids[3])


def test_refused_without_fim_tokens(bpe):
    vocabulary = read_vocabulary(bpe)
    assert vocabulary.fim is None
    with pytest.raises(UserError, match="objective.kind: got fim, expected a base whose tokenizer has fill-in-the-middle tokens"):
        check_vocabulary(Objective(kind="fim"), vocabulary)
    for kind in ("clm", "span"):
        check_vocabulary(Objective(kind=kind), vocabulary)
