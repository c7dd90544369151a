"""Answer many questions at once, greedily: what they have in common is computed once, and JSON can be held to a schema.

    shared    s s s q1 q1 q2 q2 q2       all in one row under a mask, as branches of one trunk (shared_cache.py), where the model was
                                         proved to keep tokens of one row apart
    copied    s s s . q1 q1              else: the trunk's keys and values copied to every row of the batch, the rest padded on the left,
              s s s q2 q2 q2             so that all end at the same column; no trunk where layers keep a window or a state

An answer depends on its question alone: not on the batch, its size or the others in it. Rows leave the batch once half of them have ended.
A constraint takes away the tokens that no text of the schema goes on with (llguidance; Willard and Louf 2023, arXiv 2307.09702, is the
idea). Knows models and tokenizers, no recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stylora.errors import UserError

from .decode import Model, evaluating, last
from .labels import common_prefix
from .shared_cache import SharedCache, Tail
from .text import Writer

CANONICAL = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as `data.answers: json` has it in training"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """text: without the end token; confidence: geometric mean probability of its tokens, the end token included, as the model has them
    before any constraint; stopped: it ended by itself"""

    text: str
    confidence: float
    stopped: bool


class Schema:
    """A JSON schema, compiled for a model's tokenizer.

    vocabulary: rows of the model's logits; ends: tokens that end an answer. Raises UserError for a schema that can't be compiled.
    """

    def __init__(
        self, schema: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, ends: frozenset[int],
        where: str = "task.json_schema",
    ) -> None:  # fmt: skip
        self.vocabulary = vocabulary
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))  # type: ignore[arg-type]
        self._grammar = llguidance.LLMatcher.grammar_from_json_schema({"x-guidance": CANONICAL, **_sorted(schema)})
        trouble = llguidance.LLMatcher.validate_grammar(self._grammar, self._tokenizer)
        if trouble:
            raise UserError(where, got=trouble.strip().splitlines()[0], expected="a JSON schema that llguidance can follow")

    def accepts(self, text: str) -> bool:
        """Is this text one of the schema's, as it would be written here?"""
        matcher, tokens = self.matcher(), self._tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    def matcher(self) -> llguidance.LLMatcher:
        """Follows one answer."""
        return llguidance.LLMatcher(self._tokenizer, self._grammar)


def _sorted(schema: Any) -> Any:
    """The schema with the properties of every object in order: answers are learned with sorted keys, and a grammar fixes their order."""
    if isinstance(schema, dict):
        parts = {key: _sorted(value) for key, value in schema.items()}
        return {key: dict(sorted(part.items())) if key == "properties" else part for key, part in parts.items()}
    return [_sorted(each) for each in schema] if isinstance(schema, list) else schema


@dataclass(kw_only=True)
class _Row:
    """An answer under way. number: of its question; nats: summed over the tokens so far"""

    number: int
    ids: np.ndarray
    limit: int
    writer: Writer
    matcher: llguidance.LLMatcher | None
    nats: float = 0.0
    tokens: int = 0
    text: list[str] = field(default_factory=list)
    stopped: bool = False
    done: bool = False

    def take(self, token: int, nats: float, ends: frozenset[int]) -> None:
        """Go on by one token."""
        self.nats += nats
        self.tokens += 1
        self.stopped = token in ends
        if not self.stopped:
            self.text.append(self.writer.push(token))
        if self.matcher is not None:
            followed = self.matcher.consume_token(token)
            assert followed, self.matcher.get_error()
        self.done = self.stopped or self.tokens == self.limit
        if self.done:
            self.text.append(self.writer.close())


def answer_questions(
    model: Model, tokenizer: PreTrainedTokenizerBase, questions: Sequence[np.ndarray], *, ends: frozenset[int], max_new_tokens: int = 256,
    schema: Schema | None = None, batch_size: int = 32, packs: bool = False, told: Callable[[int], None] | None = None,
) -> list[Answer]:  # fmt: skip
    """Answer every question greedily.

    questions: int32 [T] each, up to the opened answer; ends: tokens that end an answer; max_new_tokens: of an answer and its end
    packs: was the model proved to keep tokens of one row apart? batch_size: like `packs` it changes speed and memory only
    told: called with the number of questions that a batch has answered
    Raises UserError for a question that leaves no room in the model's context, and logits that are no numbers.
    """
    context = int(model.config.get_text_config().max_position_embeddings)
    rows = []
    for number, ids in enumerate(questions):
        if len(ids) >= context:
            expected = f"at most {context - 1} tokens, one less than the model's context"
            raise UserError(f"question {number + 1}", got=f"{len(ids)} tokens", expected=expected, do="shorten it")
        rows.append(_Row(
            number=number, ids=ids, limit=min(max_new_tokens, context - len(ids)), writer=Writer(tokenizer, ids.tolist(), []),
            matcher=None if schema is None else schema.matcher(),
        ))  # fmt: skip
    rows.sort(key=lambda row: len(row.ids))  # like lengths together: little padding
    with torch.inference_mode(), evaluating(model):
        for start in range(0, len(rows), batch_size):
            group = rows[start : start + batch_size]
            shared = common_prefix([row.ids for row in group]) if len(group) > 1 and shares_cache(model) else 0
            (_answer_as_branches if shared and packs else _answer)(model, group, shared, ends, schema)
            if told is not None:
                told(len(group))
    rows.sort(key=lambda row: row.number)
    return [Answer(text="".join(row.text), confidence=math.exp(-row.nats / row.tokens), stopped=row.stopped) for row in rows]


