"""What a frozen adapter below costs: a training step of one adapter alone, on a frozen one, and on one that is folded into the base.

One step of every contender is the same: the same windows, forward, backward, AdamW on the upper adapter (rank 64 on all linear layers, the
frozen one has 16), every token but the first predicted, no gradient checkpointing. Measured on a random model of Qwen2.5-0.5B dimensions
with 4 layers at V = 151 936, and on the bundled base. All of them run `Steps` and `ForestModel`, as `stylora train` does.

`--tables FILE` measures nothing: it writes what docs/benchmarks.md and docs/stacks.md quote from a result, and what the latter quotes from
`stylora evaluate --three-way`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.model.adapter import attach, save_adapter, strip
from stylora.model.device import choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import probe, prove_base
from stylora.model.settings import Adapter
from stylora.model.stack import build_stack, fold

from . import kl, style
from .report import ROOT, Json, Measure, PeakMemory, answer, apart, row, take_turns, with_tables

PAGES = [ROOT / "docs/benchmarks.md", ROOT / "docs/stacks.md"]
THREE_WAY = ROOT / "benchmarks/results/three-way.json"
BELOW, ABOVE = Adapter(r=16, alpha=32), Adapter(r=64, alpha=128)
CONTENDERS = {"single": "the adapter alone", "stack": "on a frozen one", "folded": "on a frozen one, folded into the base"}
FULL = (replace(kl.QWEN, naive=()), replace(kl.TINY, steps=2))
QUICK = tuple(replace(each, window=128, rounds=1, steps=1) for each in FULL)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write what the pages quote from this result")


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it; with `--tables` a stored one."""
    if options.tables is None:
        return compare(QUICK if options.quick else FULL, apart("benchmarks.stack"))
    if not options.tables.is_file():
        raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
    result = json.loads(options.tables.read_text(encoding="utf-8"))
    both = tables(result), tables(result) | parts(json.loads(THREE_WAY.read_text(encoding="utf-8")))
    for page, told in zip(PAGES, both, strict=True):
        page.write_text(with_tables(page.read_text(encoding="utf-8"), told), encoding="utf-8")
    return {name: result[name] for name in ("settings", "rows", "ratios", "notes")}


def compare(bases: Sequence[kl.Settings], measure: Measure) -> Json:
    """The contenders in turns; `ratios` of the first base bare, of the others with its name before them."""
    rows: list[Json] = []
    ratios: dict[str, float] = {}
    for number, settings in enumerate(bases):
        told = asdict(settings)
        tasks = [{"contender": name, "variant": {"base": settings.base}, "settings": told} for name in CONTENDERS]
        measured = take_turns(tasks, settings.rounds, measure)
        own = [row(task, found, speed="seconds_per_step") for task, found in zip(tasks, measured, strict=True)]
        rows += own
        prefix = "" if number == 0 else f"{settings.base}_"
        single = own[0]
        for name, each in zip(list(CONTENDERS)[1:], own[1:], strict=True):
            for figure, key in (("time", "seconds_per_step"), ("memory", "memory_above_model_mb")):
                ratios[f"{prefix}{figure}_{name}_over_single"] = each[key] / single[key]
    return {"settings": {each.base: asdict(each) for each in bases}, "rows": rows, "ratios": ratios, "notes": NOTES}


NOTES = [
    "ratios without a base's name are those of the random model of Qwen2.5-0.5B dimensions; tiny_* those of the bundled base",
    "seconds_per_step: median of the rounds; loss: of every step from the first, nats per place",
    "folded_difference: largest difference of the logits with the frozen adapter folded and beside the weights",
    "aim: time_stack_over_single <= 1.25",
]


# ------------------------------------------------------------------------------------------------- a contender's process


