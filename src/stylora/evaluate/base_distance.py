"""How far a model has gone from its base: the KL of their next-token distributions on held-out samples, in nats per predicted token.

    forward    KL(base || model)     large where the model no longer does what the base would
    reverse    KL(model || base)     large where the model does what the base never would

Measured where something is predicted, by the weight of what is predicted there, as `kl.on: edges` trains it. Both read the same tokens;
there is no second copy of the base (model/reference.py), and logits exist in chunks only. Several processes measure a share each, and all
get all of it. Knows no recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from stylora.forest import Sample, pack
from stylora.model.divergence import divergence, log_probabilities
from stylora.model.forest_model import ForestModel, TensorBatch, to_tensors
from stylora.model.head import CHUNK_ELEMENTS
from stylora.model.processes import rank, ranks, summed
from stylora.model.reference import adapted_layers, as_reference

from .held_out import ROW


class BaseDistance(NamedTuple):
    """forward: KL(base || model), reverse: KL(model || base), nats per token; tokens: the weight of what was predicted"""

    forward: float
    reverse: float
    tokens: float


@torch.no_grad()
def base_distance(
    model: ForestModel, samples: Sequence[Sample], *, tokens_at_once: int = 8192, share_prefixes: bool = False
) -> BaseDistance:
    """The mean over all predicted tokens of the samples; nan where nothing is predicted. A bare base is at 0 from itself.

    share_prefixes: as in `measure`
    The model is put in eval mode for it and runs under the autocast of its caller. A fresh adapter is at exactly 0: both passes read
    rows of the same shape.
    """
    if not adapted_layers(model.model):
        tokens = float(sum(sample.edges.weight.sum(dtype=np.float64) for sample in samples))
        return BaseDistance(0.0, 0.0, tokens) if tokens else BaseDistance(np.nan, np.nan, 0.0)
    was_training = model.training
    model.eval()
    sums = np.zeros(3)
    batches = pack(
        samples, tokens_per_microbatch=tokens_at_once, row_tokens=ROW if share_prefixes else None, share_prefixes=share_prefixes
    )
    for batch in batches[rank() :: ranks()]:
        sums += _sums(model, to_tensors(batch, model.model.device))
    model.train(was_training)
    forward, reverse, tokens = summed(sums).tolist()
    return BaseDistance(forward / tokens, reverse / tokens, tokens) if tokens else BaseDistance(np.nan, np.nan, 0.0)


def _sums(model: ForestModel, batch: TensorBatch) -> np.ndarray:
    """float64 [3]: weighted sums of both divergences over the sources of a batch, and of the weights."""
    weight = torch.zeros(len(batch.head_rows), device=batch.weight.device).index_add_(0, batch.row, batch.weight)
    sums = np.array([0.0, 0.0, float(weight.double().sum())])
    own = model.hidden(batch).flatten(0, 1)[batch.head_rows]
    with as_reference(model.model):
        reference = model.hidden(batch).flatten(0, 1)[batch.head_rows]
    rows = max(1, CHUNK_ELEMENTS // model.vocabulary // 4)  # a handful of tensors of this size stand beside each other
    for start in range(0, len(own), rows):
        part = slice(start, start + rows)
        logp = log_probabilities(model.logits(own[part]))
        with as_reference(model.model):  # the head itself may have an adapter
            logq = log_probabilities(model.logits(reference[part]))
        both = [divergence(logp, logq, reverse=reverse) for reverse in (False, True)]
        sums[:2] += [float((weight[part] * kl).double().sum()) for kl in both]
    return sums
