"""Span masking on windows of text (seed 001's way): the Trainer of transformers with PEFT against stylora's forest.

One step of both is the same: a random model of Qwen2.5-0.5B dimensions with 4 layers, LoRA of rank 16 on all linear layers, the same token
windows in the same order, the same number of windows per optimizer step, AdamW at one rate. The windows are random ids of a Zipf
distribution, all of full length: no text makes either side's matrices larger or smaller, and padding, which stylora does not compute, is
absent. Each side is tried with several micro-batches, and goes on with its fastest.

    trainer    collator as the seed describes it: 15 % of the tokens, half in spans of 3 to 5, 80/10/10, labels -100 elsewhere,
               attention mask, padded to the longest; the mask is an added token on a padding row of the embedding
    stylora    Steps and ForestTrainer, as `stylora train` uses them

Peak memory "above the model" is the most that training held less what was held when the model and its adapter were loaded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Trainer, TrainerCallback, TrainingArguments

from stylora.forest import Sample
from stylora.model.adapter import Adapter, attach
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import prove_base
from stylora.samples.objective import Objective, Vocabulary, build_sample
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.trainer import ForestTrainer, training_arguments

from .report import Json, Measure, PeakMemory, answer, apart, row, take_turns

QWEN = dict(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=4, num_attention_heads=14, num_key_value_heads=2,
    max_position_embeddings=32_768, rope_theta=1e6, tie_word_embeddings=True,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """model: keywords of `Qwen2Config`; words: real tokens, below the rows of the embedding; window: tokens of every window

    samples_per_step: windows in an optimizer step; warm_up, steps: optimizer steps before the clock runs, and under it
    microbatches: windows at once, tried in the first round by both sides; rounds: of both sides' fastest
    """

    model: dict[str, Any] = field(default_factory=lambda: dict(QWEN))
    words: int = 151_665
    window: int = 1024
    samples_per_step: int = 16
    warm_up: int = 1
    steps: int = 2
    microbatches: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    learning_rate: float = 5e-5
    r: int = 16
    alpha: int = 32
    mask_ratio: float = 0.15
    seed: int = 42


FULL = Settings()
QUICK = replace(FULL, window=256, samples_per_step=4, steps=1, microbatches=(4,))
ZIPF_SHIFT = 2.7  # Zipf-Mandelbrot: frequency ~ 1 / (rank + 2.7)
IGNORED = -100  # the label without a loss, of torch.nn.CrossEntropyLoss


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it."""
    return compare(QUICK if options.quick else FULL, apart("benchmarks.style"))


def compare(settings: Settings, measure: Measure) -> Json:
    """Round 1 tries every micro-batch of both sides; each goes on with its fastest, in turns."""
    tasks = [
        {"contender": name, "variant": {"windows_at_once": n}, "settings": asdict(settings)}
        for name in ("trainer", "stylora") for n in settings.microbatches if n <= settings.samples_per_step
    ]  # fmt: skip
    measured = take_turns(tasks, 1, measure)
    fastest = [
        max((k for k, task in enumerate(tasks) if task["contender"] == name), key=lambda k: measured[k][0]["tokens_per_second"])
        for name in ("trainer", "stylora")
    ]
    for k, more in zip(fastest, take_turns([tasks[k] for k in fastest], settings.rounds - 1, measure), strict=True):
        measured[k] += more
    rows = [row(task, results, speed="tokens_per_second") for task, results in zip(tasks, measured, strict=True)]
    for k, each in enumerate(rows):
        each["chosen"] = k in fastest
    return {"settings": asdict(settings), "rows": rows, "ratios": ratios(rows), "notes": NOTES}


def ratios(rows: list[Json]) -> dict[str, float]:
    """Ours to theirs, of the rows that were chosen; and memory against the leanest of the Trainer's rows, however slow."""
    chosen = {each["contender"]: each for each in rows if each["chosen"]}
    ours, theirs = chosen["stylora"], chosen["trainer"]
    leanest = min(each["memory_above_model_mb"] for each in rows if each["contender"] == "trainer")
    return {
        "tokens_per_second_vs_trainer": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "memory_vs_trainer": ours["memory_above_model_mb"] / theirs["memory_above_model_mb"],
        "memory_vs_leanest_trainer": ours["memory_above_model_mb"] / leanest,
    }


