"""Packing keeps everything and the budget: every sample's paths and edges come out, once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylora.forest import Forest, MicroBatch, Sample, build_trie, chain, edges, join, pack, stack, whole_row
from stylora.forest.pack import first_fit, split_tries

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def bare(ids: list[int]) -> Sample:
    return Sample(forest=chain(ids), edges=edges([], []))


def told(samples: list[Sample]) -> Counter:
    """Weight by (tokens from the root, target)."""
    total: Counter = Counter()
    for sample in samples:
        ids, end = sample.forest.ids.tolist(), sample.forest.end.tolist()
        for s, t, w in zip(sample.edges.source.tolist(), sample.edges.target.tolist(), sample.edges.weight, strict=True):
            total[tuple(ids[k] for k in range(s + 1) if s < end[k]), t] += float(w)
    return total


def leaves(samples: list[Sample]) -> Counter:
    """How often each root-to-leaf path stands in the rows."""
    total: Counter = Counter()
    for sample in samples:
        ids, end = sample.forest.ids.tolist(), sample.forest.end.tolist()
        for q in range(len(ids)):
            if end[q] == q + 1:
                total[tuple(ids[k] for k in range(q + 1) if q < end[k])] += 1
    return total


def unpacked(batches: list[MicroBatch]) -> list[Sample]:
    """The rows of micro-batches as samples again, by reading the padded arrays."""
    rows = []
    for batch in batches:
        width = batch.ids.shape[1]
        for number, length in enumerate(batch.lengths.tolist()):
            mine = (batch.edge_source >= number * width) & (batch.edge_source < (number + 1) * width)
            assert (batch.edge_source[mine] - number * width < length).all(), "an edge leaves padding"
            forest = Forest(
                ids=batch.ids[number, :length], time=batch.time[number, :length], branch=batch.branch[number, :length],
                root=np.cumsum(batch.time[number, :length] == 0) - 1, end=batch.end[number, :length],
            )  # fmt: skip
            rows.append(
                Sample(
                    forest=forest,
                    edges=edges(batch.edge_source[mine] - number * width, batch.edge_target[mine], batch.edge_weight[mine]),
                )
            )
    assert sum(map(len, (row.edges for row in rows))) == sum(len(batch.edge_source) for batch in batches)
    return rows


def test_stacked_drawing():
    a = stack([bare([1, 2, 3, 4, 5]), bare([6, 7, 8, 9]), bare([10, 11, 12])])
    assert a.ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0], [10, 11, 12, 0, 0]]
    assert a.time.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert a.end.tolist() == [[5] * 5, [4, 4, 4, 4, 5], [3, 3, 3, 4, 5]]
    assert a.causal and a.lengths.tolist() == [5, 4, 3] and a.tokens == 12


def test_packed_drawing():
    documents = [bare([1, 2, 3, 4, 5]), bare([6, 7, 8, 9]), bare([10, 11, 12])]
    alone, packed = pack(documents, tokens_per_microbatch=16, row_tokens=8)
    assert alone.causal and alone.ids.tolist() == [[6, 7, 8, 9]], "a chain alone needs no mask"
    assert not packed.causal
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 10, 11, 12]]
    assert packed.end.tolist() == [[5, 5, 5, 5, 5, 8, 8, 8]]
    mixed = stack([join([documents[0], documents[2]]), documents[1]])
    assert mixed.end.tolist() == [[5, 5, 5, 5, 5, 8, 8, 8], [4, 4, 4, 4, 5, 6, 7, 8]]
    assert not mixed.causal, "one mixed row and the whole micro-batch needs the mask"


def test_edges_of_later_rows_point_past_the_padding_of_earlier_ones():
    rows = [Sample(forest=chain([1, 2, 3]), edges=edges([0, 1], [2, 3])), Sample(forest=chain([4, 5]), edges=edges([0], [5], 0.5))]
    batch = stack(rows)
    assert (batch.edge_source.tolist(), batch.edge_target.tolist()) == ([0, 1, 3], [2, 3, 5])
    assert batch.edge_weight.tolist() == [1.0, 1.0, 0.5]
    assert batch.edge_source.dtype == np.int32 and batch.edge_weight.dtype == np.float32


def test_whole_row_is_one_row_with_nothing_to_learn():
    batch = whole_row(chain([1, 2]))
    assert batch.ids.tolist() == [[1, 2]] and batch.causal
    assert len(batch.edge_source) == len(batch.anchor_source) == 0


@quick
@given(data=st.data(), budget=st.integers(1, 60), row_tokens=st.none() | st.integers(1, 40), share=st.booleans())
def test_pack_keeps_the_samples_and_the_budget(data, sample_lists, budget, row_tokens, share):
    samples = data.draw(sample_lists)
    batches = pack(samples, tokens_per_microbatch=budget, row_tokens=row_tokens, share_prefixes=share)
    for batch in batches:
        assert batch.ids.size <= budget or len(batch.ids) == 1
        assert batch.causal == all(set(end[:n]) == {n} for end, n in zip(batch.end.tolist(), batch.lengths.tolist(), strict=True))
    rows = unpacked(batches)
    assert told(rows) == told(samples)
    longest, limit = max(map(len, samples)), min(row_tokens or budget, budget)
    assert all(len(row) <= max(limit, longest) for row in rows)
    if not share:
        assert leaves(rows) == leaves(samples)
        assert (row_tokens is None) <= (len(rows) == len(samples))


@quick
@given(data=st.data(), limit=st.integers(1, 60))
def test_split_tries_keep_the_limit_and_lose_nothing(data, sample_lists, limit):
    samples = data.draw(sample_lists)
    rows = split_tries(samples, limit)
    assert told(rows) == told(samples)
    assert set(leaves([build_trie(samples)])) <= set(leaves(rows))
    for row in rows:
        assert len(row) <= limit or (row.forest.is_chain and any(len(row) == len(sample) for sample in samples))
    if len(build_trie(samples)) <= limit:
        assert len(rows) == 1


def test_a_tree_over_the_limit_is_taken_apart_and_its_trunk_repeated():
    """A trunk of 3 tokens with four branches of 3: 15 tokens, in rows of at most 9, which have two branches each."""
    paths = [[1, 2, 3, 10 * n, 10 * n + 1, 10 * n + 2] for n in range(1, 5)]
    tree = build_trie([Sample(forest=chain(path), edges=edges([2, 3, 4], path[3:])) for path in paths])
    rows = split_tries([tree], 9)
    assert [row.forest.ids.tolist()[:3] for row in rows] == [[1, 2, 3]] * 2 and [len(row) for row in rows] == [9, 9]
    assert told(rows) == told([tree])
    assert [row.forest.ids.tolist() for row in split_tries([tree], 5)] == paths, "a path is never cut"


@quick
@given(data=st.data(), limit=st.integers(1, 60))
def test_first_fit_keeps_the_limit_and_every_sample_once(data, sample_lists, limit):
    samples = data.draw(sample_lists)
    rows = first_fit(samples, limit)
    assert leaves(rows) == leaves(samples) and told(rows) == told(samples)
    for row in rows:
        assert len(row) <= limit or row.forest.is_chain
    assert sum(map(len, rows)) == sum(map(len, samples))


@pytest.mark.parametrize("budget", [1, 8, 1000])
def test_the_order_of_rows_does_not_depend_on_chance(budget: int):
    samples = [bare([i, i + 1, *range(i)]) for i in range(1, 9)]
    first, second = (pack(samples, tokens_per_microbatch=budget, row_tokens=10) for _ in range(2))
    assert [b.ids.tolist() for b in first] == [b.ids.tolist() for b in second]


def test_empty_samples_need_no_row():
    assert pack([bare([])], tokens_per_microbatch=8) == []
    assert [b.lengths.tolist() for b in pack([bare([]), bare([1])], tokens_per_microbatch=8, row_tokens=8)] == [[1]]
