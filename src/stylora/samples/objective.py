"""The recipe's `objective` section, and a window of text -> a sample by the chosen way. One file per way: clm, span, fim.

Randomness comes from (seed, epoch, sample id) alone: fresh every epoch, the same in every run, whatever the batch or the process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.forest import Sample, chain

from .anchors import Kl, add_anchors
from .clm import clm
from .fim import FimTokens, fim, find_fim_tokens
from .span import span

READ_BY: dict[str, set[str]] = {
    "clm": set(), "span": {"mask_ratio", "span_ratio", "span_length", "whole_words"}, "fim": {"fim_rate", "spm_rate", "loss"},
    "answers": set(), "branches": set(),
}  # fmt: skip
"""kind -> the settings it reads; `kl` stands beside any of them"""
ANCHORS = 1
"""Ends the key of the random numbers that draw anchors: they are others than those of the masks, which stay as they were."""


class Objective(BaseModel, frozen=True, extra="forbid"):
    """What a window of text or a conversation is made to teach.

    kind: `clm` next token everywhere; `span` next token where the token itself was hidden; `fim` fill in the middle; `answers` what the
        assistant says in conversations; `branches` what continues a trunk. None is `answers` for conversations and `branches` for branches,
        which have no other, and `clm` for text
    mask_ratio: span: share of tokens predicted, 15 % as BERT; 0 would teach nothing
    span_ratio: span: share of those that lie in spans, the rest single tokens
    span_length: span: shortest and longest span in tokens, idiom length in Chinese
    whole_words: span: never hide half a word (jieba); slower to prepare, 1.2 MB/s
    fim_rate: fim: share of windows reordered, the rest is `clm`
    spm_rate: fim: share of the reordered in suffix-prefix-middle order, the rest prefix-suffix-middle
    loss: fim: `all` tokens, as the paper trains, or only the `middle`
    kl: hold the model to its reference while it learns; null for cross-entropy alone
    """

    kind: Literal["clm", "span", "fim", "answers", "branches"] | None = None
    mask_ratio: float = Field(default=0.15, gt=0, le=1)
    span_ratio: float = Field(default=0.5, ge=0, le=1)
    span_length: tuple[int, int] = (3, 5)
    whole_words: bool = False
    fim_rate: float = Field(default=0.5, gt=0, le=1)
    spm_rate: float = Field(default=0.5, ge=0, le=1)
    loss: Literal["all", "middle"] = "all"
    kl: Kl | None = None

    @model_validator(mode="after")
    def fits(self) -> Objective:
        """Spans have a positive, ordered length; settings of one kind do not stand under another, where nobody reads them."""
        low, high = self.span_length
        if not 1 <= low <= high:
            raise ValueError(f"span_length is {list(self.span_length)}, expected [shortest, longest] with 1 <= shortest <= longest")
        idle = self.model_fields_set - READ_BY[self.kind or "clm"] - {"kind", "kl"}
        if idle:
            raise ValueError(f"{', '.join(sorted(idle))}: objective `{self.kind or 'clm'}` does not read this; remove it or change `kind`")
        return self

    @model_serializer(mode="wrap")
    def without_idle(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Written out with the settings of its kind alone, so that a run's resolved recipe passes `fits` again."""
        read = {"kind", *READ_BY[self.kind or "clm"], *(["kl"] if self.kl is not None else [])}
        return {name: value for name, value in handler(self).items() if name in read}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What objectives know of a tokenizer. ordinary: int32, ids of tokens that are no specials; fim: its FIM tokens, if any"""

    ordinary: np.ndarray
    fim: FimTokens | None


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The ordinary tokens and the FIM tokens of a tokenizer."""
    added = set(tokenizer.get_added_tokens_decoder())
    ids = np.array([i for i in range(tokenizer.get_vocab_size()) if i not in added], np.int32)
    return Vocabulary(ordinary=ids, fim=find_fim_tokens(tokenizer))


def check_kind(objective: Objective, format: str, where: str = "objective.kind") -> None:
    """Raises UserError for `answers` or `branches` of text, and for anything else of conversations or branches. format: of the data"""
    only = {"chat": "answers", "branches": "branches"}.get(format)
    if objective.kind is not None and objective.kind not in ([only] if only else ["clm", "span", "fim"]):
        expected = f"{only}, for data of `{format}` have no other" if only else f"clm, span or fim, for the data are `{format}`"
        raise UserError(where, got=objective.kind, expected=expected, do="remove it, or change data.format")


def check_vocabulary(objective: Objective, vocabulary: Vocabulary, where: str = "objective.kind") -> None:
    """Raises UserError where the objective needs tokens that the base does not have."""
    if objective.kind == "fim" and vocabulary.fim is None:
        raise UserError(
            where, got="fim", expected="a base whose tokenizer has fill-in-the-middle tokens", do="use `clm` or `span`, or such a base"
        )


def build_sample(
    objective: Objective,
    ids: np.ndarray,
    *,
    vocabulary: Vocabulary,
    key: tuple[int, ...],
    word_starts: np.ndarray | None = None,
    general: bool = False,
) -> Sample:
    """One window as a sample, with its anchors where the objective has `kl`.

    ids: int32 [T]; key: (seed, epoch, *sample id); word_starts: bool [T] for whole words; general: is it of the general text?
    """
    sample = _without_anchors(objective, ids, vocabulary, key, word_starts)
    if objective.kl is not None and objective.kl.on == "general" and general and objective.kind == "span":
        sample = replace(sample, forest=chain(ids))  # the reference never saw noise: there is nothing in its answer to hold on to
    return with_anchors(sample, objective.kl, key=key, general=general)


def with_anchors(sample: Sample, kl: Kl | None, *, key: tuple[int, ...], general: bool = False) -> Sample:
    """The sample with the anchors that `kl` asks for. key: (seed, epoch, *sample id)"""
    if kl is None:
        return sample
    rng = np.random.default_rng(np.random.SeedSequence([part & (2**64 - 1) for part in (*key, ANCHORS)]))
    return add_anchors(sample, kl, general=general, rng=rng)


def _without_anchors(
    objective: Objective, ids: np.ndarray, vocabulary: Vocabulary, key: tuple[int, ...], word_starts: np.ndarray | None
) -> Sample:
    if objective.kind in (None, "clm"):
        return clm(ids)
    rng = np.random.default_rng(np.random.SeedSequence([part & (2**64 - 1) for part in key]))
    if objective.kind == "span":
        return span(
            ids, rng, ordinary=vocabulary.ordinary, mask_ratio=objective.mask_ratio, span_ratio=objective.span_ratio,
            span_length=objective.span_length, word_starts=word_starts,
        )  # fmt: skip
    assert vocabulary.fim is not None, "check_vocabulary comes first"
    if rng.random() >= objective.fim_rate:
        return clm(ids)
    return fim(ids, rng, tokens=vocabulary.fim, suffix_first=rng.random() < objective.spm_rate, middle_only=objective.loss == "middle")