NOTES = [
    "random weights and random ids (Zipf): the loss begins near ln(vocabulary) on both sides; their masks are drawn apart",
    "tokens/s are tokens of windows, all of full length, whether they are predicted or not; both sides: median of the rounds",
    "settings not chosen after the first round have one round only",
    "aims: tokens_per_second_vs_trainer >= 2, memory_vs_trainer <= 0.5",
]


# ------------------------------------------------------------------------------------------------- a contender's process


def measure(task: Json) -> Json:
    """Train warm_up + steps optimizer steps; figures of the steps under the clock, losses of all."""
    settings = Settings(**task["settings"])
    device = choose_device()
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**settings.model), dtype=device.dtype).to(device.device)
    model.requires_grad_(False)
    windows = draw_windows(settings)
    clock = _Clock(settings.warm_up)
    at_once = task["variant"]["windows_at_once"]
    with tempfile.TemporaryDirectory() as output:
        prepare = {"trainer": trainer, "stylora": stylora}[task["contender"]]
        running = prepare(settings, model, windows, device, at_once, Path(output), clock)
        memory = PeakMemory()
        keep_freed_memory()  # for both sides: without it the page faults of a step cost a third of it
        before = _allocated()
        running.train()
    seconds = clock.seconds() / settings.steps
    return {
        "tokens_per_second": settings.samples_per_step * settings.window / seconds,
        "seconds_per_step": seconds,
        "memory_above_model_mb": memory.above() if before is None else torch.cuda.max_memory_allocated() / 1e6 - before,
        "model_mb": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6,
        "peak_was_reset": memory.reset,
        "loss": clock.losses,
        "device": device.why,
    }


def _allocated() -> float | None:
    """MB held on the GPU, its peak set back to that; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e6


def draw_windows(settings: Settings) -> np.ndarray:
    """int32 [N, window]: ids below the special tokens, of a Zipf-Mandelbrot distribution over a random order of the words."""
    rng = np.random.default_rng(settings.seed)
    ordinary = ordinary_words(settings)
    share = np.cumsum(1 / (np.arange(ordinary) + 1 + ZIPF_SHIFT))
    count = (settings.warm_up + settings.steps) * settings.samples_per_step
    ranks = np.searchsorted(share, rng.random((count, settings.window)) * share[-1])
    return rng.permutation(ordinary).astype(np.int32)[ranks]


def ordinary_words(settings: Settings) -> int:
    """Words before the special tokens: Qwen2.5 has 22 of those, at the end."""
    return settings.words - 22


class _Clock(TrainerCallback):
    """Time from the end of the warm-up to the end of the last step, loading included; the loss of every step."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.times: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args, state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(round(float(logs["loss"]), 4))

    def seconds(self) -> float:
        return self.times[-1] - self.times[self.warm_up - 1]


def stylora(
    settings: Settings, model: PreTrainedModel, windows: np.ndarray, device: Device, at_once: int, output: Path, clock: _Clock
) -> Trainer:
    """The code path of `stylora train` from the proofs on, without a tokenizer and evaluations."""
    proofs = prove_base(model, words=settings.words)
    peft_model = attach(model, Adapter(r=settings.r, alpha=settings.alpha), seed=settings.seed)
    objective = Objective(kind="span", mask_ratio=settings.mask_ratio)
    vocabulary = Vocabulary(ordinary=np.arange(ordinary_words(settings), dtype=np.int32), fim=None)

    def build(index: int, epoch: int) -> Sample:
        return build_sample(objective, windows[index], vocabulary=vocabulary, key=(settings.seed, epoch, index))

    steps = Steps(
        lambda _epoch: np.arange(len(windows)), build, samples_per_step=settings.samples_per_step,
        tokens_per_microbatch=at_once * settings.window, row_tokens=None, num_train_epochs=1, max_steps=-1, packs=proofs.packs,
    )  # fmt: skip
    train = Train(
        learning_rate=settings.learning_rate, lr_scheduler_type="constant", warmup_steps=0, report_to=[], seed=settings.seed,
    )  # fmt: skip
    adapted = ForestModel(model, words=settings.words, head=proofs.head)  # the adapter lies inside it now
    no_tokenizer: Any = None  # it is only ever saved beside the adapter
    return ForestTrainer(
        adapted, peft_model, no_tokenizer, steps,
        training_arguments(train, device, output, len(steps)), train, base_name="random", folder=output,
        evaluators=[], eval_at=set(), save_at=set(), callbacks=[clock],
    )  # fmt: skip


