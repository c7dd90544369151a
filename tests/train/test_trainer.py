"""The trainer against plain PEFT and torch by hand, runs that must trace one curve, and everything a run does beside learning."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from stylora.errors import UserError
from stylora.model.adapter import attach
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel
from stylora.model.settings import Adapter
from stylora.model.stack import build_stack
from stylora.samples.anchors import Kl
from stylora.samples.clm import clm
from stylora.samples.objective import with_anchors
from stylora.train.checkpoint import find_checkpoint, sweep
from stylora.train.interruption import Interrupted, Interruption
from stylora.train.logs import MetricsFile
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.trainer import ForestTrainer, LossSpike, TrainingStopped, moments, training_arguments

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

    poison: called with the PeftModel before training; start=False leaves it unstarted; resume: a step whose checkpoint lies in `folder`;
    rate: what the learning rate is multiplied by
    """

    def run(
        *, windows=WINDOWS, adapter=None, evaluators=(), eval_at=(), save_at=(), callbacks=(), packs=True, poison=None, start=True,
        folder=None, resume=None, interruption=None, kl=None, rate=None, **changes,
    ) -> Run:  # fmt: skip
        settings = dict(
            num_train_epochs=2, samples_per_step=4, tokens_per_microbatch=10_000, learning_rate=5e-3, lr_scheduler_type="constant",
            warmup_steps=0, report_to=[], seed=7,
        )  # fmt: skip
        section = Train(**{**settings, **changes})
        peft = build_stack(random_model("Qwen3"), Adapter(**{"r": 4, "alpha": 8, **(adapter or {})}), seed=section.seed)
        before = {name: p.detach().clone() for name, p in peft.state_dict().items()}
        if poison:
            poison(peft)
        model = ForestModel(peft.get_base_model(), words=len(tokenizer), kl=kl)
        if section.gradient_checkpointing:
            model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        steps = Steps(
            lambda epoch: np.random.default_rng(epoch).permutation(len(windows)),
            lambda index, epoch: with_anchors(clm(windows[index]), kl, key=(epoch, index)),
            samples_per_step=section.samples_per_step, tokens_per_microbatch=section.tokens_per_microbatch, row_tokens=section.row_tokens,
            num_train_epochs=section.num_train_epochs, max_steps=section.max_steps, packs=packs,
        )  # fmt: skip
        watch = Watch()
        folder = folder or tmp_path_factory.mktemp("run")
        trainer = ForestTrainer(
            model, peft, tokenizer, steps, training_arguments(section, FP32, folder, len(steps)), section, base_name="a/base",
            folder=folder, evaluators=list(evaluators), eval_at=set(eval_at), save_at=set(save_at), callbacks=[watch, *callbacks],
            interruption=interruption,
        )  # fmt: skip
        if start:
            if resume:
                sweep(folder, resume)  # what came after it was never there
            trainer.run(find_checkpoint(folder)[0] if resume else None, rate=rate)
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
    progress = baseline.trainer.progress
    assert progress.samples == 24
    assert progress.tokens == progress.forest_tokens == 2 * sum(map(len, WINDOWS))


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

    def noisy(model: ForestModel, step: int) -> dict[str, float]:
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

    def look(model: ForestModel, step: int) -> dict[str, float]:
        calls.append((step, model.training, torch.is_grad_enabled()))
        return {"style": 1.5 - len(calls), "general": 2.0}

    train(
        evaluators=[look, lambda model, step: {"more": 3.0}], eval_at={2, 5, 6}, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")]
    )
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
    run = train(evaluators=[lambda model, step: {"x": 1.0}], eval_at={1, 3})
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
    names = {path.name for path in checkpoint.iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "tokenizer.json", "trainer_state.json", "checkpoint.json"} <= names
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
        (("no", 0.25, [5, 10, 15, 20], 20), {20}),
        (("epoch", 0.25, [5, 10, 15, 20], 20), {5, 10, 15, 20}),
        (("epoch", 0.25, [5, 10, 15, 18], 18), {5, 10, 15, 18}),
        (("epoch", 0.25, [20], 20), {20}),
        (("epoch", 0.25, [7, 12, 20], 20), {7, 12, 20}),
        (("steps", 0.25, [5, 10, 15, 20], 20), {5, 10, 15, 20}),
        (("steps", 0.3, [5, 10, 15, 20], 20), {6, 12, 18, 20}),
        (("steps", 8, [5, 10, 15, 20], 20), {8, 16, 20}),
        (("steps", 1, [3], 3), {1, 2, 3}),
        (("steps", 0.001, [3], 3), {1, 2, 3}),
        (("steps", 500, [5, 10, 15, 20], 20), {20}),
    ],
)
def test_moments(asked, expected):
    assert moments(*asked) == expected


