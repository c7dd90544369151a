"""transformers' `Trainer`, subclassed thinly: one loader item is one optimizer step, looped over in micro-batches.

The divisor W is counted at collation, before the forward, so the budget of a micro-batch never changes the result; the loss is
computed inside the wrapped module's forward. Everything else (optimizer, schedule, clipping, mixed precision, DDP, callbacks, trackers) is
transformers'. Saving and resuming are ours: transformers restores one adapter only, writes checkpoints in place, and forgets what we count.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from stylora.errors import UserError
from stylora.model.adapter import count_parameters, restore_adapter, save_adapter
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.processes import agreed, summed, wait_for_all
from stylora.model.stack import TOP, check_stack, frozen_hash
from stylora.samples.branch_settings import Branches

from .checkpoint import Checkpoint, rotate, write_checkpoint
from .interruption import Interrupted, Interruption
from .logs import cut_back, log_sizes
from .optimizer import TRANSFORMERS, loraplus
from .settings import Train
from .steps import Step, Steps
from .symptoms import no_number

SPIKE_WINDOW = 20  # steps whose median a loss is held against


Evaluator = Callable[[ForestModel, int], dict[str, float]]
"""Measures the model in eval mode at a step: metric name -> value. Names become `eval/NAME` in logs."""
STILL = 10
"""logged lines without a divergence, of an adapter that moves, that are taken for a fault; the first step's is always 0"""


class TrainingStopped(Exception):
    """Training can't go on: the loss or its gradient is no number, or the loss jumped. The message says where and what to try."""


class LossSpike(TrainingStopped):
    """The same, where the recipe wants to go back to the last checkpoint and try at half the rate."""


def check_trackers(names: list[str], where: str = "train.report_to") -> None:
    """Raises UserError for a tracker that transformers does not know or that is not installed; TensorBoard is always there."""
    for name in names:
        if name != "tensorboard" and name not in (known := get_available_reporting_integrations()):
            raise UserError(
                where, got=repr(name), expected="`tensorboard`, `none` or an installed tracker",
                do=f"install it; what transformers finds here: {', '.join(known) or 'none'}",
            )  # fmt: skip


def training_arguments(train: Train, device: Device, output: Path, total_steps: int) -> TrainingArguments:
    """Our settings as transformers has them. Step size, order and divisor are ours: its batch is one `Step`, accumulation 1."""
    trackers = [name for name in train.report_to if name != "tensorboard"]  # ours writes events where the run lies
    arguments = TrainingArguments(
        output_dir=str(output), max_steps=total_steps, per_device_train_batch_size=1, gradient_accumulation_steps=1,
        learning_rate=train.learning_rate, lr_scheduler_type=train.lr_scheduler_type, warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay, adam_beta1=train.adam_beta1, adam_beta2=train.adam_beta2, adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm, bf16=device.precision == "bf16", fp16=device.precision == "fp16",
        use_cpu=device.device.type == "cpu", eval_strategy="no", save_strategy="no",
        save_total_limit=train.save_total_limit, logging_steps=train.logging_steps,
        report_to=trackers or "none", seed=train.seed, logging_nan_inf_filter=False, remove_unused_columns=False, disable_tqdm=True,
        dataloader_pin_memory=False, label_names=[], optim=TRANSFORMERS[train.optim],
        ignore_data_skip=True,  # our loader starts at the right step by itself
        ddp_find_unused_parameters=False, ddp_broadcast_buffers=False,  # every weight takes part; no buffer changes
    )  # fmt: skip
    if arguments.n_gpu > 1:  # one process, several cards: transformers would wrap the model in DataParallel, which can't split a forest
        arguments._n_gpu = 1
    return arguments


