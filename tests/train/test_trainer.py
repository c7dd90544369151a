"""The trainer against plain PEFT and torch by hand, runs that must trace one curve, and everything a run does beside learning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from stylora.model.adapter import attach
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel
from stylora.model.settings import Adapter
from stylora.samples.clm import clm
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.trainer import ForestTrainer, MetricsFile, TrainingStopped, moments, training_arguments

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
WINDOWS = [np.random.default_rng(n).integers(3, 250, size=6 + 5 * n % 13, dtype=np.int32) for n in range(12)]


class Watch(TrainerCallback):
    """What each step logged and used."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_step_begin(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(logs["loss"])


@dataclass(kw_only=True)
class Run:
    trainer: ForestTrainer
    peft: PeftModel
    watch: Watch
    before: dict[str, torch.Tensor]

    @property
    def lora(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.peft.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def train(random_model, tokenizer, tmp_path_factory) -> Callable[..., Run]:
    """`train(windows=..., adapter={...}, evaluators=[...], save_at=..., poison=f, **settings)`: a run on a random Qwen3.

    poison: called with the PeftModel before training; start=False leaves it unstarted
    """

    def run(
        *, windows=WINDOWS, adapter=None, evaluators=(), eval_at=(), save_at=(), callbacks=(), packs=True, poison=None, start=True,
        folder=None, **changes,
    ) -> Run:  # fmt: skip
        settings = dict(
            num_train_epochs=2, samples_per_step=4, tokens_per_microbatch=10_000, learning_rate=5e-3, lr_scheduler_type="constant",
            warmup_steps=0, report_to=[], seed=7,
        )  # fmt: skip
        section = Train(**{**settings, **changes})
        peft = attach(random_model("Qwen3"), Adapter(**{"r": 4, "alpha": 8, **(adapter or {})}), seed=section.seed)
        before = {name: p.detach().clone() for name, p in peft.state_dict().items()}
        if poison:
            poison(peft)
        model = ForestModel(peft.get_base_model(), words=len(tokenizer))
        if section.gradient_checkpointing:
            model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        steps = Steps(
            lambda epoch: np.random.default_rng(epoch).permutation(len(windows)), lambda index, epoch: clm(windows[index]),
            samples_per_step=section.samples_per_step, tokens_per_microbatch=section.tokens_per_microbatch, row_tokens=section.row_tokens,
            num_train_epochs=section.num_train_epochs, max_steps=section.max_steps, packs=packs,
        )  # fmt: skip
        watch = Watch()
        trainer = ForestTrainer(
            model, peft, tokenizer, steps, training_arguments(section, FP32, folder or tmp_path_factory.mktemp("run"), len(steps)),
            base_name="a/base", evaluators=list(evaluators), eval_at=set(eval_at), save_at=set(save_at), callbacks=[watch, *callbacks],
        )  # fmt: skip
        if start:
            trainer.train()
        return Run(trainer=trainer, peft=peft, watch=watch, before=before)

    return run


@pytest.fixture(scope="module")
def baseline(train) -> Run:
    return train()


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("adapter", [{}, {"rslora": True}, {"dora": True}, {"targets": ["q_proj", "down_proj"]}])
def test_three_steps_equal_plain_peft_and_adamw(train, random_model, adapter, max_grad_norm):
    """Loss and every LoRA weight, against a loop over windows with labels, padding and forests left out."""
    adamw = dict(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3)
    ours = train(adapter=adapter, max_grad_norm=max_grad_norm, tokens_per_microbatch=30, max_steps=3, **adamw)

    theirs = attach(random_model("Qwen3"), Adapter(**{"r": 4, "alpha": 8, **adapter}), seed=7)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for place in range(3):
        windows = [torch.tensor(WINDOWS[i]).long() for i in np.random.default_rng(0).permutation(12)[place * 4 : place * 4 + 4]]
        total = sum(len(window) - 1 for window in windows)
        loss = sum(cross_entropy(theirs(input_ids=w[None]).logits[0, :-1], w[1:], reduction="sum") for w in windows) / total
        optimizer.zero_grad()
        loss.backward()
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        assert ours.watch.losses[place] == pytest.approx(loss.item(), abs=1e-5)
    equal(ours.lora, {name: p.detach() for name, p in theirs.named_parameters() if p.requires_grad}, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(tokens_per_microbatch=18), dict(tokens_per_microbatch=1), dict(tokens_per_microbatch=40),
        dict(row_tokens=40), dict(row_tokens=40, tokens_per_microbatch=40), dict(row_tokens=40, packs=False),
        dict(gradient_checkpointing=True), dict(gradient_checkpointing=True, row_tokens=64),
    ],
)  # fmt: skip
def test_one_curve_however_it_is_computed(train, baseline, changes):
    run = train(**changes)
    assert len(run.watch.losses) == 6
    assert run.watch.losses == pytest.approx(baseline.watch.losses, abs=1e-5)
    equal(run.lora, baseline.lora, 1e-4)


