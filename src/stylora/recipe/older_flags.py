"""The flags of the trainer of branches -> the current form, with a sentence for each: `stylora train --base_model B --data_path D ...`.

    --base_model Qwen/Qwen2.5-0.5B-Instruct --data_path rows.jsonl --lora_rank 8 --batch_size 4 --batch_by_samples --epochs 3 --ddp

becomes a recipe of one stage `parallel`, columnar and with positions replaced, as the original had them. Checkpoints lie in
`out/lora/NAME_MODEL` and the finished adapter in `out/lora/NAME_MODEL_final`, folders where the original wrote one .pth. Words with `=`
that are no value of a flag are overrides. What nobody says is what the original took, and is named. Reads words, knows no command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from stylora.errors import UserError, did_you_mean

from .older import Translation, multiplies
from .older_keys import UNSAID, Keys

COMMAND = "stylora train"
VALUES = (
    "base_model", "data_path", "lora_rank", "lora_name", "out_dir", "rope_2d_ratio", "branch_stride", "align_to", "max_seq_len",
    "branches_per_sample", "max_branches_per_sample", "min_branches_per_sample", "epochs", "batch_size", "accumulation_steps",
    "learning_rate", "dtype",
)  # fmt: skip
STAGE = "parallel"
SWITCHES = ("batch_by_samples", "interleave_branches", "ddp")
FLAGS = tuple(f"--{name}" for name in (*VALUES, *SWITCHES))
COMMAND_FLAGS = ("--force", "--resume", "--extend", "--nproc", "--stage", "--from")
PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32", "fp32": "fp32"}
RANK, BATCH, NAME, OUT, DTYPE = 8, 16, "lora", "out/lora", "bfloat16"
"""the original's defaults; those of data and branches are the same here"""


