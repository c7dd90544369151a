"""`stylora export`: a stack as a folder that other programs open: one LoRA, the same at a smaller rank, or a whole model.

    FOLDER/
      adapter_model.safetensors, adapter_config.json    concat, svd: plain PEFT
      model-00001-of-0000N.safetensors, config.json     merged: plain transformers
      tokenizer files, chat template
      README.md                                         the model card (card.py)
      export.json                                       what it was made of, and how near to the stack it is

It is written beside FOLDER, read again by peft or transformers alone, and its logits compared with the stack's. Only then does it take its
place, so what lies there is whole and right. All is computed on the CPU, where rounding is the same everywhere and memory the largest.
"""

from __future__ import annotations

import gc
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from rich.console import Console
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from stylora import __version__
from stylora.errors import UserError, did_you_mean
from stylora.evaluate.prompts import PROMPTS
from stylora.model.adapter import check_linear, read_config, save_adapter, strip
from stylora.model.base import Base, load_base
from stylora.model.device import DTYPES, Device
from stylora.model.export import (
    TOLERANCE,
    Difference,
    Shrunk,
    attach_updates,
    cast_adapter,
    check_addable,
    compare,
    concatenate,
    logits_of,
    merge,
    shrink,
)
from stylora.model.stack_names import check_names
from stylora.model.tokenizer_file import base_path
from stylora.samples.branch_settings import place
from stylora.train.interruption import Interruption

from .card import model_card
from .export_folder import EXPORT, check_place, writing
from .folder import adapter_hash, write_json, write_text
from .open import Found, find_model, put_on

KINDS = ("concat", "svd", "merged")
SHARD = "5GB"
COMPARED = 8  # prompts
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank may be


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How MODEL is to be written.

    kind: `concat`, `svd` or `merged`; rank: of svd; dtype: of the saved numbers, None is fp32 for adapters and the base's own for merged
    max_shard_size: of a file of merged weights, as in 5GB
    """

    kind: str
    rank: int | None = None
    dtype: str | None = None
    max_shard_size: str | None = None

    def check(self) -> None:
        """Raises UserError for options that do not go together, named as flags."""
        if self.kind == "gguf":
            do = "export it with --as merged, and convert that folder with llama.cpp's convert_hf_to_gguf.py"
            raise UserError("--as", got="'gguf'", expected=f"one of {', '.join(KINDS)}", do=do)
        if self.kind not in KINDS:
            raise UserError("--as", got=repr(self.kind), expected=f"one of {', '.join(KINDS)}", do=did_you_mean(self.kind, KINDS))
        if (self.kind == "svd") != (self.rank is not None):
            got = "none, with --as svd" if self.rank is None else f"{self.rank}, with --as {self.kind}"
            raise UserError("--rank", got=got, expected="a rank with svd, and with nothing else")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError("--dtype", got=repr(self.dtype), expected=f"one of {', '.join(DTYPES)}")
        if self.max_shard_size is not None and self.kind != "merged":
            raise UserError("--max-shard-size", got=f"a size, with --as {self.kind}", expected="one with merged, whose files are large")
        if not re.fullmatch(r"[1-9]\d*[KMG]B", self.max_shard_size or SHARD):
            raise UserError("--max-shard-size", got=repr(self.max_shard_size), expected="a size, as in 500MB or 5GB")


def export(
    name: str, folder: Path, wanted: Wanted, *, console: Console, base: str | None = None, trust_remote_code: bool = False,
    force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write MODEL into `folder`, and give what export.json says.

    force: replace an earlier export there, and export also what was changed after training
    Raises UserError for options and adapters that do not go together, a folder that is not ours to fill, a base in packed weights, and
    where what was written is not the model it should be, and for branches that carry a coordinate, which no other program knows;
    Interrupted after a signal, which leaves FOLDER as it was.
    """
    wanted.check()
    found = working(find_model(name, base=base, force=force))
    if found.branches is not None and found.branches.rope_2d_ratio:
        raise UserError(
            found.name, got=f"an adapter whose branches stand at {place(found.branches)}", expected="positions that other programs know",
            do="use it here (`stylora branches`), or train it with branches.rope_2d_ratio 0, which can be exported",
        )  # fmt: skip
    for layer in found.layers:
        config = read_config(layer.folder)
        if wanted.kind != "merged":
            check_addable(config, str(layer.folder))
        elif layer.weight != 1:
            check_linear([config])
    check_place(folder, [Path(base_path(found.base)), *found.adapters], force)
    device = comparing_device(found.base, trust_remote_code)
    opened = load_base(found.base, device, trust_remote_code=trust_remote_code, where=found.where)
    if getattr(opened.model, "is_quantized", False):
        do = "name the unquantised one with --base"
        raise UserError(found.where, got=f"{found.base}, which is saved in packed weights", expected="a base in whole weights", do=do)
    with Interruption() as interruption, interruption.at_once(), writing(folder) as part:
        told = write_and_compare(found, opened, device, wanted, part, trust_remote_code, console)
        write_json(part / EXPORT, told)
        write_text(part / "README.md", model_card(told, found, name=folder.resolve().name, base_path=opened.path))
    return told


