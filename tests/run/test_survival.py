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
    assert [path.name for path in sorted(runs.folder.glob("straight/style/checkpoints/*"))] == ["checkpoint-12", "checkpoint-9"]
    return runs.folder / "straight" / "style", time.perf_counter() - started


def same_end(stage: Path, straight: Path) -> None:
    """Weights byte for byte, the logs line for line but for times; every checkpoint sound; nothing left over."""
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "held_out.jsonl", "samples.jsonl"):
        assert (stage / file).read_bytes() == (straight / file).read_bytes(), file
    assert rows(stage) == rows(straight)
    assert {path.name for path in stage.glob("checkpoints/*")} == {path.name for path in straight.glob("checkpoints/*")}
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


def kill_and_finish(
    runs: Runs, straight: tuple[Path, float], out: Path, kills: int, seed: int, *, latest: float = 1.0
) -> list[str]:
    """Kill a run so often, every third time while it writes a checkpoint; then let it end. Returns where it went on from.

    straight: a folder of it, and how long it takes uninterrupted; latest: share of that time after which a process is dead
    """
    chance, resumed = random.Random(seed), []
    for kill in range(kills):
        process = runs.start(out)
        deadline = time.perf_counter() + chance.uniform(0.05, latest) * straight[1]
        during_write = kill % 3 == 2
        while process.is_alive() and (during_write or time.perf_counter() < deadline):
            if during_write and list(out.glob("*/checkpoints/.checkpoint-*.part/*")):
                time.sleep(chance.uniform(0, 0.02))
                break
            time.sleep(0.001)
        process.kill()
        process.join()
        stages = sorted((path for path in out.glob("*") if path.is_dir()), key=lambda path: path.name != "style")
        there = [find_checkpoint(stage / "checkpoints") for stage in stages]
        assert not any(complaints for _, complaints in there), "a killed process leaves no unsound checkpoint"
        resumed.append(" ".join(found.path.name if found else "-" for found, _ in there))
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


# --- two stages ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory) -> Runs:
    """`style` and `align`, which goes on with it and is held to the base; dropout in both."""
    align = {"name": "align", "continue": "style", "objective": {"kl": {"beta": 0.1}}, "train": {"learning_rate": 1e-4}}
    settings = {"max_steps": 6, "samples_per_step": 4, "save_steps": 3, "eval_steps": 4}
    recipe = write_recipe(tmp_path_factory.mktemp("两 stages"), dropout=0.1, more=[align], **settings)
    return Runs(recipe, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def both_straight(two_stages) -> tuple[Path, float]:
    """The uninterrupted run, both stages, and how long it took."""
    assert two_stages.finish(two_stages.folder / "warm", "--stage", "style", "train.max_steps=1") == 0, two_stages.said
    started = time.perf_counter()
    assert two_stages.finish(two_stages.folder / "straight") == 0, two_stages.said
    return two_stages.folder / "straight", time.perf_counter() - started


def both_end_the_same(run: Path, straight: Path) -> None:
    """Also in what the second began with."""
    for stage in ("style", "align"):
        same_end(run / stage, straight / stage)
    made = [json.loads((folder / "align" / "stack.json").read_text(encoding="utf-8"))["made_from"] for folder in (run, straight)]
    assert made[0] == made[1] and made[0]["start"]


@pytest.mark.parametrize("seed", [int(time.time())], ids=["now"])
def test_two_stages_killed_three_times_end_with_the_same_bytes(two_stages, both_straight, tmp_path, seed):
    print("seed", seed, "went on from", kill_and_finish(two_stages, both_straight, tmp_path / "x", 3, seed, latest=0.6))
    both_end_the_same(tmp_path / "x", both_straight[0])


@pytest.mark.slow
def test_two_stages_killed_twenty_times(two_stages, both_straight, tmp_path):
    for chain in range(4):
        print("went on from", kill_and_finish(two_stages, both_straight, tmp_path / str(chain), 5, chain, latest=0.6))
        both_end_the_same(tmp_path / str(chain), both_straight[0])


@pytest.mark.parametrize("moment", ["publishing", "finishing", "beginning"])
def test_killed_between_the_stages(two_stages, both_straight, tmp_path, moment):
    """While the first one's adapter is put in place, before its stack.json says that it is done, and before the second has a recipe."""
    assert two_stages.finish(tmp_path / "x", moment=moment, do="SIGKILL") == -signal.SIGKILL, two_stages.said
    assert (tmp_path / "x" / "style" / "stack.json").exists() == (moment == "beginning")
    assert (tmp_path / "x" / "align").exists() == (moment == "beginning") and not (tmp_path / "x" / "align" / "recipe.yaml").exists()
    assert two_stages.finish(tmp_path / "x") == 0, two_stages.said
    assert ("done already" in two_stages.said) == (moment == "beginning")
    both_end_the_same(tmp_path / "x", both_straight[0])


def test_a_signal_while_the_text_of_both_is_read(two_stages, tmp_path):
    assert two_stages.finish(tmp_path / "x", moment="reading", do="SIGTERM", cache=tmp_path / "cache") == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: the same command starts again" in two_stages.said and "Traceback" not in two_stages.said
    assert not (tmp_path / "x").exists() and not list((tmp_path / "cache").iterdir())


def test_a_signal_in_the_second_stage(two_stages, both_straight, tmp_path):
    """It is saved, the first is left alone, and the same command goes on in the second."""
    assert two_stages.finish(tmp_path / "x", moment="aligning", do="SIGTERM") == 128 + signal.SIGTERM, two_stages.said
    assert "stopped by SIGTERM: checkpoint-" in two_stages.said and "Traceback" not in two_stages.said
    found, _ = find_checkpoint(tmp_path / "x" / "align" / "checkpoints")
    assert found is not None and 0 < found.step < 6
    style = (tmp_path / "x" / "style" / "stack.json").stat().st_mtime_ns
    assert two_stages.finish(tmp_path / "x") == 0, two_stages.said
    assert "done already" in two_stages.said and f"resume     from {found.path}" in two_stages.said
    assert (tmp_path / "x" / "style" / "stack.json").stat().st_mtime_ns == style
    both_end_the_same(tmp_path / "x", both_straight[0])
