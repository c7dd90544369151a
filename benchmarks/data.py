"""Preparing a corpus (read, decode, clean, chapters, encode, write) against the bare tokenizer on the same text; memory against size.

    tokenizer   Tokenizer.encode_batch_fast over text that lies in memory, in pieces of about 64 KB; its ids are thrown away
    stylora     samples/store.open_store with an empty cache: novels on disk -> token ids on disk; all cleaning on, jieba off

The corpus is made of the example texts: their clauses are halved and the halves joined anew, so that clauses, sentences and paragraphs are
new all through (a tokenizer that remembers words, and the removal of near-duplicates, have real work) but made of real Chinese. Every
fourth book is GB18030. MB are 1e6 bytes of the text in UTF-8, whatever its encoding on disk.

Imports no torch: the peak memory is that of preparing text.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import stylora
from stylora.corpus.clean import Cleaning
from stylora.samples.store import open_store

from .report import ROOT, Json, Measure, PeakMemory, answer, apart, row, take_turns

TINY_TOKENIZER = Path(stylora.__file__).with_name("model") / "tiny" / "tokenizer.json"
PIECE = 21_845  # characters: 64 KB of Chinese
PIECES_AT_ONCE = 64  # enough to keep every core busy to the end of a call; the encodings of all the text would take gigabytes
CLAUSE = re.compile(r"([^，。！？；：、“”「」『』‘’（）《》—…\s]{2,})([，。！？；])")
STOPS = "。！？"
SPEED = "megabytes_per_second"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """megabytes, files: of the corpus for throughput; rounds: of both sides

    small, large: MB of the two corpora for memory, one file per MB; tokenizer: a tokenizer.json
    """

    megabytes: int = 40
    files: int = 40
    rounds: int = 3
    small: int = 100
    large: int = 1000
    tokenizer: str = str(TINY_TOKENIZER)
    seed: int = 0


FULL = Settings()
QUICK = replace(FULL, megabytes=8, small=10, large=100)

NOTES = [
    "MB/s: 1e6 bytes of UTF-8 text a second, median of the rounds; the files were just written and lie in the page cache",
    "peak memory: of the whole process, Python and the tokenizer included",
    "aims: throughput_vs_tokenizer >= 0.8, memory flat (near 1)",
]


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it."""
    return compare(QUICK if options.quick else FULL, apart("benchmarks.data"))


def compare(settings: Settings, measure: Measure) -> Json:
    """Both sides in turns on one corpus, then stylora alone on a small and a large one; every corpus is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="stylora-benchmark-") as folder:
        size = write_corpus(Path(folder), settings.megabytes, settings.files, settings.seed)
        tasks = [task(settings, name, settings.megabytes, folder, size) for name in ("tokenizer", "stylora")]
        measured = take_turns(tasks, settings.rounds, measure)
    rows = [row(each, results, speed=SPEED) for each, results in zip(tasks, measured, strict=True)]
    for megabytes in (settings.small, settings.large):
        with tempfile.TemporaryDirectory(prefix="stylora-benchmark-") as folder:
            size = write_corpus(Path(folder), megabytes, megabytes, settings.seed)
            alone = task(settings, "stylora", megabytes, folder, size)
            rows.append(row(alone, [measure(alone)], speed=SPEED))
    shown = asdict(settings) | {"tokenizer": Path(settings.tokenizer).parent.name}
    return {"settings": shown, "rows": rows, "ratios": ratios(rows), "notes": NOTES}


def task(settings: Settings, contender: str, megabytes: int, folder: str, size: int) -> Json:
    """What a contender's process is told. size: bytes of the text in `folder`, in UTF-8"""
    return {
        "contender": contender, "variant": {"corpus_mb": megabytes}, "folder": folder, "bytes": size, "tokenizer": settings.tokenizer
    }  # fmt: skip


def ratios(rows: list[Json]) -> dict[str, float]:
    """Of four rows: tokenizer, stylora, stylora on the small corpus, stylora on the large one."""
    bare, whole, small, large = rows
    name = f"memory_{_size(large)}_vs_{_size(small)}"
    return {
        "throughput_vs_tokenizer": whole[SPEED] / bare[SPEED],
        name: large["peak_memory_mb"] / small["peak_memory_mb"],
    }


def _size(each: Json) -> str:
    megabytes = each["settings"]["corpus_mb"]
    return f"{megabytes // 1000}gb" if megabytes % 1000 == 0 else f"{megabytes}mb"


# --------------------------------------------------------------------------------------------------------- the corpus


