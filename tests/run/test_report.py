"""`stylora report` and `stylora compare` on folders made by hand, in every state and of every layout, and on what real trainings leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from PIL import Image
from tests.report.made import HOSTILE, evaluation, held_out_line, model

from stylora.recipe.recipe import parse_recipe
from stylora.run import report as page
from stylora.run.reported import find_run, read, read_stages, readable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    return tmp_path


def make(
    path: str, *, style=(6.0, 5.0, 4.5), general=(5.0, 5.1, 5.2), every=2, done=True, layout="stages", start: str | None = None,
    train: Any = (), held_out: bool = True, windows: int = 12, prompts=("雨",), kl: bool = False,
) -> Path:  # fmt: skip
    """A stage's folder: a logged step for each step, an evaluation every `every`. start: the adapter folder it begins with"""
    folder = Path(path)
    (folder / "adapter").mkdir(parents=True)
    stage: dict[str, Any] = {"name": folder.name if layout == "stages" else "style", "data": {"train": "小说"}, "train": dict(train)}
    stage |= {"prompts": list(prompts)} | ({"adapter": {"path": start}} if start else {}) | ({"objective": {"kl": {}}} if kl else {})
    recipe = parse_recipe({"layout": layout, "stages": [stage]}, [], name=path)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    (folder / "environment.json").write_text('{"device": "CPU", "proofs": ["a proof"]}', encoding="utf-8")
    last = every * (len(style) - 1)
    logged: list[dict[str, Any]] = []
    for step in range(last + 1):
        if step:
            parts = {"ce": 5.0, "kl": 0.1} if kl else {}
            logged.append({"step": step, "loss": 6.0 - step / 10, "learning_rate": 1e-4, "grad_norm": 1.0, **parts})
        if step % every == 0:
            losses = {"style": style[step // every], "general": general[step // every]}
            logged.append({"step": step} | {f"eval/{part}": loss for part, loss in losses.items()})
            if held_out:
                append(folder / "held_out.jsonl", held_out_line(step, losses, windows))
            append(folder / "samples.jsonl", {"step": step, "samples": {prompt: f"第{step}步" for prompt in prompts}})
    for row in [*logged, *([{"step": last, "train_runtime": 12.5}] if done else [])]:
        append(folder / "metrics.jsonl", row)
    if done:
        (folder / "stack.json").write_text(json.dumps({"adapters": [], "steps": last}), encoding="utf-8")
    return folder


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def told(command, *arguments) -> dict[str, Any]:
    ran = command(*arguments, "--json")
    assert ran.code == 0, ran
    return json.loads(ran.out)


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ---------------------------------------------------------------------------------------------------------------- report


def test_a_run_has_its_page_in_its_folder_and_nothing_else_changes(command, place):
    make("runs/wuxia/style")
    before = everything(place)
    ran = command("report", "wuxia")
    assert ran.code == 0 and "403 → 90.0 −77.7 %" in ran.out and "wrote      runs/wuxia/report.html" in ran.out.replace(os.sep, "/")
    assert "Style perplexity fell by 77.7 % (403 → 90.0); general text got worse by 22.1 % (148 → 181)." in ran.out
    after = everything(place)
    written = place / "runs/wuxia/report.html"
    assert after.pop(written) and after == before
    assert "<title>wuxia · stylora</title>" in written.read_text(encoding="utf-8")
    command("report", str(Path("runs/wuxia/style")))
    assert "<title>wuxia / style · stylora</title>" in Path("runs/wuxia/style/report.html").read_text(encoding="utf-8")


def test_json_has_the_figures(command, place):
    make("runs/a/style")
    found = told(command, "report", "a")
    (stage,) = found["stages"]
    assert (stage["name"], stage["state"], stage["step"], stage["seconds"], stage["device"]) == ("style", "done", 4, 12.5, "CPU")
    assert stage["parts"]["style"]["before"] == 6.0 and stage["parts"]["style"]["after"] == 4.5 and stage["against_base"]
    assert found["png"] == [] and Path(found["html"]).is_file()
    assert found["reading"]["zh"][0].startswith("风格困惑度下降 77.7 %")


def test_metrics_of_a_task_are_told_from_losses_by_task_jsonl(command, place):
    """Its numbers are scores, but for the count of rows; without the file they would be taken for losses."""
    folder = make("runs/a/style")
    for step, share in ((0, 0.48), (2, 0.7), (4, 0.923)):
        append(folder / "metrics.jsonl", {"step": step, "eval/accuracy": share, "eval/cost": 3.0})
        metrics = {"rows": 12, "accuracy": share, "cost": 3.0, "sets": {"": {"accuracy": share}}}
        append(folder / "task.jsonl", {"step": step, "metrics": metrics})
    (stage,) = told(command, "report", "a")["stages"]
    assert stage["scores"] == {"accuracy": {"before": 0.48, "after": 0.923}, "cost": {"before": 3.0, "after": 3.0}}
    assert list(stage["parts"]) == ["style", "general"] and stage["parts"]["style"]["before"] == 6.0
    assert "48.0 % → 92.3 %" in command("report", "a").out
    (folder / "task.jsonl").unlink()
    (stage,) = told(command, "report", "a")["stages"]
    assert stage["scores"] == {} and set(stage["parts"]) == {"style", "general", "accuracy", "cost"}


def test_places_and_plots_that_were_asked_for(command, place):
    make("runs/a/style", kl=True)
    found = told(command, "report", "a", "--out", "new/其他.html", "--png", "plots", "--lang", "zh")
    assert Path("new/其他.html").is_file() and not Path("runs/a/report.html").exists()
    names = ["plane", "loss", "held_out_style", "held_out_general", "ce", "kl", "learning_rate", "grad_norm"]
    assert [Path(path).stem for path in found["png"]] == names
    for path in found["png"]:
        with Image.open(path) as image:
            assert image.size[0] > 1000
    assert '<html lang="zh">' in Path("new/其他.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "language"), [("zh_CN.UTF-8", "zh"), ("zh_TW", "zh"), ("en_US.UTF-8", "en"), ("C", "en"), ("de_DE", "en")]
)  # fmt: skip
def test_auto_is_what_the_system_speaks(monkeypatch, name, language):
    for key in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LANG", name)
    assert page.choose_language("auto") == language
    monkeypatch.setenv("LC_ALL", "fr_FR")
    assert page.choose_language("auto") == "en" and page.choose_language("zh") == "zh"


def test_on_windows_the_language_has_a_long_name(monkeypatch):
    for key in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr("locale.getlocale", lambda: ("Chinese (Simplified)_China", "936"))
    assert page.choose_language("auto") == "zh"


def test_the_terminal_speaks_it_too(command, place):
    make("runs/a/style")
    assert "风格困惑度下降 77.7 %" in command("report", "a", "--lang", "zh").out


def test_what_can_not_be_reported_is_refused(refused, place):
    make("runs/a/style")
    assert "nothing: got no run" in refused("report", "nothing")
    assert "--lang: got 'fr', expected one of: auto, en, zh" in refused("report", "a", "--lang", "fr")
    assert "--out: got a folder" in refused("report", "a", "--out", "runs")
    assert "RUN: got one, expected two runs or more" in refused("compare", "a")
    assert "twice, expected different runs" in refused("compare", "a", "a/style")
    assert not list(place.rglob("*.html"))


# ---------------------------------------------------------------------------------------------------------------- stages


def test_stages_follow_one_another_whatever_they_are_called(command, place):
    make("runs/x/style")
    make("runs/x/align", style=(4.5, 4.6, 4.7), general=(5.2, 5.1, 5.05), start="runs/x/style/adapter")
    make("runs/x/a third", style=(4.7, 4.7, 4.7), general=(5.05, 5.0, 5.0), start="runs/x/align/adapter")
    found = told(command, "report", "x")
    assert [stage["name"] for stage in found["stages"]] == ["style", "align", "a third"]
    align, third = found["stages"][1:]
    assert align["parts"]["style"]["before"] == 6.0 and align["parts"]["general"]["before"] == 5.0 and align["against_base"]
    assert third["parts"]["style"]["before"] == 6.0
    assert "align keeps 87 % of the style gain of style and takes back 75 % of its forgetting." in found["reading"]["en"]


def test_one_stage_alone_still_knows_its_base(command, place):
    make("runs/x/style")
    make("runs/x/align", style=(4.5, 4.6, 4.7), general=(5.2, 5.1, 5.05), start="runs/x/style/adapter")
    (stage,) = told(command, "report", "x/align")["stages"]
    assert stage["parts"]["style"]["before"] == 6.0 and stage["against_base"]


def test_stages_that_were_moved_find_one_another(command, place):
    make("runs/x/style")
    make("runs/x/align", style=(4.5, 4.6, 4.7), general=(5.2, 5.1, 5.05), start="runs/x/style/adapter")
    shutil.move("runs", "elsewhere")
    found = told(command, "report", str(Path("elsewhere/x")))["stages"]
    assert [stage["name"] for stage in found] == ["style", "align"] and found[1]["against_base"]


def test_without_a_base_a_stage_is_held_against_its_own_beginning(command, place):
    make("runs/x/align", style=(4.5, 4.6, 4.7), general=(5.2, 5.1, 5.05), start="gone/adapter")
    (stage,) = told(command, "report", "x")["stages"]
    assert stage["parts"]["style"]["before"] == 4.5 and stage["against_base"] is False
    told_so = "A base was not measured for every stage"
    assert told_so in Path("runs/x/report.html").read_text(encoding="utf-8")
    (Path("runs/x/align") / "evaluation.json").write_text(json.dumps(evaluation(model("x", 4.7, 5.05))), encoding="utf-8")
    (stage,) = told(command, "report", "x")["stages"]
    assert stage["parts"]["style"]["before"] == 6.0 and stage["against_base"] is True
    assert told_so not in Path("runs/x/report.html").read_text(encoding="utf-8")


def test_figures_of_other_texts_are_no_base(command, place):
    make("runs/x/style")
    make("runs/x/align", style=(4.5, 4.6, 4.7), general=(5.2, 5.1, 5.05), start="runs/x/style/adapter", windows=9)
    align = told(command, "report", "x")["stages"][1]
    assert align["parts"]["style"]["before"] == 4.5 and align["against_base"] is False


def test_another_base_model_is_no_base(command, place):
    folder = make("runs/x/style")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("base: tiny", "base: another"), encoding="utf-8")
    make("runs/x/align", style=(4.5, 4.6, 4.7), general=(5.2, 5.1, 5.05), start="runs/x/style/adapter")
    assert told(command, "report", "x/align")["stages"][0]["against_base"] is False


@pytest.mark.parametrize("start", ["runs/x/style/adapter", "runs/x/style"])
def test_a_stage_that_begins_with_itself_ends(command, place, start):
    make("runs/x/style", start=start)
    make("runs/x/b", start="runs/x/a/adapter")
    make("runs/x/a", start="runs/x/b/adapter")
    assert len(told(command, "report", "x")["stages"]) == 3


def test_the_adapter_that_measured_best_is_the_one_that_counts(command, place):
    make("runs/a/style", style=(6.0, 4.4, 4.5), train={"metric_for_best_model": "style"})
    (stage,) = told(command, "report", "a")["stages"]
    assert stage["kept_step"] == 2 and stage["parts"]["style"]["after"] == 4.4


# ----------------------------------------------------------------------------------------------------------- odd folders


@pytest.mark.parametrize("layout", ["flat", "final"])
def test_runs_of_an_older_layout(command, place, layout):
    make("out", layout=layout)
    found = told(command, "report", "out")
    assert Path(found["html"]) == Path("out/report.html") and found["stages"][0]["run"] == "out"
    assert "<title>out · stylora</title>" in Path("out/report.html").read_text(encoding="utf-8")


def test_a_run_in_progress(command, place):
    folder = make("runs/a/style", done=False)
    with FileLock(folder / ".lock"):
        found = told(command, "report", "a")
    assert found["stages"][0]["state"] == "training" and found["reading"]["en"][0].startswith("So far, at step 4: ")


def test_a_run_without_evaluations_and_with_one(command, place):
    make("runs/none/style", held_out=False)
    metrics = Path("runs/none/style/metrics.jsonl")
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if "eval/" not in line), encoding="utf-8")
    assert told(command, "report", "none")["reading"]["en"][0].startswith("Nothing was held out")
    make("runs/one/style", style=(6.0,), general=(5.0,), done=False)
    assert told(command, "report", "one")["reading"]["en"] == [
        "Measured before the first step only: style perplexity 403; general text perplexity 148."
    ]