def working(found: Found) -> Found:
    """Without the adapters whose weight is 0. Raises UserError where none is left, and for two of one name."""
    layers = tuple(layer for layer in found.layers if layer.weight)
    if not layers:
        got = "no adapter whose weight is not 0" if found.layers else "a model without adapters"
        raise UserError(found.name, got=got, expected="a run, a stage, a stack.json or an adapter")
    check_names([layer.name for layer in layers], where=found.where, do="give each a name of its own in stack.json")
    return replace(found, layers=layers)


def comparing_device(base: str, trust_remote_code: bool) -> Device:
    """The CPU in fp32, where a mistake is told from rounding; in bf16 where the base would not fit into memory otherwise."""
    try:
        config = AutoConfig.from_pretrained(base_path(base), trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError):
        # no base at all, and opening it will say what is wrong; or code that can't be run without numbers
        need = 0
    else:
        need = 4 * sum(parameter.numel() for parameter in shape.parameters())
    dtype = torch.float32 if 1.2 * need < psutil.virtual_memory().available else torch.bfloat16
    return Device(device=torch.device("cpu"), dtype=dtype, why="CPU, to compare logits")


# ------------------------------------------------------------------------------------------------ writing and comparing


def write_and_compare(
    found: Found, base: Base, device: Device, wanted: Wanted, part: Path, trust_remote_code: bool, console: Console
) -> dict[str, Any]:
    """Write weights and tokenizer into `part`, read them again, compare, and tell. Raises UserError where it is another model."""
    opened = put_on(base, found)
    assert isinstance(opened.model, PeftModel)
    for line in opened.forced:
        console.print(f"warning    forced: {line}", markup=False, highlight=False, style="yellow")
    if found.load_in_4bit:
        console.print("base       in whole weights, while it was trained on 4 bits: their logits differ, and are not compared")
    rows = prompts_of(base.tokenizer)
    stack = logits_of(opened.model, rows)
    told: dict[str, Any] = {
        "as": wanted.kind, "model": found.name, "base": found.base, "trained_in_4bit": found.load_in_4bit, "version": __version__,
        "adapters": [
            {"name": layer.name, "weight": layer.weight, "hash": adapter_hash(layer.folder), **_kind(config)}
            for layer, config in zip(found.layers, opened.model.peft_config.values(), strict=True)
        ],
        "forced": list(opened.forced),
    }  # fmt: skip
    # the tokenizer as the base has it: ours has a pad token in any case
    AutoTokenizer.from_pretrained(base.path, trust_remote_code=trust_remote_code).save_pretrained(str(part))
    if wanted.kind == "merged":
        more, differ = _merged(opened.model, base.path, wanted, part, rows, stack, device, trust_remote_code)
    else:
        more, differ = _adapter(opened.model, base, wanted, part, rows, stack, device)
    told |= more
    told["comparison"] = {**asdict(differ), "precision": device.precision, "prompts": len(rows), "tokens": sum(map(len, rows))}
    if not differ.passed:
        raise UserError(
            found.name, got=f"logits that differ by {differ.largest:.2g} once it is written and read again",
            expected=f"at most {differ.allowed:.2g}, which is rounding", do="nothing was written; this is no mistake of yours: report it",
        )  # fmt: skip
    return told


