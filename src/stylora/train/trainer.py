"""transformers' `Trainer`, subclassed thinly: one loader item is one optimizer step, looped over in micro-batches.

The divisor W is counted at collation, before the forward, so the budget of a micro-batch never changes the result; the loss is
computed inside the wrapped module's forward. Everything else (optimizer, schedule, clipping, mixed precision, callbacks, trackers) is
transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from stylora.errors import UserError
from stylora.model.adapter import save_adapter
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel, to_tensors

from .settings import Train
from .steps import Step, Steps

Evaluator = Callable[[ForestModel], dict[str, float]]
"""Measures the model in eval mode: metric name -> value. Names become `eval/NAME` in logs."""


class TrainingStopped(Exception):
    """Training can't go on: the loss or its gradient is no number. The message says where and what to try."""


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
        dataloader_pin_memory=False, label_names=[], optim="adamw_torch_fused",
    )  # fmt: skip
    if arguments.n_gpu > 1:  # one process, several cards: transformers would wrap the model in DataParallel, which can't split a forest
        arguments._n_gpu = 1
    return arguments


class ForestTrainer(Trainer):
    """Trains the adapters inside a `ForestModel` on `Steps`, measured by the evaluators it is handed.

    eval_at, save_at: step numbers; evaluators run before the first step and at each of `eval_at`
    """

    def __init__(
        self,
        model: ForestModel,
        peft_model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        steps: Steps,
        args: TrainingArguments,
        *,
        base_name: str,
        evaluators: list[Evaluator],
        eval_at: set[int],
        save_at: set[int],
        callbacks: list[TrainerCallback],
    ) -> None:
        self.forest_model, self.peft_model, self.steps, self.base_name = model, peft_model, steps, base_name
        self.evaluators, self.eval_at, self.save_at = evaluators, eval_at, save_at
        self.tokens_seen = self.forest_tokens_seen = self.samples_seen = 0
        super().__init__(model=model, args=args, train_dataset=steps, processing_class=tokenizer, callbacks=[*callbacks, _When(self)])
        self.remove_callback(PrinterCallback)  # it prints raw dictionaries; what is shown is up to the callbacks given

    def get_train_dataloader(self) -> DataLoader:
        """Steps in order; what an epoch is and how it is shuffled is theirs to say."""
        return DataLoader(cast("Dataset[Step]", self.steps), batch_size=None, shuffle=False)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """transformers' schedule, one step ahead: its first step under warmup has learning rate 0 and would teach nothing."""
        scheduler = super().create_scheduler(num_training_steps + 1, optimizer)
        if isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [_one_ahead(rate) for rate in scheduler.lr_lambdas]
            for group, start, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                group["lr"] = start * rate(0)
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]  # what is logged as the first step's
        return scheduler

    def training_step(  # type: ignore[override]  # transformers' batches are dictionaries, ours are steps
        self, model: nn.Module, inputs: Step, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Loss and gradient of one optimizer step: sum(w * CE) / W over all its micro-batches."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs.batches):
            # dropout depends on (seed, step, micro-batch) alone, not on what else drew random numbers before
            torch.manual_seed(dropout_seed(self.args.seed, self.state.global_step, number))
            last = number == len(inputs.batches) - 1
            tensors = to_tensors(batch, self.args.device, divisor=inputs.weight)
            with torch.enable_grad(), nullcontext() if last else self.accelerator.no_sync(model=model):
                with self.compute_loss_context_manager():
                    loss = model(tensors)
                self.accelerator.backward(loss)
            total += loss.detach()
        if not torch.isfinite(total):
            raise TrainingStopped(
                f"step {self.state.global_step + 1}: the loss is {total.item()}; lower train.learning_rate, or set train.precision: bf16"
            )
        if not self.args.fp16:  # there the loss scaler skips such steps and scales less
            norm = nn.utils.get_total_norm([p.grad for p in self.peft_model.parameters() if p.grad is not None])
            if not torch.isfinite(norm):
                raise TrainingStopped(f"step {self.state.global_step + 1}: the gradient is {norm.item()}; lower train.learning_rate")
        self.samples_seen += inputs.samples
        self.tokens_seen += inputs.tokens
        self.forest_tokens_seen += inputs.forest_tokens
        return total

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """One `Step`; the divisor it carries stands in for transformers' count of items."""
        return [next(epoch_iterator)], None

    def floating_point_ops(self, inputs: Step) -> int:  # type: ignore[override]
        """Forward + backward without weight gradients of the frozen base: about 4 N a token."""
        return 4 * sum(p.numel() for p in self.forest_model.parameters()) * inputs.forest_tokens

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Run every evaluator on the unwrapped model and log `eval/NAME`."""
        was_training = self.forest_model.training
        self.forest_model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            metrics = {f"eval_{name}": value for run in self.evaluators for name, value in run(self.forest_model).items()}
        self.forest_model.train(was_training)
        self.log(dict(metrics))
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the epoch: ours, since `Steps` runs through all of them as one."""
        self.state.epoch = self.state.global_step / self.steps.per_epoch
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        assert output_dir is not None and isinstance(self.processing_class, PreTrainedTokenizerBase)
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(self.peft_model, folder, base_name=self.base_name)
        self.processing_class.save_pretrained(str(folder))


def _one_ahead(rate: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: rate(step + 1)


class _When(TrainerCallback):
    """Evaluate and save at the step numbers asked for: transformers counts shares of steps differently for each."""

    def __init__(self, trainer: ForestTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        if self.trainer.evaluators:
            self.trainer.evaluate()

    def on_step_end(self, args, state, control, **_):
        control.should_evaluate = bool(self.trainer.evaluators) and state.global_step in self.trainer.eval_at
        control.should_save = state.global_step in self.trainer.save_at
        return control

    def on_epoch_end(self, args, state, control, **_):
        control.should_evaluate = control.should_save = False  # the last step did both already
        return control


def dropout_seed(*key: int) -> int:
    """A 64-bit seed from (seed, step, micro-batch)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def moments(strategy: str, every: float, per_epoch: int, total: int) -> set[int]:
    """Step numbers at which something happens: every `every` steps (below 1: that share of all steps), every epoch, or only at the end."""
    if strategy == "no":
        return {total}
    stride = per_epoch if strategy == "epoch" else max(1, round(every * total) if every < 1 else int(every))
    return {*range(stride, total + 1, stride), total}


class MetricsFile(TrainerCallback):
    """`metrics.jsonl`: one JSON object a line for every log, `eval_x` written as `eval/x`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("", encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **_):
        row = {"step": state.global_step} | {key.replace("eval_", "eval/", 1): value for key, value in (logs or {}).items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
