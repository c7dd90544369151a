"""`stylora data mix`: a folder of novels and a general text -> one shuffled JSONL, in the form of the `mix_data.py` people know.

Rows are `{"text", "source", "file"}`: a passage of bounded length cut at paragraph borders, the book's name (or `general`), and the file it
came from. Each line of a general .txt is a text of its own, which no passage runs across, as `mix_data.py` has them. The share of general
text is a share of characters, or of tokens where a tokenizer is given; a count of paragraphs, as `mix_data.py` took it, says nothing where
a novel without blank lines is one paragraph.

Recipes do not need this file: they mix by themselves, by tokens and afresh each epoch. Knows no splits and no windows.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from stylora.corpus.clean import Cleaning
from stylora.corpus.document import Document, FileReport
from stylora.corpus.read import find_files, read_documents
from stylora.errors import UserError

from .settings import check_ratio
from .store import NO_ROOM

_SENTENCE_END = re.compile(r"[。！？…!?]+[」』”’）)]*")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What was written. style_rows, general_rows: passages; unit: `characters` or `tokens`; general_share: in that unit, 0..1"""

    output: str
    style_rows: int
    general_rows: int
    unit: str
    general_share: float
    reports: tuple[FileReport, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Spool:
    """Rows in the order they were read, in a file: offsets and sizes (characters or tokens) of each, int64 [N]."""

    file: BinaryIO
    offsets: np.ndarray
    sizes: np.ndarray


def write_mix(
    data_dir: str | Path, general_file: str | Path | None, output: str | Path, general_ratio: float, seed: int = 0, *,
    passage: int = 1000, general_repeat: bool = False, tokenizer: Tokenizer | None = None, cleaning: Cleaning | None = None,
) -> Mix:  # fmt: skip
    """Write the mix to `output`, at once and whole or not at all.

    data_dir: novels; `general_file` and `output` are left out where they lie in it
    general_ratio: share of general text, 0 <= r < 1, in characters, or in tokens with a `tokenizer`
    passage: longest row, in characters; general_repeat: may general passages repeat where there are too few
    Raises UserError for a bad ratio, missing or unusable input, and a full disk.
    """
    check_ratio("--general_ratio", general_ratio)
    if general_ratio and general_file is None:
        raise UserError("--general_file", got="nothing", expected=f"general text for a ratio of {general_ratio}", do="name a file")
    output, cleaning = Path(output), cleaning or Cleaning()
    general = find_files([general_file]) if general_file is not None else []
    apart = {file.resolve() for file in [*general, output]}
    novels = [file for file in find_files([data_dir]) if file.resolve() not in apart]
    if not novels:
        raise UserError(str(data_dir), got="nothing but the general file and the output", expected="novels")
    reports: list[FileReport] = []
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent, ignore_cleanup_errors=True) as folder:
            temporary = Path(folder)
            with (temporary / "style").open("w+b") as one, (temporary / "general").open("w+b") as other:
                style = _spool(one, _rows(read_documents(novels, cleaning, reports=reports), None, passage), tokenizer)
                passed = read_documents(general, cleaning, lines=True, reports=reports) if general and general_ratio else ()
                background = _spool(other, _rows(passed, "general", passage), tokenizer)
                rng = np.random.default_rng(seed)
                picked = _pick(background.sizes, general_ratio / (1 - general_ratio) * style.sizes.sum(), general_repeat, rng)
                _copy(temporary / "mix", style, background, picked, rng)
            os.replace(temporary / "mix", output)
    except OSError as problem:
        if problem.errno not in NO_ROOM:
            raise
        raise UserError(
            str(output), got="no space left on the disk", expected="room for about twice the text", do="free some space"
        ) from problem
    return _account(output, style, background, picked, general_ratio, tokenizer, reports)


def passages(text: str, size: int) -> Iterator[str]:
    """The text in passages of at most `size` characters, cut after the last newline that fits, else after the last sentence, else
    hard. Nothing is lost but the newlines at the cuts; blank passages are left out."""
    at = 0
    while at < len(text):
        end = min(at + size, len(text))
        if end < len(text) and text[end] != "\n":
            newline = text.rfind("\n", at + 1, end)
            sentences = [match.end() for match in _SENTENCE_END.finditer(text, at, end)] if newline < 0 else []
            end = newline if newline >= 0 else sentences[-1] if sentences else end
        if passage := text[at:end].strip("\n"):
            yield passage
        at = end


def _rows(documents: Iterable[Document], source: str | None, size: int) -> Iterator[tuple[str, dict[str, str]]]:
    for document in documents:
        for text in passages(document.text, size):
            yield text, {"text": text, "source": source or document.source, "file": document.origin}


def _spool(file: BinaryIO, rows: Iterator[tuple[str, dict[str, str]]], tokenizer: Tokenizer | None) -> _Spool:
    """To disk first: a shuffle in memory would hold the whole corpus."""
    offsets, sizes = [0], []
    for text, row in rows:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
        file.write(line)
        offsets.append(offsets[-1] + len(line))
        sizes.append(len(text) if tokenizer is None else len(tokenizer.encode(text, add_special_tokens=False).ids))
    return _Spool(file, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64))


def _pick(sizes: np.ndarray, target: float, repeat: bool, rng: np.random.Generator) -> np.ndarray:
    """Indices of general passages whose sizes sum to the target, to within half a passage; none twice unless `repeat`."""
    if not len(sizes):
        return np.empty(0, np.int64)
    rounds = 1 + int(target // sizes.sum()) if repeat else 1
    order = np.concatenate([rng.permutation(len(sizes)) for _ in range(rounds)])
    sums = np.concatenate([[0], np.cumsum(sizes[order])])
    return order[: int(np.abs(sums - target).argmin())]


def _copy(path: Path, style: _Spool, general: _Spool, picked: np.ndarray, rng: np.random.Generator) -> None:
    order = [(style, number) for number in range(len(style.sizes))] + [(general, int(number)) for number in picked]
    with path.open("wb") as output:
        for place in rng.permutation(len(order)):
            spool, number = order[place]
            spool.file.seek(spool.offsets[number])
            output.write(spool.file.read(spool.offsets[number + 1] - spool.offsets[number]))


def _account(
    output: Path, style: _Spool, general: _Spool, picked: np.ndarray, ratio: float, tokenizer: Tokenizer | None,
    reports: list[FileReport],
) -> Mix:  # fmt: skip
    amount = int(general.sizes[picked].sum())
    total = amount + int(style.sizes.sum())
    largest = int(general.sizes.max(initial=0))
    warnings = []
    if ratio * total - amount > largest:
        warnings.append(
            f"general text is short: all of it is {amount / total:.2%} instead of {ratio:.2%}; add general text or allow repetition"
        )
    return Mix(
        output=str(output), style_rows=len(style.sizes), general_rows=len(picked), unit="tokens" if tokenizer else "characters",
        general_share=amount / total, reports=tuple(reports), warnings=tuple(warnings),
    )  # fmt: skip
