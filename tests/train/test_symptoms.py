"""Each symptom on figures made up for it, its healthy counterpart silent; nothing is said twice; the page quotes the program."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.train.symptoms import (
    SENTENCES,
    Computed,
    Symptoms,
    block,
    curve,
    ends,
    look,
    no_number,
    out_of_memory_advice,
    seen,
    slow,
    standard_error,
)  # fmt: skip

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text(encoding="utf-8")
STEPS = 80
GOOD = Computed(precision="bf16", fastest="bf16", gradient_checkpointing=False, memory_share=0.5, tokens=1000, padded_tokens=1100)


def healthy(share: float) -> float:
    """Training loss after a share of the run: falls fast, then flattens."""
    return 6.4 - 0.7 * (1 - math.exp(-8 * share)) / (1 - math.exp(-8))


def run(*, loss=healthy, style=None, general=None, norm=lambda share: 0.8, rate=lambda share: 1e-3, steps=STEPS, noise=0.08, of=None):
    """Rows of a metrics.jsonl: a loss at every step, an evaluation at every eighth of the run. `of`: steps of the whole run"""
    noisy, whole = random.Random(7), of or steps
    rows = [{"step": 0, "epoch": 0.0, "eval/style": (style or loss)(0.0), "eval/general": (general or (lambda share: 6.0))(0.0)}]
    for step in range(1, steps + 1):
        share = step / whole
        rows.append({
            "step": step, "epoch": step / 10, "loss": loss(share) + noisy.gauss(0, noise), "grad_norm": norm(share),
            "learning_rate": rate(share),
        })  # fmt: skip
        if step % (whole // 8) == 0:
            rows.append({"step": step, "eval/style": (style or loss)(share), "eval/general": (general or (lambda share: 6.0))(share)})
    return rows


def kinds(rows, total_steps=STEPS, computed=GOOD) -> list[str]:
    return [symptom.kind for symptom in look(rows, total_steps=total_steps, computed=computed)]


def cosine(share: float) -> float:
    return 1e-3 * (1 + math.cos(math.pi * share)) / 2


# ---------------------------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("noise", [0.0, 0.08, 0.3])
@pytest.mark.parametrize("rate", [lambda share: 1e-3, cosine], ids=["constant", "cosine"])
def test_a_healthy_run_is_silent_at_every_look(noise, rate):
    rows = run(noise=noise, rate=rate)
    assert kinds(rows) == [] and seen(rows, total_steps=STEPS, computed=GOOD) == set()


@pytest.mark.parametrize(
    ("ill", "figures"),
    [
        (dict(loss=lambda share: 6.4 + share), "6.4"),
        (dict(loss=lambda share: healthy(share) + (3.0 if 0.4 < share < 0.45 else 0.0)), "step 33"),
        (dict(norm=lambda share: 0.8 if share < 0.3 else 12.0), "at step 25"),
    ],
    ids=["rises", "jumps", "explodes"],
)
def test_a_rate_too_high(ill, figures):
    (symptom,) = [symptom for symptom in look(run(**ill), total_steps=STEPS) if symptom.kind == "rate_high"]
    assert figures in symptom.figures and "rate_low" not in kinds(run(**ill))


@pytest.mark.parametrize(
    "well",
    [
        dict(loss=lambda share: healthy(share) + (3.0 if share == 33 / 80 else 0.0)),  # one odd step is no jump
        dict(norm=lambda share: 12.0 if share == 33 / 80 else 0.8),
        dict(norm=lambda share: 0.8 if share < 0.3 else 5.0),
    ],
)
def test_one_odd_step_is_not_a_rate_too_high(well):
    assert "rate_high" not in kinds(run(**well, noise=0.02))


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_rate_too_low(noise):
    still = run(loss=lambda share: 6.4 - 0.02 * share, noise=noise)
    assert kinds(still) == ["rate_low"]
    assert kinds(run(loss=lambda share: 6.4 - 0.02 * share, noise=noise, steps=18, of=STEPS)) == [], "too soon to tell"
    assert "rate_low" not in kinds(run(loss=lambda share: 6.4 - 0.02 * share, style=healthy, noise=noise)), "the held-out loss fell"


def test_overfitting_names_the_best_step():
    valley = lambda share: 6.4 - 0.4 * math.sin(math.pi * min(1, share / 0.75)) + 0.3 * max(0, share - 0.375)  # noqa: E731
    (symptom,) = look(run(style=valley), total_steps=STEPS, computed=GOOD)
    assert symptom.kind == "overfitting" and "best at step 30 with 6.000" in symptom.figures and "step 80" in symptom.figures
    assert kinds(run(style=lambda share: healthy(share) + 0.04 * share)) == [], "a rise below 1 % is none"
    rising = run(style=valley, loss=lambda share: 6.4 - 0.4 * math.sin(math.pi * min(1, share / 0.75)) + 0.3 * max(0, share - 0.375))
    assert "overfitting" not in kinds(rising), "the training loss rose, too"
    assert "overfitting" not in kinds(run(style=lambda share: 6.4 + share)), "never better than before the first step"


def test_forgetting():
    forgot = lambda share: 6.0 + 0.3 * share  # noqa: E731
    assert kinds(run(general=forgot)) == ["forgetting"]
    assert kinds(run(general=lambda share: 6.0 + 0.09 * share)) == []
    hump = lambda share: 6.0 + (0.3 if 0.1 < share < 0.4 else 0.0)  # noqa: E731
    assert kinds(run(general=hump)) == [] and seen(run(general=hump), total_steps=STEPS) == set(), "early on it may come back"


@pytest.mark.parametrize("rate", [lambda share: 1e-3, cosine], ids=["constant", "cosine"])
def test_still_falling_at_the_end(rate):
    spent = (lambda share: share) if rate(0.9) == 1e-3 else (lambda share: share + math.sin(math.pi * share) / math.pi)
    straight = lambda share: 6.4 - 0.7 * spent(share)  # noqa: E731
    assert kinds(run(loss=straight, rate=rate)) == ["unfinished"]
    assert kinds(run(loss=straight, rate=rate), total_steps=STEPS * 2) == [], "not at the end yet, or ended early"
    assert "unfinished" not in kinds(run(loss=lambda share: 6.4 + 0.5 * share, rate=rate)), "it does not fall at all"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number(loss):
    rows = [*run(steps=20, of=STEPS), {"step": 21, "loss": loss}]
    (symptom,) = look(rows, total_steps=STEPS)
    assert (symptom.kind, symptom.figures) == ("diverged", f"step 21: the loss is {loss}")
    assert look([*rows[:-1], {"step": 21, "loss": 6.0, "grad_norm": math.inf}], total_steps=STEPS) == [], "fp16's scaler skips such steps"
    assert no_number(21, "loss", loss) == f"step 21: the loss is {loss}; lower train.learning_rate, or set train.precision: bf16"


def test_short_runs_and_bare_logs_are_silent():
    assert kinds(run(loss=lambda share: 6 + 9 * share, steps=8, general=None)) == []
    assert kinds([]) == [] and kinds([{"step": 3, "train_runtime": 1.0}]) == []


def test_curves_are_ascending_and_the_last_row_of_a_step_counts():
    rows = [{"step": 2, "loss": 3.0}, {"step": 1, "loss": 4}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": "5"}, {"step": 4, "loss": True}]
    assert curve(rows, "loss") == {1: 4.0, 2: 2.0} and list(curve(rows, "loss")) == [1, 2]


def test_means_and_noise():
    assert [block(n) for n in (1, 9, 10, 49, 50, 1000)] == [1, 1, 2, 9, 10, 10]
    assert ends([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]) == (1.5, 9.5)
    drawn = random.Random(0)
    assert standard_error([drawn.gauss(6, 0.2) for _ in range(5000)]) == pytest.approx(0.2 / math.sqrt(10), rel=0.05)


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(10**400), st.lists(st.integers(), max_size=2)
)
names = st.sampled_from(["step", "epoch", "loss", "grad_norm", "learning_rate", "eval/style", "eval/general", "eval/x", "why"])
figure = st.one_of(st.floats(), st.floats(-10, 10), st.just(6.0))
made_up = st.builds(
    dict, step=st.integers(-3, 60), loss=figure, grad_norm=figure, learning_rate=figure,
    **{"eval/style": figure, "eval/general": figure},
)  # fmt: skip


@given(st.lists(st.one_of(st.dictionaries(names, anything), made_up), max_size=50), st.integers(0, 60))
def test_no_rows_break_it(rows, total_steps):
    found = look(rows, total_steps=total_steps, computed=GOOD)
    assert len({symptom.kind for symptom in found}) == len(found)
    assert all(str(symptom).startswith(SENTENCES[symptom.kind] + " (") for symptom in found)
    assert seen(rows, total_steps=total_steps) <= SENTENCES.keys()


# ----------------------------------------------------------------------------------------------------- memory and speed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (dict(precision="fp32"), ["slow_precision"]),
        (dict(precision="fp32", fastest="fp32"), []),
        (dict(precision="fp16"), []),
        (dict(gradient_checkpointing=True), []),
        (dict(gradient_checkpointing=True, memory_share=0.2), ["slow_checkpointing"]),
        (dict(gradient_checkpointing=True, memory_share=None), []),
        (dict(memory_share=0.2), []),
        (dict(padded_tokens=2001), ["slow_padding"]),
        (dict(padded_tokens=2000), []),
        (dict(tokens=0, padded_tokens=0), []),
    ],
)
def test_slow(changes, said):
    computed = Computed(**{**GOOD.__dict__, **changes})
    assert [symptom.kind for symptom in slow(computed)] == said
    assert kinds(run(), computed=computed) == said and kinds(run(steps=8), total_steps=8, computed=computed) == []


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ((8192, 1024, False), "train.tokens_per_microbatch=4096"),
        ((8192, 1024, True), "train.tokens_per_microbatch=4096"),
        ((1500, 1024, False), "train.tokens_per_microbatch=1024"),
        ((1024, 1024, False), "train.gradient_checkpointing=true"),
        ((512, 1024, True), "data.window=512"),
    ],
)
def test_the_next_step_where_memory_is_full(settings, step):
    assert out_of_memory_advice(*settings, "data.window=512") == f"{SENTENCES['out_of_memory']} (next: {step})"


# ----------------------------------------------------------------------------------------------------------- the callback

ILL = run(general=lambda share: 6.0 + 0.5 * share, loss=lambda share: 6.4 - 0.01 * share, noise=0.02)


def play(path: Path, rows: list[dict], said: list[str], *, finish: bool, computed=lambda: GOOD) -> None:
    """What a trainer does with these rows: written first, then told to the callback."""
    state = SimpleNamespace(max_steps=STEPS)
    callback = Symptoms(said.append, path, computed=computed)
    callback.on_train_begin(None, state, None)
    for row in rows:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        callback.on_log(None, state, None, logs={key.replace("eval/", "eval_"): value for key, value in row.items()})
    if finish:
        callback.on_train_end(None, state, None)


def test_each_symptom_is_printed_once(tmp_path):
    said: list[str] = []
    play(tmp_path / "metrics.jsonl", ILL, said, finish=True)
    assert [line.split(" (")[0] for line in said] == [f"symptom    {SENTENCES[kind]}" for kind in ("rate_low", "forgetting")]


@pytest.mark.parametrize("cut", [0, 15, 35, 60, len(ILL)])
def test_a_resumed_run_says_what_a_straight_one_says(tmp_path, cut):
    straight: list[str] = []
    play(tmp_path / "straight.jsonl", ILL, straight, finish=True)
    resumed: list[str] = []
    play(tmp_path / "resumed.jsonl", ILL[:cut], resumed, finish=False)
    play(tmp_path / "resumed.jsonl", ILL[cut:], resumed, finish=True)
    assert resumed == straight and len(straight) == 2


def test_it_looks_only_where_something_was_measured(tmp_path):
    said: list[str] = []
    play(tmp_path / "metrics.jsonl", [row for row in ILL if "loss" in row], said, finish=False)
    assert said == []


def test_slowness_is_told_once_some_steps_were_done(tmp_path):
    said: list[str] = []
    slow_run = Computed(**{**GOOD.__dict__, "precision": "fp32"})
    play(tmp_path / "metrics.jsonl", run(), said, finish=True, computed=lambda: slow_run)
    assert said == [f"symptom    {SENTENCES['slow_precision']} (bf16 is fastest here)"]


# --------------------------------------------------------------------------------------------------------------- the page


def test_the_page_quotes_the_programs_sentences_and_no_others():
    quoted = re.findall(r"^`(\w+)`\n\n> (.*)$", PAGE, re.MULTILINE)
    assert dict(quoted) == SENTENCES and len(quoted) == len(SENTENCES)
    assert len(re.findall(r"^>", PAGE, re.MULTILINE)) == len(SENTENCES)
    assert f"symptom    {SENTENCES['rate_high']} (" in PAGE


def test_sentences_name_keys_that_exist():
    from stylora.model.settings import Adapter
    from stylora.samples.settings import Data
    from stylora.train.settings import Train

    sections = {"train": Train, "data": Data, "adapter": Adapter}
    named = re.findall(r"\b(train|data|adapter)\.(\w+)", " ".join(SENTENCES.values()))
    assert len(named) > 10
    for section, key in named:
        assert key in sections[section].model_fields, f"{section}.{key}"