def _kind(config: PeftConfig) -> dict[str, Any]:
    more = {"r": config.r, "alpha": config.lora_alpha} if isinstance(config, LoraConfig) else {}
    return {"type": str(config.peft_type).removeprefix("PeftType."), **more}


def prompts_of(tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """The rows that are compared: neutral openings, each int64 [T]."""
    return [tokenizer(prompt, return_tensors="pt")["input_ids"][0] for prompt in PROMPTS[:COMPARED]]


def _adapter(
    model: PeftModel, base: Base, wanted: Wanted, part: Path, rows: list[Tensor], stack: list[Tensor], device: Device
) -> tuple[dict[str, Any], Difference]:  # fmt: skip
    """One LoRA. What concat leaves must be the stack; what svd leaves must be what was shrunk, and its distance from the stack is told."""
    dtype = DTYPES[wanted.dtype or "fp32"]
    updates = concatenate(model)
    full = max(update.a.shape[0] for update in updates.values())
    shrunk: Shrunk | None = None
    if wanted.rank is not None:
        shrunk = shrink(updates, wanted.rank)
        updates = shrunk.updates
    strip(base.model)
    whole = attach_updates(base.model, updates)
    rank = max(update.a.shape[0] for update in updates.values())
    expected = stack if shrunk is None else logits_of(whole, rows)
    cast_adapter(whole, dtype)
    save_adapter(whole, part, base_name=base.path)
    strip(base.model)
    again = logits_of(PeftModel.from_pretrained(base.model, str(part)).eval(), rows)
    told: dict[str, Any] = {
        "dtype": wanted.dtype or "fp32", "rank": rank, "rank_of_stack": full, "bytes": _bytes(part),
        "vllm_max_lora_rank": next((each for each in VLLM_RANKS if each >= rank), None),
    }  # fmt: skip
    if shrunk is not None:
        worst = max(shrunk.errors, key=lambda path: shrunk.errors[path])
        told["svd"] = {
            "error": shrunk.error, "worst_error": shrunk.errors[worst], "worst_module": worst,
            "largest_logit_difference": compare(stack, again, device.dtype).largest,
        }  # fmt: skip
    return told, compare(expected, again, device.dtype, dtype)


def _merged(
    model: PeftModel, path: str, wanted: Wanted, part: Path, rows: list[Tensor], stack: list[Tensor], device: Device,
    trust_remote_code: bool,
) -> tuple[dict[str, Any], Difference]:  # fmt: skip
    """Whole weights, computed in the precision of the comparison and rounded once."""
    own = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).dtype
    dtype = DTYPES[wanted.dtype] if wanted.dtype else own if own in TOLERANCE else torch.float32
    merged = merge(model).to(dtype)  # type: ignore[arg-type]  # torch's own `to`, behind a decorator
    merged.save_pretrained(str(part), max_shard_size=wanted.max_shard_size or SHARD)
    for parameter in merged.parameters():  # room for what is read again: the base is held by whoever called us
        parameter.data = parameter.data.new_empty(0)
    gc.collect()
    again = AutoModelForCausalLM.from_pretrained(str(part), dtype=device.dtype, trust_remote_code=trust_remote_code).eval()
    told = {"dtype": next(name for name, each in DTYPES.items() if each is dtype), "bytes": _bytes(part)}
    return told, compare(stack, logits_of(again, rows), device.dtype, dtype)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
