"""The contenders of the `tasks` comparison, each as it runs in its own process: model, rows and a number of steps in, figures out.

All of them get the same random model, the same LoRA weights, AdamW and rate, no gradient checkpointing, and the same rows in every
optimizer step, which are sorted by length within it: length grouping at its best.

    seed          `Trainer` as the older script did it: padded to `max_length`, every token of the prompt is learned
    trainer       `Trainer` with padding to the longest row of the batch, labels on answers
    answers       the same, with the head on the answers only: what a user could write by hand
    trl           `SFTTrainer` with labels on answers
    trl packed    the same with `packing`: whole rows laid end to end, kept apart by their positions
    stylora       `Steps` and `ForestTrainer`, as `stylora train` uses them, with shared prefixes

TRL is optional; whoever starts the processes leaves its contenders out where it is missing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Trainer, TrainerCallback, TrainingArguments

from stylora.forest import Sample, chain, edges
from stylora.model.adapter import Adapter, attach
from stylora.model.base import decoder_of
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import prove_base
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.trainer import ForestTrainer, training_arguments

from .report import Json, PeakMemory, answer
from .tasks_rows import Row, read

IGNORED = -100  # the label without a loss, of torch.nn.CrossEntropyLoss
PAD = 0  # what stands in padding is not read


@dataclass(frozen=True, kw_only=True)
class Settings:
    """model: keywords of `Qwen2Config`; precision: as of `choose_device`; r, alpha: of LoRA on all linear layers

    samples_per_step: rows of an optimizer step; warm_up, steps: optimizer steps before the clock runs, and under it
    max_length: what `seed` pads to
    """

    model: dict[str, Any]
    samples_per_step: int
    max_length: int
    r: int
    alpha: int
    warm_up: int = 1
    steps: int = 1
    precision: str | None = None
    learning_rate: float = 2e-4
    seed: int = 42

    @property
    def all_steps(self) -> int:
        return self.warm_up + self.steps


class Clock(TrainerCallback):
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
            self.losses.append(float(logs["loss"]))

    def seconds(self) -> float:
        return self.times[-1] - self.times[self.warm_up - 1]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a contender is handed.

    rows: in training order, as many as the run takes
    at_once: rows in a micro-batch; tokens in one for `stylora`; tokens of a packed row for `trl packed`
    """

    settings: Settings
    model: PreTrainedModel
    device: Device
    rows: list[Row]
    at_once: int
    output: Path
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """samples, tokens: of all steps under the clock; tokens as the model computes them, padding included"""

    trainer: Trainer
    samples: int
    tokens: int


def measure(task: Json) -> Json:
    """Train warm_up + steps optimizer steps; figures of the steps under the clock, losses of all."""
    settings = Settings(**task["settings"])
    device, clock = choose_device(settings.precision), Clock(settings.warm_up)
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**settings.model), dtype=device.dtype).to(device.device)
    model.requires_grad_(False)
    rows = read(task["rows"])[: settings.all_steps * settings.samples_per_step]
    with tempfile.TemporaryDirectory() as output:
        job = Job(
            settings=settings, model=model, device=device, rows=rows, at_once=task["variant"]["at_once"], output=Path(output), clock=clock
        )
        prepared = CONTENDERS[task["contender"]](job)
        memory = PeakMemory()
        keep_freed_memory()  # for all: without it the page faults of a step cost a third of it
        before = allocated()
        prepared.trainer.train()
    assert len(clock.losses) == settings.all_steps, clock.losses
    return {
        "samples_per_second": prepared.samples / clock.seconds(),
        "seconds_per_step": clock.seconds() / settings.steps,
        "samples_per_step": prepared.samples / settings.steps,
        "tokens_per_step": prepared.tokens / settings.steps,
        "memory_above_model_mb": memory.above() if before is None else torch.cuda.max_memory_allocated() / 1e6 - before,
        "model_mb": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6,
        "peak_was_reset": memory.reset,
        "loss": [round(loss, 7) for loss in clock.losses],
        "device": device.why,
    }


