"""Recipes in the forms that people have from elsewhere -> the current form, with a sentence for every key.

    model / data / training                 style from novels: `span`, checkpoints in output_dir itself
    base_model / lora / training / data     chat on structured tasks: the adapter in output_dir/final
    base_model_name, stage1_adapter_path    an instruct adapter on a frozen style adapter (older_stack.py): output_dir itself

Each section may be missing, and a key of `training` or `lora` may stand alone; what nobody says is what the originals took, and is named.
A step is per_device_train_batch_size x gradient_accumulation_steps x processes samples, as in transformers' `TrainingArguments`.

Knows no recipe: it gives plain values, which `recipe.py` overrides and validates.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylora.corpus.read import find_files
from stylora.errors import UserError, did_you_mean
from stylora.train.settings import current_names

from .older_keys import (
    ACCUMULATION,
    ADAPTER,
    BARE,
    BATCH,
    CHAT,
    DATA,
    IDLE,
    RENAMED,
    ROWS,
    SECTIONS,
    STYLE,
    TRAIN,
    UNSAID,
    Keys,
    Original,
    as_number,
    shown,
)  # fmt: skip
from .older_stack import KEYS as STACK_KEYS
from .older_stack import STACK, is_stack, read_base, read_rows

RANGE = re.compile(r"\s*[\d.]+\s*[-–~]\s*([\d.]+)\s*")  # 3-5


@dataclass(frozen=True, kw_only=True)
class Translation:
    """values: the recipe in the current form; lines: a sentence for each key, given, filled in or ignored;
    called: place in the current form (`stages[0].train.learning_rate`) -> the older key it came from, for messages"""

    values: dict[str, Any]
    lines: list[str]
    called: dict[str, str]


def is_older(values: dict[str, Any], name: str) -> bool:
    """Is this a recipe in an older form? Raises UserError where it is in both."""
    sections = [section for section in SECTIONS if section in values]
    if "stages" in values:
        if sections:
            raise UserError(
                f"{name}: stages, {', '.join(sections)}", got="both forms at once", expected="`stages`, or the sections of an older recipe",
                do=f"put {', '.join(sections)} into a stage, or remove `stages`",
            )  # fmt: skip
        return False
    data = values.get("data")
    older_data = isinstance(data, dict) and not DATA.isdisjoint(data)
    return older_data or bool({*sections} - {"data"}) or not BARE.isdisjoint(values) or is_stack(values)


def reaches_older(override: str, values: dict[str, Any]) -> bool:
    """Does the override mean a key of this recipe's older form? All others are carried out after the translation."""
    name = override.partition("=")[0]
    section, _, key = name.partition(".")
    if is_stack(values) and name in STACK_KEYS:
        return True
    return section in ("model", "base_model", "lora", "training") or (section == "data" and key in DATA)


def translate(values: dict[str, Any], *, name: str, processes: int) -> Translation:
    """An older recipe in the current form.

    name: of the file, for messages; processes: of this run, part of the size of a step
    Raises UserError for unknown keys, values that cannot be, and what has no counterpart here.
    """
    keys = Keys(name, values)
    original = STACK if is_stack(values) else CHAT if {"base_model", "lora"} & values.keys() else STYLE
    (read_base if original is STACK else _base)(keys, original)
    _output(keys, original)
    _adapter(keys, original)
    length = _length(keys, original)
    (read_rows if original is STACK else _chat if original is CHAT else _novels)(keys, length)
    _objective(keys, original)
    _step(keys, original, length, processes)
    _train(keys, original)
    _rest(keys)
    return Translation(values=keys.recipe | {"stages": [{"name": original.stage, **keys.stage}]}, lines=keys.lines, called=keys.called)


def renamed_lines(values: dict[str, Any]) -> list[str]:
    """What names that transformers dropped become in the stages of a valid recipe: "train.warmup_ratio 0.1 -> train.warmup_steps 0.1"."""
    sections = [stage["train"] for stage in values["stages"] if isinstance(stage.get("train"), dict)]
    return [line for train in sections for line in _renamed(train, "train")[1]]


def _renamed(given: dict[str, Any], section: str) -> tuple[dict[str, Any], list[str]]:
    """(a `train` section in today's names, what became of the others). Raises ValueError where two names contradict."""
    now = current_names(given)
    lines = []
    for old, new in RENAMED.items():
        said = old in given and (old != new or now.get(new) != given[old])
        other = {"bf16": "fp16", "fp16": "bf16"}.get(old)  # of the two, the one that was asked for
        if said and (other is None or given[old] or not given.get(other)):
            lines.append(f"{section}.{old} {shown(given[old])} -> train.{new} {shown(now.get(new))}")
    return now, lines