def test_an_older_run_without_held_out_lines(command, place):
    make("runs/a/style", held_out=False)
    found = told(command, "report", "a")["stages"][0]["parts"]["style"]
    assert found["change_error"] is None and found["after"] == 4.5


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("metrics.jsonl", '{"step": 9, "lo'), ("held_out.jsonl", "[1]"), ("samples.jsonl", "\xff"), ("rejects.jsonl", "{"),
        ("environment.json", "["), ("evaluation.json", '{"models": ['), ("stack.json", "{"), ("recipe.yaml", "\n: ["),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_stops_nothing(command, place, file, damage):
    path = make("runs/a/style") / file
    with path.open("ab") as damaged:
        damaged.write(damage.encode("latin-1"))
    ran = command("report", "a")
    assert ran.code == 0 and file in ran.out, ran
    text = Path("runs/a/report.html").read_text(encoding="utf-8")
    assert file in text[text.index('class="trouble"') :]


def test_odd_lines_of_the_right_form(command, place):
    folder = make("runs/a/style")
    append(folder / "held_out.jsonl", {"step": 4, "style": {"nats": [1], "tokens": [], "characters": "x"}, "general": None})
    append(folder / "samples.jsonl", {"step": 4, "samples": {"雨": 3}})
    append(folder / "samples.jsonl", {"step": 4, "samples": "x"})
    odd = {"loss": float("inf"), "eval/style": None, "eval/general": 1e300, "grad_norm": float("nan")}
    append(folder / "metrics.jsonl", {"step": 4, **odd})
    (stage,) = told(command, "report", "a")["stages"]
    assert stage["parts"]["style"]["after"] == 4.5 and stage["no_number"] == [4]


