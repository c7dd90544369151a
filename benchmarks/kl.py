"""What KL costs beside cross-entropy: a training step without it, with it, and the plain way to have both.

One step of every contender is the same: the same windows, LoRA of rank 16 on all linear layers, forward, backward, AdamW. Every token but
the first of a window is predicted and every place that predicts is an anchor (`on: edges`); no gradient checkpointing. Measured on a random
model of Qwen2.5-0.5B dimensions with 4 layers and random ids (Zipf), 4 096 places at V = 151 936, and on the bundled base, V = 6 400.

    stylora    Steps and ForestModel, as `stylora train` uses them: without KL, with it, and with it on a quarter of the anchors
    naive      logits of the PeftModel and of the same with its adapter disabled, all of them at once, `cross_entropy` and `kl_div`

Few layers are the hard case: the reference's forward adds half to the head's products, but less than half to a decoder's time, whose
backward is more than products. Peak memory "above the model" is the most that training held less what was held before it.

`--tables FILE` measures nothing: it writes what docs/benchmarks.md and docs/kl.md quote from a result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from stylora.errors import UserError
from stylora.forest import Sample
from stylora.model.adapter import Adapter, attach
from stylora.model.base import load_base
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.proofs import prove_base
from stylora.samples.anchors import Kl
from stylora.samples.objective import Objective, Vocabulary, build_sample
from stylora.train.steps import Steps

from . import style
from .report import ROOT, Json, Measure, PeakMemory, answer, apart, row, take_turns, with_tables

PAGES = [ROOT / "docs/benchmarks.md", ROOT / "docs/kl.md"]

Backward = Callable[[int], tuple[float, float]]
"""The number of an optimizer step -> its cross-entropy and divergence, their gradients left on the parameters."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """base: of the result's rows; model: keywords of `Qwen2Config`, or None for the bundled base; words: real tokens of its vocabulary

    window: places that predict in every window, which is a token longer; samples_per_step: windows in an optimizer step
    warm_up, steps: optimizer steps before the clock runs, and under it; rounds: of the two that are compared; the others have one
    sample: share of the anchors in the row with fewer; naive: windows at once of the plain way, the first as many as stylora's
    """

    base: str
    model: dict[str, Any] | None
    words: int
    window: int = 1024
    samples_per_step: int = 4
    warm_up: int = 1
    steps: int = 1
    rounds: int = 3
    sample: float = 0.25
    naive: tuple[int, ...] = ()
    learning_rate: float = 1e-4
    beta: float = 0.1
    r: int = 16
    alpha: int = 32
    seed: int = 42


QWEN = Settings(base="random", model=dict(style.QWEN), words=151_665, naive=(4, 1))
TINY = Settings(base="tiny", model=None, words=6_400, window=512, samples_per_step=8)
FULL = (QWEN, TINY)
QUICK = (replace(QWEN, window=128, naive=(4,), rounds=2), replace(TINY, window=128, rounds=2))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--layers", type=int, default=4, help="of the random model; with more of them KL costs a little less")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write what the pages quote from this result")


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it; with `--tables` a stored one."""
    if options.tables is not None:
        if not options.tables.is_file():
            raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
        result = json.loads(options.tables.read_text(encoding="utf-8"))
        for page, told in zip(PAGES, (tables(result), costs(result)), strict=True):
            page.write_text(with_tables(page.read_text(encoding="utf-8"), told), encoding="utf-8")
        return {name: result[name] for name in ("settings", "rows", "ratios", "notes")}
    first, *others = QUICK if options.quick else FULL
    assert first.model is not None
    _check_room(first)
    return compare([replace(first, model=first.model | {"num_hidden_layers": options.layers}), *others], apart("benchmarks.kl"))


def compare(bases: list[Settings], measure: Measure) -> Json:
    """CE and CE+KL in turns, what stands beside them once; `ratios` of the first base bare, of the others with its name before them."""
    rows: list[Json] = []
    ratios: dict[str, float] = {}
    for number, settings in enumerate(bases):
        own = _rows(settings, measure)
        rows += own
        ratios |= {name if number == 0 else f"{settings.base}_{name}": value for name, value in _ratios(own).items()}
    return {"settings": {each.base: asdict(each) for each in bases}, "rows": rows, "ratios": ratios, "notes": NOTES}


NAIVE = 8.5
"""float32 tensors of [places, V] that the plain way holds at its peak, with what else it needs; measured: 7.8 above the model"""


def _check_room(settings: Settings) -> None:
    """Raises UserError where the plain way would not fit: better before anything was measured than after."""
    places, words = settings.samples_per_step * settings.window, settings.model and settings.model["vocab_size"]
    needed, room = NAIVE * places * int(words or 0) * 4, psutil.virtual_memory().available
    if not torch.cuda.is_available() and room < needed:
        raise UserError(
            "benchmarks kl", got=f"{room / 1e9:.1f} GB of free memory", expected=f"{needed / 1e9:.1f} GB, which the plain way takes",
            do="free some, or use --quick",
        )  # fmt: skip


