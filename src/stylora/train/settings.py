"""The recipe's `train` section: the Hugging Face `TrainingArguments` names we support, and a step measured in samples.

Names that transformers dropped (`warmup_ratio`, `evaluation_strategy`) are still understood; what they became is said at start.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

RENAMED = {"evaluation_strategy": "eval_strategy"}
LOSSES = ("loss", "style", "general", "answers", "branches")
"""metrics of training that are nats: the loss of the held-out parts"""


Schedule = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"]
"""transformers' schedules that need no further arguments"""
Optim = Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"]
"""optimizer.py says what each is"""


class Train(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How long, how fast, how measured.

    num_train_epochs: passes over the training tokens; may be a fraction
    max_steps: optimizer steps instead of epochs; -1 leaves it to the epochs
    samples_per_step: samples (windows, conversations; branches, unless `data.batch_by_samples`) that make one optimizer step, whatever fits
        at once
    tokens_per_microbatch: padded tokens computed at once; lower it when memory is short, the result stays the same
    row_tokens: pack several samples into rows of up to so many tokens; None keeps one a row, which needs no attention mask
    learning_rate: peak rate; 1e-4..1e-3 suits LoRA, small bases the upper end, large ones the lower
    lr_scheduler_type: as in transformers
    warmup_steps: steps of rising rate; below 1 a share of all steps
    optim: AdamW as torch has it (`adamw_torch`), or with its moments in 8 bits (`adamw_8bit`, on a GPU also `paged_adamw_8bit`), which
        needs bitsandbytes
    loraplus_lr_ratio: LoRA+: how many times faster B learns than A, 16 for one, with a lower learning_rate; None learns both alike
    weight_decay, adam_beta1, adam_beta2, adam_epsilon: AdamW's own
    max_grad_norm: gradients are scaled down to this norm; 0 leaves them
    precision: `bf16`, `fp16` or `fp32`; None takes what the device multiplies fastest
    gradient_checkpointing: recompute activations in the backward: less memory, a third more time
    eval_strategy, eval_steps: measure every so many steps, every epoch, or only at the two ends (`no`); below 1 a share of all steps
    save_strategy, save_steps, save_total_limit: checkpoints, likewise, and how many are kept, the best one besides
    metric_for_best_model: the run ends with the adapter that measured best by this metric of `eval/`, `style` for one (`loss` is the
        first that is measured), instead of the last one; each new best is saved
    greater_is_better: whether more of that metric is better; None says so of all but losses (`loss` and the held-out parts)
    early_stopping_patience: stop after so many measurements without a better one; None trains to the end
    early_stopping_threshold: what counts as better there, in the metric's unit
    loss_spike: where the loss of a step jumps or is no number: `stop`, or `roll_back` to the last checkpoint and go on at half the rate
    loss_spike_factor: a jump is a loss above so many times the median of the last 20 steps
    logging_steps: steps between lines of metrics.jsonl
    report_to: `tensorboard` and whatever tracker of transformers is installed; `none` for neither
    seed: of order, masks, initialisation and dropout
    """

    num_train_epochs: float = Field(default=3, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    samples_per_step: int = Field(default=16, ge=1)
    tokens_per_microbatch: int = Field(default=8192, ge=1)
    row_tokens: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    lr_scheduler_type: Schedule = "cosine"
    warmup_steps: float = Field(default=0.05, ge=0)
    optim: Optim = "adamw_torch"
    loraplus_lr_ratio: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    gradient_checkpointing: bool = False
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    eval_steps: float = Field(default=0.25, gt=0)
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_steps: float = Field(default=0.25, gt=0)
    save_total_limit: int | None = Field(default=2, ge=1)
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = Field(default=None, ge=1)
    early_stopping_threshold: float = Field(default=0.0, ge=0)
    loss_spike: Literal["ignore", "stop", "roll_back"] = "ignore"
    loss_spike_factor: float = Field(default=2.0, gt=1)
    logging_steps: int = Field(default=1, ge=1)
    report_to: list[str] = ["tensorboard"]
    seed: int = Field(default=42, ge=0, lt=2**32)

    @property
    def more_is_better(self) -> bool:
        """Of the metric that chooses the best adapter."""
        return self.metric_for_best_model not in (None, *LOSSES) if self.greater_is_better is None else self.greater_is_better

    @model_validator(mode="before")
    @classmethod
    def older_names(cls, values: object) -> object:
        """What transformers called them, and still calls some."""
        return current_names(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def some_steps(self) -> Train:
        """Zero steps would train nothing."""
        if self.max_steps == 0:
            raise ValueError("max_steps is 0, expected a number of steps, or -1 to go by epochs")
        if self.early_stopping_patience and self.metric_for_best_model is None:
            raise ValueError("early_stopping_patience is given, expected metric_for_best_model beside it; `loss` will do")
        if self.loss_spike == "roll_back" and self.save_strategy == "no":
            raise ValueError("loss_spike is roll_back, expected checkpoints to roll back to; set save_strategy")
        return self


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """`warmup_ratio: r` is `warmup_steps: r` now; `evaluation_strategy` is `eval_strategy`; `bf16: true` is `precision: bf16`;
    `load_best_model_at_end: true` is a `metric_for_best_model`. Raises ValueError for two names of one setting."""
    values = dict(values)
    if "warmup_ratio" in values:
        if "warmup_steps" in values:
            raise ValueError("warmup_ratio and warmup_steps both given; keep one")
        values["warmup_steps"] = values.pop("warmup_ratio")
    for old, new in RENAMED.items():
        if old in values:
            if new in values:
                raise ValueError(f"{old} and {new} both given; keep {new}")
            values[new] = values.pop(old)
    for name in ("eval_strategy", "save_strategy"):
        if values.get(name) is False:  # YAML 1.1 reads a bare `no` as false
            values[name] = "no"
    given = [name for name in ("bf16", "fp16") if name in values]
    asked = [name for name in given if values.pop(name)]
    if given and not asked:
        values.setdefault("precision", "fp32")  # as transformers understands `bf16: false`
    if asked:
        if len(asked) > 1 or "precision" in values:
            raise ValueError("bf16, fp16 and precision are one choice; keep one")
        values["precision"] = asked[0]
    if "load_best_model_at_end" in values:
        if values.pop("load_best_model_at_end"):
            values.setdefault("metric_for_best_model", "loss")  # as transformers does
        else:
            values["metric_for_best_model"] = None
    if isinstance(values.get("metric_for_best_model"), str):
        values["metric_for_best_model"] = re.sub("^eval[_/]", "", values["metric_for_best_model"])
    if isinstance(values.get("report_to"), str):
        values["report_to"] = [values["report_to"]]
    if values.get("report_to") == ["none"]:
        values["report_to"] = []
    return values
