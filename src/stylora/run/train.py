"""Carry a recipe out: text -> windows -> base and proofs -> adapter -> steps -> artefacts. The one page that tells the whole story.

It can be stopped at any moment and goes on where it was: what is unfinished is found by its folder, what is finished is left alone.
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from safetensors import SafetensorError
from transformers import TrainerCallback

from stylora import __version__
from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.generate.decode import open_row
from stylora.model.adapter import count_parameters, save_adapter
from stylora.model.base import Base, fingerprint, load_base
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.processes import agreed, join_processes, leave_processes, lost_peer, rank, ranks, wait_for_all
from stylora.model.proofs import Proofs, probe, prove_adapters_off, prove_base, prove_branches, prove_kl
from stylora.model.quantized import stored_bytes
from stylora.model.rope_2d import install
from stylora.model.rope_2d import told as told_positions
from stylora.model.stack import TOP, build_stack, check_stack, fold
from stylora.model.stack_names import weights_of
from stylora.recipe.recipe import Recipe, Stage
from stylora.samples.chat_data import ChatData
from stylora.samples.objective import check_vocabulary, read_vocabulary
from stylora.samples.text import TextData
from stylora.train.checkpoint import disk_trouble, find_checkpoint
from stylora.train.interruption import Interrupted, Interruption
from stylora.train.logs import MetricsFile
from stylora.train.optimizer import check_optimizer
from stylora.train.progress import ProgressDisplay, memory_share
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.symptoms import Computed, Symptoms, out_of_memory_advice
from stylora.train.trackers import tracked
from stylora.train.trainer import ForestTrainer, TrainingStopped, check_trackers, moments, training_arguments

from .data import account
from .estimate import dry_step, halved, told_time
from .folder import (
    StageFolder,
    check_room,
    claim_stage,
    locked,
    longer,
    made_from,
    publish,
    run_folder,
    stack_names,
    write_adapter_info,
    write_json,
    write_stack,
    write_text,
)
from .measuring import Outcome, evaluators
from .open import check_adapter
from .plan import StageData, chat_format, check_window, open_tokenizer, plan_steps, read_data
from .resume import carry_out, identity, open_folder, take_best
from .task import TaskAtHand, TaskFile, task_at_hand, task_file, write_errors, write_task

SECONDS_TO_STOP = 20.0  # for one of several processes: whoever started them ends them after 30


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything a stage trains with, before anything is written."""

    base: Base
    data: StageData
    device: Device
    peft_model: PeftModel
    model: ForestModel
    steps: Steps
    proofs: Proofs
    task: TaskAtHand | None
    base_fingerprint: dict[str, Any]
    made: dict[str, Any]


def train(
    recipe: Recipe, *, name: str, console: Console, force: bool = False, extend: float = 0, cache: Path | None = None
) -> Outcome | None:
    """Run the recipe's stage, or go on with it; None when it is already done.

    name: of the run, where the recipe sets no output_dir; force: begin anew; extend: so many epochs more than the recipe has
    Raises UserError for what the user can mend, TrainingStopped when the loss is no number, Interrupted after a signal.
    """
    if rank():
        console = Console(quiet=True)
    recipe = longer(recipe, extend)
    claim = claim_stage(run_folder(recipe, name), recipe, force=force, extend=bool(extend))
    stage, folder = recipe.stages[0], claim.stage
    if claim.state == "done":
        by = f", by stylora {claim.version}" if claim.version not in ("", __version__) else ""
        console.print(f"done already: {folder.path}{by} (--force trains again, --extend N goes on for N epochs)", markup=False)
        return None
    check_trackers(stage.train.report_to)
    check_optimizer(stage.train.optim, choose_device(stage.train.precision).device.type)
    for key, start in [("path", stage.adapter.path), *(("frozen", path) for path in stage.adapter.frozen)]:
        ours = {folder.path.resolve(), folder.adapter.resolve()}
        if start is not None and not ours.isdisjoint([Path(start).resolve(), *Path(start).resolve().parents]):
            raise UserError(
                str(folder.path), got=f"the folder of adapter.{key} {start}", expected="another folder, so that nothing of it is replaced",
                do="set output_dir",
            )  # fmt: skip
    started = time.perf_counter()
    with Interruption(SECONDS_TO_STOP if ranks() > 1 else None) as interruption:
        try:
            with interruption.at_once():
                prepared = prepare(recipe, console, cache=cache)
                check_room(folder, bytes_needed(stage.train, count_parameters(prepared.peft_model)[0]))
            with locked(folder) if rank() == 0 else nullcontext():
                if rank() == 0 and claim_stage(run_folder(recipe, name), recipe, force=force, extend=bool(extend)) != claim:
                    raise UserError(str(folder.path), got="a run that another process changed meanwhile", expected="it as it was at start",
                                    do="give the command again")  # fmt: skip
                outcome = run_stage(recipe, folder, claim.state, prepared, console, interruption)
        except Interrupted as stop:
            console.print(f"stopped by {stop}: {what_is_kept(folder)}")
            leave_processes()
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            told = in_words(error, stage, folder)
            if told is None:
                raise
            raise told from error
    outcome.seconds = time.perf_counter() - started
    console.print(f"saved      {folder.path} ({outcome.seconds:.0f} s); try: stylora {use_of(stage, folder)}", markup=False)
    return outcome


