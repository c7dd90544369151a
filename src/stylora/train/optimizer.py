"""AdamW in its forms: as torch has it, with its moments in 8 bits (bitsandbytes), with a rate of its own for B (LoRA+).

    adamw_torch          two fp32 moments, 8 bytes for each trainable parameter
    adamw_8bit           both in 8 bits with a scale for each block of 256 (Dettmers et al. 2021, arXiv 2110.02861): 2 bytes
    paged_adamw_8bit     likewise, in memory that the GPU may move out to the computer's and back

LoRA+ (Hayou et al. 2024, arXiv 2402.12354): A [R, in] begins random and B [out, R] at zero, and in wide layers B should learn faster. So B,
and DoRA's magnitudes, have `ratio` times the learning rate of A. An adapted embedding keeps A's.

Knows parameters and their names, no data.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer

from stylora.errors import UserError
from stylora.model.quantized import require_bitsandbytes

from .settings import Optim

TRANSFORMERS: dict[Optim, str] = {
    "adamw_torch": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit",
}  # fmt: skip
"""our name -> transformers' `optim`; one kernel for all parameters gives the same numbers sooner"""


def check_optimizer(optim: Optim, device: str, where: str = "train.optim") -> None:
    """Raises UserError for an optimizer whose library is not installed, or that this device has not. device: `cuda`, `cpu` or `mps`"""
    if optim == "adamw_torch":
        return
    if device == "mps":  # nobody has shown that it learns the same there
        raise UserError(where, got=f"{optim} on mps", expected="adamw_torch, or a GPU of CUDA or a CPU for 8 bits", do="use adamw_torch")
    require_bitsandbytes(where)
    if optim == "paged_adamw_8bit" and device != "cuda":
        raise UserError(where, got=f"{optim} on {device}", expected="a GPU, from which there is something to page out", do="use adamw_8bit")


def loraplus(model: PeftModel, kind: type[torch.optim.Optimizer], keywords: dict[str, Any], *, ratio: float, decay: float) -> Any:
    """The optimizer with B's rate `ratio` times that of A. keywords: of the optimizer, with `lr`; decay: AdamW's, of all matrices"""
    return create_loraplus_optimizer(
        model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, loraplus_lr_embedding=keywords["lr"], **keywords
    )
