"""Next-token loss on held-out clean text: the same measure whatever the objective was.

Knows no recipes. Perplexity is per token (exp of nats per token) and per character, which compares across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stylora.forest import pack
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.samples.clm import clm


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """nats: float64 [N], summed over each window; tokens: int64 [N] predicted; characters: float64 [N] they decode to"""

    nats: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def error(self) -> float:
        """Standard error of `loss` over windows, as a ratio estimator (Cochran, Sampling Techniques, section 2.11)."""
        return ratio_error(self.nats, self.tokens)

    @property
    def loss_per_character(self) -> float:
        """Nats per character."""
        return float(self.nats.sum() / self.characters.sum())

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.loss)

    @property
    def perplexity_per_character(self) -> float:
        """exp(nats per character)."""
        return math.exp(self.loss_per_character)


def ratio_error(totals: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error of totals.sum() / sizes.sum() over N independent pairs; nan for fewer than two."""
    count = len(totals)
    if count < 2:
        return math.nan
    residuals = totals - totals.sum() / sizes.sum() * sizes
    return float(math.sqrt((residuals**2).sum() / (count - 1) / count) / sizes.mean())


def measure(model: ForestModel, windows: Sequence[np.ndarray], characters: Sequence[float], *, tokens_at_once: int = 8192) -> HeldOut:
    """Score every window's tokens from the second on. windows: int32 [T] each; characters: what each decodes to.

    The model is put in eval mode for it and runs under the autocast of its caller.
    """
    was_training = model.training
    model.eval()
    nats = np.zeros(len(windows))
    device = model.model.device
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]), reverse=True)
    start = 0
    while start < len(order):
        rows = max(1, tokens_at_once // len(windows[order[start]]))
        group = order[start : start + rows]
        start += rows
        # rows of one micro-batch keep their order: pack sorts by length, stably, and these already are
        for batch in pack([clm(windows[i]) for i in group], tokens_per_microbatch=rows * len(windows[group[0]])):
            losses = model.nats(to_tensors(batch, device)).double().cpu().numpy()
            line = np.sort(batch.edge_source) // batch.ids.shape[1]
            np.add.at(nats, np.array(group)[line], losses)
    model.train(was_training)
    tokens = np.array([len(window) - 1 for window in windows], np.int64)
    share = np.array([(len(window) - 1) / len(window) for window in windows])
    return HeldOut(nats=nats, tokens=tokens, characters=np.asarray(characters, float) * share)


def precision_context(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast as training uses it: bf16 or fp16 products, nothing in fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)
