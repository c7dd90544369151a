"""What a model is held to: itself with its adapters off, for the length of a `with`. There is no second copy of the base.

    base      every adapter off
    frozen    the trainable adapters off, the frozen ones below them on; with one adapter the same as `base`

Every dropout is off, nothing has a gradient, and positions are the base's own (model/rope_2d.py), unless an adapter that stays on was
trained with others. Afterwards all is as it was: which adapters are active, what trains, every module's mode.
PEFT's own `disable_adapter()` does not leave it so: on its way out it makes every active adapter trainable, the frozen ones too.

Knows PEFT's layers and nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .adapter import carries_coordinates
from .rope_2d import one_dimensional

Reference = Literal["base", "frozen"]


@contextmanager
def as_reference(model: nn.Module, reference: Reference = "base") -> Iterator[None]:
    """Inside, `model` answers as its reference does. model: adapters injected, none of them folded into the weights"""
    layers = adapted_layers(model)
    assert layers, "without an adapter a model is its own reference"
    modes = [(module, module.training) for module in model.modules()]
    trains = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    active = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    stay: set[str] = set()
    try:
        model.eval()
        for layer in layers:
            kept = [name for name in layer.active_adapters if not _trains(layer, name)] if reference == "frozen" else []
            stay |= {*kept}
            if kept:
                layer.set_adapter(kept)
            else:
                layer.enable_adapters(False)
        configs = getattr(model, "peft_config", {})  # of a part of a model, such as its head, there are none, and no positions
        branching = any(carries_coordinates(configs[name]) for name in stay & configs.keys())
        with torch.no_grad(), nullcontext() if branching else one_dimensional(model):
            yield
    finally:
        for layer, names, off in active:
            layer.set_adapter(names)
            layer.enable_adapters(not off)
        for parameter, flag in trains:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def adapted_layers(model: nn.Module) -> list[Any]:
    """The layers of the model that hold adapters: PEFT's mixins on modules, which no type describes."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _trains(layer: nn.Module, name: str) -> bool:
    """Does adapter `name` have a trainable parameter in this layer?"""
    # paths are `lora_A.NAME.weight`, `lora_embedding_A.NAME`, `base_layer.weight`
    return any(parameter.requires_grad and path.split(".")[1] == name for path, parameter in layer.named_parameters())
