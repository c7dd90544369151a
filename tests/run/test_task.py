"""A task from rows to answers: trained with its own metric in charge, evaluated both ways, and used by an application."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import stylora
from stylora.errors import UserError
from stylora.evaluate.task import load_metric, own_figures
from stylora.model.tokenizer_file import TINY
from stylora.run.folder import write_json
from stylora.run.predictor import Predictor
from stylora.run.show_evaluation import confusions
from stylora.run.task import read_task
from stylora.samples.chat_data import PART
from stylora.train.logs import read_lines

pytestmark = pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there")
SYSTEM = "把车型归一，只输出一个名称。"
NAMES = {"Bus": ["公交车", "大巴", "巴士"], "Car": ["小轿车", "轿车", "私家车"], "Truck": ["货车", "卡车", "垃圾车"]}
MADE = ["{}", "一辆{}", "{}是什么", "旧{}", "{}。", "这是{}"]
SCHEMA = {"type": "object", "properties": {"type": {"enum": [*NAMES]}}, "required": ["type"], "additionalProperties": False}


def rows(answer="{}"):
    return [
        {"messages": [
            {"role": "system", "content": SYSTEM}, {"role": "user", "content": "[车] " + made.format(name)},
            {"role": "assistant", "content": answer.replace("{}", label)},
        ]}
        for label, names in NAMES.items() for name in names for made in MADE
    ]  # fmt: skip


def write_rows(path: Path, found) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in found), encoding="utf-8")
    return path.as_posix()


def write_recipe(folder: Path, *, train: str, answers: str, task: dict, **changes) -> Path:
    stage = {
        "name": "task", "data": {"format": "chat", "train": train, "answers": answers, "validation": 0.25}, "task": task,
        "adapter": {"r": 8, "alpha": 16},
        "train": {"num_train_epochs": 8, "learning_rate": 3e-3, "samples_per_step": 8, "eval_steps": 0.5, "report_to": "none",
                  "metric_for_best_model": "exact", "precision": "fp32", **changes},
    }  # fmt: skip
    path = folder / "task.yaml"
    recipe = {"base": "tiny", "output_dir": str(folder / "run"), "stages": [stage]}
    path.write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")
    return path


def train(recipe: Path):
    from rich.console import Console

    from stylora.recipe.recipe import load_recipe
    from stylora.run.stages import train_stages

    train_stages(load_recipe(recipe), name="task", console=Console(quiet=True))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """The folder of a trained stage of labels."""
    folder = tmp_path_factory.mktemp("标签")
    train(write_recipe(folder, train=write_rows(folder / "rows.jsonl", rows()), answers="label",
                       task={"unknown": 0.2, "rows": 12}))  # fmt: skip
    return folder / "run" / "task"


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> Path:
    """The folder of a barely trained stage of JSON."""
    folder = tmp_path_factory.mktemp("json")
    train(write_recipe(folder, train=write_rows(folder / "rows.jsonl", rows('{"type": "{}"}')), answers="json",
                       task={"json_schema": SCHEMA, "max_new_tokens": 24}, max_steps=2))  # fmt: skip
    return folder / "run" / "task"


def test_its_own_metric_is_in_charge(labelled):
    found = read_lines(labelled / "task.jsonl")
    assert [row["step"] for row in found][0] == 0 and {row["metrics"]["rows"] for row in found} == {12}
    measured = {row["step"]: row["metrics"]["exact"] for row in found if row["step"]}
    logged = {row["step"]: row["eval/accuracy"] for row in read_lines(labelled / "metrics.jsonl") if "eval/accuracy" in row}
    assert {step: logged[step] for step in measured} == measured
    state = json.loads((labelled / "checkpoints" / f"checkpoint-{max(measured)}" / "trainer_state.json").read_text(encoding="utf-8"))
    best = max(measured.values())
    assert state["best_metric"] == best and measured[state["best_global_step"]] == best, "more is better, unasked"
    assert max(measured.values()) > 0.5, "it learned"


def test_what_predict_needs_is_kept(labelled):
    told = read_task(labelled)
    assert told.system == SYSTEM and told.labels == {"": ["Bus", "Car", "Truck"]} and told.answers == "label" and told.unknown == 0.2
    assert told.temperature >= 1
    wrong = read_lines(labelled / "errors.jsonl")
    assert all(row["expected"] != row["got"] and 1 / 3 <= row["confidence"] <= 1 for row in wrong)


def test_evaluate_answers_every_held_out_row_both_ways(labelled, command):
    ran = command("evaluate", labelled, "--json")
    base, model = json.loads(ran.out)["models"]
    held = {way: found["rows"] for way, found in model["task"].items()}
    assert held == {"free": 14, "constrained": 14}  # a quarter of 54
    assert model["task"]["constrained"]["accuracy"] > base["task"]["constrained"]["accuracy"]
    matrix = np.array(model["task"]["constrained"]["sets"][""]["confusion"]["matrix"])
    assert matrix.sum() == 14 and matrix.trace() / 14 == pytest.approx(model["task"]["constrained"]["accuracy"])
    wrong = read_lines(labelled / "errors.jsonl")
    assert len(wrong) == 14 - matrix.trace()
    shown = command("evaluate", labelled).out
    assert "constrained" in shown and "macro-F1" in shown


def test_other_rows_than_those_held_out(labelled, command, tmp_path):
    more = write_rows(tmp_path / "more.jsonl", rows()[:7])
    found = json.loads(command("evaluate", labelled, "--held-out", more, "--json").out)
    assert found["models"][1]["task"]["free"]["rows"] == 7
    missing = command("evaluate", labelled, "--held-out", tmp_path / "missing" / "more.jsonl")
    assert missing.code == 2 and "more.jsonl: got nothing there" in missing.err


def test_an_application_asks_it(labelled):
    predictor = stylora.Predictor(str(labelled), template="[车] {text}", batch_size=4)
    texts = [made.format(name) for names in NAMES.values() for name in names for made in MADE[:2]]
    found = predictor.predict(texts)
    labels = [label for label, names in NAMES.items() for _ in range(2 * len(names))]
    assert np.mean([each.answer == label for each, label in zip(found, labels, strict=True)]) > 0.6
    alone = [predictor.predict([text])[0] for text in texts[:5]]
    assert [each.answer for each in alone] == [each.answer for each in found[:5]]
    np.testing.assert_allclose([each.confidence for each in alone], [each.confidence for each in found[:5]], atol=5e-3)


def test_threshold_and_fallback(labelled):
    predictor = Predictor(str(labelled), threshold=1.0, fallback="不知道", template="[车] {text}")
    assert [(each.answer, each.known, each.value) for each in predictor.predict(["公交车"])] == [("不知道", False, None)]
    with pytest.raises(UserError, match=r"template: got '\[车\]'"):
        Predictor(str(labelled), template="[车]")
    with pytest.raises(AttributeError):
        stylora.Predicter  # noqa: B018


def test_json_is_held_to_its_schema_or_not(mapped, command):
    _, model = json.loads(command("evaluate", mapped, "--json").out)["models"]
    assert model["task"]["constrained"]["json_valid"] == 1 > model["task"]["free"]["json_valid"]
    held = Predictor(str(mapped)).predict(["[车] 公交车", "[车] 卡车"])
    assert all(each.value == json.loads(each.answer) and set(each.value) == {"type"} and each.known for each in held)
    free = Predictor(str(mapped), constrain=False).predict(["[车] 公交车"])[0]
    assert not free.known and free.value is None and free.answer == "unknown" and 0 < free.confidence < 1


def test_the_kept_recipe_loads_again(labelled, command):
    assert "done already" in command("train", labelled / "recipe.yaml").out


def test_a_broken_task_file(labelled, tmp_path):
    write_json(tmp_path / "task.json", {"answers": "label", "nonsense": 1})
    with pytest.raises(UserError, match="task.json: got a broken file"):
        read_task(tmp_path)
    assert read_task(tmp_path / "nowhere") is None


def test_an_input_that_is_too_long_is_told_and_not_answered(labelled):
    with pytest.raises(UserError, match="question 2: got .* tokens, expected at most"):
        Predictor(str(labelled)).predict(["[车] 公交车", "公交车" * 3000])


def test_an_answer_that_was_cut_is_not_known(mapped):
    predictor = Predictor(str(mapped), constrain=False)
    assert not predictor.predict(["[车] 公交车"])[0].known
    assert Predictor(str(mapped), constrain=True).predict(["[车] 公交车"])[0].known


def test_the_kept_errors_are_those_of_the_stage_as_it_was_trained(labelled, command):
    assert command("evaluate", labelled, "--json").code == 0
    before = (labelled / "errors.jsonl").read_bytes()
    assert command("evaluate", labelled, "--checkpoints", "all", "--weight", "1,0.1", "--json").code == 0
    assert (labelled / "errors.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["task.labels=[Bus]"], "task.labels"), (["task.metric=nonsense"], "task.metric"),
        (["task.json_schema={type: object}"], "task.json_schema: got a value, while data.answers is label"),
        (["task.metric=nowhere_at_all:f"], "task.metric: got 'nowhere_at_all:f'"),
        (["task.labels={'[x]': [Bus, Car, Truck]}"], "no label set claims"),
        (["task.labels=[bus, car, Truck]"], "got the answer 'Bus', as in"),
        (["data={format: text, train: x}"], "task: got a value, while data.format is text"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_task(changes, told, tmp_path, command):
    recipe = write_recipe(tmp_path, train=write_rows(tmp_path / "rows.jsonl", rows()), answers="label", task={}, max_steps=1)
    ran = command("train", recipe, *changes)
    assert ran.code == 2 and told in ran.err and not (tmp_path / "run" / "task" / "stack.json").exists(), ran.err


def test_a_users_own_metric(tmp_path, monkeypatch):
    source = "def brevity(rows):\n    return {'longest': max(len(r['got']) for r in rows)}\nx = 3\n"
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    from stylora.evaluate.judging import Answered

    row = Answered(origin="", input="?", expected="a", got="abc", confidence=1.0)
    assert own_figures(load_metric("mine:brevity"), [row]) == {"longest": 3.0}
    assert own_figures(len, [row, row]) == {"len": 2.0}
    with pytest.raises(UserError, match="got 'mine:x', a int"):
        load_metric("mine:x")
    with pytest.raises(UserError, match="a number"):
        own_figures(lambda rows: "good", [row])


@pytest.mark.parametrize("kind", ["label", "json"])
def test_a_users_own_metric_takes_no_other_figures_name(kind):
    """Neither of what is judged anyway, nor of the held-out loss, which stands beside it in metrics.jsonl."""
    from stylora.evaluate.judging import Answered, judge

    row = Answered(origin="", input="?", expected="1", got="1", confidence=1.0)
    for taken in [*judge(kind, [row], None), "calibration", PART]:
        with pytest.raises(UserError, match=f"^task.metric: got a figure called {taken}, expected a name that is not taken"):
            own_figures(lambda rows, taken=taken: {"mine": 1.0, taken: 0.5}, [row])
    with pytest.raises(UserError, match="called accuracy"):
        own_figures(accuracy, [row])
    assert own_figures(lambda rows: {"Accuracy": 1}, [row]) == {"Accuracy": 1.0}


def accuracy(rows) -> float:
    return 1.0


def test_confusions_are_said_to_be_the_last_models():
    def entry(name, matrix):
        found = {"constrained": {"sets": {"": {"confusion": {"labels": ["Bus", "Car", "(other)"], "matrix": matrix}}}}}
        return {"name": name, "base": "tiny", "adapter": "a", "checkpoint": None, "weight": 1.0, "task": found}

    right = entry("runs/right", [[3, 0, 0], [0, 4, 0], [0, 0, 0]])
    wrong = entry("runs/unified", [[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert list(confusions([right, wrong], several=False)) == [
        "confused by runs/unified, constrained:", "     2 x Car taken for Bus", "     1 x Bus taken for Car"
    ]  # fmt: skip
    assert list(confusions([wrong, right], several=False)) == []
    assert list(confusions([right | {"task": None}], several=False)) == []
