"""The recipe that `init` writes: it loads, says what was chosen, keeps every default, explains every key, and trains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from rich.console import Console

from stylora.recipe.recipe import Recipe, Stage, load_recipe
from stylora.run.init import LARGE_BASE, comments, init, scalar, window_for
from stylora.samples.settings import Data
from stylora.train.settings import Train

ROOT = Path(__file__).parents[2]
WUXIA, MODERN = ROOT / "examples" / "wuxia", ROOT / "examples" / "modern"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Books under names that YAML would misread, and general text beside them."""
    books = tmp_path / "我的 书: #1"
    books.mkdir()
    for number, path in enumerate(sorted(WUXIA.glob("*.txt"))):
        shutil.copy(path, books / f"- 书{number}, '{path.stem}'.TXT")
    (books / ".hidden.txt").write_text("不读", encoding="utf-8")
    return books


def test_the_recipe_loads_and_keeps_every_default(command, folder, tmp_path):
    out = tmp_path / "新" / "recipe.yaml"
    ran = command("init", folder, "--out", out)
    assert ran.code == 0 and f"stylora train {out}" in ran.out
    recipe = load_recipe(out)
    stage = recipe.stages[0]
    assert recipe.base == "tiny" and stage.data.train == folder.as_posix() and stage.data.general is None
    assert stage.data.window == 256 and stage.objective.kind == "clm"
    chosen = {
        "data": {"train": stage.data.train, "window": 256}, "objective": {"kind": "clm"},
        "train": stage.train.model_dump(include={"num_train_epochs", "samples_per_step", "tokens_per_microbatch", "learning_rate"}),
    }  # fmt: skip
    assert recipe == Recipe.model_validate({"stages": [chosen]})
    assert stage.train.num_train_epochs * 61_000 / 256 / stage.train.samples_per_step >= 150, "enough steps for a style"


def keys(section: type[BaseModel]):
    for key, field in section.model_fields.items():
        yield field.alias or key
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default))


def test_every_key_stands_there_and_is_explained(command, folder, tmp_path):
    command("init", folder, "--out", tmp_path / "r.yaml")
    text = (tmp_path / "r.yaml").read_text(encoding="utf-8")
    for key in ("base", "output_dir", *keys(Stage), *keys(Data)):
        assert re.search(rf"^\s*(- |# )?{key}:", text, re.MULTILINE), key
    assert f"# base: {LARGE_BASE}" in text
    words = " ".join(text.replace("#", " ").split())  # as if nothing had been wrapped
    for key, meaning in comments(Train).items():
        assert meaning in words, key
    assert max(map(len, text.splitlines())) <= 140


def test_comments_come_from_the_docstrings():
    class Section(BaseModel):
        """About the section: it has keys.

        one: the first, which
            goes on: like this
        two, three: both; None is neither
        """

        one: int = 1
        two: int | None = None
        three: int = 3

    assert comments(Section) == {"one": "the first, which goes on: like this", "two": "both; null is neither"}
    assert set(comments(Stage)) >= {"name", "prompts", "sampling"}


@pytest.mark.parametrize("value", [None, True, 1, 5e-4, 1e-8, "no", "a: b # c", "剑光一闪", ["x", "y, z"], (3, 5), []])
def test_values_come_back_from_yaml(value):
    line = scalar(value)
    assert "\n" not in line
    assert yaml.safe_load(f"key: {line}") == {"key": list(value) if isinstance(value, tuple) else value}


@pytest.mark.parametrize("general", ["general.txt", "General", "general.jsonl"])
def test_general_text_is_found_and_kept_out_of_the_style(command, folder, tmp_path, general):
    if general.endswith(".txt"):
        (folder / general).write_text(next(MODERN.glob("*.txt")).read_text(encoding="utf-8"), encoding="utf-8")
    elif general.endswith(".jsonl"):
        rows = (f'{{"text": "这是第{i}段普通的文字，说说今天的天气。"}}\n' for i in range(50))
        (folder / general).write_text("".join(rows), encoding="utf-8")
    else:
        shutil.copytree(MODERN, folder / general)
    assert command("init", folder, "--out", tmp_path / "r.yaml").code == 0
    data = load_recipe(tmp_path / "r.yaml").stages[0].data
    assert data.general == (folder / general).as_posix() and data.general_ratio == 0.1
    assert set(data.train) == {path.as_posix() for path in folder.glob("-*.TXT")}


def test_rows_and_single_files(command, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    line = '{{"text": "第{0}段：他提剑走进酒店，只见里面坐着{0}个人。", "source": "书{1}"}}\n'
    (rows / "a.jsonl").write_text("".join(line.format(i, i % 4) for i in range(400)), encoding="utf-8")
    command("init", rows, "--out", tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml").stages[0].data.format == "text"
    assert command("init", next(WUXIA.glob("*.txt")), "--out", tmp_path / "one.yaml").code == 0


def test_windows_shrink_with_the_text_and_the_context(command):
    command("--version")  # skips where the base is not there
    assert window_for("tiny", 10**7) == 1024 and window_for("tiny", 128 * 512) == 512
    assert window_for("tiny", 100) == 128


def test_nothing_is_replaced_and_nothing_half_written(refused, folder, tmp_path):
    out = tmp_path / "recipe.yaml"
    out.write_text("mine", encoding="utf-8")
    assert refused("init", folder, "--out", out).startswith(f"{out}: got a file that is there already")
    assert out.read_text(encoding="utf-8") == "mine"
    new = tmp_path / "new.yaml"
    empty, lonely = tmp_path / "empty", tmp_path / "lonely"
    empty.mkdir()
    lonely.mkdir()
    shutil.copytree(MODERN, lonely / "general")
    assert "none usable" in refused("init", empty, "--out", new)
    assert "got nothing but general" in refused("init", lonely, "--out", new)
    assert "got nothing there" in refused("init", tmp_path / "没有", "--out", new)
    assert not new.exists()


def test_it_trains(base_folder, folder, tmp_path, monkeypatch):
    """One step on a random model; every other value is as written."""
    from stylora.run.train import train

    monkeypatch.chdir(tmp_path)
    init(folder, tmp_path / "r.yaml", base=str(base_folder), console=Console(stderr=True), cache=tmp_path / "cache")
    short = ["train.max_steps=1", "prompts=[]", "data.validation=0", "train.samples_per_step=2", f"output_dir={tmp_path / 'run'}"]
    recipe = load_recipe(tmp_path / "r.yaml", short)
    outcome = train(recipe, name="r", console=Console(quiet=True), cache=tmp_path / "cache")
    assert outcome is not None and outcome.steps == 1 and (tmp_path / "run" / "style" / "stack.json").is_file()
