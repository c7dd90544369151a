"""KL of two next-token distributions with its gradient, row by row and in place.

    forward    KL(q || p) = sum q (log q - log p)        d / d scores = p - q
    reverse    KL(p || q) = sum p (log p - log q)        d / d scores = p (log p - log q - KL)

p is the model's softmax, q the reference's; the gradient is with respect to the model's scores before its softmax. Differences of
scores are taken first, and of their normalisers' logarithms: equal distributions give exactly 0.

Without the gold token: both distributions lose that one token and are renormalised, KL sees how the rest is shared out
(arXiv 2605.29498). Knows neither hidden states nor edges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEFT_OUT = -1e30
"""Score or log probability of a token that is left out: its exponential is 0, and unlike -inf it can be subtracted from itself."""


def log_probabilities(scores: Tensor) -> Tensor:
    """Log softmax of scores [N, V], in float32."""
    return torch.log_softmax(scores, dim=-1, dtype=torch.float32)


def leave_out_(scores: Tensor, gold: Tensor) -> Tensor:
    """Take token `gold` (int64 [N], -1 for none) out of every row of scores [N, V], in place; to be normalised again."""
    index = gold.clamp_min(0)[:, None]
    return scores.scatter_(1, index, torch.where(gold[:, None] < 0, scores.gather(1, index), LEFT_OUT))


class Softmax(NamedTuple):
    """p: float32 [N, V], softmax of scores; highest: [N], the scores' maximum; share: [N], what p is there; total: [N], the sum of p

    At V = 151 936 torch's sum of exponentials is wrong by up to 6e-6, and the sum of p, whose rounding is 1e-7, tells by how much.
    """

    p: Tensor
    highest: Tensor
    share: Tensor
    total: Tensor

    @property
    def normaliser(self) -> Tensor:
        """[N]: log(sum(exp(scores))), from the largest p, which is 1 / sum(exp(scores - highest))."""
        return self.highest - (self.share / self.total).log()


def softmax(scores: Tensor) -> Softmax:
    """Of float32 scores [N, V]. One pass of exponentials; log softmax with its exponential afterwards takes two."""
    p = torch.softmax(scores, dim=-1)
    return Softmax(p, scores.amax(-1), p.amax(-1), p.sum(-1))


def divergence_(scores: Tensor, model: Softmax, reference: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """(KL [N], -d KL / d scores [N, V]) of float32 scores with their softmax and of the reference's scores, whose memory is taken.

    KL is a small difference of large numbers. The sum of q - p is 0 but for the rounding of the normalisers: with it a KL of 4e-7 at
    V = 151 936 is wrong by 3e-9, without it by 3e-7.
    """
    held = softmax(reference)
    p, q = model.p, held.p
    terms = reference.sub_(scores).mul_(p if reverse else q)
    mean = terms.sum(-1)
    pull = q.sub_(p)
    # log of the normalisers' ratio, the model's over the reference's
    between = _log_ratio(held.share, model.share) + torch.log1p(-pull.sum(-1) / held.total) + (model.highest - held.highest)
    if reverse:
        return -(mean / model.total + between), terms.addcmul_(p, mean[:, None], value=-1)
    return mean / held.total + between, pull


def _log_ratio(one: Tensor, other: Tensor) -> Tensor:
    """log(one / other), exact to rounding of its own size where both are nearly equal."""
    difference = (one - other) / other
    return torch.where(difference.abs() < 0.5, torch.log1p(difference), (one / other).log())


def divergence(logp: Tensor, logq: Tensor, *, reverse: bool) -> Tensor:
    """KL [N] from log softmaxes [N, V], for autograd to differentiate."""
    return (logp.exp() * (logp - logq)).sum(-1) if reverse else (logq.exp() * (logq - logp)).sum(-1)
