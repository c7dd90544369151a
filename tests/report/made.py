"""Stages made by hand for the tests of reports: figures as a training logs them, and texts that would take a careless page over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stylora.report.stage import Origin, Stage

HOSTILE = "</script><script>document.title='taken over'</script><img src=x onerror=\"document.title='taken over'\">"


def held_out_line(step: int, losses: dict[str, float], windows: int = 12) -> dict[str, Any]:
    """A line of held_out.jsonl in which each part costs that much, with some noise that no mean has."""
    noise = np.random.default_rng(step).normal(0, 3, windows)
    tokens = np.linspace(100.0, 200.0, windows)
    line: dict[str, Any] = {"step": step}
    for part, loss in losses.items():
        nats = tokens * loss + noise - noise.mean()
        line[part] = {"nats": nats.tolist(), "tokens": tokens.tolist(), "characters": (tokens + 1).tolist()}
    return line


def stage(
    *, length: int = 60, every: int = 10, style: tuple[float, ...] = (6.0, 5.4, 5.0, 4.8, 4.7, 4.8, 4.9),
    general: tuple[float, ...] = (5.0, 5.05, 5.1, 5.12, 5.14, 5.15, 5.16), kl: bool = False, **changes: Any,
) -> Stage:  # fmt: skip
    """`length` logged steps, and an evaluation every `every` of them; by default it overfits from 40 on and forgets. kl: with its parts"""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    held_out = []
    evaluations = {number * every: losses for number, losses in enumerate(zip(style, general, strict=True))}
    for step in range(length + 1):
        if step:
            loss = 4.0 + 2.0 * math.exp(-step / 20) - 0.3 * step / length + float(random.normal(0, 0.02))
            parts = {"ce": loss - 0.01, "kl": 0.1, "kl_share": 0.002} if kl else {}
            rows.append({"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-4 * (1 - step / length), **parts})
        if step in evaluations:
            losses = dict(zip(("style", "general"), evaluations[step], strict=True))
            rows.append({"step": step, **{f"eval/{part}": loss for part, loss in losses.items()}})
            held_out.append(held_out_line(step, losses))
    first = {"style": style[0], "general": general[0]}
    values: dict[str, Any] = {
        "run": "wuxia", "name": "style", "base": "tiny", "step": length, "steps": length, "when": "2026-01-02T03:04:05+00:00",
        "seconds": 192.0, "rows": rows, "held_out": held_out, "origin": Origin(losses=first, held_out=held_out[0]),
        "beta": 0.1 if kl else 0.0, "samples": [(step, {"剑光一闪": f"，第{step}步"}) for step in evaluations],
        "environment": {"device": "CPU", "packages": {"torch": "2"}},
        "recipe": {"base": "tiny", "data": {"train": "小说"}}, "asked": {"data": {"train": "小说"}}, "recipe_text": "base: tiny\n",
    }  # fmt: skip
    return Stage(**values | changes)


def two_stages(**changes: Any) -> list[Stage]:
    """A style and what goes on from it: it keeps most of the style and takes back most of the forgetting."""
    first = stage()
    changes = {"name": "align", "parent": 0, "origin": first.origin, "beta": 0.1} | changes
    return [first, stage(length=20, style=(4.9, 4.95, 5.0), general=(5.16, 5.06, 5.04), kl=True, **changes)]


def judged(shares: tuple[float, ...], *, every: int = 10, name: str = "accuracy", **changes: Any) -> Stage:
    """A stage of conversations, whose held-out loss rises from step 20 on while a metric of the task goes by `shares`, and chooses."""
    losses = (2.0, 1.2, 1.0, *(1.0 + 0.1 * number for number in range(1, len(shares))))
    rows = [{"step": every * number, "eval/answers": losses[number], f"eval/{name}": share} for number, share in enumerate(shares)]
    values = {"name": "task", "rows": rows, "held_out": [], "scores": (name,), "metric": f"eval/{name}", "more_is_better": True,
              "origin": Origin(losses={"answers": 2.0}), "length": every * (len(shares) - 1)}  # fmt: skip
    return stage(**values | changes)


def model(name: str, style: float, general: float, **changes: Any) -> dict[str, Any]:
    """An entry of evaluation.json."""
    around = {"mean": 0.8, "low": 0.7, "high": 0.9}
    held = {part: {"loss": loss, "perplexity": math.exp(loss), "perplexity_per_character": 9.0, "tokens": 1800}
            for part, loss in (("style", style), ("general", general))}  # fmt: skip
    generation = {"style_score": around, "fluency": {"mean": 55.0, "low": 50.0, "high": 60.0}, "degenerate": 0.0, "longest_copy": 9}
    samples = [{"prompt": "雨", "text": "停了。", "style_score": 0.8, "base_perplexity": 55.0, "longest_copy": 9, "stopped": True}]
    return {
        "name": name, "checkpoint": None, "weight": 1.0, "held_out": held, "kl_to_base": {"style": 0.2, "general": 0.1},
        "generation": generation, "samples": samples,
    } | changes  # fmt: skip


def evaluation(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """evaluation.json, the base first."""
    return {
        "settings": {"seed": 0}, "warnings": [], "voice": {"accuracy": 0.97, "passages": 700}, "models": [model("base", 6.0, 5.0), *models]
    } | changes  # fmt: skip


def three_way(**changes: Any) -> dict[str, Any]:
    """three_way.json: the base and the style run on, the stack follows and keeps most of the style."""
    shares = {"base": (0.0, 0.1, None), "style": (0.0, 0.9, None), "stack": (0.97, 0.78, 0.85), "instruct": (0.95, 0.3, 0.25)}
    names = {"base": "base", "style": "base + style", "stack": "base + style + instruct", "instruct": "base + instruct"}

    def around(mean: float, low: float, high: float) -> dict[str, float]:
        return {"mean": mean, "low": low, "high": high}

    def answer(key: str, number: int) -> dict[str, Any]:
        breach = "ran on" if key in ("base", "style") else None
        return {"question": f"写一写：渡口 {number}", "kind": "describe", "expected": "话说那渡口。", "text": f"答 {key} {number}",
                "stopped": breach is None, "breach": breach, "style_score": 0.5}  # fmt: skip

    variants = [
        {
            "key": key, "name": names[key], "weights": [1.0, 1.0],
            "follows": around(follows, max(0.0, follows - 0.07), min(1.0, follows + 0.03)),
            "stops": around(follows, follows, follows), "style_score": around(score, score - 0.05, score + 0.05),
            "style_kept": None if kept is None else around(kept, kept - 0.15, kept + 0.1), "breaches": {},
            "held_out": {"loss": 3.4, "perplexity": around(30.0, 25.0, 36.0), "change": 0.0}, "distinct_2": 0.9, "distinct_4": 0.99,
            "repeated": 0.02, "degenerate": 0.0, "length": 60.0, "kinds": {}, "answers": [answer(key, number) for number in range(3)],
        }
        for key, (follows, score, kept) in shares.items()
    ]  # fmt: skip
    return {
        "settings": {
            "questions": 18, "source": "held-out conversations of the stage instruct", "typical": 72, "style": "style",
            "shape": {"lines": 1, "shortest": 31, "longest": 166, "endings": ["。", "！", "”"]},
        },
        "warnings": [], "voice": {"accuracy": 0.97, "passages": 700, "apart": True}, "variants": variants,
    } | changes  # fmt: skip
