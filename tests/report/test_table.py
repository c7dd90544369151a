"""The headline of a report: what was kept of each stage; and the metrics of a task, wherever a report has them."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from tests.report.made import judged, stage

from stylora.report.page import page
from stylora.report.stage import Stage
from stylora.report.table import as_json, table

SHARES = (0.48, 0.6, 0.7, 0.923, 0.9)


def cells(*stages: Stage, language: str = "en") -> dict[str, list[str]]:
    """Heading -> the cell of every stage."""
    shown = table(stages, language)
    return {str(column.header): [str(cell) for cell in column.cells] for column in shown.columns}


def printed(*stages: Stage, language: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table(stages, language))
    return console.file.getvalue()


def test_the_best_step_is_that_of_the_adapter_that_was_kept():
    """By the metric that chose it; without one, where the held-out loss was lowest."""
    best, by_metric = "best at step", judged(SHARES)
    assert cells(by_metric)[best] == ["30"] and by_metric.best("answers") == 20
    assert cells(replace(by_metric, metric=None))[best] == ["20"]
    assert cells(replace(by_metric, metric="eval/answers", more_is_better=False))[best] == ["20"]
    assert cells(stage(), stage(metric="eval/general"))[best] == ["40", "10"]
    assert cells(judged(SHARES[:1]), stage(rows=[], origin=None))[best] == ["–", "–"]


def test_a_metric_of_a_task_has_a_column_and_no_perplexity():
    found = cells(judged(SHARES))
    assert found["accuracy"] == ["48.0 % → 92.3 %"]
    assert [heading for heading in found if "accuracy" in heading or "answers" in heading] == ["answers", "accuracy"]
    assert "准确率" in printed(judged(SHARES), language="zh") and "accuracy" not in printed(judged(SHARES), language="zh")
    assert cells(judged((7.0, 3.5), name="cost"))["cost"] == ["7.000 → 3.500"]


def test_json_has_the_scores_beside_the_parts():
    (told,) = as_json([judged(SHARES)])["stages"]
    assert told["scores"] == {"accuracy": {"before": 0.48, "after": 0.923}} and list(told["parts"]) == ["answers"]
    assert told["kept_step"] == 30


def test_the_page_has_a_plot_of_it():
    text = page([judged(SHARES)], title="x", language="zh", version="0")
    assert "准确率" in text and '"score_accuracy"' in text
    assert "准确率" not in page([stage()], title="x", language="zh", version="0")
