"""`stylora sweep`: shared stages trained once, killed and gone on with, points that stop, what is refused; the figures against the logs.

Trainings of two steps on the bundled base.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from rich.console import Console
from tests.run import children
from tests.run.children import Runs, write_recipe

from stylora.errors import UserError
from stylora.generate.settings import Sampling
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import load_recipe
from stylora.run.open import find_model
from stylora.run.show_sweep import ordered, show
from stylora.run.stages import train_stages
from stylora.run.sweep import plan_sweep, sweep
from stylora.run.swept import undominated
from stylora.train.checkpoint import find_checkpoint
from stylora.train.interruption import Interrupted

pytestmark = pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there")

BETAS = "align.objective.kl.beta=0,0.1"
ADAPTERS = [f"{point}/{stage}/adapter/adapter_model.safetensors" for point in ("beta=0", "beta=0.1") for stage in ("style", "align")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """style, with dropout, and align, which goes on from it; two steps each."""
    path = write_recipe(tmp_path_factory.mktemp("旧 recipe"), dropout=0.1, max_steps=2, save_steps=1)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["stages"][0]["prompts"] = []
    values["stages"].append({"name": "align", "continue": "style", "objective": {"kl": {"beta": 0.1}}, "train": {"learning_rate": 1e-4}})
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """One token cache for all."""
    return tmp_path_factory.mktemp("tokens")


@contextmanager
def counted() -> Iterator[list[str]]:
    """`point/stage` of every training that begins meanwhile."""
    import stylora.run.train as page

    begun: list[str] = []
    original = page.train

    def train(recipe, **options):
        begun.append(f"{Path(recipe.output_dir).name}/{recipe.stages[0].name}")
        return original(recipe, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "train", train)
        yield begun


def run(recipe: Path, out: Path, *arguments: str, cache: Path, **options) -> SimpleNamespace:
    """The sweep into `out`, in this process: its result, what it printed, what it trained."""
    console = Console(file=io.StringIO(), width=400)
    with counted() as begun:
        result = sweep(recipe, [f"output_dir={out.as_posix()}", *arguments], console=console, cache=cache, **options)
    return SimpleNamespace(folder=out, result=result, said=console.file.getvalue(), trained=begun)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def straight(recipe, tokens, tmp_path_factory) -> SimpleNamespace:
    """The sweep that nothing interrupts."""
    return run(recipe, tmp_path_factory.mktemp("straight") / "sweep", BETAS, cache=tokens)


@pytest.fixture
def copied(straight, tmp_path) -> Path:
    """The same, moved elsewhere, to do with as one likes."""
    shutil.copytree(straight.folder, tmp_path / "moved")
    return tmp_path / "moved"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_adapters(folder: Path, straight: SimpleNamespace) -> None:
    for file in ADAPTERS:
        assert (folder / file).read_bytes() == (straight.folder / file).read_bytes(), file


# ------------------------------------------------------------------------------------------------------- what is shared


def test_the_first_stage_is_trained_once(straight):
    assert straight.trained == ["beta=0/style", "beta=0/align", "beta=0.1/align"]
    assert "3 trainings to do, 1 shared, 0 done, in " in straight.said
    assert "shared     style, as in beta=0: copied, not trained again" in straight.said
    assert [point["state"] for point in straight.result["points"]] == ["done", "done"]
    assert (straight.folder / ADAPTERS[1]).read_bytes() != (straight.folder / ADAPTERS[3]).read_bytes(), "beta makes a difference"


def test_a_copy_is_as_the_stage_it_was_copied_from_and_true_in_its_own_place(straight):
    first, second = (contents(straight.folder / point / "style") for point in ("beta=0", "beta=0.1"))
    there, here = (yaml.safe_load(each.pop("recipe.yaml")) for each in (first, second))
    first.pop(".lock", None), second.pop(".lock", None)
    assert first == second and "adapter/adapter_model.safetensors" in first and "checkpoints/checkpoint-2/checkpoint.json" in first
    assert here == there | {"output_dir": (straight.folder / "beta=0.1").as_posix()}
    for point in ("beta=0", "beta=0.1"):
        above = load_recipe(straight.folder / point / "align" / "recipe.yaml").stages[0]
        assert Path(above.adapter.path or "") == straight.folder / point / "style" / "adapter"
        for stage in ("style", "align"):
            found = find_model(str(straight.folder / point / stage))
            assert found.adapter is not None and found.adapter.resolve() == (straight.folder / point / stage / "adapter").resolve()
    checkpoint, complaints = find_checkpoint(straight.folder / "beta=0.1" / "style" / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 2 and not complaints


def test_a_point_with_a_copied_stage_is_as_if_it_had_been_trained_alone(recipe, straight, tokens, tmp_path):
    alone = load_recipe(recipe, ["align.objective.kl.beta=0.1", f"output_dir={tmp_path.as_posix()}"])
    train_stages(alone, name="x", console=Console(quiet=True), cache=tokens)
    for stage in ("style", "align"):
        for file in ("adapter/adapter_model.safetensors", "held_out.jsonl"):
            assert (tmp_path / stage / file).read_bytes() == (straight.folder / "beta=0.1" / stage / file).read_bytes(), (stage, file)


# --------------------------------------------------------------------------------------------------------- going on


def test_the_same_command_has_nothing_left_to_do(recipe, straight, tokens):
    before = contents(straight.folder)
    again = run(recipe, straight.folder, BETAS, cache=tokens)
    assert again.trained == [] and again.result == straight.result
    assert {name for name, text in contents(straight.folder).items() if before[name] != text} <= {"report.html"}


def test_more_values_train_the_new_points_alone(recipe, straight, copied, tokens):
    more = run(recipe, copied, BETAS + ",0.2", cache=tokens)
    assert more.trained == ["beta=0.2/align"] and "shared     style, as in beta=0" in more.said
    assert [point["name"] for point in more.result["points"]] == ["beta=0", "beta=0.1", "beta=0.2"]
    same_adapters(copied, straight)


def killed(arguments: list[str], log: str, environment: dict[str, str], moment: str) -> None:
    """`stylora ARGUMENTS` that is killed when its first point is done, or gets SIGTERM when it saves its second checkpoint."""
    import stylora.run.swept as swept

    if moment == "first point done":
        swept.Swept.done = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment]
        moment = ""
    children.command(arguments, log, environment, moment, "SIGTERM")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("moment, code", [
    pytest.param("first point done", -signal.SIGKILL, marks=pytest.mark.slow), ("saving", 128 + signal.SIGTERM)
])
def test_killed_and_gone_on_with_it_ends_with_the_same_bytes(recipe, straight, tokens, tmp_path, moment, code):
    out, log = tmp_path / "sweep", tmp_path / "log.txt"
    arguments = ["sweep", str(recipe), f"output_dir={out}", BETAS]
    process = Runs(recipe, tmp_path).context.Process(target=killed, args=(arguments, str(log), {"STYLORA_CACHE": str(tokens)}, moment))
    process.start()
    process.join(300)
    said = log.read_text(encoding="utf-8")
    assert process.exitcode == code and "Traceback" not in said, said
    left = run(recipe, out, BETAS, cache=tokens)
    if moment == "first point done":
        assert left.trained == ["beta=0.1/align"]
    else:
        assert said.rstrip().endswith("sweep      stopped; the same command goes on")
        assert left.trained == straight.trained and "resume     from" in left.said and "checkpoint-2" in left.said
    same_adapters(out, straight)
    assert [point["parts"] for point in left.result["points"]] == [point["parts"] for point in straight.result["points"]]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_between_trainings_stops_at_once(recipe, command, tmp_path, monkeypatch):
    monkeypatch.setattr("stylora.run.sweep.copy_shared", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)  # torch's launcher, run in this process by an earlier test, leaves its own
    with counted() as begun:
        ran = command("sweep", recipe, f"output_dir={tmp_path.as_posix()}/x", BETAS)
    assert ran.code == 128 + signal.SIGTERM and begun == []
    assert ran.out.endswith("sweep      stopped; the same command goes on\n") and ran.err == ""
    assert signal.getsignal(signal.SIGTERM) is before


# --------------------------------------------------------------------------------------------------- points that stop


def test_a_point_whose_loss_is_no_number_is_recorded_and_the_sweep_goes_on(recipe, command, tmp_path):
    """Its first stage stops it, so the other point with that stage is not tried."""
    arguments = ["sweep", recipe, f"output_dir={tmp_path.as_posix()}/x", "train.learning_rate=1e30,1e-3", BETAS]
    with counted() as begun:
        ran = command(*arguments, "--json")
    assert ran.code == 1
    assert begun == ["lr=1e30,beta=0/style", "lr=1e-3,beta=0/style", "lr=1e-3,beta=0/align", "lr=1e-3,beta=0.1/align"]
    result = json.loads(ran.out)
    assert result == json.loads((tmp_path / "x" / "sweep.json").read_text(encoding="utf-8"))
    assert result["grid"] == {"train.learning_rate": [1e30, 1e-3], "align.objective.kl.beta": [0, 0.1]} and result["overrides"] == [
        f"output_dir={tmp_path.as_posix()}/x"
    ]
    first, second, *others = result["points"]
    assert first["state"] == second["state"] == "stopped" and first["reason"] == second["reason"]
    assert "the loss is nan" in first["reason"] and not first["parts"] and not first["frontier"]
    assert "stopped    before, at a stage that is the same here" in ran.err
    assert [point["state"] for point in others] == ["done", "done"] and all(point["reason"] is None for point in others)
    page = (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    assert "lr=1e-3,beta=0.1" in page and "lr=1e30" not in page


def test_a_mistake_of_the_user_ends_it(recipe, tokens, tmp_path, monkeypatch):
    tried = []

    def train(recipe, **_):
        tried.append(recipe.output_dir)
        raise UserError("here", got="this", expected="that")

    monkeypatch.setattr("stylora.run.train.train", train)
    with pytest.raises(UserError, match="here: got this"):
        sweep(recipe, [f"output_dir={tmp_path.as_posix()}/x", BETAS], console=Console(quiet=True), cache=tokens)
    assert len(tried) == 1


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "more, told",
    [
        (["train.max_steps=3"], "beta=0/style: got another run (stages[0].train.max_steps 2 there, 3 here), expected an empty folder"),
        (["align.train.max_steps=3"], "beta=0/align: got another run (stages[0].train.max_steps 2 there, 3 here), expected an empty"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_first_difference(recipe, straight, refused, more, told):
    before = contents(straight.folder)
    message = refused("sweep", recipe, f"output_dir={straight.folder.as_posix()}", BETAS, *more)
    assert told in message and message.endswith("set output_dir to another folder, or take that one away")
    assert contents(straight.folder) == before


def test_refused_before_anything_is_trained(recipe, refused, command, tmp_path, monkeypatch):
    out = f"output_dir={tmp_path.as_posix()}/x"
    with counted() as begun:
        too_long = command("sweep", recipe, out, "align.data.window=48,100000")
        assert too_long.code == 2 and too_long.err.startswith("error: data.window: got 100000 tokens"), "though it is the last point's"
        assert "KEY=A,B: got no key with several values" in refused("sweep", recipe, out, "train.seed=1")
        assert "stages[0].train.seed: got 'x', expected" in refused("sweep", recipe, out, "train.seed=1,x")
        assert "got a file, expected a folder" in refused("sweep", recipe, f"output_dir={recipe.as_posix()}", BETAS)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert refused("sweep", recipe, out, BETAS).startswith("sweep: got 2 processes, expected one")
    assert begun == [] and not (tmp_path / "x").exists()


def test_files_that_are_no_run_are_left_alone(recipe, refused, tmp_path):
    (tmp_path / "beta=0.1" / "align").mkdir(parents=True)
    (tmp_path / "beta=0.1" / "align" / "novel.txt").write_text("书", encoding="utf-8")
    message = refused("sweep", recipe, f"output_dir={tmp_path.as_posix()}", BETAS)
    assert "got files that are no run" in message and "beta=0.1" in message
    assert contents(tmp_path) == {"beta=0.1/align/novel.txt": "书".encode()}


def test_two_sweeps_do_not_share_a_folder(recipe, straight, tokens):
    with FileLock(straight.folder / ".lock"), pytest.raises(UserError, match="another process is training"):
        run(recipe, straight.folder, BETAS, cache=tokens)


# -------------------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_says_what_is_to_be_done_and_does_nothing(recipe, straight, copied, command, tmp_path):
    def planned(folder: Path, *arguments: str) -> list[dict[str, str]]:
        found = json.loads(command("sweep", recipe, f"output_dir={folder.as_posix()}", *arguments, "--dry-run", "--json").out)
        return [point["stages"] for point in found["points"]]

    with counted() as begun:
        fresh = planned(tmp_path / "x", BETAS)
        assert fresh == [{"style": "train", "align": "train"}, {"style": "as beta=0", "align": "train"}]
        assert not (tmp_path / "x").exists()
        before = contents(copied)
        more = planned(copied, BETAS.replace("=0,", "=0.2,0,"))
        assert more == [{"style": "as beta=0", "align": "train"}, {"style": "done", "align": "done"}, {"style": "done", "align": "done"}]
        (copied / "beta=0" / "align" / "stack.json").unlink()
        before.pop("beta=0/align/stack.json")
        said = command("sweep", recipe, f"output_dir={copied.as_posix()}", BETAS, "--dry-run").out.splitlines()
    assert [line.split() for line in said] == [
        ["point", "style", "align"], ["beta=0", "done", "go", "on"], ["beta=0.1", "done", "done"]
    ]  # fmt: skip
    assert contents(copied) == before and begun == []


def test_a_plan_is_the_same_in_python(recipe, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan_sweep(recipe, [BETAS]) == json.loads(command("sweep", recipe, BETAS, "--dry-run", "--json").out)
    assert plan_sweep(recipe, [BETAS])["folder"] == str(Path("runs/recipe-sweep"))


# ------------------------------------------------------------------------------------------------------------- figures


def test_the_figures_are_those_of_the_logs(straight):
    """Against the base, which is the first stage before its first step; seconds of both stages, copied or not."""
    for point in straight.result["points"]:
        style, align = (straight.folder / point["name"] / stage for stage in ("style", "align"))
        base, last = (rows(style, "held_out.jsonl")[0], rows(align, "held_out.jsonl")[-1])
        assert base["step"] == 0 and last["step"] == 2 and point["kept_step"] == 2 and point["against_base"] is True
        for part in ("style", "general"):
            before, after = (sum(each[part]["nats"]) / sum(each[part]["tokens"]) for each in (base, last))
            told = point["parts"][part]
            assert told["change"] == pytest.approx(after - before, abs=1e-9)
            assert told["perplexity_change"] == pytest.approx(math.exp(after - before) - 1, abs=1e-9)
        seconds = [row["train_runtime"] for stage in (style, align) for row in rows(stage, "metrics.jsonl") if "train_runtime" in row]
        assert len(seconds) == 2 and point["seconds"] == pytest.approx(sum(seconds))
    assert straight.result == json.loads((straight.folder / "sweep.json").read_text(encoding="utf-8"))
    assert not list(straight.folder.rglob("*.tmp")) and not list(straight.folder.rglob("*.part"))


def rows(stage: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (stage / name).read_text(encoding="utf-8").splitlines()]


def test_the_page_shows_every_point(straight):
    page = (straight.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<title>") == 1 and "No other has both more style and less forgetting than" in page
    assert all(f">{point['name']}" in page for point in straight.result["points"])
    differing = page[page.index("Settings that differ") : page.index("Set otherwise than by default")]
    assert re.findall(r"[\w.]+\.beta|[\w.]+\.path|output_dir", differing) == ["align.objective.kl.beta"]


def point(name: str, style: float | None = None, general: float | None = None, **more: object) -> dict:
    """As sweep.json has it. style, general: changes in nats"""
    changes = {part: change for part, change in (("style", style), ("general", general)) if change is not None}
    parts = {
        part: {"before": 4.0, "after": 4.0 + change, "change": change, "change_error": 0.01, "perplexity_change": math.expm1(change)}
        for part, change in changes.items()
    }  # fmt: skip
    given = {"state": "done", "reason": None, "frontier": False, "seconds": 61.0, "evaluation": None, "scores": {}, **more}
    return {"name": name, "parts": parts, **given}


def test_the_frontier():
    points = [point("a", -0.5, 0.3), point("b", -0.4, 0.4), point("c", -0.3, 0.1), point("d", -0.6), point("e"), point("f", -0.1, -0.1)]
    assert [each["name"] for each in undominated(points)] == ["a", "c", "f"]


def test_the_table_has_the_most_style_first():
    points = [
        point("a", -0.1, 0.1), point("b", -0.5, 0.3, frontier=True), point("c", state="stopped", reason="no number"), point("d", -0.3, 0.4)
    ]  # fmt: skip
    assert [each["name"] for each in ordered(points)] == ["b", "d", "a", "c"]
    console = Console(file=io.StringIO(), width=80)
    show({"points": points, "base": None}, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.split() for line in said.splitlines() if line.strip()]
    assert lines[0] == ["point", "style", "general", "text", "time"]
    assert lines[1] == ["*", "b", "54.6", "→", "33.1", "−39.3", "%", "54.6", "→", "73.7", "+35.0", "%", "1", "min", "01", "s"]
    assert [line[0] for line in lines[2:4]] == ["d", "a"] and lines[5] == ["stopped", "c:", "no", "number"]


def test_a_table_of_other_data_and_of_nothing():
    answers = {**point("a"), "parts": {"answers": point("a", -1.0)["parts"]["style"]}}
    console = Console(file=io.StringIO(), width=80)
    show({"points": [answers], "base": None}, console)
    assert "answers" in console.file.getvalue() and "*" not in console.file.getvalue()  # type: ignore[attr-defined]
    console = Console(file=io.StringIO(), width=80)
    show({"points": [point("a", state="stopped", reason="why")], "base": None}, console)
    assert console.file.getvalue() == "stopped    a: why\n"  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_the_continuations_are_measured_once_and_in_the_same_way(recipe, copied, tokens, monkeypatch):
    import stylora.run.evaluate as page

    calls = []

    def evaluate(models, **options):
        calls.append(models)
        return original(models, prompts=["剑光一闪", "今天"], sampling=Sampling(max_new_tokens=8), **options)

    original = page.evaluate
    monkeypatch.setattr(page, "evaluate", evaluate)
    again = partial(run, recipe, copied, BETAS, cache=tokens)
    assert all(each["evaluation"] is None for each in again().result["points"]) and not calls
    result = again(evaluate=True).result
    assert calls == [[str(copied / name / "align") for name in ("beta=0", "beta=0.1")]]
    for each in result["points"]:
        kept = json.loads((copied / each["name"] / "align" / "evaluation.json").read_text(encoding="utf-8"))
        assert kept["models"][1]["generation"] == each["evaluation"] and kept["models"][0]["generation"] == result["base"]
    assert again(evaluate=True).result == result and again().result == result and len(calls) == 1
    console = Console(file=io.StringIO(), width=80)
    show(result, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1].split()[-6:] == ["style", "score", "base", "ppl", "dist-2", "degen."] and lines[2].split()[0] == "base"

    file = copied / "beta=0" / "align" / "evaluation.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told["settings"]["seed"] = 7
    file.write_text(json.dumps(told), encoding="utf-8")
    assert all(each["evaluation"] is None for each in again().result["points"]), "measured differently they do not compare"
    assert again(evaluate=True).result == result and len(calls) == 2


def test_interrupted_is_no_exception_that_a_library_swallows(recipe, tokens, tmp_path, monkeypatch):
    """From Python a signal is `Interrupted`; what is there by then stays."""
    monkeypatch.setattr("stylora.run.sweep.copy_shared", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as stop:
        sweep(recipe, [f"output_dir={tmp_path.as_posix()}/x", BETAS], console=Console(quiet=True), cache=tokens)
    assert stop.value.exit_code == 130 and not (tmp_path / "x" / "sweep.json").exists()
