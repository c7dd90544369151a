"""Decode several branches of one trunk at once: the trunk is read once, and every forward advances all branches by a token.

    trunk a b c      branch 0  d e | f g h <stop>
                     branch 1  d   | i j             forwards: a b c, then d e d, then f i, g j, h, ...
                     branch 2  k l | ...

Isolated, a branch is what it would be alone: token for token that of `decode`, with greedy search and when it is drawn (a branch draws from
numbers of its own). So branches may join at any time: more than `live` wait until others stop. Columnar, every branch of a trunk reads what
the others said at earlier times, as in training: they go column by column, openings are given tokens, and what a stopped branch said stays
to be read, its last token, too.

Knows models and tokenizers, no rows, recipes or files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stylora.errors import UserError
from stylora.model.rope_2d import installed
from stylora.samples.branch_settings import Branches

from .decode import Model, Row, choose, end_tokens, evaluating, penalize
from .settings import Sampling
from .shared_cache import Caches, OwnCaches, SharedCache, Tail, bare
from .text import Writer

PLAIN = Branches(rope_2d_ratio=0)
"""Branches of a model that was not trained on any: isolated, at ordinary positions"""
OPENED_AT_ONCE = 2048  # tokens of openings in one forward, whose mask is quadratic in them


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trunk and its branches.

    trunk: int [M], may be empty; openings: int [T] each, at least one token: what a branch reads before it draws
    limits: tokens to draw at most, for each branch, None for sampling.max_new_tokens
    seeds: None draws branch n from (sampling.seed, n); a branch with a seed of its own draws as a single prompt with that seed does
    """

    trunk: np.ndarray
    openings: Sequence[np.ndarray]
    limits: Sequence[int | None] | None = None
    seeds: Sequence[int | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token drawn, and the text that it makes certain. stopped: as in `Generation`, None while the branch goes on"""

    task: int
    branch: int
    text: str
    token: int
    stopped: Literal["stop", "length"] | None


@dataclass(kw_only=True, eq=False)
class _Live:
    """A branch under way. number: shared with no branch of any task; pending: what it reads next; time: of the first of these
    seen: bool [V], the tokens of trunk and branch, for a repetition penalty"""

    task: int
    branch: int
    number: int
    row: Row
    pending: np.ndarray
    time: int
    coordinate: int
    seen: Tensor | None = None


def check_task(task: Task, context: int, branches: Branches = PLAIN, *, where: str = "task", each: str = "branch {}") -> None:
    """Raises UserError for what can't be decoded: no branches, an opening without tokens, one that leaves no room in the context, a
    coordinate past it. context: of the model, in tokens; where, each: how the task and branch number n, from 1, are called"""
    if not len(task.openings):
        raise UserError(where, got="no branches", expected="at least one")
    for number, opening in enumerate(task.openings):
        called = f"{where}, {each.format(number + 1)}"
        if not len(opening):
            raise UserError(called, got="an opening without tokens", expected="at least one token to continue", do="write a word")
        if branches.rope_2d_ratio and branches.positions == "replace" and branches.coordinate(number) > context:
            raise UserError(
                called, got=f"coordinate {branches.coordinate(number)}", expected=f"at most {context}, the model's context",
                do="ask for fewer branches",
            )  # fmt: skip
        if _room(task, number, context, branches) < 1:
            expected = f"less than {context}, the model's context"
            if branches.rope_2d_ratio and branches.positions == "add":
                expected += f", less the coordinate {branches.coordinate(number)}"
            got = f"{len(task.trunk) + len(opening)} tokens, {len(task.trunk)} of them of the trunk"
            raise UserError(called, got=got, expected=expected, do="shorten trunk or branch")


def check_live(tasks: Sequence[Task], branches: Branches, live: int) -> None:
    """Raises UserError for columnar branches of one trunk that are more than may advance together."""
    most = max((len(task.openings) for task in tasks), default=0)
    if branches.visibility == "columnar" and most > live:
        raise UserError("live", got=str(live), expected=f"at least {most}: columnar branches of one trunk advance together")


def _room(task: Task, number: int, context: int, branches: Branches) -> int:
    """Tokens that may follow an opening."""
    taken = branches.coordinate(number) if branches.positions == "add" else 0
    return context - taken - len(task.trunk) - len(task.openings[number])


def decode_branches(
    model: Model, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], sampling: Sampling, *, branches: Branches | None = None,
    live: int = 64, apart: bool = False,
) -> Generator[Piece, None, None]:  # fmt: skip
    """Go on with every branch of every task; yields each token as it is drawn. The model is in eval mode until the end.

    branches: as the model was trained; None for isolated ones, where the model's own positions (rope_2d.py) have them
    live: branches that advance together; it changes speed and memory only
    apart: for models that were not proved to keep tokens of one row apart: every branch in a row of its own
    Raises UserError for what `check_task` refuses, for columnar branches of one trunk that are more than `live`, for columnar branches or a
    second coordinate on a model that needs `apart`, and for logits that are no numbers.
    """
    carried = installed(bare(model))
    laid = branches or carried or PLAIN
    assert (carried is not None) == (laid.rope_2d_ratio > 0), "the model's positions are not those of its branches"
    columnar = laid.visibility == "columnar"
    waiting = _opened(model, tokenizer, tasks, sampling, laid)
    if apart and (columnar or laid.rope_2d_ratio):
        kind = "columnar branches" if columnar else "branches with a coordinate"
        raise UserError("model", got=f"{kind} on layers that do not keep tokens of one row apart", expected="isolated ones, ratio 0")
    check_live(tasks, laid, live)
    return _decoded(model, tokenizer, tasks, sampling, waiting, columnar=columnar, live=1 if apart else live, apart=apart)


def _opened(
    model: Model, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], sampling: Sampling, branches: Branches
) -> deque[_Live]:
    """Every branch of every task, in order."""
    context = int(model.config.get_text_config().max_position_embeddings)
    waiting: deque[_Live] = deque()
    for number, task in enumerate(tasks):
        check_task(task, context, branches, where=f"tasks[{number}]")
        for branch, opening in enumerate(task.openings):
            ids = [*task.trunk.tolist(), *opening.tolist()]
            limit = (task.limits[branch] if task.limits is not None else None) or sampling.max_new_tokens
            own = task.seeds[branch] if task.seeds is not None else None
            row = Row(
                ids=ids, limit=min(limit, _room(task, branch, context, branches)), writer=Writer(tokenizer, ids, sampling.stop),
                random=np.random.default_rng([sampling.seed, branch] if own is None else [own, 0]),
            )  # fmt: skip
            waiting.append(_Live(
                task=number, branch=branch, number=len(waiting), row=row, pending=np.asarray(opening), time=len(task.trunk),
                coordinate=branches.coordinate(branch),
            ))  # fmt: skip
    return waiting


@torch.inference_mode()
def _decoded(
    model: Model, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], sampling: Sampling, waiting: deque[_Live], *,
    columnar: bool, live: int, apart: bool,
) -> Generator[Piece, None, None]:  # fmt: skip
    caches: Caches = OwnCaches(model) if apart else SharedCache(model, columnar=columnar)
    ends = end_tokens(model, tokenizer)
    living: list[_Live] = []
    left = {number: len(task.openings) for number, task in enumerate(tasks)}  # branches that have not stopped
    with evaluating(model):
        while waiting or living:
            for each in _joining(waiting, living, tasks, live, columnar):
                if each.branch == 0:
                    caches.plant(each.task, tasks[each.task].trunk)
                living.append(each)
            scores = caches.read(_tails(living, columnar))
            if scores.isnan().any():
                raise UserError("model", got="logits that are not numbers", expected="numbers", do="decode in bf16 or fp32")
            drawing = [i for i, each in enumerate(living) if not len(each.pending) and each.row.stopped is None]
            for i, token in zip(drawing, _draw(scores, living, drawing, sampling), strict=True):
                each = living[i]
                text = each.row.take(token, ends)
                left[each.task] -= each.row.stopped is not None
                if each.row.stopped is None or (columnar and token not in ends):  # its last token is for the others to read
                    each.pending = np.array([token])
                yield Piece(task=each.task, branch=each.branch, text=text, token=token, stopped=each.row.stopped)
            living = _staying(living, left, caches, columnar)


def _joining(waiting: deque[_Live], living: Sequence[_Live], tasks: Sequence[Task], live: int, columnar: bool) -> list[_Live]:
    """Those that find room now. Columnar branches join all at once."""
    joined: list[_Live] = []
    tokens = 0
    while waiting:
        count = len(tasks[waiting[0].task].openings) if columnar else 1
        coming = [waiting[i] for i in range(count)]
        more = sum(len(each.pending) for each in coming)
        if len(living) + len(joined) + count > live or (joined and tokens + more > OPENED_AT_ONCE):
            break
        joined += coming
        tokens += more
        for _ in coming:
            waiting.popleft()
    return joined


def _tails(living: Sequence[_Live], columnar: bool) -> list[Tail]:
    """What each reads now: isolated all that is pending; columnar as many columns as every branch of its tree has."""
    columns: dict[int, int] = {}
    for each in living:
        columns[each.task] = min(len(each.pending), columns.get(each.task, OPENED_AT_ONCE))
    tails = []
    for each in living:
        taken = columns[each.task] if columnar else len(each.pending)
        tails.append(Tail(each.task, each.number, each.pending[:taken], each.time, each.coordinate))
        each.pending = each.pending[taken:]
        each.time += taken
    return tails


def _draw(scores: Tensor, living: Sequence[_Live], drawing: Sequence[int], sampling: Sampling) -> list[int]:
    """A token for each that draws. scores: float32 [N, V] of all that live."""
    if not drawing:
        return []
    scores = scores[torch.tensor(drawing, device=scores.device)] if len(drawing) < len(living) else scores
    rows = [living[i] for i in drawing]
    if sampling.repetition_penalty != 1:
        for each in rows:
            if each.seen is None:
                each.seen = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
                each.seen[each.row.ids] = True
        scores = penalize(scores, torch.stack([each.seen for each in rows if each.seen is not None]), sampling.repetition_penalty)
    numbers = torch.tensor([each.row.random.random(dtype=np.float32) for each in rows], device=scores.device)
    tokens: list[int] = choose(scores, numbers, sampling).tolist()
    for each, token in zip(rows, tokens, strict=True):
        if each.seen is not None:
            each.seen[token] = True
    return tokens


def _staying(living: Sequence[_Live], left: dict[int, int], caches: Caches, columnar: bool) -> list[_Live]:
    """Those that still have something to read. Trees without a branch that goes on are dropped, isolated branches that stopped as well."""
    staying = []
    for each in living:
        if not left[each.task]:
            caches.drop(tree=each.task)
        elif each.row.stopped is None or (columnar and len(each.pending)):
            staying.append(each)
        elif not columnar:
            caches.drop(branch=each.number)
    return staying
