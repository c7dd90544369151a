"""Continue prompts with a causal language model: in batches, or as a stream of text.

The loop is our own, not transformers' `generate`, for one property: **a continuation depends on its prompt, its number and the
seed, and on nothing else**, neither on the prompts that share its batch nor on how large the batch is. `generate` draws all rows
from one generator. Here every prompt has its own and spends one number per token on it (inverse transform sampling), so every
device draws alike too. Branches are decoded by the same loop.

Rows are padded on the left, so that all of them end at the same column; positions are counted without the padding:

    prompts  a b c      ids  a b c   mask 1 1 1   position 0 1 2
             x               0 0 x        0 0 1            0 0 0

Knows models and tokenizers, no adapters, recipes or files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stylora.errors import UserError

from .settings import Sampling
from .text import Writer, encode, turn_end

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A prompt and its continuation.

    prompt: as given, without the chat template; text: the continuation without end tokens, special tokens and stop texts
    tokens: tokens drawn, the end token not counted
    stopped: "stop" at an end token or a stop text, "length" at max_new_tokens or at the end of the context
    """

    prompt: str
    text: str
    tokens: int
    stopped: Literal["stop", "length"]


@dataclass(kw_only=True)
class Row:
    """A continuation under way. ids: the prompt's; limit: tokens that may be drawn; random: its own numbers in [0, 1)."""

    ids: list[int]
    limit: int
    random: np.random.Generator
    writer: Writer
    text: str = ""
    tokens: int = 0
    stopped: Literal["stop", "length"] | None = None

    def take(self, token: int, ends: frozenset[int]) -> str:
        """Go on by one token: the text that it makes certain."""
        text = ""
        if token not in ends:
            text = self.writer.push(token)
            self.tokens += 1
        full = self.tokens == self.limit
        if token in ends or full:
            text += self.writer.close()
        if token in ends or self.writer.stopped:
            self.stopped = "stop"
        elif full:
            self.stopped = "length"
        self.text += text
        return text


def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    chat: bool = False,
    batch_size: int = 16,
) -> list[Generation]:
    """Continue every prompt; prompt number i draws from (sampling.seed, i). `batch_size` changes speed and memory only.

    model: on any device; its modules' training flags are as before afterwards
    chat: prompts are user turns, wrapped by the tokenizer's chat template
    Raises UserError for a prompt without tokens, one that leaves no room in the context, and `chat` without a template.
    """
    rows = [
        open_row(model, tokenizer, prompt, sampling, number=i, chat=chat, where=f"prompts[{i}]")
        for i, prompt in enumerate(prompts)
    ]
    order = sorted(rows, key=lambda row: len(row.ids))  # like lengths together: little padding
    ends = end_tokens(model, tokenizer)
    for start in range(0, len(order), batch_size):
        for _ in decode(model, order[start : start + batch_size], sampling, ends):
            pass
    results = []
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.stopped is not None
        results.append(Generation(prompt=prompt, text=row.text, tokens=row.tokens, stopped=row.stopped))
    return results


def stream(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], sampling: Sampling, *, chat: bool = False
) -> Iterator[str]:
    """The continuation of one prompt as it comes, in whole characters; joined, it is the text of `generate([prompt])`.

    prompt: a text, or ids, which are continued as they are
    The model is in eval mode until the stream ends or is closed. Raises as `generate` does, at the first text asked for.
    """
    row = open_row(model, tokenizer, prompt, sampling, number=0, chat=chat, where="prompt")
    yield from filter(None, decode(model, [row], sampling, end_tokens(model, tokenizer)))


