"""The fused head: cross-entropy on edges and KL at anchors from hidden states, in chunks, never [T, V] logits.

The head runs once per row of hidden states where an edge or an anchor starts, however many start there, and once more on the reference's
hidden states at anchors. Where nothing in the head trains (the fast path of LoRA) a chunk's gradient with respect to the hidden states is
computed at once, so no chunk's logits outlive it; where it trains, each chunk is recomputed in the backward. With V = 151 936 and 4 096
tokens the plain loss holds several 2.5 GB tensors, twice as many with KL.

Which function turns hidden states into logits is the caller's choice: the head module itself where that was proved equal to the model's
logits, else the model's own forward around an answering decoder (`logits_by_model`: scaling and soft caps included).

References: Liger Kernel's fused linear cross-entropy (arXiv 2410.10989), Cut Cross-Entropy (arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .base import decoder_of
from .divergence import divergence, divergence_, leave_out_, log_probabilities

Logits = Callable[[Tensor], Tensor]
"""hidden states [N, D] -> logits [N, V]"""

CHUNK_ELEMENTS = 1 << 25
"""Logits of one chunk: 2^25 elements are 128 MB in fp32; 220 rows at V = 151 936."""


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
    """A chunk of rows first..last with its edges and its anchors; held: the reference is asked about all its rows."""

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
    pieces = _pieces(hidden.shape[0], edges, anchors, vocabulary)
    if not trains:
        return _FrozenHead.apply(hidden, edges, anchors, logits, pieces)
    if not pieces:
        nothing = hidden.sum() * 0.0
        return nothing, nothing.detach(), nothing.detach()
    parts = [checkpoint(_plain, hidden[p.first : p.last], edges, anchors, p, logits, use_reentrant=False) for p in pieces]
    ce, kl = torch.stack(parts).sum(0)
    return ce if anchors is None else ce + anchors.beta * kl, ce.detach(), kl.detach()


def _pieces(rows: int, edges: Edges, anchors: Anchored | None, vocabulary: int) -> list[_Piece]:
    """Rows in chunks; half as many at once where there are anchors and a chunk has the reference's logits beside its own."""
    held = 0 if anchors is None else anchors.hidden.shape[0]
    chunk, half = max(1, CHUNK_ELEMENTS // vocabulary), max(1, CHUNK_ELEMENTS // vocabulary // 2)
    borders = [*range(0, held, half), *range(held, rows, chunk), rows]
    at = torch.tensor(borders, device=edges.row.device)
    of_edges = torch.searchsorted(edges.row, at).tolist()
    of_anchors = [0] * len(borders) if anchors is None else torch.searchsorted(anchors.held, at).tolist()
    return [
        _Piece(borders[i], borders[i + 1], borders[i] < held, slice(*of_edges[i : i + 2]), slice(*of_anchors[i : i + 2]))
        for i in range(len(borders) - 1)
    ]


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
    def forward(ctx, hidden, edges, anchors, logits, pieces):
        ce, kl = (torch.zeros((), dtype=torch.float32, device=hidden.device) for _ in range(2))
        gradient = torch.empty_like(hidden)
        # weights are divided by a whole step's W, which fp16 would round to zero before the loss scaler sees the gradient
        unit = _largest(edges, anchors, hidden.device)
        for piece in pieces:
            chunk = hidden[piece.first : piece.last].detach().requires_grad_()
            with torch.enable_grad():
                scores = logits(chunk)
            rows, targets, weights = edges.row[piece.edges] - piece.first, edges.target[piece.edges], edges.weight[piece.edges]
            logp = log_probabilities(scores.detach())
            ce -= (weights * logp[rows, targets]).sum()
            weights = weights / unit
            row_weight = torch.zeros(len(chunk), device=hidden.device).index_add_(0, rows, weights)
            # d loss / d scores = row_weight * softmax - weights at the targets + the slope of KL, built in place of the logarithms
            if anchors is None or not piece.held:
                slope = logp.exp_().mul_(row_weight[:, None])
            else:
                divergences, slope = _held(logp, anchors, piece, row_weight, anchors.beta / unit)
                kl += divergences
            slope.index_put_((rows, targets), -weights, accumulate=True)
            (gradient[piece.first : piece.last],) = torch.autograd.grad(scores, chunk, slope.to(scores.dtype))
            del scores, logp, slope  # before the next chunk makes its own
        ctx.save_for_backward(gradient, unit)
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


def _held(logp: Tensor, anchors: Anchored, piece: _Piece, row_weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weight * KL, row_weight * p + scale * weight * slope [N, V]) of a chunk's anchors; takes the memory of logp."""
    logq = log_probabilities(anchors.logits(anchors.hidden[piece.first : piece.last]).detach())
    if anchors.gold is None:
        weight = anchors.weight[piece.anchors]
        kl, p, slope = divergence_(logp, logq, reverse=anchors.reverse)
        return (weight * kl).sum(), p.mul_(row_weight[:, None]).addcmul_(slope, (weight * scale)[:, None])
    total, slopes = torch.zeros((), device=logp.device), torch.zeros_like(logp)
    for first in range(piece.anchors.start, piece.anchors.stop, len(logp)):  # a row has an anchor for each of its gold tokens
        group = slice(first, min(first + len(logp), piece.anchors.stop))
        held, gold, weight = anchors.held[group] - piece.first, anchors.gold[group], anchors.weight[group]
        own, other = (log_probabilities(leave_out_(each[held], gold)) for each in (logp, logq))
        kl, _, slope = divergence_(own, other, reverse=anchors.reverse)
        total += (weight * kl).sum()
        slopes.index_add_(0, held, slope.mul_((weight * scale)[:, None]))
    return total, slopes.addcmul_(logp.exp_(), row_weight[:, None])


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
