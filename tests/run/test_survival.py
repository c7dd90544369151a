"""A run that is killed, asked to stop, or meets a full disk at any moment ends where it would have ended.

Real processes and real signals.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.run.children import Runs, write_recipe

from stylora.train.checkpoint import find_checkpoint, unsound

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Span training with dropout, a schedule, evaluations and checkpoints that fall on different steps."""
    return write_recipe(tmp_path_factory.mktemp("旧 recipe"), dropout=0.1, samples_per_step=4, save_steps=3, eval_steps=4)


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory) -> Runs:
    return Runs(recipe, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(runs) -> tuple[Path, float]:
    """The uninterrupted run, and how long it took."""
    assert runs.finish(runs.folder / "warm", "train.max_steps=1") == 0, runs.said
    started = time.perf_counter()
    assert runs.finish(runs.folder / "straight") == 0, runs.said
    return runs.folder / "straight" / "style", time.perf_counter() - started


def same_end(stage: Path, straight: Path) -> None:
    """Weights byte for byte, the logs line for line but for times; every checkpoint sound; nothing left over."""
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "held_out.jsonl", "samples.jsonl"):
        assert (stage / file).read_bytes() == (straight / file).read_bytes(), file
    assert rows(stage) == rows(straight)
    assert [path.name for path in sorted(stage.glob("checkpoints/*"))] == ["checkpoint-12", "checkpoint-9"]
    assert all(unsound(path) is None for path in stage.glob("checkpoints/*"))
    assert not [*stage.rglob("*.tmp"), *stage.rglob("*.part")]
    assert event_steps(stage) == event_steps(straight)


def rows(stage: Path) -> list[dict]:
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train_runtime" not in row]


def event_steps(stage: Path) -> list[int]:
    """The steps at which TensorBoard has a loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage), purge_orphaned_data=False)
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def kill_and_finish(runs: Runs, straight: tuple[Path, float], out: Path, kills: int, seed: int) -> list[str]:
    """Kill a run so often, every third time while it writes a checkpoint; then let it end. Returns where it went on from."""
    chance, resumed = random.Random(seed), []
    for kill in range(kills):
        process = runs.start(out)
        deadline = time.perf_counter() + chance.uniform(0.05, 1.0) * straight[1]
        during_write = kill % 3 == 2
        while process.is_alive() and (during_write or time.perf_counter() < deadline):
            if during_write and list(out.glob("style/checkpoints/.checkpoint-*.part/*")):
                time.sleep(chance.uniform(0, 0.02))
                break
            time.sleep(0.001)
        process.kill()
        process.join()
        found = find_checkpoint(out / "style" / "checkpoints")
        assert found[1] == [], "a killed process leaves no unsound checkpoint"
        resumed.append(found[0].path.name if found[0] else "-")
        if process.exitcode == 0:
            shutil.rmtree(out)  # it was faster than we
    assert runs.finish(out) == 0, runs.said
    return resumed


@pytest.mark.parametrize("seed", [int(time.time())], ids=["now"])
def test_killed_three_times_it_ends_with_the_same_bytes(runs, straight, tmp_path, seed):
    print("seed", seed)
    kill_and_finish(runs, straight, tmp_path / "x", 3, seed)
    same_end(tmp_path / "x" / "style", straight[0])


@pytest.mark.slow
def test_killed_twenty_times(runs, straight, tmp_path):
    """In chains of five, so that later parts of the run are met as often as early ones."""
    for chain in range(4):
        print("went on from", kill_and_finish(runs, straight, tmp_path / str(chain), 5, chain))
        same_end(tmp_path / str(chain) / "style", straight[0])


@pytest.mark.parametrize("moment", ["reading", "training", "measuring", "saving"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_at_any_moment(runs, straight, tmp_path, moment, name):
    if name == "SIGINT" and moment != "training":
        pytest.skip("as SIGTERM")
    code = runs.finish(tmp_path / "x", moment=moment, do=name, cache=tmp_path / "cache" if moment == "reading" else None)
    assert code == 128 + getattr(signal, name), runs.said
    assert f"stopped by {name}: " in runs.said and "Traceback" not in runs.said
    if moment == "reading":
        assert not (tmp_path / "x").exists() and "the same command starts again" in runs.said
        assert not list((tmp_path / "cache").iterdir()), "no half-written cache"
    else:
        assert "is whole, the same command goes on from there" in runs.said
    assert runs.finish(tmp_path / "x") == 0, runs.said
    assert moment == "reading" or "resume     from" in runs.said
    same_end(tmp_path / "x" / "style", straight[0])


# --- a full disk --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """64 MB of their own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no leave to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("moment", ["reading", "training", "measuring", "saving"])
def test_a_full_disk_at_any_moment(runs, straight, small_disk, moment):
    cache = small_disk / "cache" if moment == "reading" else None
    code = runs.finish(small_disk / "x", moment=moment, do=f"fill {small_disk}", cache=cache)
    assert code == 2 and "Traceback" not in runs.said, runs.said
    (sentence,) = [line for line in runs.said.splitlines() if line.startswith("error:")]
    assert "no space left on " in sentence or "could not be written to its end" in sentence
    checkpoint, complaints = find_checkpoint(small_disk / "x" / "style" / "checkpoints")
    assert complaints == []
    if moment in ("measuring", "saving"):
        assert checkpoint is not None and f"checkpoint-{checkpoint.step} is whole" in sentence
    (small_disk / "filler").unlink()
    assert runs.finish(small_disk / "x", cache=cache) == 0, runs.said
    same_end(small_disk / "x" / "style", straight[0])


# --- damage -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(runs, straight, tmp_path, damage):
    shutil.copytree(straight[0], tmp_path / "x" / "style")
    stage = tmp_path / "x" / "style"
    (stage / "stack.json").unlink()
    weights = stage / "checkpoints" / "checkpoint-12" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content[:-100] if damage == "truncated" else content)
    assert runs.finish(tmp_path / "x") == 0
    told = "bytes instead of" if damage == "truncated" else "was altered"
    assert f"checkpoint-12 is not used: adapter_model.safetensors {'has ' if damage == 'truncated' else ''}" in runs.said
    assert told in runs.said
    assert "resume     from " in runs.said and "checkpoint-9" in runs.said
    same_end(stage, straight[0])
