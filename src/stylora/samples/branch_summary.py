"""What became of rows of trunks and branches: how many, how long, what of them is learned, and what the user should know.

Counts and tells; reads nothing, splits nothing, prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from stylora.corpus.document import FileReport

from .conversations import Reject
from .store import report_row

SHOWN = 20  # rows named; `--json` has them all


@dataclass(frozen=True, kw_only=True)
class BranchSummary:
    """What became of the rows, for printing and for `--json`.

    rows, held: for training and held out; alone: training rows that are a text without branches
    branches: of the training rows; duplicates: those of them that say what an earlier branch of their row says; most: of one row
    longest_trunk, longest_branch: tokens, on both sides
    epoch_samples, epoch_branches, epoch_tokens, epoch_learned_tokens: of the first epoch; later ones draw other branches
    quoted: rows on both sides with special tokens in their texts, which are read as plain text
    rejects: rows that cannot be used; reports: of every input file; warnings: sentences for the user
    """

    rows: int
    held: int
    alone: int
    branches: int
    duplicates: int
    most: int
    longest_trunk: int
    longest_branch: int
    epoch_samples: int
    epoch_branches: int
    epoch_tokens: int
    epoch_learned_tokens: int
    quoted: int
    rejects: tuple[Reject, ...]
    reports: tuple[FileReport, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it."""
        return {
            **asdict(self), "rejects": [reject.as_json() for reject in self.rejects],
            "reports": [report_row(report) for report in self.reports],
        }  # fmt: skip

    def told(self) -> Iterator[tuple[str, str]]:
        """(name, figures) of what is not used, of the rows, of an epoch and of the split, and the warnings."""
        for report in self.reports:
            if report.skipped is not None:
                yield "skipped", f"{report.path}: {report.skipped}"
        for reject in self.rejects[:SHOWN]:
            yield "refused", f"{reject.origin}: {reject.reason}"
        if len(self.rejects) > SHOWN:
            yield "refused", f"... and {len(self.rejects) - SHOWN:,} more rows; `stylora data --json` names them all"
        yield "rows", f"{self.rows:,} with {self.branches:,} branches, at most {self.most:,} in one" + (
            f"; {self.alone:,} of them a text without branches" if self.alone else ""
        )
        yield "longest", f"trunk {self.longest_trunk:,} tokens, branch {self.longest_branch:,} tokens"
        if self.held:
            yield "held out", f"{self.held:,} rows; rows of one trunk lie on one side"
        share = self.epoch_learned_tokens / self.epoch_tokens
        yield "epoch", (
            f"{self.epoch_samples:,} rows, {self.epoch_branches:,} branches, {self.epoch_tokens:,} tokens, "
            f"{self.epoch_learned_tokens:,} learned ({share:.1%})"
        )
        if self.duplicates:
            yield "repeated", f"{self.duplicates:,} branches say what an earlier branch of their row says; they are kept"
        if self.quoted:
            yield "quoted", f"{self.quoted:,} rows have special tokens in their texts; they are read as plain text"
        for warning in self.warnings:
            yield "warning", warning
