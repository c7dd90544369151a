"""Files, folders and hub datasets -> documents, one after the other, with a report on every file.

Everything goes decode -> HTML taken off -> `clean`, streaming: 1 GB of text needs far less than 1 GB. A file that gives
nothing is skipped with the reason; only a corpus that gives nothing at all is an error.

Knows where files lie and in which order they come; not what is in them, no chapters, splits and tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from stylora.errors import UserError

from .clean import Cleaning
from .document import Document, FileReport
from .formats import READERS, Input, hidden, read_file, read_hub
from .intake import Intake
from .rows import HUB


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The usable files among files and folders, each once; folders recursively, in the order of their names.

    Hidden files and folders are passed over unless named themselves. Raises UserError for a path that is missing or
    cannot be read, a file of another kind, and a folder without a usable file.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        try:
            files = sorted(_walk(path), key=lambda p: p.as_posix()) if path.is_dir() else [path]
            missing = not path.exists()
        except OSError as error:
            raise _unreadable(error.filename or path, error) from None
        if missing:
            raise UserError(str(path), got="nothing there", expected="a file or folder", do="check the path")
        usable = [file for file in files if file.suffix.lower() in READERS]
        if not usable:
            got = f"a folder of {len(files)} files, none usable" if path.is_dir() else f"a '{path.suffix}' file"
            raise UserError(str(path), got=got, expected="one of " + " ".join(READERS))
        for file in usable:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_documents(
    paths: Sequence[str | Path], cleaning: Cleaning, *, lines: bool = False, reports: list[FileReport] | None = None
) -> Iterator[Document]:
    """Read files, folders and hub datasets (`hf:owner/name[:split]`, `hf:folder`) into cleaned documents, streaming.

    paths: in this order; the same paths give the same documents in the same order
    lines: each line of a .txt that is not blank is a document of its own, else the whole file is one
    reports: gets one report per file, archive member or dataset, filled while its documents are read
    Raises UserError at once for a bad path; while reading for a file that cannot be opened or a dataset that cannot be
    loaded; at the end where nothing at all was usable.
    """
    groups: list[str | list[Path]] = []
    known: set[Path] = set()
    for path in paths:
        if isinstance(path, str) and path.startswith(HUB):
            groups.append(path)
        else:
            files = {file.resolve(): file for file in find_files([path])}
            groups.append([file for resolved, file in files.items() if resolved not in known])
            known.update(files)
    return _documents(groups, Intake(cleaning, reports, lines), ", ".join(map(str, paths)))


def _documents(groups: list[str | list[Path]], intake: Intake, where: str) -> Iterator[Document]:
    for group in groups:
        if isinstance(group, str):
            yield from read_hub(intake, group)
            continue
        for file in group:
            try:
                stream = file.open("rb")
            except OSError as error:
                raise _unreadable(file, error) from None
            with stream:
                size = os.fstat(stream.fileno()).st_size
                name = PurePosixPath(file.name)
                yield from read_file(intake, Input(stream=stream, name=name, origin=file.as_posix(), n_bytes=size))
    if not intake.documents:
        shown = "; ".join(intake.skipped[:10])
        more = f"; and {len(intake.skipped) - 10} more" if len(intake.skipped) > 10 else ""
        raise UserError(where, got=f"no usable text ({shown}{more})", expected="at least one file with text")


def _unreadable(path: str | Path, error: OSError) -> UserError:
    got = error.strerror or str(error)
    return UserError(str(path), got=got, expected="a readable file or folder", do="check its permissions")


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not hidden(name)]
        yield from (Path(parent, name) for name in names if not hidden(name))
