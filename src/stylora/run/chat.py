"""`stylora data` of conversations: every file, every row that cannot be used with its reason, the split, the tokens of the answers.

The same reading as in training. Imports no torch and opens no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylora.corpus.document import FileReport
from stylora.samples.chat_summary import ChatSummary
from stylora.samples.conversations import Reject
from stylora.samples.settings import Data

SHOWN = 20  # rows and labels named; `--json` has them all


@dataclass(frozen=True, kw_only=True)
class ChatScan:
    """What a stage's conversations are. base: whose template wrote them and whose tokenizer counted"""

    base: str
    data: Data
    summary: ChatSummary

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it: also every row that cannot be used."""
        told = self.summary.as_json()
        return {"base": self.base, "data": self.data.model_dump(mode="json"), "files": told.pop("reports"), **told}


def show_chat(found: ChatScan, console: Console) -> None:
    """The table of files, the rows that cannot be used, and the account of the whole."""
    show_files(found.summary.reports, found.summary.rejects, console, rows="conversations")
    for name, told in [*account_of_chat(found.summary), *balance_of_labels(found.summary)]:
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)


def show_files(reports: Sequence[FileReport], rejects: Sequence[Reject], console: Console, *, rows: str) -> None:
    """A line for each file: encoding, usable rows and refused ones. rows: what they are called"""
    refused = [reject.origin.rpartition(":")[0] for reject in rejects]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("encoding", overflow="fold")
    for column in (rows, "refused"):
        table.add_column(column, justify="right", no_wrap=True)
    for report in reports:
        bad = refused.count(report.path)
        table.add_row(Text(report.path), report.skipped or report.encoding, f"{report.counts.get('rows', 0) - bad:,}", f"{bad:,}")
    console.print(table)


def account_of_chat(summary: ChatSummary) -> Iterator[tuple[str, str]]:
    """(name, figures) of the split, of an epoch and of what is not used, and the warnings."""
    for reject in summary.rejects[:SHOWN]:
        yield "refused", f"{reject.origin}: {reject.reason}"
    if len(summary.rejects) > SHOWN:
        yield "refused", f"... and {len(summary.rejects) - SHOWN:,} more rows; `stylora data --json` names them all"
    yield "answers", (
        f"{summary.answers:,} in {summary.conversations:,} conversations of at most {summary.longest:,} tokens"
        + (f", {summary.trees:,} of them of several texts, where the template writes history anew" if summary.trees else "")
    )
    if summary.held:
        yield "held out", f"{summary.held:,} conversations"
        yield "copies", (
            f"{summary.near_copies:,} of {summary.compared:,} held-out conversations ask almost what a training row of the same answer asks"
        )
    if summary.groups:
        yield "groups", f"{summary.groups:,} by the key `{summary.group_by}`, each on one side of a split"
    yield "epoch", (
        f"{summary.epoch_samples:,} conversations, {summary.epoch_tokens:,} tokens, "
        f"{summary.epoch_answer_tokens:,} of them learned ({summary.epoch_answer_tokens / summary.epoch_tokens:.1%})"
    )
    if summary.quoted:
        yield "quoted", f"{summary.quoted:,} conversations have special tokens in their messages; they are read as plain text"
    for warning in summary.warnings:
        yield "warning", warning


def balance_of_labels(summary: ChatSummary) -> Iterator[tuple[str, str]]:
    """(name, figures) of each label, the most frequent first: the training rows that learn it, and their share."""
    total = sum(summary.balance.values())
    for label, count in list(summary.balance.items())[:SHOWN]:
        yield "label", f"{count:>7,} {count / total:>6.1%}  {label}"
    if len(summary.balance) > SHOWN:
        yield "label", f"... and {len(summary.balance) - SHOWN:,} more; `stylora data --json` counts them all"
