"""Rows of trunks and branches -> the samples of every epoch: read, split by trunk, put into tokens, branches drawn, shuffled.

    files -> rows -> trees of tokens (training | held out) -> samples; what cannot be used -> rejects, with line and reason

A row that does not fit is refused (`branch_limits.py`): an answer that was cut teaches to stop anywhere. Rows of one trunk lie on one side
of the split. Of a row with more branches than `branches_per_sample` every epoch draws others, from (seed, epoch, row) alone; they stand in
the row's order, and their coordinates count those that were drawn. Held-out rows are read with their first branches.

Knows no batches and no model, and writes nothing: `rejects` is for whoever writes the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from stylora.corpus.document import FileReport
from stylora.corpus.rows import HUB
from stylora.errors import UserError
from stylora.forest import Sample

from .branch_limits import check_coordinates, largest, most_branches, refuse_long
from .branch_rows import BadRow, BranchRow, BranchText, branch_files, read_branch_rows
from .branch_settings import Branches
from .branch_summary import BranchSummary
from .branches import BranchFormat, Tree, tree_sample
from .chat_summary import NAMED
from .conversations import Reject
from .settings import Data, as_list
from .splits import one_by_one

PART = "branches"
PROVED = 32  # rows whose answers are decoded and compared before training


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A row and its tree."""

    row: BranchRow
    tree: Tree


