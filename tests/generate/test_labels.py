"""Labels on a tree: the log probabilities of every label written out by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.generate.labels import common_prefix, forest_of, label_trie, score_labels
from stylora.model.forest_model import ForestModel

END = 9


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def plainly(model, question: np.ndarray, label: np.ndarray) -> float:
    """The sum over a chain of its own, in float64."""
    row = torch.from_numpy(np.concatenate([question, label]).astype(np.int64))[None]
    with torch.no_grad():
        scores = model(input_ids=row).logits[0].double().log_softmax(-1)
    return sum(scores[len(question) - 1 + i, token].item() for i, token in enumerate(label))


@pytest.fixture(scope="module")
def model(random_model):
    return ForestModel(random_model("Qwen3"), words=300)


def test_the_trie_is_the_drawing():
    trie = label_trie([ids(5, 6, END), ids(5, 7, END), ids(8, END)])
    assert trie.ids.tolist() == [5, 6, 7, 8] and trie.time.tolist() == [0, 1, 1, 0] and trie.end.tolist() == [3, 2, 3, 4]
    # -1 -> 5 and 8, 5 -> 6 and 7, then the ends
    led = sorted(zip(trie.source.tolist(), trie.target.tolist(), strict=True))
    assert led == [(-1, 5), (-1, 8), (0, 6), (0, 7), (1, 9), (2, 9), (3, 9)]
    assert trie.member.sum(1).tolist() == [3, 3, 2]


def test_the_row_is_the_drawing():
    one = label_trie([ids(5, END), ids(6, END)])
    row = forest_of([ids(1, 1, 2), ids(1, 1, 3)], [one, one])
    assert row.ids[0].tolist() == [1, 1, 2, 5, 6, 3, 5, 6] and row.end[0].tolist() == [8, 8, 5, 4, 5, 8, 7, 8]
    assert row.time[0].tolist() == [0, 1, 2, 3, 3, 2, 3, 3]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(10, 14), min_size=1, max_size=5), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(15, 17), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5, unique=True),
    st.sampled_from([0, 20, 2048]), st.booleans(),
)  # fmt: skip
def test_as_if_each_label_stood_alone(model, questions, labels, room, packs):
    asked = [ids(*question) for question in questions]
    named = [ids(*label, END) for label in labels]
    trie = label_trie(named)
    found = score_labels(model, asked, [trie] * len(asked), packs=packs, tokens_at_once=room)
    for question, scores in zip(asked, found, strict=True):
        np.testing.assert_allclose(scores, [plainly(model.model, question, label) for label in named], atol=1e-4)


def test_a_set_of_its_own_for_each_question(model):
    one, other = label_trie([ids(5, END), ids(6, END)]), label_trie([ids(7, 8, END)])
    asked = [ids(1, 2, 3), ids(1, 2), ids(1, 2, 3)]
    found = score_labels(model, asked, [one, other, one], packs=True)
    assert [len(scores) for scores in found] == [2, 1, 2]
    np.testing.assert_allclose(found[1], [plainly(model.model, asked[1], ids(7, 8, END))], atol=1e-4)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)


def test_a_prefix_leaves_something_of_each():
    assert common_prefix([ids(1, 2, 3), ids(1, 2, 4)]) == 2
    assert common_prefix([ids(1, 2), ids(1, 2)]) == 1 and common_prefix([ids(1), ids(2)]) == 0
