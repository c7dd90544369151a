"""One run of the `branch_quality` comparison: rows of several kinds in files, a setting and a seed in, losses out.

All settings read the same rows. Texts are cut at a line's or a sentence's end, so that a run is short; a branch that was cut is learned as
it stands, with a stop token. A held-out row with more branches than the setting's is written as several, so that every setting is
measured on the same branches, each of them under the setting's own layout.

Training is what `stylora train` does (`prepare_branches`, `Steps`, `ForestModel`), with AdamW and a rate that falls to zero in a line.
Knows no design, no tables.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.evaluate.held_out import measure as measure_held_out
from stylora.evaluate.held_out import precision_context
from stylora.forest import Sample, chain, edges
from stylora.model.adapter import attach, strip
from stylora.model.base import Base, load_base
from stylora.model.device import choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.proofs import prove_base
from stylora.model.rope_2d import install, remove
from stylora.model.settings import Adapter
from stylora.model.tokenizer_file import tokenizer_file
from stylora.samples.branch_data import BranchData, prepare_branches
from stylora.samples.branch_rows import BranchRow, BranchText, read_branch_rows
from stylora.samples.branch_settings import Branches, Visibility
from stylora.samples.branches import BranchFormat
from stylora.samples.settings import Data
from stylora.train.steps import Steps

from .report import Json

TRUNK = 160  # tokens of a trunk at most
PER_ROW = 16  # branches of a row at most
HELD = 8  # of so many rows one is held out
SLACK = 8  # tokens that a text may have more when it is cut and encoded anew, and its fork
MARKS = "\n。；！？"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the design. count: branches of a sample at most; tokens: of a branch at most"""

    visibility: Visibility
    ratio: float
    stride: int
    positions: Literal["replace", "add"]
    count: int
    r: int
    tokens: int

    @property
    def branches(self) -> Branches:
        return Branches(
            visibility=self.visibility, rope_2d_ratio=self.ratio, branch_stride=self.stride, positions=self.positions
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    held: the held-out rows, parted; whole: the same with most branches; kinds: of every row of `held`
    learned: branches of an optimizer step; before: is the base measured, too? Its losses are the layout's, whatever the seed
    """

    setting: Setting
    seed: int
    train: str
    held: str
    whole: str
    kinds: tuple[str, ...]
    steps: int
    learned: int
    learning_rate: float
    before: bool = True

    @property
    def key(self) -> str:
        """What tells a run's row from all others."""
        return json.dumps([asdict(self.setting), self.seed, self.steps, self.learned, self.learning_rate], sort_keys=True)


# --------------------------------------------------------------------------------------------------------------- rows


def write_rows(files: Mapping[str, Path], folder: Path, *, most: int, tokens: Sequence[int], counts: Sequence[int]) -> Json:
    """Files of training and held-out rows in a folder; {"train": {tokens: path}, "held": {tokens: {count: {"path", "kinds"}}}, "rows"}.

    files: kind -> rows; most: of each kind, drawn evenly; tokens, counts: of the settings
    Raises UserError for a file without rows of texts.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file("tiny")))
    found = {kind: read(kind, path, most) for kind, path in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    written: Json = {"train": {}, "held": {}, "rows": {kind: len(rows) for kind, rows in found.items()}}
    for length in tokens:
        shortened = {kind: [cut_row(tokenizer, row, length) for row in rows] for kind, rows in found.items()}
        train = [row for rows in shortened.values() for number, row in enumerate(rows) if number % HELD]
        held = [(kind, row) for kind, rows in shortened.items() for row in rows[::HELD]]
        written["train"][length], written["held"][length] = _write(folder / f"train-{length}.jsonl", train), {}
        for count in counts:
            split = [(kind, part) for kind, row in held for part in parted(row, count)]
            path = _write(folder / f"held-{length}-{count}.jsonl", [row for _, row in split])
            written["held"][length][count] = {"path": path, "kinds": [kind for kind, _ in split]}
    return written


def read(kind: str, path: Path, most: int) -> list[BranchRow]:
    """Rows of one kind, at most so many, evenly from the whole file."""
    if not path.is_file():
        raise UserError("--data", got=f"{kind}={path}", expected="a file of rows with main and branches")
    rows = [row for row in read_branch_rows([str(path)], reports=[]) if isinstance(row, BranchRow) and row.branches]
    rows = [row for row in rows if isinstance(row.main, str)]
    if len(rows) < HELD:
        raise UserError("--data", got=f"{len(rows)} rows of texts in {path}", expected=f"at least {HELD}")
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def cut_row(tokenizer: Tokenizer, row: BranchRow, tokens: int) -> Json:
    """The row with short texts. A prompt is kept whole."""
    assert isinstance(row.main, str)
    branches: list[Any] = []
    for branch in row.branches[:PER_ROW]:
        assert isinstance(branch, BranchText)
        answer = cut(tokenizer, branch.answer, tokens)
        branches.append({"prompt": branch.prompt, "answer": answer} if branch.prompt else answer)
    return {"main": cut(tokenizer, row.main, TRUNK), "branches": branches}


def cut(tokenizer: Tokenizer, text: str, most: int) -> str:
    """At most so many tokens of a text, up to the last line's or sentence's end among them."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    if len(encoded.ids) <= most:
        return text
    head = text[: encoded.offsets[most][0]]
    last = max(head.rfind(mark) for mark in MARKS)
    return head[: last + 1].rstrip() if last > 0 else head


def parted(row: Json, count: int) -> list[Json]:
    """The row as several, of at most so many branches each: "a b c" by 2 is "a b", "c"."""
    return [row | {"branches": row["branches"][start : start + count]} for start in range(0, len(row["branches"]), count)]


def _write(path: Path, rows: Sequence[Json]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ---------------------------------------------------------------------------------------------------------------- run


def one_thread() -> None:
    """For a worker: its matrices are small, and others compute beside it."""
    torch.set_num_threads(1)


@cache
def opened() -> tuple[Base, str]:
    """The bundled base and how its head is called; its weights are frozen, so every run of this process may use it."""
    keep_freed_memory()
    base = load_base("tiny", choose_device())
    return base, prove_base(base.model, words=len(base.tokenizer)).head


def run(job: Job) -> Json:
    """Train once and measure before and after; a row of the comparison. The base is left as it was."""
    started = time.perf_counter()
    base, head = opened()
    setting, layout = job.setting, job.setting.branches
    form = BranchFormat(base.tokenizer.backend_tokenizer, layout, eos_token=str(base.tokenizer.eos_token), chat=None)
    data = Data(
        format="branches", train=job.train, validation=(job.held,), branches_per_sample=setting.count, max_seq_len=setting.tokens + SLACK,
        seed=job.seed,
    )  # fmt: skip
    prepared = prepare_branches(data, layout, form=form, context=base.context)
    assert not prepared.rejects and len(prepared.validation_samples["branches"]) == len(job.kinds), prepared.rejects
    turn = install(base.model, layout)
    try:
        attach(base.model, Adapter(r=setting.r, alpha=setting.r), seed=job.seed)
        model = ForestModel(base.model, words=len(base.tokenizer), head=head, columnar=layout.visibility == "columnar")
        trunks = [text(form.tree(row).trunk) for row in _rows(job.whole)]
        before = _losses(model, prepared, job.kinds, trunks) if job.before else None  # a fresh adapter changes nothing
        learned = train(model, prepared, job)
        after = _losses(model, prepared, job.kinds, trunks)
    finally:
        strip(base.model)
        remove(base.model)
    return {
        "key": job.key, "setting": asdict(setting), "seed": job.seed, "turn": turn, "before": before, "after": after, **learned,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def _rows(path: str) -> list[BranchRow]:
    return [row for row in read_branch_rows([path], reports=[]) if isinstance(row, BranchRow)]


def text(ids: np.ndarray) -> Sample:
    """A trunk as plain text, every token but its first predicted."""
    return Sample(forest=chain(ids), edges=edges(np.arange(len(ids) - 1), ids[1:]))


def _losses(model: ForestModel, data: BranchData, kinds: Sequence[str], trunks: Sequence[Sample]) -> dict[str, float]:
    """Nats a token: of all held-out branches, of those of each kind, and of plain trunks."""
    device, dtype = model.model.device, model.model.dtype
    with torch.no_grad(), precision_context(device, dtype):
        held = measure_held_out(model, data.validation_samples["branches"], data.validation_characters["branches"], tokens_at_once=2048)
        plain = measure_held_out(model, trunks, [1.0] * len(trunks), tokens_at_once=2048)
    losses = {"branches": held.loss, "trunks": plain.loss}
    for kind in dict.fromkeys(kinds):
        own = np.array([each == kind for each in kinds])
        losses[kind] = float(held.nats[own].sum() / held.tokens[own].sum())
    return losses


def train(model: ForestModel, data: BranchData, job: Job) -> Json:
    """Optimizer steps of `learned` branches each; mean training loss of the last tenth of them, and what was read."""
    columnar = job.setting.visibility == "columnar"
    steps = Steps(
        data.epoch, data.sample, samples_per_step=job.learned, counts=data.branch_counts, tokens_per_microbatch=2048, row_tokens=None,
        num_train_epochs=1, max_steps=job.steps, packs=True, share_prefixes=not columnar,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=job.learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=job.steps)
    device, dtype = model.model.device, model.model.dtype
    losses, tokens = [], 0
    model.train()
    for number in range(job.steps):
        step, total = steps[number], 0.0
        for batch in step.batches:
            with precision_context(device, dtype):
                loss = model(to_tensors(batch, device, divisor=step.weight))
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        falling.step()
        losses.append(total)
        tokens += step.forest_tokens
    return {"train_loss": mean(losses[-max(1, job.steps // 10) :]), "tokens_read": tokens}
