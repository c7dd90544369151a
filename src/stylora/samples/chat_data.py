"""Rows of conversations -> the samples of every epoch: read, split by conversation, put into the base's template, shuffled.

    files -> conversations (training | held out) -> paths of tokens -> samples; what cannot be used -> rejects, with line and reason

A row longer than `max_length` is refused: an answer that was cut teaches to stop anywhere. Equal rows and rows of one group lie on one
side of the split (`splits.py`); whether the split tells the truth is looked at once (`split_checks.py`).
Epochs are drawn from (seed, epoch) alone; every conversation stands in each.

Knows no batches and no model, and writes nothing: `rejects` is for whoever writes the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from stylora.corpus.document import FileReport
from stylora.corpus.rows import HUB
from stylora.errors import UserError
from stylora.forest import Sample

from .chat import ChatFormat
from .chat_summary import NAMED, ChatSummary, summarize
from .conversations import GROUP, Reject, read_conversations, row_files
from .encoded import Encoded, characters, encode
from .settings import Data, as_list
from .splits import held_out, subset

PART = "answers"
PROVED = 32  # conversations whose answers are decoded and compared before training


class ChatData:
    """The training conversations of a `data` section, by index, and those held out.

    lengths: int64 [N], tokens of each sample
    validation_samples: {"answers": the held-out samples}; validation_characters: {"answers": characters of what they teach}
    train_rows, held_rows: the conversations themselves, in the same order, their answers in the form that is learned
    rejects: rows that cannot be used, with file, line and reason
    summary: what became of the data
    """

    def __init__(self, form: ChatFormat, data: Data, train: Sequence[Encoded], held: Sequence[Encoded], summary: ChatSummary) -> None:
        self._form, self._turns, self._seed, self._train, self._held = form, data.turns, data.seed, train, held
        self.summary, self.rejects = summary, summary.rejects
        self.train_rows = tuple(each.conversation for each in train)
        self.held_rows = tuple(each.conversation for each in held)
        self.lengths = np.array([each.length for each in train], np.int64)
        self.validation_characters: dict[str, list[float]] = {PART: [float(characters(each)) for each in held]}
        seen: Counter[str] = Counter()
        self._copies = [_count(seen, each.conversation.fingerprint) for each in train]

    def __len__(self) -> int:
        return len(self._train)

    def epoch(self, epoch: int) -> np.ndarray:
        """int64 [N]: indices of the training conversations of this epoch (0..) in training order."""
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._train))

    def sample(self, index: int) -> Sample:
        """A training conversation as a chain, or as a tree where its answers were given to different texts."""
        return self._form.sample(self._train[index].paths)

    def part(self, index: int) -> str:
        """`answers`, of all of them."""
        return PART

    def source(self, index: int) -> str:
        """File and line of the row."""
        return self._train[index].conversation.origin

    def sample_id(self, index: int) -> tuple[int, int]:
        """(a hash >= 0 of the row that fits int64, which of several equal rows it is), the same whatever else is in the data."""
        return int(self._train[index].conversation.fingerprint[:16], 16) >> 1, self._copies[index]

    @property
    def branches(self) -> str | None:
        """Where the first conversation of several paths stands, on either side; None where every one is a chain."""
        return next((each.conversation.origin for each in [*self._train, *self._held] if len(each.paths) > 1), None)

    @cached_property
    def validation_samples(self) -> dict[str, list[Sample]]:
        """{"answers": the held-out conversations}."""
        return {PART: [self._form.sample(each.paths) for each in self._held]}

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of every token and weight, on either side, and of how epochs are drawn: equal for equal training."""
        digest = blake2b(repr((self._seed, len(self._train))).encode(), digest_size=16)
        for each in [*self._train, *self._held]:
            for path in each.paths:
                digest.update(path.ids.tobytes())
                for answer in path.answers:
                    digest.update(answer.targets.tobytes() + repr((answer.weight, answer.stop)).encode())
        return digest.hexdigest()

    def proof(self) -> str:
        """Decode what is learned of some rows, drawn by the seed, and say that it is what they answer. Raises UserError where it is not."""
        rows = np.random.default_rng(self._seed).permutation(len(self._train))[:PROVED].tolist()
        answers = sum(self._form.prove(self._train[row].conversation, self._turns) for row in rows)
        return f"answers decode to answer + stop: {answers:,} of {len(rows):,} rows"


def prepare_chat(
    data: Data, *, form: ChatFormat, context: int, progress: Callable[[int, int], None] | None = None
) -> ChatData:
    """Read, split and encode the conversations of a `data` section.

    form: how the base writes them; context: longest input of the base, tokens; progress: called with (bytes read, in all)
    Raises UserError: a `max_length` above the context, no usable row, no training row left, files that are all held out, a `group_by` that
    no row has, and whatever reading raises.
    """
    assert not isinstance(data.train, dict), "the settings refuse styles of conversations"
    limit = data.max_length or context
    if limit > context:
        expected = f"at most {context} tokens, the context of the base"
        raise UserError("data.max_length", got=f"{limit} tokens", expected=expected, do="lower data.max_length")
    reports: list[FileReport] = []
    rejects: list[Reject] = []

    def encoded(paths: list[str], leave_out: Sequence[Path] = ()) -> list[Encoded]:
        found = []
        for row in read_conversations(paths, reports=reports, leave_out=leave_out, group_by=data.group_by or GROUP, progress=progress):
            each = row if isinstance(row, Reject) else encode(row, form, data, limit)
            if isinstance(each, Reject):
                rejects.append(each)
            else:
                found.append(each)
        return found

    named = list(data.validation) if isinstance(data.validation, tuple) else []
    rows = encoded(as_list(data.train), [file for path in named if not path.startswith(HUB) for file in row_files(path)])
    if named and not reports:
        raise UserError(
            "data.train", got="only files that are held out", expected="a file of training rows beside them",
            do="hold out other rows; `stylora evaluate` without --held-out measures those that the recipe holds out",
        )  # fmt: skip
    train, held = (rows, encoded(named)) if named else split(rows, data.validation, data.seed)
    if data.group_by and rows and not any(row.conversation.group for row in rows):
        expected = "a key of the rows, beside their messages, that says what a row was made from"
        raise UserError("data.group_by", got=f"'{data.group_by}', which no row has", expected=expected)
    train = [train[i] for i in subset(len(train), data.fraction, data.seed)]
    for where, side in (("data.train", train), ("data.validation", held)):
        if not side and (side is train or named):
            first = "; ".join(f"{reject.origin}: {reject.reason}" for reject in rejects[:NAMED])
            got = f"no usable conversation ({first or 'no rows'})"
            raise UserError(where, got=got, expected="rows of messages, or another form that is read", do="see `stylora data`")
    return ChatData(form, data, train, held, summarize(train, held, rejects, reports, data))


def split(rows: Sequence[Encoded], share: object, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Training and held-out rows, as `splits.held_out` decides."""
    assert isinstance(share, float | int)
    sides: tuple[list[Encoded], list[Encoded]] = ([], [])
    for row, held in zip(rows, held_out([row.conversation for row in rows], share, seed), strict=True):
        sides[held].append(row)
    return sides


def _count(seen: Counter[str], name: str) -> int:
    """How often the name came before."""
    seen[name] += 1
    return seen[name] - 1
