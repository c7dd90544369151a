"""The base: a pretrained causal language model with its tokenizer, from the package, a folder or the hub.

`tiny` is the bundled one (model/tiny/README.md is its card). Knows no adapters and no data.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from stylora.errors import UserError

from .device import Device
from .quantized import cannot_pack, check_packing, four_bit, is_packed, keep_layout, whole_shape
from .tokenizer_file import TINY, base_path, hash_file, tokenizer_file

__all__ = ["TINY", "Base", "base_path", "decoder_of", "fingerprint", "hash_file", "load_base", "same_base", "tokenizer_file"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """model: in eval mode, frozen, on its device; tokenizer: with a pad token; name: as the user wrote it; path: what was opened"""

    name: str
    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """The longest row the base was made for, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)


def load_base(
    name: str, device: Device, *, attention: str | None = None, trust_remote_code: bool = False, load_in_4bit: bool = False,
    where: str = "base",
) -> Base:  # fmt: skip
    """Open a base for training or decoding.

    attention: "sdpa", "eager" or "flex_attention"; None lets transformers choose (sdpa where the model has it)
    load_in_4bit: pack its linear layers (`quantized.py`); one that was saved packed stays as it is
    where: the recipe key or flag named in messages
    Raises UserError when there is no such model, it is not a causal language model, it is damaged or incomplete, or can't be packed.
    """
    if load_in_4bit:
        check_packing(device.device, device.dtype)
    path = base_path(name)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        transformers_logging.disable_progress_bar()
        pack = load_in_4bit and getattr(config, "quantization_config", None) is None
        opened = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=device.dtype, attn_implementation=attention, trust_remote_code=trust_remote_code,
            output_loading_info=True, quantization_config=four_bit(device.dtype) if pack else None,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        # what transformers and safetensors raise for a missing, foreign or damaged model
        reason = str(error).strip().splitlines()[0]
        if load_in_4bit and isinstance(error, ImportError | RuntimeError) and "bitsandbytes" in reason:
            raise cannot_pack(reason) from error  # one of another version, for one: nothing is wrong with the base
        raise UserError(
            where, got=repr(name), expected="`tiny`, a folder with a causal language model, or a hub id that can be reached",
            do=f"check the name and the connection (transformers says: {reason})",
        ) from error  # fmt: skip
    model, loading = cast("tuple[Any, dict]", opened)
    if loading["missing_keys"]:  # transformers fills them with noise and goes on
        missing = sorted(loading["missing_keys"])
        raise UserError(
            where, got=f"{name!r} without {len(missing)} of its weights ({missing[0]}, ...)", expected="a complete causal language model",
            do="fetch or save it again",
        )  # fmt: skip
    if not tokenizer.encode("a", add_special_tokens=False):  # and for a folder without tokenizer files it makes up an empty one
        raise UserError(where, got=f"{name!r} with no words in its tokenizer", expected="a tokenizer", do="save the tokenizer there")
    keep_layout(model)
    model.requires_grad_(False)
    model.eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(name=name, path=path, model=model.to(device.device), tokenizer=tokenizer)


def fingerprint(base: Base) -> dict[str, Any]:
    """What tells one base from another, in milliseconds and whatever dtype it was loaded in, packed into 4 bits or not.

    architecture: hex hash of the configuration and of every parameter's name and shape, before it was packed
    weights: of each parameter the mean magnitude of its first 64 values, None where it is packed; not a checksum of every byte
    """
    config = base.model.config.to_diff_dict()
    parameters = sorted(base.model.named_parameters())
    left_out = {"_name_or_path", "transformers_version", "dtype"}
    if any(is_packed(parameter) for _, parameter in parameters):
        left_out.add("quantization_config")
    kept = {k: v for k, v in config.items() if k not in left_out}
    shapes = [(name, list(whole_shape(parameter))) for name, parameter in parameters]
    text = json.dumps([kept, shapes], sort_keys=True, default=str)
    return {
        "architecture": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        "weights": [
            None if is_packed(parameter) else float(parameter.detach().flatten()[:64].float().abs().mean()) for _, parameter in parameters
        ],
    }  # fmt: skip


def same_base(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two fingerprints are of one base; rounding to bf16 or fp16 makes no difference, nor does packing.

    Where one is packed its embeddings and norms are compared: 4 bits round the rest too much.
    """
    return one["architecture"] == other["architecture"] and all(
        a is None or b is None or math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-6)
        for a, b in zip(one["weights"], other["weights"], strict=True)
    )


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a causal language model that turns tokens into hidden states: everything but the head."""
    return model.get_decoder()
