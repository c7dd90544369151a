"""`stylora runs` on folders made by hand, in every state and every kind of disrepair; and on what a real training leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from stylora.recipe.recipe import parse_recipe
from stylora.run import runs as page
from stylora.train.checkpoint import MANIFEST

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(
    path: str, *, evaluations=((0, 4.5), (2, 4.1), (4, 4.2)), kept=(2, 4), best=2, of=8, done=None, layout="stages", train=(), weight=100
) -> Path:
    """A stage's folder. evaluations: (step, eval/style); kept: steps of checkpoints of `weight` bytes; done: stack.json's steps"""
    folder = Path(path)
    folder.mkdir(parents=True)
    stage = {"name": folder.name, "data": {"train": "小说"}, "train": dict(train)}
    recipe = parse_recipe({"layout": layout, "stages": [stage]}, [], name=path)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    (folder / "environment.json").write_text("{}", encoding="utf-8")
    rows: list[dict] = []
    for step, value in evaluations:
        rows += [{"step": step, "loss": 10.0 + step}] if step else []
        rows.append({"step": step, "eval/style": value, "eval/general": value + 1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for step in kept:
        checkpoint = folder / ("checkpoints" if layout == "stages" else ".") / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_model.safetensors").write_bytes(b"x" * weight)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"max_steps": of, "best_global_step": best}), encoding="utf-8")
        (checkpoint / MANIFEST).write_text("{}", encoding="utf-8")
    if done is not None:
        (folder / "stack.json").write_text(json.dumps({"adapters": [], "steps": done}), encoding="utf-8")
    return folder


def listed(command, *arguments) -> dict[str, dict]:
    found = json.loads(command("runs", *arguments, "--json").out)["runs"]
    return {run["name"]: run for run in found}


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------------------ list


def test_states_and_steps(command, place):
    make("runs/a/style", done=4)
    make("runs/b/style")
    make("runs/c/style", evaluations=(), kept=())
    make("runs/d/style", evaluations=[(0, 4.5)], kept=())
    make("runs/e/style", done=2)  # done once, and going on: a checkpoint lies above what stack.json says
    make("runs/f/style", evaluations=[(0, 4.5), (3, 4.4)], kept=(), train={"max_steps": 9})
    make("runs/g/style", evaluations=[(0, 4.5), (3, 4.4)], kept=())
    found = listed(command)
    told = {name[0]: (run["state"], run["step"], run["steps"]) for name, run in found.items()}
    assert told == {
        "a": ("done", 4, 4), "b": ("unfinished", 4, 8), "c": ("empty", 0, None), "d": ("empty", 0, None), "e": ("unfinished", 4, 8),
        "f": ("unfinished", 3, 9), "g": ("unfinished", 3, None),
    }  # fmt: skip
    assert all(not run["troubles"] for run in found.values())


def test_first_last_and_best_of_the_metric_that_chooses(command, place):
    make("runs/a/style", done=4)
    make("runs/b/style", train={"metric_for_best_model": "general", "greater_is_better": True})
    make("runs/c/style", evaluations=[(0, 1.0)], kept=())
    found = listed(command)
    figures = {name[0]: (run["metric"], run.get("first"), run.get("last"), run.get("best")) for name, run in found.items()}
    # the best is looked for among trained models: not the first line of a
    assert figures == {
        "a": ("eval/style", 4.5, 4.2, 4.1), "b": ("eval/general", 5.5, 5.2, 5.2), "c": ("eval/style", 1.0, 1.0, 1.0)
    }  # fmt: skip


def test_without_a_style_the_first_figure_counts(command, place):
    folder = make("runs/a/x", kept=())
    (folder / "metrics.jsonl").write_text('{"step": 0, "eval/exact": 0.1, "eval/f1": 0.3}\n', encoding="utf-8")
    assert listed(command)["a/x"]["metric"] == "eval/exact"


def test_where_runs_are_looked_for(command, place, refused):
    make("runs/a/style")
    make("runs/flat", layout="flat")
    make("elsewhere/b/style")
    make("runs/deep/er/than/that")
    (place / "runs/only a recipe").mkdir()
    (place / "runs/only a recipe/recipe.yaml").write_text("base: tiny", encoding="utf-8")
    assert set(listed(command)) == set(listed(command, "list")) == {"a/style", "flat"}
    assert set(listed(command, "list", "elsewhere")) == {str(Path("elsewhere/b/style"))} == set(listed(command, "list", "elsewhere/b"))
    assert [saved["step"] for saved in listed(command)["flat"]["checkpoints"]] == [2, 4]
    assert "nowhere: got no such folder" in refused("runs", "list", "nowhere")
    assert "no runs in runs/only a recipe" in command("runs", "list", "runs/only a recipe").out


def test_the_newest_comes_first(command, place):
    for age, name in enumerate("bac"):
        for file in make(f"runs/{name}/style", done=4).rglob("*"):
            os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    assert list(listed(command)) == ["b/style", "a/style", "c/style"]


def test_the_table_is_plain_in_a_pipe_and_fits_a_terminal(command, place):
    long = "runs/a name that is longer than the table has room for/style"
    make(long, done=4, weight=3 << 20)
    make("runs/b/style", evaluations=[(0, 4.5), (1200, 4.1)], kept=(1200,), of=48000)
    printed = command("runs").out
    lines = printed.splitlines()
    assert len(lines) == 3 and "\x1b" not in printed and lines[0].split()[:3] == ["run", "state", "steps"]
    (first,) = [line for line in lines if "longer" in line]
    assert f"{long.removeprefix('runs/')}  done" in first and "4.500 → 4.200 (4.100)" in first and "6.0 MiB" in first
    assert "unfinished  1,200 of 48,000" in printed

    from rich.console import Console

    from stylora.run.show_runs import show_list

    terminal = Console(width=100, force_terminal=True, record=True, file=open(os.devnull, "w", encoding="utf-8"))
    show_list(page.list_runs(Path("runs")), terminal)
    shown = terminal.export_text()
    assert max(map(len, shown.splitlines())) <= 100
    for cell in ("1,200 of 48,000", "4.500 → 4.200 (4.100)", "6.0 MiB", "unfinished"):
        assert cell in shown, shown


@pytest.mark.parametrize(
    ("file", "text", "state", "trouble"),
    [
        ("metrics.jsonl", '{"step": 0, "eval/style": 4.5}\n{"step": 4, "ev', "unfinished", "metrics.jsonl:2: no JSON object with a step"),
        ("metrics.jsonl", "[1]\n\xff\n", "unfinished", "metrics.jsonl:1: no JSON object with a step"),
        ("recipe.yaml", "stages: [", "broken", "recipe.yaml:1"),
        ("recipe.yaml", "stages: [{data: {train: x, widow: 3}}]", "broken", "unknown key"),
        ("recipe.yaml", "", "broken", "expected a mapping"),
        ("stack.json", '{"adapters": [', "broken", "stack.json: no JSON object"),
        ("checkpoints/checkpoint-4/trainer_state.json", "", "unfinished", "trainer_state.json: no JSON object"),
        (f"checkpoints/checkpoint-2/{MANIFEST}", None, "unfinished", f"{MANIFEST}: missing"),
    ],
)
def test_a_broken_file_is_named_in_its_row_and_stops_nothing(command, place, file, text, state, trouble):
    make("runs/good/style", done=4)
    good = listed(command)["good/style"]
    broken = make("runs/bad/style") / file
    if text is None:
        broken.unlink()
    else:
        broken.write_bytes(text.encode("latin-1"))
    found = listed(command)
    assert found["good/style"] == good
    assert found["bad/style"]["state"] == state and any(trouble in told for told in found["bad/style"]["troubles"]), found
    (row,) = [line for line in command("runs").out.splitlines() if line.startswith("bad/style")]
    assert trouble in row
    assert trouble in command("runs", "show", "bad").out


def test_looking_changes_nothing(command, place):
    make("runs/a/style")
    make("runs/b/style", layout="flat", done=4)
    before = everything(place / "runs")
    for words in (["runs"], ["runs", "show", "a"], ["runs", "show", "b/style", "--json"]):
        assert command(*words).code == 0
    assert everything(place / "runs") == before


def test_no_torch_is_imported(place):
    make("runs/a/style", done=4)
    code = "import sys\nfrom stylora.cli import app\napp(['runs'], standalone_mode=False)\nprint('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONUTF8": "1"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, env=environment)
    assert "a/style" in shown.stdout and shown.stdout.splitlines()[-1] == "False"


# ------------------------------------------------------------------------------------------------------------------ show


def test_show_tells_recipe_evaluations_checkpoints_and_the_next_command(command, place):
    make("runs/a/style", train={"learning_rate": 1e-3, "seed": 42}, weight=2 << 20)
    shown = command("runs", "show", "a").out
    lines = [line.split() for line in shown.splitlines()]
    assert ["data", "train:", "小说"] in lines
    assert ["train", "learning_rate:", "0.001"] in lines  # the seed is the default's
    assert ["objective", "as", "by", "default"] in lines and any(line[:3] == ["adapter", "r:", "16,"] for line in lines)
    assert ["step", "loss", "eval/style", "eval/general"] in lines
    assert ["0", "4.5000", "5.5000"] in lines and ["2", "12.0000", "4.1000", "5.1000"] in lines
    assert ["checkpoint-2", "2.0", "MiB", "best"] in lines and ["checkpoint-4", "2.0", "MiB", "last"] in lines
    stage = Path("runs/a/style")
    assert ["go", "on", "stylora", "train", str(stage / "recipe.yaml"), f"output_dir={stage.parent}"] in lines
    (stage / "stack.json").write_text('{"adapters": [], "steps": 4}', encoding="utf-8")
    done = command("runs", "show", str(stage)).out
    assert f"stylora generate {stage} --prompt" in done and "stylora train" not in done


def test_show_goes_on_where_a_flat_run_lies(command, place):
    make("out", layout="flat")
    assert f"stylora train {Path('out/recipe.yaml')} output_dir=out" in command("runs", "show", "out").out


def test_a_run_of_several_stages_is_shown_whole(command, place):
    make("runs/a/style", done=4)
    make("runs/a/align")
    assert [stage["stage"] for stage in json.loads(command("runs", "show", "a", "--json").out)["stages"]] == ["align", "style"]
    assert [stage["stage"] for stage in json.loads(command("runs", "show", "a/align", "--json").out)["stages"]] == ["align"]


def test_what_is_no_run_is_refused(refused, place):
    make("runs/wuxia/style")
    make("runs/flat", layout="flat")
    (place / "novels").mkdir()
    for words in (["show", "novels"], ["show", "nothing"], ["rm", "runs", "--yes"], ["rm", "novels", "--yes"], ["rm", ".", "--yes"]):
        assert f"{words[1]}: got no run, expected a run or a stage" in refused("runs", *words)
    assert "did you mean 'wuxia/style'?" in refused("runs", "show", "wuxja/style")
    assert (place / "runs/wuxia/style/recipe.yaml").is_file() and (place / "novels").is_dir()


# -------------------------------------------------------------------------------------------------------------------- rm


def test_rm_takes_away_the_run_and_nothing_else(command, place):
    make("runs/a/style", done=4, weight=1 << 20)
    make("runs/a/align")
    make("runs/b/style", done=4)
    rest = everything(place / "runs/b")
    told = json.loads(command("runs", "rm", "a", "--yes", "--json").out)
    assert not (place / "runs/a").exists() and everything(place / "runs/b") == rest
    assert told["removed"] == [str(Path("runs/a/align")), str(Path("runs/a/style"))] and told["bytes"] > 2 << 20


def test_rm_of_a_stage_leaves_the_others_and_what_else_lies_there(command, place):
    make("runs/a/style")
    align = place / make("runs/a/align")
    before = everything(align)
    assert "KiB freed" in command("runs", "rm", "a/style", "--yes").out
    assert everything(place / "runs/a") == {align: None, **before}
    (place / "runs/a/notes.txt").write_text("mine", encoding="utf-8")
    assert command("runs", "rm", "a", "--yes").code == 0
    assert everything(place / "runs/a") == {place / "runs/a/notes.txt": b"mine"}


def test_rm_asks(command, place, monkeypatch, refused):
    folder = make("runs/a/style")
    size = round(page.size_of(folder) / 1024)
    assert "--yes: got no terminal to ask at" in refused("runs", "rm", "a")
    assert folder.is_dir()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []

    def confirm(text: str, *, err: bool) -> bool:
        asked.append((text, err))
        return len(asked) > 1

    monkeypatch.setattr("typer.confirm", confirm)
    assert command("runs", "rm", "a").code == 1 and folder.is_dir()
    assert command("runs", "rm", "a").code == 0 and not folder.exists()
    assert asked == [(f"remove {Path('runs/a/style')} ({size} KiB)?", True)] * 2


def test_rm_follows_no_link(command, place, refused):
    (place / "mine").mkdir()
    (place / "mine/novel.txt").write_text("书", encoding="utf-8")
    folder = make("runs/a/style")
    (folder / "checkpoints/linked").symlink_to(place / "mine", target_is_directory=True)
    (folder / "also").symlink_to(place / "mine", target_is_directory=True)
    (place / "shortcut").symlink_to(folder, target_is_directory=True)
    assert "shortcut: got a link to" in refused("runs", "rm", "shortcut", "--yes")
    assert folder.is_dir()
    assert command("runs", "rm", "a", "--yes").code == 0
    assert not folder.exists() and (place / "mine/novel.txt").read_text(encoding="utf-8") == "书"


def test_a_run_in_training_is_shown_as_such_and_not_removed(command, place, refused):
    folder = make("runs/a/style")
    rest = make("runs/a/align")
    with FileLock(folder / ".lock"):
        assert {run["state"] for run in listed(command).values()} == {"training", "unfinished"}
        for name in ("a/style", "a"):
            assert "got a run that is being trained" in refused("runs", "rm", name, "--yes")
        assert (folder / "recipe.yaml").is_file() and (rest / "recipe.yaml").is_file()
    assert command("runs", "rm", "a", "--yes").code == 0 and not folder.exists()


def test_what_a_crash_of_rm_leaves_is_still_a_run(place, monkeypatch):
    folder = make("runs/a/style", done=4)

    def crash(path, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(page.shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        page.remove(page.find_run("a"))
    assert page.is_stage(folder)


# ---------------------------------------------------------------------------------------------------------- a real training


def test_what_training_leaves(command, place):
    (place / "r.yaml").write_text(
        f"stages: [{{data: {{train: '{(ROOT / 'examples/wuxia').as_posix()}', window: 64}}, prompts: []}}]", encoding="utf-8"
    )
    settings = ["train.max_steps=2", "train.save_steps=1", "train.eval_steps=1", "train.samples_per_step=2", "data.min_window=16"]
    ran = command("train", "r.yaml", *settings)
    assert ran.code == 0, ran
    (run,) = listed(command).values()
    assert (run["name"], run["state"], run["step"], run["steps"], run["troubles"]) == ("r/style", "done", 2, 2, [])
    assert [row["step"] for row in run["evaluations"]] == [0, 1, 2] and run["metric"] == "eval/style"
    assert [(saved["step"], saved["marks"]) for saved in run["checkpoints"]] == [(1, []), (2, ["last"])]
    assert run["bytes"] == sum(path.stat().st_size for path in Path("runs").rglob("*") if path.is_file())
    assert command("runs", "rm", "r", "--yes").code == 0 and not Path("runs/r").exists()
