"""What a recipe's stage will read, before any model is opened: its windows, conversations or branches, and its optimizer steps one by one.

`train` carries these steps out; `data` and `inspect` show them. All three come here, so what is shown is what training reads. Imports no
torch and no transformers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.forest import Sample
from stylora.model.tokenizer_file import chat_template, context_length, has_chat_template, hash_file, special_tokens, tokenizer_file
from stylora.recipe.recipe import Recipe, Stage
from stylora.samples.branch_data import BranchData, prepare_branches
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import BranchFormat
from stylora.samples.chat import ChatFormat
from stylora.samples.chat_data import ChatData, prepare_chat
from stylora.samples.objective import Vocabulary, build_sample, check_kind, with_anchors
from stylora.samples.template import ChatTemplate
from stylora.samples.text import TextData, prepare_text
from stylora.train.steps import Steps

FIM_EXTRA = 3  # sentinels that `fim` adds to a window

StageData = TextData | ChatData | BranchData
"""what a stage reads: windows, conversations, or trunks with their branches"""


def open_tokenizer(base: str) -> Tokenizer:
    """The base's tokenizer. Raises UserError where there is no such base."""
    return Tokenizer.from_file(str(tokenizer_file(base)))


def read_data(
    recipe: Recipe, tokenizer: Tokenizer, *, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> StageData:
    """The stage's text as windows, through the token cache, or its conversations, or its trunks with their branches.

    tokenizer: of the recipe's base; cache: folder of the token cache, None for the user's own; progress: called with (bytes read, in all)
    Raises UserError where the data cannot be had, are longer than the base's context, or teach nothing that the objective asks for.
    """
    stage = recipe.stages[0]
    check_kind(stage.objective, stage.data.format)
    context = context_length(recipe.base)
    if stage.data.format == "chat":
        form = chat_format(recipe.base, tokenizer, stage.data.chat_template_kwargs)
        return prepare_chat(stage.data, form=form, context=context or sys.maxsize, progress=progress)
    if stage.branches is not None:
        shape = branch_format(recipe.base, tokenizer, stage.branches, stage.data.chat_template_kwargs)
        return prepare_branches(stage.data, stage.branches, form=shape, context=context or sys.maxsize, progress=progress)
    if context is not None:
        check_window(stage, context)
    return prepare_text(
        stage.data, tokenizer=tokenizer, tokenizer_hash=hash_file(tokenizer_file(recipe.base)), words=stage.objective.whole_words,
        context=context or sys.maxsize, cache=cache or cache_folder(), progress=progress,
    )  # fmt: skip


def chat_format(base: str, tokenizer: Tokenizer, variables: dict[str, Any]) -> ChatFormat:
    """How the base writes conversations. variables: for its template. Raises UserError where it has no template."""
    named = special_tokens(base)
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    template = ChatTemplate(chat_template(base), special=special, variables={**named, **variables})
    return ChatFormat(template, tokenizer, named.get("eos_token"))


def branch_format(base: str, tokenizer: Tokenizer, branches: Branches, variables: dict[str, Any]) -> BranchFormat:
    """How the base writes trunks and branches. variables: for its chat template, if it has one. Raises UserError for a fork that is not one
    token, and for a base without a stop token."""
    chat = chat_format(base, tokenizer, variables) if has_chat_template(base) else None
    return BranchFormat(tokenizer, branches, eos_token=special_tokens(base).get("eos_token"), chat=chat)


def shares_prefixes(stage: Stage) -> bool:
    """May samples that begin alike be merged? Conversations and isolated branches see only what they follow; in a tree of columnar branches
    a row of others would be seen, too."""
    return stage.data.format == "chat" or (stage.branches is not None and stage.branches.visibility == "isolated")


def check_window(stage: Stage, context: int) -> None:
    """Raises UserError where a training row of text would be longer than the base was made for."""
    if stage.data.format not in ("novels", "text"):
        return
    extra = FIM_EXTRA if stage.objective.kind == "fim" else 0
    if stage.data.window + extra > context:
        more = f" and {extra} fill-in-the-middle tokens" if extra else ""
        raise UserError(
            "data.window", got=f"{stage.data.window} tokens{more}", expected=f"at most {context} tokens, the context of the base",
            do="lower data.window",
        )  # fmt: skip


def plan_steps(
    stage: Stage, data: StageData, vocabulary: Vocabulary, *, packs: bool, rank: int = 0, ranks: int = 1
) -> Steps:
    """Every optimizer step of the stage as a pure function of its number. packs: may a row hold several documents?

    rank, ranks: which of how many processes asks
    Raises UserError for branches, and conversations that are trees, where the base was not proved to keep branches apart, and where KL is
    to be held on general text that nobody trains on.
    """
    if isinstance(data, BranchData) and not packs:
        raise UserError(
            "data.format", got="branches, on a base that was not proved to keep them apart", expected="a base whose layers do not leak",
            do="use another base; `stylora branches` decodes with this one, a branch at a time",
        )  # fmt: skip
    if isinstance(data, ChatData) and not packs and data.branches is not None:
        raise UserError(
            data.branches, got="a conversation whose history the chat template writes anew for every answer",
            expected="one text, for this base was not proved to keep two texts in a row apart", do="set data.turns: last",
        )  # fmt: skip

    kl = stage.objective.kl
    if kl is not None and kl.on == "general" and (not isinstance(data, TextData) or stage.data.general_ratio in (None, 0)):
        raise UserError("objective.kl.on", got="general", expected="edges or all, for no general text is trained on", do="change it")

    def build(index: int, epoch: int) -> Sample:
        if isinstance(data, ChatData):
            return with_anchors(data.sample(index), stage.objective.kl, key=(stage.train.seed, epoch, *data.sample_id(index)))
        if isinstance(data, BranchData):
            return with_anchors(data.sample(index, epoch), stage.objective.kl, key=(stage.train.seed, epoch, *data.sample_id(index)))
        return build_sample(
            stage.objective, data.ids(index), vocabulary=vocabulary, key=(stage.train.seed, epoch, *data.sample_id(index)),
            word_starts=data.word_starts(index) if stage.objective.whole_words else None, general=data.part(index) == "general",
        )  # fmt: skip

    return Steps(
        data.epoch, build, samples_per_step=stage.train.samples_per_step, tokens_per_microbatch=stage.train.tokens_per_microbatch,
        row_tokens=stage.train.row_tokens, num_train_epochs=stage.train.num_train_epochs, max_steps=stage.train.max_steps, packs=packs,
        rank=rank, ranks=ranks, share_prefixes=shares_prefixes(stage),
        counts=data.branch_counts if isinstance(data, BranchData) and not stage.data.batch_by_samples else None,
    )  # fmt: skip


def cache_folder() -> Path:
    """Where tokenised text is kept: $STYLORA_CACHE, else the user's cache folder."""
    if os.environ.get("STYLORA_CACHE"):
        return Path(os.environ["STYLORA_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "stylora"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylora"
