"""What is said of a run is what its figures say, in both languages; where something is not known, nothing is claimed of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.report.made import held_out_line, stage, two_stages

from stylora.report.reading import comparison, reading
from stylora.report.stage import Origin
from stylora.report.table import as_json
from stylora.report.words import PARTS, STATES, WORDS, Said


def english(*stages) -> list[str]:
    return [said.en for said in reading(stages)]


def test_what_was_gained_and_what_it_cost():
    first, *rest = reading([stage()])
    assert first.en == "Style perplexity fell by 66.7 % (403 → 134); general text got worse by 17.4 % (148 → 174)."
    assert first.zh == "风格困惑度下降 66.7 %（403 → 134）；通用文本变差 17.4 %（148 → 174）。"
    assert [said.en for said in rest] == [
        "Overfitting begins at step 40: from there the held-out loss rises while the training loss falls."
    ]


def test_better_worse_and_no_measurable_change():
    (said, *_) = english(stage(general=(5.0, 4.9, 4.8, 4.8, 4.8, 4.8, 4.8)))
    assert "general text got better by 18.1 %" in said
    (said, *_) = english(stage(style=(6.0, 6.1, 6.1, 6.1, 6.1, 6.1, 6.2)))
    assert said.startswith("Style perplexity rose by 22.1 %")
    flat = stage(general=(5.0,) * 6 + (5.002,))
    (said, *_) = english(flat)
    assert "general text did not change measurably (+0.2 % perplexity, 95 % interval −" in said
    unpaired = replace(flat, held_out=[])
    assert "general text got worse by 0.2 %" in english(unpaired)[0]


def test_the_adapter_that_was_kept_counts():
    chosen = stage(metric="eval/style")
    assert chosen.kept == 40 and "(403 → 110)" in english(chosen)[0]
    assert stage(metric="eval/style", more_is_better=True).kept == 10
    assert stage().kept == 60


def test_a_later_stage_is_held_against_the_one_before():
    said = english(*two_stages())
    assert said[0].startswith("Style perplexity fell by 63.2 % (403 → 148); general text got worse by 4.1 %")
    assert said[1] == "align keeps 91 % of the style gain of style and takes back 75 % of its forgetting."
    assert said[2].startswith("style: overfitting begins at step 40")
    worse = two_stages()
    worse[1] = stage(name="align", parent=0, origin=worse[0].origin, general=(5.16, 5.2, 5.2, 5.2, 5.2, 5.2, 5.32))
    assert english(*worse)[1] == "align keeps 100 % of the style gain of style and forgets 100 % more than it."


def test_nothing_is_said_of_stages_whose_texts_differ():
    stages = two_stages(origin=Origin(losses={"style": 4.9, "general": 5.16}, is_base=False))
    assert not any("keeps" in said for said in english(*stages))


def test_several_ends_are_told_by_name():
    stages = two_stages()
    said = english(*stages, replace(stages[1], name="instruct"))
    assert said[0].startswith("align: style perplexity fell") and said[1].startswith("instruct: style perplexity fell")


def test_runs_that_are_not_done():
    assert english(stage(state="training", step=40, steps=60))[0].startswith("So far, at step 40 of 60: style perplexity fell by")
    assert english(stage(state="unfinished", step=40, steps=None))[0].startswith("So far, at step 40: ")
    begun = stage(rows=[{"step": 0, "eval/style": 6.0, "eval/general": 5.0}])
    assert english(begun) == ["Measured before the first step only: style perplexity 403; general text perplexity 148."]
    assert english(stage(rows=[], origin=None)) == ["No figures yet."]
    unmeasured = stage(rows=[{"step": step, "loss": 5.0 - step / 10} for step in range(1, 11)], origin=None)
    assert english(unmeasured) == ["Nothing was held out, so only the training loss is known: 4.900 → 4.000 nats per token."]


def test_spikes_and_losses_that_are_no_number():
    rows = [{"step": step, "loss": 9.0 if step in (25, 28) else math.nan if step == 33 else 2.0} for step in range(1, 40)]
    said = english(stage(rows=rows, origin=None))
    assert said[1:] == ["The training loss jumped 2 times, first at step 25.", "The training loss was no number at step 33."]


def test_answers_of_conversations():
    rows = [{"step": 0, "eval/answers": 6.0}, {"step": 5, "eval/answers": 0.01}]
    lines = [held_out_line(0, {"answers": 6.0}), held_out_line(5, {"answers": 0.01})]
    chat = stage(rows=rows, held_out=lines, origin=Origin(losses={"answers": 6.0}, held_out=lines[0]))
    (said,) = reading([chat])
    assert said == Said("Answers perplexity fell by 99.7 % (403 → 1.01).", "回答困惑度下降 99.7 %（403 → 1.01）。")


def test_a_comparison_names_the_best_of_each_kind_and_those_nothing_beats():
    rows = [stage(run=name, group=number, style=(6.0,) + (style,) * 6, general=(5.0,) + (general,) * 6)
            for number, (name, style, general) in enumerate([("a", 4.0, 5.5), ("b", 4.5, 5.1), ("c", 4.6, 5.2)])]  # fmt: skip
    first, second = comparison(rows, ["a", "b", "c"])
    assert first.en == "Most style: a (−86.5 % perplexity). Least forgetting: b (general text +10.5 %)."
    assert second.en == "No other has both more style and less forgetting than: a, b."
    assert comparison([stage(rows=[], origin=None)], ["x"])[0].en == "Nothing was measured on held-out text."


def test_a_comparison_without_general_text():
    chats = [stage(rows=[{"step": 0, "eval/answers": 2.0}, {"step": 1, "eval/answers": last}], origin=Origin(losses={"answers": 2.0}))
             for last in (1.0, 0.5)]  # fmt: skip
    assert comparison(chats, ["a", "b"])[0].en == "Best on answers: b (−77.7 % perplexity)."


def test_json_has_the_figures_behind_the_sentences():
    found = as_json([stage()])
    (told,) = found["stages"]
    style = told["parts"]["style"]
    assert (style["before"], style["after"], style["best"], style["best_step"]) == (6.0, 4.9, 4.7, 40)
    assert style["perplexity_change"] == pytest.approx(math.exp(-1.1) - 1) and style["change_error"] > 0
    assert told["overfitting_step"] == 40 and told["kept_step"] == 60 and told["against_base"] is True
    assert len(found["reading"]["en"]) == len(found["reading"]["zh"]) == 2


def test_every_word_is_said_in_both_languages():
    for said in [*WORDS.values(), *PARTS.values(), *STATES.values()]:
        assert said.en and said.zh and said.en.count("{") == said.zh.count("{"), said