@dataclass(kw_only=True)
class Progress:
    """What a run has done beside learning; saved with every checkpoint and taken up again from there.

    evaluated: whether the measurement due at this step stands in the logs
    samples, tokens, forest_tokens: trained so far, by all processes
    unlogged_loss: sum of the losses since the step last logged, logged_step
    unlogged_parts: likewise of its cross-entropy and its divergence from the reference, and the number of these steps
    unlogged_anchors: the weight of the anchors in them
    still: logged lines in a row in which the divergence was 0 while the adapter moved
    losses: of the last steps; waited: measurements since the best one
    stopped: the number of steps of a run that was ended early, so that there is nothing to go on with unless it is made longer; else 0
    rate: what the schedule's learning rate is multiplied by: 1, halved by every roll-back
    """

    evaluated: bool = True
    samples: int = 0
    tokens: int = 0
    forest_tokens: int = 0
    unlogged_loss: float = 0.0
    logged_step: int = 0
    unlogged_parts: list[float] = field(default_factory=lambda: [0.0, 0.0, 0])
    unlogged_anchors: float = 0.0
    still: int = 0
    losses: list[float] = field(default_factory=list)
    waited: int = 0
    stopped: int = 0
    rate: float = 1.0


class ForestTrainer(Trainer):
    """Trains the adapters inside a `ForestModel` on `Steps`, measured by the evaluators it is handed.

    eval_at, save_at: step numbers; evaluators run before the first step and at each of `eval_at`
    folder: where the logs lie; checkpoints go to `args.output_dir`
    identity: what a checkpoint must agree with to be resumed from (fingerprints of data and base); put into its manifest
    branches: how those are laid out that it learns from, which goes with every adapter that is saved; None where there are none
    """

    def __init__(
        self,
        model: ForestModel,
        peft_model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        steps: Steps,
        args: TrainingArguments,
        settings: Train,
        *,
        base_name: str,
        folder: Path,
        evaluators: list[Evaluator],
        eval_at: set[int],
        save_at: set[int],
        callbacks: list[TrainerCallback],
        identity: dict[str, Any] | None = None,
        interruption: Interruption | None = None,
        branches: Branches | None = None,
    ) -> None:
        self.forest_model, self.peft_model, self.steps, self.base_name = model, peft_model, steps, base_name
        self.settings, self.folder, self.identity, self.branches = settings, folder, identity or {}, branches
        self.evaluators, self.eval_at, self.save_at = evaluators, eval_at, save_at
        self.interruption = interruption or Interruption()
        self.progress, self.start = Progress(), 0
        self.frozen = frozen_hash(peft_model)
        super().__init__(model=model, args=args, train_dataset=steps, processing_class=tokenizer, callbacks=[*callbacks, _When(self)])
        self.remove_callback(PrinterCallback)  # it prints raw dictionaries; what is shown is up to the callbacks given

    def run(self, checkpoint: Checkpoint | None = None, *, rate: float | None = None) -> None:
        """Train to the end, from the beginning or on from a checkpoint. rate: replaces the checkpoint's `Progress.rate`.

        Raises TrainingStopped, LossSpike, Interrupted (what is worth keeping is saved by then), UserError for a full disk.
        """
        self.progress, self.start = Progress(), 0
        if checkpoint is not None:
            self.progress, self.start = Progress(**checkpoint.manifest["progress"]), checkpoint.step
            if self.args.should_save:
                cut_back(self.folder, checkpoint.manifest["logs"])
        if rate is not None:
            self.progress.rate = rate
        wait_for_all()  # nobody writes logs before they are cut
        if self.progress.stopped not in (0, len(self.steps)):
            self.progress.stopped = self.progress.waited = 0
        if self.progress.stopped:
            assert checkpoint is not None
            self.state = TrainerState.load_from_json(str(checkpoint.path / TRAINER_STATE_NAME))
            restore_adapter(self.peft_model, checkpoint.path)
        else:
            self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    def get_train_dataloader(self) -> DataLoader:
        """Steps in order; what an epoch is and how it is shuffled is theirs to say."""
        rest = _Rest(self.start, len(self.steps))
        return DataLoader(cast("Dataset[Step]", self.steps), batch_size=None, sampler=rest)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' AdamW; with LoRA+ in groups of two rates. The rate that is logged is A's."""
        ratio = self.settings.loraplus_lr_ratio
        if ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, keywords = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = loraplus(self.peft_model, kind, keywords, ratio=ratio, decay=self.args.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """transformers' schedule, one step ahead: its first step under warmup has learning rate 0 and would teach nothing."""
        scheduler = super().create_scheduler(num_training_steps + 1, optimizer)
        if isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [self._one_ahead(rate) for rate in scheduler.lr_lambdas]
            self._set_rates(scheduler)
        return scheduler

    def _one_ahead(self, rate: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: rate(step + 1) * self.progress.rate

    def _set_rates(self, scheduler: LambdaLR) -> None:
        for group, start, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = start * rate(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]  # what is logged as the next step's

    def training_step(  # type: ignore[override]  # transformers' batches are dictionaries, ours are steps
        self, model: nn.Module, inputs: Step, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Loss and gradient of one optimizer step: sum(w * CE) / W over all its micro-batches, on all processes."""
        model.train()
        sums = torch.zeros(3, device=self.args.device)  # of the loss, its cross-entropy, its divergence
        kl = self.forest_model.kl
        for number, batch in enumerate(inputs.batches):
            # dropout depends on (seed, step, process, micro-batch) alone, not on what else drew random numbers before
            torch.manual_seed(dropout_seed(self.args.seed, self.state.global_step, self.steps.rank, number))
            last = number == len(inputs.batches) - 1
            tensors = to_tensors(
                batch, self.args.device, divisor=inputs.weight, anchor_divisor=inputs.anchor_weight or 1.0,
                drop_gold=kl is not None and kl.drop_gold,
            )  # fmt: skip
            with torch.enable_grad(), nullcontext() if last else self.accelerator.no_sync(model=model):
                with self.compute_loss_context_manager():
                    loss = model(tensors)
                self.accelerator.backward(loss * self.steps.ranks)  # DDP takes the mean over processes where we want the sum
            sums += torch.stack([loss.detach(), self.forest_model.last_ce, self.forest_model.last_kl])
        loss_sum, *parts, forest_tokens = summed(np.array([*sums.tolist(), inputs.forest_tokens], np.float64))
        self._check(float(loss_sum))
        self.progress.unlogged_parts = [
            before + float(part) for before, part in zip(self.progress.unlogged_parts, [*parts, 1], strict=True)
        ]
        self.progress.unlogged_anchors += inputs.anchor_weight
        self.progress.samples += inputs.samples
        self.progress.tokens += inputs.tokens
        self.progress.forest_tokens += int(forest_tokens)
        return torch.tensor(loss_sum, dtype=torch.float32, device=self.args.device)

    def _check(self, loss: float) -> None:
        """Raises TrainingStopped or LossSpike where the loss or its gradient is no number, or the loss jumped."""
        step, trouble = self.state.global_step + 1, None
        if not np.isfinite(loss):
            trouble = no_number(step, "loss", loss)
        elif not self.args.fp16:  # there the loss scaler skips such steps and scales less
            norm = nn.utils.get_total_norm([p.grad for p in self.peft_model.parameters() if p.grad is not None])
            if not torch.isfinite(norm):
                trouble = no_number(step, "gradient", norm.item())
        losses = self.progress.losses
        if trouble is None and self.settings.loss_spike != "ignore" and len(losses) == SPIKE_WINDOW:
            usual = median(losses)
            if loss > self.settings.loss_spike_factor * usual:
                trouble = f"step {step}: the loss jumped to {loss:.3f}, usual were {usual:.3f}; lower train.learning_rate"
        if trouble is not None:
            raise LossSpike(trouble) if self.settings.loss_spike == "roll_back" else TrainingStopped(trouble)
        self.progress.losses = [*losses, loss][-SPIKE_WINDOW:]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """One `Step`, whose divisor stands in for transformers' count of items; none where a measurement made up for has ended the run."""
        return [] if self.control.should_training_stop else [next(epoch_iterator)], None

    def floating_point_ops(self, inputs: Step) -> int:  # type: ignore[override]
        """Forward + backward without weight gradients of the frozen base: about 4 N a token."""
        return 4 * count_parameters(self.forest_model)[1] * inputs.forest_tokens

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Run every evaluator on the unwrapped model, log `eval/NAME`, and judge the metric that chooses the best model.

        A signal ends it on the spot: what it had written is taken back, the step before it is saved. Among several processes it is
        carried through, for the others would wait.
        """
        was_training, sizes, step = self.forest_model.training, log_sizes(self.folder), self.state.global_step
        self.forest_model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager(), self._interruptible():
                metrics = {f"eval_{name}": value for run in self.evaluators for name, value in run(self.forest_model, step).items()}
        except Interrupted:
            cut_back(self.folder, sizes)
            if step > self.start:
                self._save_checkpoint(self.model, None)
            raise
        finally:
            self.forest_model.train(was_training)
        metrics = agreed(metrics)  # what follows from them is decided once
        self.log(dict(metrics))
        self.progress.evaluated = True
        self._judge({name.removeprefix("eval_"): value for name, value in metrics.items()})
        return metrics

    def _interruptible(self):
        return self.interruption.at_once() if self.steps.ranks == 1 else nullcontext()

    def _judge(self, metrics: dict[str, float]) -> None:
        """Is it the best so far? Then it is saved. Are we waiting for too long? Then training ends."""
        name = self.settings.metric_for_best_model
        if name is None:
            return
        if name == "loss" and name not in metrics:
            name = next(iter(metrics), name)
        if name not in metrics:
            known = "one of: " + ", ".join(metrics) if metrics else "held-out text to measure"
            raise UserError("train.metric_for_best_model", got=repr(name), expected=known)
        if self.state.global_step == 0:
            return
        value, best = metrics[name], self.state.best_metric
        gain = np.inf if best is None else (value - best) * (1 if self.settings.more_is_better else -1)
        if gain > 0:
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
            self.control.should_save = True
        # as transformers' EarlyStoppingCallback counts: small gains are kept, but waiting goes on
        self.progress.waited = 0 if gain > self.settings.early_stopping_threshold else self.progress.waited + 1
        if self.settings.early_stopping_patience and self.progress.waited >= self.settings.early_stopping_patience:
            self.progress.stopped = len(self.steps)
            self.control.should_training_stop = self.control.should_save = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the epoch: ours, since `Steps` runs through all of them as one; and the loss's parts, means over the same steps."""
        kl = self.forest_model.kl
        if "loss" in logs and kl is not None and kl.beta:
            *parts, steps = self.progress.unlogged_parts
            ce, divergence = (part / steps for part in parts)
            whole = ce + kl.beta * divergence
            logs |= {"ce": ce, "kl": divergence, "kl_share": kl.beta * divergence / whole if whole else 0.0}
            self.progress.unlogged_parts = [0.0, 0.0, 0]
        self.state.epoch = self.steps.epochs_done(self.state.global_step)
        super().log(logs, start_time)
        if "kl" in logs:
            self._check_divergence(logs["kl"], moved=logs.get("learning_rate", 0.0) * logs.get("grad_norm", 0.0) > 0)

    def _check_divergence(self, divergence: float, *, moved: bool) -> None:
        """Raises TrainingStopped where the term that should hold the adapter to its reference has been without effect."""
        anchors, self.progress.unlogged_anchors = self.progress.unlogged_anchors, 0.0
        if divergence != 0:
            self.progress.still = 0
        elif moved and anchors > 0:
            self.progress.still += 1
        if self.progress.still == STILL:
            raise TrainingStopped(f"KL was 0 in {STILL} logged lines while the adapter moved: nothing holds it to its reference")

    def stop_asked(self) -> int | None:
        """The signal that asked this process or another one to stop; None where none did. All processes ask together."""
        asked = summed(np.array([self.interruption.number is not None], np.float64))
        return (self.interruption.number or signal.SIGTERM) if asked[0] else None

    def _save_checkpoint(self, model, trial) -> None:
        """Write `checkpoint-N` whole, then remove what is no longer kept."""
        self.progress.unlogged_loss, self.progress.logged_step = self._tr_loss.item(), self._globalstep_last_logged
        self.store_flos()
        step, folder = self.state.global_step, Path(str(self.args.output_dir))
        manifest = {"progress": asdict(self.progress), "logs": log_sizes(self.folder), **self.identity}
        if self.args.should_save:
            write_checkpoint(folder, step, self._write_files, manifest)
            rotate(folder, self.args.save_total_limit, best=self.state.best_global_step)
        wait_for_all()

    def _write_files(self, folder: Path) -> None:
        """Everything training goes on from. Generators: dropout's is seeded anew in every step, so one process's suffice."""
        self._save(str(folder))
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        assert output_dir is not None and isinstance(self.processing_class, PreTrainedTokenizerBase)
        self.check_adapters()
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(self.peft_model, folder, base_name=self.base_name, branches=self.branches)
        self.processing_class.save_pretrained(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The adapter's weights into the live model: transformers would load a second one, and activate the first it finds."""
        restore_adapter(self.peft_model, Path(resume_from_checkpoint))
        self.check_adapters()

    def check_adapters(self) -> None:
        """Asserts that all adapters of the stack work, the top learns, and the others are what they were, byte for byte."""
        check_stack(self.peft_model, trainable=TOP)
        assert frozen_hash(self.peft_model) == self.frozen, "a frozen adapter changed in training"


class _Rest(Sampler[int]):
    """The steps still to do. Its length is that of the whole run: transformers counts an epoch by it, and ours is the run."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


class _When(TrainerCallback):
    """Evaluate and save at the step numbers asked for: transformers counts shares of steps differently for each."""

    def __init__(self, trainer: ForestTrainer) -> None:
        self.trainer, self.stop = trainer, None

    def on_train_begin(self, args, state, control, **_):
        trainer, progress = self.trainer, self.trainer.progress
        if trainer.start:  # transformers starts its sums anew and keeps the learning rate of the schedule that was
            trainer._tr_loss += progress.unlogged_loss
            trainer._globalstep_last_logged = progress.logged_step
            if isinstance(trainer.lr_scheduler, LambdaLR):
                trainer._set_rates(trainer.lr_scheduler)
        if trainer.evaluators and (not trainer.start or not progress.evaluated):
            trainer.evaluate()
            if trainer.start:
                trainer._save_checkpoint(trainer.model, None)

    def on_step_end(self, args, state, control, **_):
        trainer = self.trainer
        due = bool(trainer.evaluators) and state.global_step in trainer.eval_at
        trainer.progress.evaluated = not due
        self.stop = trainer.stop_asked()
        control.should_evaluate = due and not self.stop
        control.should_save = state.global_step in trainer.save_at or bool(self.stop)
        return control

    def on_save(self, args, state, control, **_):
        stop = self.stop or self.trainer.stop_asked()
        if stop:
            raise Interrupted(stop)

    def on_epoch_end(self, args, state, control, **_):
        control.should_evaluate = control.should_save = False  # the last step did both already
        return control


def dropout_seed(*key: int) -> int:
    """A 64-bit seed from (seed, step, process, micro-batch)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def moments(strategy: str, every: float, epochs: Sequence[int], total: int) -> set[int]:
    """Step numbers at which something happens: every `every` steps (below 1: that share of all steps), every epoch, or only at the end.

    epochs: how many steps are done at the end of each
    """
    if strategy == "no":
        return {total}
    if strategy == "epoch":
        return {*epochs, total}
    stride = max(1, round(every * total) if every < 1 else int(every))
    return {*range(stride, total + 1, stride), total}
