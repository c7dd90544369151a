"""The module that training wraps: micro-batches of a forest in, one weighted loss out.

The loss is computed inside `forward`, so that a wrapper (DDP, FSDP) sees the whole computation. Knows models and forests, no data,
no recipes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stylora.forest import MASK, MicroBatch

from .base import decoder_of
from .head import CHUNK_ELEMENTS, Logits, edge_loss, edge_nats, logits_by_model
from .visibility import attention_mask


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A `MicroBatch` on a device. Edges are sorted by source, and `row` numbers the unique sources.

    ids, time, branch, end: int64 [B, T]; causal: no mask needed
    head_rows: int64 [N], unique sources as flat indices into B * T; row, target: int64 [E]; weight: float32 [E]
    """

    ids: Tensor
    time: Tensor
    branch: Tensor
    end: Tensor
    causal: bool
    head_rows: Tensor
    row: Tensor
    target: Tensor
    weight: Tensor


def to_tensors(batch: MicroBatch, device: torch.device, *, divisor: float = 1.0) -> TensorBatch:
    """Move a micro-batch to a device; edge weights are divided by `divisor` (W, the step's sum over all micro-batches and ranks)."""
    order = np.argsort(batch.edge_source, kind="stable")
    sources, row = np.unique(batch.edge_source[order], return_inverse=True)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)

    return TensorBatch(
        ids=tensor(batch.ids), time=tensor(batch.time), branch=tensor(batch.branch), end=tensor(batch.end), causal=batch.causal,
        head_rows=tensor(sources), row=tensor(row), target=tensor(batch.edge_target[order]),
        weight=torch.from_numpy((batch.edge_weight[order] / divisor).astype(np.float32)).to(device),
    )  # fmt: skip


class ForestModel(nn.Module):
    """A causal language model (with or without adapters inside) that reads forests.

    model: the causal LM itself, adapters injected; not the PeftModel around it, whose forward adds nothing for LoRA
    words: the number of real tokens (len(tokenizer)): the embedding's rows after it are padding and no part of the mask's mean
    head: "module" where the head module was proved to give the model's logits, else "model" (the model's own forward after its decoder)
    """

    mask_vector: Tensor

    def __init__(self, model: PreTrainedModel, *, words: int, head: str = "module") -> None:
        super().__init__()
        assert head in ("module", "model"), head
        self.model = model
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.head = head
        self.register_buffer("mask_vector", mean_embedding(model, words), persistent=False)

    @property
    def logits(self) -> Logits:
        """hidden states [N, D] -> logits [N, V]"""
        return self.model.get_output_embeddings() if self.head == "module" else logits_by_model(self.model)

    def hidden(self, batch: TensorBatch) -> Tensor:
        """[B, T, D]: the decoder's last hidden states."""
        config = self.model.config
        masked = batch.ids == MASK
        if masked.any():
            embedded = self.model.get_input_embeddings()(batch.ids.clamp_min(0))
            inputs: dict[str, object] = {"inputs_embeds": torch.where(masked[..., None], self.mask_vector.to(embedded.dtype), embedded)}
        else:
            inputs = {"input_ids": batch.ids}
        if not batch.causal:  # a plain causal row needs neither a mask nor positions: its time is 0, 1, 2, ...
            implementation = config.get_text_config()._attn_implementation
            inputs["attention_mask"] = attention_mask(batch.end, batch.time, config, implementation, self.model.dtype)
            inputs["position_ids"] = batch.time
        return decoder_of(self.model)(**inputs, use_cache=False).last_hidden_state

    def forward(self, batch: TensorBatch) -> Tensor:
        """sum(weight * CE) over the batch's edges, float32 scalar."""
        hidden = self.hidden(batch).flatten(0, 1)[batch.head_rows]
        head = self.model.get_output_embeddings()
        trains = any(parameter.requires_grad for parameter in head.parameters())
        return edge_loss(hidden, batch.row, batch.target, batch.weight, self.logits, self.vocabulary, trains=trains)

    @torch.no_grad()
    def nats(self, batch: TensorBatch) -> Tensor:
        """float32 [E]: -log probability of each edge, unweighted, in the batch's edge order."""
        hidden = self.hidden(batch).flatten(0, 1)[batch.head_rows]
        rows_at_once = max(1, CHUNK_ELEMENTS // self.vocabulary)
        pieces = []
        for start in range(0, len(hidden), rows_at_once):
            inside = (batch.row >= start) & (batch.row < start + rows_at_once)
            scores = self.logits(hidden[start : start + rows_at_once])
            pieces.append(edge_nats(scores, batch.row[inside] - start, batch.target[inside]))
        return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def mean_embedding(model: PreTrainedModel, words: int) -> Tensor:
    """[D]: the mean input embedding of the first `words` tokens, as the embedding module gives them (scaling included).

    It stands for a masked token. It is no word of the vocabulary, is not trained and not saved: masks never occur at inference.
    """
    embed = model.get_input_embeddings()
    sums = [
        embed(torch.arange(start, min(start + 8192, words), device=model.device)).double().sum(0) for start in range(0, words, 8192)
    ]
    return (torch.stack(sums).sum(0) / words).to(model.dtype)
