"""The second stage of a stack as a flat JSON has it: a frozen style adapter below, an instruct adapter that learns on it.

    {"base_model_name": "Qwen/Qwen3-8B-Base", "stage1_adapter_path": "stage1_style_injection/checkpoint-531",
     "dataset_path": "rows.jsonl", "max_seq_length": 2048, "lora_r": 64, "learning_rate": 5e-5, ...}

becomes one stage `instruct` whose `adapter.frozen` is that adapter, by the name `style`. Both work in every step, which the original says
of itself and never did: its `set_adapter("instruct")` switched the style off. Writes what this form has of its own; the output, the step
and `train` are those of other older recipes (older.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stylora.errors import UserError, did_you_mean

from .older_keys import ACCUMULATION, ADAPTER, BATCH, IDLE, TRAIN, Keys, Original, shown

OWN = {"base_model_name", "stage1_adapter_path", "dataset_path"}
"""keys that no other form has"""
STYLE_NAME = "style"
CONFIG = "adapter_config.json"
BASES = ("base_model_name", "base_model")
ROWS = ("dataset_path", "train_dataset_path", "train_file")
HELD = ("eval_dataset_path", "val_dataset_path", "validation_dataset_path", "val_file", "eval_file")
SHARE = ("validation_split", "val_ratio")
ELSEWHERE = ("output_dir", "trust_remote_code", "attention", "max_seq_length", "max_length", "bias", "task_type", "lora_bias")
SHAPE = {name for names in ADAPTER.values() for name in names if "." not in name}
KEYS = {*OWN, *BASES, *ROWS, *HELD, *SHARE, *ELSEWHERE, *SHAPE, *TRAIN, BATCH, ACCUMULATION, *IDLE}
"""every key of the form"""
STACK = Original(
    base="", output_dir="stage2_instruct_new_adapter", layout="flat", max_length=2048, batch=2, accumulation=32, stage="instruct",
    adapter={"r": 64, "alpha": 128, "dropout": 0.05, "targets": "all-linear"}, train={"num_train_epochs": 2, "learning_rate": 5e-5},
)  # fmt: skip
"""its targets were the seven linear layers of a Qwen block, which are all of them; its base is named by every file, or by its adapter"""


def is_stack(values: dict[str, Any]) -> bool:
    """Is this the form of a second stage?"""
    return not OWN.isdisjoint(values)


def read_base(keys: Keys, original: Original) -> None:
    """`base`, and the adapter that lies on it. Raises UserError for an unknown key, and an adapter that is not there."""
    for key in keys.given:
        if "." not in key and key not in KEYS:
            raise UserError(f"{keys.name}: {key}", got="an unknown key", expected="a key of older recipes", do=did_you_mean(key, KEYS))
    keys.called |= {"stages[0].train": "train", "stages[0].data": "data", "stages[0].adapter": "adapter"}  # there are no sections
    found = keys.take(*BASES)
    folder, named = _adapter_below(keys)
    if found:
        keys.put("base", found[1], f"{found[0]} {shown(found[1])} -> base", was=found[0])
        if named not in (None, found[1]):
            keys.lines.append(f"{folder}/{CONFIG} names {named}; base is what this file says, and the adapter must fit it")
    elif named:
        keys.put("base", named, f"base {named}, which {folder}/{CONFIG} names", was="stage1_adapter_path")
    else:
        raise UserError(f"{keys.name}: base_model_name", got="nothing", expected="the base that both adapters lie on", do="add this key")


def _adapter_below(keys: Keys) -> tuple[str, Any]:
    """(folder of the style adapter, the base it names, None where it names none)"""
    found = keys.take("stage1_adapter_path")
    where, value = found or ("stage1_adapter_path", None)
    if not isinstance(value, str) or not value:
        raise keys.wrong(where, value, "the folder of the style adapter that the new one is put on", do="name it")
    config = Path(value) / CONFIG
    if not config.is_file():
        run = (Path(value) / "adapter" / CONFIG).is_file()
        raise keys.wrong(
            where, value, f"a folder with an {CONFIG}", do=f"name {value}/adapter" if run else "train that stage first, or correct the path"
        )  # fmt: skip
    keys.put("adapter.frozen", [value], f"{where} {value} -> adapter.frozen, at work in every step; no weight of it changes", was=where)
    keys.put("adapter.names", [STYLE_NAME], f"adapter.names [{STYLE_NAME}], the new one is called {STACK.stage}")
    try:
        return value, json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise keys.wrong(where, value, f"an {CONFIG} in JSON", do="save that adapter again") from None


def read_rows(keys: Keys, length: int) -> None:
    """The conversations, of which the last answer is learned. length: of a conversation, said already"""
    keys.put("data.format", "chat", "data.format chat: dataset_path has conversations")
    keys.called["stages[0].data.train"] = "dataset_path"
    keys.move("data.train", ROWS)
    told = "data.turns last: as the original; answers before it are read here, which the original left out"
    keys.put("data.turns", "last", told)
    if held := keys.take(*HELD):
        if share := keys.take(*SHARE):
            raise keys.wrong(*share, f"nothing beside {held[0]}, which says what is held out", do="leave out one of them")
        keys.put("data.validation", [held[1]], f"{held[0]} {shown(held[1])} -> data.validation [{shown(held[1])}]", was=held[0])
    else:
        keys.move("data.validation", SHARE)