class BranchData:
    """The training rows of a `data` section, by index, and those held out.

    lengths: int64 [N], tokens of each row's largest sample
    validation_samples: {"branches": the held-out rows}; validation_characters: {"branches": characters of what they teach}
    rejects: rows that cannot be used, with file, line and reason
    summary: what became of the data
    """

    def __init__(
        self, form: BranchFormat, data: Data, branches: Branches, train: Sequence[Planted], held: Sequence[Planted],
        rejects: Sequence[Reject], reports: Sequence[FileReport],
    ) -> None:  # fmt: skip
        self._form, self._data, self._branches, self._train, self._held = form, data, branches, train, held
        self.rejects = list(rejects)
        self.lengths = np.array([largest(each.tree, most_branches(data)) for each in train], np.int64)
        seen: Counter[str] = Counter()
        self._ids = []
        for each in train:
            self._ids.append((int(each.row.fingerprint[:16], 16) >> 1, seen[each.row.fingerprint]))
            seen[each.row.fingerprint] += 1
        self.validation_characters: dict[str, list[float]] = {PART: [float(self._characters(each.tree)) for each in held]}
        self.summary = self._summarize(reports)

    def __len__(self) -> int:
        return len(self._train)

    def epoch(self, epoch: int) -> np.ndarray:
        """int64 [N]: indices of the training rows of this epoch (0..) in training order."""
        return np.random.default_rng((self._data.seed, epoch)).permutation(len(self._train))

    def sample(self, index: int, epoch: int) -> Sample:
        """A training row with the branches that this epoch (0..) reads of it."""
        return self._sample(self._train[index].tree, self.drawn(index, epoch))

    def drawn(self, index: int, epoch: int) -> list[int]:
        """Numbers of the branches that this epoch reads of a row, in the row's order."""
        there = len(self._train[index].tree.branches)
        count = min(most_branches(self._data), there)
        if self._data.max_branches_per_sample is None and count == there:
            return list(range(there))  # nothing to draw
        rng = np.random.default_rng((self._data.seed, epoch, *self._ids[index]))
        if self._data.max_branches_per_sample is not None and there:
            count = int(rng.integers(min(self._data.min_branches_per_sample, there), count, endpoint=True))
        return sorted(rng.permutation(there)[:count].tolist())

    def branch_counts(self, epoch: int) -> np.ndarray:
        """int64 [N]: how many branches this epoch reads of each training row; a text without branches counts as one."""
        return np.array([max(1, len(self.drawn(index, epoch))) for index in range(len(self))], np.int64)

    def part(self, index: int) -> str:
        """`branches`, of all of them."""
        return PART

    def source(self, index: int) -> str:
        """File and line of the row."""
        return self._train[index].row.origin

    def sample_id(self, index: int) -> tuple[int, int]:
        """(a hash >= 0 of the row that fits int64, which of several equal rows it is), the same whatever else is in the data."""
        return self._ids[index]

    @cached_property
    def validation_samples(self) -> dict[str, list[Sample]]:
        """{"branches": the held-out rows with their first branches, at coordinates as in training}."""
        return {PART: [self._sample(each.tree, self._first(each.tree)) for each in self._held]}

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of every token and edge, on either side, and of how branches are drawn and laid out: equal for equal training."""
        data, laid_out = self._data, sorted(self._branches.model_dump().items())
        least = None if data.max_branches_per_sample is None else data.min_branches_per_sample
        told = (data.seed, len(self._train), most_branches(data), least, data.train_on_main, laid_out)
        digest = blake2b(repr(told).encode(), digest_size=16)
        for each in [*self._train, *self._held]:
            digest.update(repr((len(each.tree.branches), each.tree.stop)).encode() + each.tree.trunk.tobytes())
            for branch in each.tree.branches:
                digest.update(branch.ids.tobytes() + branch.source.tobytes() + branch.target.tobytes() + branch.weight.tobytes())
        return digest.hexdigest()

    def proof(self) -> str:
        """Decode what is learned of some rows, drawn by the seed, and say that it is what they answer. Raises UserError where it is not."""
        rows = np.random.default_rng(self._data.seed).permutation(len(self._train))[:PROVED].tolist()
        answers = sum(self._form.prove(self._train[row].row) for row in rows)
        return f"branches decode to answer + stop: {answers:,} answers of {len(rows):,} rows"

    def _sample(self, tree: Tree, numbers: Sequence[int]) -> Sample:
        return tree_sample(tree, self._branches, numbers=numbers, train_on_main=self._data.train_on_main)

    def _first(self, tree: Tree) -> range:
        return range(min(most_branches(self._data), len(tree.branches)))

    def _characters(self, tree: Tree) -> int:
        """Characters of what a held-out row teaches."""
        trunk = tree.trunk_characters if self._data.train_on_main or not tree.branches else 0
        return trunk + sum(tree.branches[number].characters for number in self._first(tree))

    def _summarize(self, reports: Sequence[FileReport]) -> BranchSummary:
        trees = [each.tree for each in self._train]
        both = [each.tree for each in [*self._train, *self._held]]
        samples = [self.sample(index, 0) for index in range(len(self))]
        return BranchSummary(
            rows=len(trees), held=len(self._held), alone=sum(not tree.branches for tree in trees),
            branches=sum(len(tree.branches) for tree in trees), duplicates=sum(duplicates(each.row) for each in self._train),
            most=max(len(tree.branches) for tree in trees), longest_trunk=max(len(tree.trunk) for tree in both),
            longest_branch=max(tree.longest for tree in both), epoch_samples=len(samples),
            epoch_branches=sum(len(self.drawn(index, 0)) for index in range(len(self))),
            epoch_tokens=sum(map(len, samples)), epoch_learned_tokens=sum(len(sample.edges) for sample in samples),
            quoted=sum(tree.quoted for tree in both), rejects=tuple(self.rejects), reports=tuple(reports),
            warnings=tuple(self._warnings()),
        )  # fmt: skip

    def _warnings(self) -> Iterator[str]:
        """What stands on both sides, what is not held out, and branches that nothing tells apart."""
        trunks = {each.row.trunk for each in self._train}
        both = sum(each.row.trunk in trunks for each in self._held)
        if both:
            yield f"{both:,} held-out rows have a trunk that also stands in the training data: the loss measured on them will look too good"
        if self._data.validation and not self._held:
            yield "nothing is held out: all rows have one trunk, which a share does not part; name a file in data.validation"
        if self._branches.visibility == "isolated" and self._branches.rope_2d_ratio == 0:
            alike = sum(unprompted(each.row) > 1 for each in self._train)
            if alike:
                yield (
                    f"{alike:,} rows have several branches without a prompt, and nothing tells these apart: the model learns a mixture of "
                    "them; give them prompts, or set branches.rope_2d_ratio above 0"
                )


def prepare_branches(
    data: Data, branches: Branches, *, form: BranchFormat, context: int, progress: Callable[[int, int], None] | None = None
) -> BranchData:
    """Read, split and encode the rows of a `data` section.

    form: how the base writes them; context: longest input of the base, tokens; progress: called with (bytes read, in all)
    Raises UserError: coordinates that cannot lie in the context, no usable row, no training row left, files that are all held out, and
    whatever reading raises.
    """
    assert not isinstance(data.train, dict), "the settings refuse styles of rows"
    check_coordinates(data, branches, context)
    reports: list[FileReport] = []
    rejects: list[Reject] = []

    def planted(paths: list[str], leave_out: Sequence[Path] = ()) -> list[Planted]:
        found = []
        for row in read_branch_rows(paths, reports=reports, leave_out=leave_out, progress=progress):
            each = row if isinstance(row, Reject) else plant(row, form, data, branches, context)
            if isinstance(each, Reject):
                rejects.append(each)
            else:
                found.append(each)
        return found

    named = list(data.validation) if isinstance(data.validation, tuple) else []
    rows = planted(as_list(data.train), [file for path in named if not path.startswith(HUB) for file in branch_files(path)])
    if named and not reports:
        expected = "a file of training rows beside them"
        raise UserError("data.train", got="only files that are held out", expected=expected, do="hold out other rows")
    train, held = (rows, planted(named)) if named else split(rows, data.validation, data.seed)
    for where, side in (("data.train", train), ("data.validation", held)):
        if not side and (side is train or named):
            first = "; ".join(f"{reject.origin}: {reject.reason}" for reject in rejects[:NAMED])
            expected = 'rows of {"main", "branches"}, or of {"text"}'
            raise UserError(where, got=f"no usable row ({first or 'no rows'})", expected=expected, do="see `stylora data`")
    return BranchData(form, data, branches, train, held, rejects, reports)


def split(rows: Sequence[Planted], share: object, seed: int) -> tuple[list[Planted], list[Planted]]:
    """Training and held-out rows, rows of one trunk on one side: a share of the rows, at least one, never all."""
    assert isinstance(share, float | int)
    chosen = one_by_one(Counter(each.row.trunk for each in rows), share, seed) if share else frozenset()
    return [each for each in rows if each.row.trunk not in chosen], [each for each in rows if each.row.trunk in chosen]


def plant(row: BranchRow, form: BranchFormat, data: Data, branches: Branches, context: int) -> Planted | Reject:
    """The row in tokens, or why it cannot be used."""
    try:
        tree = form.tree(row)
        refuse_long(tree, data, branches, context)
    except BadRow as error:
        return Reject(origin=row.origin, reason=str(error), row=written(row))
    return Planted(row=row, tree=tree)


def duplicates(row: BranchRow) -> int:
    """Branches that are as an earlier one of the row."""
    said = [repr(branch) for branch in row.branches]
    return len(said) - len(set(said))


def unprompted(row: BranchRow) -> int:
    """Branches that the fork opens."""
    return sum(isinstance(branch, BranchText) and not branch.prompt for branch in row.branches)


def written(row: BranchRow) -> dict[str, object]:
    """The row in the form all of them have, for the file of rejects."""
    if not row.branches:
        return {"text": row.main}
    branches = [
        {"prompt": each.prompt, "answer": each.answer} if isinstance(each, BranchText) else each.messages for each in row.branches
    ]
    return {"main": row.main, "branches": branches}
