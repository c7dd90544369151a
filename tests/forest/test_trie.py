"""A trie says what its samples say: the same paths, the same edges with summed weights, in depth-first order."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylora.forest import MASK, Anchors, Forest, Sample, build_trie, chain, edges, join, merge, parents
from stylora.forest.trie import Trie, chains

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def paths(sample: Sample) -> list[tuple[tuple[int, int], ...]]:
    """The (token, branch) pairs from the root to each token, by `k <= q < end[k]` alone."""
    forest = sample.forest
    pairs = list(zip(forest.ids.tolist(), forest.branch.tolist(), strict=True))
    return [tuple(pairs[k] for k in range(q + 1) if q < forest.end[k]) for q in range(len(forest))]


def told(samples: list[Sample]) -> Counter:
    """What is learned: weight by (path, target). All drawn weights are halves, so the sums are exact."""
    total: Counter = Counter()
    for sample in samples:
        ways = paths(sample)
        for s, t, w in zip(sample.edges.source, sample.edges.target, sample.edges.weight, strict=True):
            total[ways[s], int(t)] += float(w)
    return total


@quick
@given(data=st.data())
def test_a_trie_keeps_every_path_and_every_edge(data, sample_lists):
    samples = data.draw(sample_lists)
    trie = build_trie(samples)
    assert told([trie]) == told(samples)
    ways = paths(trie)
    assert set(ways) == {way for sample in samples for way in paths(sample)}
    assert len(ways) == len(set(ways)), "a prefix stands twice"
    pairs = list(zip(trie.edges.source.tolist(), trie.edges.target.tolist(), strict=True))
    assert pairs == sorted(set(pairs)), "an edge stands twice"


@quick
@given(data=st.data())
def test_taken_apart_a_trie_is_its_chains(data, sample_lists):
    """One for each leaf; together they say what it says, edge by edge and anchor by anchor."""
    trie = build_trie(data.draw(sample_lists))
    apart = chains(trie)
    ends = trie.forest.end.tolist()
    assert len(apart) == sum(end == index + 1 for index, end in enumerate(ends))
    assert all((each.forest.end == len(each)).all() and (each.forest.time == np.arange(len(each))).all() for each in apart)
    assert told(apart) == told([trie]) and sum(len(each.edges) for each in apart) == len(trie.edges)
    again = build_trie(apart)
    for name in ("ids", "time", "branch", "root", "end"):
        assert getattr(again.forest, name).tolist() == getattr(trie.forest, name).tolist()
    assert again.anchors.source.tolist() == trie.anchors.source.tolist()
    assert again.anchors.weight.tolist() == trie.anchors.weight.tolist()


@quick
@given(data=st.data())
def test_a_trie_lies_in_depth_first_order(data, sample_lists):
    forest = build_trie(data.draw(sample_lists)).forest
    above = parents(forest).tolist()
    end = list(range(1, len(forest) + 1))
    for index in reversed(range(len(forest))):  # brute force: a subtree ends where its last descendant ends
        if above[index] >= 0:
            end[above[index]] = max(end[above[index]], end[index])
    assert forest.end.tolist() == end
    assert forest.time.tolist() == [0 if a < 0 else int(forest.time[a]) + 1 for a in above]
    assert forest.root.tolist() == (np.cumsum(forest.time == 0) - 1).tolist()
    for index, a in enumerate(above):
        inside = a < index and forest.end[a] >= forest.end[index] if a >= 0 else True
        assert inside, "a subtree reaches out of its parent's"


@quick
@given(data=st.data())
def test_trees_and_forests_merge_as_their_chains_do(data, sample_lists):
    first, second = data.draw(sample_lists), data.draw(sample_lists)
    at_once = build_trie([*first, *second])
    by_parts = build_trie([build_trie(first), join(second)])
    assert told([by_parts]) == told([at_once])
    assert by_parts.forest.ids.tolist() == at_once.forest.ids.tolist()
    assert by_parts.forest.end.tolist() == at_once.forest.end.tolist()


@quick
@given(data=st.data())
def test_cost_is_what_a_chain_adds(data, sample_lists):
    trie = Trie()
    for sample in data.draw(sample_lists):
        before, cost = len(trie), trie.cost(sample)
        trie.add(sample)
        assert len(trie) - before == cost


def test_identical_samples_merge_with_weight_and_the_docstring_order_holds():
    s, u1, a1, u2, a2 = 5, 11, 12, 21, 22
    one = Sample(forest=chain([s, s, u1, a1]), edges=edges([2], [a1]))
    other = Sample(forest=chain([s, s, u2, a2]), edges=edges([2], [a2], 0.5))
    twice = build_trie([one, one])
    assert twice.forest.ids.tolist() == [s, s, u1, a1]
    assert (twice.edges.source.tolist(), twice.edges.target.tolist(), twice.edges.weight.tolist()) == ([2], [a1], [2.0])
    both = build_trie([one, other])
    assert both.forest.ids.tolist() == [s, s, u1, a1, u2, a2]
    assert (both.edges.source.tolist(), both.edges.weight.tolist()) == ([2, 4], [1.0, 0.5])


def test_two_answers_leave_one_source():
    """s -> a and s -> b diverge after s: two edges, one hidden state."""
    trie = build_trie([Sample(forest=chain([1, 7]), edges=edges([0], [7])), Sample(forest=chain([1, 8]), edges=edges([0], [8]))])
    assert (trie.edges.source.tolist(), trie.edges.target.tolist()) == ([0, 0], [7, 8])


def test_masks_merge_with_masks_and_not_with_words():
    bare = edges([], [])
    trie = build_trie([Sample(forest=chain(ids), edges=bare) for ids in ([1, MASK], [1, MASK, 4], [1, 3])])
    assert trie.forest.ids.tolist() == [1, MASK, 4, 3]


def test_equal_tokens_of_different_branch_coordinates_stay_apart():
    def on(branch: int) -> Sample:
        plain = chain([1, 2])
        forest = Forest(ids=plain.ids, time=plain.time, branch=np.array([0, branch], np.int32), root=plain.root, end=plain.end)
        return Sample(forest=forest, edges=edges([1], [9]))

    trie = build_trie([on(1), on(2), on(1)])
    assert trie.forest.ids.tolist() == [1, 2, 2]
    assert trie.forest.branch.tolist() == [0, 1, 2]
    assert trie.edges.weight.tolist() == [2.0, 1.0]


def test_anchors_of_one_place_add_up_and_empty_samples_vanish():
    def anchored(ids: list[int], at: int) -> Sample:
        held = Anchors(source=np.array([at], np.int32), weight=np.array([0.5], np.float32))
        return Sample(forest=chain(ids), edges=edges([], []), anchors=held)

    nothing = Sample(forest=chain([]), edges=edges([], []))
    trie = build_trie([anchored([1, 2], 1), nothing, anchored([9], 0), anchored([1, 2], 1)])
    assert trie.forest.ids.tolist() == [1, 2, 9]
    assert (trie.anchors.source.tolist(), trie.anchors.weight.tolist()) == ([1, 2], [1.0, 0.5])
    assert len(build_trie([nothing])) == 0
    assert build_trie([nothing]).edges.weight.dtype == np.float32


@quick
@given(st.data())
def test_merged_edges_are_found_again(sample_lists, data):
    """Each sample's edges, told where they went: same target, sources at the end of the same path; none of the forest's is left over."""
    samples = data.draw(sample_lists)
    whole, became = merge(samples)
    assert whole.forest.ids.tolist() == build_trie(samples).forest.ids.tolist()
    weight = np.zeros(len(whole.edges))
    for sample, own in zip(samples, became, strict=True):
        assert len(own) == len(sample.edges)
        np.add.at(weight, own, sample.edges.weight)
        for edge, place in enumerate(own):
            assert whole.edges.target[place] == sample.edges.target[edge]
            assert path_to(whole, whole.edges.source[place]) == path_to(sample, sample.edges.source[edge])
    np.testing.assert_allclose(weight, whole.edges.weight, rtol=1e-6)


def path_to(sample, index: int) -> list[tuple[int, int]]:
    """(token, branch) from the root to a place."""
    above, path = parents(sample.forest), []
    while index >= 0:
        path.append((int(sample.forest.ids[index]), int(sample.forest.branch[index])))
        index = int(above[index])
    return path[::-1]


def test_merge_is_the_drawing():
    one = Sample(forest=chain([1, 2, 3]), edges=edges([1, 2], [3, 9]))
    other = Sample(forest=chain([1, 2, 4]), edges=edges([1], [4]))
    whole, became = merge([one, other])
    assert whole.forest.ids.tolist() == [1, 2, 3, 4] and [each.tolist() for each in became] == [[0, 2], [1]]
