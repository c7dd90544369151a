"""Documents -> token ids on disk, once: the token cache.

    <cache>/<key>/ids.bin        int32, all tokens of all pieces one after the other
                  words.bin      uint8, 1 where a word begins (empty where not asked)
                  pieces.jsonl   one line per chapter or document: where it came from and which ids are its own
                  reports.jsonl  what happened to every file on the way in

The key is a hash of everything the ids depend on: the inputs' content and names, the cleaning, the tokenizer, and the code that reads and
cleans. Paths and dates are not in it, nor in the store: a file stands there as its number among the inputs, and gets the path that it was
opened by. A store is written beside its place and renamed when complete, so a half-written one is never opened.

Speed: the tokenizer works on all cores without the GIL, so one thread encodes a batch while this one reads and cleans the next. Memory:
a few batches, whatever the size of the corpus. Ids equal those of the whole text: a text is cut into parts only where the tokenizer
has a border, after a newline before a character that is not blank, and only if a probe shows that it has one there.

Knows no windows, splits and models. jieba (https://github.com/fxsjy/jieba) is imported where words are asked for.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from tokenizers import Encoding, Tokenizer

import stylora.corpus
from stylora.corpus.chapters import find_chapters
from stylora.corpus.clean import Cleaning
from stylora.corpus.document import Document, FileReport
from stylora.corpus.read import find_files, read_documents
from stylora.corpus.rows import HUB, hub_split
from stylora.errors import UserError

PART = 20_000  # characters (about 60 KB of Chinese) encoded in one piece
BATCH = 16 * PART  # characters handed to the encoding thread at a time
WAITING = 4  # batches between the two threads: what is encoded while one part of a large file is cleaned
BORDER = re.compile(r"(?<=\n)(?=\S)")
PROBE = "他说：“好。”\n“走吧！”\n\n第二段 text, 1.\nEnd\n(一)\n\n\n3 items\n他"
INSIDE = re.compile(r"!/|[#:]\d+$")  # where an origin goes on from its file: `!/member`, `#part`, `:row`
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int, int], None]  # (bytes read, bytes in all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A chapter (or a whole document) in a store.

    source, origin, fingerprint: of its document; chapter: its title, "" where there is none
    start, end: half-open range of its tokens in the ids; characters: length of its text
    """

    source: str
    origin: str
    fingerprint: str
    chapter: str
    start: int
    end: int
    characters: int


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """An opened token cache.

    ids: int32 [T], a memory map; words: uint8 [T], 1 where a word begins, or None; pieces: in order, covering the ids without gaps
    """

    folder: Path
    ids: np.ndarray
    words: np.ndarray | None
    pieces: list[Piece]
    reports: list[FileReport]


