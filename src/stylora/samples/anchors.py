"""The recipe's `objective.kl` section, and the anchors it puts on a sample: where the model is held to its reference.

    read       s s u1 a1 .           edges  u1->a1 (weight 1)  a1->. (weight 1)
    edges          1  1              the weight that leaves each source
    all        1 1 1  1  1           every token; in a trie the number of samples that pass through it
    general        1  1              the sources of general rows, which nothing noises; style rows have none

The loss has `beta * sum(v * KL) / V` beside its cross-entropy, v an anchor's weight and V their sum over the optimizer step. Knows
samples; what the reference is and how the divergence is computed is the model's business (model/reference.py, model/head.py).

References: KL to the initial model with replay (arXiv 2512.22337); the gold token left out (arXiv 2605.29498).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from stylora.forest import Anchors, Sample


class Kl(BaseModel, frozen=True, extra="forbid"):
    """How strongly the model is held to its reference while it learns, and where.

    beta: how much the divergence counts beside the cross-entropy; 0 skips the reference altogether
    reference: `base` all adapters off; `frozen` only the trainable adapter off. With a single adapter both are the base
    direction: `forward` KL(reference || model), which keeps all the reference finds likely; `reverse` KL(model || reference), which
        keeps the model from what the reference finds unlikely
    on: `edges` where something is learned, by its weight; `all` on every token that is read; `general` where something is learned in
        general rows, which are then read without noise
    sample: share of the anchors that are kept, drawn at random for every sample; fewer cost less at the head
    drop_gold: leave the token that is to be learned out of both distributions, so that the divergence does not pull against it
    """

    beta: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    reference: Literal["base", "frozen"] = "base"
    direction: Literal["forward", "reverse"] = "forward"
    on: Literal["edges", "all", "general"] = "edges"
    sample: float = Field(default=1.0, gt=0, le=1)
    drop_gold: bool = False

    @model_validator(mode="before")
    @classmethod
    def on_is_a_word(cls, values: object) -> object:
        """YAML 1.1 reads a bare `on` as true, keys too; nobody means that here."""
        return {"on" if key is True else key: value for key, value in values.items()} if isinstance(values, dict) else values


def add_anchors(sample: Sample, kl: Kl, *, general: bool, rng: np.random.Generator) -> Sample:
    """The sample with the anchors `kl` asks for; with beta 0, or where none are due, the sample as it is.

    general: is it of the general text (and then, for `on: general`, un-noised)? rng: draws the share `kl.sample`
    """
    if kl.beta == 0 or (kl.on == "general" and not general):
        return sample
    if kl.on == "all":
        source = np.arange(len(sample), dtype=np.int32)
        weight = np.ones(len(sample), np.float32)
    else:
        source, place = np.unique(sample.edges.source, return_inverse=True)
        leaving = np.bincount(place, weights=sample.edges.weight, minlength=len(source)).astype(np.float32)
        weight = leaving if kl.on == "edges" else np.ones(len(source), np.float32)
    if kl.sample < 1:
        kept = rng.random(len(source)) < kl.sample
        source, weight = source[kept], weight[kept]
    return replace(sample, anchors=Anchors(source=source, weight=weight))