def _rows(settings: Settings, measure: Measure) -> list[Json]:
    def task(contender: str, kl: Kl | None, at_once: int, note: str) -> Json:
        variant = {"base": settings.base, "loss": note, "windows_at_once": at_once}
        return {"contender": contender, "variant": variant, "kl": kl and kl.model_dump(), "settings": asdict(settings)}

    kl, whole = Kl(beta=settings.beta), settings.samples_per_step
    compared = [task("stylora", None, whole, "ce"), task("stylora", kl, whole, "ce+kl")]
    beside = [task("stylora", kl.model_copy(update={"sample": settings.sample}), whole, f"ce+kl on {settings.sample} of the anchors")]
    beside += [task("naive", kl, at_once, "ce+kl") for at_once in settings.naive]
    measured = take_turns(compared, 1, measure) + take_turns(beside, 1, measure)
    for results, more in zip(measured, take_turns(compared, settings.rounds - 1, measure), strict=False):
        results += more
    return [row(each, results, speed="seconds_per_step") for each, results in zip([*compared, *beside], measured, strict=True)]


def _ratios(rows: list[Json]) -> dict[str, float]:
    """Of one base's rows."""
    ce, held, fewer, *naive = rows
    time_, memory = "seconds_per_step", "memory_above_model_mb"
    ratios = {
        "time_kl_over_ce": held[time_] / ce[time_], "memory_kl_over_ce": held[memory] / ce[memory],
        "time_fewer_anchors_over_ce": fewer[time_] / ce[time_],
    }  # fmt: skip
    if naive:
        ratios |= {
            "memory_vs_naive": held[memory] / naive[0][memory],
            "memory_vs_leanest_naive": held[memory] / min(each[memory] for each in naive),
        }  # fmt: skip
    return ratios


NOTES = [
    "ratios without a base's name are those of the random model of Qwen2.5-0.5B dimensions; tiny_* those of the bundled base",
    "memory_vs_naive: all windows at once on both sides; memory_vs_leanest_naive: the naive way with as few at once as were tried",
    "seconds_per_step: median of the rounds; ce, kl: of every step from the first, nats per place",
    "the plain way runs without the allocator settings of `stylora train`, which cost it memory; its seconds are no part of a ratio",
    "aims: time_kl_over_ce <= 1.6, memory_kl_over_ce <= 1.25, memory_vs_naive < 0.25",
]


# ------------------------------------------------------------------------------------------------- a contender's process


def measure(task: Json) -> Json:
    """Train warm_up + steps optimizer steps; figures of the steps under the clock, losses of all."""
    settings = Settings(**task["settings"])
    kl = None if task["kl"] is None else Kl(**task["kl"])
    device = choose_device()
    torch.manual_seed(settings.seed)
    model = make_model(settings, device)
    proofs = prove_base(model, words=settings.words)
    peft_model = attach(model, Adapter(r=settings.r, alpha=settings.alpha), seed=settings.seed)
    windows = style.draw_windows(
        replace(
            style.FULL, words=settings.words, window=settings.window + 1, samples_per_step=settings.samples_per_step,
            warm_up=settings.warm_up, steps=settings.steps, seed=settings.seed,
        )
    )  # fmt: skip
    at_once = task["variant"]["windows_at_once"]
    if task["contender"] == "naive":
        assert kl is not None
        backward = naive(peft_model, windows.reshape(-1, settings.samples_per_step, settings.window + 1), device, kl, at_once)
    else:
        adapted = ForestModel(model, words=settings.words, head=proofs.head, kl=kl)
        backward = stylora(adapted, windows, settings, device, kl, at_once)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, fused=True)
    memory = PeakMemory()
    if task["contender"] == "stylora":  # as `stylora train` does; plain code has no such call, and would hold more with it
        keep_freed_memory()
    if device.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 1e6 if device.device.type == "cuda" else 0.0
    seconds, losses = timed(backward, optimizer, settings)
    return {
        "seconds_per_step": seconds,
        "places_per_second": settings.samples_per_step * settings.window / seconds,
        "memory_above_model_mb": torch.cuda.max_memory_allocated() / 1e6 - before if device.device.type == "cuda" else memory.above(),
        "model_mb": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6,
        "peak_was_reset": memory.reset,
        "ce": [round(ce, 4) for ce, _ in losses],
        "kl": [round(kl, 6) for _, kl in losses],
        "device": device.why,
    }


def make_model(settings: Settings, device: Device) -> PreTrainedModel:
    if settings.model is None:
        return load_base(settings.base, device).model
    model = AutoModelForCausalLM.from_config(Qwen2Config(**settings.model), dtype=device.dtype).to(device.device)
    return model.requires_grad_(False)


def timed(backward: Backward, optimizer: torch.optim.Optimizer, settings: Settings) -> tuple[float, list[tuple[float, float]]]:
    """(seconds of a step under the clock, (ce, kl) of every step). The losses are numbers by then, so a GPU has done its work."""
    losses, started = [], 0.0
    for number in range(settings.warm_up + settings.steps):
        if number == settings.warm_up:
            started = time.perf_counter()
        losses.append(backward(number))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / settings.steps, losses


