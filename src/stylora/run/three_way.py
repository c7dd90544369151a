"""`stylora evaluate --three-way`: what a style adapter and an instruct adapter on it bring, alone and together. The page with the story.

    what is asked, the style -> the base, loaded once -> its variants: base, + style, + style + instruct, + instruct -> figures side by side

Every variant answers the same questions, by the chat template, from the same draws. Its adapters are switched by their weights, and that
the base with all of them off is the bare base is proved, bit for bit. Everything is seeded: two calls give the same figures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from stylora.errors import UserError
from stylora.evaluate.held_out import measure, precision_context
from stylora.evaluate.passages import plain
from stylora.evaluate.voice import Voice
from stylora.generate.decode import Model, Row, decode, end_tokens, open_row
from stylora.generate.settings import Sampling
from stylora.generate.text import CONTEXT
from stylora.model.adapter import check_linear, read_config
from stylora.model.base import Base, load_base
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import prove_base
from stylora.model.tokenizer_file import tokenizer_file
from stylora.samples.questions import Question, said

from .folder import THREE_WAY, write_json
from .open import Opened, put_on
from .show_evaluation import telling
from .three_way_asked import Asked, ask_built_in, ask_held_out, choose_yardsticks, learn_voice
from .three_way_figures import Given, Measured, described
from .three_way_models import Subject, Variant, switched, variants

BATCH = 16  # questions at once


def three_way(
    subject: Subject, *, data: Path | None = None, stage: str | None = None, held_out: Path | None = None, sampling: Sampling,
    max_new_tokens: int | None = None, seed: int = 0, console: Console, trust_remote_code: bool = False, cache: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every variant; gives what three_way.json says, and writes it beside the stack.json of a stage that is as it was trained.

    data, stage: the recipe, and its stage of conversations, that say what is asked and what the style is, where the adapters' own stages
        do not; held_out: conversations to ask instead of those the recipe holds out
    sampling: how answers are drawn; max_new_tokens: of an answer, None for twice the longest answer of training
    seed: of the voice and the intervals (the draws have sampling's own); cache: of tokens
    Raises UserError where there is nothing to ask, and for a base that is not there, has no chat template, or is not the one trained on.
    """
    found = subject.found
    tokenizer_file(found.base, where=found.where)
    for folder in found.adapters if len(found.adapters) > 1 else ():
        check_linear([read_config(folder)], where=str(folder), do="its parts can't be switched off one by one")
    yardsticks = choose_yardsticks(subject, data, stage, held_out)
    yardsticks.warnings.extend(subject.warnings)
    each_state, device = variants(subject), choose_device()
    keep_freed_memory()
    with telling(console, 2 + len(each_state)) as tell:
        tell("questions and voice")
        asked = ask_built_in(found.base) if yardsticks.asked is None else ask_held_out(yardsticks, cache)
        voice = learn_voice(yardsticks, asked, seed=seed, cache=cache)
        sampling = sampling.model_copy(update={"max_new_tokens": max_new_tokens or asked.max_new_tokens})
        tell(f"base {found.base}")
        ready = _load(subject, asked, sampling, device, trust_remote_code)
        measured = []
        for variant in each_state:
            tell(variant.name)
            with switched(ready.opened.model, found, variant), precision_context(device.device, device.dtype):
                measured.append(_measure(ready, variant, asked, voice))
    yardsticks.warnings.extend(f"forced: {line}" for line in ready.opened.forced)
    result = described(subject, yardsticks, asked, sampling, voice, measured, precision=device.precision, seed=seed)
    if found.stack is not None and found.as_trained and subject.instructed:
        _keep(found.stack.parent / THREE_WAY, result, console)
    return result


# ---------------------------------------------------------------------------------------------------------- one variant


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """The stack on its base. forest: as it reads forests; shares: are the beginnings that rows have in common read once?"""

    opened: Opened
    forest: ForestModel
    shares: bool
    sampling: Sampling


def _load(subject: Subject, asked: Asked, sampling: Sampling, device: Device, trust_remote_code: bool) -> _Ready:
    """Load the base, put the adapters on, and prove that they can be switched off."""
    found = subject.found
    base = load_base(found.base, device, trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where)
    proofs = prove_base(base.model, words=len(base.tokenizer))
    if asked.branches is not None and not proofs.packs:
        raise UserError(
            asked.branches, got="a conversation that is a tree", expected="one text, for this base does not keep branches apart",
            do="set data.turns: last",
        )  # fmt: skip
    with precision_context(device.device, device.dtype):
        bare = _logits(base.model, asked.questions[0])
        opened = put_on(base, found)
        with switched(opened.model, found, variants(subject)[0]):
            same = torch.equal(bare, _logits(opened.model, asked.questions[0]))
    assert same, "with all adapters off the model is not its base"
    forest = ForestModel(base.model, words=len(base.tokenizer), head=proofs.head)  # adapters lie inside
    return _Ready(opened=opened, forest=forest, shares=proofs.packs, sampling=sampling)


@torch.inference_mode()
def _logits(model: Model, question: Question) -> Tensor:
    return model(input_ids=torch.from_numpy(question.ids[None].astype(np.int64)).to(model.device)).logits


def _measure(ready: _Ready, variant: Variant, asked: Asked, voice: Voice | None) -> Measured:
    """Ask and score; the model is in the variant's state."""
    held = None
    if asked.held_out is not None:
        ((part, samples),) = asked.held_out.samples.items()
        held = measure(ready.forest, samples, asked.held_out.characters[part], share_prefixes=ready.shares)
    answers = answer(ready.opened.model, ready.opened.base, asked.questions, ready.sampling)
    # the style-only variant most often runs on until the limit: the score would grow with the text, not with the style
    alike = [plain(each.text)[: asked.typical] for each in answers]
    return Measured(variant=variant, answers=answers, held_out=held, scores=None if voice is None else voice.style_score(alike))


def answer(model: Model, base: Base, questions: Sequence[Question], sampling: Sampling) -> list[Given]:
    """An answer to each; number i draws from (sampling.seed, i), whatever the model. Raises what decoding raises."""
    rows = [
        open_row(model, base.tokenizer, each.ids.tolist(), sampling, number=i, chat=False, where=each.origin)
        for i, each in enumerate(questions)
    ]
    order = sorted(rows, key=lambda row: len(row.ids))  # like lengths together: little padding
    ends = end_tokens(model, base.tokenizer)
    for start in range(0, len(order), BATCH):
        for _ in decode(model, order[start : start + BATCH], sampling, ends):
            pass
    return [_given(row, base) for row in rows]


def _given(row: Row, base: Base) -> Given:
    drawn = row.writer.ids[min(CONTEXT, len(row.ids)) :]
    written = base.tokenizer.decode(drawn, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(written, str)
    return Given(text=said(row.text), written=written, tokens=row.tokens, stopped=row.stopped == "stop")


def _keep(path: Path, result: dict[str, Any], console: Console) -> None:
    """Write three_way.json, where the folder may be written to."""
    if os.access(path.parent, os.W_OK):
        write_json(path, result)
    else:
        console.print(f"not kept   {path.parent} can't be written to", markup=False, highlight=False)
