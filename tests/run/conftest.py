"""What the tests of commands share: a command run in this process, as a user runs it, and a cache of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stylora import cli
from stylora.model.tokenizer_file import TINY

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """code: exit code; out, err: what it printed"""

    code: int
    out: str
    err: str


@pytest.fixture
def cache(tmp_path) -> Path:
    """A token cache of the test's own."""
    return tmp_path / "token cache"


@pytest.fixture
def command(monkeypatch, capsys, cache) -> Callable[..., Ran]:
    """`command("data", folder, "--json")`: runs it as `stylora data ...`, overwriting nothing of the user's."""
    if not (TINY / "tokenizer.json").is_file():
        pytest.skip("the bundled base is not there yet")
    monkeypatch.setenv("STYLORA_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["stylora", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return Ran(code, out, err)

    return run


@pytest.fixture
def refused(command) -> Callable[..., str]:
    """Runs a command that must fail as the user's mistake: exit code 2, nothing on stdout, one sentence on stderr, which is returned."""

    def run(*arguments: object) -> str:
        ran = command(*arguments)
        assert ran.code == 2, ran
        assert ran.out == ""
        lines = ran.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in ran.err, ran.err
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def recipe_file(tmp_path) -> Callable[..., Path]:
    """`recipe_file(objective="{kind: span}", data="window: 64")`: a recipe over the example books, sections given as YAML."""

    def write(
        *, objective: str = "{kind: clm}", data: str = "window: 128, min_window: 16", train: str = "{samples_per_step: 4}"
    ) -> Path:
        path = tmp_path / "recipe.yaml"
        books = (ROOT / "examples" / "wuxia").as_posix()
        path.write_text(
            f"base: tiny\nstages:\n  - data: {{train: '{books}', {data}}}\n    objective: {objective}\n    train: {train}\n",
            encoding="utf-8",
        )
        return path

    return write
