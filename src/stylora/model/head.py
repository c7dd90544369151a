"""The fused head: cross-entropy on edges from hidden states, in chunks, never [T, V] logits.

The head runs once per row of hidden states where an edge starts, however many edges leave it. Where nothing in the head trains (the
fast path of LoRA) a chunk's gradient with respect to the hidden states is computed at once, so no chunk's logits outlive it; where it
trains, each chunk is recomputed in the backward. With V = 151 936 and 4 096 tokens the plain loss holds several 2.5 GB tensors.

Which function turns hidden states into logits is the caller's choice: the head module itself where that was proved equal to the model's
logits, else the model's own forward around an answering decoder (`logits_by_model`: scaling and soft caps included).

References: Liger Kernel's fused linear cross-entropy (arXiv 2410.10989), Cut Cross-Entropy (arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .base import decoder_of

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
    assert row.numel() == 0 or bool((row[1:] >= row[:-1]).all()), "edges must be sorted by source"
    chunk = max(1, CHUNK_ELEMENTS // vocabulary)
    starts = list(range(0, hidden.shape[0], chunk))
    borders = torch.searchsorted(row, torch.tensor([*starts, hidden.shape[0]], device=row.device)).tolist()
    pieces = [
        (start, min(start + chunk, hidden.shape[0]), slice(first, last))
        for start, first, last in zip(starts, borders[:-1], borders[1:], strict=True)
    ]
    if not trains:
        return _FrozenHead.apply(hidden, row, target, weight, logits, pieces)
    losses = [
        checkpoint(_plain, hidden[a:b], row[e] - a, target[e], weight[e], logits, use_reentrant=False) for a, b, e in pieces
    ]
    return torch.stack(losses).sum() if losses else hidden.sum() * 0.0


def _plain(hidden: Tensor, row: Tensor, target: Tensor, weight: Tensor, logits: Logits) -> Tensor:
    return (weight * edge_nats(logits(hidden), row, target)).sum()


def edge_nats(logits: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """float32 [E]: the unweighted -log probability of each edge. logits: [N, V]; row, target: int64 [E]."""
    scores = logits.float()
    return torch.logsumexp(scores, dim=-1)[row] - scores[row, target]


class _FrozenHead(torch.autograd.Function):
    """Loss and its gradient in one sweep over the chunks; the backward only scales the stored gradient."""

    @staticmethod
    def forward(ctx, hidden, row, target, weight, logits, pieces):
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        # weights are divided by a whole step's W, which fp16 would round to zero before the loss scaler sees the gradient
        unit = weight.max() if weight.numel() else torch.ones((), device=hidden.device)
        for a, b, e in pieces:
            chunk = hidden[a:b].detach().requires_grad_()
            with torch.enable_grad():
                scores = logits(chunk)
            rows, targets, weights = row[e] - a, target[e], weight[e]
            probability = scores.detach().float()
            normaliser = torch.logsumexp(probability, dim=-1)
            loss += (weights * (normaliser[rows] - probability[rows, targets])).sum()
            weights = weights / unit
            row_weight = torch.zeros(b - a, device=hidden.device).index_add_(0, rows, weights)
            # d loss / d scores = row_weight * softmax - weights at the targets, built in place of the scores
            probability.sub_(normaliser[:, None]).exp_().mul_(row_weight[:, None])
            probability.index_put_((rows, targets), -weights, accumulate=True)
            (gradient[a:b],) = torch.autograd.grad(scores, chunk, probability.to(scores.dtype))
            del scores, probability  # before the next chunk makes its own
        ctx.save_for_backward(gradient, unit)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        gradient, unit = ctx.saved_tensors
        return gradient * (upstream * unit).to(gradient.dtype), None, None, None, None, None


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
