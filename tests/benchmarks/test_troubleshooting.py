"""The comparison of symptoms, shrunk: a run's losses, its memory and time; and the page's tables are the stored result's."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from benchmarks.__main__ import main
from benchmarks.report import with_tables

from benchmarks import report, troubleshooting
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import parse_recipe

STORED = report.ROOT / "benchmarks/results/troubleshooting.json"
NEEDS_BASE = pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there")


def learned(table: str, contender: str, saved: float, said=()) -> dict:
    return {
        "table": table, "contender": contender, "steps": 8, "training_first": 6.4, "training_last": 5.5, "style_first": 6.6,
        "style_best": 6.0, "best_step": 4, "style_last": saved, "style_saved": saved, "general_first": 6.2, "general_last": saved,
        "said": list(said),
    }  # fmt: skip


def timed(table: str, contender: str, seconds: float, memory: float) -> tuple[dict, list[dict]]:
    result = {"seconds_per_token": seconds, "memory_mb": memory, "padded_per_token": 1.5, "said": ["slow_padding"]}
    return {"table": table, "contender": contender}, [result, result | {"seconds_per_token": 3 * seconds}, result]


@pytest.fixture
def made_up() -> dict:
    rows = [
        learned("RATE", "learning_rate 1e-03", 6.0), learned("RATE", "learning_rate 1e-02", 7.0, ["rate_high"]),
        learned("FORGETTING", "no general text", 6.9), learned("FORGETTING", "general_ratio 0.2", 6.2),
        learned("EPOCHS", "8 epochs", 6.5), learned("EPOCHS", "1 epoch", 6.2),
    ]  # fmt: skip
    tasks, measured = zip(
        timed("MEMORY", "tokens_per_microbatch 4096", 2.0, 400.0), timed("MEMORY", "tokens_per_microbatch 2048", 2.2, 200.0),
        timed("SPEED", troubleshooting.UNEVEN, 4.0, 800.0), timed("SPEED", troubleshooting.UNEVEN + ", row_tokens 1024", 1.0, 800.0),
        strict=True,
    )  # fmt: skip
    rows += troubleshooting.timed_rows(list(tasks), list(measured))
    told = {"hardware": report.hardware(), "versions": report.versions(), "quick": False, "seconds": 7.0}
    return {"rows": rows, "ratios": troubleshooting.ratios(rows), **told}


def test_rows_are_held_against_the_first_of_their_kind(made_up):
    timed_rows = {row["contender"]: row for row in made_up["rows"] if row["table"] in ("MEMORY", "SPEED")}
    assert [(row["time_vs"], row["memory_vs"]) for row in timed_rows.values()] == [(1, 1), (1.1, 0.5), (1, 1), (0.25, 1)]
    assert not any("seconds" in key for row in made_up["rows"] for key in row), "no absolute times"
    found = made_up["ratios"]
    assert found["style perplexity learning_rate 1e-02 vs learning_rate 1e-03"] == pytest.approx(math.e)
    assert found["general perplexity general_ratio 0.2 vs no general text"] == pytest.approx(math.exp(-0.7))
    assert found["memory tokens_per_microbatch 2048"] == 0.5 and len(found) == 3 + 2 * 4


def test_tables_of_a_made_up_result(made_up):
    tables = troubleshooting.tables(made_up)
    assert tables.keys() == {"MEASURED", "RATE", "EPOCHS", "FORGETTING", "MEMORY", "SPEED"}
    assert "the full setting" in tables["MEASURED"] and "a quick run" in troubleshooting.tables(made_up | {"quick": True})["MEASURED"]
    assert tables["RATE"].splitlines()[-1] == (
        "| learning_rate 1e-02 | 8 | 6.40 → 5.50 | 6.000 at step 4 | 6.600 → 7.000 | 6.200 → 7.000 | `rate_high` |"
    )
    assert tables["MEMORY"].splitlines()[-1] == "| tokens_per_microbatch 2048 | 200 MB, × 0.50 | × 1.10 | 1.50 | `slow_padding` |"
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables.values())


def test_tables_go_between_their_markers_and_nowhere_else(made_up):
    page = "".join(f"before\n<!-- {name} -->\nold\n<!-- /{name} -->\nafter\n" for name in troubleshooting.tables(made_up))
    written = with_tables(page, troubleshooting.tables(made_up))
    assert "old" not in written and written.count("before\n") == written.count("after\n") == 6
    assert with_tables(written, troubleshooting.tables(made_up)) == written
    with pytest.raises(AssertionError):
        with_tables("no markers", troubleshooting.tables(made_up))


def test_the_pages_tables_are_the_stored_result():
    page = troubleshooting.PAGE.read_text(encoding="utf-8")
    result = json.loads(STORED.read_text(encoding="utf-8"))
    assert with_tables(page, troubleshooting.tables(result)) == page, (
        "`python -m benchmarks troubleshooting --tables benchmarks/results/troubleshooting.json` writes them anew"
    )


def test_the_command_writes_the_page(made_up, tmp_path, monkeypatch, capsys):
    page, stored = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in troubleshooting.tables(made_up)), encoding="utf-8")
    stored.write_text(json.dumps(made_up), encoding="utf-8")
    monkeypatch.setattr(troubleshooting, "PAGE", page)
    assert main(["troubleshooting", "--tables", str(stored), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 7.0, "what is shown is the stored result"
    assert page.read_text(encoding="utf-8").count("| learning_rate 1e-02 |") == 1
    assert main(["troubleshooting", "--tables", str(tmp_path / "none.json")]) == 2
    assert "--tables" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [troubleshooting.FULL, troubleshooting.QUICK], ids=["full", "quick"])
def test_every_task_is_a_recipe_of_its_own(settings, tmp_path):
    tasks = troubleshooting.learning_tasks(settings) + troubleshooting.timed_tasks(settings, tmp_path / "passages.jsonl")
    for task in tasks:
        parse_recipe({"base": "tiny", "stages": [task["stage"]]}, [], name=task["contender"])
    assert len({(task["table"], task["contender"]) for task in tasks}) == len(tasks)
    assert {task["table"] for task in tasks} == {"RATE", "EPOCHS", "FORGETTING", "MEMORY", "SPEED"}
    recipes = [json.dumps(task["stage"]) for task in tasks]
    assert len(recipes) - len(set(recipes)) == 1, "the right rate without general text stands in two tables, and is trained once"


def test_uneven_passages_are_uneven(tmp_path):
    rows = [json.loads(line) for line in troubleshooting.uneven_passages(tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    lengths = [len(row["text"]) for row in rows]
    assert min(len(row["text"]) for row in rows[7:-1:8]) > 5 * sorted(lengths)[len(lengths) // 2]


@NEEDS_BASE
def test_a_run_is_learned_from_and_another_is_timed(tmp_path):
    settings = replace(troubleshooting.QUICK, rates=(1e-3,), rate_steps=2, epochs=(1,), cures=(), budgets=(), timed_steps=1)
    small = {"window": 32, "min_window": 8}
    right, *_ = troubleshooting.learning_tasks(settings)
    right["stage"]["data"] |= small
    first, again = troubleshooting.learn_all([right, right | {"table": "FORGETTING"}], tmp_path)
    assert first == again | {"table": "RATE"}
    assert first["steps"] == 2 and first["style_saved"] == first["style_last"] and first["said"] == []
    assert 4 < first["style_best"] <= first["style_last"] < 8 and first["general_first"] > 4
    task, *_ = troubleshooting.timed_tasks(settings, tmp_path / "none")
    task["stage"]["data"] |= small
    found = troubleshooting.measure(task | {"cache": str(tmp_path)})
    assert found["seconds_per_token"] > 0 and found["memory_mb"] >= 0 and 1 <= found["padded_per_token"] < 2
    assert troubleshooting.DEFAULT_CALLBACKS[1:] == [], "no other trainer carries the clock"