def test_it_learns_and_nothing_but_the_adapter_changes(train):
    run = train(windows=WINDOWS[:4], max_steps=8, learning_rate=2e-2)
    assert run.watch.losses[-1] < run.watch.losses[0] - 0.2
    after = run.peft.state_dict()
    assert after.keys() == run.before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, run.before[name]) == ("lora_" not in name), name
    assert run.lora and all("lora_" in name for name in run.lora)


def test_counts(baseline):
    assert baseline.trainer.samples_seen == 24
    assert baseline.trainer.tokens_seen == baseline.trainer.forest_tokens_seen == 2 * sum(map(len, WINDOWS))


def test_windows_of_one_token_teach_nothing_and_break_nothing(train):
    """Such a window has no edge; a step of nothing else has loss 0 and leaves the adapter where it was."""
    run = train(windows=[np.array([5], np.int32)], samples_per_step=1, num_train_epochs=1, weight_decay=0)
    assert run.watch.losses == [0.0]
    equal(run.lora, {name: run.before[name] for name in run.lora})
    mixed = train(windows=[*WINDOWS[:3], np.array([5], np.int32)], num_train_epochs=1)
    assert mixed.watch.losses == pytest.approx(train(windows=WINDOWS[:3], num_train_epochs=1).watch.losses, abs=1e-5)


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_dropout_comes_from_the_seed_alone(train, tmp_path):
    """Equal runs give equal bytes, also when evaluations in between draw random numbers; other seeds and no dropout give others."""

    def noisy(model: ForestModel) -> dict[str, float]:
        return {"noise": torch.rand(()).item()}

    half = {"dropout": 0.5}
    files = {}
    for name, changes in {
        "one": dict(adapter=half), "two": dict(adapter=half), "measured": dict(adapter=half, evaluators=[noisy], eval_at={1, 2, 3}),
        "none": dict(),
    }.items():  # fmt: skip
        train(folder=tmp_path / name, max_steps=3, save_at={3}, **changes)
        files[name] = adapter_bytes(tmp_path / name / "checkpoint-3")
    assert files["one"] == files["two"] == files["measured"] != files["none"]


def test_dropout_differs_between_steps_and_micro_batches(train):
    """The same window in every step: without learning only the dropout masks change the loss."""
    same = [WINDOWS[0]] * 4
    run = train(windows=same, adapter={"dropout": 0.5}, learning_rate=1e-12, poison=_awake, max_steps=4, tokens_per_microbatch=1)
    assert len(set(run.watch.losses)) == 4
    still = train(windows=same, learning_rate=1e-12, poison=_awake, max_steps=4)
    assert still.watch.losses == pytest.approx([still.watch.losses[0]] * 4, abs=1e-6)


def _awake(peft: PeftModel) -> None:
    """B is 0 in a fresh adapter, and dropout changes nothing; give it something to drop."""
    torch.manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("warmup", [3, 0.3])
def test_cosine_with_warmup_teaches_in_its_first_step_and_ends_near_zero(train, warmup):
    rates = train(lr_scheduler_type="cosine", warmup_steps=warmup, max_steps=10, learning_rate=1e-3).watch.rates
    assert len(rates) == 10
    rising = math.ceil(0.3 * 11) if warmup < 1 else 3  # transformers rounds up, of one step more
    assert rates[:rising] == pytest.approx([1e-3 * (n + 1) / rising for n in range(rising)])
    falling = [0.5e-3 * (1 + math.cos(math.pi * (n + 1 - rising) / (11 - rising))) for n in range(rising, 10)]
    assert rates[rising:] == pytest.approx(falling)
    assert 0 < rates[-1] < 0.1e-3


def test_linear_without_warmup_uses_every_step(train):
    rates = train(lr_scheduler_type="linear", max_steps=4, learning_rate=1e-3).watch.rates
    assert rates == pytest.approx([1e-3 * (1 - n / 5) for n in range(1, 5)])


