"""A batch is a forest, the loss is a list of edges: the three core records, as NumPy arrays.

Knows no tokenizers, no models and no torch. Legend of shapes used everywhere: B rows, T tokens, E edges, A anchors,
V vocabulary, D model width, H heads, R rank.

    plain text      a b c d            time 0 1 2 3        end 4 4 4 4          causal
    packed          a b | x y z        time 0 1 0 1 2      end 2 2 5 5 5        two documents, no leak
    shared prefix   s s u1 a1 u2 a2    time 0 1 2 3 2 3    end 6 6 4 4 6 6      one system prompt, two conversations

Relatives: Tree Training (arXiv 2511.00413), PrefixGrouper (arXiv 2506.05433).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MASK = -1
"""The id of a masked input token. It is no word of any vocabulary: the model embeds it as a fixed vector (model/embed.py)."""


@dataclass(frozen=True, kw_only=True)
class Forest:
    """T tokens in depth-first order.

    ids: int32 [T], token ids, or MASK
    time: int32 [T], depth in the tree = the ordinary RoPE position; 0 at every root
    branch: int32 [T], second coordinate, 0 unless branches are trained
    root: int32 [T], the number of the tree a token belongs to, 0.. from left to right
    end: int32 [T], one past the last index of the token's subtree
    """

    ids: np.ndarray
    time: np.ndarray
    branch: np.ndarray
    root: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_chain(self) -> bool:
        """One tree without a fork: plain causal attention is the whole truth about it."""
        return bool((self.end == len(self)).all())


@dataclass(frozen=True, kw_only=True)
class Edges:
    """What is predicted: token `target[e]` from the hidden state at index `source[e]`, with `weight[e]`.

    source: int32 [E], indices into the forest; several edges may leave one source
    target: int32 [E], token ids (never MASK)
    weight: float32 [E], multiplicity times sample weight; > 0
    """

    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Where the model is held to its reference: hidden state at index `source[a]`, with `weight[a]`.

    source: int32 [A], indices into the forest; weight: float32 [A], > 0
    """

    source: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.source)


NO_ANCHORS = Anchors(source=np.empty(0, np.int32), weight=np.empty(0, np.float32))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A forest with what is learned on it. A record gives one; a row of a micro-batch is several joined."""

    forest: Forest
    edges: Edges
    anchors: Anchors = NO_ANCHORS

    def __len__(self) -> int:
        return len(self.forest)


def chain(ids: Sequence[int] | np.ndarray) -> Forest:
    """A forest of one tree without forks. ids: [T] token ids or MASK."""
    tokens = np.asarray(ids, dtype=np.int32)
    zeros = np.zeros(len(tokens), np.int32)
    return Forest(
        ids=tokens, time=np.arange(len(tokens), dtype=np.int32), branch=zeros, root=zeros, end=zeros + np.int32(len(tokens))
    )


def edges(source: Sequence[int] | np.ndarray, target: Sequence[int] | np.ndarray, weight: float | np.ndarray = 1.0) -> Edges:
    """Edges from plain sequences; one weight for all, or one each."""
    sources = np.asarray(source, dtype=np.int32)
    weights = np.broadcast_to(np.asarray(weight, dtype=np.float32), sources.shape).copy()
    return Edges(source=sources, target=np.asarray(target, dtype=np.int32), weight=weights)


def join(samples: Sequence[Sample]) -> Sample:
    """Samples side by side in one row: indices and roots shift, nothing sees across.

    join(a b, x y z):   ids a b x y z   time 0 1 0 1 2   root 0 0 1 1 1   end 2 2 5 5 5
    """
    offset, roots = 0, 0
    shifts, root_shifts = [], []
    for sample in samples:
        shifts.append(offset)
        root_shifts.append(roots)
        offset += len(sample)
        roots += int(sample.forest.root[-1]) + 1 if len(sample) else 0

    def together(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)

    forests = [sample.forest for sample in samples]
    return Sample(
        forest=Forest(
            ids=together([f.ids for f in forests]),
            time=together([f.time for f in forests]),
            branch=together([f.branch for f in forests]),
            root=together([f.root + np.int32(r) for f, r in zip(forests, root_shifts, strict=True)]),
            end=together([f.end + np.int32(s) for f, s in zip(forests, shifts, strict=True)]),
        ),
        edges=Edges(
            source=together([x.edges.source + np.int32(s) for x, s in zip(samples, shifts, strict=True)]),
            target=together([x.edges.target for x in samples]),
            weight=together([x.edges.weight for x in samples]),
        ),
        anchors=Anchors(
            source=together([x.anchors.source + np.int32(s) for x, s in zip(samples, shifts, strict=True)]),
            weight=together([x.anchors.weight for x in samples]),
        ),
    )


def visible(forest: Forest) -> np.ndarray:
    """bool [T, T]: may query q (row) see key k (column)? `k <= q < end[k]`, one comparison.

    shared prefix s s u1 a1 u2 a2:

        s  #.....
        s  ##....
        u1 ###...
        a1 ####..
        u2 ##..#.
        a2 ##..##
    """
    index = np.arange(len(forest))
    return (index[None, :] <= index[:, None]) & (index[:, None] < forest.end[None, :])


def parents(forest: Forest) -> np.ndarray:
    """int32 [T]: the index of each token's parent, -1 at roots: the last token before it that is one step shallower."""
    result = np.full(len(forest), -1, np.int32)
    last_at: dict[int, int] = {}
    for index, depth in enumerate(forest.time.tolist()):
        if depth:
            result[index] = last_at[depth - 1]
        last_at[depth] = index
    return result
