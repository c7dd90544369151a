"""QLoRA's frozen base in 4 bits: NF4 with double quantisation, by bitsandbytes (Dettmers et al. 2023, arXiv 2305.14314).

    W [out, in] bf16  ->  codes, two a byte, one of 16 levels each  +  a scale for every 64 of them, itself in 8 bits
                          0.5 byte a weight                            0.016 byte a weight

Every linear layer but the head is packed; embeddings, norms and the head stay as they are. A layer's weight is unpacked to the
computing dtype for each product with it, so what learns above it sees a slightly rounded base, and nothing else changes.

Knows no adapters. `prepare_model_for_kbit_training` of PEFT is not used: it turns every unpacked weight, the embedding too, into fp32, and
makes inputs need a gradient, which only reentrant checkpointing asks for.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from stylora.errors import UserError


def require_bitsandbytes(where: str) -> None:
    """Raises UserError where bitsandbytes is not installed. where: the key that asked for it"""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            where, got="no bitsandbytes", expected="bitsandbytes, which packs weights and optimizer states",
            do="pip install bitsandbytes, or leave the key away",
        )  # fmt: skip


def check_packing(device: torch.device, dtype: torch.dtype) -> None:
    """Pack one small matrix as a base's are packed; transformers would try all of the base, and tell what fails in a table of tracebacks.

    Raises UserError where bitsandbytes is not installed, broken, or not made for the device.
    """
    require_bitsandbytes("load_in_4bit")
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        codes, state = quantize_4bit(torch.ones(64, 64, device=device, dtype=dtype), quant_type="nf4", compress_statistics=True)
        dequantize_4bit(codes, state)
    except (ImportError, RuntimeError) as error:
        raise cannot_pack((str(error).strip() or type(error).__name__).splitlines()[0]) from error


def cannot_pack(reason: str) -> UserError:
    """reason: what bitsandbytes, or transformers of it, says"""
    return UserError(
        "load_in_4bit", got=f"a bitsandbytes that can't pack here ({reason})", expected="one that works on this device",
        do="install another version of it, or leave the key away",
    )  # fmt: skip


def four_bit(dtype: torch.dtype) -> BitsAndBytesConfig:
    """How a base is packed. dtype: of the products"""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from rearranging packed weights for inference.

    On a CPU with AVX512-BF16 the first forward in eval mode puts them into an order that only a kernel without a backward reads. Training
    after an evaluation would then go on without a word, on gradients that miss every path through a packed layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # an attribute of one class of modules


def is_packed(parameter: nn.Parameter) -> bool:
    """Does it hold 4-bit codes, two a byte?"""
    return getattr(parameter, "quant_state", None) is not None


def whole_shape(parameter: Any) -> torch.Size:
    """The shape of the matrix, whether it is packed or not."""
    return torch.Size(parameter.quant_state.shape) if is_packed(parameter) else parameter.shape


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they lie in memory, the scales of packed ones included."""
    parts: list[Any] = list(model.parameters())
    parts += [part for each in parts if is_packed(each) for part in each.quant_state.as_dict().values() if torch.is_tensor(part)]
    return sum(part.numel() * part.element_size() for part in parts)
