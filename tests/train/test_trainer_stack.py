"""Training on a frozen adapter: what learns, what is saved, what a resume brings back; and that transformers' own `Trainer` does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.train.test_trainer import WINDOWS, train  # noqa: F401  # its fixture
from transformers import Trainer, TrainingArguments

from stylora.model.adapter import attach, save_adapter
from stylora.model.settings import Adapter
from stylora.model.stack import TOP, activate, build_stack, check_stack

STEPS = 6


@pytest.fixture(scope="module")
def style(random_model, tmp_path_factory) -> Path:
    """An adapter that has learned something, with dropout that would show."""
    folder = tmp_path_factory.mktemp("style")
    peft = attach(random_model("Qwen3"), Adapter(r=2, alpha=8, dropout=0.5), seed=1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    save_adapter(peft, folder, base_name="tiny")
    return folder


def below(peft: PeftModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in peft.state_dict().items() if ".default." not in name}


def test_the_optimizer_and_the_checkpoints_hold_the_top_alone(train, style, tmp_path):  # noqa: F811
    run = train(adapter={"frozen": (str(style),)}, save_at=[3], folder=tmp_path, max_steps=STEPS)
    held = {id(p) for group in run.trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in run.peft.named_parameters() if ".default." in name}
    saved = load_file(tmp_path / "checkpoint-3/adapter_model.safetensors")
    learns = {name.replace(".default.", "."): p for name, p in run.lora.items()}
    assert saved.keys() == learns.keys() and any(not torch.equal(saved[name], learns[name]) for name in saved)
    assert all(torch.equal(value, run.before[name]) for name, value in below(run.peft).items())
    check_stack(run.peft, trainable=TOP)


def test_a_frozen_adapter_that_changes_is_seen_before_anything_is_saved(train, style, tmp_path):  # noqa: F811
    def loosen(peft: PeftModel) -> None:
        parameter = next(p for name, p in peft.named_parameters() if "frozen0" in name and "lora_B" in name)

        def drift(*_) -> None:
            parameter.data.add_(1e-4)

        peft.get_base_model().model.register_forward_pre_hook(drift)

    with pytest.raises(AssertionError, match="a frozen adapter changed in training"):
        train(adapter={"frozen": (str(style),)}, save_at=[3], folder=tmp_path, max_steps=STEPS, poison=loosen)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_stack_is_bit_equal_with_both_at_work(train, style, tmp_path, dropout):  # noqa: F811
    adapter = {"frozen": (str(style),), "dropout": dropout}
    straight = train(adapter=adapter, max_steps=STEPS)
    train(adapter=adapter, save_at=[2], folder=tmp_path, max_steps=STEPS)
    resumed = train(adapter=adapter, save_at=[2], folder=tmp_path, resume=2, max_steps=STEPS)
    check_stack(resumed.peft, trainable=TOP)
    assert all(torch.equal(value, resumed.peft.state_dict()[name]) for name, value in straight.peft.state_dict().items())
    alone = train(adapter={"dropout": dropout}, max_steps=STEPS)
    assert straight.watch.losses[0] != alone.watch.losses[0], "what is frozen is in the forward"


def test_transformers_own_trainer_resumes_another_model(random_model, style, tmp_path):
    """The reason for ours: after its resume `frozen0` alone is active and learns, and what was to be trained stands still."""

    def trainer(steps: int) -> tuple[Trainer, PeftModel]:
        peft = build_stack(random_model("Qwen3"), Adapter(r=4, alpha=8, frozen=(str(style),)), seed=7)
        rows = [{"input_ids": torch.from_numpy(np.resize(ids, 12).astype(np.int64))} for ids in WINDOWS]
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=2, per_device_train_batch_size=4, learning_rate=5e-3, report_to=[], use_cpu=True,
            lr_scheduler_type="constant", disable_tqdm=True,
        )  # fmt: skip
        return Trainer(peft, arguments, train_dataset=rows), peft

    first, peft = trainer(2)
    first.train()
    trained = below(peft)
    again, peft = trainer(4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(AssertionError):
        check_stack(peft, trainable=TOP)
    assert any(not torch.equal(value, trained[name]) for name, value in below(peft).items()), "what was frozen has learned"
    activate(peft, trainable=TOP)