def use_of(stage: Stage, folder: StageFolder) -> str:
    """The command that shows what was learned."""
    if stage.data.format == "chat":
        return f"evaluate {folder.path}"
    if stage.data.format == "branches":
        return f"branches {folder.path} --main TEXT --branch PROMPT --branch PROMPT"
    return f"generate {folder.path} --prompt 剑光一闪"


def in_words(error: Exception, stage: Stage, folder: StageFolder) -> TrainingStopped | UserError | None:
    """What ended the training, as the user should read it: memory, another process, the disk. None where it is none of these."""
    kept = what_is_kept(folder)
    if isinstance(error, torch.OutOfMemoryError):
        settings = stage.train
        longest, shorter = halved(stage.data, stage.data.window)  # about: the rows of conversations and branches are not at hand
        advice = out_of_memory_advice(settings.tokens_per_microbatch, longest, settings.gradient_checkpointing, shorter)
        return TrainingStopped(f"{advice}; {kept}")
    if lost_peer(error):  # whoever started us says more
        return TrainingStopped(f"another process ended; {kept}")
    trouble = disk_trouble(error)
    if trouble is None:
        return None
    where = getattr(error, "filename", None) or str(folder.path)
    return UserError(where, got=trouble, expected="room for what the run writes", do=f"make room; {kept}")


def what_is_kept(folder: StageFolder) -> str:
    """What the same command will do after this run stopped."""
    last, _ = find_checkpoint(folder.checkpoints)
    return f"{last.path.name} is whole, the same command goes on from there" if last else "the same command starts again"


def prepare(recipe: Recipe, console: Console, *, cache: Path | None) -> Prepared:
    """Data, base, proofs, adapter and steps, each told as it comes."""
    stage, made = recipe.stages[0], made_from(recipe)  # before it is read: what changes meanwhile is noticed next time
    keep_freed_memory()
    data = read_data(recipe, open_tokenizer(recipe.base), cache=cache)
    for heading, told in account(data.summary, stage.data.window):
        console.print(f"{heading:<10} {told}", markup=False, highlight=False)
    device = choose_device(stage.train.precision)
    if recipe.attention == "flex_attention" and device.device.type == "cpu":
        raise UserError("attention", got="flex_attention", expected="sdpa or eager: flex_attention has no backward on a CPU")
    together = join_processes(device)
    if together:
        console.print(f"processes  {together}")
    base = load_base(
        recipe.base, device, attention=recipe.attention, trust_remote_code=recipe.trust_remote_code, load_in_4bit=recipe.load_in_4bit
    )
    vocabulary = read_vocabulary(base.tokenizer.backend_tokenizer)
    check_vocabulary(stage.objective, vocabulary)
    check_window(stage, base.context)
    attention = base.model.config._attn_implementation
    packed = f", weights in 4 bits ({stored_bytes(base.model) / 1e6:,.0f} MB)" if recipe.load_in_4bit else ""
    console.print(f"base       {recipe.base}: {type(base.model).__name__}{packed}, {device.why}, attention {attention}", markup=False)
    base_fingerprint = fingerprint(base)
    chosen, below = stage.adapter.weights, dict[Path, float | None]()
    for folder, called in zip([*stage.adapter.frozen, *filter(None, [stage.adapter.path])], stack_names(stage), strict=False):
        check_adapter(Path(folder), recipe.base, base_fingerprint, below)
        below[Path(folder)] = None if called in chosen else 1.0
    proofs, peft_model = prove_and_attach(base, stage)
    turned = install(base.model, stage.branches)
    task = None
    if not isinstance(data, TextData):
        proofs.lines.append(data.proof())
    if isinstance(data, ChatData):
        form = chat_format(recipe.base, open_tokenizer(recipe.base), stage.data.chat_template_kwargs)
        task = task_at_hand(stage, data, form, base, packs=proofs.packs)
    for number, prompt in enumerate(stage.prompts):
        open_row(base.model, base.tokenizer, prompt, stage.sampling, number=number, chat=stage.data.format == "chat",
                 where=f"prompts[{number}]")  # fmt: skip
    columnar = stage.branches is not None and stage.branches.visibility == "columnar"
    model = ForestModel(
        base.model, words=len(base.tokenizer), head=proofs.head, kl=stage.objective.kl, columnar=columnar
    )  # the adapter lies inside
    if stage.branches is not None:
        if proofs.packs:  # else `plan_steps` refuses
            proofs.lines += prove_branches(model, stage.branches, words=len(base.tokenizer))
        for line in told_positions(stage.branches, turned):
            console.print(f"branches   {line}", markup=False, highlight=False)
    if stage.objective.kl is not None and stage.objective.kl.beta:
        proofs.lines.append(prove_kl(model, words=len(base.tokenizer)))
    for line in proofs.lines:
        console.print(f"proved     {line}")
    if stage.train.gradient_checkpointing:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    steps = plan_steps(stage, data, vocabulary, packs=proofs.packs, rank=rank(), ranks=ranks())
    return Prepared(
        base=base, data=data, device=device, peft_model=peft_model, model=model, steps=steps, proofs=proofs, task=task,
        base_fingerprint=base_fingerprint, made=made,
    )  # fmt: skip


