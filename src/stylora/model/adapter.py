"""LoRA through PEFT: attaching, what is trainable, saving in plain PEFT format.

An adapter that was trained on branches says so in its adapter_config.json. Where branches carry a coordinate (model/rope_2d.py) its type
there is our own: the weights are LoRA's, but plain PEFT, which knows no such positions, fails on it instead of being wrong without a word.

LoRA: W + (alpha / r) * B A, with A [R, in] random and B [out, R] zero, so a fresh adapter changes nothing (Hu et al. 2021,
arXiv 2106.09685). rsLoRA divides by sqrt(r) instead (arXiv 2312.03732); DoRA trains a magnitude per column beside it (arXiv 2402.09353).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stylora.errors import UserError, did_you_mean
from stylora.samples.branch_settings import Branches

from .quantized import whole_shape
from .rope_2d import one_dimensional, remove
from .settings import Adapter

CONFIG = "adapter_config.json"
LORA_2D = "STYLORA_LORA_2D"
"""`peft_type` of an adapter whose branches carry a coordinate"""


@dataclass
class BranchLora(LoraConfig):
    """In memory: LoRA that was trained on branches. branches: their settings, as the file has them"""

    branches: dict[str, Any] | None = field(default=None)


def attach(
    model: PreTrainedModel | PeftModel, adapter: Adapter, *, seed: int, name: str = "default", where: str = "adapter"
) -> PeftModel:
    """Put a fresh, trainable adapter into the model, on those it has; its matrices are fp32 and drawn from `seed`.

    Raises UserError when `targets` names modules the base does not have.
    """
    paths = adaptable(model)
    if adapter.targets != "all-linear":
        for target in adapter.targets:
            if not any(path == target or path.endswith("." + target) for path in paths):
                raise UserError(
                    f"{where}.targets", got=repr(target), expected="linear or embedding modules of this base",
                    do=did_you_mean(target, {path.rsplit(".", 1)[-1] for path in paths}),
                )  # fmt: skip
    config = LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT says int and computes with floats too
        lora_dropout=adapter.dropout, target_modules=adapter.targets,
        use_rslora=adapter.rslora, use_dora=adapter.dora, task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(seed)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    return get_peft_model(model, config, adapter_name=name)


def adaptable(model: nn.Module) -> list[str]:
    """Paths of the modules LoRA can adapt. One that has an adapter already counts as what it was, without its parts."""
    found: list[str] = []
    for path, module in model.named_modules():  # a module comes before its parts
        part = bool(found) and path.startswith(found[-1] + ".")
        if not part and isinstance(module, LoraLayer | nn.Linear | nn.Embedding | Conv1D):
            found.append(path)
    return found


def load_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, *, trainable: bool = False, name: str = "default"
) -> PeftModel:
    """A saved PEFT adapter on its base, and on the adapters it has. Raises UserError when the folder holds none or it does not fit.

    Half an adapter is none: PEFT only warns when the base has modules the file says nothing of, and is silent the other way round.
    """
    for wanted in ([CONFIG], ["adapter_model.safetensors", "adapter_model.bin"]):
        if not any((folder / file).is_file() for file in wanted):  # PEFT would ask the hub for them
            raise UserError(str(folder), got=f"no {wanted[0]}", expected="a PEFT adapter folder", do="name a run or its adapter/ folder")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
        try:
            config = read_config(folder)
            if isinstance(model, PeftModel):
                adapted = model
                if isinstance(config, BranchLora):  # PEFT asks the file for the type of one that is not there, and does not know ours
                    config.inference_mode = not trainable
                    model.add_adapter(name, config)
                    model.set_requires_grad(name, trainable)
                model.load_adapter(str(folder), name, is_trainable=trainable)
            else:
                adapted = PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable, config=config)
            saved = {key for key in load_peft_weights(str(folder), device="cpu") if "lora_" in key}
            homeless = saved - {*get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)}
        except (ValueError, RuntimeError, KeyError, UserWarning, SafetensorError) as error:
            raise _unfit(folder, " ".join(" ".join(str(error).splitlines()[:2]).split())) from error
    if homeless:
        raise _unfit(folder, f"{len(homeless)} of its weights find no module, {min(homeless)}")
    return adapted


def read_config(folder: Path) -> PeftConfig:
    """The configuration of a saved adapter, ours of branches included. Raises what PEFT raises for one that it can't read."""
    values = _read(folder)
    if values.get("peft_type") != LORA_2D and not (values.get("peft_type") == "LORA" and "branches" in values):
        return PeftConfig.from_pretrained(str(folder))
    named = {key: value for key, value in values.items() if key not in ("peft_type", "runtime_config")}
    return BranchLora.from_peft_type(**BranchLora.check_kwargs(**named))