def write_corpus(folder: Path, megabytes: int, files: int, seed: int) -> int:
    """Write `files` books of equal size, together at least `megabytes`; returns the bytes of their text in UTF-8."""
    fragments = Fragments.of_examples(seed)
    total = 0
    for number in range(files):
        text = fragments.book(number, megabytes * 1_000_000 // files)
        encoding = encoding_of(number)
        (folder / f"{number:04d} {encoding}.txt").write_text(text, encoding=encoding, newline="\n")
        total += len(text.encode("utf-8"))
    return total


def encoding_of(number: int) -> str:
    """Of a book: every fourth is GB18030, as novels are found."""
    return "gb18030" if number % 4 == 3 else "utf-8"


@dataclass(frozen=True, kw_only=True)
class Fragments:
    """Clauses cut in two: object arrays of strings. heads: beginnings; tails: ends with their mark; stops: tails that end a sentence"""

    heads: np.ndarray
    tails: np.ndarray
    stops: np.ndarray
    seed: int

    @staticmethod
    def of_examples(seed: int) -> Fragments:
        """From examples/wuxia and examples/modern, each clause cut at one random place."""
        texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*/*.txt"))]
        rng = np.random.default_rng(seed)
        heads, tails = [], []
        for words, mark in CLAUSE.findall("\n".join(texts)):
            cut = int(rng.integers(1, len(words)))
            heads.append(words[:cut])
            tails.append(words[cut:] + mark)
        return Fragments(
            heads=np.array(heads, object), tails=np.array(tails, object),
            stops=np.array([tail for tail in tails if tail[-1] in STOPS], object), seed=seed,
        )  # fmt: skip

    def book(self, number: int, n_bytes: int) -> str:
        """A book of at least `n_bytes` in UTF-8, in chapters of 40 paragraphs of 3 to 14 clauses."""
        rng = np.random.default_rng([self.seed, number])
        chapters: list[str] = []
        size = 0
        while size < n_bytes:
            chapters.append(f"第{len(chapters) + 1}章 {rng.choice(self.heads)}\n" + "".join(self.paragraphs(rng, 40)))
            size += len(chapters[-1].encode("utf-8"))
        return "\n".join(chapters)

    def paragraphs(self, rng: np.random.Generator, count: int) -> Iterator[str]:
        """head tail, head tail, ..., head stop and a newline."""
        ends = np.cumsum(rng.integers(3, 15, size=count))
        strings = np.empty(2 * ends[-1], object)
        strings[::2] = rng.choice(self.heads, size=ends[-1])
        strings[1::2] = rng.choice(self.tails, size=ends[-1])
        strings[2 * ends - 1] = rng.choice(self.stops, size=count) + "\n"
        yield from strings.tolist()


# ------------------------------------------------------------------------------------------------- a contender's process


def measure(task: Json) -> Json:
    """One pass over the corpus in `folder`."""
    run = {"tokenizer": run_tokenizer, "stylora": run_stylora}[task["contender"]]
    memory = PeakMemory()
    seconds, tokens = run(Path(task["folder"]), Path(task["tokenizer"]))
    return {
        SPEED: task["bytes"] / 1e6 / seconds, "seconds": seconds, "text_mb": task["bytes"] / 1e6, "tokens": tokens,
        "peak_memory_mb": memory.peak(), "peak_was_reset": memory.reset,
    }  # fmt: skip


def run_tokenizer(folder: Path, tokenizer_json: Path) -> tuple[float, int]:
    """(seconds, tokens) of encoding text that was read before the clock runs."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    texts = [path.read_text(encoding=path.stem.split()[1]) for path in sorted(folder.glob("*.txt"))]
    pieces = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    tokens = 0
    started = time.perf_counter()
    for at in range(0, len(pieces), PIECES_AT_ONCE):
        tokens += sum(map(len, tokenizer.encode_batch_fast(pieces[at : at + PIECES_AT_ONCE], add_special_tokens=False)))
    return time.perf_counter() - started, tokens


def run_stylora(folder: Path, tokenizer_json: Path) -> tuple[float, int]:
    """(seconds, tokens) of preparing the corpus with a cold cache."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    with tempfile.TemporaryDirectory(prefix="stylora-benchmark-") as cache:
        started = time.perf_counter()
        store = open_store(
            [str(folder)], cleaning=Cleaning(), tokenizer=tokenizer, tokenizer_hash=tokenizer_json.name, chapters=True, words=False,
            cache=Path(cache),
        )  # fmt: skip
        return time.perf_counter() - started, len(store.ids)


if __name__ == "__main__":
    answer(measure)
