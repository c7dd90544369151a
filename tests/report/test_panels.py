"""What is drawn: stages one after the other, marks where they belong, nothing invented for what was not measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.report.made import evaluation, judged, model, stage, two_stages

from stylora.report.figures import STRETCHES
from stylora.report.panel import Panel, tracks
from stylora.report.panels import panels
from stylora.report.stage import Origin


def drawn(*stages, compared: bool = False) -> dict[str, Panel]:
    return {panel.key: panel for panel in panels(stages, compared=compared)}


def marks(panel: Panel, kind: str) -> list[tuple[float, float | None]]:
    return [(mark.x, mark.y) for mark in panel.marks if mark.kind == kind]


def test_plots_of_a_run():
    found = drawn(stage())
    assert list(found) == ["plane", "loss", "held_out_style", "held_out_general", "learning_rate", "grad_norm"]
    assert marks(found["held_out_style"], "best") == [(40, 4.7)] and marks(found["held_out_general"], "best") == [(10, 5.05)]
    assert marks(found["held_out_style"], "overfitting") == marks(found["loss"], "overfitting") == [(40, None)]
    assert not marks(found["held_out_general"], "overfitting")
    (line,) = found["held_out_style"].lines
    assert line.x.tolist() == [0, 10, 20, 30, 40, 50, 60] and line.look == "dots"
    assert line.tips[4] == ("style · step 40: 4.700 (perplexity 110)", "style · 第 40 步：4.700（困惑度 110）")
    raw, smoothed = found["loss"].lines
    assert (raw.look, smoothed.look) == ("faint", "line") and len(raw.x) == len(smoothed.x) == 60


def test_stages_stand_one_after_the_other():
    found = drawn(*two_stages())
    first, second = found["held_out_style"].lines
    assert first.x.tolist()[-1] == 60 and second.x.tolist() == [60, 70, 80]
    assert (first.colour, second.colour) == (0, 1)
    assert marks(found["held_out_style"], "stage") == [(60, None)]
    assert marks(found["held_out_style"], "best") == [(40, 4.7), (70, 4.95)]


def test_cross_entropy_and_kl_where_a_stage_has_them():
    found = drawn(*two_stages())
    assert [line.colour for line in found["kl"].lines] == [1, 1]
    assert [line.colour for line in found["ce"].lines] == [0, 0, 1, 1]  # without KL the loss is the cross-entropy
    assert found["ce"].lines[2].y == pytest.approx(found["loss"].lines[2].y - 0.01)
    assert not {"ce", "kl"} & set(drawn(stage()))


def test_the_plane_has_the_base_at_its_origin():
    plane = drawn(*two_stages())["plane"]
    first, second = plane.lines
    assert (first.x[0], first.y[0]) == (0, 0) and (first.x[-1], first.y[-1]) == pytest.approx((0.16, 1.1))
    assert (second.x[0], second.y[0]) == pytest.approx((0.16, 1.1)) and (second.x[-1], second.y[-1]) == pytest.approx((0.04, 1.0))
    assert marks(plane, "origin") == [(0, 0)]
    assert [mark.text for mark in plane.marks if mark.kind == "kept"] == ["style", "align"]
    assert second.tips[-1].en == "align · step 20: style perplexity −63.2 %, general +4.1 %"


def test_models_of_an_evaluation_are_points_of_the_plane():
    told = evaluation(model("x", 5.5, 5.02, weight=0.5), model("x", 5.0, 5.1), model("x", 5.2, 5.1, checkpoint=30), {"name": "broken"})
    plane = drawn(stage(evaluation=told))["plane"]
    rings = plane.lines[1]
    assert rings.look == "rings" and np.column_stack([rings.x, rings.y]) == pytest.approx(np.array([[0.02, 0.5], [0.1, 1.0], [0.1, 0.8]]))
    assert [tip.en.split(":")[0] for tip in rings.tips] == ["style · × 0.5", "style · x", "style · checkpoint-30"]


def test_there_is_no_plane_without_both_parts():
    chat = stage(rows=[{"step": 0, "eval/answers": 2.0}, {"step": 1, "eval/answers": 1.0}], origin=Origin(losses={"answers": 2.0}))
    assert list(drawn(chat)) == ["held_out_answers"]
    assert drawn(stage(rows=[], origin=None)) == {}


def test_compared_runs_have_their_colours_and_their_frontier():
    ends = [(4.0, 5.5), (4.5, 5.1), (4.6, 5.2)]
    runs = [stage(run=f"r{number}", group=number, style=(6.0,) + (style,) * 6, general=(5.0,) + (general,) * 6)
            for number, (style, general) in enumerate(ends)]  # fmt: skip
    plane = drawn(*runs, compared=True)["plane"]
    assert [(line.name, line.colour) for line in plane.lines[:3]] == [("r0", 0), ("r1", 1), ("r2", 2)]
    joined = plane.lines[3]
    assert joined.look == "frontier" and np.column_stack([joined.x, joined.y]) == pytest.approx(np.array([[0.1, 1.5], [0.5, 2.0]]))
    assert len(drawn(*runs)["plane"].lines) == 3


def test_names_of_compared_stages():
    first, second = two_stages()
    alone = [replace(first, parent=None), stage(run="other", group=1)]
    assert [track.name for track in tracks(alone, compared=True)] == ["wuxia", "other"]
    both = [first, second, stage(run="other", group=1)]
    assert [track.name for track in tracks(both, compared=True)] == ["wuxia/style", "wuxia/align", "other"]
    assert [(track.colour, track.offset) for track in tracks(both, compared=True)] == [(0, 0), (0, 60), (1, 0)]


def test_of_many_runs_only_smoothed_curves_and_names_on_the_frontier():
    runs = [stage(run=f"r{number}", group=number, general=(5.0,) + (5.1 + number / 10,) * 6) for number in range(12)]
    found = drawn(*runs, compared=True)
    assert {line.look for line in found["loss"].lines} == {"line"} and "smoothed" in found["loss"].unit.en
    assert [mark.text for mark in found["plane"].marks if mark.kind == "kept"] == ["r0"] + [""] * 11


def test_a_metric_of_a_task_is_no_loss():
    """Its panel has shares, no perplexity, and marks the adapter that was kept, not the lowest loss."""
    found = drawn(judged((0.48, 0.6, 0.7, 0.923, 0.9)))
    assert list(found) == ["score_accuracy", "held_out_answers"]
    panel = found["score_accuracy"]
    assert panel.title == ("accuracy", "准确率") and panel.unit == ("", "")
    (line,) = panel.lines
    assert line.x.tolist() == [0, 10, 20, 30, 40] and line.y.tolist() == [0.48, 0.6, 0.7, 0.923, 0.9]
    assert line.tips[3] == ("task · step 30: 92.3 %", "task · 第 30 步：92.3 %")
    assert marks(panel, "best") == [(30, 0.923)] and marks(found["held_out_answers"], "best") == [(20, 1.0)]


def test_a_metric_of_any_name_gets_a_key_that_is_a_file_name():
    (key, *_) = drawn(judged((1.0, 7.0), name="错/../cost"))
    assert key == "score_错____cost"


def test_a_long_run_is_thinned_and_outliers_leave_the_plot():
    rows = [{"step": step, "loss": 50.0 if step == 700 else 3.0 + np.sin(step) / 10} for step in range(1, 5001)]
    found = drawn(stage(rows=rows, origin=None))["loss"]
    assert found.thinned and max(len(line.x) for line in found.lines) <= 2 * STRETCHES + 2
    assert found.limits and found.limits[1] < 4 and marks(found, "spike") == [(700, 50.0)]


def test_a_part_of_any_name_gets_a_key_that_is_a_file_name():
    rows = [{"step": 0, "eval/../f1 <b>": 0.5}, {"step": 1, "eval/../f1 <b>": 0.6}]
    assert list(drawn(stage(rows=rows, origin=None))) == ["held_out____f1__b_"]


def test_several_hundred_evaluations_are_a_line_without_dots():
    rows = [{"step": step, "eval/style": 5.0 - step / 1000} for step in range(400)]
    (line,) = drawn(stage(rows=rows, origin=None))["held_out_style"].lines
    assert line.look == "line" and len(line.x) == 400