def open_row(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], sampling: Sampling, *, number: int, chat: bool,
    where: str,
) -> Row:  # fmt: skip
    """Tokens of a prompt and how many may follow: max_new_tokens, or what the context leaves after the prompt if that is less.

    prompt: a text, or ids, which are continued as they are; number: of the prompt, which with the seed makes its draw
    """
    if chat and tokenizer.chat_template is None:
        raise UserError("chat", got="a tokenizer without a chat template", expected="a model made for chat", do="leave chat off")
    ids = encode(tokenizer, prompt, chat)
    context = int(model.config.get_text_config().max_position_embeddings)
    if not ids:
        raise UserError(where, got="an empty prompt", expected="at least one token to continue", do="write a word")
    if len(ids) >= context:
        raise UserError(
            where, got=f"{len(ids)} tokens", expected=f"at most {context - 1}, one less than the model's context", do="shorten it"
        )
    return Row(
        ids=ids, limit=min(sampling.max_new_tokens, context - len(ids)),
        random=np.random.default_rng([sampling.seed, number]), writer=Writer(tokenizer, ids, sampling.stop),
    )  # fmt: skip


def end_tokens(model: Model, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Where a text ends: the end tokens of the model's generation config and the tokenizer's, and what ends an assistant's turn."""
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, turn_end(tokenizer), *(named if isinstance(named, list) else [named])}
    return frozenset(ends - {None})


@torch.inference_mode()
def decode(model: Model, rows: Sequence[Row], sampling: Sampling, ends: frozenset[int]) -> Generator[str, None, None]:
    """Go on with all rows at once until each has stopped; yields the text that each row gains by each token.

    A row that has stopped stays in the batch, unread, until the last one has.
    """
    device = model.device
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (width - len(row.ids)) + row.ids for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
    position = (mask.cumsum(1) - 1).clamp_min(0)
    seen: Tensor | None = None
    cache = None
    with evaluating(model):
        while any(row.stopped is None for row in rows):
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=last(ids)
            )
            scores, cache = out.logits[:, -1].float(), out.past_key_values
            if scores.isnan().any():
                raise UserError("model", got="logits that are not numbers", expected="numbers", do="decode in bf16 or fp32")
            if sampling.repetition_penalty != 1:
                if seen is None:
                    seen = torch.zeros_like(scores, dtype=torch.bool)
                    for line, row in zip(seen, rows, strict=True):
                        line[row.ids] = True
                else:
                    seen.scatter_(1, ids.to(seen.device), True)
                scores = penalize(scores, seen, sampling.repetition_penalty)
            numbers = torch.tensor([row.random.random(dtype=np.float32) for row in rows], device=scores.device)
            tokens = choose(scores, numbers, sampling)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row.stopped is None:
                    yield row.take(token, ends)
            ids = tokens[:, None].to(device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            position = position[:, -1:] + 1


def last(ids: Tensor) -> Tensor:
    """int64 [1]: the column of `ids`, [B, T], whose logits are wanted. As an index it makes a copy of the hidden states; `logits_to_keep=1`
    makes a view, which torch 2.13 multiplies forty times slower in bf16 on a CPU."""
    return torch.tensor([ids.shape[1] - 1], device=ids.device)


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """scores, float32 [B, V]: those of the tokens `seen` [B, V] are less likely by `penalty`."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def choose(scores: Tensor, numbers: Tensor, sampling: Sampling) -> Tensor:
    """int64 [B]: from each row of scores (float32 [B, V]) the token at which its probabilities, summed from the likeliest on,
    exceed its number (float32 [B], in [0, 1)). Greedy at temperature 0."""
    if sampling.temperature == 0:
        return scores.argmax(-1)
    order, sums, kept = candidates(scores, sampling)
    last = kept[:, None] - 1
    place = torch.searchsorted(sums, numbers[:, None] * sums.gather(1, last), right=True)
    place = torch.minimum(place, last)  # sums made in parallel need not rise everywhere
    return order.gather(1, place)[:, 0]


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens from the likeliest on [B, K], their summed probabilities [B, K], and how many of them top_k and top_p keep [B]."""
    values, order = scores.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        values, order = values[:, : sampling.top_k], order[:, : sampling.top_k]
    sums = ((values - values[:, :1]) / sampling.temperature).softmax(-1).cumsum(-1)
    if sampling.top_p == 1:
        return order, sums, torch.full_like(order[:, 0], order.shape[1])
    kept = (sums < sampling.top_p).sum(-1) + 1
    return order, sums, kept.clamp_max(order.shape[1])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while. Every module gets its own flag back: a frozen adapter in a training model is in eval mode too."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
