"""Several continuations of one trunk: decoded and trained together, against one after the other and against a batch of copies.

One task for all: a random model of Qwen2.5-0.5B's dimensions with all 24 layers (V = 151 936), a trunk of 1 000 tokens, 8 branches that
begin with prompts of some 12 tokens and go on for 64, greedily, with nothing that stops them; the reading of the trunk is part of it. For
training 8 branches of 100 tokens, of which the prompt is read and the rest learned; LoRA of rank 8 on all linear layers, one optimizer
step. What each contender does is told in benchmarks/branches_contenders.py.

`decode_vs_sequential` is to the faster of the two that go one after the other, `train_vs_separate` to the fastest micro-batch. Beside them
the proof that all do the same: tokens and losses in fp32 on a small model.

`--tables FILE` measures nothing: it writes what docs/benchmarks.md and docs/branches.md quote from a result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from stylora.errors import UserError

from . import style
from .report import ROOT, Json, Measure, apart, row, take_turns, with_tables

PAGES = [ROOT / "docs/benchmarks.md", ROOT / "docs/branches.md"]

DECODERS = {
    "isolated": "stylora, isolated", "columnar": "stylora, columnar, ratio 0.5", "sequential": "`generate`, one after the other",
    "own sequential": "stylora, one after the other", "generate": "`generate`, a batch with the trunk in every row",
    "sequential, copied": "`generate`, one after the other on copies of the trunk's cache",
    "generate, copied": "`generate`, a batch on copies of the trunk's cache",
}  # fmt: skip
TRAINERS = {
    "forest": "stylora, isolated", "forest, columnar": "stylora, columnar, ratio 0.5", "own separate": "stylora, a row for every branch",
    "separate": "model with `labels`, a row for every branch",
}  # fmt: skip
COMPARED = ("isolated", "sequential", "generate")
"""decoders that are measured in every round; the others once"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """model: keywords of `Qwen2Config`; trunk: tokens; prompts: tokens of a branch's prompt, least and most; new: tokens drawn for each

    learned: tokens of a branch in training, its prompt among them; at_once: rows of a micro-batch, tried by those with separate rows
    rounds: of the contenders that are compared first; precision: as of `choose_device`; steps: optimizer steps under the clock
    """

    model: dict[str, Any]
    trunk: int = 1000
    branches: int = 8
    prompts: tuple[int, int] = (9, 15)
    new: int = 64
    learned: int = 100
    at_once: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 2
    steps: int = 1
    precision: str | None = None
    learning_rate: float = 1e-4
    r: int = 8
    seed: int = 42


FULL = Settings(model=style.QWEN | {"num_hidden_layers": 24})
QUICK = replace(FULL, model=style.QWEN | {"num_hidden_layers": 2}, trunk=200, branches=4, new=8, learned=32, at_once=(1, 4), rounds=1)
SMALL = dict(
    vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=False,
    initializer_range=0.2,
)  # fmt: skip
"""What tokens and losses are compared on: with its own head and large weights a random model does not repeat itself"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write what the pages quote from this result")


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it; with `--tables` a stored one."""
    if options.tables is None:
        return compare(QUICK if options.quick else FULL, apart("benchmarks.branches_contenders"))
    if not options.tables.is_file():
        raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
    result = json.loads(options.tables.read_text(encoding="utf-8"))
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    return {name: result[name] for name in ("settings", "rows", "ratios", "notes")}


def compare(settings: Settings, measure: Measure) -> Json:
    """Decoders and trainers in turns, then the proof in fp32; `ratios` are ours to theirs, the isolated ones bare."""
    decoders, trainers = decoding(settings, measure), training(settings, measure)
    small = replace(settings, model=settings.model | SMALL, precision="fp32", trunk=min(settings.trunk, 160), steps=3)
    proof = measure(task("proof", small, part="proof"))
    drawn, losses = proof["tokens"], proof["loss"]
    checked = {
        "equal_tokens": equal(drawn), "distinct_tokens": len({token for each in drawn["isolated"] for token in each}),
        "largest_loss_difference": max(abs(a - b) for each in losses.values() for a, b in zip(losses["forest"], each, strict=True)),
    }  # fmt: skip
    return {"settings": asdict(settings), "rows": decoders + trainers, "ratios": ratios(decoders, trainers) | checked, "notes": NOTES}


def decoding(settings: Settings, measure: Measure) -> list[Json]:
    """A row of every decoder."""
    first = [task(name, settings, part="decode") for name in COMPARED]
    others = [task(name, settings, part="decode") for name in DECODERS if name not in COMPARED]
    measured = take_turns(first, settings.rounds, measure) + take_turns(others, 1, measure)
    rows = [row(each, found, speed="seconds") for each, found in zip([*first, *others], measured, strict=True)]
    drawn = {each["contender"]: each.pop("tokens") for each in rows}
    for each in rows:  # rounding in bf16 may decide a tie otherwise, and then all that follows differs
        name = each["contender"]
        each["as_isolated"] = None if name == "columnar" else equal({"isolated": drawn["isolated"], "theirs": drawn[name]})
    return sorted(rows, key=lambda each: list(DECODERS).index(each["contender"]))


def training(settings: Settings, measure: Measure) -> list[Json]:
    """A row of every trainer and micro-batch; the forest once more at the end, so that both sides of the ratio saw two minutes."""
    forests = [task(name, settings, part="train") for name in ("forest", "forest, columnar")]
    apart_ = [
        task(name, settings, part="train", at_once=at_once) for name in ("separate", "own separate") for at_once in settings.at_once
        if at_once <= settings.branches and fits(settings, at_once, whole=name == "separate")
    ]  # fmt: skip
    measured = take_turns([*forests, *apart_], 1, measure)
    for _ in range(settings.rounds - 1):
        measured[0].append(measure(forests[0]))
    return [row(each, found, speed="seconds") for each, found in zip([*forests, *apart_], measured, strict=True)]


def task(contender: str, settings: Settings, *, part: str, **more: int) -> Json:
    """What a contender's process is told."""
    return {"contender": contender, "variant": {"part": part, **more}, "settings": asdict(settings)}


