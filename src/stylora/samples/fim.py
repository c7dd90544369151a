"""Fill in the middle: a window is cut in three and reordered, so that a causal model learns to write what fits between.

    text    a b c d e            prefix a b, middle c, suffix d e
    PSM     <P> a b <S> d e <M> c            c is followed by an edge to the end-of-text token
    SPM     <P> <S> d e <M> a b c            prefix and middle stand together ("SPMv2" of the paper's appendix D)

Bavarian et al. 2022, arXiv 2207.14255. The tokens are the tokenizer's own; where it has none, `fim` is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from tokenizers import Tokenizer

from stylora.forest import Sample, chain, edges

FAMILIES = [  # prefix, suffix, middle, end of text
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"),  # Qwen2.5, Qwen3
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>"),  # StarCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"),  # CodeGemma
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<｜end▁of▁sentence｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # Code Llama
]


@dataclass(frozen=True, kw_only=True)
class FimTokens:
    """Token ids."""

    prefix: int
    suffix: int
    middle: int
    end: int


def find_fim_tokens(tokenizer: Tokenizer) -> FimTokens | None:
    """The tokenizer's own FIM tokens, or None."""
    for family in FAMILIES:
        ids = [id_ for token in family if (id_ := tokenizer.token_to_id(token)) is not None]
        if len(ids) == len(family):
            return FimTokens(prefix=ids[0], suffix=ids[1], middle=ids[2], end=ids[3])
    return None


def fim(ids: np.ndarray, rng: np.random.Generator, *, tokens: FimTokens, suffix_first: bool, middle_only: bool) -> Sample:
    """One window, reordered at two random places. ids: int32 [T] -> a chain of T + 3 tokens.

    suffix_first: SPM order instead of PSM; middle_only: edges into the middle and the end of text alone
    """
    first, second = np.sort(rng.integers(0, len(ids) + 1, size=2)).tolist()
    prefix, middle, suffix = ids[:first], ids[first:second], ids[second:]
    parts: list[ArrayLike]
    if suffix_first:
        parts = [[tokens.prefix, tokens.suffix], suffix, [tokens.middle], prefix, middle]
    else:
        parts = [[tokens.prefix], prefix, [tokens.suffix], suffix, [tokens.middle], middle]
    row = np.concatenate(parts).astype(np.int32)
    targets = np.append(row[1:], tokens.end)
    sources = np.arange(len(row))
    if middle_only:
        sources = sources[len(row) - 1 - len(middle) :]
    else:  # nobody has to learn where the reader puts the sentinels
        sentinels = [tokens.prefix, tokens.suffix, tokens.middle]
        sources = sources[~np.isin(targets, sentinels)]
    return Sample(forest=chain(row), edges=edges(sources, targets[sources]))
