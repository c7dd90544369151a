"""The comparison on labels and JSON: recipes as shipped, the nearest text as the baseline, the page as the stored result."""

from __future__ import annotations

import argparse
import json

import pytest
from benchmarks.__main__ import main

from benchmarks import fuzzy, normalise, report
from stylora.recipe.recipe import load_recipe

STORED = report.ROOT / "benchmarks/results/normalise.json"


def row(asked: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def options(**given):
    return argparse.Namespace(**{"quick": False, "rows": None, "work": None, "only": None, "tables": None, **given})


@pytest.mark.parametrize("name", ["unified", "columns"])
def test_the_recipes_are_those_that_are_shipped(name, tmp_path):
    ours = normalise.recipe_of(name, tmp_path, options(), 1.0).model_dump(mode="json")
    shipped = load_recipe(report.ROOT / f"recipes/{name}.yaml").model_dump(mode="json")
    (one,), (other,) = ours.pop("stages"), shipped.pop("stages")
    differing = {key for key in one["train"] if one["train"][key] != other["train"][key]}
    assert differing <= {"learning_rate", "num_train_epochs", "gradient_checkpointing", "report_to"}
    assert {key for key in one["data"] if one["data"][key] != other["data"][key]} == {"train", "validation"}
    assert all(one[key] == other[key] for key in one if key not in ("data", "train"))


def test_another_task_has_the_recipe_of_columns_with_its_own_rows(tmp_path):
    recipe = normalise.recipe_of("other", tmp_path, options(rows=tmp_path / "rows.jsonl"), 1.0)
    (stage,) = recipe.stages
    assert (stage.data.train, stage.data.validation, stage.data.answers) == (str(tmp_path / "rows.jsonl"), 0.1, "json")
    assert stage.task.json_schema is None and stage.adapter.r == 32


def test_the_nearest_text_of_the_same_kind():
    train = [row("[vehicle] 公交车", "Transit Bus"), row("[vehicle] school bus", "School Bus"), row("[pollutant] NOx", "NOx")]
    assert fuzzy.fuzzy_labels(train, ["[vehicle] 旧公交车", "[pollutant] 公交车", "[vehicle] School-Bus!"]) == [
        "Transit Bus", "NOx", "School Bus"
    ]  # fmt: skip
    held = [row("[vehicle] 公交", "Transit Bus"), row("[vehicle] 校车", "x")]
    assert fuzzy.baseline("unified", train, held)["ratio"] == {"accuracy": 0.5}


def test_columns_are_matched_one_by_one():
    train = [row('[micro] ["time", "speed", "note"]', '{"speed": "speed_kph", "time": "time_sec"}')]
    held = [row('[micro] ["speeds", "notes", "times"]', '{"speeds": "speed_kph", "times": "time_sec"}')]
    assert fuzzy.baseline("columns", train, held)["ratio"] == {"pair_precision": 1, "pair_recall": 1, "pair_f1": 1, "exact": 1}


def made() -> dict:
    """A result as `run` gives it."""
    rows = [
        {"contender": contender, "task": "unified", "test": test, "share": share, "way": way, "rows": 400, "accuracy": accuracy}
        for share in (0.5, 1.0) for test in ("held_out", *normalise.TESTS)
        for contender, way, accuracy in (("stylora", "free", share / 2), ("stylora", "constrained", share))
    ]  # fmt: skip
    rows.append({"contender": "fuzzy", "task": "unified", "test": "test_seen", "share": 1.0, "way": "", "rows": 400, "accuracy": 0.25})
    return {"rows": rows, "ratios": {}}


def test_the_tables():
    found = normalise.tables(made())
    assert "| `unified`, accuracy | test_seen | 400 | 25.0% | 50.0% | 100.0% |  |  |" in found["NORMALISE"].splitlines()
    assert found["CURVE"].splitlines()[2:] == ["| 50% | 50.0% | 50.0% |", "| 100% | 100.0% | 100.0% |"]


def test_a_stored_result_is_written_into_the_page(tmp_path, monkeypatch, capsys):
    page, result = tmp_path / "page.md", tmp_path / "normalise.json"
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("NORMALISE", "CURVE")), encoding="utf-8")
    result.write_text(json.dumps(made()), encoding="utf-8")
    monkeypatch.setattr(normalise, "PAGE", page)
    assert main(["normalise", "--tables", str(result)]) == 0
    assert "old" not in page.read_text(encoding="utf-8") and "| 50% |" in page.read_text(encoding="utf-8")


def test_the_page_quotes_the_stored_result():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    page = normalise.PAGE.read_text(encoding="utf-8")
    assert report.with_tables(page, normalise.tables(stored)) == page
