"""Trackers, each where it is installed: what a run of two steps leaves there, and that it lies in the run's folder and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from stylora.errors import UserError
from stylora.model.adapter import attach
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel
from stylora.model.settings import Adapter
from stylora.samples.clm import clm
from stylora.train.settings import Train
from stylora.train.steps import Steps
from stylora.train.trackers import tracked
from stylora.train.trainer import ForestTrainer, check_trackers, training_arguments

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
WINDOWS = [np.random.default_rng(n).integers(3, 250, size=8, dtype=np.int32) for n in range(4)]


class Losses(TrainerCallback):
    """What was logged."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args, state, control, logs=None, **_):
        self.found += [logs["loss"]] if "loss" in logs else []


@pytest.fixture
def train(random_model, tokenizer) -> Callable[..., list[float]]:
    """`train("wandb", folder)`: two steps with an evaluation before and after; the losses logged."""

    def run(tracker: str, folder: Path, name: str = "wuxia/style") -> list[float]:
        folder.mkdir(parents=True)
        section = Train(max_steps=2, samples_per_step=2, report_to=[tracker], warmup_steps=0)
        peft = attach(random_model("Qwen3"), Adapter(r=4, alpha=8), seed=0)
        steps = Steps(
            lambda epoch: np.arange(4), lambda index, epoch: clm(WINDOWS[index]), samples_per_step=2, tokens_per_microbatch=100,
            row_tokens=None, num_train_epochs=1, max_steps=2, packs=True,
        )  # fmt: skip
        losses = Losses()
        trainer = ForestTrainer(
            ForestModel(peft.get_base_model(), words=len(tokenizer)), peft, tokenizer, steps,
            training_arguments(section, FP32, folder / "checkpoints", 2), section, base_name="a/base", folder=folder,
            evaluators=[lambda model, step: {"style": 2.5}], eval_at={2}, save_at=set(), callbacks=[losses],
        )  # fmt: skip
        with tracked([tracker], folder, run_name=name):
            trainer.run()
        assert len(losses.found) == 2
        return losses.found

    return run


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch) -> Path:
    """A working folder that must stay empty, a home without keys, and no settings of the user's."""
    for variable in ("WANDB_API_KEY", "WANDB_DIR", "SWANLAB_API_KEY", "SWANLAB_LOG_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("elsewhere", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_wandb(train, tmp_path, monkeypatch, apart):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for folder in (tmp_path / "first", tmp_path / "第二"):
        losses = train("wandb", folder)
        wandb.teardown()  # waits for the process that writes the file
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        written = file.read_bytes()
        assert b"train/loss" in written and all(json.dumps(loss).encode() in written for loss in losses)
        assert b"eval/style" in written and b"wuxia/style" in written
    assert not any(apart.iterdir())


def test_wandb_without_a_key_is_refused_before_training(train, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # what an earlier test set stays with the process
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match=r"train.report_to: got wandb, which says: No API key.*WANDB_MODE=offline"):
        train("wandb", tmp_path / "run")


@pytest.mark.parametrize("mode", ["offline", "local"])
def test_swanlab(train, tmp_path, monkeypatch, apart, mode):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", mode)
    for folder in (tmp_path / "first", tmp_path / "second"):
        train("swanlab", folder)
        (file,) = folder.glob("swanlog/run-*/run-*.swanlab")
        written = file.read_bytes()
        assert b"train/loss" in written and b"eval/style" in written
    assert not any(apart.iterdir())


def test_swanlab_without_a_key_is_refused_before_training(train, tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    with pytest.raises(UserError, match=r"train.report_to: got swanlab, which says: .*SWANLAB_MODE=offline"):
        train("swanlab", tmp_path / "run")


def mlflow_runs(folder: Path) -> list:
    """Every run in the folder's database."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.as_posix()}/mlflow.db")
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def needs_mlflow() -> None:
    """The whole of it: `mlflow-skinny` has no database."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")


def test_mlflow(train, tmp_path, apart):
    needs_mlflow()
    from mlflow.tracking import MlflowClient

    for folder in (tmp_path / "first", tmp_path / "second"):
        losses = train("mlflow", folder)
        (run,) = mlflow_runs(folder)
        assert (run.info.run_name, run.info.status) == ("wuxia/style", "FINISHED")
        history = MlflowClient(f"sqlite:///{folder.as_posix()}/mlflow.db").get_metric_history(run.info.run_id, "loss")
        assert [(metric.step, metric.value) for metric in history] == [(1, losses[0]), (2, losses[1])]
        assert run.data.metrics["eval_style"] == 2.5
    assert not any(apart.iterdir())


def test_a_place_of_the_users_own_comes_first(train, tmp_path, monkeypatch):
    needs_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    train("mlflow", tmp_path / "run")
    assert len(mlflow_runs(tmp_path)) == 1 and not (tmp_path / "run/mlflow.db").exists()


def test_a_run_that_fails_ends_as_failed(tmp_path):
    needs_mlflow()
    with pytest.raises(KeyboardInterrupt), tracked(["mlflow"], tmp_path, run_name="x"):
        raise KeyboardInterrupt
    assert [run.info.status for run in mlflow_runs(tmp_path)] == ["FAILED"]


def test_without_trackers_nothing_is_opened(tmp_path):
    with tracked(["tensorboard", "trackio"], tmp_path / "run", run_name="x"):
        pass
    assert not (tmp_path / "run").exists()


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    monkeypatch.setattr("stylora.train.trainer.get_available_reporting_integrations", lambda: ["tensorboard", "mlflow"])
    check_trackers(["tensorboard", "mlflow"])
    check_trackers([])
    for name in ("wandb", "wamdb"):
        with pytest.raises(UserError, match=f"train.report_to: got '{name}', expected .* installed tracker; install it; .*mlflow"):
            check_trackers(["tensorboard", name])