def prove_and_attach(base: Base, stage: Stage) -> tuple[Proofs, PeftModel]:
    """Proofs on the bare base, then the adapter, fresh or saved before, then the proof that it can be switched off."""
    words = len(base.tokenizer)
    proofs = prove_base(base.model, words=words)
    weights = weights_of(stack_names(stage)[:-1], stage.adapter.weights, where="adapter.weights")
    ids, before = probe(base.model, words)
    if stage.adapter.fold_frozen:
        _, difference = fold(base.model, stage.adapter.frozen, weights, ids)  # in place
        proofs.lines.append(f"folded = unfolded up to rounding: logits differ by {difference:.2g} ({base.model.dtype})")
        ids, before = probe(base.model, words)
    peft_model = build_stack(base.model, stage.adapter, seed=stage.train.seed, weights=weights, branches=stage.branches)
    proofs.lines.append(prove_adapters_off(peft_model, before, ids))
    return proofs, peft_model


def run_stage(
    recipe: Recipe, folder: StageFolder, state: str, prepared: Prepared, console: Console, interruption: Interruption
) -> Outcome:
    """Make or open the folder, train from the beginning or the last sound checkpoint, leave adapter and stack.json."""
    stage = recipe.stages[0]
    trainable, total = count_parameters(prepared.peft_model)
    steps = prepared.steps
    size = f"{stage.train.samples_per_step} samples" if steps.counts is None else f"at most {stage.train.samples_per_step} branches"
    console.print(
        f"train      {len(steps):,} steps of {size}, {'' if steps.counts is None else 'about '}{steps.per_epoch:,} an epoch; "
        f"trainable {trainable:,} of {total:,} parameters ({trainable / total:.2%})"
    )
    same = identity(recipe, prepared.data.fingerprint, prepared.base_fingerprint)
    checkpoint = agreed(open_folder(recipe, folder, state, same, console) if rank() == 0 else None)
    if rank() == 0:
        write_json(folder.path / "environment.json", environment(prepared.device, prepared.proofs))
        if not isinstance(prepared.data, TextData) and prepared.data.rejects:
            lines = [json.dumps(reject.as_json(), ensure_ascii=False) + "\n" for reject in prepared.data.rejects]
            write_text(folder.path / "rejects.jsonl", "".join(lines))
    wait_for_all()
    seconds = dry_step(prepared.model, steps, prepared.device, stage)
    left = len(steps) - (checkpoint.step if checkpoint else 0)
    console.print(f"time       about {told_time(seconds * left)} for {left:,} steps, evaluations and checkpoints come on top")
    trainer = make_trainer(recipe, folder, prepared, console, interruption, same)
    trackers = stage.train.report_to if rank() == 0 else []
    try:
        with tracked(trackers, folder.path, run_name=f"{folder.path.resolve().parent.name}/{folder.path.name}"):
            carry_out(trainer, folder, checkpoint, console)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressDisplay):
                callback.close()
    take_best(trainer, folder, console)
    check_stack(prepared.peft_model, trainable=TOP)
    outcome = Outcome(folder=folder.path, steps=trainer.state.global_step, tokens=trainer.progress.tokens)
    if rank() == 0:
        if isinstance(prepared.data, ChatData):
            write_task(folder.path, learned_task(stage, prepared, folder))
        publish(folder, lambda part: save_all(prepared, folder, recipe, part))
        write_stack(folder, recipe, base_fingerprint=prepared.base_fingerprint, steps=outcome.steps, made=prepared.made)
    wait_for_all()
    outcome.read()
    return outcome


