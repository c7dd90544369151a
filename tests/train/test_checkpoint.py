"""Checkpoints: whole or absent whatever interrupts the writing, and any damage afterwards is seen and named."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer

from stylora.errors import UserError
from stylora.model.tokenizer_file import TINY
from stylora.train.checkpoint import MANIFEST, disk_trouble, find_checkpoint, rotate, steps_there, sweep, unsound, write_checkpoint

FILES = {"adapter_model.safetensors": bytes(range(256)), "optimizer.pt": b"", "trainer state.json": "{\"剑\": 1}".encode()}
LEFT_WITH_IT = {"progress": {"samples": 12, "rate": 0.1 + 0.2, "losses": [1.5, 1e-9]}, "logs": {"metrics.jsonl": 77}, "recipe": "风"}


def put(files: dict[str, bytes] = FILES) -> Callable[[Path], None]:
    """What a trainer would hand over: it writes these files."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return write


def everything(folder: Path) -> dict[str, bytes | None]:
    """Relative path -> bytes, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with checkpoints of steps 2 and 10."""
    for step in (2, 10):
        write_checkpoint(tmp_path, step, put(), LEFT_WITH_IT)
    return tmp_path


# --- writing


def test_what_is_written_is_found_with_all_that_was_left_with_it(tmp_path):
    folder = tmp_path / "a run" / "检查点"
    path = write_checkpoint(folder, 40, put(), LEFT_WITH_IT)
    assert path == folder / "checkpoint-40" and unsound(path) is None
    assert [entry.name for entry in folder.iterdir()] == ["checkpoint-40"]
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST} == FILES
    found, complaints = find_checkpoint(folder)
    assert found is not None and complaints == []
    assert (found.path, found.step) == (path, 40)
    assert {name: found.manifest[name] for name in LEFT_WITH_IT} == LEFT_WITH_IT
    assert {name: entry["bytes"] for name, entry in found.manifest["files"].items()} == {name: len(c) for name, c in FILES.items()}
    assert found.manifest["step"] == json.loads((path / MANIFEST).read_text(encoding="utf-8"))["step"] == 40


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads a descriptor's name as Linux gives it")
def test_the_name_appears_when_everything_has_reached_the_disk(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append(os.readlink(f"/proc/self/fd/{descriptor}").rsplit("/", 1)[-1]))
    really = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), really(old, new)))
    write_checkpoint(tmp_path, 1, put(), {})
    assert order == [*sorted(FILES), MANIFEST, ".checkpoint-1.part", "rename", tmp_path.name]


class Killed(BaseException):
    """Stands for whatever ends a process: nothing may clean up after it."""


@pytest.mark.parametrize("error", [ValueError("ours"), Killed()])
@pytest.mark.parametrize("step", [10, 20])
def test_an_error_in_the_middle_of_writing_leaves_the_others_alone(two, error, step):
    before = everything(two)

    def write(folder: Path) -> None:
        put({"adapter_model.safetensors": b"half"})(folder)
        raise error

    with pytest.raises(type(error)):
        write_checkpoint(two, step, write, {})
    after = everything(two)
    part = f".checkpoint-{step}.part"
    assert {name: content for name, content in after.items() if not name.startswith(part)} == before
    assert (part in after) == isinstance(error, Killed)
    assert steps_there(two) == [10, 2] and find_checkpoint(two)[0].step == 10
    write_checkpoint(two, step, put({"x": b"whole"}), {})
    assert (two / f"checkpoint-{step}" / "x").read_bytes() == b"whole" and not (two / part).exists()


@pytest.mark.parametrize("at", ["fsync", "write_bytes", "replace"])
@pytest.mark.parametrize("step", [10, 20])
def test_killed_anywhere_a_checkpoint_is_whole_or_absent(two, monkeypatch, at, step):
    """The old checkpoint-10 may go (it was to be replaced), but never half of one may stand there."""
    def killed(*_, **__):
        raise Killed

    calls = 0
    while True:
        really = getattr(Path if at == "write_bytes" else os, at)
        left = iter([really] * calls)
        with monkeypatch.context() as patched:
            patched.setattr(Path if at == "write_bytes" else os, at, lambda *a, left=left: next(left, killed)(*a))
            try:
                write_checkpoint(two, step, put({"x": b"new"}), {})
            except Killed:
                calls += 1
            else:
                break
        for there in steps_there(two):
            assert unsound(two / f"checkpoint-{there}") is None
        assert find_checkpoint(two)[0].step in (2, 10, step) and (two / "checkpoint-2").exists()
    assert calls >= 1 and (two / f"checkpoint-{step}" / "x").read_bytes() == b"new"


