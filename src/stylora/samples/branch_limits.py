"""What of a row of branches fits: into `max_seq_len`, into the base's context, and where its coordinates may lie.

    path          trunk + longest branch, in tokens             at most the context
    replace       stride x number of the last branch, from 1    at most the context
    add           path + stride x number of the last, from 0    at most the context

A row that does not fit is refused whole; settings that can fit nothing are refused at once. Knows no files and no text.
"""

from __future__ import annotations

from stylora.errors import UserError

from .branch_rows import BadRow
from .branch_settings import Branches
from .branches import Tree
from .settings import Data


def most_branches(data: Data) -> int:
    """The most branches that a sample may have."""
    return data.branches_per_sample if data.max_branches_per_sample is None else data.max_branches_per_sample


def largest(tree: Tree, most: int) -> int:
    """Tokens of the tree with its `most` longest branches."""
    return len(tree.trunk) + sum(sorted((len(branch.ids) for branch in tree.branches), reverse=True)[:most])


def check_coordinates(data: Data, branches: Branches, context: int) -> None:
    """Raises UserError where the coordinates of as many branches as a sample may have cannot lie in the context."""
    last = branches.coordinate(most_branches(data) - 1)
    if last > context or (branches.positions == "add" and last == context):
        where = "branches_per_sample" if data.max_branches_per_sample is None else "max_branches_per_sample"
        raise UserError(
            "branches.branch_stride", got=f"{branches.branch_stride}, which puts branch {most_branches(data)} at {last:,}",
            expected=f"coordinates within the context of the base, {context:,} tokens", do=f"lower it, or data.{where}",
        )  # fmt: skip


def refuse_long(tree: Tree, data: Data, branches: Branches, context: int) -> None:
    """Raises BadRow for a branch over `max_seq_len`, and for a path, or its coordinates, past the context."""
    for number, branch in enumerate(tree.branches, 1):
        if len(branch.ids) > data.max_seq_len:
            most = f"data.max_seq_len, {data.max_seq_len:,}"
            raise BadRow(f"branch {number} has {len(branch.ids):,} tokens, more than {most}; it is never cut")
    path = len(tree.trunk) + tree.longest
    if path > context:
        what = "main and the longest branch have" if tree.branches else "the text has"
        raise BadRow(f"{what} {path:,} tokens, more than the context of the base, {context:,}; nothing is cut")
    last = branches.coordinate(min(len(tree.branches), most_branches(data)) - 1) if tree.branches else 0
    if branches.positions == "add" and path + last > context:
        raise BadRow(f"{path:,} tokens and the coordinate {last:,} of the last branch lie past the context of the base, {context:,}")
