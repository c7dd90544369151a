"""What one stage of a run left, as plain values, and the points that follow from them. Knows no files and no recipe's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .figures import Change, Curve, broken, curve, difference_error, overfitting_begins, spikes

HELD_OUT = "eval/"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the change of a stage is counted from.

    losses: part -> nats per token; held_out: part -> {"nats": [N], "tokens": [N]}, empty where only the losses are known
    is_base: whether that is the base, and not just the adapter that the stage began with
    """

    losses: Mapping[str, float]
    held_out: Mapping[str, Any] = field(default_factory=dict)
    is_base: bool = True


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    run, name: what they are called; group: number of the run among those compared
    parent: number of the stage among those reported that this one goes on from
    state, step, steps: as `stylora runs` tells them; when: of the last change, as ISO 8601; seconds: of training since its last start
    scores: names of `eval/` figures that are a task's metrics and no losses
    rows: of metrics.jsonl; held_out: lines of held_out.jsonl; samples: (step, prompt -> continuation) of samples.jsonl
    evaluation: evaluation.json; three_way: three_way.json; environment: environment.json; rejects: lines of rejects.jsonl
    recipe: the resolved recipe; asked: what it sets otherwise than by default; recipe_text: as YAML
    metric, more_is_better: what chose the adapter that was kept, `eval/style`; None where that is the last one
    spike_factor: what counts as a spike, in medians; beta: weight of the KL, 0 without
    origin: None without any evaluation; troubles: files that could not be read, and why
    """

    run: str
    name: str
    group: int = 0
    parent: int | None = None
    state: str = "done"
    step: int = 0
    steps: int | None = None
    when: str = ""
    seconds: float | None = None
    base: str = ""
    scores: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    held_out: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[tuple[int, Mapping[str, str]]] = ()
    evaluation: Mapping[str, Any] | None = None
    three_way: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    rejects: Sequence[Mapping[str, Any]] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    metric: str | None = None
    more_is_better: bool = False
    spike_factor: float = 2.0
    beta: float = 0.0
    origin: Origin | None = None
    troubles: Sequence[str] = ()

    @cached_property
    def parts(self) -> list[str]:
        """Names of what was measured on held-out text, `style` and `general` first."""
        return sorted(self._held_out_losses, key=lambda part: {"style": 0, "general": 1}.get(part, 2))

    def part(self, part: str) -> Curve:
        """Its held-out loss at each evaluation, nats per token; empty where it was not measured."""
        return self._held_out_losses.get(part) or curve([], part)

    @cached_property
    def _held_out_losses(self) -> dict[str, Curve]:
        rows = [row for row in self.rows if any(key.startswith(HELD_OUT) for key in row)]
        keys = dict.fromkeys(key for row in rows for key in row if key.startswith(HELD_OUT))
        named = {key.removeprefix(HELD_OUT): key for key in keys}
        return {part: found for part, key in named.items() if part not in self.scores and len(found := curve(rows, key))}

    def score(self, name: str) -> Curve:
        """A metric of the task at each evaluation; empty where it was not measured."""
        return curve(self.rows, HELD_OUT + name)

    @cached_property
    def losses(self) -> Curve:
        """The training loss as logged."""
        return curve(self.rows, "loss")

    @cached_property
    def spikes(self) -> list[int]:
        """Steps at which the training loss jumped."""
        return spikes(self.losses, self.spike_factor)

    @cached_property
    def broken(self) -> list[int]:
        """Steps at which the training loss was no number."""
        return broken(self.rows, "loss")

    def best(self, part: str) -> int | None:
        """The step of the lowest held-out loss of a part, among trained models; None where there is none."""
        found = self.part(part)
        trained = found.values[found.steps > 0]
        return int(found.steps[found.steps > 0][trained.argmin()]) if len(trained) else None

    @cached_property
    def kept(self) -> int | None:
        """The evaluation of the adapter that was kept, or would be: the best by the metric that chooses, the earliest of equals; else the
        last. None before the first trained one."""
        if self.metric is None:
            return max((step for step in self.measured if step), default=None)
        found = curve(self.rows, self.metric)
        sign = -1 if self.more_is_better else 1
        trained = [(sign * value, step) for step, value in zip(found.steps.tolist(), found.values.tolist(), strict=True) if step]
        return min(trained)[1] if trained else None

    @cached_property
    def measured(self) -> list[int]:
        """The steps of all evaluations."""
        return sorted({step for part in self.parts for step in self.part(part).steps.tolist()})

    @cached_property
    def overfitting(self) -> int | None:
        """Where overfitting begins, by the held-out style, or the answers of conversations, or branches."""
        part = next((part for part in ("style", "answers", "branches") if part in self.parts), None)
        return overfitting_begins(self.losses, self.part(part)) if part else None

    def held_out_at(self, step: int) -> Mapping[str, Any]:
        """The line of held_out.jsonl of a step; empty where there is none."""
        return next((row for row in reversed(self.held_out) if row.get("step") == step), {})

    def change(self, part: str) -> Change | None:
        """Of a part's loss between the origin and the adapter that was kept; None before the first trained evaluation."""
        after = self.part(part).at(self.kept) if self.kept is not None else None
        if after is None or self.kept is None or self.origin is None or part not in self.origin.losses:
            return None
        error = difference_error(self.origin.held_out.get(part), self.held_out_at(self.kept).get(part))
        return Change(before=self.origin.losses[part], after=after, error=error)

    def points(self) -> Iterator[tuple[int, float, float]]:
        """(step, forgetting, style gained) of every evaluation, nats per token against the origin; none without both parts."""
        if self.origin is None or not {"style", "general"} <= self.origin.losses.keys():
            return
        style, general = self.part("style"), self.part("general")
        for step, value in zip(style.steps.tolist(), style.values.tolist(), strict=True):
            other = general.at(step)
            if other is not None:
                yield step, other - self.origin.losses["general"], self.origin.losses["style"] - value
