"""Two processes train as one: started by --nproc, torchrun and accelerate; measured, saved, stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.run.children import write_recipe

from stylora.train.checkpoint import find_checkpoint

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over localhost, POSIX signals")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """12 steps in fp32; the last of each epoch has fewer samples than there are processes."""
    settings = {"samples_per_step": 5, "save_steps": 4, "eval_steps": 4, "tokens_per_microbatch": 100}
    return write_recipe(tmp_path_factory.mktemp("two 个"), **settings)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return os.environ | {"STYLORA_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}


WAYS = {
    "one": [sys.executable, "-m", "stylora"],
    "nproc": [sys.executable, "-m", "stylora"],
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "-m", "stylora"],
    "accelerate": [
        str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "-m", "stylora",
    ],
}  # fmt: skip


def start(way: str, recipe: Path, out: Path, environment: dict[str, str], *overrides: str) -> subprocess.Popen:
    more = ["--nproc", "2"] if way == "nproc" else []
    port = {"MASTER_PORT": "0"} if way == "accelerate" else {}
    return subprocess.Popen(
        [*WAYS[way], "train", str(recipe), f"output_dir={out}", *overrides, *more], env=environment | port, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(recipe, environment, tmp_path_factory):
    """`trained(way)`: what a run of that kind printed, and the stage's folder; each is run once."""
    done: dict[str, tuple[str, Path]] = {}

    def run(way: str) -> tuple[str, Path]:
        if way not in done:
            out = tmp_path_factory.mktemp(way)
            process = start(way, recipe, out, environment)
            printed, _ = process.communicate(timeout=300)
            assert process.returncode == 0, printed
            done[way] = printed, out / "style"
        return done[way]

    return run


def metrics(stage: Path) -> list[dict]:
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train_runtime" not in row]


@pytest.mark.parametrize("way", ["nproc", *(pytest.param(way, marks=pytest.mark.slow) for way in ("torchrun", "accelerate"))])
def test_two_processes_trace_one(trained, way):
    """Losses, gradient norms, both held-out losses and the continuations, over the whole run."""
    printed, stage = trained(way)
    assert "processes  2 processes, gloo" in printed
    ours, one = metrics(stage), metrics(trained("one")[1])
    assert [row.keys() for row in ours] == [row.keys() for row in one]
    assert sum("loss" in row for row in one) == 12 and sum("eval/style" in row for row in one) == 4
    for mine, theirs in zip(ours, one, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert (stage / "samples.jsonl").read_bytes() == (trained("one")[1] / "samples.jsonl").read_bytes()
    assert [path.name for path in sorted(stage.glob("checkpoints/*"))] == ["checkpoint-12", "checkpoint-8"]
    assert json.loads((stage / "environment.json").read_text(encoding="utf-8"))["processes"] == 2


def test_each_line_is_printed_by_one_process(trained):
    printed, _ = trained("nproc")
    lines = [line for line in printed.splitlines() if line.startswith(("base ", "train ", "saved ", "step 12/12"))]
    assert len(lines) == 4, printed


@pytest.mark.slow
def test_two_processes_trace_one_through_two_stages(tmp_path, environment):
    """With KL in the second; each line is printed by one process, the warning too."""
    align = {"name": "align", "continue": "style", "objective": {"kl": {"beta": 0.1}}}
    settings = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "tokens_per_microbatch": 100}
    recipe = write_recipe(tmp_path, more=[align], **settings)
    printed = {}
    for way in ("one", "nproc"):
        process = start(way, recipe, tmp_path / way, environment)
        printed[way], _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[way]
    for line in ("warning    stage 'align'", "stage      align, 2 of 2", "proved     KL sees the adapter", "saved      "):
        assert printed["nproc"].count(line) == printed["one"].count(line) == (2 if line.startswith("saved") else 1), printed["nproc"]
    for stage in ("style", "align"):
        ours, one = (metrics(tmp_path / way / stage) for way in ("nproc", "one"))
        assert [row.keys() for row in ours] == [row.keys() for row in one] and sum("loss" in row for row in one) == 4
        assert all("kl" in row for row in one if "loss" in row) == (stage == "align")
        for mine, theirs in zip(ours, one, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def wait_for_checkpoint(out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (out / "style" / "checkpoints" / f"checkpoint-{step}").is_dir():
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.02)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes below a launcher, by rank."""
    below = psutil.Process(process.pid).children(recursive=True)
    found = {child.environ().get("RANK"): child for child in below if child.environ().get("RANK")}
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_job_with_the_reason_and_it_goes_on(recipe, environment, tmp_path, rank, trained):
    process = start("nproc", recipe, tmp_path, environment, "train.max_steps=3000", "train.save_steps=2")
    wait_for_checkpoint(tmp_path, 4)
    killed = time.monotonic()
    workers(process)[rank].send_signal(signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 137
    last = printed.strip().splitlines()[-1]
    assert last.startswith(f"stopped: process {rank} of 2 ") and "was killed by SIGKILL" in last
    assert "the same command goes on from the last checkpoint" in last and "Traceback" not in printed
    checkpoint, complaints = find_checkpoint(tmp_path / "style" / "checkpoints")
    assert checkpoint is not None and complaints == []


def test_sigterm_to_the_launcher_saves_and_one_process_ends_what_two_began(recipe, environment, tmp_path, trained):
    process = start("nproc", recipe, tmp_path, environment)
    wait_for_checkpoint(tmp_path, 4)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 143, printed
        assert "is whole, the same command goes on from there" in printed
    again = start("one", recipe, tmp_path, environment)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    for mine, theirs in zip(metrics(tmp_path / "style"), metrics(trained("one")[1]), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_mistakes_are_told_once_and_before_anything_starts(recipe, environment, tmp_path):
    process = start("nproc", recipe, tmp_path / "x", environment, "train.learning_rat=1")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and printed.count("error:") == 1 and "learning_rat" in printed
    assert not (tmp_path / "x").exists()
