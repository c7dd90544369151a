"""The command line: quick to answer, one sentence and exit code 2 for what the user can mend, JSON alone on stdout."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stylora
from stylora import cli
from stylora.errors import UserError


def stylora_process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "stylora", *arguments], capture_output=True, encoding="utf-8", cwd=cwd, env=environment, check=False
    )


def processor_seconds() -> float:
    """Of all child processes so far: a busy machine does not count."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        before, started = processor_seconds(), time.perf_counter()
        shown = stylora_process("--help")
        seconds.append(processor_seconds() - before if os.name == "posix" else time.perf_counter() - started)
    assert shown.returncode == 0
    for command in ("train", "demo", "generate"):
        assert command in shown.stdout
    assert min(seconds) < 0.5, seconds


def test_the_command_line_loads_no_torch():
    code = "import sys, stylora.cli; print(*sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_version_and_module_entry():
    shown = stylora_process("--version")
    assert (shown.returncode, shown.stdout.strip()) == (0, f"stylora {stylora.__version__}")


def run(monkeypatch, *arguments: str) -> int:
    """`stylora ARGUMENTS` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["stylora", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return 0 if code is None else code


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path):
    """In a process of its own: nothing else on stderr, nothing on stdout, nothing written."""
    (tmp_path / "我的 recipe.yaml").write_text("stages:\n  - data: {train: books, windw: 8}\n", encoding="utf-8")
    shown = stylora_process("train", "我的 recipe.yaml", cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert shown.stderr == (
        "error: 我的 recipe.yaml: stages[0].data.windw: got an unknown key, expected a key of this section; did you mean 'window'?\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["我的 recipe.yaml"]


@pytest.mark.parametrize("message", ["plain", "[bold]stages[0][/bold]", "x" * 500])
def test_messages_are_printed_as_they_are(monkeypatch, capsys, message):
    """No markup, no folding."""

    def fail() -> None:
        raise UserError("where", got=message, expected="y")

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch) == 2
    assert capsys.readouterr().err == f"error: where: got {message}, expected y\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written(monkeypatch, capsys, number):
    def fail() -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: runs/x: got {os.strerror(number).lower()}, expected leave and room to read and write there")
    assert printed.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    for mistake in (OSError(errno.EIO, "broken"), AssertionError("ours"), ValueError("ours")):

        def fail(mistake=mistake) -> None:
            raise mistake

        monkeypatch.setattr(cli, "app", fail)
        monkeypatch.setattr(sys, "argv", ["stylora"])
        with pytest.raises(type(mistake)):
            cli.main()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "stylora train: got neither a recipe nor flags, expected a recipe, as in `stylora train recipe.yaml`"),
        (["trian", "x.yaml"], "No such command"),
        (["generate", "tiny"], "Missing option"),
        (["generate", "tiny", "--prompt", "x", "--max-new-tokens", "0"], "Invalid value"),
        (["train", "no such.yaml"], "no such.yaml: got no such file, expected a recipe in YAML; `stylora init FOLDER` writes one"),
    ],
)
def test_wrong_calls(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""
    assert "Traceback" not in captured.err


def test_a_training_that_stops_is_exit_code_1(monkeypatch, capsys, tmp_path):
    import stylora.run.train
    from stylora.train.trainer import TrainingStopped

    def stop(*_, **__) -> None:
        raise TrainingStopped("step 3: the loss is nan; lower train.learning_rate")

    monkeypatch.setattr(stylora.run.train, "train", stop)
    (tmp_path / "r.yaml").write_text("stages: [{data: {train: x}}]", encoding="utf-8")
    assert run(monkeypatch, "train", str(tmp_path / "r.yaml")) == 1
    assert "stopped: step 3: the loss is nan" in capsys.readouterr().err


def test_train_hands_everything_on(monkeypatch, tmp_path):
    import stylora.run.train

    calls = []
    monkeypatch.setattr(stylora.run.train, "train", lambda recipe, **rest: calls.append((recipe, rest)))
    (tmp_path / "一.yaml").write_text("stages: [{data: {train: x}}]", encoding="utf-8")
    assert run(monkeypatch, "train", str(tmp_path / "一.yaml"), "data.window=200", "base=b", "--force") == 0
    ((recipe, rest),) = calls
    assert (recipe.base, recipe.stages[0].data.window, rest["name"], rest["force"]) == ("b", 200, "一", True)


def test_json_is_alone_on_stdout(monkeypatch, capsys, tmp_path):
    import json

    import stylora.run.demo

    def demo(out, overrides, *, console, force):
        console.print("progress 进度")
        return {"style": {"before": 1.0}, "folder": str(out), "overrides": overrides}

    monkeypatch.setattr(stylora.run.demo, "demo", demo)
    assert run(monkeypatch, "demo", "--out", str(tmp_path), "--json", "train.max_steps=2") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"style": {"before": 1.0}, "folder": str(tmp_path), "overrides": ["train.max_steps=2"]}
    assert "进度" in captured.err
