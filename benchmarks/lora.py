"""Ways to fine-tune, on the bundled base and one small task (`lora_task.py`): LoRA and its options, prefix tuning, all parameters.

    LoRA ...            the recipe's way: `stylora train` with one line changed
    prefix tuning       PEFT's, 16 virtual tokens a layer, in a plain loop on padded rows: a cache of keys stands in front of every row
    full fine-tuning    every parameter in fp32, the same steps and the same loss in a plain loop

The same rows, steps and batches for all, AdamW, cosine, the same warmup and clipping. Every contender tries its learning rates with the
first seed and goes on with the one whose loss on validation rows is least; accuracy is that of two other files. A row is right where
every token of its answer and the stop token are the most likely ones, given those before: what greedy decoding would write.

Each contender has a process of its own. Memory is the most that training held above model and adapter, of its first run. The tables of
docs/lora.md are made from the result, those of sizes are computed (`lora_sizes.py`): `--tables FILE` writes them, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.forest import Sample
from stylora.model.adapter import count_parameters
from stylora.model.base import Base, load_base
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.quantized import stored_bytes
from stylora.recipe.recipe import Recipe, parse_recipe
from stylora.run.folder import adapter_file
from stylora.run.open import find_model, put_on
from stylora.run.plan import open_tokenizer, plan_steps, read_data
from stylora.run.train import train
from stylora.samples.chat_data import ChatData
from stylora.samples.objective import read_vocabulary
from stylora.train.steps import Steps

from .lora_sizes import memory_table, parameters_table
from .lora_task import write_rows
from .report import ROOT, Json, Measure, PeakMemory, answer, apart, with_tables
from .troubleshooting import clocked

PAGE = ROOT / "docs/lora.md"
IGNORED = -100  # the label without a loss, of torch.nn.CrossEntropyLoss
VIRTUAL_TOKENS = 16
WARMUP = 0.1
ROWS_AT_ONCE = 40  # of an evaluation


@dataclass(frozen=True, kw_only=True)
class Settings:
    """contenders: name -> (learning rates to try, what its recipe changes; None for a plain loop)

    seeds: of order, initialisation; the first one chooses the rate; max_steps: optimizer steps of 16 rows; rows: of a file, at most
    """

    contenders: dict[str, tuple[tuple[float, ...], Json | None]]
    seeds: tuple[int, ...] = (0, 1, 2)
    max_steps: int = 45
    samples_per_step: int = 16
    rows: int = 1000


FULL = Settings(contenders={
    "LoRA": ((5e-4, 1.5e-3, 5e-3), {}),
    "LoRA on q and v": ((1.5e-3, 5e-3), {"adapter": {"targets": ["q_proj", "v_proj"]}}),
    "rsLoRA": ((5e-4, 1.5e-3), {"adapter": {"rslora": True}}),
    "DoRA": ((1.5e-3, 5e-3), {"adapter": {"dora": True}}),
    "LoRA+": ((2e-4, 6e-4), {"train": {"loraplus_lr_ratio": 16}}),
    "LoRA, 8-bit AdamW": ((1.5e-3,), {"train": {"optim": "adamw_8bit"}}),
    "QLoRA": ((1.5e-3,), {"load_in_4bit": True}),
    "prefix tuning": ((1e-1, 3e-1), None),
    "full fine-tuning": ((3e-4, 1e-3, 3e-3), None),
})  # fmt: skip
QUICK = replace(
    FULL, contenders={name: ((rates[-1],), changes) for name, (rates, changes) in FULL.contenders.items()}, seeds=(0,), max_steps=12
)  # fmt: skip
NOTES = [
    "accuracy and loss: mean over the seeds +- their standard deviation; time: the fastest step, for other programs slow the rest",
    "the learning rate of each contender is its own best of those tried, by the loss on validation rows with the first seed",
    "QLoRA and 8-bit AdamW store LoRA otherwise and have a rate of LoRA's",
    "prefix tuning reads every row's system prompt again, the others read it once a step",
]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write the page's tables from this result")


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it; with `--tables` a stored one."""
    if options.tables is None:
        return compare(QUICK if options.quick else FULL, apart("benchmarks.lora"))
    if not options.tables.is_file():
        raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
    result = json.loads(options.tables.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    return result


def compare(settings: Settings, measure: Measure) -> Json:
    """A row for each contender."""
    rows = [
        measure({"contender": name, "variant": changes or {}, "settings": asdict(settings)})
        for name, (_, changes) in settings.contenders.items()
    ]  # fmt: skip
    return {"settings": asdict(settings), "rows": rows, "ratios": ratios(rows), "notes": NOTES}


def ratios(rows: Sequence[Json]) -> dict[str, float]:
    """Everything against plain LoRA."""
    first = rows[0]
    return {
        f"{what} of {row['contender']} vs {first['contender']}": row[key] / first[key]
        for row in rows[1:] for what, key in (("time", "seconds_per_step"), ("parameters", "trainable"))
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- a contender's process


def measure(task: Json) -> Json:
    """Its rates with the first seed, its best one with the others."""
    settings = Settings(**task["settings"])
    rates, changes = settings.contenders[task["contender"]]
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="stylora-benchmark-") as folder:
        files = write_rows(Path(folder))
        attempt = Attempt(contender=task["contender"], changes=changes, settings=settings, files=files, folder=Path(folder))
        tried = [attempt.run(rate, settings.seeds[0]) for rate in rates]
        best = min(range(len(rates)), key=lambda k: tried[k]["validation_loss"])
        runs = [tried[best], *(attempt.run(rates[best], seed) for seed in settings.seeds[1:])]
    row = {"contender": task["contender"], "settings": task["variant"], "rates": list(rates), "learning_rate": rates[best],
           "validation_losses": [each["validation_loss"] for each in tried]}  # fmt: skip
    row |= {key: tried[0][key] for key in ("trainable", "share", "base_mb", "adapter_bytes", "memory_mb")}
    row["seconds_per_step"] = min(each["seconds_per_step"] for each in [*tried, *runs[1:]])
    for key in ("seen_accuracy", "unseen_accuracy", "seen_loss"):
        row[key] = mean(each[key] for each in runs)
        row[f"{key}_sd"] = stdev(each[key] for each in runs) if len(runs) > 1 else 0.0
    return row


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One contender's ingredients. changes: of the recipe, None for a plain loop; files: of `write_rows`; folder: scratch"""

    contender: str
    changes: Json | None
    settings: Settings
    files: dict[str, Path]
    folder: Path

    def recipe(self, rate: float, seed: int, side: str = "train") -> Recipe:
        """The stage that is trained, or one over the rows of another file."""
        changes = dict(self.changes or {})
        training = {
            "max_steps": self.settings.max_steps, "samples_per_step": self.settings.samples_per_step, "learning_rate": rate,
            "warmup_steps": WARMUP, "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "seed": seed,
        }  # fmt: skip
        stage = {
            "data": {"format": "chat", "train": str(self.files[side]), "validation": 0, "seed": seed}, "prompts": [],
            "adapter": {"r": 16, "alpha": 32} | changes.pop("adapter", {}), "train": training | changes.pop("train", {}),
        }  # fmt: skip
        place = str(self.folder / f"run-{rate}-{seed}")
        return parse_recipe({"base": "tiny", "output_dir": place, **changes, "stages": [stage]}, [], name=self.contender)

    def run(self, rate: float, seed: int) -> Json:
        """Train and measure."""
        print(f"training   {self.contender} {rate:g} seed {seed}", file=sys.stderr, flush=True)
        device = choose_device()
        if self.changes is not None:
            figures, model, base = by_recipe(self.recipe(rate, seed), device)
        else:
            loop = {"prefix tuning": prefix_tuning, "full fine-tuning": full_fine_tuning}[self.contender]
            figures, model, base = loop(self.recipe(rate, seed), device)
        for side in ("validation", "seen", "unseen"):
            samples = read_samples(self.recipe(rate, seed, side))[: self.settings.rows]
            loss, accuracy = judge(model, base, samples, device)
            figures |= {f"{side}_loss": loss, f"{side}_accuracy": accuracy}
        return figures


Trained = tuple[Json, nn.Module, Base]
"""figures of the training, the model to call, its base"""


def by_recipe(recipe: Recipe, device: Device) -> Trained:
    """`stylora train`, then the stage opened again as `stylora generate` opens it."""
    with clocked() as clock:
        outcome = train(recipe, name="lora", console=Console(quiet=True))
    assert outcome is not None
    found = find_model(str(outcome.folder))
    base = load_base(found.base, device, load_in_4bit=found.load_in_4bit)
    held = stored_bytes(base.model)
    model = put_on(base, found).model
    file = adapter_file(outcome.folder / "adapter")
    assert isinstance(model, PeftModel) and file is not None
    trainable = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    figures = {
        "trainable": trainable, "share": trainable / (count_parameters(model)[1] - trainable), "base_mb": held / 1e6,
        "adapter_bytes": file.stat().st_size, "memory_mb": clock.above, "seconds_per_step": min(clock.seconds),
    }  # fmt: skip
    return figures, model, base


def full_fine_tuning(recipe: Recipe, device: Device) -> Trained:
    """Every parameter, in fp32 under autocast: bf16 weights would round small steps away."""
    base = load_base(recipe.base, replace(device, dtype=torch.float32))
    base.model.requires_grad_(True)
    steps, model = steps_of(recipe, base), ForestModel(base.model, words=len(base.tokenizer))

    def backward(number: int) -> None:
        step = steps[number]
        for batch in step.batches:
            with precision_context(device.device, device.dtype):
                loss = model(to_tensors(batch, device.device, divisor=step.weight))
            loss.backward()

    figures = plain_loop(base.model, backward, recipe)
    count = count_parameters(base.model)[1]
    return figures | {"share": 1.0, "base_mb": stored_bytes(base.model) / 1e6, "adapter_bytes": 2 * count}, base.model, base


def prefix_tuning(recipe: Recipe, device: Device) -> Trained:
    """Keys and values of virtual tokens in front of every layer, learned; rows padded, for a cache in front knows no trees."""
    base = load_base(recipe.base, device)
    total = count_parameters(base.model)[1]
    torch.manual_seed(recipe.stages[0].train.seed)
    config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=VIRTUAL_TOKENS)
    model = get_peft_model(base.model, config)
    samples, per_step = read_samples(recipe), recipe.stages[0].train.samples_per_step
    epochs = math.ceil(recipe.stages[0].train.max_steps * per_step / len(samples))
    order = [index for _ in range(epochs) for index in torch.randperm(len(samples)).tolist()]

    def backward(number: int) -> None:
        rows = [samples[index] for index in order[number * per_step : (number + 1) * per_step]]
        with precision_context(device.device, device.dtype):
            scores, labels = answers_of(model, base, rows, device)
            loss = cross_entropy(scores.float(), labels)
        loss.backward()

    figures = plain_loop(model, backward, recipe)
    saved = Path(recipe.output_dir or "") / "prefix"
    model.save_pretrained(str(saved))
    file = adapter_file(saved)
    assert file is not None
    held = {"base_mb": stored_bytes(base.model) / 1e6, "adapter_bytes": file.stat().st_size}
    return figures | held | {"share": figures["trainable"] / total}, model.eval(), base


