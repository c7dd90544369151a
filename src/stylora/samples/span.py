"""Span masking under causal attention: some tokens are hidden from the context and predicted from the left.

    text     a b c d e f g h
    chosen       c d     g          half of them in spans, half single
    input    a b _ x e f g h        80 % masked, 10 % another token, 10 % kept
    edges    b->c  _->d  f->g       the original token, from the position before

Under causal attention the token at i is predicted from i - 1, which never sees position i: what is masked at i only blurs the context of
later tokens. So this is next-token loss on 15 % of the tokens over noised context, not infilling; `fim` infills.
The proportions are BERT's (Devlin et al. 2018, arXiv 1810.04805, section 3.1), the spans SpanBERT's idea (arXiv 1907.10529).
"""

from __future__ import annotations

import numpy as np

from stylora.forest import MASK, Sample, chain, edges

MASKED, RANDOM = 0.8, 0.1  # the rest is kept


def span(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    ordinary: np.ndarray,
    mask_ratio: float,
    span_ratio: float,
    span_length: tuple[int, int],
    word_starts: np.ndarray | None = None,
) -> Sample:
    """One window with fresh masks.

    ids: int32 [T]; ordinary: int32, tokens a random replacement is drawn from
    word_starts: bool [T], True where a word begins: words are then hidden whole; None: every token is a word of its own
    """
    chosen = choose(len(ids), rng, mask_ratio, span_ratio, span_length, word_starts)
    fate = rng.random(len(chosen))
    noised = ids.copy()
    noised[chosen[fate < MASKED]] = MASK
    swapped = chosen[(fate >= MASKED) & (fate < MASKED + RANDOM)]
    noised[swapped] = rng.choice(ordinary, size=len(swapped))
    return Sample(forest=chain(noised), edges=edges(chosen - 1, ids[chosen]))


def choose(
    length: int,
    rng: np.random.Generator,
    mask_ratio: float,
    span_ratio: float,
    span_length: tuple[int, int],
    word_starts: np.ndarray | None,
) -> np.ndarray:
    """int64 [C], ascending: the positions to predict, never 0 (nothing stands before it).

    Spans first, in random places that touch no other, until `span_ratio` of the wanted tokens are covered; then single words.
    The last span or word is taken whole, so a few tokens more than `mask_ratio` may be chosen.
    """
    if length < 2:
        return np.empty(0, np.int64)
    wanted = max(1, round(mask_ratio * (length - 1)))
    starts = np.flatnonzero(word_starts) if word_starts is not None else np.arange(length)
    starts = starts[starts > 0]
    if not len(starts):  # one word fills the window
        return np.arange(1, min(length, 1 + wanted))
    ends = np.append(starts[1:], length)
    taken = np.zeros(length + 1, bool)
    in_spans = round(wanted * span_ratio)
    order = rng.permutation(len(starts))
    aims = rng.integers(span_length[0], span_length[1] + 1, size=len(order))
    count = 0
    for word, aim in zip(order.tolist(), aims.tolist(), strict=True):
        if count >= in_spans:
            break
        first = starts[word]
        last = ends[min(np.searchsorted(ends, first + min(aim, wanted - count)), len(ends) - 1)]
        if not taken[first - 1 : last + 1].any():
            taken[first:last] = True
            count += int(last - first)
    for word in rng.permutation(len(starts)).tolist():
        if count >= wanted:
            break
        first, last = starts[word], ends[word]
        if not taken[first:last].any():
            taken[first:last] = True
            count += int(last - first)
    return np.flatnonzero(taken)