def test_rejected_rows_are_counted_and_the_first_shown(command, place):
    folder = make("runs/a/style")
    for number in range(7):
        append(folder / "rejects.jsonl", {"where": f"rows.jsonl:{number}", "reason": HOSTILE, "row": None})
    command("report", "a")
    text = Path("runs/a/report.html").read_text(encoding="utf-8")
    assert "rows.jsonl:4:" in text and "rows.jsonl:5:" not in text and "<img" not in text


def test_names_no_terminal_can_print():
    assert readable("a\x1b[31m\ud800风") == "a�[31m�风"


# --------------------------------------------------------------------------------------------------------------- compare


def test_runs_beside_each_other(command, place):
    make("runs/a/style", train={"learning_rate": 1e-4})
    make("runs/b/style", style=(6.0, 5.5, 5.0), general=(5.0, 5.0, 5.0), train={"learning_rate": 2e-4})
    ran = command("compare", "a", "b")
    assert ran.code == 0 and "Most style: a (−77.7 % perplexity). Least forgetting: b (general text +0.0 %)." in ran.out
    text = Path("compare.html").read_text(encoding="utf-8")
    assert "<title>a · b · stylora</title>" in text and "train.learning_rate" in text and "0.0002" in text
    found = told(command, "compare", "a", "b", "--out", "c.html", "--png", "p")
    assert [stage["name"] for stage in found["stages"]] == ["a", "b"] and Path("c.html").is_file() and Path("p/plane.png").is_file()