def plain_loop(model: nn.Module, backward: Callable[[int], None], recipe: Recipe) -> Json:
    """AdamW, schedule and clipping as the recipe has them. backward: leaves the gradient of a step"""
    settings = recipe.stages[0].train
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learns, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip
    warmup = math.ceil(settings.warmup_steps * settings.max_steps)
    schedule = get_scheduler(settings.lr_scheduler_type, optimizer, warmup, settings.max_steps + 1)
    optimizer.step()  # without gradients it does nothing
    schedule.step()  # the first step has rate 0, and would teach nothing either
    model.train()
    memory, seconds = PeakMemory(), []
    for number in range(settings.max_steps):
        started = time.perf_counter()
        backward(number)
        clip_grad_norm_(learns, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    above = memory.above()
    model.eval()
    return {"trainable": sum(p.numel() for p in learns), "memory_mb": above, "seconds_per_step": min(seconds[1:])}


def chat_data(recipe: Recipe) -> ChatData:
    data = read_data(recipe, open_tokenizer(recipe.base))
    assert isinstance(data, ChatData)
    return data


def steps_of(recipe: Recipe, base: Base) -> Steps:
    """The optimizer steps that `stylora train` would take."""
    return plan_steps(recipe.stages[0], chat_data(recipe), read_vocabulary(base.tokenizer.backend_tokenizer), packs=True)


def read_samples(recipe: Recipe) -> list[Sample]:
    """Every conversation of the recipe's file, a chain each."""
    data = chat_data(recipe)
    return [data.sample(index) for index in range(len(data))]


def answers_of(model: nn.Module, base: Base, rows: Sequence[Sample], device: Device) -> tuple[Tensor, Tensor]:
    """(scores [E, V], targets [E]) of every edge of some chains, row after row, from rows padded on the right."""
    longest = max(len(row.forest.ids) for row in rows)
    pad = base.tokenizer.pad_token_id
    ids = torch.full((len(rows), longest), pad if isinstance(pad, int) else 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row.forest.ids)], mask[k, : len(row.forest.ids)] = torch.from_numpy(row.forest.ids).long(), 1
    logits = model(input_ids=ids.to(device.device), attention_mask=mask.to(device.device), use_cache=False).logits
    picked = [(k, int(source), int(target)) for k, row in enumerate(rows) for source, target in edges_of(row)]
    where, at, targets = (torch.tensor(column, device=device.device) for column in zip(*picked, strict=True))
    return logits[where, at], targets


