"""Loss on what was held out: of clean text the next-token loss, whatever the objective was; of conversations the loss of the answers.

Knows no recipes. Several processes score a share each, and all get all of it.
Perplexity is per token (exp of nats per token) and per character, which compares across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stylora.forest import Sample, alike, merge, pack, stack
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.processes import rank, ranks, summed


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """nats: float64 [N], summed over each sample by its edges' weights; tokens: float64 [N], weight of what was predicted;
    characters: float64 [N] it decodes to"""

    nats: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    def as_json(self) -> dict[str, list[float]]:
        """For held_out.jsonl."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, columns: dict[str, list[float]]) -> HeldOut:
        """What `as_json` gave."""
        return cls(**{name: np.array(values, float) for name, values in columns.items()})

    @property
    def error(self) -> float:
        """Standard error of `loss` over samples, as a ratio estimator (Cochran, Sampling Techniques, section 2.11)."""
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


ROW = 2048
"""Tokens of a row of samples that share their beginnings: its mask is quadratic in them."""


def measure(
    model: ForestModel, samples: Sequence[Sample], characters: Sequence[float], *, tokens_at_once: int = 8192, share_prefixes: bool = False
) -> HeldOut:
    """Score the edges of every sample. characters: what the predicted part of each decodes to.

    share_prefixes: compute what samples begin with once; for a model that was proved to keep the branches of a tree apart
    The model is put in eval mode for it and runs under the autocast of its caller.
    """
    was_training = model.training
    model.eval()
    score = _score_together if share_prefixes else _score_apart
    nats = score(model, samples, tokens_at_once)
    model.train(was_training)
    tokens = np.array([sample.edges.weight.sum(dtype=np.float64) for sample in samples])
    return HeldOut(nats=summed(nats), tokens=tokens, characters=np.asarray(characters, float))


def _score_together(model: ForestModel, samples: Sequence[Sample], tokens_at_once: int) -> np.ndarray:
    """float64 [N]: weighted nats of this process's share of the samples, 0 for the others."""
    nats = np.zeros(len(samples))
    for group in alike(samples, min(ROW, tokens_at_once))[rank() :: ranks()]:
        whole, became = merge([samples[i] for i in group])
        losses = model.nats(to_tensors(stack([whole]), model.model.device)).double().cpu().numpy()  # a trie's edges are sorted by source
        for i, own in zip(group, became, strict=True):
            nats[i] = (losses[own] * samples[i].edges.weight).sum()
    return nats


def _score_apart(model: ForestModel, samples: Sequence[Sample], tokens_at_once: int) -> np.ndarray:
    """The same, a row for each sample."""
    nats = np.zeros(len(samples))
    order = sorted(range(len(samples)), key=lambda i: (samples[i].forest.is_chain, len(samples[i])), reverse=True)
    order = order[rank() :: ranks()]  # of like length on all processes
    start = 0
    while start < len(order):
        rows = max(1, tokens_at_once // len(samples[order[start]]))
        group = [i for i in order[start : start + rows] if samples[i].forest.is_chain == samples[order[start]].forest.is_chain]
        start += len(group)
        # one micro-batch, its rows in this order: pack sorts by length, stably, and these already are
        (batch,) = pack([samples[i] for i in group], tokens_per_microbatch=rows * len(samples[group[0]]))
        by_source = np.argsort(batch.edge_source, kind="stable")
        losses = model.nats(to_tensors(batch, model.model.device)).double().cpu().numpy()
        line = batch.edge_source[by_source] // batch.ids.shape[1]
        np.add.at(nats, np.array(group)[line], losses * batch.edge_weight[by_source])
    return nats


def precision_context(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast as training uses it: bf16 or fp16 products, nothing in fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)
