"""How likely the base finds given continuations: its perplexity of them, adapters off. A low one is dull or copied as often as good.

Only the continuation counts; the prompt is read. Always to be shown beside distinct-n (evaluate/repetition.py), for loops are very likely.
Knows no sampling and no recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from transformers import PreTrainedTokenizerBase

from stylora.forest import Sample, chain, edges
from stylora.generate.text import encode
from stylora.model.forest_model import ForestModel
from stylora.model.reference import adapted_layers, as_reference

from .held_out import HeldOut, measure


def fluency(
    model: ForestModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, chat: bool = False,
    tokens_at_once: int = 8192,
) -> HeldOut:  # fmt: skip
    """The base's nats of each continuation, one entry a pair: `perplexity` is per token, `perplexity_per_character` per character.

    model: with adapters, which are off for it, or a bare base
    pairs: (prompt, continuation), encoded apart, as the continuation was drawn after the prompt's tokens. An empty continuation has 0
        tokens; after a prompt without tokens the first one has nothing to be predicted from, and does not count
    chat: prompts are user turns, as for `generate`
    Runs under the autocast of its caller.
    """
    samples = [
        continuation(encode(tokenizer, prompt, chat), tokenizer(text, add_special_tokens=False)["input_ids"]) for prompt, text in pairs
    ]
    with as_reference(model.model) if adapted_layers(model.model) else nullcontext():
        return measure(model, samples, [len(text) for _, text in pairs], tokens_at_once=tokens_at_once)


def continuation(prompt: Sequence[int], ids: Sequence[int]) -> Sample:
    """A chain whose edges are the steps onto the tokens after the prompt.

    p p a b      edges  p->a  a->b
    """
    whole = [*prompt, *ids]
    first = max(len(prompt), 1)
    return Sample(forest=chain(whole), edges=edges(range(first - 1, len(whole) - 1), whole[first:]))
