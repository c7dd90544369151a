"""The module that training wraps: micro-batches of a forest in, one weighted loss out.

    loss = sum(w * CE) / W  +  beta * sum(v * KL) / V        edges with weight w, anchors with weight v

The loss is computed inside `forward`, so that a wrapper (DDP, FSDP) sees the whole computation. The reference of KL is the same model with
its adapters off (model/reference.py); its pass comes first, without a gradient, and leaves only the hidden states at anchors. Branches'
coordinates reach a model that carries them (model/rope_2d.py) for the length of its decoder's call. Knows models and forests, no data, no
recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stylora.forest import MASK, MicroBatch
from stylora.samples.anchors import Kl

from .base import decoder_of
from .head import CHUNK_ELEMENTS, Anchored, Edges, Logits, edge_and_anchor_loss, edge_nats, logits_by_model
from .reference import adapted_layers, as_reference
from .rope_2d import coordinates, installed
from .visibility import attention_mask


@dataclass(frozen=True, kw_only=True)
class TensorAnchors:
    """The anchors of a `TensorBatch`. They start at the first U of its head rows.

    rows: int64 [R], the batch's rows with an anchor in them, which the reference reads; None for all
    source: int64 [U], the same places as flat indices into R * T
    held: int64 [A] into U, ascending; weight: float32 [A]; gold: int64 [A], token left out of both distributions, -1 for none
    """

    rows: Tensor | None
    source: Tensor
    held: Tensor
    weight: Tensor
    gold: Tensor | None


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A `MicroBatch` on a device. Edges are sorted by source, and `row` numbers the unique sources.

    ids, time, branch, end: int64 [B, T]; causal: no mask needed
    head_rows: int64 [N], flat indices into B * T: unique sources of anchors, then of the edges that leave none of these
    row, target: int64 [E]; weight: float32 [E]; anchors: None where there are none
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
    anchors: TensorAnchors | None = None


def to_tensors(
    batch: MicroBatch, device: torch.device, *, divisor: float = 1.0, anchor_divisor: float = 1.0, drop_gold: bool = False
) -> TensorBatch:
    """Move a micro-batch to a device.

    divisor, anchor_divisor: W and V, the step's sums of edge and anchor weights over all micro-batches and ranks; weights come divided
    drop_gold: pair every anchor with the targets of the edges that leave it, as `Kl.drop_gold` wants
    """
    held = np.unique(batch.anchor_source)
    head_rows = np.concatenate([held, np.setdiff1d(batch.edge_source, held)])
    ascending = np.argsort(head_rows)
    edge_row = ascending[np.searchsorted(head_rows[ascending], batch.edge_source)]
    order = np.argsort(edge_row, kind="stable")
    edge_row, target, weight = edge_row[order], batch.edge_target[order], batch.edge_weight[order]
    anchors = None
    if len(held):
        anchor_weight = np.bincount(np.searchsorted(held, batch.anchor_source), weights=batch.anchor_weight)
        index, gold = np.arange(len(held)), None
        if drop_gold:
            index, gold, anchor_weight = pair_with_gold(anchor_weight, edge_row, target, weight)
        rows, row = np.unique(held // batch.ids.shape[1], return_inverse=True)
        anchors = TensorAnchors(
            rows=None if len(rows) == len(batch.ids) else _tensor(rows, device),
            source=_tensor(row * batch.ids.shape[1] + held % batch.ids.shape[1], device), held=_tensor(index, device),
            weight=_weights(anchor_weight / anchor_divisor, device), gold=None if gold is None else _tensor(gold, device),
        )  # fmt: skip
    return TensorBatch(
        ids=_tensor(batch.ids, device), time=_tensor(batch.time, device), branch=_tensor(batch.branch, device),
        end=_tensor(batch.end, device), causal=batch.causal, head_rows=_tensor(head_rows, device), row=_tensor(edge_row, device),
        target=_tensor(target, device), weight=_weights(weight / divisor, device), anchors=anchors,
    )  # fmt: skip


def pair_with_gold(
    weight: np.ndarray, edge_row: np.ndarray, target: np.ndarray, edge_weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(held [A], gold [A], weight [A]): each of the U anchors once for every edge that leaves it, and once for what no edge covers.

    An edge takes its own weight of the anchor's; where the anchor has less, the edges share it in proportion. So samples merged in a
    trie, where one source has several gold tokens, have the loss of the samples apart.

        anchor of weight 3     edges -> a (1), -> b (1)     a 1, b 1, none 1

    weight: [U]; edge_row, target, edge_weight: [E], by row; rows from U on have no anchor
    """
    count = int(np.searchsorted(edge_row, len(weight)))
    row, taken = edge_row[:count], edge_weight[:count].astype(np.float64)
    leaving = np.bincount(row, weights=taken, minlength=len(weight))
    share = np.minimum(1.0, weight / np.where(leaving > 0, leaving, 1.0))
    rest = weight - leaving
    bare = np.flatnonzero(rest > 1e-6 * weight)  # a difference within the rounding of float32 weights is none
    held = np.concatenate([row, bare])
    gold = np.concatenate([target[:count], np.full(len(bare), -1)])
    by_row = np.argsort(held, kind="stable")
    return held[by_row], gold[by_row], np.concatenate([taken * share[row], rest[bare]])[by_row]


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)