def learned_task(stage: Stage, prepared: Prepared, folder: StageFolder) -> TaskFile:
    """What `predict` needs to know. Where answers are labels, with the temperature at which the held-out ones are likeliest.

    The wrong answers that are left behind are those of the adapter that was kept.
    """
    task = prepared.task
    assert isinstance(prepared.data, ChatData)
    if task is None:
        return task_file(stage, prepared.data.train_rows)
    labels = task.asks.kind == "label"
    if not task.every or not (labels or stage.train.metric_for_best_model):  # else the last evaluation was of the adapter that is kept
        return task.told
    with precision_context(prepared.device.device, prepared.device.dtype):
        found = task.asks.examine(prepared.model, task.every if labels else task.questions, constrain=labels)
    write_errors(folder.path, found.rows, task.asks.kind)
    return task.told if found.temperature is None else replace(task.told, temperature=found.temperature)


def make_trainer(
    recipe: Recipe, folder: StageFolder, prepared: Prepared, console: Console, interruption: Interruption, same: dict[str, Any]
) -> ForestTrainer:
    """The trainer with its callbacks; those that write and show are the first process's."""
    stage, steps = recipe.stages[0], prepared.steps
    settings = stage.train
    display, metrics = ProgressDisplay(console), folder.path / "metrics.jsonl"
    told = Symptoms(partial(console.print, markup=False, highlight=False), metrics, computed=lambda: computed(stage, prepared))
    callbacks: list[TrainerCallback] = [MetricsFile(metrics), display, told]
    if "tensorboard" in settings.report_to and rank() == 0:
        callbacks.append(tensorboard(folder.path))
    saves = moments(settings.save_strategy, settings.save_steps, steps.ends, len(steps)) if settings.save_strategy != "no" else set()
    trainer = ForestTrainer(
        prepared.model, prepared.peft_model, prepared.base.tokenizer, steps,
        training_arguments(settings, prepared.device, folder.checkpoints, len(steps)), settings,
        base_name=prepared.base.path, folder=folder.path, save_at=saves,
        eval_at=moments(settings.eval_strategy, settings.eval_steps, steps.ends, len(steps)),
        evaluators=evaluators(stage, folder.path, prepared.base, prepared.data, prepared.device, console, task=prepared.task,
                              packs=prepared.proofs.packs),
        callbacks=callbacks if rank() == 0 else [], identity=same, interruption=interruption, branches=stage.branches,
    )  # fmt: skip
    display.trainer = trainer
    return trainer


def save_all(prepared: Prepared, stage: StageFolder, recipe: Recipe, folder: Path) -> None:
    """The adapter, what it lies on, and the tokenizer beside it."""
    save_adapter(prepared.peft_model, folder, base_name=prepared.base.path, branches=recipe.stages[0].branches)
    write_adapter_info(folder, stage, recipe, made=prepared.made)
    prepared.base.tokenizer.save_pretrained(str(folder))


def computed(stage: Stage, prepared: Prepared) -> Computed:
    """How steps are computed here, by the example of the first one."""
    first = prepared.steps[0].batches
    return Computed(
        precision=prepared.device.precision, fastest=choose_device().precision, memory_share=memory_share(),
        gradient_checkpointing=stage.train.gradient_checkpointing, tokens=sum(batch.tokens for batch in first),
        padded_tokens=sum(batch.ids.size for batch in first),
    )  # fmt: skip


def tensorboard(folder: Path) -> TrainerCallback:
    """Events beside metrics.jsonl. transformers' own choice of folder is not ours to name."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(tb_writer=SummaryWriter(log_dir=str(folder)))


def bytes_needed(train: Train, trainable: int) -> int:
    """Disk for the adapter and its checkpoints: fp32 weights, AdamW's two moments with each checkpoint, and some air."""
    kept = 2 if train.save_strategy == "no" else (train.save_total_limit or 10) + 2  # the best, and the one a signal asks for
    return 4 * trainable * (1 + 3 * kept) + (32 << 20)


def environment(device: Device, proofs: Proofs) -> dict[str, object]:
    """What it ran on."""
    packages = ["stylora", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"]
    return {
        "python": platform.python_version(), "platform": platform.platform(), "device": device.why, "precision": device.precision,
        "processes": ranks(), "packages": {name: version(name) for name in packages}, "proofs": proofs.lines,
    }  # fmt: skip
