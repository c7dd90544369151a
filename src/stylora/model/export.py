"""A stack as one thing, for programs that know no stacks: one LoRA, the same at a smaller rank, or whole weights.

    concatenated   A = [w1 s1 A1 ; w2 s2 A2]  [R1+R2, in]    B = [B1 | B2]  [out, R1+R2]    B A = sum_k w_k dW_k, exactly
    shrunk         B A = U S V^T, of which the R largest singular values are kept: nothing of rank R is nearer (Eckart & Young 1936)
    merged         W + B A, in the base's own matrices

PEFT's `add_weighted_adapter` concatenates too, but takes everything else from the first adapter: its rsLoRA, by which the sum then
comes out sqrt(R) times too large, the layers it was kept to, the modules it left out. Its SVD builds every whole matrix; here two small
QR decompositions do. Knows no recipes, no MODEL arguments and no cards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel

from stylora.errors import UserError

from .adapter import adaptable

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of logits that rounding explains, where the largest logit is 1; below 1 it is not made smaller."""


class Factors(NamedTuple):
    """The update of one matrix, b @ a. a: fp32 [R, in]; b: fp32 [out, R]"""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """updates: by module; errors: by module the share of the update that is lost, |dW - B A| / |dW| (Frobenius); error: of all together"""

    updates: dict[str, Factors]
    errors: dict[str, float]
    error: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """largest: difference of two models' logits; allowed: what rounding explains; scale: the largest logit"""

    largest: float
    allowed: float
    scale: float

    @property
    def passed(self) -> bool:
        """A difference that is no number does not pass."""
        return self.largest <= self.allowed


def check_addable(config: PeftConfig, where: str) -> None:
    """Raises UserError for an adapter that is no plain sum of B A on linear layers: no other LoRA could hold it. where: its folder"""
    reason = None
    if not isinstance(config, LoraConfig):
        reason = f"an adapter of type {str(config.peft_type).removeprefix('PeftType.')}"
    elif config.use_dora:
        reason = "a DoRA adapter, whose length is normalised after the update was added"
    elif config.modules_to_save or config.trainable_token_indices:
        reason = "an adapter that replaces whole weights beside LoRA"
    elif config.bias != "none" or config.lora_bias:
        reason = "an adapter that changes biases"
    elif config.target_parameters:
        reason = "an adapter on bare parameters, as of experts"
    if reason is not None:
        raise UserError(where, got=reason, expected="plain LoRA, which adds up", do="export it with --as merged")