ACTIVATIONS = 34  # bytes that a layer keeps for its backward, for each number of the hidden state and of the feed-forward layer
LOGITS = 28  # bytes for each word of each place: logits in bf16 and float32, their log-softmax, and gradients of these


def fits(settings: Settings, at_once: int, *, whole: bool) -> bool:
    """Does a micro-batch of so many rows fit the memory that is free? The smallest is tried anyway. whole: with logits of every place"""
    if torch.cuda.is_available() or at_once == min(settings.at_once):
        return True
    model, places = settings.model, at_once * (settings.trunk + settings.learned)
    layer = ACTIVATIONS * (model["hidden_size"] + model["intermediate_size"] // 2)
    needed = places * (model["num_hidden_layers"] * layer + (LOGITS * model["vocab_size"] if whole else 0))
    return needed < 0.8 * psutil.virtual_memory().available


def equal(drawn: dict[str, list[list[int]]]) -> float:
    """Share of the tokens of all contenders that are those of the isolated branches."""
    ours = [token for branch in drawn["isolated"] for token in branch]
    pairs = [
        (a, b) for name, theirs in drawn.items() if name != "isolated"
        for a, b in zip(ours, (token for branch in theirs for token in branch), strict=True)
    ]  # fmt: skip
    return sum(a == b for a, b in pairs) / len(pairs)


def ratios(decoders: Sequence[Json], trainers: Sequence[Json]) -> dict[str, float]:
    """How many times faster ours are, and the share of cache and memory they need."""
    found = {each["contender"]: each for each in decoders}
    slow = min((found["sequential"], found["own sequential"]), key=lambda each: each["seconds"])
    result: dict[str, float] = {}
    for name, ours in (("decode", found["isolated"]), ("columnar", found["columnar"])):
        for peer, theirs in (("sequential", slow), ("generate", found["generate"]), ("sequential_copied", found["sequential, copied"]),
                             ("generate_copied", found["generate, copied"])):  # fmt: skip
            result[f"{name}_vs_{peer}"] = theirs["seconds"] / ours["seconds"]
            result[f"{name}_after_prefill_vs_{peer}"] = theirs["seconds_after_prefill"] / ours["seconds_after_prefill"]
        result[f"{name}_cache_vs_generate"] = ours["cache_mb"] / found["generate"]["cache_mb"]
        result[f"{name}_memory_vs_generate"] = ours["memory_above_model_mb"] / found["generate"]["memory_above_model_mb"]
    forest, columnar = (next(each for each in trainers if each["contender"] == name) for name in ("forest", "forest, columnar"))
    theirs = fastest(trainers, "separate")
    return result | {
        "train_vs_separate": theirs["seconds"] / forest["seconds"],
        "train_vs_own_separate": fastest(trainers, "own separate")["seconds"] / forest["seconds"],
        "train_columnar_vs_separate": theirs["seconds"] / columnar["seconds"],
        "train_memory_vs_separate": forest["memory_above_model_mb"] / theirs["memory_above_model_mb"],
    }  # fmt: skip


def fastest(trainers: Sequence[Json], contender: str) -> Json:
    return min((each for each in trainers if each["contender"] == contender), key=lambda each: each["seconds"])


NOTES = [
    "decode_vs_sequential: to the faster of the two that go one after the other, reading the trunk each time; *_copied: to what could be "
    "written by hand, the trunk read once and its cache copied for every branch",
    "seconds_after_prefill: from the first token drawn to the last; of those who go one after the other the sum over branches. Columnar "
    "branches begin as their prompts end, so the first tokens fall into the last columns of prompts",
    "cache_mb: the most that the keys and values of a forward held, with the copy they were made from",
    "as_isolated: share of the tokens in bf16 that are those of the first row; equal_tokens: in fp32, of all but the columnar one",
    "train_vs_separate: to the fastest micro-batch of a model with labels; those that would not fit the memory are left out; "
    "train_vs_own_separate: to stylora's own step on separate rows, so it is what sharing the trunk alone brings",
    "the head of every decoder, transformers' too, is given a contiguous copy: torch 2.13 multiplies the slice that `generate` makes forty "
    "times slower in bf16 on CPUs, which would make the peers look slower than they need be",
    "aims: decode_vs_sequential >= 5, decode_vs_generate >= 1.5, train_vs_separate >= 3, equal_tokens 1, largest_loss_difference <= 1e-4",
]


# ------------------------------------------------------------------------------------------------- what the pages quote


def tables(result: Json) -> dict[str, str]:
    """Marker -> the tables of decoding and training with their readings."""
    found, settings = result["ratios"], result["settings"]
    lines = ["| | seconds | of these after reading | new tokens/s | cache | memory above the model |", "|---" * 6 + "|"]
    for each in result["rows"]:
        if each["settings"]["part"] == "decode":
            lines.append(
                f"| {DECODERS[each['contender']]} | {each['seconds']:.1f} | {each['seconds_after_prefill']:.1f} "
                f"| {settings['branches'] * settings['new'] / each['seconds']:.1f} | {each['cache_mb']:.1f} MB "
                f"| {each['memory_above_model_mb']:,.0f} MB |"
            )
    decode = (
        f"**Isolated branches: {found['decode_vs_sequential']:.1f} times as fast as one after the other and "
        f"{found['decode_vs_generate']:.1f} times as fast as a batch of copies, with {found['decode_cache_vs_generate']:.2f} of its "
        f"cache** (aims: 5 and 1.5); after reading {found['decode_after_prefill_vs_sequential']:.1f} and "
        f"{found['decode_after_prefill_vs_generate']:.1f}. Columnar: {found['columnar_vs_sequential']:.1f} and "
        f"{found['columnar_vs_generate']:.1f}. Equal tokens in fp32: {found['equal_tokens']:.0%}. {_where(result)}"
    )
    rows = ["| | rows at once | s/step | tokens computed | memory above the model |", "|---" * 5 + "|"]
    for each in result["rows"]:
        if each["settings"]["part"] == "train":
            rows.append(
                f"| {TRAINERS[each['contender']]} | {each['settings'].get('at_once', 1)} | {each['seconds']:.1f} "
                f"| {each['tokens_per_step']:,.0f} | {each['memory_above_model_mb']:,.0f} MB |"
            )
    train = (
        f"**A step on one tree: {found['train_vs_separate']:.1f} times as fast as the fastest on separate rows, at "
        f"{found['train_memory_vs_separate']:.2f} of its memory above the model** (aim: 3); {found['train_vs_own_separate']:.1f} times as "
        f"fast as stylora's own step on separate rows. Losses in fp32 differ by at most {found['largest_loss_difference']:.1e}. "
        f"{_where(result)}"
    )
    return {"BRANCHES DECODE": "\n".join([*lines, "", decode]), "BRANCHES TRAIN": "\n".join([*rows, "", train])}


def _where(result: Json) -> str:
    machine = result["hardware"]
    setting = "`--quick`" if result["quick"] else "the full setting"
    return f"{machine['cores']} cores of an {machine['cpu']}, torch {result['versions']['torch']}, {setting}."


if __name__ == "__main__":
    sys.exit("run as: python -m benchmarks branches")