def open_store(
    inputs: Sequence[str], *, cleaning: Cleaning, tokenizer: Tokenizer, tokenizer_hash: str, chapters: bool, words: bool, cache: Path,
    lines: bool = False, progress: Progress | None = None,
) -> TokenStore:  # fmt: skip
    """Open the token cache of these inputs, writing it first if it is not there; of several processes one writes and the others wait.

    inputs: files, folders or hub datasets, as for `read_documents`
    chapters: one piece per chapter instead of one per document, each encoded by itself
    words: also mark where jieba's words begin
    lines: each line of a .txt is a document of its own
    progress: called with (bytes read, bytes in all) as files are done
    Raises UserError for inputs without text and for a full disk; then nothing is left behind.
    """
    files = find_files([path for path in inputs if not path.startswith(HUB)])
    key = _key(files, [path for path in inputs if path.startswith(HUB)], cleaning, tokenizer_hash, chapters, words, lines)
    folder = cache / key
    numbers = {file.as_posix(): str(number) for number, file in enumerate(files)}
    if not folder.is_dir():
        total = sum(file.stat().st_size for file in files)
        reports: list[FileReport] = []
        documents = read_documents(inputs, cleaning, lines=lines, reports=reports)
        parts = _parts(documents, chapters, _has_border(tokenizer))

        def step() -> None:
            if progress is not None:
                progress(min(total, sum(report.n_bytes for report in reports)), total)

        try:
            cache.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                stack.enter_context(_alone(cache / f".{key}.lock"))
                if folder.is_dir():  # another process wrote it while this one waited
                    return _open(folder, words, {number: path for path, number in numbers.items()})
                temporary = tempfile.TemporaryDirectory(prefix=f"{key}.", dir=cache, ignore_cleanup_errors=True)
                written = Path(stack.enter_context(temporary)) / "store"
                written.mkdir()
                _write(written, parts, _whole(tokenizer), words, numbers, step)
                _write_rows(written / "reports.jsonl", ({**report_row(r), "path": _renamed(r.path, numbers)} for r in reports))
                _move(written, folder)
        except OSError as problem:
            if problem.errno not in NO_ROOM:
                raise
            raise UserError(
                str(cache), got="no space left on the disk", expected="room for the token cache, about twice the size of the text",
                do="free some space or put the cache elsewhere",
            ) from problem  # fmt: skip
    return _open(folder, words, {number: path for path, number in numbers.items()})


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the lock. Whoever waits for it meanwhile finds the store written."""
    try:
        with FileLock(lock):
            yield
    finally:
        with suppress(PermissionError):  # Windows: another process has it open
            lock.unlink(missing_ok=True)


def report_row(report: FileReport) -> dict[str, Any]:
    """A report as JSON can carry it: undecoded bytes as hex."""
    return {**asdict(report), "undecoded": [(offset, run.hex()) for offset, run in report.undecoded]}


def _key(
    files: list[Path], hub: list[str], cleaning: Cleaning, tokenizer_hash: str, chapters: bool, words: bool, lines: bool
) -> str:
    """Hex BLAKE2b-128 of everything the store depends on."""
    state = blake2b(digest_size=16)
    code = [Path(__file__), *sorted(Path(stylora.corpus.__path__[0]).glob("*.py"))]
    for path in [*code, *files]:
        state.update(json.dumps([path.name, _content(path)]).encode())
    settings = [[_hub_revision(spec) for spec in hub], cleaning.model_dump(), tokenizer_hash, chapters, words, lines]
    state.update(json.dumps(settings, sort_keys=True).encode())
    return state.hexdigest()


def _content(path: Path) -> str:
    state = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _hub_revision(spec: str) -> list[str]:
    """A hub dataset and its commit; a local dataset folder and its content. Raises UserError where neither can be had."""
    name, _ = hub_split(spec)
    if Path(name).is_dir():
        return [spec, *(_content(file) for file in sorted(Path(name).rglob("*")) if file.is_file())]
    from huggingface_hub import HfApi

    try:
        return [spec, str(HfApi().dataset_info(name).sha)]
    except OSError as problem:  # also every HTTP error of that library
        got = f"{type(problem).__name__}: {problem}"
        raise UserError(spec, got=got, expected="a dataset on the hub or in a folder") from problem


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a piece's text; the last one carries what is known of the piece."""

    text: str
    document: Document
    chapter: str
    characters: int
    last: bool


def _parts(documents: Iterable[Document], chapters: bool, border: bool) -> Iterator[_Part]:
    for document in documents:
        if chapters:
            pieces = [(chapter.title, document.text[chapter.start : chapter.end]) for chapter in find_chapters(document.text)]
        else:
            pieces = [("", document.text)]
        for title, text in pieces:
            cuts = part_ends(text) if border else [len(text)]
            for start, end in zip([0, *cuts], cuts, strict=False):
                yield _Part(text[start:end], document, title, len(text), end == len(text))


def part_ends(text: str, size: int = PART) -> list[int]:
    """Where the parts of a text end: at the first border `size` characters or more after the last; the end of the text."""
    ends = []
    at = size
    while (found := BORDER.search(text, at)) is not None:
        ends.append(found.start())
        at = found.start() + size
    return [*ends, len(text)]


def _has_border(tokenizer: Tokenizer) -> bool:
    """Does the tokenizer treat what stands before and after a border apart? SentencePiece with a prefix blank does not."""
    parts = BORDER.split(PROBE)
    assert len(parts) > 4
    encodings = tokenizer.encode_batch([PROBE, *parts], add_special_tokens=False)
    return encodings[0].ids == [token for encoding in encodings[1:] for token in encoding.ids]


