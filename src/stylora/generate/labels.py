"""Closed label sets, scored all at once: the questions of a batch are one tree, and under each of them hangs the trie of its labels.

    trunk ─ q1 ─┬─ Passenger ─┬─ Car   <end>
                │             └─ Truck <end>
                └─ Motorcycle   <end>
          ─ q2 ─┬─ ...

The log probability of a label is the sum over its path, the stop token included, so a label that begins another one is no likelier for
being short. What questions have in common (a system prompt) is computed once for all, and no label is written token by token. A base that
was not proved to keep branches apart reads every label by itself. Knows models and forests, no recipes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stylora.forest import Forest, MicroBatch, Sample, build_trie, chain, edges, stack
from stylora.forest.forest import parents
from stylora.model.forest_model import ForestModel, to_tensors

from .decode import evaluating


@dataclass(frozen=True, kw_only=True)
class LabelTrie:
    """The labels of a set as one tree below a question, [T] tokens of which [E] edges lead to one each, with `member` [L, E].

    ids, time, end: int32 [T], time and end counted from the first token behind the question
    source, target: int32 [E]; source -1 is the question's last token
    member: bool [L, E], does the edge lie on the label's path?; labels: the L labels themselves, int32 [A] each
    """

    ids: np.ndarray
    time: np.ndarray
    end: np.ndarray
    source: np.ndarray
    target: np.ndarray
    member: np.ndarray
    labels: tuple[np.ndarray, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest label that are read: all but the last."""
        return max(len(label) for label in self.labels) - 1


def label_trie(labels: Sequence[np.ndarray]) -> LabelTrie:
    """The trie of labels, each int32 [A] with its stop token last. The last tokens are predicted and never read."""
    root = np.int32(0)  # stands for the question's last token
    paths = [np.concatenate([[root], ids]).astype(np.int32) for ids in labels]
    whole = build_trie([Sample(forest=chain(path[:-1]), edges=edges(np.arange(len(path) - 1), path[1:])) for path in paths])
    forest, above = whole.forest, parents(whole.forest)
    nodes = {(int(above[i]), int(token)): i for i, token in enumerate(forest.ids)}
    place = {(int(s), int(t)): e for e, (s, t) in enumerate(zip(whole.edges.source, whole.edges.target, strict=True))}
    member = np.zeros((len(paths), len(place)), bool)
    for row, path in zip(member, paths, strict=True):
        node = 0
        for token in path[1:-1].tolist():
            row[place[node, token]] = True
            node = nodes[node, token]
        row[place[node, int(path[-1])]] = True
    return LabelTrie(
        ids=forest.ids[1:], time=forest.time[1:] - 1, end=forest.end[1:] - 1, source=whole.edges.source - 1,
        target=whole.edges.target, member=member, labels=tuple(labels),
    )  # fmt: skip


def score_labels(
    model: ForestModel, questions: Sequence[np.ndarray], tries: Sequence[LabelTrie], *, packs: bool, tokens_at_once: int = 1024
) -> list[np.ndarray]:
    """float64 [L] for every question: log probability of each label of its trie, its stop token included.

    questions: int32 [T] each, up to the opened answer; tries: one each, the same object where the set is the same
    packs: was the model proved to keep the branches of a tree apart? tokens_at_once: of a row, whose mask is quadratic in them
    """
    if not packs:
        with evaluating(model):
            return [_apart(model, question, trie) for question, trie in zip(questions, tries, strict=True)]
    found: list[np.ndarray] = [np.empty(0)] * len(questions)
    order = sorted(range(len(questions)), key=lambda i: questions[i].tolist())  # neighbours share the most
    with evaluating(model):
        for group in _groups([questions[i] for i in order], [tries[i] for i in order], tokens_at_once):
            own = [order[i] for i in group]
            asked, hung = [questions[i] for i in own], [tries[i] for i in own]
            nats = _nats(model, forest_of(asked, hung))
            begins = np.cumsum([0, *(len(trie.source) for trie in hung)])
            for i, trie, start in zip(own, hung, begins[:-1], strict=True):
                found[i] = -(trie.member @ nats[start : start + len(trie.source)])
    return found


def forest_of(questions: Sequence[np.ndarray], tries: Sequence[LabelTrie]) -> MicroBatch:
    """One row: what the questions have in common, then each with its labels. Edges stand in the order of questions and tries.

    trunk s s, questions q and r, labels a and b:     s s q a b r a b      end 8 8 5 4 5 8 7 8
    """
    shared = common_prefix(questions)
    ids, time, end = [questions[0][:shared]], [np.arange(shared)], [np.zeros(shared, np.int64)]
    source, target = [], []
    at = shared
    for question, trie in zip(questions, tries, strict=True):
        own, rest = question[shared:], len(question) - shared
        ids += [own, trie.ids]
        time += [np.arange(shared, len(question)), trie.time + len(question)]
        end += [np.full(rest, at + rest + len(trie.ids)), trie.end + at + rest]
        source.append(trie.source + at + rest)
        target.append(trie.target)
        at += rest + len(trie.ids)
    end[0] = np.full(shared, at)
    zeros = np.zeros(at, np.int32)
    columns = {name: np.concatenate(parts).astype(np.int32) for name, parts in (("ids", ids), ("time", time), ("end", end))}
    pairs = edges(np.concatenate(source), np.concatenate(target))
    return stack([Sample(forest=Forest(**columns, branch=zeros, root=zeros), edges=pairs)])


def _apart(model: ForestModel, question: np.ndarray, trie: LabelTrie) -> np.ndarray:
    """float64 [L]: the same, every label behind the question in a row of its own."""
    rows = []
    for label in trie.labels:
        path = np.concatenate([question, label[:-1]])
        rows.append(Sample(forest=chain(path), edges=edges(np.arange(len(question) - 1, len(path)), label)))
    batch = stack(rows)
    scores = np.zeros(len(rows))
    np.subtract.at(scores, batch.edge_source // batch.ids.shape[1], _nats(model, batch))
    return scores


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with, at least one of each left over."""
    length = min(map(len, rows)) - 1
    same = np.all([row[:length] == rows[0][:length] for row in rows], axis=0)
    return length if same.all() else int(same.argmin())


def _groups(questions: Sequence[np.ndarray], tries: Sequence[LabelTrie], room: int) -> Iterator[range]:
    """Runs of questions that fit one row together; each of them alone where there is no room."""
    start = 0
    while start < len(questions):
        stop, tokens = start + 1, len(questions[start]) + len(tries[start].ids)
        while stop < len(questions):
            shared = common_prefix([questions[start], questions[stop]])  # at most: later ones share less
            tokens += len(questions[stop]) - shared + len(tries[stop].ids)
            if tokens > room:
                break
            stop += 1
        yield range(start, stop)
        start = stop


@torch.no_grad()
def _nats(model: ForestModel, batch: MicroBatch) -> np.ndarray:
    """float64 [E]: -log probability of every edge, in the batch's own order."""
    order = np.argsort(batch.edge_source, kind="stable")  # the model gives them by source
    nats = np.empty(len(order))
    nats[order] = model.nats(to_tensors(batch, model.model.device)).double().cpu().numpy()
    return nats