def _weights(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)


class ForestModel(nn.Module):
    """A causal language model (with or without adapters inside) that reads forests.

    model: the causal LM itself, adapters injected; not the PeftModel around it, whose forward adds nothing for LoRA
    words: the number of real tokens (len(tokenizer)): the embedding's rows after it are padding and no part of the mask's mean
    head: "module" where the head module was proved to give the model's logits, else "model" (the model's own forward after its decoder)
    kl: holds the model to its reference at the anchors of the batches; without it, or with its beta 0, anchors cost and change nothing
    columnar: branches of a tree see each other's earlier columns; such trees must not be merged

    last_ce, last_kl: float32 scalars without a gradient, sum(weight * CE) and sum(weight * KL) of the last forward, the latter before beta
    """

    mask_vector: Tensor

    def __init__(
        self, model: PreTrainedModel, *, words: int, head: str = "module", kl: Kl | None = None, columnar: bool = False
    ) -> None:
        super().__init__()
        assert head in ("module", "model"), head
        self.model = model
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.head, self.kl, self.columnar = head, kl, columnar
        self.last_ce, self.last_kl = torch.zeros((), device=model.device), torch.zeros((), device=model.device)
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
            inputs["attention_mask"] = attention_mask(
                batch.end, batch.time, config, implementation, self.model.dtype, columnar=self.columnar
            )
            inputs["position_ids"] = batch.time
        elif installed(self.model) is not None:  # a coordinate for each position of each row: `time` of padding would begin anew
            inputs["position_ids"] = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
        with coordinates(self.model, batch.branch):
            return decoder_of(self.model)(**inputs, use_cache=False).last_hidden_state

    def forward(self, batch: TensorBatch) -> Tensor:
        """sum(weight * CE) over the batch's edges + beta * sum(weight * KL) over its anchors, float32 scalar."""
        anchors = self._anchored(batch)  # before the model's own pass, whose activations wait for the backward
        hidden = self.hidden(batch).flatten(0, 1)[batch.head_rows]
        head = self.model.get_output_embeddings()
        trains = any(parameter.requires_grad for parameter in head.parameters())
        edges = Edges(batch.row, batch.target, batch.weight)
        total, self.last_ce, self.last_kl = edge_and_anchor_loss(
            hidden, edges, anchors, self.logits, self.vocabulary, trains=trains
        )
        return total

    def _anchored(self, batch: TensorBatch) -> Anchored | None:
        """The reference's hidden states at the anchors; only rows with an anchor are read."""
        anchors, kl = batch.anchors, self.kl
        if anchors is None or kl is None or kl.beta == 0:
            return None
        read = batch
        if anchors.rows is not None:
            columns = ("ids", "time", "branch", "end")
            read = replace(batch, **{name: getattr(batch, name)[anchors.rows] for name in columns})
        with as_reference(self.model, kl.reference):
            hidden = self.hidden(read).flatten(0, 1)[anchors.source]
        return Anchored(
            hidden=hidden, held=anchors.held, weight=anchors.weight, gold=anchors.gold,
            logits=self._reference_logits(kl), beta=kl.beta, reverse=kl.direction == "reverse",
        )  # fmt: skip

    def _reference_logits(self, kl: Kl) -> Logits:
        """The reference's: where the head itself has an adapter, with it off."""
        head = self.model.get_output_embeddings()

        def logits(hidden: Tensor) -> Tensor:
            with as_reference(head, kl.reference):
                return self.logits(hidden)

        return logits if adapted_layers(head) else self.logits

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
