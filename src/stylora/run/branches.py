"""`stylora branches`: continuations of one trunk, decoded together.

A model that was trained on branches is asked as it was trained (`Found.branches`); any other decodes isolated branches at ordinary
positions, which is what it would say to each alone. What can be refused by tokens alone is refused before the model is loaded.

Rows of a file are branch_table.py's. Knows neither options nor the terminal: cli.py reads those, show_branches.py writes there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.generate.branches import PLAIN, Piece, Task, check_live, check_task, decode_branches
from stylora.generate.decode import Model, end_tokens
from stylora.generate.settings import Sampling
from stylora.model.base import Base, load_base
from stylora.model.device import choose_device, keep_freed_memory
from stylora.model.proofs import prove_base
from stylora.model.tokenizer_file import context_length, special_tokens, tokenizer_file
from stylora.recipe.recipe import load_recipe
from stylora.samples.branch_rows import BadRow
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Begun, BranchFormat, Opening

from .branch_questions import Asked
from .folder import parent_stage
from .open import Found, find_model, put_on
from .plan import branch_format


@dataclass(frozen=True, kw_only=True)
class Asking:
    """sampling: of all branches that say nothing else; live: branches that advance together; trunks: rows in one batch
    base, trust_remote_code, force: as for `open_model`"""

    sampling: Sampling
    live: int = 64
    trunks: int = 8
    base: str | None = None
    trust_remote_code: bool = False
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A model that can be asked. layout: of its branches; apart: does it read them one after the other?
    forced: what is not as it was in training"""

    model: Model
    base: Base
    layout: Branches
    apart: bool
    forced: tuple[str, ...] = ()

    def decode(self, tasks: Sequence[Task], sampling: Sampling, live: int) -> Generator[Piece, None, None]:
        """As `decode_branches`, in the precision of the model."""
        pieces = decode_branches(self.model, self.base.tokenizer, tasks, sampling, branches=self.layout, live=live, apart=self.apart)
        return within(lambda: precision_context(self.base.model.device, self.base.model.dtype), pieces)