def trainer(
    settings: Settings, model: PreTrainedModel, windows: np.ndarray, device: Device, at_once: int, output: Path, clock: _Clock
) -> Trainer:
    """transformers' own `Trainer` on the `PeftModel`; settings as `training_arguments` has them, accumulation to the same step."""
    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.r, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_model: PeftModel = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(output), num_train_epochs=1, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=settings.samples_per_step // at_once, train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0,
        bf16=device.precision == "bf16", fp16=device.precision == "fp16", use_cpu=device.device.type == "cpu", seed=settings.seed,
        save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    collator = SpanMaskingCollator(
        mask_token=settings.words, pad_token=ordinary_words(settings), words=ordinary_words(settings), mask_ratio=settings.mask_ratio,
        seed=settings.seed,
    )  # fmt: skip
    rows = [{"input_ids": window} for window in windows]
    return Trainer(model=peft_model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[clock])


class SpanMaskingCollator:
    """Rows -> a batch with fresh masks, after seed 001's description.

    Per row 15 % of the tokens, half of them in spans of 3-5 tokens and the rest single; of the chosen 80 % become the mask token, 10 % a
    random word, 10 % stay; labels at the chosen ones only. Padded to the longest row, with an attention mask.
    """

    def __init__(
        self, *, mask_token: int, pad_token: int, words: int, mask_ratio: float = 0.15, span_ratio: float = 0.5,
        span_length: tuple[int, int] = (3, 5), seed: int = 0,
    ) -> None:  # fmt: skip
        self.mask_token, self.pad_token, self.words = mask_token, pad_token, words
        self.mask_ratio, self.span_ratio, self.span_length = mask_ratio, span_ratio, span_length
        self.rng = np.random.default_rng(seed)

    def __call__(self, rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels`: int64 [B, T]."""
        shape = (len(rows), max(len(each["input_ids"]) for each in rows))
        ids, labels = np.full(shape, self.pad_token, np.int64), np.full(shape, IGNORED, np.int64)
        attention = np.zeros(shape, np.int64)
        for k, each in enumerate(rows):
            clean = each["input_ids"]
            chosen = self.choose(len(clean))
            fate = self.rng.random(len(chosen))
            ids[k, : len(clean)], attention[k, : len(clean)] = clean, 1
            labels[k, chosen] = clean[chosen]
            ids[k, chosen[fate < 0.8]] = self.mask_token
            swapped = chosen[(fate >= 0.8) & (fate < 0.9)]
            ids[k, swapped] = self.rng.integers(0, self.words, size=len(swapped))
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(attention), "labels": torch.from_numpy(labels)}

    def choose(self, length: int) -> np.ndarray:
        """int64 [C], ascending: the chosen positions of one row."""
        wanted = max(1, int(length * self.mask_ratio))
        in_spans = int(wanted * self.span_ratio)
        taken = np.zeros(length, bool)
        count = 0
        while count < in_spans:
            size = min(int(self.rng.integers(self.span_length[0], self.span_length[1] + 1)), in_spans - count, length)
            start = int(self.rng.integers(0, length - size + 1))
            if not taken[start : start + size].any():
                taken[start : start + size] = True
                count += size
        free = np.flatnonzero(~taken)
        taken[self.rng.choice(free, size=wanted - count, replace=False)] = True
        return np.flatnonzero(taken)


if __name__ == "__main__":
    answer(measure)