def allocated() -> float | None:
    """MB held on the GPU, its peak set back to that; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e6


def sorted_in_steps(rows: list[Row], samples_per_step: int) -> list[Row]:
    """The rows of every optimizer step together as before, in it the longest first."""
    numbered = sorted(enumerate(rows), key=lambda each: (each[0] // samples_per_step, -len(each[1]["ids"])))
    return [row for _, row in numbered]


# ------------------------------------------------------------------------------------------------------------ stylora


def stylora(job: Job) -> Prepared:
    """The code path of `stylora train` from the proofs on, without a tokenizer and evaluations."""
    settings, words = job.settings, job.settings.model["vocab_size"]
    proofs = prove_base(job.model, words=words)
    peft_model = adapted(job)
    steps = Steps(
        lambda _epoch: np.arange(len(job.rows)), lambda index, _epoch: sample(job.rows[index]), samples_per_step=settings.samples_per_step,
        tokens_per_microbatch=job.at_once, row_tokens=None, num_train_epochs=1, max_steps=-1, packs=proofs.packs, share_prefixes=True,
    )  # fmt: skip
    train = Train(
        learning_rate=settings.learning_rate, lr_scheduler_type="constant", warmup_steps=0, report_to=[], seed=settings.seed,
    )  # fmt: skip
    no_tokenizer: Any = None  # it is only ever saved beside the adapter
    trainer = ForestTrainer(
        ForestModel(job.model, words=words, head=proofs.head), peft_model, no_tokenizer, steps,
        training_arguments(train, job.device, job.output, len(steps)), train, base_name="random", folder=job.output,
        evaluators=[], eval_at=set(), save_at=set(), callbacks=[job.clock],
    )  # fmt: skip
    under_clock = [steps[number] for number in range(settings.warm_up, settings.all_steps)]
    tokens = sum(batch.ids.size for step in under_clock for batch in step.batches)
    return Prepared(trainer=trainer, samples=sum(step.samples for step in under_clock), tokens=tokens)


def sample(row: Row) -> Sample:
    """A row as `ChatFormat` has it: an edge onto every token of its answer."""
    targets, ids = np.array(row["targets"]), np.array(row["ids"])
    return Sample(forest=chain(ids), edges=edges(targets - 1, ids[targets]))


def adapted(job: Job) -> PeftModel:
    """The model with LoRA on all linear layers, the same weights for every contender."""
    return attach(job.model, Adapter(r=job.settings.r, alpha=job.settings.alpha), seed=job.settings.seed)


# ------------------------------------------------------------------------------------------------- transformers' Trainer


def padded(rows: list[Json], length: int | None = None) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask`, `labels`: int64 [B, T], on the right to the longest or to `length`, which is where a row is cut."""
    width = length or max(len(row["input_ids"]) for row in rows)
    batch = {
        name: torch.full((len(rows), width), fill) for name, fill in (("input_ids", PAD), ("attention_mask", 0), ("labels", IGNORED))
    }  # fmt: skip
    for number, row in enumerate(rows):
        ids, labels = row["input_ids"][:width], row["labels"][:width]
        batch["input_ids"][number, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][number, : len(ids)] = 1
        batch["labels"][number, : len(ids)] = torch.tensor(labels)
    return batch


def labelled(row: Row, *, everything: bool = False) -> Json:
    """`input_ids` and `labels`: IGNORED outside the answer, or the ids themselves."""
    ids, targets = row["ids"], set(row["targets"])
    return {"input_ids": ids, "labels": [word if everything or place in targets else IGNORED for place, word in enumerate(ids)]}