def within(context: Callable[[], AbstractContextManager[Any]], pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
    """Each piece is made inside the context; what is done with it is not."""
    with closing(pieces):
        while True:
            with context():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


# ---------------------------------------------------------------------------------------------------- tokens, no model yet


def tasks_of(found: Found, asked: Sequence[Asked], sampling: Sampling) -> tuple[list[Task], Branches]:
    """The tokens of what is asked, and how branches are laid out. Raises UserError, with the row, for what can't be decoded."""
    layout, tokenizer = found.branches or PLAIN, Tokenizer.from_file(str(tokenizer_file(found.base, found.where)))
    if found.branches is None and not any(_needs_fork(each) for each in asked):  # nobody asks for one, so none has to be there
        layout = PLAIN.model_copy(update={"fork": special_tokens(found.base).get("eos_token") or PLAIN.fork})
    form = branch_format(found.base, tokenizer, layout, _variables(found))
    context = context_length(found.base) or sys.maxsize
    return [task_of(each, form, layout, context, sampling) for each in asked], layout


def task_of(asked: Asked, form: BranchFormat, layout: Branches, context: int, sampling: Sampling) -> Task:
    """Raises UserError for what has no tokens or too many, and for branches that would be copies of each other."""
    bare = sum(opening == "" for opening in asked.openings)
    if bare > 1 and sampling.temperature == 0 and layout.rope_2d_ratio == 0:
        raise UserError(
            asked.where, got=f"{bare} branches without a prompt, taking the likeliest token", do="sample with --temperature, give "
            "prompts, or use an adapter with rope_2d_ratio above 0", expected=f"branches that differ: these would be {bare} copies of one",
        )  # fmt: skip
    try:
        trunk, openings = form.opened(asked.main, asked.openings)
    except BadRow as error:
        raise UserError(asked.where, got=f"what the base cannot read ({error})", expected="a trunk and branches that it can") from error
    task = Task(trunk=trunk, openings=openings, limits=asked.limits, seeds=asked.seeds)
    check_task(task, context, layout, where=asked.where, each="branch {}")
    return task


def _needs_fork(asked: Asked) -> bool:
    return any(opening == "" or isinstance(opening, Begun) for opening in asked.openings)


def _variables(found: Found) -> dict[str, Any]:
    """What the chat template was told in training."""
    stage = None if found.adapter is None else parent_stage(found.adapter)
    return {} if stage is None else load_recipe(stage.recipe).stages[0].data.chat_template_kwargs


# ------------------------------------------------------------------------------------------------------------- one trunk


def open_ready(found: Found, layout: Branches, *, trust_remote_code: bool = False) -> Ready:
    """Load a model, and prove whether it keeps branches apart. Raises UserError as `open_model` does."""
    keep_freed_memory()
    base = load_base(
        found.base, choose_device(), trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
    )
    packs = prove_base(base.model, words=len(base.tokenizer)).packs
    opened = put_on(base, found)
    return Ready(model=opened.model, base=base, layout=layout, apart=not packs, forced=opened.forced)


@dataclass(kw_only=True)
class Said:
    """What one branch has said so far. tokens: drawn, the end token not counted; stopped: as in `Piece`"""

    text: str = ""
    tokens: int = 0
    stopped: str | None = None


class Account:
    """What every branch of some tasks has said, and how many tokens were read for it."""

    def __init__(self, ready: Ready, tasks: Sequence[Task]) -> None:
        self.said = [[Said() for _ in task.openings] for task in tasks]
        self._ends = end_tokens(ready.model, ready.base.tokenizer)
        own = sum(len(opening) for task in tasks for opening in task.openings)
        self.separately = own + sum(len(task.trunk) * len(task.openings) for task in tasks)
        self.read = self.separately if ready.apart else own + sum(len(task.trunk) for task in tasks)

    @property
    def drawn(self) -> int:
        """Tokens of all branches."""
        return sum(each.tokens for said in self.said for each in said)

    def take(self, piece: Piece) -> None:
        """One token more."""
        said = self.said[piece.task][piece.branch]
        said.text += piece.text
        said.tokens += piece.token not in self._ends
        said.stopped = piece.stopped


def branches(
    model: str, asked: Asked, asking: Asking, show: Callable[[Ready, Asked], AbstractContextManager[Callable[[Piece], None]]]
) -> dict[str, Any]:
    """Decode the branches of one trunk. show: is opened with the model and what it is asked, then told every piece

    Gives what `show_branches.summary` prints. Raises UserError for what can't be asked, before the model is loaded.
    """
    found = find_model(model, base=asking.base, force=asking.force)
    tasks, layout = tasks_of(found, [asked], asking.sampling)
    check_live(tasks, layout, asking.live)
    ready = open_ready(found, layout, trust_remote_code=asking.trust_remote_code)
    account = Account(ready, tasks)
    started = time.perf_counter()
    with show(ready, asked) as told, closing(ready.decode(tasks, asking.sampling, asking.live)) as pieces:
        for piece in pieces:
            account.take(piece)
            told(piece)
    seconds = time.perf_counter() - started
    said = [
        {"opening": words(opening), "text": each.text, "tokens": each.tokens, "stopped": each.stopped}
        for opening, each in zip(asked.openings, account.said[0], strict=True)
    ]
    return {
        "main": words(asked.main), "continuations": said, "visibility": layout.visibility, "rope_2d_ratio": layout.rope_2d_ratio,
        "apart": ready.apart, "forced": [*ready.forced], **figures(account, seconds),
    }  # fmt: skip


def figures(account: Account, seconds: float) -> dict[str, Any]:
    """tokens: drawn by all branches; read: of trunks and openings; read_separately: by as many sequences; shared: the share that saves"""
    return {
        "branches": sum(map(len, account.said)), "tokens": account.drawn, "seconds": round(seconds, 3),
        "tokens_per_second": round(account.drawn / seconds, 1), "read": account.read, "read_separately": account.separately,
        "shared": round(1 - account.read / account.separately, 4),
    }  # fmt: skip


def words(opening: Opening) -> str:
    """What stands there, as one text; of messages the last one's."""
    return opening if isinstance(opening, str) else opening.text if isinstance(opening, Begun) else str(opening[-1]["content"])
