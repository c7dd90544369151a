"""Stacks on a small random base, written as training leaves them, without training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from stylora.model.adapter import attach, save_adapter
from stylora.model.base import fingerprint, load_base
from stylora.model.device import Device
from stylora.model.settings import Adapter
from stylora.run.folder import adapter_hash, config_hash
from stylora.samples.branch_settings import Branches

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_adapter(base: Path, folder: Path, adapter: Adapter, *, seed: int, branches: Branches | None = None) -> Path:
    """A saved adapter that does something. branches: that it says it was trained on"""
    peft = attach(AutoModelForCausalLM.from_pretrained(base), adapter, seed=seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter += torch.randn_like(parameter) * 0.2
    save_adapter(peft, folder, base_name=str(base), branches=branches)
    return folder


def write_stack(base: Path, folder: Path, layers: Mapping[str, Path], *, load_in_4bit: bool = False) -> Path:
    """A stage's stack.json that names these adapters by relative paths, bottom to top."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"name": name, "path": Path(os.path.relpath(path, folder)).as_posix(), "role": "frozen", "weight": 1.0,
         "hash": adapter_hash(path), "config_hash": config_hash(path)}
        for name, path in layers.items()
    ]  # fmt: skip
    described = {"name": str(base), "fingerprint": fingerprint(load_base(str(base), FP32)), "load_in_4bit": load_in_4bit}
    (folder / "stack.json").write_text(json.dumps({"base": described, "adapters": entries}, ensure_ascii=False), encoding="utf-8")
    return folder


def write_stacks(base: Path, folder: Path) -> Path:
    """`style`, and on it `instruct` and `letters`: three stages of one base."""
    style = write_adapter(base, folder / "style" / "adapter", Adapter(r=4, alpha=8, dropout=0.3), seed=0)
    instruct = write_adapter(base, folder / "instruct" / "adapter", Adapter(r=2, alpha=6), seed=1)
    letters = write_adapter(base, folder / "letters" / "adapter", Adapter(r=3, alpha=3, targets=["q_proj", "down_proj"]), seed=2)
    write_stack(base, folder / "style", {"style": style})
    write_stack(base, folder / "instruct", {"style": style, "instruct": instruct})
    write_stack(base, folder / "letters", {"style": style, "letters": letters})
    return folder


def write_chat_base(base: Path, folder: Path, template: str = CHATML) -> Path:
    """The same base with a chat template."""
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
