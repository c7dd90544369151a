"""Adapters on adapters: W = W_base + sum_k w_k * dW_k. All work, at most one learns, and nothing else changes.

    default    the one that learns, or was trained last, at the top
    frozen1    w = 0.7
    frozen0    at the bottom; its weights are as they were saved, its dropout is off whatever mode is set
    base       folded: the frozen ones added to its weights, which saves their passes and makes the base another one

PEFT's own ways lead elsewhere: `PeftModel.set_adapter` activates one only, the tuner's `set_adapter([...])` makes all it activates
trainable, and a frozen adapter's dropout comes back with every `train()` (peft #2749, #2807, #3580).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.samples.branch_settings import Branches, place

from .adapter import attach, check_linear, load_adapter, read_branches
from .settings import Adapter
from .stack_names import check_dora

TOP = "default"


def frozen_name(number: int) -> str:
    """What PEFT calls the frozen adapter at this place, from the bottom."""
    return f"frozen{number}"


def build_stack(
    model: PreTrainedModel, adapter: Adapter, *, seed: int, weights: Sequence[float] = (), branches: Branches | None = None
) -> PeftModel:
    """The frozen adapters that `adapter` names, bottom to top, and on them the one that learns, fresh or saved before.

    model: where they are to be folded, the base into which they were; weights: factors of the frozen ones' updates, all 1 by default
    branches: of the stage that trains, None where it has none
    All are active, one is trainable, and the frozen ones have no dropout. Raises UserError where one does not fit, is no LoRA adapter
    that can be switched off, can't be weighted, or was trained at other positions than those of the stage.
    """
    _check_positions(adapter, branches)
    adapted: PreTrainedModel | PeftModel = model if adapter.fold_frozen else put_frozen(model, adapter.frozen, weights)
    if adapter.path is None:
        adapted = attach(adapted, adapter, seed=seed)
    else:
        adapted = _load_lora(adapted, Path(adapter.path), trainable=True, stacked=bool(adapter.frozen))
    top = adapted.peft_config[TOP]
    if adapter.frozen and isinstance(top, LoraConfig):
        check_dora(top.use_dora, folded=adapter.fold_frozen, dropout=top.lora_dropout)
    activate(adapted, trainable=TOP)
    return adapted


def _check_positions(adapter: Adapter, branches: Branches | None) -> None:
    """Raises UserError for a saved adapter whose branches carry a coordinate where those of the stage carry another one or none."""
    for folder in [*adapter.frozen, *([] if adapter.path is None else [adapter.path])]:
        theirs = read_branches(Path(folder))
        if theirs is None or not theirs.rope_2d_ratio:
            continue
        if place(theirs) != place(branches):
            raise UserError(
                "branches", got=f"{place(branches)}, with {folder}, which was trained at {place(theirs)}",
                expected="the positions that every adapter was trained at",
                do="say them in `branches`, of a stage whose data.format is branches, or leave that adapter out",
            )  # fmt: skip
        if adapter.fold_frozen and folder in adapter.frozen:
            raise UserError("adapter.fold_frozen", got=f"true, with {folder}, whose branches carry a coordinate",
                            expected="adapters that work at the base's own positions", do="fold nothing")  # fmt: skip


def put_frozen(model: PreTrainedModel, folders: Sequence[str], weights: Sequence[float] = ()) -> PreTrainedModel | PeftModel:
    """Saved adapters on a base, bottom to top; the base itself where there are none. Raises as `build_stack`."""
    adapted: PreTrainedModel | PeftModel = model
    for number, folder in enumerate(folders):
        adapted = _load_lora(adapted, Path(folder), name=frozen_name(number))
        if weights:
            weigh(adapted, frozen_name(number), weights[number])
    return adapted


@torch.no_grad()
def fold(model: PreTrainedModel, folders: Sequence[str], weights: Sequence[float], ids: Tensor) -> tuple[PreTrainedModel, float]:
    """The base with saved adapters added to its weights, W + sum_k w_k * dW_k in its own dtype, and how far that moved the logits of `ids`.

    ids: int64 [1, T]; the difference is the largest of all, of rounding alone: about 1e-6 in fp32, 1e-1 in bf16
    Raises UserError for an adapter of an embedding that is also the head, which would take its update, too.
    """
    stacked = put_frozen(model, folders, weights)
    assert isinstance(stacked, PeftModel)
    uses = Counter(id(parameter) for _, parameter in stacked.named_parameters(remove_duplicate=False))
    if any(uses[id(layer.get_base_layer().weight)] > 1 for layer in stacked.modules() if isinstance(layer, LoraLayer)):
        raise UserError("adapter.fold_frozen", got="true, with an adapter of an embedding that is also the head",
                        expected="weights of one module alone", do="fold nothing")  # fmt: skip
    activate(stacked, trainable=None)
    apart = stacked.eval()(input_ids=ids, use_cache=False).logits
    folded = stacked.merge_and_unload(safe_merge=True)  # type: ignore[operator]  # a method, behind nn.Module's attributes
    assert not any(isinstance(module, LoraLayer) for module in folded.modules())
    together = folded.requires_grad_(False).eval()(input_ids=ids, use_cache=False).logits
    return folded, float((together - apart).abs().max())


def _load_lora(
    model: PreTrainedModel | PeftModel, folder: Path, *, trainable: bool = False, stacked: bool = True, name: str = TOP
) -> PeftModel:
    adapted = load_adapter(model, folder, trainable=trainable, name=name)
    config, reason = adapted.peft_config[name], None
    if not isinstance(config, LoraConfig):
        reason = f"an adapter of type {str(config.peft_type).removeprefix('PeftType.')}"
    elif config.bias != "none":
        reason = "an adapter that changes biases of the base, which can't be switched off"
    elif stacked and (config.modules_to_save or config.trainable_token_indices):
        reason = "an adapter that replaces whole weights, which do not add up"
    if reason is not None:
        raise UserError(str(folder), got=reason, expected="plain LoRA")
    return adapted


def activate(model: PeftModel, *, trainable: str | None) -> None:
    """Every adapter works and one learns, or none does. PEFT by itself activates one, and makes what is active trainable."""
    names = list(model.peft_config)
    model.base_model.set_adapter(names)  # type: ignore[operator]  # a method, behind nn.Module's attributes
    for name in names:
        model.set_requires_grad(name, name == trainable)
        for layer in model.modules():
            if name != trainable and isinstance(layer, LoraLayer) and name in layer.lora_dropout:
                layer.lora_dropout[name] = nn.Identity()  # it would be live again with every `train()`
    check_stack(model, trainable=trainable)


def check_stack(model: PeftModel, *, trainable: str | None) -> None:
    """Asserts that every adapter is active, and that the parameters of `trainable` learn and no others do."""
    assert list(model.active_adapters) == list(model.peft_config), "an adapter is not active"
    learns = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    ours = {path for path, _ in model.named_parameters() if trainable is not None and trainable in path.split(".")}
    assert learns == ours, f"not what should learn: {sorted(learns ^ ours)[:3]}"


def weigh(model: PeftModel, name: str, weight: float) -> None:
    """Set the factor of one adapter's update: 1 as it was trained, 0 as if it were not there.

    Raises UserError for an adapter whose update can't be scaled, unless the weight is 1.
    """
    if weight != 1:
        check_linear([model.peft_config[name]])
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale(name, weight)


def frozen_hash(model: PeftModel) -> str:
    """Hex BLAKE2b-128 of every adapter weight that does not learn, in the order of their names: the same before, in and after training."""
    digest = blake2b(digest_size=16)
    for path, parameter in sorted(model.named_parameters(), key=lambda each: each[0]):
        if "lora_" in path and not parameter.requires_grad:
            digest.update(path.encode() + b"\0" + _bytes(parameter))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