def read_flags(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(flag -> its value, true for a switch; overrides). Raises UserError for a word that is neither, and a flag without its value."""
    flags: dict[str, Any] = {}
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if "=" not in word:
                expected = "a flag, or an override key=value"
                raise UserError(COMMAND, got=repr(word), expected=expected, do="name a recipe, or leave this out")
            overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = f"--{flag.removeprefix('--').replace('-', '_')}"
        if flag not in FLAGS:
            raise UserError(word, got="an unknown flag", expected="one that is known here", do=did_you_mean(flag, FLAGS + COMMAND_FLAGS))
        if flag in flags:
            raise UserError(flag, got="two of them", expected="one")
        if flag[2:] in SWITCHES:
            if equals:
                raise UserError(flag, got=repr(value), expected="no value: it is there or it is not")
            flags[flag] = True
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            raise UserError(flag, got="nothing behind it", expected="a value")
        flags[flag] = value if equals else rest.pop(0)
    return flags, overrides


def translate_flags(flags: dict[str, Any], *, processes: int) -> Translation:
    """A recipe in the current form. flags: of `read_flags`; processes: of this run, part of the size of a step

    Raises UserError for a missing base or path, and for what has no counterpart here.
    """
    keys = Keys(COMMAND, flags)
    keys.called |= {f"stages[0].{section}": section for section in ("train", "data", "adapter")}  # flags have no sections
    _base_and_output(keys)
    _data(keys)
    _branches(keys)
    _adapter(keys)
    _train(keys, processes)
    assert not keys.given, keys.given
    return Translation(values=keys.recipe | {"stages": [{"name": STAGE, **keys.stage}]}, lines=keys.lines, called=keys.called)


def _base_and_output(keys: Keys) -> None:
    base = _needed(keys, "--base_model", "a base: a folder or a hub id")
    keys.put("base", base, f"--base_model {base} -> base", was="--base_model")
    name, out = (_value(keys, flag, default) for flag, default in (("--lora_name", NAME), ("--out_dir", OUT)))
    folder = f"{out.rstrip('/')}/{name}_{PurePath(base).name}"
    keys.put("output_dir", folder, f"--out_dir {out}, --lora_name {name} -> output_dir {folder}: checkpoint-N, and what a run leaves")
    keys.put("layout", "beside", f"layout beside: the finished adapter in {folder}_final, as safetensors; the original wrote a .pth")


def _data(keys: Keys) -> None:
    path = _needed(keys, "--data_path", "rows of main and branches, or of text")
    keys.put("data.format", "branches", "")
    keys.put("data.train", path, f"--data_path {path} -> data.train, with data.format branches", was="--data_path")
    keys.move("data.max_seq_len", ("--max_seq_len",), 1024)
    most = keys.take("--max_branches_per_sample")
    if most:
        keys.put("data.max_branches_per_sample", most[1], f"{most[0]} {most[1]} -> data.max_branches_per_sample {most[1]}", was=most[0])
        keys.move("data.min_branches_per_sample", ("--min_branches_per_sample",), 1)
        keys.move("data.branches_per_sample", ("--branches_per_sample",))
    else:
        keys.move("data.branches_per_sample", ("--branches_per_sample",), 8)
        keys.move("data.min_branches_per_sample", ("--min_branches_per_sample",))
    by_samples = keys.take("--batch_by_samples") is not None
    told = "--batch_by_samples -> data.batch_by_samples true: a batch counts rows"
    keys.put("data.batch_by_samples", by_samples, told if by_samples else "data.batch_by_samples false: a batch counts branches")


def _branches(keys: Keys) -> None:
    told = "branches.visibility columnar: branches see each other's earlier tokens, as in the original"
    keys.put("branches.visibility", "columnar", told)
    told = "branches.positions replace, as in the original; but each branch counts its own time, whoever is beside it"
    keys.put("branches.positions", "replace", told)
    keys.move("branches.rope_2d_ratio", ("--rope_2d_ratio",), 0.5)
    keys.move("branches.branch_stride", ("--branch_stride",), 128)
    if found := keys.take("--align_to"):
        if found[1] != "left":
            expected = "left: all branches begin where the trunk ends, as they do when they are decoded"
            raise keys.wrong(*found, expected, do="leave it out")
        keys.lines.append("--align_to left: always so")
    if keys.take("--interleave_branches"):
        told = "what a token sees depends on its time, not on the order in memory"
        keys.lines.append(f"--interleave_branches: no meaning here, ignored; {told}")


def _adapter(keys: Keys) -> None:
    keys.move("adapter.r", ("--lora_rank",), RANK)
    rank = keys.stage["adapter"]["r"]
    keys.put("adapter.alpha", rank, f"adapter.alpha {rank}: the original had no scale, which is alpha = rank")
    told = "adapter.targets all-linear: the original adapted square layers only, of which some bases have none"
    keys.put("adapter.targets", "all-linear", told)


def _train(keys: Keys, processes: int) -> None:
    keys.move("train.num_train_epochs", ("--epochs",), 3)
    keys.move("train.learning_rate", ("--learning_rate",), 1e-4)
    batch_flag, batch = keys.number(("--batch_size",), BATCH)
    flag, accumulation = keys.number(("--accumulation_steps",), 1)
    assert batch is not None and accumulation is not None
    for given, value in ((batch_flag, batch), (flag, accumulation)):
        if value < 1:
            raise keys.wrong(str(given), value, "at least 1")
    size = batch * accumulation * processes
    unit = "rows" if keys.stage["data"]["batch_by_samples"] else "branches"
    told = f"--batch_size {batch} x --accumulation_steps {accumulation} x {processes} process{'es' if processes > 1 else ''}"
    unsaid = [name for name, given in (("--batch_size", batch_flag), ("--accumulation_steps", flag)) if given is None]
    told += f" -> train.samples_per_step {size} {unit}" + (f" ({' and '.join(unsaid)}{UNSAID})" if unsaid else "")
    keys.put("train.samples_per_step", size, told, was=batch_flag or flag)
    if keys.take("--ddp"):
        alone = "one process trains; --nproc N or torchrun starts several"
        keys.lines.append(f"--ddp: {f'{processes} processes train together' if processes > 1 else alone}")
    _precision(keys)


def _precision(keys: Keys) -> None:
    was, name = keys.take("--dtype") or (None, DTYPE)
    if name not in PRECISIONS:
        raise keys.wrong(str(was), name, "bfloat16, float16 or float32")
    precision: str | None = PRECISIONS[name]
    told = f"--dtype {name} -> train.precision {precision}" if was else f"train.precision {precision}{UNSAID}"
    if precision in ("bf16", "fp16") and not multiplies(precision):
        told = f"{was or 'dtype'} {name} -> train.precision null, what the device multiplies fastest; this one has no {precision}"
        precision = None
    keys.put("train.precision", precision, told, was=was)


def _needed(keys: Keys, flag: str, what: str) -> str:
    found = keys.take(flag)
    if found is None or not found[1]:
        raise UserError(f"{keys.name}: {flag}", got="nothing", expected=what, do=f"add {flag}")
    return str(found[1])


def _value(keys: Keys, flag: str, default: str) -> str:
    found = keys.take(flag)
    value = default if found is None else str(found[1])
    if not value or (flag == "--lora_name" and PurePath(value).name != value):
        raise keys.wrong(flag, value, "a name, no path" if flag == "--lora_name" else "a folder")
    return value
