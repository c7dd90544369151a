"""`stylora data` of branches: every file, every row that cannot be used with its reason, trunks and branches, what an epoch reads.

The same reading as in training. Imports no torch and opens no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from stylora.samples.branch_settings import Branches
from stylora.samples.branch_summary import BranchSummary
from stylora.samples.settings import Data

from .chat import show_files


@dataclass(frozen=True, kw_only=True)
class BranchScan:
    """What a stage's trunks and branches are. base: whose tokenizer counted; branches: how they are laid out"""

    base: str
    data: Data
    branches: Branches
    summary: BranchSummary

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it: also every row that cannot be used."""
        told = self.summary.as_json()
        sections = {"data": self.data.model_dump(mode="json"), "branches": self.branches.model_dump(mode="json")}
        return {"base": self.base, "files": told.pop("reports"), "branches_there": told.pop("branches"), **told, **sections}


def show_branches(found: BranchScan, console: Console) -> None:
    """The table of files, the rows that cannot be used, and the account of the whole."""
    show_files(found.summary.reports, found.summary.rejects, console, rows="rows")
    for name, told in found.summary.told():
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)
