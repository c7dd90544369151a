"""Checkpoints on disk: whole or not there at all, and known to be unaltered.

    checkpoints/.checkpoint-40.part/   being written; never read, swept away by the next start
    checkpoints/checkpoint-40/         complete: renamed into place after everything in it had reached the disk
      adapter_model.safetensors ...    what the trainer put there
      checkpoint.json                  the manifest: step, every file's size and hash, what the run had done, how long its logs were;
                                       first of all the hash of its own other entries

Knows files, no models.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stylora.errors import UserError
from stylora.model.tokenizer_file import hash_file

MANIFEST = "checkpoint.json"
NAME = re.compile(r"checkpoint-(\d+)")
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A sound one. path: its folder; step: optimizer steps done; manifest: what the trainer left with it"""

    path: Path
    step: int
    manifest: dict[str, Any]


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None], manifest: dict[str, Any]) -> Path:
    """Write `folder/checkpoint-<step>` atomically. write: puts every file into the folder it is given.

    Raises UserError when the disk does not take it; what was there before is untouched.
    """
    part, path = folder / f".checkpoint-{step}.part", folder / f"checkpoint-{step}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        there = [file for file in sorted(part.rglob("*")) if file.is_file()]  # a tokenizer of several chat templates has a folder for them
        files = {file.relative_to(part).as_posix(): {"bytes": file.stat().st_size, "hash": _flushed_hash(file)} for file in there}
        (part / MANIFEST).write_bytes(_with_hash({"step": step, "files": files, **manifest}))
        _flushed_hash(part / MANIFEST)
        _flush_folder(part)
        gone = folder / f".checkpoint-{step}.gone.part"
        if path.exists():  # unsound, or about to be replaced by what was measured after it; deleted once the new one has its name
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(path, gone)
        os.replace(part, path)
        _flush_folder(folder)
        shutil.rmtree(gone, ignore_errors=True)
    except Exception as error:  # every library has its own for a full disk; what is about something else goes on up
        shutil.rmtree(part, ignore_errors=True)
        reason = disk_trouble(error)
        if reason is None:
            raise
        last, _ = find_checkpoint(folder)
        kept = f"{last.path.name} is whole" if last is not None else "there is no earlier one"
        raise UserError(
            str(path), got=reason, expected=f"room for a checkpoint ({kept})", do="make room, then give the same command again to go on"
        ) from error
    return path


def disk_trouble(error: BaseException) -> str | None:
    """What the disk refused, in words; None where the error is about something else."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) or type(error) is Exception:  # in Rust; tokenizers raises just that
        said = re.search(r"\(os error (\d+)\)", text)
        number = int(said[1]) if said else None
    if number in REFUSALS:
        return os.strerror(number).lower()
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "inline_container" in text):
        return "a file that could not be written to its end"
    return None


def steps_there(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, newest first."""
    found = [NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def find_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint, and a sentence for each newer one that is not."""
    complaints: list[str] = []
    for step in steps_there(folder):
        path = folder / f"checkpoint-{step}"
        trouble = unsound(path)
        if trouble is None:
            return Checkpoint(path=path, step=step, manifest=_manifest(path)), complaints
        complaints.append(f"{path.name} is not used: {trouble}")
    return None, complaints


def unsound(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is as it was written."""
    try:
        manifest = _manifest(path)
        files = {name: (entry["bytes"], entry["hash"]) for name, entry in manifest["files"].items()}
        altered = (path / MANIFEST).read_bytes() != _with_hash(manifest)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):  # no UTF-8 or JSON, or not what we write
        return f"{MANIFEST} can't be read"
    if altered:
        return f"{MANIFEST} was altered"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
        if hash_file(file) != digest:
            return f"{name} was altered"
    return None


def rotate(folder: Path, keep: int | None, *, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; the best one stays besides."""
    if keep is None:
        return
    for step in steps_there(folder)[keep:]:
        if step != best:
            _remove(folder / f"checkpoint-{step}")


def sweep(folder: Path, later_than: int) -> None:
    """Before a run goes on: remove what was half written, and checkpoints of a future that will be trained anew."""
    for part in folder.glob(".checkpoint-*.part"):
        shutil.rmtree(part)
    for step in steps_there(folder):
        if step > later_than:
            _remove(folder / f"checkpoint-{step}")


def _remove(path: Path) -> None:
    """Take the name away first, so that a kill leaves no half of a checkpoint under it."""
    part = path.with_name(f".{path.name}.gone.part")
    shutil.rmtree(part, ignore_errors=True)
    os.replace(path, part)
    shutil.rmtree(part)


def _manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def _with_hash(manifest: dict[str, Any]) -> bytes:
    """The manifest's file. It stands in no list of files, so it carries the hash of its own entries."""
    entries = {name: value for name, value in manifest.items() if name != "hash"}
    digest = hashlib.blake2b(_as_json(entries), digest_size=16).hexdigest()
    return _as_json({"hash": digest, **entries})


def _as_json(entries: dict[str, Any]) -> bytes:
    return json.dumps(entries, ensure_ascii=False, indent=1).encode()


def _flushed_hash(file: Path) -> str:
    """The file's hash, once its bytes are on the disk."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    return hash_file(file)


def _flush_folder(folder: Path) -> None:
    """Put the names in it on the disk, too. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
