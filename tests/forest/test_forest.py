"""The drawings of DESIGN section 2 and of the docstrings, drawn by the code; chains, joins, parents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylora.forest import NO_ANCHORS, Anchors, Sample, build_trie, chain, edges, join, parents, visible
from stylora.forest import forest as module

S, U1, A1, U2, A2 = 5, 11, 12, 21, 22


def bare(ids: list[int]) -> Sample:
    return Sample(forest=chain(ids), edges=edges([], []))


def shared_prefix() -> Sample:
    return build_trie([bare([S, S, U1, A1]), bare([S, S, U2, A2])])


def drawing(seen: np.ndarray) -> list[str]:
    return ["".join("#" if cell else "." for cell in row) for row in seen]


def columns(sample: Sample) -> tuple[list[int], list[int], list[int]]:
    return sample.forest.time.tolist(), sample.forest.root.tolist(), sample.forest.end.tolist()


def test_plain_text_is_causal():
    plain = bare([1, 2, 3, 4])
    assert columns(plain) == ([0, 1, 2, 3], [0, 0, 0, 0], [4, 4, 4, 4])
    assert plain.forest.is_chain
    assert drawing(visible(plain.forest)) == ["#...", "##..", "###.", "####"]
    assert parents(plain.forest).tolist() == [-1, 0, 1, 2]


def test_packed_documents_do_not_see_each_other():
    packed = join([bare([1, 2]), bare([3, 4, 5])])
    assert packed.forest.ids.tolist() == [1, 2, 3, 4, 5]
    assert columns(packed) == ([0, 1, 0, 1, 2], [0, 0, 1, 1, 1], [2, 2, 5, 5, 5])
    assert not packed.forest.is_chain
    assert drawing(visible(packed.forest)) == ["#....", "##...", "..#..", "..##.", "..###"]
    assert parents(packed.forest).tolist() == [-1, 0, -1, 2, 3]


def test_branches_of_a_shared_prefix_do_not_see_each_other():
    tree = shared_prefix()
    assert tree.forest.ids.tolist() == [S, S, U1, A1, U2, A2]
    assert columns(tree) == ([0, 1, 2, 3, 2, 3], [0] * 6, [6, 6, 4, 4, 6, 6])
    assert not tree.forest.is_chain
    assert drawing(visible(tree.forest)) == ["#.....", "##....", "###...", "####..", "##..#.", "##..##"]
    assert parents(tree.forest).tolist() == [-1, 0, 1, 2, 1, 4]


def test_the_docstring_of_visible_shows_the_same_drawing():
    shown = [line.split()[-1] for line in (visible.__doc__ or "").splitlines() if line.strip() and line.split()[-1][0] == "#"]
    assert shown == drawing(visible(shared_prefix().forest))


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("plain text ", bare([1, 2, 3, 4])),
        ("packed ", join([bare([1, 2]), bare([3, 4, 5])])),
        ("shared prefix ", shared_prefix()),
    ],
)
def test_the_module_drawing_is_true(line: str, sample: Sample):
    (shown,) = [text for text in (module.__doc__ or "").splitlines() if text.strip().startswith(line)]
    time, end = shown.split("time")[1].split("end")
    assert [int(word) for word in time.split()] == sample.forest.time.tolist()
    assert [int(word) for word in end.split() if word.isdigit()] == sample.forest.end.tolist()


def test_the_docstring_of_join_is_true():
    packed = join([bare([1, 2]), bare([3, 4, 5])])
    (shown,) = [line for line in (join.__doc__ or "").splitlines() if "root" in line and "end" in line]
    time, rest = shown.split("time")[1].split("root")
    root, end = rest.split("end")
    assert [[int(word) for word in part.split()] for part in (time, root, end)] == list(columns(packed))


def test_join_shifts_edges_anchors_and_the_roots_of_forests():
    held = Anchors(source=np.array([1], np.int32), weight=np.array([0.5], np.float32))
    two_trees = join([bare([7]), Sample(forest=chain([1, 2]), edges=edges([0], [2], 3.0), anchors=held)])
    row = join([two_trees, bare([]), two_trees])
    assert row.forest.root.tolist() == [0, 1, 1, 2, 3, 3]
    assert row.forest.end.tolist() == [1, 3, 3, 4, 6, 6]
    assert (row.edges.source.tolist(), row.edges.target.tolist(), row.edges.weight.tolist()) == ([1, 4], [2, 2], [3.0, 3.0])
    assert (row.anchors.source.tolist(), row.anchors.weight.tolist()) == ([2, 5], [0.5, 0.5])


def test_one_weight_for_all_edges_or_one_each_and_the_dtypes_of_the_records():
    same, each = edges([0, 1], [5, 6], 2.0), edges([0, 1], [5, 6], np.array([1.0, 0.5]))
    assert same.weight.tolist() == [2.0, 2.0]
    assert each.weight.tolist() == [1.0, 0.5]
    row = join([Sample(forest=chain([1, 2]), edges=each), Sample(forest=chain([3]), edges=edges([], []))])
    for record, names in ((row.forest, "ids time branch root end"), (row.edges, "source target"), (row.anchors, "source")):
        assert {str(getattr(record, name).dtype) for name in names.split()} == {"int32"}
    assert row.edges.weight.dtype == row.anchors.weight.dtype == np.float32
    assert len(NO_ANCHORS) == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_visible_is_the_path_to_the_root(data, sample_lists):
    """Against brute force: a token sees itself, its parent, its parent's parent; nothing else."""
    samples = data.draw(sample_lists)
    for sample in (join(samples), build_trie(samples), join([build_trie(samples), *samples])):
        above = parents(sample.forest)
        expected = np.zeros((len(sample), len(sample)), bool)
        for query in range(len(sample)):
            key = query
            while key >= 0:
                expected[query, key] = True
                key = int(above[key])
        assert (visible(sample.forest) == expected).all()
