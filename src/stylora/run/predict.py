"""`stylora predict`: a column of a table goes in, the table with an answer for every row comes out.

Equal inputs are answered once, in batches that depend on the input alone: a table that was interrupted and gone on with is the table that
was not. Until all rows are there the answers lie in `<output>.partial` (`prediction_log`). Knows neither prompts nor labels: what answers
is a `Predictor`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from stylora.errors import UserError
from stylora.model.tokenizer_file import hash_file
from stylora.train.interruption import Interruption

from .folder import adapter_hash
from .open import find_model
from .prediction_files import NOTHING, Outcome, Table, read_table, write_table
from .prediction_log import alone, append, check_output, open_log
from .show_prediction import progress
from .task import TASK

SUFFIXES = (".csv", ".jsonl")
FREQUENT = 10  # answers named at the end
NUMBERED = re.compile(r"(?:input|question) (\d+)")  # where a `Predictor` refuses one of the inputs it was given


class Answer(Protocol):
    """What is taken of a `Prediction`."""

    @property
    def answer(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def known(self) -> bool: ...


class Answering(Protocol):
    """What is asked of a `Predictor`."""

    def predict(self, inputs: Sequence[str], /) -> Sequence[Answer]: ...


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the model is asked; all of it but `batch_size` changes what comes out.

    base: replaces the base that an adapter names; system: instead of the system prompt it was trained with
    template: the user's turn, with the cell where it says {text}
    threshold: 0..1, confidence below which `fallback` is the answer; None is the model's own
    constrain: nothing but labels of the set, or JSON of the schema, can be answered; batch_size: inputs at once
    """

    base: str | None = None
    system: str | None = None
    template: str = "{text}"
    threshold: float | None = None
    fallback: str = "unknown"
    constrain: bool = True
    batch_size: int = 32
    trust_remote_code: bool = False