def test_stages_beside_each_other_and_runs_of_one_name(command, place):
    make("runs/x/style")
    make("runs/x/align", start="runs/x/style/adapter")
    assert [stage["name"] for stage in told(command, "compare", "x/style", "x/align")["stages"]] == ["x/style", "x/align"]
    make("other/x/style")
    names = [stage["name"] for stage in told(command, "compare", "x/style", "other/x")["stages"]]
    assert names == ["x/style", str(Path("other/x/style"))], names


# ---------------------------------------------------------------------------------------------------------- real trainings


def test_what_trainings_leave(command, place):
    (place / "books").mkdir()
    for book in sorted((ROOT / "examples/wuxia").glob("*.txt"))[:3]:
        (place / "books" / book.name).write_text(book.read_text(encoding="utf-8")[:800], encoding="utf-8")
    (place / "r.yaml").write_text(
        "stages: [{data: {train: books, validation: 0.3, window: 64, min_window: 16}, prompts: ['雨']}]", encoding="utf-8"
    )  # fmt: skip
    short = ["train.max_steps=2", "train.eval_steps=1", "train.samples_per_step=2", "sampling.max_new_tokens=4"]
    assert command("train", "r.yaml", *short).code == 0
    more = ["output_dir=runs/r", "name=align", "adapter={path: runs/r/style/adapter}", "objective.kl.beta=0.1"]
    ran = command("train", "r.yaml", *short, *more)
    assert ran.code == 0, ran
    first, second = told(command, "report", "r", "--png", "plots")["stages"]
    assert (first["name"], second["name"]) == ("style", "align") and second["against_base"] and not second["troubles"]
    assert first["parts"]["style"]["before"] == second["parts"]["style"]["before"]
    assert first["parts"]["style"]["change_error"] > 0 and second["parts"]["style"]["change_error"] > 0
    assert Path("plots/kl.png").is_file()


def test_no_torch_is_imported(place):
    make("runs/a/style")
    code = "import sys\nfrom stylora.cli import app\napp(['report', 'a'], standalone_mode=False)\nprint('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONUTF8": "1"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, env=environment)
    assert "403 → 90.0" in shown.stdout and shown.stdout.splitlines()[-1] == "False"


def test_reading_gives_stages_in_the_order_asked_for(place):
    make("runs/b/style")
    make("runs/a/style")
    os.utime("runs/b/style/metrics.jsonl", (2e9, 2e9))
    assert [stage.run for stage in read_stages([find_run("b"), find_run("a")])] == ["b", "a"]
    assert read("b").folder == Path("runs/b")