def test_a_half_written_folder_is_never_found(two):
    shutil.copytree(two / "checkpoint-10", two / ".checkpoint-30.part")
    shutil.copytree(two / "checkpoint-10", two / "checkpoint-30.part")
    (two / "checkpoint-50").write_text("a file", encoding="utf-8")
    (two / "checkpoint-best").mkdir()
    assert steps_there(two) == [10, 2]
    assert find_checkpoint(two)[0].step == 10 and find_checkpoint(two)[1] == []


def test_a_folder_that_is_not_there_holds_no_checkpoints(tmp_path):
    assert steps_there(tmp_path / "none") == [] and find_checkpoint(tmp_path / "none") == (None, [])


# --- a disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_named_and_what_is_there_stays(two, number):
    before = everything(two)

    def write(folder: Path) -> None:
        put()(folder)
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError) as caught:
        write_checkpoint(two, 20, write, {})
    assert caught.value.where == str(two / "checkpoint-20") and caught.value.got == os.strerror(number).lower()
    assert caught.value.expected == "room for a checkpoint (checkpoint-10 is whole)"
    assert everything(two) == before


def test_only_a_sound_checkpoint_is_called_whole(two):
    (two / "checkpoint-10" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"\(checkpoint-2 is whole\)"):
        write_checkpoint(two, 20, _full, {})
    (two / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"\(there is no earlier one\)"):
        write_checkpoint(two, 20, _full, {})


