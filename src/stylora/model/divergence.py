"""KL of two next-token distributions with its gradient, row by row and in place.

    forward    KL(q || p) = sum q (log q - log p)        d / d scores = p - q
    reverse    KL(p || q) = sum p (log p - log q)        d / d scores = p (log p - log q - KL)

p is the model's softmax, q the reference's; the gradient is with respect to the model's scores before its softmax. Differences of
logarithms are taken first: equal distributions give exactly 0.

Without the gold token: both distributions lose that one token and are renormalised, KL sees how the rest is shared out
(arXiv 2605.29498). Knows neither hidden states nor edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEFT_OUT = -1e30
"""Log probability of a token that is left out: its exponential is 0, and unlike -inf it can be subtracted from itself."""


def log_probabilities(scores: Tensor) -> Tensor:
    """Log softmax of scores [N, V], in float32."""
    return torch.log_softmax(scores, dim=-1, dtype=torch.float32)


def leave_out_(scores: Tensor, gold: Tensor) -> Tensor:
    """Take token `gold` (int64 [N], -1 for none) out of every row of scores [N, V], in place; to be normalised again."""
    index = gold.clamp_min(0)[:, None]
    return scores.scatter_(1, index, torch.where(gold[:, None] < 0, scores.gather(1, index), LEFT_OUT))


def divergence_(logp: Tensor, logq: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(KL [N], p [N, V], d KL / d scores [N, V]) from log softmaxes [N, V]; takes the memory of both for its results.

    The sum of p - q is 0 but for the rounding of the normalisers, which the logarithms share: with it added, the KL of nearly equal
    distributions at V = 151 936 is wrong by 3e-9, without it by 6e-7.
    """
    q = logq.exp()
    terms = logq.sub_(logp)
    p = logp.exp_()
    mean = terms.mul_(p if reverse else q).sum(-1)
    difference = torch.sub(p, q, out=q)
    rounding = difference.sum(-1)
    if reverse:
        return -mean - rounding, p, terms.neg_().addcmul_(p, mean[:, None])
    return mean + rounding, p, difference


def divergence(logp: Tensor, logq: Tensor, *, reverse: bool) -> Tensor:
    """KL [N] from log softmaxes [N, V], for autograd to differentiate."""
    return (logp.exp() * (logp - logq)).sum(-1) if reverse else (logq.exp() * (logq - logp)).sum(-1)
