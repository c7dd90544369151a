"""Samples that share a prefix share its tokens: a trie over samples, in the depth-first order of a `Forest`.

Two nodes merge when their parents merged and their (token, branch coordinate) are equal. Edges with equal source and target merge
and add their weights, anchors likewise, so the loss of the trie is the loss of the samples, term by term.

    s s u1 a1   +   s s u2 a2   ->   s s u1 a1 u2 a2          s s u1 a1, twice   ->   s s u1 a1 with weight 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .forest import Anchors, Edges, Forest, Sample, chain, parents


def build_trie(samples: Sequence[Sample]) -> Sample:
    """Merge samples (chains, trees or forests) into one forest; roots with different first tokens stay separate trees.

    Children stand in the order in which they first came. Empty samples vanish. Masked tokens never merge with words, but do with
    each other: they are the same input.
    """
    trie = Trie()
    for sample in samples:
        trie.add(sample)
    return trie.laid_out()


def merge(samples: Sequence[Sample]) -> tuple[Sample, list[np.ndarray]]:
    """`build_trie`, and for each sample which of the forest's edges its own edges became: int64 [E] each, in its own order.

    s u1 a1 (u1->a1, a1->e)  +  s u1 b (u1->b)   ->   s u1 a1 b      edges u1->a1, u1->b, a1->e      [0, 2]  [1]
    """
    trie = Trie()
    nodes = [trie.add(sample) for sample in samples]
    whole = trie.laid_out()
    number = {pair: i for i, pair in enumerate(zip(whole.edges.source.tolist(), whole.edges.target.tolist(), strict=True))}
    became = [
        [number[trie.place[own[source]], target] for source, target in zip(s.edges.source.tolist(), s.edges.target.tolist(), strict=True)]
        for s, own in zip(samples, nodes, strict=True)
    ]
    return whole, [np.array(each, np.int64) for each in became]


def chains(sample: Sample) -> list[Sample]:
    """The chains from a root to each leaf, whose trie is the sample: edges and anchors go with the first that has their source.

    s u1 a1 u2 a2 (u1->a1, u2->a2)   ->   s u1 a1 (u1->a1)   s u2 a2 (u2->a2)
    """
    forest, above = sample.forest, parents(sample.forest)
    taken = np.zeros(len(forest), bool)
    found = []
    for leaf in np.flatnonzero(forest.end == np.arange(1, len(forest) + 1)):
        path = [int(leaf)]
        while above[path[-1]] >= 0:
            path.append(int(above[path[-1]]))
        tokens = np.array(path[::-1])
        own = np.where(taken[tokens], -1, np.arange(len(tokens)))  # place in the chain, of those that no chain before it has
        taken[tokens] = True
        place = np.full(len(forest), -1, np.int32)
        place[tokens] = own
        edge, anchor = place[sample.edges.source] >= 0, place[sample.anchors.source] >= 0
        found.append(Sample(
            forest=replace(chain(forest.ids[tokens]), branch=forest.branch[tokens]),
            edges=Edges(
                source=place[sample.edges.source[edge]], target=sample.edges.target[edge], weight=sample.edges.weight[edge]
            ),
            anchors=Anchors(source=place[sample.anchors.source[anchor]], weight=sample.anchors.weight[anchor]),
        ))  # fmt: skip
    return found


class Trie:
    """A trie under construction: nodes in order of arrival; node 0 is the origin above all roots.

    place: of each node in the forest that `laid_out` gave last
    """

    def __init__(self) -> None:
        self.place: list[int] = []
        self.keys: list[tuple[int, int]] = [(0, 0)]
        self.children: list[list[int]] = [[]]
        self.found: dict[tuple[int, int, int], int] = {}
        self.edges: dict[tuple[int, int], float] = {}
        self.anchors: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.keys) - 1

    def cost(self, sample: Sample) -> int:
        """Tokens that `add` would bring in, at most (a sample that forks onto itself merges further)."""
        forest, new = sample.forest, 0
        nodes: list[int] = []
        for parent, token, branch in zip(
            parents(forest).tolist(), forest.ids.tolist(), forest.branch.tolist(), strict=True
        ):
            above = nodes[parent] if parent >= 0 else 0
            nodes.append(self.found.get((above, token, branch), -1) if above >= 0 else -1)
            new += nodes[-1] < 0
        return new

    def add(self, sample: Sample) -> list[int]:
        """Walk the sample down the trie, growing it where it has no way; its edges and anchors join those already there.

        Gives the nodes [T] that its tokens became.
        """
        forest = sample.forest
        nodes: list[int] = []
        for parent, token, branch in zip(
            parents(forest).tolist(), forest.ids.tolist(), forest.branch.tolist(), strict=True
        ):
            above = nodes[parent] if parent >= 0 else 0
            node = self.found.get((above, token, branch))
            if node is None:
                node = len(self.keys)
                self.found[above, token, branch] = node
                self.keys.append((token, branch))
                self.children.append([])
                self.children[above].append(node)
            nodes.append(node)
        edges = sample.edges
        for source, target, weight in zip(edges.source.tolist(), edges.target.tolist(), edges.weight.tolist(), strict=True):
            key = (nodes[source], target)
            self.edges[key] = self.edges.get(key, 0.0) + weight
        for source, weight in zip(sample.anchors.source.tolist(), sample.anchors.weight.tolist(), strict=True):
            self.anchors[nodes[source]] = self.anchors.get(nodes[source], 0.0) + weight
        return nodes

    def laid_out(self) -> Sample:
        """The trie in depth-first order."""
        order: list[int] = []
        place = self.place = [0] * len(self.keys)
        depth = [0] * len(self.keys)
        root = [0] * len(self.keys)
        end = [0] * len(self.keys)
        stack = [(node, 0, number) for number, node in reversed(list(enumerate(self.children[0])))]
        while stack:
            node, level, number = stack.pop()
            if node < 0:  # every token below ~node has been placed
                end[~node] = len(order)
                continue
            place[node], depth[node], root[node] = len(order), level, number
            order.append(node)
            stack.append((~node, 0, 0))
            stack.extend((child, level + 1, number) for child in reversed(self.children[node]))
        rows = sorted((place[node], target, weight) for (node, target), weight in self.edges.items())
        held = sorted((place[node], weight) for node, weight in self.anchors.items())

        def column(values: list, dtype: type = np.int32) -> np.ndarray:
            return np.array(values, dtype=dtype)

        return Sample(
            forest=Forest(
                ids=column([self.keys[node][0] for node in order]),
                time=column([depth[node] for node in order]),
                branch=column([self.keys[node][1] for node in order]),
                root=column([root[node] for node in order]),
                end=column([end[node] for node in order]),
            ),
            edges=Edges(
                source=column([row[0] for row in rows]),
                target=column([row[1] for row in rows]),
                weight=column([row[2] for row in rows], np.float32),
            ),
            anchors=Anchors(source=column([row[0] for row in held]), weight=column([row[1] for row in held], np.float32)),
        )
