"""The fused head: cross-entropy on edges and KL at anchors from hidden states, in chunks, never [T, V] logits.

The head runs once per row of hidden states where an edge or an anchor starts, however many start there, and once more on the reference's
hidden states at anchors. Where nothing in the head trains (the fast path of LoRA) a chunk's gradient with respect to the hidden states is
computed at once, so no chunk's logits outlive it; where it trains, each chunk is recomputed in the backward. With V = 151 936 and 4 096
tokens the plain loss holds several 2.5 GB tensors, twice as many with KL. On the fast path a chunk, which is as large as products want it,
is gone over in tiles, which are as small as a cache wants them: only they are in float32.

Which function turns hidden states into logits is the caller's choice: the head module itself where that was proved equal to the model's
logits, else the model's own forward around an answering decoder (`logits_by_model`: scaling and soft caps included).

References: Liger Kernel's fused linear cross-entropy (arXiv 2410.10989), Cut Cross-Entropy (arXiv 2411.09009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .base import decoder_of
from .divergence import divergence, divergence_, leave_out_, log_probabilities, softmax

Logits = Callable[[Tensor], Tensor]
"""hidden states [N, D] -> logits [N, V]"""

CHUNK_ELEMENTS = 1 << 25
"""Logits of one chunk: 2^25 elements are 64 MB in bf16; 220 rows at V = 151 936. With fewer rows, reading the head's weight counts."""

TILE_CPU, TILE = 1 << 19, 1 << 23
"""Logits worked on in float32 at once, for every thread of a CPU and on other devices: a dozen passes go over them, best within a cache."""


def edge_loss(hidden: Tensor, row: Tensor, target: Tensor, weight: Tensor, logits: Logits, vocabulary: int, *, trains: bool) -> Tensor:
    """sum over edges of weight * -log softmax(logits(hidden[row]))[target], as a float32 scalar with a gradient to `hidden`.

    hidden: [N, D], one row per unique source of an edge, any float dtype
    row: int64 [E] into N, ascending; target: int64 [E] into V; weight: float32 [E]
    trains: whether anything inside `logits` trains; its gradient is then kept too, at the price of computing each chunk twice
    """
    return edge_and_anchor_loss(hidden, Edges(row, target, weight), None, logits, vocabulary, trains=trains)[0]


class Edges(NamedTuple):
    """row: int64 [E] into the N rows of hidden states, ascending; target: int64 [E] into V; weight: float32 [E]"""

    row: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """Anchors, which start at the first U of the N rows of hidden states: so a chunk's rows all have one or none has.

    hidden: [U, D], the reference's hidden states there
    held: int64 [A] into U, ascending; weight: float32 [A]; without gold tokens A = U and `held` counts from 0
    gold: int64 [A], the token left out of both distributions, -1 for none; None where none is left out anywhere
    logits: of the reference, run without a gradient; beta, reverse: of the loss
    """

    hidden: Tensor
    held: Tensor
    weight: Tensor
    gold: Tensor | None
    logits: Logits
    beta: float
    reverse: bool


class _Piece(NamedTuple):
    """Rows first..last with their edges and their anchors; held: the reference is asked about all of them."""

    first: int
    last: int
    held: bool
    edges: slice
    anchors: slice


