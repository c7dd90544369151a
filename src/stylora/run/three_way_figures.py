"""The figures of the three-way test, as three_way.json has them: each variant by itself, and what of the style's gain it keeps.

Takes the answers of the variants and their losses; gives plain values, None where a figure has no value. Intervals are over questions.
`distinct` falls with the amount of text, so it is counted over beginnings of one length, as style is. Knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stylora.evaluate.held_out import HeldOut, ratio_error
from stylora.evaluate.intervals import Interval, interval, ratio_interval
from stylora.evaluate.kept_gain import kept_gain
from stylora.evaluate.repetition import degenerate, distinct, repeated, squeeze
from stylora.evaluate.voice import Voice
from stylora.generate.settings import Sampling

from .figures import number
from .folder import adapter_hash
from .three_way_asked import Asked, Yardsticks
from .three_way_models import Subject, Variant


@dataclass(frozen=True, kw_only=True)
class Given:
    """An answer. text: without thoughts and special tokens; written: with the special tokens that were drawn; tokens: drawn;
    stopped: it ended by itself"""

    text: str
    written: str
    tokens: int
    stopped: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A variant. answers: to every question; held_out: loss of the right ones, None where there are none; scores: style, None without"""

    variant: Variant
    answers: list[Given]
    held_out: HeldOut | None
    scores: np.ndarray | None


def described(
    subject: Subject, yardsticks: Yardsticks, asked: Asked, sampling: Sampling, voice: Voice | None, measured: Sequence[Measured], *,
    precision: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The whole as three_way.json has it. measured: the base first; seed: of the intervals"""
    found, style = subject.found, yardsticks.style
    kept = kept_shares(measured, seed)
    warnings = [*yardsticks.warnings, *_cautions(asked, measured, kept)]
    return {
        "settings": {
            "model": found.name, "base": found.base, "seed": seed, "sampling": sampling.model_dump(mode="json"), "precision": precision,
            "questions": len(asked.questions), "source": asked.source, "typical": asked.typical,
            "shape": None if asked.shape is None else asked.shape.as_json(), "style": None if style is None else style.stages[0].name,
            "adapters": [
                {"name": each.name, "path": each.folder.as_posix(), "weight": each.weight, "hash": adapter_hash(each.folder)}
                for each in found.layers
            ],
        },
        "warnings": warnings,
        "voice": None if voice is None else {"accuracy": voice.accuracy, "passages": voice.passages, "apart": voice.apart},
        "variants": [variant_figures(each, asked, measured[0].held_out, kept.get(each.variant.key), seed) for each in measured],
    }  # fmt: skip


def variant_figures(each: Measured, asked: Asked, base: HeldOut | None, kept: Interval | None, seed: int) -> dict[str, Any]:
    """The entry of a variant. base: loss of the bare base; kept: share of the style's gain"""
    texts = [given.text for given in each.answers]
    breaches = None if asked.shape is None else [
        asked.shape.breach(given.text, stopped=given.stopped, written=given.written) for given in each.answers
    ]  # fmt: skip
    columns: dict[str, np.ndarray | None] = {
        "follows": None if breaches is None else np.array([breach is None for breach in breaches], float),
        "stops": np.array([given.stopped for given in each.answers], float), "style_score": each.scores,
    }  # fmt: skip
    return {
        "key": each.variant.key, "name": each.variant.name, "weights": list(each.variant.weights),
        **{key: None if values is None else interval(values, seed=seed).as_json() for key, values in columns.items()},
        "breaches": None if breaches is None else {why: breaches.count(why) / len(breaches) for why in sorted({*breaches}, key=str) if why},
        "style_kept": None if kept is None else kept.as_json(),
        "held_out": None if each.held_out is None or base is None else loss_figures(each.held_out, base, seed),
        "distinct_2": number(distinct([squeeze(text)[: asked.typical] for text in texts], 2)),
        "distinct_4": number(distinct([squeeze(text)[: asked.typical] for text in texts], 4)),
        "repeated": float(np.mean([repeated(text) for text in texts])), "degenerate": float(np.mean([degenerate(text) for text in texts])),
        "length": float(np.mean([given.tokens for given in each.answers])),
        "kinds": by_kind(asked.kinds, columns),
        "answers": [
            {
                "question": question.input, "kind": kind, "expected": question.expected, "text": given.text, "stopped": given.stopped,
                "breach": None if breaches is None else breaches[i], "style_score": None if each.scores is None else float(each.scores[i]),
            }
            for i, (question, kind, given) in enumerate(zip(asked.questions, asked.kinds, each.answers, strict=True))
        ],
    }  # fmt: skip


def loss_figures(held: HeldOut, base: HeldOut, seed: int) -> dict[str, Any]:
    """Of the answers that are right: nats per token, perplexity with its interval over questions, the paired change against the base."""
    around = ratio_interval(held.nats, held.tokens, seed=seed)
    return {
        "loss": held.loss, "perplexity": Interval(*map(math.exp, around)).as_json(),
        "perplexity_per_character": held.perplexity_per_character, "tokens": int(held.tokens.sum()),
        "change": held.loss - base.loss, "change_error": number(ratio_error(held.nats - base.nats, held.tokens)),
    }  # fmt: skip


def by_kind(kinds: Sequence[str | None], columns: dict[str, np.ndarray | None]) -> dict[str, dict[str, Any]]:
    """kind -> how many questions, and the mean of each column over them; empty where no row says its kind."""
    told: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(each for each in kinds if each is not None):
        here = np.array([each == kind for each in kinds])
        means = {name: None if values is None else float(values[here].mean()) for name, values in columns.items()}
        told[kind] = {"questions": int(here.sum()), **means}
    return told


def kept_shares(measured: Sequence[Measured], seed: int) -> dict[str, Interval]:
    """key -> the share of the gain in style score that the variants with the instruct adapter keep; empty where there is no gain."""
    scores = {each.variant.key: each.scores for each in measured if each.scores is not None}
    if not {"base", "style"} <= scores.keys():
        return {}
    found = {
        key: kept_gain(scores["base"], scores["style"], own, seed=seed) for key, own in scores.items() if key in ("stack", "instruct")
    }
    return {key: share for key, share in found.items() if not math.isnan(share.mean)}


def _cautions(asked: Asked, measured: Sequence[Measured], kept: dict[str, Interval]) -> list[str]:
    """What is not measured here, and why."""
    told = []
    if asked.shape is None:
        told.append("no form and no loss of answers: no recipe says what is asked, so the built-in instructions are; name one with --data")
    if asked.learned is None:
        told.append("whether the adapters were trained on these questions is not known: their own rows can't be read")
    elif asked.learned:
        told.append(f"{asked.learned} of {len(asked.questions)} questions stand, with their answers, in rows an adapter was trained on: "
                    "all figures look too good")  # fmt: skip
    if len(measured) > 2 and measured[0].scores is not None and not kept:
        told.append("the style by itself does not score above the base, so there is no gain to keep a share of")
    return told