def shared_arguments(job: Job, at_once: int) -> dict[str, Any]:
    """Of `TrainingArguments` and `SFTConfig`, as `training_arguments` has them."""
    settings, device = job.settings, job.device
    assert settings.samples_per_step % at_once == 0, (settings.samples_per_step, at_once)
    return dict(
        output_dir=str(job.output), max_steps=settings.all_steps, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=settings.samples_per_step // at_once, train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0,
        bf16=device.precision == "bf16", fp16=device.precision == "fp16", use_cpu=device.device.type == "cpu", seed=settings.seed,
        gradient_checkpointing=False, save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip


def plain(kind: type[Trainer], *, everything: bool = False, to_max_length: bool = False) -> Contender:
    """A `Trainer` on padded rows."""

    def prepare(job: Job) -> Prepared:
        rows = sorted_in_steps(job.rows, job.settings.samples_per_step)
        length = job.settings.max_length if to_max_length else None
        arguments = TrainingArguments(**shared_arguments(job, job.at_once), remove_unused_columns=False)
        trainer = kind(
            model=adapted(job), args=arguments, train_dataset=[labelled(row, everything=everything) for row in rows],
            data_collator=lambda batch: padded(batch, length), callbacks=[job.clock],
        )  # fmt: skip
        return _prepared(trainer, rows, job, length)

    return prepare


def _prepared(trainer: Trainer, rows: list[Row], job: Job, length: int | None = None) -> Prepared:
    """With rows padded to `length` or to the longest of their micro-batch."""
    lengths = [len(row["ids"]) for row in rows[job.settings.warm_up * job.settings.samples_per_step :]]
    tokens = sum(job.at_once * (length or max(lengths[i : i + job.at_once])) for i in range(0, len(lengths), job.at_once))
    return Prepared(trainer=trainer, samples=len(lengths), tokens=tokens)


class AnswersTrainer(Trainer):
    """The head on the places that predict an answer's token, all of a micro-batch in one matrix."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"][:, 1:]
        causal = model.get_base_model()
        hidden = decoder_of(causal)(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)[0]
        places = labels != IGNORED
        logits = causal.get_output_embeddings()(hidden[:, :-1][places])
        return F.cross_entropy(logits.float(), labels[places], reduction="sum") / num_items_in_batch


# ---------------------------------------------------------------------------------------------------------------- TRL


def trl(*, packing: bool) -> Contender:
    """`SFTTrainer` on rows that are tokens already, with their labels."""

    def prepare(job: Job) -> Prepared:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        settings, rows = job.settings, sorted_in_steps(job.rows, job.settings.samples_per_step)
        table = {name: [labelled(row)[name] for row in rows] for name in ("input_ids", "labels")}
        arguments = shared_arguments(job, 1 if packing else job.at_once)
        if packing:
            arguments["gradient_accumulation_steps"] = max(1, round(settings.samples_per_step / rows_in(job.at_once, rows)))
        trainer = SFTTrainer(
            model=adapted(job), processing_class=two_words(), train_dataset=Dataset.from_dict(table), callbacks=[job.clock],
            args=SFTConfig(**arguments, packing=packing, max_length=job.at_once if packing else None),
        )  # fmt: skip
        if not packing:
            return _prepared(trainer, rows, job)
        packed: Any = trainer.train_dataset
        packs, a_step = packed["seq_lengths"], arguments["gradient_accumulation_steps"]
        under_clock = [packs[i % len(packs)] for i in range(settings.warm_up * a_step, settings.all_steps * a_step)]
        return Prepared(trainer=trainer, samples=sum(map(len, under_clock)), tokens=sum(map(sum, under_clock)))

    return prepare


def rows_in(tokens: int, rows: list[Row]) -> float:
    """How many rows fit so many tokens, about."""
    return max(1.0, tokens / np.mean([len(row["ids"]) for row in rows]))


def two_words() -> Any:
    """A tokenizer for a trainer that wants one and is given nothing to encode."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": PAD, "<eos>": 1})), pad_token="<pad>", eos_token="<eos>",
    )  # fmt: skip


Contender = Callable[[Job], Prepared]

CONTENDERS: dict[str, Contender] = {
    "seed": plain(Trainer, everything=True, to_max_length=True),
    "trainer": plain(Trainer),
    "answers": plain(AnswersTrainer),
    "trl": trl(packing=False),
    "trl packed": trl(packing=True),
    "stylora": stylora,
}


if __name__ == "__main__":
    answer(measure)
