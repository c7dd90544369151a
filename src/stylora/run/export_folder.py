"""The folder of an export: what may be replaced, and how a new one takes its place whole or not at all.

    .FOLDER.part/    being written; gone where there was an error, swept away by the next export where the process was killed
    .FOLDER.lock     held while a process writes there
    FOLDER/          complete: renamed into place after everything in it had reached the disk

Knows no models.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from stylora.errors import UserError
from stylora.train.checkpoint import disk_trouble

EXPORT = "export.json"  # what was exported; its folder alone may be replaced


def check_place(folder: Path, sources: Sequence[Path], force: bool) -> None:
    """Raises UserError for a folder that may not be filled: a file, one that holds a source of the export, files that are no export, an
    earlier export unless forced."""
    if folder.is_file():
        raise UserError("--to", got=f"{folder}, a file", expected="a folder")
    inside = [source for source in sources if source.exists() and folder.resolve() in (source.resolve(), *source.resolve().parents)]
    if inside:
        raise UserError("--to", got=f"{folder}, where {inside[0]} lies", expected="a folder of its own")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / EXPORT).is_file():
        raise UserError("--to", got=f"{folder}, which holds files that are no export", expected="an empty or new folder")
    if not force:
        raise UserError("--to", got=f"{folder}, an earlier export", expected="an empty or new folder", do="give --force to replace it")


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its place at the end, or is gone where there was an error.

    Raises UserError where another process is writing the same, for a place that can't be written to, and for a disk that does not take it.
    """
    place = folder.resolve()
    part, gone = (place.with_name(f".{place.name}.{end}") for end in ("part", "gone"))
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError("--to", got=f"{folder}, which another process is writing", expected="one at a time") from None
    except OSError as error:
        got = f"{folder}, which can't be made ({error.strerror})"
        raise UserError("--to", got=got, expected="a folder that can be written to") from error
    try:
        for left in (part, gone):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir()
        yield part
        _flush(part)
        _move(part, place, gone)
    except (OSError, RuntimeError, SafetensorError) as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        raise UserError(str(folder), got=trouble, expected="room for the export", do="choose another place") from error
    finally:
        for left in (part, gone):
            shutil.rmtree(left, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _move(part: Path, place: Path, gone: Path) -> None:
    """What was there is deleted once the new one has its name, and is put back where it can't have it."""
    if place.exists():
        os.replace(place, gone)
    try:
        os.replace(part, place)
    except OSError:
        if gone.exists():
            os.replace(gone, place)
        raise


def _flush(folder: Path) -> None:
    """See that every file has reached the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