def test_settings_reach_the_optimizer(train):
    run = train(
        start=False, weight_decay=0.3, adam_beta1=0.7, adam_beta2=0.8, adam_epsilon=1e-5, max_grad_norm=0.25, learning_rate=3e-4,
        save_total_limit=5, logging_steps=4, seed=99,
    )  # fmt: skip
    optimizer = run.trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    in_groups = sum(len(group["params"]) for group in optimizer.param_groups)
    assert in_groups == len(run.lora)
    decayed = next(group for group in optimizer.param_groups if group["params"])
    assert (decayed["weight_decay"], decayed["betas"], decayed["eps"], decayed["lr"]) == (0.3, (0.7, 0.8), 1e-5, 3e-4)
    args = run.trainer.args
    assert (args.max_grad_norm, args.save_total_limit, args.logging_steps, args.seed) == (0.25, 5, 4, 99)
    assert (args.bf16, args.fp16, args.use_cpu) == (False, False, True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_reaches_transformers(precision, tmp_path):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    device = Device(device=torch.device("cpu"), dtype=dtype, why="test")
    args = training_arguments(Train(report_to=[]), device, tmp_path, 1)
    assert (args.bf16, args.fp16) == (precision == "bf16", precision == "fp16")


def test_evaluators_run_before_the_first_step_and_when_asked(train, tmp_path):
    calls = []

    def look(model: ForestModel) -> dict[str, float]:
        calls.append((run_state().global_step, model.training, torch.is_grad_enabled()))
        return {"style": 1.5 - len(calls), "general": 2.0}

    unstarted = train(
        evaluators=[look, lambda model: {"more": 3.0}], eval_at={2, 5, 6}, start=False, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")]
    )
    run_state = lambda: unstarted.trainer.state  # noqa: E731
    unstarted.trainer.train()
    assert calls == [(step, False, False) for step in (0, 2, 5, 6)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [row for row in rows if "eval/style" in row]
    assert [row["step"] for row in measured] == [0, 2, 5, 6]
    assert [row["eval/style"] for row in measured] == [0.5, -0.5, -1.5, -2.5]
    assert all(row["eval/general"] == 2.0 and row["eval/more"] == 3.0 for row in measured)
    learned = [row for row in rows if "loss" in row]
    assert [row["step"] for row in learned] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in learned] == pytest.approx([step / 3 for step in range(1, 7)])
    assert all({"learning_rate", "grad_norm"} <= row.keys() for row in learned)
    assert not any(key.startswith("eval_") for row in rows for key in row)


def test_evaluation_changes_nothing(train, baseline):
    run = train(evaluators=[lambda model: {"x": 1.0}], eval_at={1, 3})
    assert run.watch.losses == baseline.watch.losses
    equal(run.lora, baseline.lora)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(train):
    def poison(peft: PeftModel) -> None:
        with torch.no_grad():
            next(p for name, p in peft.named_parameters() if "lora_B" in name).fill_(float("nan"))

    with pytest.raises(TrainingStopped, match="step 1: the loss is nan; lower train.learning_rate"):
        train(poison=poison)


@pytest.mark.parametrize(("clip", "every"), [(1.0, 1), (1.0, 100), (0.0, 1)])
def test_a_gradient_that_is_no_number_stops_the_run(train, clip, every, tmp_path):
    """With a finite loss before it. The step must not pass unseen because it is not logged or not clipped; nothing broken is saved."""

    def poison(peft: PeftModel) -> None:
        weight = next(p for name, p in peft.named_parameters() if "lora_B" in name)
        calls = []
        weight.register_hook(lambda grad: calls.append(0) or (grad * float("nan") if len(calls) == 3 else grad))

    with pytest.raises(TrainingStopped, match="step 3: the gradient is nan"):
        train(poison=poison, max_grad_norm=clip, logging_steps=every, max_steps=3, save_at={3}, folder=tmp_path)
    assert not (tmp_path / "checkpoint-3").exists()


def test_checkpoints_rotate_and_open_in_plain_peft(train, random_model, tmp_path):
    run = train(save_at={1, 2, 4, 6}, save_total_limit=2, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    checkpoint = tmp_path / "checkpoint-6"
    assert {"optimizer.pt", "scheduler.pt", "tokenizer.json", "trainer_state.json"} <= {path.name for path in checkpoint.iterdir()}
    config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "a/base" and config["target_modules"] == sorted(config["target_modules"])
    theirs = PeftModel.from_pretrained(random_model("Qwen3"), str(checkpoint)).eval()
    ids = torch.tensor(WINDOWS[3]).long()[None]
    run.peft.eval()
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, run.peft(input_ids=ids).logits)


def test_no_checkpoints_unless_asked(train, tmp_path):
    train(folder=tmp_path, max_steps=1)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("no", 0.25, 5, 20), {20}),
        (("epoch", 0.25, 5, 20), {5, 10, 15, 20}),
        (("epoch", 0.25, 5, 18), {5, 10, 15, 18}),
        (("epoch", 0.25, 30, 20), {20}),
        (("steps", 0.25, 5, 20), {5, 10, 15, 20}),
        (("steps", 0.3, 5, 20), {6, 12, 18, 20}),
        (("steps", 8, 5, 20), {8, 16, 20}),
        (("steps", 1, 5, 3), {1, 2, 3}),
        (("steps", 0.001, 5, 3), {1, 2, 3}),
        (("steps", 500, 5, 20), {20}),
    ],
)
def test_moments(asked, expected):
    assert moments(*asked) == expected