def predict(
    model: str, source: Path, column: str, output: Path, *, asking: Asking, console: Console, limit: int | None = None, force: bool = False,
    load: Callable[[str, Asking], Answering] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Answer `column` of every row of `source` and write the table to `output`; tells what `show` prints.

    load: opens the model, once it is known that there is something to ask; a `Predictor` by default
    Raises UserError before the model is loaded, and Interrupted where a signal ended it: the same call goes on.
    """
    partial = output.with_name(output.name + ".partial")
    _check(source, output, partial, asking, force)
    table = read_table(source, column, limit=limit)
    with alone(output):
        header = _header(model, source, column, asking)
        run = _Run(partial, table, open_log(partial, header, force=force)[: len(table.rows)], asking.batch_size)
        there = len(run.outcomes)
        with Interruption() as interruption, progress(console, len(table.rows), there) as tell:
            seconds = run.go_on(lambda: (load or _predictor)(model, asking), interruption, tell)
            write_table(output, table, run.outcomes)
            partial.unlink()
    return _summary(output, table, run, there, seconds)


def _predictor(model: str, asking: Asking) -> Answering:
    from .predictor import Predictor

    return Predictor(model, **asdict(asking))


def _check(source: Path, output: Path, partial: Path, asking: Asking, force: bool) -> None:
    if "{text}" not in asking.template:
        raise UserError("--template", got=repr(asking.template), expected="{text} in it, where the cell goes")
    check_output(source, output, partial, SUFFIXES, force)


def _header(model: str, source: Path, column: str, asking: Asking) -> dict[str, Any]:
    """All that the answers depend on, so far as it is known without loading anything."""
    found = find_model(model, base=asking.base)
    settings = asdict(asking)
    for name in ("base", "batch_size", "trust_remote_code"):
        del settings[name]
    adapters = [[adapter_hash(layer.folder), layer.weight] for layer in found.layers]
    task = None if found.stack is None else found.stack.parent / TASK
    return {
        "base": found.base, "load_in_4bit": found.load_in_4bit, "adapters": adapters,
        "task": hash_file(task) if task is not None and task.is_file() else None, "input": hash_file(source), "column": column, **settings,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- answering


class _Run:
    """Rows that are answered in order.

    outcomes: those of the rows so far; refused: (row from 1, why) of inputs that could not be asked
    """

    def __init__(self, partial: Path, table: Table, outcomes: list[Outcome], batch_size: int) -> None:
        self.partial, self.texts, self.outcomes = partial, table.texts, outcomes
        different = list(dict.fromkeys(filter(None, table.texts)))
        self.batches = [different[i : i + batch_size] for i in range(0, len(different), batch_size)]
        self.refused: list[tuple[int, UserError]] = []
        done = zip(table.texts, outcomes, strict=False) if any(outcome != NOTHING for outcome in outcomes) else ()
        self.answered = {text: outcome for text, outcome in done if text}  # where all were refused they are asked again, to tell why

    def go_on(self, load: Callable[[], Answering], interruption: Interruption, tell: Callable[[int], None]) -> float:
        """Answer what is not answered yet, a batch at a time; gives the seconds it took without loading.

        A batch of which a part is known is asked whole again: what a model computes may depend on what else is in the batch.
        Raises UserError, leaving nothing to go on with, where not one input of the table could be asked: then the call is wrong.
        """
        predictor = None
        started = time.perf_counter()
        for batch in self.batches:
            if all(text in self.answered for text in batch):
                continue
            with interruption.at_once():
                if predictor is None:
                    predictor = load()
                    started = time.perf_counter()
                fresh = self._ask(predictor, batch)
            self.answered = fresh | self.answered
            self._write()
            tell(len(self.outcomes))
        if self.refused and all(outcome == NOTHING for outcome in self.answered.values()):
            self.partial.unlink()
            row, error = min(self.refused, key=lambda refused: refused[0])
            raise UserError(f"row {row}", got=error.got, expected=error.expected, do=error.do) from error
        self._write()
        return time.perf_counter() - started

    def _ask(self, predictor: Answering, batch: Sequence[str]) -> dict[str, Outcome]:
        """Their outcomes. One that cannot be asked, being too long, has none, and the others are asked without it."""
        left, refused = list(batch), {}
        while left:
            try:
                answers = predictor.predict(left)
            except UserError as error:
                numbered = NUMBERED.fullmatch(error.where)
                if numbered is None:
                    raise
                text = left.pop(int(numbered[1]) - 1)
                refused[text] = NOTHING
                self.refused.append((self.texts.index(text) + 1, error))
            else:
                return refused | {text: _outcome(answer) for text, answer in zip(left, answers, strict=True)}
        return refused

    def _write(self) -> None:
        """Put down the rows up to the first that has no answer yet."""
        ready = []
        for text in self.texts[len(self.outcomes) :]:
            outcome = self.answered.get(text) if text else NOTHING
            if outcome is None:
                break
            ready.append(outcome)
        append(self.partial, ready)
        self.outcomes += ready


def _outcome(answer: Answer) -> Outcome:
    return Outcome(answer.answer, round(float(answer.confidence), 4), bool(answer.known))


def _summary(output: Path, table: Table, run: _Run, there: int, seconds: float) -> dict[str, Any]:
    """Shares and the mean are of the rows that were answered; None where none was."""
    outcomes, empty = run.outcomes, table.texts.count("")
    told = [outcome for outcome in outcomes if outcome.confidence is not None]
    count = Counter(outcome.prediction for outcome in told)
    new = len(outcomes) - there
    refused = [{"row": row, "reason": f"got {error.got}, expected {error.expected}"} for row, error in run.refused]
    return {
        "output": str(output), "rows": len(outcomes), "different": len(set(filter(None, table.texts))), "empty": empty,
        "unanswered": len(outcomes) - len(told) - empty, "refused": refused,
        "there_already": there, "undecoded": table.undecoded,
        "seconds": round(seconds, 3), "rows_per_second": round(new / seconds, 1) if new else None,
        "known": sum(outcome.known for outcome in told) / len(told) if told else None,
        "confidence": sum(outcome.confidence or 0.0 for outcome in told) / len(told) if told else None,
        "answers": [{"prediction": answer, "rows": n, "share": n / len(told)} for answer, n in count.most_common(FREQUENT)],
    }  # fmt: skip
