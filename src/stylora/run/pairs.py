"""`stylora data pairs`: a novel goes in, rows of (plain words -> the author's) come out, to teach an instruct adapter to rewrite.

    novel     那汉子把酒碗一顿，道：“好酒！”            cut at sentence ends: samples/excerpts.py
    plain     那个男人放下酒碗，说酒很好。              a local model paraphrases: paraphraser.py; some are refused: evaluate/paraphrases.py
    row       user: 请把这段话写得像武侠小说：那个男人放下酒碗，说酒很好。    assistant: 那汉子把酒碗一顿，道：“好酒！”

The answers are the author's own words; what a model made up stands in the questions alone (back-translation, Sennrich et al. 2016, arXiv
1511.06709). Passages are asked in an order that the seed fixes, so that a longer list begins with the shorter one. Until all is there what
was written lies in `<output>.partial` (prediction_log.py).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console

from stylora.corpus.clean import Cleaning
from stylora.corpus.document import FileReport
from stylora.corpus.read import read_documents
from stylora.errors import UserError
from stylora.evaluate.paraphrases import refuse
from stylora.generate.settings import Sampling
from stylora.samples.excerpts import excerpts
from stylora.train.interruption import Interruption

from .folder import adapter_hash, write_text
from .open import find_model
from .paraphraser import TEXT, Paraphraser, Written
from .prediction_log import alone, append_rows, open_rows
from .show_prediction import progress

INSTRUCTIONS = ("把下面这段话改写成武侠小说的文风：", "请把这段话写得像武侠小说：", "用说书人的口气改写：")
PROMPT = (
    "把下面这段小说改写成平实的现代白话文：意思、人物和先后都不变，换掉古旧的字词和句式。只写改写后的文字，不要解释，不要分段。\n\n"
    "{text}"
)
KEYS = ("plain", "reason")  # of a line of the partial file: what was written, and why it can't be used


class Passage(NamedTuple):
    """text: the author's words; book: where they are from"""

    text: str
    book: str


class Writing(Protocol):
    """What is asked of a `Paraphraser`."""

    def write(self, passages: Sequence[str], first: int) -> Sequence[Written]: ...


@dataclass(frozen=True, kw_only=True)
class Asking:
    """All that the rows depend on, but for `batch_size`.

    shortest, longest: of a passage, in characters; instructions: openings of the user's turns, taken in turn
    prompt: how the model is asked, with {text} where the passage goes; sampling: how it answers, and the seed of the choice of passages
    base: replaces the base that an adapter names; batch_size: passages at once
    """

    shortest: int = 40
    longest: int = 120
    instructions: tuple[str, ...] = INSTRUCTIONS
    prompt: str = PROMPT
    sampling: Sampling = Sampling(temperature=0.0)
    base: str | None = None
    batch_size: int = 16
    trust_remote_code: bool = False


