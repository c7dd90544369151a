"""The figures of one model, as evaluation.json has them: loss and divergence on held-out text, and what its continuations are like.

Takes a model in the state it is to be measured in, its base's own figures and the yardsticks; gives plain values, None where a figure has
no value. Knows no folders and no recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stylora.evaluate.base_distance import base_distance
from stylora.evaluate.copying import TrainingText
from stylora.evaluate.fluency import fluency
from stylora.evaluate.held_out import HeldOut, measure, ratio_error
from stylora.evaluate.intervals import Interval, interval, ratio_interval
from stylora.evaluate.repetition import degenerate, distinct, repeated
from stylora.evaluate.voice import Voice
from stylora.generate.decode import Generation, Model, generate
from stylora.generate.settings import Sampling
from stylora.model.base import Base
from stylora.model.forest_model import ForestModel

from .evaluation_data import HeldOutText


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How continuations are drawn and judged: `samples` of each prompt by `sampling`; seed: of the intervals"""

    prompts: tuple[str, ...]
    sampling: Sampling
    samples: int
    seed: int


def measure_loss(model: ForestModel, text: HeldOutText, *, share_prefixes: bool) -> dict[str, HeldOut]:
    """Part -> nats of every held-out sample. share_prefixes: as in `measure`"""
    return {
        part: measure(model, samples, text.characters[part], share_prefixes=share_prefixes) for part, samples in text.samples.items()
    }


def loss_figures(found: dict[str, HeldOut], base: dict[str, HeldOut]) -> dict[str, Any]:
    """`held_out` of a model. base: the same samples under its base; the change against it is a paired one."""
    return {
        part: {
            "loss": held.loss, "error": number(held.error), "perplexity": held.perplexity,
            "perplexity_per_character": held.perplexity_per_character, "tokens": int(held.tokens.sum()),
            "change": held.loss - base[part].loss, "change_error": number(ratio_error(held.nats - base[part].nats, held.tokens)),
        }
        for part, held in found.items()
    }  # fmt: skip


def distance_figures(model: ForestModel, text: HeldOutText, *, share_prefixes: bool) -> dict[str, dict[str, float | None]]:
    """`kl_to_base`, KL(base || model), and `reverse_kl_to_base`, KL(model || base): part -> nats per token."""
    found = {part: base_distance(model, samples, share_prefixes=share_prefixes) for part, samples in text.samples.items()}
    return {
        "kl_to_base": {part: number(distance.forward) for part, distance in found.items()},
        "reverse_kl_to_base": {part: number(distance.reverse) for part, distance in found.items()},
    }


def continuation_figures(
    model: Model, forest: ForestModel, base: Base, asked: Asked, *, voice: Voice | None, trained_on: TrainingText
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`generation` and `samples` of a model: every prompt continued, and what the continuations are like.

    model: to call; forest: the same, as it reads forests
    Raises UserError for a prompt without tokens, or one that leaves no room in the context.
    """
    prompts = list(asked.prompts) * asked.samples  # numbered through: more samples of a prompt do not change the first
    found = generate(model, base.tokenizer, prompts, asked.sampling)
    texts = [each.text for each in found]
    judged = fluency(forest, base.tokenizer, [(each.prompt, each.text) for each in found])
    copies = [trained_on.longest_match(text) for text in texts]
    longest, piece = max(copies, key=lambda copy: copy[0])
    odds = None if voice is None else voice.log_odds(texts)
    scores = None if voice is None else voice.style_score(texts)

    def over_prompts(values: Sequence[float] | np.ndarray) -> np.ndarray:
        """[prompts]: the mean of each prompt's samples"""
        return np.asarray(values, float).reshape(asked.samples, -1).mean(0)

    def perplexity(sizes: np.ndarray) -> dict[str, float | None]:
        nats = ratio_interval(over_prompts(judged.nats), over_prompts(sizes), seed=asked.seed)
        return Interval(*map(math.exp, nats)).as_json()

    figures = {
        "style_score": None if scores is None else interval(over_prompts(scores), seed=asked.seed).as_json(),
        "style_log_odds": None if odds is None else interval(over_prompts(odds), seed=asked.seed).as_json(),
        "function_words": None if voice is None else function_words(voice, texts, asked),
        "fluency": perplexity(judged.tokens), "fluency_per_character": perplexity(judged.characters),
        "distinct_2": number(distinct(texts, 2)), "distinct_4": number(distinct(texts, 4)),
        "repeated": float(np.mean([repeated(text) for text in texts])), "degenerate": float(np.mean([degenerate(text) for text in texts])),
        "stopped": float(np.mean([each.stopped == "stop" for each in found])), "length": float(np.mean([each.tokens for each in found])),
        "longest_copy": longest, "longest_copy_text": piece, "copied": trained_on.overlap(texts),
    }  # fmt: skip
    return figures, _samples(found, judged, scores, copies)


def function_words(voice: Voice, texts: Sequence[str], asked: Asked) -> dict[str, float | None]:
    """Delta of all continuations together with its interval over prompts, and what as much text of either part has."""
    together = ["\n".join(texts[number :: len(asked.prompts)]) for number in range(len(asked.prompts))]
    of_style, of_general = voice.function_word_scale(texts, seed=asked.seed)
    pooled = voice.pooled_function_word_distance(together, seed=asked.seed)
    return {**pooled.as_json(), "of_style": number(of_style), "of_general": number(of_general)}


def _samples(
    found: Sequence[Generation], judged: HeldOut, scores: np.ndarray | None, copies: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": each.prompt, "text": each.text, "style_score": None if scores is None else float(scores[i]),
            "base_perplexity": math.exp(judged.nats[i] / judged.tokens[i]) if judged.tokens[i] else None,
            "longest_copy": copies[i][0], "stopped": each.stopped == "stop",
        }
        for i, each in enumerate(found)
    ]  # fmt: skip


def number(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if math.isfinite(value) else None


def alarms(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Models that say more of their training text word for word than new text of the same style does."""
    for entry in entries:
        found = entry["generation"]
        if entry["adapter"] is not None and found is not None and found["copied"] > found["copied_held_out"]:
            yield (
                f"{label(entry['name'], entry['checkpoint'], entry['weight'])}: {found['copied']:.1%} of its continuations stands word for "
                f"word in the training text, in runs of 20 characters ({found['copied_held_out']:.1%} of the held-out text does); the "
                f"longest is {found['longest_copy_text']}, {found['longest_copy']} characters"
            )


def label(name: str, checkpoint: int | None, weight: float) -> str:
    """A model in one of its states, for people."""
    return name + (f" @{checkpoint}" if checkpoint is not None else "") + (f" x{weight:g}" if weight != 1 else "")
