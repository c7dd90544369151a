"""`stylora branches --input`: every row of a file gets what its branches said, several trunks at once.

    in     {"id": 7, "main": "...", "branches": ["一、", "二、"]}
    out    {"id": 7, ..., "continuations": ["...", "..."], "tokens": [12, 30], "stopped": ["stop", "length"]}

Until all rows are there the answers lie in `<output>.partial` (prediction_log.py): the same call goes on behind the last whole batch. What
a branch draws depends on its number and the seed alone, so a file that was interrupted is the file that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora.errors import UserError
from stylora.generate.branches import Task, check_live
from stylora.generate.settings import Sampling
from stylora.model.tokenizer_file import hash_file
from stylora.samples.branch_settings import Branches
from stylora.train.interruption import Interruption

from .branch_questions import read_asked
from .branches import Account, Asking, Ready, figures, open_ready, tasks_of
from .folder import adapter_hash, write_text
from .open import Found, find_model
from .prediction_log import alone, append_rows, check_output, open_rows
from .show_prediction import progress

KEYS = ("continuations", "tokens", "stopped")
"""What is added to a row: [N] texts, tokens drawn, and how each branch stopped"""


def branch_table(model: str, source: Path, output: Path, *, asking: Asking, console: Console) -> dict[str, Any]:
    """Decode the branches of every row of `source` and write the rows to `output`; tells what `show_branches.summary` prints.

    Raises UserError before the model is loaded, and Interrupted where a signal ended it: the same call goes on.
    """
    partial = output.with_name(output.name + ".partial")
    check_output(source, output, partial, (".jsonl",), asking.force)
    asked = read_asked(source)
    for each in asked:
        if taken := next((key for key in KEYS if key in each.row), None):
            raise UserError(each.where, got=f"a key `{taken}`", expected="that name free for what is written", do="rename it")
    found = find_model(model, base=asking.base, force=asking.force)
    tasks, layout = tasks_of(found, asked, asking.sampling)
    check_live(tasks, layout, asking.live)
    with alone(output), Interruption() as interruption:
        rows = open_rows(partial, _header(found, layout, source, asking.sampling), KEYS, force=asking.force)
        there = len(rows)
        ready, account, started = None, None, time.perf_counter()
        with progress(console, len(tasks), there) as tell:
            while len(rows) < len(tasks):
                with interruption.at_once():
                    if ready is None:
                        ready = open_ready(found, layout, trust_remote_code=asking.trust_remote_code)
                        account, started = Account(ready, tasks[there:]), time.perf_counter()
                    assert account is not None
                    fresh = _decoded(ready, account, tasks, there, range(len(rows), min(len(rows) + asking.trunks, len(tasks))), asking)
                append_rows(partial, fresh)
                rows += fresh
                tell(len(rows))
        seconds = time.perf_counter() - started
        write_text(output, "".join(_json({**each.row, **row}) for each, row in zip(asked, rows, strict=True)))
        partial.unlink()
    told = {"output": str(output), "rows": len(rows), "there_already": there, "visibility": layout.visibility,
            "rope_2d_ratio": layout.rope_2d_ratio, "forced": [] if ready is None else [*ready.forced]}  # fmt: skip
    return told if account is None else {**told, "apart": ready is not None and ready.apart, **figures(account, seconds)}


def _decoded(
    ready: Ready, account: Account, tasks: Sequence[Task], there: int, batch: range, asking: Asking
) -> list[dict[str, list[Any]]]:
    """What the branches of a batch of trunks say."""
    with closing(ready.decode([tasks[number] for number in batch], asking.sampling, asking.live)) as pieces:
        for piece in pieces:
            account.take(replace(piece, task=batch[piece.task] - there))
    said = [account.said[number - there] for number in batch]
    return [
        {"continuations": [each.text for each in row], "tokens": [each.tokens for each in row], "stopped": [each.stopped for each in row]}
        for row in said
    ]


def _header(found: Found, layout: Branches, source: Path, sampling: Sampling) -> dict[str, Any]:
    """All that the answers depend on."""
    return {
        "stylora": "branches", "base": found.base, "load_in_4bit": found.load_in_4bit,
        "adapters": [[adapter_hash(layer.folder), layer.weight] for layer in found.layers], "input": hash_file(source),
        **layout.model_dump(mode="json"), **sampling.model_dump(mode="json"),
    }  # fmt: skip


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