def refuse_step_names(values: dict[str, Any], name: str) -> None:
    """Raises UserError where a stage's `train` has the older form's step size."""
    stages = values.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        train = stage.get("train") if isinstance(stage, dict) else None
        for key in (BATCH, ACCUMULATION):
            if isinstance(train, dict) and key in train:
                both = "samples_per_step" in train
                raise UserError(
                    f"{name}: stages[{number}].train.{key}", got="both forms at once" if both else "a key of the older form",
                    expected="samples_per_step alone, the samples of a whole step", do="use samples_per_step",
                )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------- section by section


def _base(keys: Keys, original: Original) -> None:
    found = keys.take("model.use_lora")
    if found and found[1] is not True:
        raise keys.wrong(found[0], found[1], "true: only LoRA adapters are trained, the base stays as it is", do="remove it")
    names = ("base_model", "model.model_name_or_path", "model.base_model", "base")
    if (found := keys.take(*names)) is None:
        return keys.put("base", original.base, f"base {original.base}{UNSAID}")
    was, value = found
    if isinstance(value, str) and (Path(value) / "adapter_config.json").is_file():
        return _continue_adapter(keys, was, value)
    keys.put("base", value, f"{was} {shown(value)} -> base", was=was)


def _continue_adapter(keys: Keys, was: str, folder: str) -> None:
    """A base that is the checkpoint of an adapter means: go on training that adapter, with the rank and targets it has."""
    base = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        expected = "a base, or an adapter whose adapter_config.json names one"
        raise keys.wrong(was, folder, expected, do="name the base it was trained on there")
    keys.put("base", base, f"{was} {folder} -> adapter.path: goes on with this adapter on its base, {base}", was=was)
    keys.put("adapter.path", folder, "", was=was)


def _output(keys: Keys, original: Original) -> None:
    keys.move("output_dir", ("training.output_dir", "output_dir"), original.output_dir)
    where = "checkpoint-N and the adapter in output_dir itself" if original.layout == "flat" else "the adapter in output_dir/final"
    keys.put("layout", original.layout, f"layout {original.layout}: {where}, as the original")
    for key in ("trust_remote_code", "attention"):
        keys.move(key, (key, f"model.{key}"))


def _adapter(keys: Keys, original: Original) -> None:
    path = keys.stage.get("adapter", {}).get("path")
    for key, names in ADAPTER.items():
        if path is None:
            keys.move(f"adapter.{key}", names, original.adapter.get(key))
        elif found := keys.take(*names):
            keys.lines.append(f"{found[0]} {shown(found[1])}: no meaning here, the adapter in {path} has its own")
    for key, right in {"bias": "none", "task_type": "CAUSAL_LM"}.items():
        alone = (key, f"lora_{key}") if original is STACK else ()
        found = keys.take(f"lora.{key}", f"model.{key}", f"model.lora_{key}", *alone)
        if found and found[1] != right:
            raise keys.wrong(*found, f"{right}, the only one there is", do="remove it")
        if found:
            keys.lines.append(f"{found[0]} {right}: always so")


def _length(keys: Keys, original: Original) -> int:
    """max_length, which stood in several places: tokens of a window, or the longest conversation."""
    new = "data.window" if original is STYLE else "data.max_length"
    names = ("data.max_length", "training.max_length", "model.max_length", "max_length", "max_seq_length")
    was, length = keys.number(names, original.max_length)
    assert length is not None
    keys.put(new, length, f"{was} {length} -> {new} {length}" if was else f"{new} {length}{UNSAID}", was=was)
    return length


def _chat(keys: Keys, length: int) -> None:
    keys.put("data.format", "chat", "data.format chat: with base_model or lora a recipe is about conversations")
    keys.move("data.train", ("data.train_file", "data.train_path", "data.train", "data.data_dir"), "./data")
    held = keys.take("data.val_file", "data.eval_file", "data.validation_file") or keys.take("data.test_file")
    if held:
        keys.put("data.validation", [held[1]], f"{held[0]} {held[1]} -> data.validation [{held[1]}]", was=held[0])
        if test := keys.take("data.test_file"):
            keys.lines.append(f"{test[0]} {test[1]}: not read in training, which measures on {held[0]}")
    else:
        keys.move("data.validation", ("data.val_ratio",))