def measure(task: Json) -> Json:
    """Train warm_up + steps optimizer steps; figures of the steps under the clock, losses of all."""
    settings, device = kl.Settings(**task["settings"]), choose_device()
    torch.manual_seed(settings.seed)
    model = kl.make_model(settings, device)
    proofs = prove_base(model, words=settings.words)
    difference = put(model, task["contender"], settings)
    told = replace(
        style.FULL, words=settings.words, window=settings.window + 1, samples_per_step=settings.samples_per_step,
        warm_up=settings.warm_up, steps=settings.steps, seed=settings.seed,
    )  # fmt: skip
    forest = ForestModel(model, words=settings.words, head=proofs.head)
    backward = kl.stylora(forest, style.draw_windows(told), settings, device, None, settings.samples_per_step)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, fused=True)
    memory = PeakMemory()
    keep_freed_memory()
    on_gpu = device.device.type == "cuda"
    before = torch.cuda.memory_allocated() / 1e6 if on_gpu else 0.0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = kl.timed(backward, optimizer, settings)
    above = torch.cuda.max_memory_allocated() / 1e6 - before if on_gpu else memory.above()
    return {
        "seconds_per_step": seconds, "memory_above_model_mb": above,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad), "folded_difference": difference,
        "loss": [round(ce, 4) for ce, _ in losses], "device": device.why,
    }  # fmt: skip


def put(model: PreTrainedModel, contender: str, settings: kl.Settings) -> float | None:
    """The contender's adapters on the model; how far folding moved its logits, where it folds."""
    if contender == "single":
        attach(model, ABOVE, seed=settings.seed)
        return None
    with TemporaryDirectory() as folder:
        save_moved(attach(model, BELOW, seed=1), Path(folder))
        strip(model)
        adapter = ABOVE.model_copy(update={"frozen": (folder,), "fold_frozen": contender == "folded"})
        difference = None
        if adapter.fold_frozen:
            _, difference = fold(model, adapter.frozen, (), probe(model, settings.words)[0])
        build_stack(model, adapter, seed=settings.seed)
    return difference


def save_moved(below: PeftModel, folder: Path) -> None:
    """Save it as one that has learned something: a fresh one has no update."""
    with torch.no_grad():
        for name, parameter in below.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_adapter(below, folder, base_name="random")


# ------------------------------------------------------------------------------------------------- what the pages quote


def tables(result: Json) -> dict[str, str]:
    """Marker -> the table, its reading, and where it was measured."""
    lines = ["| base | | s/step | to one alone | memory above the model | to one alone |", "|---" * 6 + "|"]
    alone: dict[str, Any] = {}
    for each in result["rows"]:
        alone = each if each["contender"] == "single" else alone
        seconds, memory = each["seconds_per_step"], each["memory_above_model_mb"]
        lines.append(
            f"| {each['settings']['base']} | {CONTENDERS[each['contender']]} | {seconds:.2f} | {seconds / alone['seconds_per_step']:.2f} "
            f"| {memory:,.0f} MB | {memory / alone['memory_above_model_mb']:.2f} |"
        )
    machine, ratios = result["hardware"], result["ratios"]
    reading = (
        f"**A frozen adapter of rank 16 below one of rank 64: {ratios['time_stack_over_single']:.2f} times the time of a step, folded "
        f"{ratios['time_folded_over_single']:.2f}** (aim: 1.25). {machine['cores']} cores of an {machine['cpu']}, torch "
        f"{result['versions']['torch']}, {'`--quick`' if result['quick'] else 'the full setting'}."
    )
    return {"STACK": "\n".join([*lines, "", reading])}


def parts(result: Json) -> dict[str, str]:
    """Marker -> the table of the three-way test. result: three_way.json"""
    lines = ["| | follows | stops | style score | style gain kept | perplexity of the reference answers |", "|---" * 6 + "|"]
    for each in result["variants"]:
        cells = [_share(each[key]) for key in ("follows", "stops", "style_score", "style_kept")]
        perplexity = each["held_out"]["perplexity"]["mean"]
        lines.append(f"| {each['name']} | {' | '.join(cells)} | {perplexity:.0f} |")
    return {"THREE": "\n".join(lines)}


def _share(found: Json | None) -> str:
    return "" if found is None else f"{found['mean']:.0%} ({found['low']:.0%} to {found['high']:.0%})"


if __name__ == "__main__":
    answer(measure)