def edge_and_anchor_loss(
    hidden: Tensor, edges: Edges, anchors: Anchored | None, logits: Logits, vocabulary: int, *, trains: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, ce, kl), float32 scalars: ce = sum of weight * CE over edges, kl = sum of weight * KL over anchors, total = ce + beta * kl.

    hidden: [N, D], one row per unique source of an edge or an anchor; trains: as for `edge_loss`
    Only `total` has a gradient, to `hidden`; with anchors None kl is 0 and nothing is computed for it.
    """
    assert edges.row.numel() == 0 or bool((edges.row[1:] >= edges.row[:-1]).all()), "edges must be sorted by source"
    chunk = max(1, CHUNK_ELEMENTS // vocabulary)
    if not trains:
        tile = max(1, _tile_elements(hidden.device) // vocabulary)
        return _FrozenHead.apply(hidden, edges, anchors, logits, _chunks(hidden.shape[0], edges, anchors, chunk, tile))
    pieces = [piece for (piece,) in _chunks(hidden.shape[0], edges, anchors, chunk, chunk)]
    if not pieces:
        nothing = hidden.sum() * 0.0
        return nothing, nothing.detach(), nothing.detach()
    parts = [checkpoint(_plain, hidden[p.first : p.last], edges, anchors, p, logits, use_reentrant=False) for p in pieces]
    ce, kl = torch.stack(parts).sum(0)
    return ce if anchors is None else ce + anchors.beta * kl, ce.detach(), kl.detach()


def _tile_elements(device: torch.device) -> int:
    return TILE_CPU * torch.get_num_threads() if device.type == "cpu" else TILE


def _chunks(rows: int, edges: Edges, anchors: Anchored | None, chunk: int, tile: int) -> list[list[_Piece]]:
    """Rows in chunks of nearly one size, at most `chunk`, each in tiles of at most `tile`. All of a chunk have an anchor or none."""
    held = 0 if anchors is None else anchors.hidden.shape[0]
    starts = [*_evenly(0, held, chunk), *_evenly(held, rows, chunk)]
    tiles = [range(first, last, tile) for first, last in pairwise([*starts, rows])]
    borders = [first for each in tiles for first in each] + [rows]
    at = torch.tensor(borders, device=edges.row.device)
    of_edges = torch.searchsorted(edges.row, at).tolist()
    of_anchors = [0] * len(borders) if anchors is None else torch.searchsorted(anchors.held, at).tolist()
    pieces = iter([
        _Piece(borders[i], borders[i + 1], borders[i] < held, slice(*of_edges[i : i + 2]), slice(*of_anchors[i : i + 2]))
        for i in range(len(borders) - 1)
    ])  # fmt: skip
    return [list(islice(pieces, len(each))) for each in tiles]


def _evenly(first: int, last: int, at_most: int) -> range:
    """Where the fewest groups of at most so many rows begin: a few rows left over would cost nearly as much as a whole group."""
    groups = max(1, math.ceil((last - first) / at_most))
    return range(first, last, max(1, math.ceil((last - first) / groups)))


def _plain(hidden: Tensor, edges: Edges, anchors: Anchored | None, piece: _Piece, logits: Logits) -> Tensor:
    """[ce, kl] of one chunk."""
    logp = log_probabilities(logits(hidden))
    row, target, weight = (column[piece.edges] for column in edges)
    ce = -(weight * logp[row - piece.first, target]).sum()
    if anchors is None or not piece.held:
        return torch.stack([ce, torch.zeros_like(ce)])
    with torch.no_grad():
        logq = log_probabilities(anchors.logits(anchors.hidden[piece.first : piece.last]))
    if anchors.gold is not None:
        held, gold = anchors.held[piece.anchors] - piece.first, anchors.gold[piece.anchors]
        logp, logq = (log_probabilities(leave_out_(each[held], gold)) for each in (logp, logq))
    return torch.stack([ce, (anchors.weight[piece.anchors] * divergence(logp, logq, reverse=anchors.reverse)).sum()])


def edge_nats(logits: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """float32 [E]: the unweighted -log probability of each edge. logits: [N, V]; row, target: int64 [E]."""
    scores = logits.float()
    return torch.logsumexp(scores, dim=-1)[row] - scores[row, target]


class _FrozenHead(torch.autograd.Function):
    """Losses and the gradient of their sum in one sweep over the chunks; the backward only scales the stored gradient."""

    @staticmethod
    def forward(ctx, hidden, edges, anchors, logits, chunks):
        # weights are divided by a whole step's W, which fp16 would round to zero before the loss scaler sees the gradient
        unit = _largest(edges, anchors, hidden.device)
        sweep = _Sweep(edges, anchors, unit, len(hidden))
        gradient = torch.empty_like(hidden)
        for tiles in chunks:
            chunk = slice(tiles[0].first, tiles[-1].last)
            states = hidden[chunk].detach().requires_grad_()
            with torch.enable_grad():
                scores = logits(states)
            held = anchors.logits(anchors.hidden[chunk]) if tiles[0].held else None
            slope = torch.empty_like(scores)
            for tile in tiles:
                inside = slice(tile.first - chunk.start, tile.last - chunk.start)
                reference = None if held is None else held[inside].float()
                slope[inside] = sweep.slope(scores.detach()[inside].float(), reference, tile)
            (gradient[chunk],) = torch.autograd.grad(scores, states, slope)
            del scores, held, slope  # before the next chunk makes its own
        ctx.save_for_backward(gradient, unit)
        ce, kl = sweep.losses()
        total = ce.clone() if anchors is None else ce + anchors.beta * kl
        ctx.mark_non_differentiable(ce, kl)
        return total, ce, kl

    @staticmethod
    def backward(ctx, upstream, *_):
        gradient, unit = ctx.saved_tensors
        return gradient * (upstream * unit).to(gradient.dtype), None, None, None, None


def _largest(edges: Edges, anchors: Anchored | None, device: torch.device) -> Tensor:
    """The largest weight of a term of the loss, 1 where there is none."""
    weights = [edges.weight.max()] if edges.weight.numel() else []
    if anchors is not None and anchors.weight.numel():
        weights.append(anchors.beta * anchors.weight.max())
    return torch.stack(weights).max() if weights else torch.ones((), device=device)


class _Sweep:
    """What the tiles of a sweep have in common, and what they find: nats [E] and divergences [A], not weighted yet."""

    def __init__(self, edges: Edges, anchors: Anchored | None, unit: Tensor, rows: int) -> None:
        """unit: what weights are divided by in gradients"""
        self.edges, self.anchors = edges, anchors
        self.edge_weight = edges.weight / unit
        self.row_weight = torch.zeros(rows, device=unit.device).index_add_(0, edges.row, self.edge_weight)
        self.nats = torch.empty_like(edges.weight)
        if anchors is not None:
            self.anchor_weight = anchors.weight * (anchors.beta / unit)
            self.divergences = torch.empty_like(anchors.weight)

    def losses(self) -> tuple[Tensor, Tensor]:
        """(ce, kl), when all tiles are done."""
        ce = (self.edges.weight * self.nats).sum()
        return ce, ce.new_zeros(()) if self.anchors is None else (self.anchors.weight * self.divergences).sum()

    def slope(self, scores: Tensor, reference: Tensor | None, tile: _Piece) -> Tensor:
        """d loss / d scores, float32 [N, V], of a tile's scores and those of its reference, whose memory is taken."""
        anchors, model = self.anchors, softmax(scores)
        row, target = self.edges.row[tile.edges] - tile.first, self.edges.target[tile.edges]
        self.nats[tile.edges] = model.normaliser[row] - scores[row, target]
        row_weight = (self.row_weight[tile.first : tile.last] / model.total)[:, None]
        if anchors is None or reference is None:
            slope = model.p.mul_(row_weight)
        elif anchors.gold is None:
            self.divergences[tile.anchors], pull = divergence_(scores, model, reference, reverse=anchors.reverse)
            slope = model.p.mul_(row_weight).addcmul_(pull, self.anchor_weight[tile.anchors, None], value=-1)
        else:
            slope = model.p.mul_(row_weight)
            self._pull_without_gold(slope, scores, reference, tile, anchors, anchors.gold)
        return slope.index_put_((row, target), -self.edge_weight[tile.edges], accumulate=True)

    def _pull_without_gold(
        self, slope: Tensor, scores: Tensor, reference: Tensor, tile: _Piece, anchors: Anchored, gold: Tensor
    ) -> None:
        """A row has an anchor for each of its gold tokens: as many at once as the tile has rows."""
        for first in range(tile.anchors.start, tile.anchors.stop, len(scores)):
            group = slice(first, min(first + len(scores), tile.anchors.stop))
            held = anchors.held[group] - tile.first
            own, other = (leave_out_(each.index_select(0, held), gold[group]) for each in (scores, reference))
            self.divergences[group], pull = divergence_(own, softmax(own), other, reverse=anchors.reverse)
            slope.index_add_(0, held, pull.mul_(self.anchor_weight[group, None]), alpha=-1)


class _Answer(nn.Module):
    """A decoder that already knows what it will say."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, **_) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


def logits_by_model(model: PreTrainedModel) -> Logits:
    """Logits by the model's own forward, given hidden states: whatever it does after its decoder (scaling, soft caps) is included."""
    decoder = decoder_of(model)
    owner, name = next(
        (module, name) for module in model.modules() for name, child in module.named_children() if child is decoder
    )

    def logits(hidden: Tensor) -> Tensor:
        ids = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=hidden.device)
        setattr(owner, name, _Answer(hidden[None]))
        try:
            return model(input_ids=ids, use_cache=False).logits[0]
        finally:
            setattr(owner, name, decoder)

    return logits
