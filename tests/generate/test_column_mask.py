"""The mask of one column: drawn, and the same as the mask of the whole rows that training reads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PretrainedConfig

from stylora.generate.column_mask import TRUNK, Places, column_mask, sees


def places(tree, branch, time) -> Places:
    return Places(*(torch.tensor(column, dtype=torch.int64) for column in (tree, branch, time)))


KEYS = ([0] * 8, [TRUNK, TRUNK, 0, 0, 1, 1, 0, 1], [0, 1, 2, 3, 2, 3, 4, 4])  # a b  c d  x y  and the queries e, z themselves
DRAWN = {False: ["####..#.", "##..##.#"], True: ["#######.", "######.#"]}


def drawing(visible: torch.Tensor) -> list[str]:
    return ["".join("#" if cell else "." for cell in row) for row in visible]


@pytest.mark.parametrize("columnar", [False, True])
def test_the_drawing(columnar):
    assert drawing(sees(places([0, 0], [0, 1], [4, 4]), places(*KEYS), columnar=columnar)) == DRAWN[columnar]


def test_another_tree_is_never_seen():
    query = places([7, 7], [3, 4], [5, 5])
    for columnar in (False, True):
        assert not sees(query, places(*KEYS), columnar=columnar).any()


def by_hand(query: tuple[int, int, int], key: tuple[int, int, int], columnar: bool, window: int | None) -> bool:
    (tree, branch, time), (key_tree, key_branch, key_time) = query, key
    near = window is None or time - key_time < window
    if tree != key_tree or not near:
        return False
    if columnar and key_time < time:
        return True
    return (key_branch == branch and key_time <= time) or (not columnar and key_branch == TRUNK and key_time <= time)


@given(st.data())
def test_every_pair(data):
    """Random trees: a trunk of each, branches behind it; windows by layer type."""
    columns, rows = [], []
    for tree in range(data.draw(st.integers(1, 3))):
        trunk = data.draw(st.integers(1, 4))
        columns += [(tree, TRUNK, time) for time in range(trunk)]
        for branch in range(data.draw(st.integers(1, 3))):
            length = data.draw(st.integers(1, 4))
            columns += [(tree, 10 * tree + branch, trunk + time) for time in range(length)]
            rows.append(len(columns) - 1)
    columnar, window = data.draw(st.booleans()), data.draw(st.integers(1, 6))
    keys = places(*zip(*columns, strict=True))
    query = places(*zip(*(columns[i] for i in rows), strict=True))
    config = PretrainedConfig()
    config.sliding_window, config.layer_types = window, ["full_attention", "sliding_attention"]
    masks = column_mask(query, keys, config, torch.float32, columnar=columnar)
    for kind, wide in (("full_attention", None), ("sliding_attention", window)):
        want = np.array([[by_hand(columns[q], key, columnar, wide) for key in columns] for q in rows])
        assert masks[kind].shape == (1, 1, *want.shape)
        np.testing.assert_array_equal(masks[kind][0, 0] == 0, want)


@pytest.mark.parametrize(("settings", "windowed"), [
    ({}, False), ({"sliding_window": 2}, True), ({"sliding_window": 2, "layer_types": ["full_attention"] * 2}, False),
    ({"sliding_window": 2, "layer_types": ["sliding_attention"]}, True), ({"sliding_window": None}, False),
])  # fmt: skip
def test_one_mask_where_all_layers_are_alike(settings, windowed):
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda: config
    mask = column_mask(places([0], [0], [4]), places(*KEYS), config, torch.bfloat16)
    assert mask.dtype == torch.bfloat16 and mask.shape == (1, 1, 1, 8)
    assert drawing(mask[0, 0] == 0) == ["...#..#." if windowed else "####..#."]
    assert bool((mask[mask != 0] == torch.finfo(torch.bfloat16).min).all())


def test_other_kinds_of_layers_get_none():
    config = SimpleNamespace(sliding_window=None, layer_types=["linear_attention", "full_attention"])
    config.get_text_config = lambda: config
    masks = column_mask(places([0], [0], [4]), places(*KEYS), config, torch.float32)
    assert masks["linear_attention"] is None and masks["full_attention"] is not None