# --- stopped and gone on with -------------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl but for the closing line, which tells times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train_runtime" not in row]


def noisy(model: ForestModel, step: int) -> dict[str, float]:
    """An evaluator that draws random numbers, as generating does."""
    return {"style": float(next(p for n, p in model.named_parameters() if "lora_B" in n).abs().sum()), "noise": torch.rand(()).item() * 0}


FULL = dict(
    adapter={"dropout": 0.3}, evaluators=[noisy], eval_at={2, 4, 6}, save_at={3, 6}, save_total_limit=None, lr_scheduler_type="cosine",
    warmup_steps=2, tokens_per_microbatch=30,
)  # fmt: skip


@pytest.mark.parametrize("logging_steps", [1, 2])
@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_is_bit_equal_to_straight(train, tmp_path, stop, logging_steps):
    """Weights, optimizer, logs: with dropout, a schedule, evaluations, and a log that spans the break."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
        train(**FULL, logging_steps=logging_steps, folder=folder, callbacks=[MetricsFile(folder / "metrics.jsonl")])
    with (broken / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss": 1}\n{"half a li')  # what a killed process may leave
    again = train(
        **FULL, logging_steps=logging_steps, folder=broken, resume=stop, callbacks=[MetricsFile(broken / "metrics.jsonl")]
    )
    assert len(again.watch.rates) == 6 - stop
    for file in ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt"):
        assert (broken / "checkpoint-6" / file).read_bytes() == (straight / "checkpoint-6" / file).read_bytes(), file
    assert rows(broken) == rows(straight)
    assert again.trainer.progress.tokens == 2 * sum(map(len, WINDOWS))


def test_a_step_on_other_processes_budgets_and_checkpointing_resumes_too(train, tmp_path):
    """What does not change the result may change between two parts of a run."""
    straight = train()
    train(folder=tmp_path, save_at={3})
    again = train(folder=tmp_path, resume=3, tokens_per_microbatch=18, gradient_checkpointing=True)
    equal(again.lora, straight.lora, 1e-4)


class At(TrainerCallback):
    """Asks to stop in the middle of a step, as a signal would."""

    def __init__(self, interruption: Interruption, step: int) -> None:
        self.interruption, self.step = interruption, step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.interruption.number = 15


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_asked_to_stop_it_saves_the_step_and_goes_on_to_the_same_end(train, tmp_path, stop):
    """Also where an evaluation was due (2), a checkpoint (3), or both and the end (6)."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    train(**FULL, folder=straight, callbacks=[MetricsFile(straight / "metrics.jsonl")])
    asked = Interruption()
    with pytest.raises(Interrupted) as caught:
        train(**FULL, folder=broken, interruption=asked, callbacks=[MetricsFile(broken / "metrics.jsonl"), At(asked, stop)])
    assert caught.value.exit_code == 143
    assert find_checkpoint(broken)[0].step == stop
    train(**FULL, folder=broken, resume=stop, callbacks=[MetricsFile(broken / "metrics.jsonl")])
    assert adapter_bytes(broken / "checkpoint-6") == adapter_bytes(straight / "checkpoint-6")
    assert rows(broken) == rows(straight)