def read_branches(folder: Path) -> Branches | None:
    """How the branches were laid out that an adapter was trained on; None for one of other data.

    Raises UserError where that can't be read.
    """
    values = _read(folder)
    told = values.get("branches")
    if told is None and values.get("peft_type") != LORA_2D:
        return None
    try:
        return Branches.model_validate(told)
    except ValidationError as error:
        raise UserError(
            str(folder / CONFIG), got="branches that can't be read", expected="what training wrote there", do="train it again"
        ) from error


def carries_coordinates(config: PeftConfig) -> bool:
    """Was an adapter with this configuration trained with a second coordinate on its rotary pairs?"""
    return isinstance(config, BranchLora) and (config.branches or {}).get("rope_2d_ratio", 0) > 0


def _read(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says; nothing where there is none. Raises UserError for broken JSON."""
    if not (folder / CONFIG).is_file():
        return {}
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(str(folder / CONFIG), got="broken JSON", expected="what training wrote there", do="train it again") from error
    return values if isinstance(values, dict) else {}


def strip(model: PreTrainedModel) -> None:
    """Take every adapter off a base, also one that could not be put on to its end, and the positions that came with it."""
    remove(model)
    for path, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Put saved weights into the adapter that is there; which adapters are active and which train stays as it is.

    Raises UserError where the file holds other weights than the adapter has.
    """
    before = (list(model.active_adapters), [name for name, parameter in model.named_parameters() if parameter.requires_grad])
    weights = load_peft_weights(str(folder), device="cpu")
    if weights.keys() != get_peft_model_state_dict(model, save_embedding_layers=False).keys():
        raise _unfit(folder, "its weights have other names or numbers")
    set_peft_model_state_dict(model, weights)
    assert before == (list(model.active_adapters), [name for name, p in model.named_parameters() if p.requires_grad])


@contextmanager
def adapter_weight(model: PeftModel, weight: float) -> Iterator[None]:
    """Inside, the model is base + weight * update of all its adapters: 0 the base, 1 as it was trained. Afterwards all scales are what they
    were. Positions of branches, where it has them, do not scale: they are there at every weight but 0.

    Between 0 and 1 this interpolates base and fine-tuned weights (WiSE-FT, arXiv 2109.01903), for LoRA is linear in its scale.
    Raises UserError for an adapter that is not (`check_linear`).
    """
    check_linear(model.peft_config.values())
    with rescale_adapter_scale(model, weight), nullcontext() if weight else one_dimensional(model):
        yield


def check_linear(configs: Iterable[PeftConfig], *, where: str = "weight", do: str = "leave the weight at 1") -> None:
    """Raises UserError for an adapter whose update can't be scaled: DoRA, whole weights beside LoRA, or no LoRA at all."""
    for config in configs:
        reason = None
        if not isinstance(config, LoraConfig):
            reason = f"an adapter of type {config.peft_type}, which has no scale"
        elif config.use_dora:
            reason = "a DoRA adapter, whose length is normalised after the update was added"
        elif config.modules_to_save or config.trainable_token_indices:
            reason = "an adapter that replaces whole weights beside LoRA"
        if reason is not None:
            raise UserError(where, got=reason, expected="plain LoRA, whose update can be scaled", do=do)


def _unfit(folder: Path, reason: str) -> UserError:
    return UserError(
        str(folder), got=f"an adapter that does not fit this base ({reason})", expected="the base it was trained on",
        do="give the base named in its adapter_config.json",
    )  # fmt: skip


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; packed weights count one by one."""
    sizes = [(whole_shape(parameter).numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def save_adapter(model: PeftModel, folder: Path, *, base_name: str, branches: Branches | None = None) -> None:
    """Write the trained adapter alone: `adapter_model.safetensors` and a sorted `adapter_config.json` that names the base by the folder or
    hub id it opens from.

    branches: the layout of those it was trained on, which goes in there too; None where it was trained on other data
    PEFT writes its config from sets, so two processes would write different bytes for one adapter. Left to itself it also asks
    the hub whether the vocabulary grew, and puts a whole embedding into the file when LoRA adapts it.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; ours is the run's own
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config.pop("branches", None)  # of the adapter it was trained on from
    if branches is not None:
        config["branches"] = branches.model_dump(mode="json")
        if branches.rope_2d_ratio:
            config["peft_type"] = LORA_2D
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    os.replace(temporary, path)
