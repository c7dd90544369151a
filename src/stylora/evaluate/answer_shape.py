"""Does an answer look like those of the training rows? Its lines, its length, how it ends, and that it is not the template's own text.

    lines      at most as many as the longest answer has
    length     characters between half the 1st percentile and twice the 99th
    ending     one of the final characters that 1 % of the answers end with, where 95 % of them end with punctuation
    template   no name of a role and no special token, but for those that answers have themselves
    stopped    it ended by itself

The shape is learned from the answers alone: nobody annotates anything. It says that a model answers as it was taught to, in form; whether
the answer is right or good it does not know. Knows no tokenizers and no models.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Breach = Literal["ran on", "template", "lines", "length", "ending"]
ROLES = ("system", "user", "assistant")
PUNCTUATED = 0.95  # share of answers that end with punctuation, from which on endings count
USUAL = 0.01  # share of answers that a final character ends, to be a usual one


@dataclass(frozen=True, kw_only=True)
class AnswerShape:
    """What answers look like; made by `learn_shape`.

    lines: most of an answer; shortest, longest: characters, both allowed; endings: final characters, sorted, None where any will do
    marks: texts of the template that no answer has
    """

    lines: int
    shortest: int
    longest: int
    endings: tuple[str, ...] | None
    marks: tuple[str, ...]

    def breach(self, text: str, *, stopped: bool, written: str | None = None) -> Breach | None:
        """The first thing that sets an answer apart; None where nothing does.

        stopped: it ended by itself; written: the same with the special tokens that were drawn, where a text leaves them out
        """
        body = text.strip()
        if not stopped:
            return "ran on"
        if any(mark in (written or text) for mark in self.marks):
            return "template"
        if count_lines(body) > self.lines:
            return "lines"
        if not self.shortest <= len(body) <= self.longest:
            return "length"
        if self.endings is not None and body[-1:] not in self.endings:
            return "ending"
        return None

    def as_json(self) -> dict[str, Any]:
        """Its fields, marks left out: they are the tokenizer's."""
        endings = None if self.endings is None else list(self.endings)
        return {"lines": self.lines, "shortest": self.shortest, "longest": self.longest, "endings": endings}


def learn_shape(answers: Sequence[str], special: Iterable[str]) -> AnswerShape:
    """The shape of the answers of training, at least one. special: the tokenizer's special tokens, as text

    >>> learn_shape(["他去了。"] * 20, ["<|im_end|>"]).as_json()
    {'lines': 1, 'shortest': 2, 'longest': 8, 'endings': ['。']}
    """
    bodies = [answer.strip() for answer in answers]
    assert bodies and all(bodies), "an answer of training is never empty"
    low, high = np.percentile([len(body) for body in bodies], [1, 99])
    return AnswerShape(
        lines=max(map(count_lines, bodies)), shortest=int(np.ceil(low / 2)), longest=int(np.floor(high * 2)), endings=_endings(bodies),
        marks=tuple(mark for mark in (*ROLES, *special) if mark and not any(mark in body for body in bodies)),
    )  # fmt: skip


def count_lines(text: str) -> int:
    """Lines with something in them: an empty line between paragraphs is none."""
    return sum(bool(line.strip()) for line in text.splitlines())


def _endings(bodies: Sequence[str]) -> tuple[str, ...] | None:
    """The usual final characters; None where answers end with anything."""
    last = Counter(body[-1] for body in bodies)
    marked = sum(count for letter, count in last.items() if unicodedata.category(letter).startswith("P"))
    if marked < PUNCTUATED * len(bodies):
        return None
    return tuple(sorted(letter for letter, count in last.items() if count >= USUAL * len(bodies)))