def test_a_signal_during_an_evaluation_ends_it_and_keeps_the_step(train, tmp_path):
    asked = Interruption()

    def slow(model: ForestModel, step: int) -> dict[str, float]:
        (tmp_path / "samples.jsonl").open("a", encoding="utf-8").write("{}\n")
        if step == 4 and asked.number is None:
            asked.number = 2
            raise Interrupted(2)  # as the signal's handler does there
        return {"style": 1.0}

    with pytest.raises(Interrupted) as caught:
        train(evaluators=[slow], eval_at={4, 6}, folder=tmp_path, interruption=asked)
    assert caught.value.exit_code == 130
    checkpoint = find_checkpoint(tmp_path)[0]
    assert checkpoint.step == 4 and not checkpoint.manifest["progress"]["evaluated"]
    assert (tmp_path / "samples.jsonl").read_text(encoding="utf-8") == "{}\n", "what was half measured is taken back"
    steps = []
    train(evaluators=[lambda model, step: steps.append(step) or {"style": 1.0}], eval_at={4, 6}, folder=tmp_path, resume=4)
    assert steps == [4, 6], "the measurement that was due is made up for"


# --- the best, early stopping, spikes -----------------------------------------------------------------------------------------------------


def scores(*values: float):
    """An evaluator that finds these, one after the other by step; the first is before training."""
    return lambda model, step: {"general": 9.0, "style": values[step]}


CHOOSE = dict(eval_at={1, 2, 3, 4, 5, 6}, metric_for_best_model="style", save_total_limit=1)


def test_the_best_checkpoint_is_kept_beside_the_last(train, tmp_path):
    run = train(**CHOOSE, evaluators=[scores(0, 5, 4, 2, 3, 3, 3)], save_at={6}, folder=tmp_path)
    assert (run.trainer.state.best_global_step, run.trainer.state.best_metric) == (3, 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_greater_can_be_better_and_loss_is_the_first_metric(train, tmp_path):
    run = train(**CHOOSE, greater_is_better=True, evaluators=[scores(9, 5, 4, 7, 3, 3, 3)], folder=tmp_path)
    assert run.trainer.state.best_global_step == 3
    run = train(**CHOOSE | {"metric_for_best_model": "loss"}, evaluators=[scores(9, 5, 4, 7, 3, 3, 3)], folder=tmp_path / "loss")
    assert run.trainer.state.best_metric == 9.0


def test_a_metric_nobody_measures_is_refused_before_the_first_step(train):
    with pytest.raises(UserError, match="got 'stile', expected one of: general, style"):
        train(**CHOOSE | {"metric_for_best_model": "stile"}, evaluators=[scores(0)])


@pytest.mark.parametrize(("threshold", "last"), [(0.0, 5), (0.5, 3)])
def test_early_stopping(train, tmp_path, threshold, last):
    """Two measurements without a gain; small gains count as none where a threshold says so."""
    run = train(
        **CHOOSE, evaluators=[scores(9, 5, 4.9, 4.8, 5, 5, 1)], early_stopping_patience=2, early_stopping_threshold=threshold,
        folder=tmp_path,
    )  # fmt: skip
    assert run.trainer.state.global_step == last and run.trainer.progress.stopped
    assert find_checkpoint(tmp_path)[0].step == last
    again = train(**CHOOSE, evaluators=[scores()], early_stopping_patience=2, folder=tmp_path, resume=last)
    assert again.trainer.state.global_step == last and not again.watch.rates, "what ended early is not gone on with"
    assert again.trainer.state.best_global_step == 3
    equal(again.lora, run.lora)


def test_waiting_goes_on_after_a_resume(train, tmp_path):
    found = [scores(9, 5, 6, 6, 6, 6, 6)]
    train(**CHOOSE | {"save_total_limit": None}, evaluators=found, early_stopping_patience=3, save_at={1, 2, 3}, folder=tmp_path)
    again = train(**CHOOSE, evaluators=found, early_stopping_patience=3, folder=tmp_path, resume=2)
    assert again.trainer.state.global_step == 4


class Jump(TrainerCallback):
    """In step `at` the loss is three times what it is, the first `times` it comes there."""

    def __init__(self, at: int, times: int = 1) -> None:
        self.at, self.times = at, times

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == self.at - 1 and self.times:
            self.times -= 1
            self.hook = model.register_forward_hook(lambda module, inputs, loss: 3 * loss)

    def on_train_end(self, args, state, control, **_):
        self.hook.remove()


@pytest.mark.parametrize(("wanted", "error"), [("stop", TrainingStopped), ("roll_back", LossSpike)])
def test_a_loss_that_jumps_is_seen_before_it_teaches(train, tmp_path, monkeypatch, wanted, error):
    monkeypatch.setattr("stylora.train.trainer.SPIKE_WINDOW", 3)
    run = train(start=False, loss_spike=wanted, callbacks=[Jump(5)], save_at={4}, folder=tmp_path)
    with pytest.raises(error, match="step 5: the loss jumped to .*, usual were .*; lower train.learning_rate"):
        run.trainer.run()
    assert run.trainer.state.global_step == 4 and find_checkpoint(tmp_path)[0].step == 4


def test_rolled_back_it_goes_on_from_the_checkpoint_at_half_the_rate(train, tmp_path, monkeypatch):
    monkeypatch.setattr("stylora.train.trainer.SPIKE_WINDOW", 3)
    jump = Jump(5)
    run = train(
        start=False, loss_spike="roll_back", callbacks=[jump, MetricsFile(tmp_path / "metrics.jsonl")], save_at={4, 6}, folder=tmp_path
    )
    with pytest.raises(LossSpike):
        run.trainer.run()
    jump.hook.remove()
    run.trainer.run(find_checkpoint(tmp_path)[0], rate=0.5)
    assert run.watch.rates == pytest.approx([5e-3] * 5 + [2.5e-3] * 2)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6], "the jump is not in the log"
    assert [row["learning_rate"] for row in found[4:]] == [2.5e-3] * 2
    assert find_checkpoint(tmp_path)[0].manifest["progress"]["rate"] == 0.5


