"""evaluation.json as a table: what is there, blank cells for what is not, one table for what was measured alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.made import evaluation, model, stage

from stylora.report.evaluated import base_losses, figure, placed, together
from stylora.report.panel import tracks
from stylora.report.words import Said

KEYS = ["models", "held_out", "style", "general", "loss", "generation", "style_score", "mean", "low", "samples", "text", "name", "voice",
        "accuracy", "weight", "warnings", "checkpoint", "kl_to_base"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), max_leaves=20,
)  # fmt: skip


def tables(*evaluations):
    return together(tracks([stage(evaluation=each, group=number) for number, each in enumerate(evaluations)], compared=True))


def test_columns_and_rows():
    ((_, found),) = tables(evaluation(model("runs/x", 5.5, 5.02, weight=0.5)))
    columns, rows = found.held_out
    assert [column.en for column in columns if isinstance(column, Said)] == [
        "style, perplexity", "style, per character", "general text, perplexity", "general text, per character", "KL to base, style",
        "KL to base, general",
    ]  # fmt: skip
    assert rows[0][0] == Said("base", "基座") and rows[1][0] == "runs/x · × 0.5"
    assert [cell[0] for cell in rows[1][1]] == ["245", "9.000", "151", "9.000", "0.2000", "0.1000"]
    columns, rows = found.generation
    assert [column.en for column in columns if isinstance(column, Said)] == [
        "style score", "base perplexity", "degenerate", "longest copy"
    ], "columns that no model has a figure for are left out"  # fmt: skip
    assert rows[1][1] == [("80 %", "70 % … 90 %"), ("55.0", "50.0 … 60.0"), ("0 %", ""), ("9", "")]
    assert found.voice and found.voice.en == "The style classifier is right on 97 % of 700 held-out passages."
    name, (text,) = found.samples[1]
    assert name == "runs/x · × 0.5" and text["text"] == "停了。" and text["figures"][-1][0].en == "stopped by itself"


def test_what_was_measured_alike_stands_in_one_table():
    one, other = evaluation(model("a", 5.5, 5.0), warnings=["w"]), evaluation(model("b", 5.4, 5.1), warnings=["w", "v"])
    ((those, found),) = tables(one, other)
    assert len(those) == 2 and [name if isinstance(name, str) else name.en for name, _ in found.held_out[1]] == ["base", "a", "b"]
    assert found.warnings == ["w", "v"]
    assert len(tables(one, other | {"settings": {"seed": 1}})) == 2
    another = evaluation(model("b", 5.4, 5.1))
    another["models"][0] = model("base", 5.9, 5.0)
    assert len(tables(one, another)) == 2


def test_losses_of_the_base():
    assert base_losses(evaluation()) == {"style": 6.0, "general": 5.0}
    assert base_losses({}) == {} and base_losses({"models": "x"}) == {}


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, ("", "")), ("x", ("", "")), (True, ("", "")), (float("nan"), ("", "")), (3, ("3", "")), ({"mean": 0.5}, ("0.5000", "")),
     ({"mean": 2.0, "low": None, "high": 3.0}, ("2.000", ""))],
)  # fmt: skip
def test_figures_that_are_none_are_blank(value, written):
    assert figure(value) == written


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_no_evaluation_is_too_odd(told):
    tables(told)
    list(placed(stage(evaluation=told)))
    base_losses(told)