def _full(folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"), RuntimeError("CUDA error"), Exception("os error of another kind"),
        ValueError("(os error 28)"), Exception("No such file or directory (os error 2)"),
    ],
)  # fmt: skip
def test_other_errors_are_not_blamed_on_the_disk(error, tmp_path):
    assert disk_trouble(error) is None

    def write(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        write_checkpoint(tmp_path, 1, write, {})
    assert caught.value is error and everything(tmp_path) == {}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 256 KB."""
    mount, place = shutil.which("mount"), tmp_path / "disk"
    place.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)  # a test that failed may hold a file open


def _with_python(file: Path) -> None:
    file.write_text("x" * 1_000_000, encoding="utf-8")


def _with_torch(file: Path) -> None:
    torch.save({"a": torch.zeros(200_000)}, file)


def _with_safetensors(file: Path) -> None:
    save_file({"a": torch.zeros(200_000)}, file)


def _with_tokenizers(file: Path) -> None:
    AutoTokenizer.from_pretrained(str(TINY)).save_pretrained(str(file.parent))


@pytest.mark.parametrize(
    ("writer", "reason"),
    [
        (_with_python, "no space left on device"), (_with_safetensors, "no space left on device"),
        (_with_tokenizers, "no space left on device"), (_with_torch, "a file that could not be written to its end"),
    ],
)  # fmt: skip
def test_a_disk_that_is_really_full(small_disk, writer, reason):
    write_checkpoint(small_disk, 1, put(), LEFT_WITH_IT)
    before = everything(small_disk)

    def write(folder: Path) -> None:
        put()(folder)
        writer(folder / "large")

    with pytest.raises(UserError) as caught:
        write_checkpoint(small_disk, 2, write, {})
    assert caught.value.got == reason and "checkpoint-1 is whole" in str(caught.value) and "\n" not in str(caught.value)
    assert everything(small_disk) == before and unsound(small_disk / "checkpoint-1") is None
    del caught  # torch's error holds its file open, and with it the room
    gc.collect()
    write_checkpoint(small_disk, 2, put(), {})
    assert find_checkpoint(small_disk)[0].step == 2


# --- damage


def _shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _replace(content: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(content, encoding="utf-8") and None


@pytest.mark.parametrize(
    ("damage", "file", "sentence"),
    [
        (_shorten, "adapter_model.safetensors", "adapter_model.safetensors has 128 bytes instead of 256"),
        (_replace("more"), "optimizer.pt", "optimizer.pt has 4 bytes instead of 0"),
        (_flip_a_bit, "adapter_model.safetensors", "adapter_model.safetensors was altered"),
        (Path.unlink, "optimizer.pt", "optimizer.pt is missing"),
        (Path.unlink, MANIFEST, f"{MANIFEST} is missing"),
        (_shorten, MANIFEST, f"{MANIFEST} can't be read"),
        (_replace(""), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace("no JSON"), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace("[]"), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace("3"), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace("{}"), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace('{"files": []}'), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace('{"files": {"optimizer.pt": 0}}'), MANIFEST, f"{MANIFEST} can't be read"),
        (_replace('{"files": {}}'), MANIFEST, f"{MANIFEST} was altered"),
        (lambda file: file.write_bytes(b"\xff\xfe"), MANIFEST, f"{MANIFEST} can't be read"),
        (lambda file: file.write_text(file.read_text(encoding="utf-8").replace("77", "78"), encoding="utf-8"), MANIFEST,
         f"{MANIFEST} was altered"),
    ],
)  # fmt: skip
def test_damage_is_named_and_the_one_before_is_used(two, damage, file, sentence):
    damage(two / "checkpoint-10" / file)
    assert unsound(two / "checkpoint-10") == sentence
    found, complaints = find_checkpoint(two)
    assert found is not None and found.step == 2
    assert complaints == [f"checkpoint-10 is not used: {sentence}"]
    damage(two / "checkpoint-2" / file)
    nothing, complaints = find_checkpoint(two)
    assert nothing is None and complaints == [f"checkpoint-{step} is not used: {sentence}" for step in (10, 2)]


def test_older_damage_is_no_matter(two):
    (two / "checkpoint-2" / "optimizer.pt").unlink()
    assert find_checkpoint(two)[0].step == 10 and find_checkpoint(two)[1] == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_single_altered_byte_is_seen(two, data):
    path = two / "checkpoint-10"
    file = path / data.draw(st.sampled_from([MANIFEST, MANIFEST, "adapter_model.safetensors", "trainer state.json"]))
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    try:
        file.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        assert unsound(path) is not None and find_checkpoint(two)[0].step == 2
    finally:
        file.write_bytes(whole)
    assert unsound(path) is None


# --- which stay


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [1, 2, 9, 10, 11]), (1, None, [11]), (2, None, [10, 11]), (2, 2, [2, 10, 11]), (2, 10, [10, 11]),
        (1, 1, [1, 11]), (5, 1, [1, 2, 9, 10, 11]), (9, None, [1, 2, 9, 10, 11]), (2, 7, [10, 11]),
    ],
)  # fmt: skip
def test_rotation_keeps_the_newest_and_the_best(tmp_path, keep, best, left):
    for step in (9, 1, 11, 2, 10):
        write_checkpoint(tmp_path, step, put(), {})
    (tmp_path / "adapter").mkdir()
    rotate(tmp_path, keep, best=best)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["adapter", *(f"checkpoint-{step}" for step in left)])
    assert all(unsound(tmp_path / f"checkpoint-{step}") is None for step in left)


def test_a_removal_that_is_killed_leaves_no_half_under_the_name(two, monkeypatch):
    def killed(path, ignore_errors=False):
        if not ignore_errors:  # the removal itself, not the sweeping before it
            os.unlink(path / "optimizer.pt")
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        rotate(two, 1, best=None)
    monkeypatch.undo()
    assert steps_there(two) == [10] and unsound(two / "checkpoint-10") is None
    assert len(list(two.iterdir())) == 2
    sweep(two, 10)
    assert [path.name for path in two.iterdir()] == ["checkpoint-10"]


def test_a_sweep_takes_halves_and_the_future_and_nothing_else(two):
    for step in (11, 12, 100):
        write_checkpoint(two, step, put(), {})
    for name in (".checkpoint-101.part", ".checkpoint-2.gone.part", "notes", ".hidden"):
        (two / name).mkdir()
        (two / name / "file").write_text("x", encoding="utf-8")
    kept = {name: content for name, content in everything(two).items() if name.split("/")[0] in
            ("checkpoint-2", "checkpoint-10", "checkpoint-11", "notes", ".hidden")}  # fmt: skip
    sweep(two, 11)
    assert everything(two) == kept
