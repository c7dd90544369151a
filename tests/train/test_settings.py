"""The `train` section: older names, conflicts, limits."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stylora.train.settings import Train


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (dict(warmup_ratio=0.1), dict(warmup_steps=0.1)),
        (dict(evaluation_strategy="epoch"), dict(eval_strategy="epoch")),
        (dict(bf16=True), dict(precision="bf16")),
        (dict(fp16=True), dict(precision="fp16")),
        (dict(bf16=False), dict(precision="fp32")),
        (dict(bf16=False, precision="fp16"), dict(precision="fp16")),
        (dict(bf16=False, fp16=True), dict(precision="fp16")),
        (dict(report_to="none"), dict(report_to=[])),
        (dict(report_to="wandb"), dict(report_to=["wandb"])),
    ],
)
def test_older_names(older, newer):
    assert Train(**older) == Train(**newer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(warmup_ratio=0.1, warmup_steps=10), "warmup_ratio and warmup_steps both given"),
        (dict(evaluation_strategy="no", eval_strategy="steps"), "evaluation_strategy and eval_strategy both given"),
        (dict(bf16=True, fp16=True), "one choice"),
        (dict(bf16=True, precision="fp32"), "one choice"),
        (dict(learning_rate=0), "greater than 0"),
        (dict(samples_per_step=0), "greater than or equal to 1"),
        (dict(adam_beta2=1), "less than 1"),
        (dict(precision="int8"), "'bf16', 'fp16' or 'fp32'"),
        (dict(lr_scheduler_type="cosinus"), "'cosine'"),
        (dict(per_device_train_batch_size=4), "Extra inputs"),
        (dict(max_steps=1.5), "integer"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(seed=-1), "greater than or equal to 0"),
        (dict(seed=2**32), "less than"),
        (dict(num_train_epochs=float("inf")), "finite"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValidationError, match=message):
        Train(**settings)


def test_what_was_given_is_left_alone():
    given = {"warmup_ratio": 0.1, "bf16": True}
    Train.model_validate(given)
    assert given == {"warmup_ratio": 0.1, "bf16": True}


def test_every_schedule_can_be_made():
    """transformers knows all of them without further arguments."""
    import typing

    import torch
    from transformers import get_scheduler

    for name in typing.get_args(Train.model_fields["lr_scheduler_type"].annotation):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=10)
        assert optimizer.param_groups[0]["lr"] >= 0