def edges_of(row: Sample) -> Iterable[tuple[Any, Any]]:
    """(source, target token) of every edge."""
    return zip(row.edges.source, row.edges.target, strict=True)


@torch.no_grad()
def judge(model: nn.Module, base: Base, samples: Sequence[Sample], device: Device) -> tuple[float, float]:
    """(nats per answer token, share of rows whose every answer token is the most likely one)."""
    model.eval()
    nats, right = 0.0, 0
    tokens = sum(len(sample.edges.source) for sample in samples)
    for rows in _groups(samples):
        with precision_context(device.device, device.dtype):
            scores, targets = answers_of(model, base, rows, device)
        nats += float(cross_entropy(scores.float(), targets, reduction="sum"))
        hits = (scores.argmax(-1) == targets).split([len(row.edges.source) for row in rows])
        right += sum(bool(hit.all()) for hit in hits)
    return nats / tokens, right / len(samples)


def _groups(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for at in range(0, len(samples), ROWS_AT_ONCE):
        yield samples[at : at + ROWS_AT_ONCE]


# --------------------------------------------------------------------------------------------------- tables of the page


def tables(result: Json) -> dict[str, str]:
    """Marker -> what stands there: how it was measured, the measured table, and the computed ones."""
    machine, settings = result["hardware"], result["settings"]
    how = (
        f"{machine['cpu']}, {machine['cores']} of its cores, torch {result['versions']['torch']}, "
        f"{'a quick run' if result['quick'] else 'the full setting'}: "
        f"{settings['max_steps']} steps of {settings['samples_per_step']} rows, {len(settings['seeds'])} seeds."
    )
    return {"MEASURED": how, "METHODS": measured_table(result["rows"]), "PARAMETERS": parameters_table(), "MEMORY": memory_table()}


def measured_table(rows: Sequence[Json]) -> str:
    """One line for each contender."""
    columns = ["method", "trainable", "of the base", "on disk", "base in memory", "peak above it", "a step", "rate", "seen words",
               "unseen words", "answer loss, seen"]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(
            f"| {row['contender']} | {row['trainable']:,} | {row['share']:.2%} | {row['adapter_bytes'] / 1e6:.2f} MB "
            f"| {row['base_mb']:.1f} MB | {row['memory_mb']:,.0f} MB | {1000 * row['seconds_per_step']:.0f} ms "
            f"| {row['learning_rate']:g} | {row['seen_accuracy']:.1%} ± {row['seen_accuracy_sd']:.1%} "
            f"| {row['unseen_accuracy']:.1%} ± {row['unseen_accuracy_sd']:.1%} | {row['seen_loss']:.3f} ± {row['seen_loss_sd']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    answer(measure)
