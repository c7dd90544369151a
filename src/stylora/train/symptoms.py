"""What goes wrong while training, read off the figures, and the one sentence that says what to do about it.

Plain values in, sentences out: knows metrics.jsonl's rows, no model and no recipe. It measures nothing itself and changes nothing; it says
what it sees, once. docs/troubleshooting.md quotes these sentences word for word and shows what each cure did on the bundled base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback

from .logs import read_lines

SENTENCES = {
    "diverged": "lower train.learning_rate, or set train.precision: bf16",
    "rate_high": "the training loss rises or jumps: divide train.learning_rate by 3 to 10, or raise train.warmup_steps",
    "rate_low": "the loss hardly falls: multiply train.learning_rate by 3 to 10, lower train.warmup_steps, and look at what is learned "
    "with `stylora inspect`",
    "overfitting": "the held-out loss rises while the training loss falls: set train.metric_for_best_model to end with the best step, "
    "lower train.num_train_epochs or train.learning_rate, or raise adapter.dropout",
    "forgetting": "the loss on general text has risen: mix general text in with data.general and data.general_ratio, raise that ratio, "
    "or lower train.learning_rate",
    "unfinished": "the held-out loss still falls steeply at the end: raise train.num_train_epochs or train.learning_rate, or add text",
    "out_of_memory": "memory is full: halve train.tokens_per_microbatch, which leaves the result as it is; then set "
    "train.gradient_checkpointing: true; then read shorter samples (of text: data.window), or take a smaller base",
    "slow_precision": "all products are computed in fp32, and this device multiplies 16-bit numbers faster: remove train.precision",
    "slow_checkpointing": "activations are computed twice while most of the memory is free: set train.gradient_checkpointing: false",
    "slow_padding": "more padding is computed than text: set train.row_tokens to data.window, so that short samples share a row, or lower "
    "train.tokens_per_microbatch",
}
"""kind of symptom -> what is seen and what to do"""

FEW = 10  # logged losses below which nothing is said about a curve
HELD_OUT, GENERAL = "eval/style", "eval/general"
HARDLY = 0.01  # share of the first loss: less of a fall is none
ROSE = 0.01  # share of the best held-out loss: less of a rise is none
FORGOT = 0.1  # nats: general perplexity 10.5 % higher
STEEP = 0.8  # of the mean fall per unit of learning rate, in the second half of the run: a curve that flattens has less than half
EXPLODED = 10  # times the first gradient norms
PLENTY = 0.25  # share of the memory in use, below which recomputing saves what nobody needs
LIMIT = 1e30  # figures beyond it are treated as no number


@dataclass(frozen=True)
class Symptom:
    """kind: key of SENTENCES; figures: what was seen, in numbers"""

    kind: str
    figures: str

    @property
    def sentence(self) -> str:
        """What is seen and what to do."""
        return SENTENCES[self.kind]

    def __str__(self) -> str:
        return f"{self.sentence} ({self.figures})"


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How the steps are computed, for what makes them slow.

    precision: of this run, `bf16`, `fp16` or `fp32`; fastest: of this device
    gradient_checkpointing: whether activations are recomputed; memory_share: most memory taken so far / memory there is, None if unknown
    tokens, padded_tokens: computed so far, without and with padding
    """

    precision: str
    fastest: str
    gradient_checkpointing: bool
    memory_share: float | None
    tokens: int
    padded_tokens: int


def look(rows: Sequence[dict[str, Any]], *, total_steps: int, computed: Computed | None = None) -> list[Symptom]:
    """Every symptom of a run that the rows of its metrics.jsonl show, at most one of a kind. Values that are no number are passed over.

    total_steps: of the whole run; some symptoms can't be told before a share of it
    """
    losses, held_out = curve(rows, "loss"), curve(rows, HELD_OUT)
    too_high = rate_high(losses, curve(rows, "grad_norm"))
    found = [
        diverged(rows), too_high, None if too_high else rate_low(losses, held_out, total_steps), overfitting(losses, held_out),
        forgetting(curve(rows, GENERAL), total_steps), unfinished(held_out, curve(rows, "learning_rate"), total_steps),
    ]  # fmt: skip
    if computed is not None and len(losses) >= FEW:
        found += slow(computed)
    return [symptom for symptom in found if symptom is not None]


