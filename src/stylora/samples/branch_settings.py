"""The recipe's `branches` section: how continuations of one trunk see each other, and where they stand.

What is said here holds in training and in use alike, so it goes into the adapter's configuration. Knows no tokens and no model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Visibility = Literal["isolated", "columnar"]


class Branches(BaseModel, frozen=True, extra="forbid"):
    """How branches are laid out.

    visibility: `isolated`, a branch sees its trunk and itself, as if it were alone; `columnar`, it also sees what every other branch of
        its trunk said at earlier times
    rope_2d_ratio: share of the rotary pairs, slowest first, that carry the branch's own coordinate, 0..1; 0 leaves the base as it is
    branch_stride: distance between the coordinates of neighbouring branches, in positions; larger turns the pairs further apart
    positions: what the chosen pairs turn by: `replace`, the coordinate alone (trunk 0, branches from 1 x stride on); `add`, time +
        coordinate (branches from 0 on, so that a single one is as the base has it)
    fork: the one token that opens branches without a prompt: what they begin with is predicted from it
    """

    visibility: Visibility = "isolated"
    rope_2d_ratio: float = Field(default=0.5, ge=0, le=1)
    branch_stride: int = Field(default=128, ge=1)
    positions: Literal["replace", "add"] = "replace"
    fork: str = Field(default="\n", min_length=1)

    def coordinate(self, number: int) -> int:
        """The coordinate of the branch with this number, from 0, in its row; 0 for all where nothing carries it."""
        if self.rope_2d_ratio == 0:
            return 0
        return self.branch_stride * (number + (self.positions == "replace"))


def place(branches: Branches | None) -> str:
    """Where branches stand, in words; the same words are the same positions."""
    if branches is None or branches.rope_2d_ratio == 0:
        return "the base's own positions"
    return f"rope_2d_ratio {branches.rope_2d_ratio:g}, branch_stride {branches.branch_stride}, positions {branches.positions}"
