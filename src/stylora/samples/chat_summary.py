"""What became of rows of conversations: how many, how long, what of them is learned, and what the user should know of the split.

Counts and tells; reads nothing, splits nothing, prints nothing. What is looked for is `split_checks.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stylora.corpus.document import FileReport

from .conversations import GROUP, Conversation, Reject, learned_answers
from .encoded import Encoded
from .settings import Data
from .split_checks import contradictions, near_copies
from .store import report_row

NAMED = 5  # rows named in a sentence
LEAKS = 0.3  # share of near copies from which on the rows look as if they were made from fewer


@dataclass(frozen=True, kw_only=True)
class ChatSummary:
    """What became of the rows, for printing and for `--json`.

    conversations, held: for training and held out; answers: learned in training; trees: conversations of several paths
    epoch_samples, epoch_tokens, epoch_answer_tokens: of one epoch; the last are those that are predicted
    longest: tokens of the longest path; quoted: rows with special tokens in their messages, kept as text
    groups: different groups of the rows on both sides, 0 where no row has one; group_by: the key of the rows that names them
    balance: of labels, answer -> training rows that learn it, the most frequent first
    contradictions: for each question with different answers the rows that ask it, on both sides
    near_copies: held-out rows, of the `compared` ones, that ask a training question of the same answer in almost the same words
    rejects: rows that cannot be used; reports: of every input file; warnings: sentences for the user
    """

    conversations: int
    held: int
    answers: int
    trees: int
    epoch_samples: int
    epoch_tokens: int
    epoch_answer_tokens: int
    longest: int
    quoted: int
    groups: int
    group_by: str
    balance: dict[str, int]
    contradictions: tuple[tuple[str, ...], ...]
    near_copies: int
    compared: int
    rejects: tuple[Reject, ...]
    reports: tuple[FileReport, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it."""
        return {
            **asdict(self), "rejects": [reject.as_json() for reject in self.rejects],
            "reports": [report_row(report) for report in self.reports],
        }  # fmt: skip


def summarize(
    train: Sequence[Encoded], held: Sequence[Encoded], rejects: Sequence[Reject], reports: Sequence[FileReport], data: Data
) -> ChatSummary:
    """Count it all."""
    answers = [answer for each in train for path in each.paths for answer in path.answers]
    learned, asked = [each.conversation for each in train], [each.conversation for each in held]
    copies, compared = near_copies(learned, asked, data.seed)
    contradicting = tuple(contradictions([*learned, *asked]))
    groups = {row.group for row in [*learned, *asked]} - {None}
    return ChatSummary(
        conversations=len(train), held=len(held), answers=len(answers), trees=sum(len(each.paths) > 1 for each in train),
        epoch_samples=len(train), epoch_tokens=sum(each.length for each in train),
        epoch_answer_tokens=sum(len(answer.targets) + (not answer.stop) for answer in answers),
        longest=max(len(path.ids) for each in [*train, *held] for path in each.paths),
        quoted=sum(any(path.quoted for path in each.paths) for each in [*train, *held]),
        groups=len(groups), group_by=data.group_by or GROUP,
        balance=balance(learned, data.turns) if data.answers == "label" else {}, contradictions=contradicting,
        near_copies=copies, compared=compared, rejects=tuple(rejects), reports=tuple(reports),
        warnings=(
            *shared_warnings(learned, asked, data), *leak_warnings(copies, compared, bool(groups), data),
            *contradiction_warnings(contradicting), *(unseen_warnings(learned, asked, data.turns) if data.answers == "label" else ()),
        ),
    )  # fmt: skip


def balance(rows: Sequence[Conversation], turns: Literal["all", "last"]) -> dict[str, int]:
    """answer -> rows that learn it, the most frequent first. Calls of tools are no labels."""
    said = Counter(answer for row in rows for answer in labels_of(row, turns))
    return dict(sorted(said.items(), key=lambda item: (-item[1], item[0])))


def labels_of(row: Conversation, turns: Literal["all", "last"]) -> set[str]:
    """The different answers that a row teaches."""
    return {row.messages[number]["content"] for number in learned_answers(row, turns) if "content" in row.messages[number]}


def shared_warnings(train: Sequence[Conversation], held: Sequence[Conversation], data: Data) -> Iterator[str]:
    """What stands on both sides: rows, and groups, which only files of their own can share; and groups that cannot be parted."""
    known = {row.fingerprint for row in train}
    copies = sum(row.fingerprint in known for row in held)
    if copies:
        yield f"{copies:,} held-out conversations also stand in the training data: the loss measured on them will look too good"
    groups = {row.group for row in train if row.group is not None}
    both = sum(row.group in groups for row in held)
    if both:
        yield f"{both:,} held-out conversations are of groups that also stand in the training data: they tell nothing about unseen ones"
    if data.validation and not held:
        yield "nothing is held out: all rows are equal or of one group, which a share does not part"


def leak_warnings(copies: int, compared: int, grouped: bool, data: Data) -> Iterator[str]:
    """Rows that look as if they were made from fewer, and nobody said from which."""
    if compared and not grouped and copies / compared >= LEAKS:
        by_share = "set data.group_by to the key of the rows that names what they were made from"
        by_file = "hold out rows that were made from something else"
        yield (
            f"the split leaks: {copies / compared:.0%} of {compared:,} held-out conversations ask almost what a training row of the same "
            f"answer asks, as augmented rows do; {by_file if isinstance(data.validation, tuple) else by_share}"
        )


def contradiction_warnings(found: Sequence[Sequence[str]]) -> Iterator[str]:
    """Questions with different answers, the first few with their rows."""
    if found:
        named = "; ".join(", ".join(origins[:NAMED]) for origins in found[:NAMED])
        one = len(found) == 1
        yield f"{len(found):,} question{'' if one else 's'} with different answers, of which a model can learn one: {named}" + (
            "; ..." if len(found) > NAMED else ""
        )


def unseen_warnings(train: Sequence[Conversation], held: Sequence[Conversation], turns: Literal["all", "last"]) -> Iterator[str]:
    """Labels that are asked for and never taught."""
    known = balance(train, turns)
    unseen = [row.origin for row in held if not labels_of(row, turns) <= known.keys()]
    if unseen:
        have = "conversation has an answer" if len(unseen) == 1 else "conversations have answers"
        yield f"{len(unseen):,} held-out {have} that no training row has, and that can't be learned; the first is {unseen[0]}"