def stylora(model: ForestModel, windows: np.ndarray, settings: Settings, device: Device, kl: Kl | None, at_once: int) -> Backward:
    """What `training_step` does with the steps of `stylora train`."""
    vocabulary = Vocabulary(ordinary=np.arange(settings.words, dtype=np.int32), fim=None)
    objective = Objective(kind="clm", kl=kl)

    def build(index: int, epoch: int) -> Sample:
        return build_sample(objective, windows[index], vocabulary=vocabulary, key=(settings.seed, epoch, index))

    steps = Steps(
        lambda _epoch: np.arange(len(windows)), build, samples_per_step=settings.samples_per_step,
        tokens_per_microbatch=at_once * windows.shape[1], row_tokens=None, num_train_epochs=1, max_steps=-1, packs=True,
    )  # fmt: skip
    model.train()

    def backward(number: int) -> tuple[float, float]:
        step, sums = steps[number], torch.zeros(2)
        for batch in step.batches:
            with torch.autocast(device.device.type, device.dtype, enabled=device.precision != "fp32"):
                loss = model(to_tensors(batch, device.device, divisor=step.weight, anchor_divisor=step.anchor_weight or 1.0))
            loss.backward()
            sums += torch.stack([model.last_ce, model.last_kl]).cpu()
        ce, divergence = sums.tolist()
        return ce, divergence

    return backward


def naive(model: PeftModel, steps: np.ndarray, device: Device, kl: Kl, at_once: int) -> Backward:
    """Logits of both in full, float32 for the losses; lean as such code goes: no shifted copies, no logits of the reference kept."""
    model.train()

    def backward(number: int) -> tuple[float, float]:
        windows, sums = torch.from_numpy(steps[number].astype(np.int64)).to(device.device), torch.zeros(2)
        for batch in windows.split(at_once):
            read, target, share = batch[:, :-1], batch[:, 1:].flatten(), len(batch) / len(windows)
            with torch.autocast(device.device.type, device.dtype, enabled=device.precision != "fp32"):
                with torch.no_grad(), model.disable_adapter():
                    held = F.log_softmax(model(input_ids=read, use_cache=False).logits.flatten(0, 1).float(), dim=-1)
                scores = model(input_ids=read, use_cache=False).logits.flatten(0, 1).float()
                ce = F.cross_entropy(scores, target)
                divergence = F.kl_div(F.log_softmax(scores, dim=-1), held, reduction="batchmean", log_target=True)
            ((ce + kl.beta * divergence) * share).backward()
            sums += torch.stack([ce, divergence]).detach().cpu() * share
        ce, divergence = sums.tolist()
        return ce, divergence

    return backward


# ------------------------------------------------------------------------------------------------- what the pages quote


def tables(result: Json) -> dict[str, str]:
    """Marker -> the table of docs/benchmarks.md, its reading, and where it was measured."""
    lines = ["| base | | loss | windows at once | s/step | to CE | memory above the model | to CE |", "|---" * 8 + "|"]
    plain: Json = {}
    for each in result["rows"]:
        told = each["settings"]
        plain = each if told["loss"] == "ce" else plain
        time_, memory = ("seconds_per_step", "memory_above_model_mb")
        lines.append(
            f"| {told['base']} | {each['contender']} | {told['loss']} | {told['windows_at_once']} | {each[time_]:.2f} "
            f"| {each[time_] / plain[time_]:.2f} | {each[memory]:,.0f} MB | {each[memory] / plain[memory]:.2f} |"
        )
    machine, ratios, setting = result["hardware"], result["ratios"], "`--quick`" if result["quick"] else "the full setting"
    reading = (
        f"**KL: {ratios['time_kl_over_ce']:.2f} times the time and {ratios['memory_kl_over_ce']:.2f} times the memory of the step without "
        f"it; {ratios['memory_vs_naive']:.3f} of the memory of the plain way** (aims: 1.6, 1.25 and a quarter). "
        f"{machine['cores']} cores of an {machine['cpu']}, torch {result['versions']['torch']}, {setting}."
    )
    return {"KL": "\n".join([*lines, "", reading])}


def costs(result: Json) -> dict[str, str]:
    """Marker -> the sentence of docs/kl.md."""
    ratios, layers = result["ratios"], result["settings"]["random"]["model"]["num_hidden_layers"]
    return {"COST": (
        f"On a model of Qwen2.5-0.5B's dimensions with {layers} layers (V = 151 936), `on: edges`, a training step takes "
        f"{ratios['time_kl_over_ce']:.2f} times the time and {ratios['memory_kl_over_ce']:.2f} times the memory of the same step without "
        f"KL, with a quarter of the anchors {ratios['time_fewer_anchors_over_ce']:.2f} times the time. On the bundled base it is "
        f"{ratios['tiny_time_kl_over_ce']:.2f}, {ratios['tiny_memory_kl_over_ce']:.2f} and "
        f"{ratios['tiny_time_fewer_anchors_over_ce']:.2f}. Logits of both in full would hold {1 / ratios['memory_vs_naive']:.0f} times "
        "the memory ([benchmarks.md](benchmarks.md))."
    )}  # fmt: skip


if __name__ == "__main__":
    answer(measure)