def seen(rows: Sequence[dict[str, Any]], *, total_steps: int, computed: Computed | None = None) -> set[str]:
    """The kinds that were told at any evaluation in these rows: what a resumed run need not say again."""
    ends = [number for number, row in enumerate(rows, 1) if any(str(key).startswith("eval/") for key in row)]
    return {symptom.kind for end in ends for symptom in look(rows[:end], total_steps=total_steps, computed=computed)}


def curve(rows: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    """step -> value, ascending; of several rows of one step the last counts."""
    found = {}
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if isinstance(step, int) and _number(value):
            found[step] = float(value)  # type: ignore[arg-type]
    return dict(sorted(found.items()))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LIMIT < value < LIMIT


# ---------------------------------------------------------------------------------------------------------------- curves


def diverged(rows: Sequence[dict[str, Any]]) -> Symptom | None:
    """A loss that is no number."""
    for row in rows:
        loss = row.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            return Symptom("diverged", f"step {row.get('step')}: the loss is {loss}")
    return None


def no_number(step: int, what: str, value: float) -> str:
    """The message a run stops with. what: `loss` or `gradient`"""
    return f"step {step}: the {what} is {value}; {SENTENCES['diverged']}"


def rate_high(losses: dict[int, float], norms: dict[int, float]) -> Symptom | None:
    """The loss ends above its start by more than its noise, or jumps and stays for two steps, or the gradient explodes for two."""
    values = list(losses.values())
    if len(values) < FEW:
        return None
    start, now = ends(values)
    if now - start > max(ROSE * abs(start), 4 * standard_error(values)):
        return Symptom("rate_high", f"the loss was {start:.3f} at first and is {now:.3f}")
    steps = list(losses)
    for place in range(FEW, len(values) - 1):
        before = values[place - FEW : place]
        usual = median(before)
        spread = 1.4826 * median(abs(value - usual) for value in before)  # of a normal distribution, the standard deviation
        if min(values[place : place + 2]) - usual > max(0.1 * abs(usual), 6 * spread):
            return Symptom("rate_high", f"the loss jumped from {usual:.3f} to {values[place]:.3f} at step {steps[place]}")
    first = median(list(norms.values())[:3]) if len(norms) >= FEW else 0.0
    for (_, norm), (step, after) in pairwise(norms.items()):
        if 0 < EXPLODED * first < min(norm, after):
            return Symptom("rate_high", f"the gradient's norm was {first:.2g} at first and {after:.2g} at step {step}")
    return None


def rate_low(losses: dict[int, float], held_out: dict[int, float], total_steps: int) -> Symptom | None:
    """A quarter of the run is over, and neither the training loss nor the held-out loss fell by 1 %."""
    values = list(losses.values())
    if len(values) < FEW or max(losses) < total_steps / 4:
        return None
    start, now = ends(values)
    measured = list(held_out.values()) or [start]
    if start - now >= HARDLY * abs(start) or measured[0] - min(measured) >= HARDLY * abs(measured[0]):
        return None
    return Symptom("rate_low", f"the training loss was {start:.3f} at first and is {now:.3f} at step {max(losses)}")


def overfitting(losses: dict[int, float], held_out: dict[int, float]) -> Symptom | None:
    """The held-out loss is 1 % above its best, and since then the training loss fell.

    A best before the first step is none: there the rate was too high, or what is held out is of another kind.
    """
    if len(losses) < FEW or len(held_out) < 3:
        return None
    best = min(held_out, key=lambda step: held_out[step])
    last = max(held_out)
    if best == min(held_out) or held_out[last] - held_out[best] <= ROSE * abs(held_out[best]):
        return None
    values = list(losses.values())
    size = block(len(values))
    before = [value for step, value in losses.items() if step <= best][-size:]
    if not before or fmean(values[-size:]) >= fmean(before):
        return None
    figures = f"{HELD_OUT} was best at step {best} with {held_out[best]:.3f} and is {held_out[last]:.3f} at step {last}"
    return Symptom("overfitting", figures)


def forgetting(general: dict[int, float], total_steps: int) -> Symptom | None:
    """Half the run is over, and general text costs 0.1 nats a token more than before the first step.

    Sooner would be too soon: at the peak of the learning rate it rises in runs that end well.
    """
    values = list(general.values())
    if len(values) < 2 or max(general) < total_steps / 2 or values[-1] - values[0] <= FORGOT:
        return None
    return Symptom("forgetting", f"{GENERAL} was {values[0]:.3f} at first and is {values[-1]:.3f}")


def unfinished(held_out: dict[int, float], rates: dict[int, float], total_steps: int) -> Symptom | None:
    """At the last step: in the run's second half the held-out loss fell about as fast, per learning rate spent, as in the whole run.

    Against the rate spent and not against steps, for under a falling schedule every curve flattens.
    """
    if len(rates) < FEW or len(held_out) < 3 or max(held_out) < total_steps:
        return None
    first, last = min(held_out), max(held_out)
    middle = min(held_out, key=lambda step: abs(step - (first + last) / 2))
    whole, half = held_out[first] - held_out[last], held_out[middle] - held_out[last]
    spent = sum(rate for step, rate in rates.items() if first < step <= last)
    late = sum(rate for step, rate in rates.items() if middle < step <= last)
    if not 0 < late < spent or whole <= 0 or half <= HARDLY / 2 * abs(held_out[first]) or half * spent < STEEP * whole * late:
        return None
    return Symptom("unfinished", f"{HELD_OUT} was {held_out[middle]:.3f} at step {middle} and is {held_out[last]:.3f} at step {last}")


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the first and of the last losses."""
    size = block(len(values))
    return fmean(values[:size]), fmean(values[-size:])


def block(count: int) -> int:
    """How many losses a mean is taken of: a fifth of them, one to ten."""
    return max(1, min(10, count // 5))


def standard_error(values: Sequence[float]) -> float:
    """Of a mean over a block, with the noise from step to step (von Neumann 1941: half the mean square of successive differences)."""
    noise = fmean((after - before) ** 2 for before, after in pairwise(values)) / 2
    return math.sqrt(noise / block(len(values)))


# ----------------------------------------------------------------------------------------------------- memory and speed


def slow(computed: Computed) -> list[Symptom]:
    """What makes steps take longer than they need."""
    found = []
    if computed.precision == "fp32" and computed.fastest != "fp32":
        found.append(Symptom("slow_precision", f"{computed.fastest} is fastest here"))
    if computed.gradient_checkpointing and computed.memory_share is not None and computed.memory_share < PLENTY:
        found.append(Symptom("slow_checkpointing", f"{computed.memory_share:.0%} of the memory is in use at most"))
    if computed.padded_tokens > 2 * computed.tokens > 0:
        found.append(Symptom("slow_padding", f"{computed.padded_tokens:,} tokens with padding, {computed.tokens:,} without"))
    return found


def out_of_memory_advice(tokens_per_microbatch: int, longest: int, gradient_checkpointing: bool, shorter: str) -> str:
    """What to say where memory ran out: the sentence, and the next of its steps for these settings.

    longest: tokens of the longest sample; shorter: the setting that makes it about half as long
    """
    if tokens_per_microbatch > longest:
        step = f"train.tokens_per_microbatch={max(longest, tokens_per_microbatch // 2)}"
    elif not gradient_checkpointing:
        step = "train.gradient_checkpointing=true"
    else:
        step = shorter
    return f"{SENTENCES['out_of_memory']} (next: {step})"


class Symptoms(TrainerCallback):
    """Looks after each evaluation and at the end, and prints each symptom once in a run, however often it is resumed.

    console_print: takes one line; path: the run's metrics.jsonl, written before this is called; computed: asked anew at every look
    """

    def __init__(self, console_print: Callable[[str], object], path: Path, *, computed: Callable[[], Computed] | None = None) -> None:
        self.console_print, self.path, self.computed = console_print, path, computed
        self.told: set[str] = set()

    def on_train_begin(self, args, state, control, **_):
        self.told = seen(read_lines(self.path), total_steps=state.max_steps, computed=self._computed())

    def on_log(self, args, state, control, logs=None, **_):
        if any(key.startswith("eval_") for key in logs or {}):
            self._look(state.max_steps)

    def on_train_end(self, args, state, control, **_):
        self._look(state.max_steps)

    def _look(self, total_steps: int) -> None:
        for symptom in look(read_lines(self.path), total_steps=total_steps, computed=self._computed()):
            if symptom.kind not in self.told:
                self.told.add(symptom.kind)
                self.console_print(f"symptom    {symptom}")

    def _computed(self) -> Computed | None:
        return self.computed() if self.computed else None