def _novels(keys: Keys, window: int) -> None:
    _texts(keys)
    was, stride = keys.number(("data.stride",))
    if was is None or stride is None:
        keys.put("data.overlap", 0, "data.overlap 0: the original repeated a fifth of every window, which trains that text twice")
    elif not 0 < stride <= window:
        raise keys.wrong(was, stride, f"1 to {window}, the length of a window; a longer stride would skip text")
    else:
        told = f"{was} {stride} -> data.overlap {window - stride}, what is left of a window of {window}; the original did not read it"
        keys.put("data.overlap", window - stride, f"{told} and always repeated a fifth", was=was)
    was, shortest = keys.number(("data.min_length",))
    if was is not None and shortest is not None:
        kept = max(1, min(shortest, window // 2))
        why = "" if kept == shortest else ", from 1 to half a window"
        told = f"{was} {shortest} -> data.min_window {kept}{why}; shorter ends are joined to the window before, not dropped"
        keys.put("data.min_window", kept, told, was=was)
    keys.move("data.validation", ("data.val_ratio",))


def _texts(keys: Keys) -> None:
    """Which files are the style, and which of them is general text."""
    mix = keys.take("data.processed_data_file")
    was, folder = keys.take("data.data_dir") or (None, "./data")
    for key, value in [*([mix] if mix else []), (was or "data.data_dir", folder)]:
        if value is not None and not isinstance(value, str):
            raise keys.wrong(key, value, "a path")
    if mix and mix[1] and Path(mix[1]).is_file():
        keys.put("data.format", "text", "data.format text: each row of the processed file is a text of its own")
        keys.put("data.train", mix[1], f"{mix[0]} {mix[1]} -> data.train; it is there, so data_dir {folder} is not read", was=mix[0])
        return
    if mix and mix[1]:
        keys.lines.append(f"{mix[0]} {mix[1]}: not there, so {folder} is read; no such file is needed or written")
    keys.put("data.format", "novels", "")
    general, novels = _apart(keys, was or "data.data_dir", Path(folder))
    told = f"{was} {folder} -> data.train" if was else f"data.train {folder}{UNSAID}"
    keys.put("data.train", novels or folder, told + (f", {len(novels)} files of it" if novels else ""), was=was)
    if general is not None:
        keys.put("data.general", general, f"{general} -> data.general, taken out of the style; the original learned it as style")
        if Path(general).suffix.lower() == ".txt":
            told = "data.general_lines true: each line of it is a passage of its own, as the original's description"
            keys.put("data.general_lines", True, told)
        keys.put("data.general_ratio", 0.1, "data.general_ratio 0.1: the default of mix_data.py, here a share of tokens")


def _apart(keys: Keys, was: str, folder: Path) -> tuple[str | None, list[str]]:
    """(the general text in a folder of novels, the files that are novels); an empty list where all of the folder is."""
    there = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    general = next((path for name in ("general.txt", "general.jsonl") for path in there if path.name.lower() == name), None)
    rows = [path for path in there if path.suffix.lower() in ROWS and path != general]
    if general is None and not rows:
        return None, []
    novels = [file for file in find_files([folder]) if file not in (general, *rows)]
    if not novels:
        beside = ", ".join(path.name for path in there if path == general or path in rows)
        do = "name it in data.processed_data_file" if rows else ""
        raise keys.wrong(was, str(folder), f"novels beside {beside}", do=do)
    if rows:
        named = ", ".join(path.as_posix() for path in rows)
        keys.lines.append(f"{named}: not read, a data_dir holds novels; name it in data.processed_data_file to read it")
    return general.as_posix() if general else None, [file.as_posix() for file in novels]


def _objective(keys: Keys, original: Original) -> None:
    if original is STYLE:
        keys.stage["objective"] = {"kind": "span", "mask_ratio": 0.15, "span_ratio": 0.5, "span_length": [3, 5]}
        keys.lines.append("objective span: mask_ratio 0.15, span_ratio 0.5, span_length [3, 5], as the original's description")
    found = keys.take("training.kl_beta", "model.kl_beta", "kl_beta")
    if found is None:
        return
    was, value = found
    beta = as_number(value)
    if beta is None:
        raise keys.wrong(was, value, "a number")
    if beta == 0:
        keys.lines.append(f"{was} {shown(value)}: no KL, nothing to set")
        return
    keys.put("objective.kl", {"beta": value}, f"{was} {shown(value)} -> objective.kl.beta {shown(value)}", was=was)
    keys.called["stages[0].objective.kl.beta"] = was


def _step(keys: Keys, original: Original, length: int, processes: int) -> None:
    """per_device x accumulation x processes samples; what fits at once is the first of them."""
    direct = keys.given.get("training.samples_per_step", keys.given.get("samples_per_step"))
    batch_key, batch = keys.number((f"training.{BATCH}", BATCH), original.batch)
    key, accumulation = keys.number((f"training.{ACCUMULATION}", ACCUMULATION), original.accumulation)
    assert batch is not None and accumulation is not None
    for given, value in ((batch_key, batch), (key, accumulation)):
        if given and direct is not None:
            raise UserError(f"{keys.name}: {given}", got="both forms at once", expected="it or samples_per_step", do="remove one of them")
        if given and value < 1:
            raise keys.wrong(given, value, "at least 1")
    if direct is not None:
        return
    told = f"training.{BATCH} {batch} x {ACCUMULATION} {accumulation} x {processes} process{'es' if processes > 1 else ''}"
    unsaid = [name for name, given in ((BATCH, batch_key), (ACCUMULATION, key)) if given is None]
    told += f" -> train.samples_per_step {batch * accumulation * processes}"
    told += f" ({' and '.join(unsaid)}{UNSAID})" if unsaid else ""
    keys.put("train.samples_per_step", batch * accumulation * processes, told, was=batch_key or key)
    if "training.tokens_per_microbatch" not in keys.given:
        tokens = batch * length
        keys.put("train.tokens_per_microbatch", tokens, f"train.tokens_per_microbatch {tokens}: {BATCH} {batch} x {length} tokens")


def _train(keys: Keys, original: Original) -> None:
    """The Hugging Face names, most of which are ours too; those it renamed are left to `Train`, and told."""
    _precision(keys)
    _optimizer(keys)
    given: dict[str, Any] = {}
    kept = []
    for key in TRAIN:
        if found := keys.take(f"training.{key}", key):
            was, value = found
            if key == "num_train_epochs" and (span := RANGE.fullmatch(str(value))):
                keys.lines.append(f"{was} {value} -> train.num_train_epochs {span[1]}, the upper end")
                value = span[1]
            elif key not in RENAMED:
                kept.append(f"{was} {shown(value)}")
            given[key] = value
            keys.called[f"stages[0].train.{RENAMED.get(key, key)}"] = was
    own = ", ".join(given)
    if kept:
        keys.lines.append(f"{', '.join(kept)}: the same in train")
    for key, value in original.train.items():
        if key not in given and RENAMED.get(key, key) not in given:
            given[key] = value
            keys.lines.append(f"training.{key} {shown(value)}{UNSAID}")
    try:
        now, lines = _renamed(given, "training")
    except ValueError as error:
        raise UserError(f"{keys.name}: training", got=f"{{{own}}}", expected=str(error)) from None
    keys.stage["train"] |= now
    keys.lines += lines


def _optimizer(keys: Keys) -> None:
    """AdamW by whatever name; that of bitsandbytes keeps its moments in 8 bits."""
    found = keys.take("training.optim", "optim")
    if not found:
        return
    was, value = found
    name = str(value)
    if not name.startswith(("adamw", "paged_adamw")):
        raise keys.wrong(was, value, "adamw_torch: AdamW is the optimizer here", do="remove it")
    now = ("paged_" if name.startswith("paged") else "") + "adamw_8bit" if "8bit" in name else "adamw_torch"
    keys.stage["train"]["optim"] = now
    keys.lines.append(f"{was} {value} -> train.optim {now}")


def _precision(keys: Keys) -> None:
    """fp16 and bf16 only where the device has them; elsewhere asking for one is no mistake of the user's."""
    for key in ("fp16", "bf16"):
        name = f"training.{key}" if f"training.{key}" in keys.given else key
        if keys.given.get(name) is True and not multiplies(key):
            for either in ("fp16", "bf16", "training.fp16", "training.bf16"):
                if keys.given.get(either) is False or either == name:
                    del keys.given[either]
            keys.lines.append(f"{name} -> train.precision null, whatever the device multiplies fastest; this one has no {key}")


def multiplies(precision: str) -> bool:
    """Has this device `fp16` or `bf16`? A CPU has bf16, if need be slowly; a GPU may lack it. torch is imported where it is asked."""
    import torch

    if torch.cuda.is_available():
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" or torch.backends.mps.is_available()


def _rest(keys: Keys) -> None:
    """Keys without meaning are named; all else is a mistake."""
    for key in keys.given:
        section, _, last = key.rpartition(".")
        if last not in IDLE:
            known = {name.rpartition(".")[2] for name in keys.known if name.rpartition(".")[0] == section}
            raise UserError(f"{keys.name}: {key}", got="an unknown key", expected="a key of older recipes", do=did_you_mean(last, known))
        keys.lines.append(f"{key}: no meaning here, ignored" + (f"; {IDLE[last]}" if IDLE[last] else ""))