def _whole(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without truncation and padding, which would lose or add tokens; the caller's stays as it is."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _write(
    folder: Path, parts: Iterator[_Part], tokenizer: Tokenizer, words: bool, numbers: dict[str, str], step: Callable[[], None]
) -> None:
    """Encode in one thread what is read and cleaned in this one; that one leaves the GIL alone, so neither waits."""
    encode = tokenizer.encode_batch if words else tokenizer.encode_batch_fast  # the fast one has no offsets
    with (
        (folder / "ids.bin").open("wb") as ids, (folder / "words.bin").open("wb") as starts,
        (folder / "pieces.jsonl").open("w", encoding="utf-8") as pieces, ThreadPoolExecutor(1) as thread,
    ):  # fmt: skip
        waiting: deque = deque()
        position = [0, 0]  # tokens before this piece, tokens before this part

        def finish() -> None:
            batch, future = waiting.popleft()
            for part, encoding in zip(batch, future.result(), strict=True):
                ids.write(np.fromiter(encoding.ids, np.int32, len(encoding)).data)
                if words:
                    starts.write(word_starts(part.text, encoding).data)
                position[1] += len(encoding)
                if part.last:
                    _write_piece(pieces, part, _renamed(part.document.origin, numbers), *position)
                    position[0] = position[1]
            step()

        for batch in _batches(parts):
            waiting.append((batch, thread.submit(encode, [part.text for part in batch], add_special_tokens=False)))
            if len(waiting) > WAITING:
                finish()
        while waiting:
            finish()


def _batches(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def word_starts(text: str, encoding: Encoding) -> np.ndarray:
    """uint8 [T]: 1 where the token begins at the character at which one of jieba's words begins.

    A token that goes on with a character (byte-level BPE splits rare ones) or with a word is 0.

        text    苏 | 踅 进 | 酒店          words by jieba
        tokens  苏 | 踅₁ | 踅₂ | 进 | 酒店
                1    1     0     0    1
    """
    import jieba

    jieba.setLogLevel("WARNING")
    lengths = [len(word) for word in jieba.cut(text)]
    assert sum(lengths) == len(text)
    begins = np.zeros(len(text) + 1, bool)
    begins[np.cumsum([0, *lengths])] = True
    at = np.array([offset for offset, _ in encoding.offsets], dtype=np.int64)
    return (begins[at] & np.append(True, at[1:] != at[:-1])[: len(at)]).astype(np.uint8)


def _write_piece(pieces: IO[str], part: _Part, origin: str, start: int, end: int) -> None:
    document = part.document
    piece = Piece(
        source=document.source, origin=origin, fingerprint=document.fingerprint, chapter=part.chapter, start=start, end=end,
        characters=part.characters,
    )  # fmt: skip
    pieces.write(json.dumps(asdict(piece), ensure_ascii=False) + "\n")


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _renamed(origin: str, names: dict[str, str]) -> str:
    """An origin with its file's other name; one of a hub dataset as it is."""
    ends = [len(origin), *(found.start() for found in INSIDE.finditer(origin))]
    return next((names[origin[:end]] + origin[end:] for end in ends if origin[:end] in names), origin)


def _move(written: Path, folder: Path) -> None:
    """Into place at once. Where another process was faster, its store is the same, and ours goes."""
    try:
        os.rename(written, folder)
    except OSError:
        if not folder.is_dir():
            raise


# ------------------------------------------------------------------------------------------------------------- reading


def _open(folder: Path, words: bool, paths: dict[str, str]) -> TokenStore:
    pieces, reports = [], []
    with (folder / "pieces.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            pieces.append(Piece(**{**row, "source": sys.intern(row["source"]), "origin": _renamed(row["origin"], paths)}))
    with (folder / "reports.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            row["path"] = _renamed(row["path"], paths)
            row["undecoded"] = [(offset, bytes.fromhex(run)) for offset, run in row["undecoded"]]
            row["removed"] = [tuple(item) for item in row["removed"]]
            row["bad_rows"] = [tuple(item) for item in row["bad_rows"]]
            reports.append(FileReport(**row))
    ids = np.asarray(np.memmap(folder / "ids.bin", np.int32, "r"))
    starts = np.asarray(np.memmap(folder / "words.bin", np.uint8, "r")) if words else None
    return TokenStore(folder=folder, ids=ids, words=starts, pieces=pieces, reports=reports)