def _answer_as_branches(model: Model, rows: list[_Row], shared: int, ends: frozenset[int], schema: Schema | None) -> None:
    """Go on with all rows at once until each has ended. shared: tokens they begin with in common"""
    cache = SharedCache(model)
    cache.plant(0, rows[0].ids[:shared])
    tails = [Tail(0, branch, row.ids[shared:], shared) for branch, row in enumerate(rows)]
    while rows:
        tokens = _take(cache.read(tails), rows, ends, schema).tolist()
        going = []
        for row, tail, token in zip(rows, tails, tokens, strict=True):
            if row.done:
                cache.drop(branch=tail.branch)
            else:
                going.append((row, Tail(0, tail.branch, np.array([token]), tail.time + len(tail.ids))))
        rows, tails = [row for row, _ in going], [tail for _, tail in going]


def _answer(model: Model, rows: list[_Row], shared: int, ends: frozenset[int], schema: Schema | None) -> None:
    """The same, each in a row of its own, the trunk's keys copied to all."""
    device = model.device
    cache = None
    if shared:
        trunk = torch.from_numpy(rows[0].ids[None, :shared].astype(np.int64)).to(device)
        cache = model(input_ids=trunk, use_cache=True, logits_to_keep=last(trunk)).past_key_values
        cache.batch_repeat_interleave(len(rows))
    width = max(len(row.ids) for row in rows) - shared
    pad = [width - (len(row.ids) - shared) for row in rows]
    ids = torch.tensor([[0] * n + row.ids[shared:].tolist() for n, row in zip(pad, rows, strict=True)], device=device)
    mask = torch.tensor([[1] * shared + [0] * n + [1] * (width - n) for n in pad], device=device)
    position = (mask.cumsum(1) - 1).clamp_min(0)[:, shared:]
    while rows:
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=last(ids)
        )
        cache = out.past_key_values
        tokens = _take(out.logits[:, -1].float(), rows, ends, schema)[:, None]
        live = [i for i, row in enumerate(rows) if not row.done]
        if 2 * len(live) <= len(rows):
            if not live:
                return
            kept = torch.tensor(live, device=device)
            rows = [rows[i] for i in live]
            cache.reorder_cache(kept)  # batch_select_indices is not there for the states of linear attention
            tokens, mask, position = tokens[kept], mask[kept], position[kept]
        ids = tokens.to(device)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        position = position[:, -1:] + 1


def _take(scores: Tensor, rows: Sequence[_Row], ends: frozenset[int], schema: Schema | None) -> Tensor:
    """int64 [B]: each row goes on by the likeliest token that its schema allows. scores: float32 [B, V]

    Raises UserError for scores that are no numbers.
    """
    if scores.isnan().any():
        raise UserError("model", got="logits that are not numbers", expected="numbers", do="answer in bf16 or fp32")
    nats = -scores.log_softmax(-1)
    if schema is not None:
        _hold(scores, rows, schema)
    tokens = scores.argmax(-1)
    taken = nats.gather(1, tokens[:, None])[:, 0].tolist()
    for row, token, cost in zip(rows, tokens.tolist(), taken, strict=True):
        if not row.done:
            row.take(token, cost, ends)
    return tokens


def _hold(scores: Tensor, rows: Sequence[_Row], schema: Schema) -> None:
    """Take from each row's scores, float32 [B, V], the tokens that its schema does not go on with."""
    words = llguidance.numpy.allocate_token_bitmask(len(rows), schema.vocabulary)  # int32 [B, V / 32], all ones
    for line, row in enumerate(rows):
        if row.matcher is not None and not row.done:
            llguidance.numpy.fill_next_token_bitmask(row.matcher, words, line)
    allowed = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, : scores.shape[1]].astype(bool)
    scores.masked_fill_(~torch.from_numpy(allowed).to(scores.device), -math.inf)


def shares_cache(model: Model) -> bool:
    """May rows go on from one trunk? Not where a layer keeps a window or a state: padding between trunk and rest would count in it."""
    layers = getattr(model.config.get_text_config(), "layer_types", None)
    windowed = getattr(model.config.get_text_config(), "sliding_window", None) is not None and layers is None
    return not windowed and all(kind == "full_attention" for kind in layers or ())
