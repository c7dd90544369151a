"""What a recipe's stage will read, before any model is opened: its windows, and its optimizer steps one by one.

`train` carries these steps out; `data` and `inspect` show them. All three come here, so what is shown is what training reads. Imports no
torch and no transformers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.forest import Sample
from stylora.model.tokenizer_file import context_length, hash_file, tokenizer_file
from stylora.recipe.recipe import Recipe, Stage
from stylora.samples.objective import Vocabulary, build_sample
from stylora.samples.text import TextData, prepare_text
from stylora.train.steps import Steps

FIM_EXTRA = 3  # sentinels that `fim` adds to a window


def open_tokenizer(base: str) -> Tokenizer:
    """The base's tokenizer. Raises UserError where there is no such base."""
    return Tokenizer.from_file(str(tokenizer_file(base)))


def read_data(
    recipe: Recipe, tokenizer: Tokenizer, *, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> TextData:
    """The stage's text as windows, through the token cache.

    tokenizer: of the recipe's base; cache: folder of the token cache, None for the user's own; progress: called with (bytes read, in all)
    Raises UserError where the text cannot be had, or its windows are longer than the base's context.
    """
    stage = recipe.stages[0]
    context = context_length(recipe.base)
    if context is not None:
        check_window(stage, context)
    return prepare_text(
        stage.data, tokenizer=tokenizer, tokenizer_hash=hash_file(tokenizer_file(recipe.base)), words=stage.objective.whole_words,
        context=context or sys.maxsize, cache=cache or cache_folder(), progress=progress,
    )  # fmt: skip


def check_window(stage: Stage, context: int) -> None:
    """Raises UserError where a training row would be longer than the base was made for."""
    extra = FIM_EXTRA if stage.objective.kind == "fim" else 0
    if stage.data.window + extra > context:
        more = f" and {extra} fill-in-the-middle tokens" if extra else ""
        raise UserError(
            "data.window", got=f"{stage.data.window} tokens{more}", expected=f"at most {context} tokens, the context of the base",
            do="lower data.window",
        )  # fmt: skip


def plan_steps(stage: Stage, data: TextData, vocabulary: Vocabulary, *, packs: bool) -> Steps:
    """Every optimizer step of the stage as a pure function of its number. packs: may a row hold several documents?"""

    def build(index: int, epoch: int) -> Sample:
        return build_sample(
            stage.objective, data.ids(index), vocabulary=vocabulary, key=(stage.train.seed, epoch, *data.sample_id(index)),
            word_starts=data.word_starts(index) if stage.objective.whole_words else None,
        )  # fmt: skip

    return Steps(
        data.epoch, build, samples_per_step=stage.train.samples_per_step, tokens_per_microbatch=stage.train.tokens_per_microbatch,
        row_tokens=stage.train.row_tokens, num_train_epochs=stage.train.num_train_epochs, max_steps=stage.train.max_steps, packs=packs,
    )  # fmt: skip


def cache_folder() -> Path:
    """Where tokenised text is kept: $STYLORA_CACHE, else the user's cache folder."""
    if os.environ.get("STYLORA_CACHE"):
        return Path(os.environ["STYLORA_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "stylora"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylora"