def test_a_healthy_run_is_not_stopped(train, baseline, monkeypatch):
    monkeypatch.setattr("stylora.train.trainer.SPIKE_WINDOW", 3)
    assert train(loss_spike="stop").watch.losses == baseline.watch.losses


# --- KL without effect --------------------------------------------------------------------------------------------------------------------


def broken(monkeypatch) -> None:
    """The reference is never asked, as when an exception on the way to it is swallowed; the loss shows nothing of it."""
    monkeypatch.setattr(ForestModel, "_anchored", lambda self, batch: None)


def kls(folder: Path) -> list[float]:
    return [row["kl"] for row in rows(folder) if "kl" in row]


WITHOUT_EFFECT = "KL was 0 in 10 logged lines while the adapter moved: nothing holds it to its reference"


@pytest.mark.parametrize("logging_steps", [1, 2])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_kl_without_effect_stops_training(train, tmp_path, monkeypatch, logging_steps, max_grad_norm):
    """After ten lines, which stand in the logs."""
    broken(monkeypatch)
    options = dict(kl=Kl(), max_steps=30, logging_steps=logging_steps, max_grad_norm=max_grad_norm)
    with pytest.raises(TrainingStopped, match=WITHOUT_EFFECT):
        train(folder=tmp_path, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")], **options)
    assert kls(tmp_path) == [0.0] * 10 and rows(tmp_path)[-1]["step"] == 10 * logging_steps


def test_the_lines_are_counted_on_after_a_break(train, tmp_path, monkeypatch):
    broken(monkeypatch)
    train(kl=Kl(), folder=tmp_path, max_steps=6, save_at={6}, num_train_epochs=10)
    assert find_checkpoint(tmp_path)[0].manifest["progress"]["still"] == 6
    with pytest.raises(TrainingStopped, match=WITHOUT_EFFECT):
        train(kl=Kl(), folder=tmp_path, resume=6, max_steps=20, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")])
    assert [row["step"] for row in rows(tmp_path)] == [7, 8, 9, 10]


def test_lines_with_a_divergence_begin_the_count_anew(train, tmp_path, monkeypatch):
    """The first line of a fresh adapter is 0 by itself."""
    right, calls = ForestModel._anchored, []

    def now_and_then(self, batch):
        calls.append(0)
        return right(self, batch) if len(calls) % 8 == 0 else None

    monkeypatch.setattr(ForestModel, "_anchored", now_and_then)
    run = train(kl=Kl(), folder=tmp_path, max_steps=30, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")])
    assert sum(kl > 0 for kl in kls(tmp_path)) == 3 and run.trainer.progress.still == 6


def test_kl_at_work_is_let_be(train, tmp_path):
    run = train(kl=Kl(), folder=tmp_path, max_steps=12, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")])
    found = kls(tmp_path)
    assert found[0] == 0 and min(found[1:]) > 0 and run.trainer.progress.still == 0


@pytest.mark.parametrize(
    "options",
    [
        dict(kl=Kl(on="general")),  # no general text, so no anchors
        dict(kl=Kl(), rate=0.0), dict(kl=Kl(), windows=[np.array([5], np.int32)], samples_per_step=1), dict(kl=Kl(beta=0)), dict(),
    ],
    ids=["no anchors", "no rate", "no gradient", "beta 0", "no kl"],
)  # fmt: skip
def test_kl_that_has_nothing_to_see_is_no_fault(train, tmp_path, monkeypatch, options):
    broken(monkeypatch)
    run = train(**options, folder=tmp_path, max_steps=15, weight_decay=0, callbacks=[MetricsFile(tmp_path / "metrics.jsonl")])
    assert run.trainer.state.global_step == 15 and run.trainer.progress.still == 0
    assert set(kls(tmp_path)) <= {0.0}


# --- forms of AdamW, and adapters of other kinds --------------------------------------------------------------------------------------


class Groups(TrainerCallback):
    """The learning rate of every group that has parameters, at every logged step, and the rate that was logged."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []
        self.logged: list[float] = []
        self.now: dict[str, float] = {}

    def on_step_begin(self, args, state, control, optimizer=None, model=None, **_):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.now = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.rates.append(self.now)
            self.logged.append(logs["learning_rate"])


def _is_b(name: str) -> bool:
    return "lora_B" in name or "magnitude" in name


@pytest.mark.parametrize("adapter", [{}, {"dora": True}, {"targets": ["embed_tokens", "q_proj"]}], ids=["lora", "dora", "embedding"])
def test_loraplus_keeps_its_ratio_at_every_step(train, adapter):
    groups = Groups()
    run = train(
        adapter=adapter, loraplus_lr_ratio=16.0, lr_scheduler_type="cosine", warmup_steps=2, learning_rate=1e-3, weight_decay=0.1,
        callbacks=[groups],
    )  # fmt: skip
    plain = train(adapter=adapter, lr_scheduler_type="cosine", warmup_steps=2, learning_rate=1e-3)
    assert len(groups.rates) == 6 and len(set(run.watch.rates)) > 3, "a schedule, not one rate"
    assert run.watch.rates == plain.watch.rates
    for rates, base in zip(groups.rates, plain.watch.rates, strict=True):
        assert len(rates) == len(run.lora) and all(rate == pytest.approx(base * (16 if _is_b(n) else 1)) for n, rate in rates.items())
    decays = {group["weight_decay"] for group in run.trainer.optimizer.param_groups if group["params"]}
    assert decays == {0.1}, "as plain AdamW has it"


def test_loraplus_of_ratio_one_is_plain_adamw_bit_for_bit(train, baseline):
    run = train(loraplus_lr_ratio=1.0)
    assert run.watch.losses == baseline.watch.losses
    equal(run.lora, baseline.lora)
    other = train(loraplus_lr_ratio=16.0)
    assert other.watch.losses[0] == baseline.watch.losses[0]
    for name in run.lora:
        if "lora_B" in name:
            assert other.lora[name].norm() > 4 * run.lora[name].norm(), "B begins at zero and goes faster"


def test_loraplus_is_what_its_paper_says_by_hand(train, random_model):
    """Two optimizers, one for A and one for B."""
    ours = train(loraplus_lr_ratio=4.0, max_steps=3, max_grad_norm=0)
    theirs = attach(random_model("Qwen3"), Adapter(r=4, alpha=8), seed=7)
    sides = [[p for name, p in theirs.named_parameters() if p.requires_grad and _is_b(name) is side] for side in (False, True)]
    optimizers = [torch.optim.AdamW(side, lr=rate, weight_decay=0.01) for side, rate in zip(sides, (5e-3, 2e-2), strict=True)]
    for place in range(3):
        windows = [torch.tensor(WINDOWS[i]).long() for i in np.random.default_rng(0).permutation(12)[place * 4 : place * 4 + 4]]
        total = sum(len(window) - 1 for window in windows)
        loss = sum(cross_entropy(theirs(input_ids=w[None]).logits[0, :-1], w[1:], reduction="sum") for w in windows) / total
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    equal(ours.lora, {name: p.detach() for name, p in theirs.named_parameters() if p.requires_grad}, 1e-4)


WIDE = dict(adapter={"r": 128, "alpha": 64})
"""matrices of at least 4 096 numbers, below which bitsandbytes keeps fp32"""
EIGHT_BIT = pytest.param(
    dict(optim="adamw_8bit", **WIDE), id="8 bit",
    marks=pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(loraplus_lr_ratio=16.0), id="loraplus"), pytest.param(dict(adapter={"dora": True}), id="dora"),
        pytest.param(dict(adapter={"rslora": True}), id="rslora"), EIGHT_BIT,
        pytest.param(dict(loraplus_lr_ratio=4.0, adapter={"dora": True, "targets": ["embed_tokens", "q_proj"]}), id="several"),
    ],
)  # fmt: skip
def test_other_ways_resume_bit_equal_too(train, tmp_path, changes):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    adapter = {**changes.get("adapter", {}), "dropout": 0.0 if "embed_tokens" in str(changes) else 0.3}
    settings = {**FULL, "learning_rate": 1e-3, **changes, "adapter": adapter}
    straight.mkdir()
    train(**settings, folder=straight, callbacks=[MetricsFile(straight / "metrics.jsonl")])
    shutil.copytree(straight, broken)
    (broken / "checkpoint-6/adapter_model.safetensors").write_bytes(b"of a future that is trained anew")
    again = train(**settings, folder=broken, resume=3, callbacks=[MetricsFile(broken / "metrics.jsonl")])
    assert len(again.watch.rates) == 3
    assert adapter_bytes(broken / "checkpoint-6") == adapter_bytes(straight / "checkpoint-6") != adapter_bytes(straight / "checkpoint-3")
    assert rows(broken) == rows(straight)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("ratio", [None, 4.0])
def test_eight_bits_hold_the_moments_and_learn_as_adamw_does(train, ratio):
    run = train(optim="adamw_8bit", learning_rate=1e-3, loraplus_lr_ratio=ratio, weight_decay=0.2, **WIDE)
    plain = train(learning_rate=1e-3, loraplus_lr_ratio=ratio, weight_decay=0.2, **WIDE)
    optimizer = run.trainer.optimizer.optimizer
    assert type(optimizer).__module__.startswith("bitsandbytes")
    moments_of = {p.numel(): state["state1"].dtype for p, state in optimizer.state.items()}
    assert moments_of and all(dtype == (torch.uint8 if size >= 4096 else torch.float32) for size, dtype in moments_of.items())
    assert torch.uint8 in moments_of.values()
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {0.2}
    assert run.watch.losses == pytest.approx(plain.watch.losses, abs=0.02) and run.watch.losses != plain.watch.losses
    assert run.watch.losses[-1] < run.watch.losses[0]


@pytest.mark.parametrize("kind", [{"dora": True}, {"rslora": True}], ids=["dora", "rslora"])
def test_kl_holds_other_adapters_to_the_base(train, kind):
    """All off is the base: a fresh one has no divergence, one that moved has some, and a strong KL keeps it near."""
    settings = dict(adapter=kind, windows=WINDOWS[:4], max_steps=6, learning_rate=2e-2)
    moved = train(**settings, kl=Kl(beta=1e-6, on="all"), callbacks=[(weak := Parts())])
    held = train(**settings, kl=Kl(beta=100.0, on="all"), callbacks=[(strong := Parts())])
    assert weak.kl[0] == pytest.approx(0, abs=1e-6) and strong.kl[0] == pytest.approx(0, abs=1e-6)
    assert 0 < strong.kl[-1] < weak.kl[-1] / 2
    for run in (moved, held):
        assert any(not torch.equal(value, run.before[name]) for name, value in run.lora.items())


class Parts(TrainerCallback):
    """The divergence of every logged step."""

    def __init__(self) -> None:
        self.kl: list[float] = []

    def on_log(self, args, state, control, logs=None, **_):
        if "kl" in logs:
            self.kl.append(logs["kl"])
