"""Carry a recipe out: text -> windows -> base and proofs -> adapter -> steps -> artefacts. The one page that tells the whole story."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from peft import PeftModel
from rich.console import Console
from transformers import TrainerCallback

from stylora.errors import UserError
from stylora.evaluate.held_out import HeldOut, measure, precision_context
from stylora.generate.decode import generate, open_row
from stylora.model.adapter import attach, count_parameters, save_adapter
from stylora.model.base import Base, fingerprint, load_base
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import Proofs, probe, prove_adapters_off, prove_base
from stylora.recipe.recipe import Recipe, Stage
from stylora.samples.objective import check_vocabulary, read_vocabulary
from stylora.samples.text import TextData
from stylora.train.progress import ProgressDisplay
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.trainer import Evaluator, ForestTrainer, MetricsFile, check_trackers, moments, training_arguments

from .data import account
from .folder import StageFolder, claim_stage, make_stage, run_folder, write_json, write_stack
from .plan import check_window, open_tokenizer, plan_steps, read_data


@dataclass(kw_only=True)
class Outcome:
    """What a training left: measured[k] is the k-th evaluation, the first of them before the first step.

    folder: of the stage; held_out: part ("style", "general") -> figures, per evaluation; samples: prompt -> continuation, per evaluation
    """

    folder: Path
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    held_out: list[dict[str, HeldOut]] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)


def train(recipe: Recipe, *, name: str, console: Console, force: bool = False, cache: Path | None = None) -> Outcome | None:
    """Run the recipe's stage; None when it is already done. name: of the run, where the recipe sets no output_dir.

    Raises UserError for what the user can mend, TrainingStopped when the loss is no number.
    """
    stage = recipe.stages[0]
    folder = claim_stage(run_folder(recipe, name), recipe, force=force)
    if folder is None:
        console.print(f"done already: {run_folder(recipe, name) / stage.name} (--force trains again)")
        return None
    check_trackers(stage.train.report_to)
    keep_freed_memory()
    started = time.perf_counter()
    data = read_data(recipe, open_tokenizer(recipe.base), cache=cache)
    for heading, told in account(data.summary, stage.data.window):
        console.print(f"{heading:<10} {told}", markup=False, highlight=False)
    device = choose_device(stage.train.precision)
    if recipe.attention == "flex_attention" and device.device.type == "cpu":
        raise UserError("attention", got="flex_attention", expected="sdpa or eager: flex_attention has no backward on a CPU")
    base = load_base(recipe.base, device, attention=recipe.attention, trust_remote_code=recipe.trust_remote_code)
    vocabulary = read_vocabulary(base.tokenizer.backend_tokenizer)
    check_vocabulary(stage.objective, vocabulary)
    check_window(stage, base.context)
    attention = base.model.config._attn_implementation
    console.print(f"base       {recipe.base}: {type(base.model).__name__}, {device.why}, attention {attention}")
    base_fingerprint = fingerprint(base)
    proofs, peft_model = prove_and_attach(base, stage, console)
    trainable, total = count_parameters(peft_model)
    for number, prompt in enumerate(stage.prompts):
        open_row(base.model, base.tokenizer, prompt, stage.sampling, number=number, chat=False, where=f"prompts[{number}]")
    make_stage(folder, recipe, need_bytes=bytes_needed(stage.train, trainable))
    write_json(folder.path / "environment.json", environment(device, proofs))
    model = ForestModel(base.model, words=len(base.tokenizer), head=proofs.head)  # the adapter was put into it in place
    if stage.train.gradient_checkpointing:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    steps = plan_steps(stage, data, vocabulary, packs=proofs.packs)
    console.print(
        f"train      {len(steps):,} steps of {stage.train.samples_per_step} samples, {steps.per_epoch:,} an epoch; "
        f"trainable {trainable:,} of {total:,} parameters ({trainable / total:.2%})"
    )
    outcome = Outcome(folder=folder.path)
    measures = evaluators(stage, base, data, device, outcome, console)
    run_trainer(stage, folder, base, model, peft_model, steps, device, measures, console, outcome)
    save_adapter(peft_model, folder.adapter, base_name=base.path)
    base.tokenizer.save_pretrained(str(folder.adapter))
    write_stack(folder, base_name=recipe.base, base_fingerprint=base_fingerprint)
    outcome.seconds = time.perf_counter() - started
    console.print(f"saved      {folder.path} ({outcome.seconds:.0f} s); try: stylora generate {folder.path} --prompt 剑光一闪")
    return outcome


def prove_and_attach(base: Base, stage: Stage, console: Console) -> tuple[Proofs, PeftModel]:
    """Proofs on the bare base, then a fresh adapter, then the proof that it can be switched off."""
    words = len(base.tokenizer)
    proofs = prove_base(base.model, words=words)
    ids, before = probe(base.model, words)
    peft_model = attach(base.model, stage.adapter, seed=stage.train.seed)
    proofs.lines.append(prove_adapters_off(peft_model, before, ids))
    for line in proofs.lines:
        console.print(f"proved     {line}")
    return proofs, peft_model


def evaluators(stage: Stage, base: Base, data: TextData, device: Device, outcome: Outcome, console: Console) -> list[Evaluator]:
    """Held-out loss of each part, and the fixed prompts continued; both remember what they found in `outcome`."""

    def held_out(model: ForestModel) -> dict[str, float]:
        with precision_context(device.device, device.dtype):
            found = {
                part: measure(model, windows, data.validation_characters[part], tokens_at_once=stage.train.tokens_per_microbatch)
                for part, windows in data.validation.items() if windows
            }  # fmt: skip
        outcome.held_out.append(found)
        return {part: figures.loss for part, figures in found.items()}

    def continuations(model: ForestModel) -> dict[str, float]:
        with precision_context(device.device, device.dtype):
            answers = generate(model.model, base.tokenizer, stage.prompts, stage.sampling)
        outcome.samples.append({answer.prompt: answer.text for answer in answers})
        write_json(outcome.folder / "samples.json", outcome.samples)
        for answer in answers:
            console.print(f"  [bold]{answer.prompt}[/bold]", end="", highlight=False)
            console.print(answer.text, markup=False, highlight=False)
        return {}

    return [held_out, *([continuations] if stage.prompts else [])]


def run_trainer(
    stage: Stage, folder: StageFolder, base: Base, model: ForestModel, peft_model: PeftModel, steps: Steps, device: Device,
    measures: list[Evaluator], console: Console, outcome: Outcome,
) -> None:  # fmt: skip
    """Train to the end; fills in `outcome`."""
    settings = stage.train
    display = ProgressDisplay(console)
    callbacks: list[TrainerCallback] = [MetricsFile(folder.path / "metrics.jsonl"), display]
    if "tensorboard" in settings.report_to:
        callbacks.append(tensorboard(folder.path))
    saves = moments(settings.save_strategy, settings.save_steps, steps.per_epoch, len(steps)) if settings.save_strategy != "no" else set()
    trainer = ForestTrainer(
        model, peft_model, base.tokenizer, steps, training_arguments(settings, device, folder.checkpoints, len(steps)),
        base_name=base.path, evaluators=measures, callbacks=callbacks, save_at=saves,
        eval_at=moments(settings.eval_strategy, settings.eval_steps, steps.per_epoch, len(steps)),
    )  # fmt: skip
    display.trainer = trainer
    try:
        trainer.train()
    finally:
        display.close()
    outcome.steps, outcome.tokens = trainer.state.global_step, trainer.tokens_seen


def tensorboard(folder: Path) -> TrainerCallback:
    """Events beside metrics.jsonl. transformers' own choice of folder is not ours to name."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(tb_writer=SummaryWriter(log_dir=str(folder)))


def bytes_needed(train: Train, trainable: int) -> int:
    """Disk for the adapter and its checkpoints: fp32 weights, AdamW's two moments with each checkpoint, and some air."""
    kept = 0 if train.save_strategy == "no" else (train.save_total_limit or 10) + 1
    return 4 * trainable * (1 + 3 * kept) + (32 << 20)


def environment(device: Device, proofs: Proofs) -> dict[str, object]:
    """What it ran on."""
    packages = ["stylora", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"]
    return {
        "python": platform.python_version(), "platform": platform.platform(), "device": device.why, "precision": device.precision,
        "packages": {name: version(name) for name in packages}, "proofs": proofs.lines,
    }  # fmt: skip