@torch.no_grad()
def concatenate(model: PeftModel) -> dict[str, Factors]:
    """Module -> the sum of its updates at their weights, as one. model: all its adapters active, each of them checked by `check_addable`

    A module that only some of the adapters have gets theirs. Raises UserError for LoRA on an embedding or of another kind.
    """
    assert [*model.active_adapters] == [*model.peft_config]
    found: dict[str, Factors] = {}
    layers: dict[str, Any] = {path: layer for path, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    for path, layer in layers.items():
        if layer.lora_embedding_A or layer.lora_variant:
            got = "LoRA on an embedding" if layer.lora_embedding_A else f"LoRA of another kind ({type(layer).__name__})"
            raise UserError(path, got=got, expected="plain LoRA on linear layers, which adds up", do="export it with --as merged")
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        a = [layer.lora_A[name].weight.float() * layer.scaling[name] for name in names]
        b = [layer.lora_B[name].weight.float() for name in names]
        found[path] = Factors(torch.cat(a), torch.cat(b, dim=1))
    return found


@torch.no_grad()
def shrink(updates: Mapping[str, Factors], rank: int) -> Shrunk:
    """Every update at rank `rank`, as near as that can be; exact where it had no more. In fp64.

    b a = (Qb Rb)(Qa Ra)^T = Qb (Rb Ra^T) Qa^T, so the singular values are those of the small matrix Rb Ra^T.
    """
    found: dict[str, Factors] = {}
    squares: dict[str, tuple[float, float]] = {}  # of what is lost, of all
    for path, update in updates.items():
        qb, rb = torch.linalg.qr(update.b.double())
        qa, ra = torch.linalg.qr(update.a.double().T)
        u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        root = s[:rank].sqrt()  # half to each side, so that neither is large
        found[path] = Factors((root[:, None] * vh[:rank] @ qa.T).float(), (qb @ u[:, :rank] * root).float())
        squares[path] = float((s[rank:] ** 2).sum()), float((s**2).sum())
    errors = {path: math.sqrt(lost / whole) if whole else 0.0 for path, (lost, whole) in squares.items()}
    lost, whole = (sum(column) for column in zip(*squares.values(), strict=True))
    return Shrunk(updates=found, errors=errors, error=math.sqrt(lost / whole) if whole else 0.0)


@torch.no_grad()
def attach_updates(model: PreTrainedModel, updates: Mapping[str, Factors]) -> PeftModel:
    """One LoRA that makes these updates, on a base without adapters. Its rank is the largest of them, the others are filled up with zeros.

    alpha = rank, so that every program takes b @ a as it is. Modules go by their last names where that says which they are, as servers
    know them.
    """
    rank = max(update.a.shape[0] for update in updates.values())
    last = {path.rpartition(".")[2] for path in updates}
    meant = {path for path in adaptable(model) if path.rpartition(".")[2] in last}
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(last if meant == {*updates} else updates), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    peft = get_peft_model(model, config, adapter_name="default")
    layers: dict[str, Any] = {path: layer for path, layer in peft.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    assert layers.keys() == updates.keys()
    for path, update in updates.items():
        a, b = layers[path].lora_A["default"].weight, layers[path].lora_B["default"].weight
        a.zero_()[: len(update.a)] = update.a
        b.zero_()[:, : len(update.a)] = update.b
    return peft.eval()


def cast_adapter(model: PeftModel, dtype: torch.dtype) -> None:
    """Round the adapter's matrices to the dtype in which they are to be saved."""
    for path, parameter in model.named_parameters():
        if "lora_" in path:
            parameter.data = parameter.data.to(dtype)


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with every active update in its weights. The model is used up.

    Raises UserError for a type of adapter that has no weights to add, biases where the base has none, and an update of an embedding that is
    the head as well.
    """
    base: Any = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    tied = base.config.get_text_config().tie_word_embeddings
    if tied and any(isinstance(end, BaseTunerLayer | AuxiliaryTrainingWrapper) for end in ends):
        raise UserError(
            "MODEL", got="an adapter on the embedding or the head of a base in which both are one matrix",
            expected="one on other layers: merged, it would change both",
        )  # fmt: skip
    layers: list[Any] = [layer for layer in base.modules() if isinstance(layer, LoraLayer)]
    if any(any(layer.lora_bias.values()) and getattr(layer.get_base_layer(), "bias", None) is None for layer in layers):
        raise UserError(
            "MODEL", got="an adapter with biases (lora_bias) on layers of the base that have none",
            expected="one whose update can be added to weights",
        )  # fmt: skip
    if not hasattr(model.base_model, "merge_and_unload"):
        kinds = ", ".join(sorted({str(config.peft_type).removeprefix("PeftType.") for config in model.peft_config.values()}))
        raise UserError("MODEL", got=f"an adapter of type {kinds}", expected="one whose update can be added to weights, as LoRA's")
    return model.base_model.merge_and_unload(safe_merge=True)  # type: ignore[operator]  # a method, behind nn.Module's attributes


@torch.no_grad()
def logits_of(model: PeftModel | PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """fp32 [T, V] for each row of ids, int64 [T]."""
    return [model(input_ids=row[None].to(model.device), use_cache=False).logits[0].float().cpu() for row in rows]


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], *dtypes: torch.dtype) -> Difference:
    """How far the logits of two models are apart. dtypes: all that something was computed or saved in"""
    pairs = list(zip(ours, theirs, strict=True))
    scale = max(float(one.abs().max()) for one, _ in pairs)
    # a difference that is no number must stay one, and max() of floats would drop it
    largest = float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())
    return Difference(largest=largest, allowed=max(TOLERANCE[dtype] for dtype in dtypes) * max(1.0, scale), scale=scale)