def make_pairs(
    model: str, novels: Sequence[str], output: Path, *, asking: Asking, console: Console, count: int | None = None,
    limit: int | None = None, force: bool = False, load: Callable[[str, Asking], Writing] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write pairs from `novels` to `output`, JSONL; tells what `show` prints.

    count: pairs that are enough; limit: passages that are asked at most; load: opens the model, a `Paraphraser` by default
    Raises UserError, and Interrupted where a signal ended it: the same call goes on.
    """
    partial = output.with_name(output.name + ".partial")
    _check(asking, output, partial, force)
    found = find_model(model, base=asking.base)
    with alone(output), Interruption() as interruption:
        reports: list[FileReport] = []
        digest = blake2b(digest_size=16)
        with interruption.at_once():
            passages = _in_order(list(_passages(novels, asking, reports, digest)), asking)
        header = {
            "stylora": "pairs", "base": found.base, "load_in_4bit": found.load_in_4bit,
            "adapters": [adapter_hash(folder) for folder in found.adapters], "weights": [layer.weight for layer in found.layers],
            "text": digest.hexdigest(), "min_chars": asking.shortest, "max_chars": asking.longest, "prompt": asking.prompt,
            "instructions": list(asking.instructions),
            **asking.sampling.model_dump(include={"temperature", "top_p", "seed"}),
        }  # fmt: skip
        run = _Run(partial, passages[:limit], open_rows(partial, header, KEYS, force=force), count)
        there = run.enough()
        with progress(console, count or len(run.passages), run.done()) as tell:
            seconds = run.go_on(lambda: (load or _paraphraser)(model, asking), asking.batch_size, interruption, tell)
        rows = list(run.rows(asking.instructions))
        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        partial.unlink()
    return _summary(output, passages, run, there, seconds, reports)


def _paraphraser(model: str, asking: Asking) -> Writing:
    return Paraphraser(
        model, prompt=asking.prompt, sampling=asking.sampling, base=asking.base, trust_remote_code=asking.trust_remote_code
    )


def _check(asking: Asking, output: Path, partial: Path, force: bool) -> None:
    if TEXT not in asking.prompt:
        raise UserError("--prompt", got=repr(asking.prompt), expected=f"{TEXT} in it, where the passage goes")
    if asking.shortest > asking.longest:
        raise UserError("--min-chars", got=str(asking.shortest), expected=f"at most --max-chars, {asking.longest}")
    if not all(map(str.strip, asking.instructions)):
        raise UserError("--instruction", got="nothing", expected="the opening of a user's turn")
    if output.suffix.lower() != ".jsonl" or output.is_dir() or not output.parent.is_dir():
        raise UserError("--output", got=str(output), expected="a .jsonl file in a folder that is there")
    if output.exists() and not partial.exists() and not force:
        raise UserError("--output", got=f"{output}, which is there already", expected="a new file", do="give --force to replace it")


def _passages(novels: Sequence[str], asking: Asking, reports: list[FileReport], digest: blake2b) -> Iterator[Passage]:
    """Those of all books, in the order of the text. digest: gets all that is read"""
    for document in read_documents(novels, Cleaning(), reports=reports):
        digest.update(json.dumps([document.source, document.text]).encode())
        for text in excerpts(document.text, shortest=asking.shortest, longest=asking.longest):
            yield Passage(text, document.source)


def _in_order(passages: list[Passage], asking: Asking) -> list[Passage]:
    """In the seed's order, each text once."""
    once = list({passage.text: passage for passage in reversed(passages)}.values())[::-1]
    if not once:
        raise UserError(
            "NOVEL", got=f"no whole sentences of {asking.shortest} to {asking.longest} characters in one paragraph", expected="some",
            do="lower --min-chars or raise --max-chars",
        )  # fmt: skip
    return [once[i] for i in np.random.default_rng(asking.sampling.seed).permutation(len(once))]


class _Run:
    """Passages that are paraphrased in order. lines: what came of them so far, as the partial file has it; count: pairs that are enough"""

    def __init__(self, partial: Path, passages: Sequence[Passage], lines: list[dict[str, Any]], count: int | None) -> None:
        self.partial, self.passages, self.lines, self.count = partial, passages, lines[: len(passages)], count

    def go_on(
        self, load: Callable[[], Writing], batch_size: int, interruption: Interruption, tell: Callable[[int], None]
    ) -> float:
        """Ask what is not asked yet, a batch at a time; gives the seconds it took without loading.

        A batch of which a part is known is asked whole again: what a model computes may depend on what else is in the batch.
        """
        writer, started = None, time.perf_counter()
        for first in range(len(self.lines) // batch_size * batch_size, len(self.passages), batch_size):
            if self.count is not None and self._pairs(len(self.lines)) >= self.count:
                break
            batch = self.passages[first : first + batch_size]
            with interruption.at_once():
                if writer is None:
                    writer = load()
                    started = time.perf_counter()
                written = writer.write([passage.text for passage in batch], first)
            judged = [_judged(passage, each) for passage, each in zip(batch, written, strict=True)]
            fresh = judged[len(self.lines) - first :]
            append_rows(self.partial, fresh)
            self.lines += fresh
            tell(self.done())
        return time.perf_counter() - started

    def enough(self) -> int:
        """How many passages it takes: all that were asked, or up to the last pair that is wanted."""
        if self.count is None:
            return len(self.lines)
        at = [number for number, line in enumerate(self.lines, 1) if line["reason"] is None]
        return at[self.count - 1] if len(at) >= self.count else len(self.lines)

    def done(self) -> int:
        """Of what the progress bar counts: pairs where so many are wanted, else passages."""
        return len(self.lines) if self.count is None else self._pairs(self.enough())

    def rows(self, instructions: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The pairs as conversations. The instructions take turns by the passage's number, so that a refused one moves no other."""
        for number in range(self.enough()):
            line, passage = self.lines[number], self.passages[number]
            if line["reason"] is None:
                asked = instructions[number % len(instructions)] + line["plain"]
                messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": passage.text}]
                yield {"kind": "rewrite", "messages": messages, "group": passage.book}

    def rejected(self) -> Counter[str]:
        """Reason -> how many."""
        return Counter(line["reason"] for line in self.lines[: self.enough()] if line["reason"] is not None)

    def _pairs(self, passages: int) -> int:
        return sum(line["reason"] is None for line in self.lines[:passages])


def _judged(passage: Passage, written: Written) -> dict[str, Any]:
    return {"plain": written.text, "reason": refuse(written.text, passage.text, stopped=written.stopped)}


def _summary(
    output: Path, passages: Sequence[Passage], run: _Run, there: int, seconds: float, reports: Sequence[FileReport]
) -> dict[str, Any]:  # fmt: skip
    asked, rejected = run.enough(), run.rejected()
    new = asked - there
    return {
        "output": str(output), "pairs": asked - sum(rejected.values()), "asked": asked, "rejected": dict(rejected.most_common()),
        "passages": len(passages), "books": len({passage.book for passage in passages}), "there_already": there,
        "skipped": {report.path: report.skipped for report in reports if report.skipped is not None},
        "undecoded": sum(len(report.undecoded) for report in reports), "seconds": round(seconds, 3),
        "passages_per_second": round(new / seconds, 2) if new else None,
    }  # fmt: skip
