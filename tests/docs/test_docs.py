"""What the documentation says is true: every command in it runs, every link resolves, tables and drawings are what the code gives.

A page's ```bash and ```python blocks are executed in the order of the page, in a folder of their own with the examples and recipes in
it, through the command line in this process. Long ones are cut short: two steps, a few new tokens, the bundled base for a large one.

`PYTHONPATH=. python tests/docs/test_docs.py` writes the tables of settings anew, where a docstring has changed.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from benchmarks.__main__ import COMPARISONS, _parser
from pydantic import BaseModel

from stylora import cli
from stylora.corpus.clean import Cleaning
from stylora.evaluate.task_settings import Task
from stylora.forest import Sample, build_trie, chain, edges, join, pack
from stylora.forest.forest import visible
from stylora.generate.settings import Sampling
from stylora.model.settings import Adapter
from stylora.model.tokenizer_file import TINY
from stylora.model.visibility import dense
from stylora.recipe.recipe import Recipe, Stage, load_recipe, parse_recipe
from stylora.run.init import ENTRY, comments, scalar
from stylora.samples.anchors import Kl
from stylora.samples.branch_settings import Branches
from stylora.samples.clm import clm
from stylora.samples.objective import Objective
from stylora.samples.settings import Data, Style
from stylora.train.settings import Train

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if page.name != "README.zh-CN.md"]  # its blocks are those of README.md, as a test shows
LONG = (
    "branches", "chat", "compare", "demo", "evaluate", "export", "offline", "recipes", "stacks", "stages", "sweep", "tasks", "train",
    "training",
)
"""pages whose commands take more than ten seconds: executed with the proofs (`make proofs`), read by all other tests"""
LARGE = "Qwen/Qwen3-8B"
BEGINNING = 1500  # characters of a book that are enough for every command
ROWS = 40  # of a file of conversations
TWO_STEPS = ["train.max_steps=2", "train.eval_strategy=no", "train.save_strategy=no", "sampling.max_new_tokens=4"]
EPOCHS = ["train.num_train_epochs=0.3", "train.eval_strategy=no", "sampling.max_new_tokens=4"]  # for runs that are extended
SHORT = {  # what is put behind a command so that it does not take long; a later value replaces an earlier one
    "train": TWO_STEPS, "sweep": TWO_STEPS, "demo": TWO_STEPS, "generate": ["--max-new-tokens", "4"],
    "evaluate": ["--max-new-tokens", "4"], "chat": ["--max-new-tokens", "4"],
}  # fmt: skip
SECTIONS: dict[str, type[BaseModel]] = {
    model.__name__: model for model in (Recipe, Stage, Data, Style, Cleaning, Branches, Objective, Kl, Adapter, Train, Task, Sampling)
}


class Block(NamedTuple):
    """A fenced block: its language ("" for none) and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def commands(block: Block) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(environment, words) of each line of a bash block; comments and continuations as the shell has them."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        environment = {}
        while words and (given := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            environment[given[1]] = given[2]
            words = words[1:]
        if words:
            yield environment, words


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def programs(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in ("bash", "python")]


# ------------------------------------------------------------------------------------------------------- commands run


@pytest.fixture(scope="module")
def token_cache(tmp_path_factory) -> Path:
    """One for all pages."""
    return tmp_path_factory.mktemp("token cache")


@pytest.fixture
def workplace(tmp_path, monkeypatch, token_cache) -> Path:
    """A working folder as a newcomer has it: recipes, examples (the beginning of each), `my_novels` with GBK books and a general.txt."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    novels = tmp_path / "my_novels"
    novels.mkdir()
    for file in (ROOT / "examples").glob("*/*.txt"):
        text = file.read_text(encoding="utf-8")[:BEGINNING]
        copied = tmp_path / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text, encoding="utf-8")
        if file.parent.name == "wuxia":
            (novels / file.name).write_text(text, encoding="gb18030")
    for file in (ROOT / "examples").glob("*/*.jsonl"):
        copied = tmp_path / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
    shutil.copy(tmp_path / "examples/modern/厨房笔记.txt", novels / "general.txt")
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STYLORA_CACHE", str(token_cache))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there")
@pytest.mark.parametrize("page", [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (page.stem in LONG)) for page in RUN if programs(page)
])  # fmt: skip
def test_every_command_and_snippet_runs(page, workplace, monkeypatch, capsys):
    for block in programs(page):
        if block.language == "python":
            exec(compile(block.text, name(page), "exec"), {})
            assert capsys.readouterr().out.strip()
            continue
        for environment, words in commands(block):
            with monkeypatch.context() as patch:
                for key, value in environment.items():
                    patch.setenv(key, value)
                execute(words, patch)
            captured = capsys.readouterr()
            assert "error:" not in captured.err, captured.err


def execute(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run, or where that would build, fetch or take minutes, check that it is right."""
    program = "python" if words[0] == ".venv/bin/python" else words[0].removeprefix(".venv/bin/")
    if words[:3] == ["python", "-m", "stylora"]:
        program, words = "stylora", words[2:]
    if program == "stylora":
        stylora(words[1:], patch)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    elif program == "python" and words[1:3] == ["-m", "benchmarks"]:
        comparison: argparse.Namespace = _parser(import_module(f"benchmarks.{words[3]}")).parse_args(words[3:])
        assert comparison.name in COMPARISONS
        assert comparison.out is None or (ROOT / comparison.out).parent.is_dir()
    else:
        assert program == "python" and words[1:3] in (["-m", "venv"], ["-m", "pip"]), f"nobody checks {words}"
        assert all((ROOT / word).exists() for word in words[4:] if word.endswith(".txt")), words


def stylora(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """`stylora WORDS`, cut short, in this process; it must end well."""
    words = [word.replace(LARGE, "tiny") for word in words]
    if words[0] == "chat":
        patch.setattr(sys, "stdin", io.StringIO("雨夜的渡口\n/exit\n"))
    if words[0] == "demo":
        for module in ("demo", "demo_all"):
            patch.setattr(f"stylora.run.{module}.shipped_folder", Path.cwd)
    if words[:2] == ["data", "make"]:
        patch.setattr(sys, "argv", ["stylora", *words])
        with pytest.raises(SystemExit):
            cli.main()
        for file in Path(words[3]).glob("*.jsonl"):
            file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:BEGINNING // 100]), encoding="utf-8")
        return
    short = EPOCHS if "output_dir=runs/longer" in words else SHORT.get(words[0], [])
    if words[0] == "train" and not words[1].startswith("--"):  # later stages say by themselves how long they are
        short = [*short, *(f"stages.{number}.train.max_steps=2" for number in range(1, len(load_recipe(Path(words[1])).stages)))]
    if "--all" in words:
        short = [*short, *(f"{stage}.train.max_steps=2" for stage in ("align", "instruct", "unified", "parallel")), "unified.task.rows=4"]
    patch.setattr(sys, "argv", ["stylora", *words, *short])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0), words


def test_a_command_nobody_checks_is_noticed(monkeypatch):
    """The complement: neither a wrong target, nor a wrong flag, nor an unknown program passes."""
    for words in (["make", "coffee"], ["curl", "x"], ["pip", "install", "x"]):
        with pytest.raises(AssertionError):
            execute(words, monkeypatch)
    with pytest.raises(AssertionError):
        stylora(["inspect", str(ROOT / "recipes/wuxia.yaml"), "--sampels", "1"], monkeypatch)
    with pytest.raises(SystemExit):
        execute(["python", "-m", "benchmarks", "data", "--qiuck"], monkeypatch)


def command_names() -> set[str]:
    """Commands and groups of commands."""
    groups = {group.name for group in cli.app.registered_groups}
    return {command.name or command.callback.__name__ for command in cli.app.registered_commands} | groups


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_prose_exist(page):
    """`stylora x` in backticks names a command of the program."""
    known = command_names()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for words in re.findall(r"`stylora ([^`]*)`", text):
        first = words.split()[0]
        assert first in known or first.startswith("--"), words


def test_yaml_blocks_are_recipes():
    """Whole ones as they stand; sections in a stage with the least it needs."""
    found = 0
    for page in RUN:
        for block in (block for block in blocks(page) if block.language == "yaml"):
            for part in [block.text] if "stages:" in block.text else re.split(r"^(?=\w)", block.text, flags=re.MULTILINE)[1:]:
                values = yaml.safe_load(part)
                stages = values if "stages" in values else {"stages": [{"data": {"train": "x"}, **values}]}
                parse_recipe(stages, [], name=name(page))
                found += 1
    assert found


# ------------------------------------------------------------------------------------------------- links, the two READMEs


def headings(page: Path) -> list[tuple[int, str]]:
    """(level, text) outside of fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#+) (.*)$", text, re.MULTILINE)]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, marks taken out, blanks as hyphens."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_linked_from_the_first():
    first = ROOT / "docs/README.md"
    linked = set(re.findall(r"\]\(([^)#\s]+)", first.read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked
    assert {page.stem for page in (ROOT / "docs/commands").glob("*.md")} == command_names()


def test_the_two_readmes_have_equal_content():
    """The same headings by level, tables by rows, links by target, commands and snippets word for word, outputs letter by letter."""
    english, chinese = READMES
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    ours, theirs = blocks(english), blocks(chinese)
    assert [block.language for block in ours] == [block.language for block in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one.language == "bash":
            assert list(commands(one)) == list(commands(other))
    assert [b for b in ours if b.language in ("python", "yaml")] == [b for b in theirs if b.language in ("python", "yaml")]
    assert [b for b in ours if b.language == "text"][1:] == [b for b in theirs if b.language == "text"][1:]  # the first is the picture
    texts = [page.read_text(encoding="utf-8") for page in READMES]
    rows = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in texts]
    assert rows[0] == rows[1]
    targets = [[t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith("README")] for text in texts]
    assert targets[0] == targets[1]
    figures = [sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))) for text in texts]
    assert figures[0] == figures[1]


# ------------------------------------------------------------------------------------------------------ tables of settings


def settings_table(model: type[BaseModel]) -> str:
    """Key, default and meaning of a section, as its docstring says it; keys without words of their own share those above."""
    told, meaning = comments(model), ""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        key = field.alias or name
        meaning = told.get(key, meaning if key in grouped(model) else "the section below" if model is Stage else "")
        assert meaning, f"{model.__name__}.{key} is in no docstring"
        value = field.default
        default = "required" if field.is_required() else "see there" if isinstance(value, BaseModel) else f"`{scalar(value)}`"
        lines.append(f"| `{key}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def grouped(model: type[BaseModel]) -> set[str]:
    """Keys that a docstring explains together with others."""
    entries = [entry for line in (getdoc(model) or "").splitlines() if (entry := ENTRY.fullmatch(line))]
    return {key for entry in entries for key in entry[1].split(", ")}


def tables(page: Path) -> dict[str, str]:
    """Section -> the table that stands between its markers."""
    found = re.findall(r"<!-- SETTINGS (\w+) -->\n(.*?)<!-- /SETTINGS \1 -->", page.read_text(encoding="utf-8"), re.DOTALL)
    return {section: table.strip() for section, table in found}


@pytest.mark.parametrize("page", [page for page in PAGES if tables(page)], ids=name)
def test_settings_tables_are_those_of_the_code(page):
    for section, table in tables(page).items():
        expected = settings_table(SECTIONS[section])
        assert table == expected, f"{name(page)}: `PYTHONPATH=. python tests/docs/test_docs.py` writes this table anew"


def test_every_key_of_a_recipe_is_on_its_page():
    """Also those of sections that a later version adds."""
    assert set(tables(ROOT / "docs/recipes.md")) == set(SECTIONS)
    reached, todo = set(), [Recipe]
    while todo:
        model = todo.pop()
        reached.add(model.__name__)
        for field in model.model_fields.values():
            todo += [each for each in SECTIONS.values() if each.__name__ in str(field.annotation) and each.__name__ not in reached]
            inner = re.findall(r"stylora\.[\w.]+\.(\w+)", str(field.annotation))
            assert set(inner) <= set(SECTIONS), inner
    assert reached == set(SECTIONS)


def test_options_on_a_commands_page_are_the_programs():
    """Every flag that a page's tables name exists, and every flag that exists is named."""
    import typer

    root = typer.main.get_command(cli.app)
    for page in (ROOT / "docs/commands").glob("*.md"):
        command = root.commands[page.stem]
        parts = list(getattr(command, "commands", {}).values()) or [command]
        known = {flag for part in parts for option in part.params for flag in option.opts if flag.startswith("--")}
        text = "\n".join(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
        named = set(re.findall(r"(?<![-|])--[a-z][a-z_-]+", text))
        same = {flag.replace("-", "_") for flag in known}
        assert {flag.replace("-", "_") for flag in named} <= same, (page.name, named - known)
        assert same - {flag.replace("-", "_") for flag in named} <= {"__help"}, (page.name, same)


# ---------------------------------------------------------------------------------------------------------------- drawings

FIRST = (ROOT / "docs/README.md").read_text(encoding="utf-8")


def letters(*words: str) -> Sample:
    """A chain of one token for each word: its first letter's code, times ten, and its number."""
    return clm([10 * ord(word[0]) + int(word[1:] or 0) for word in words])


def drawn(heading: str) -> list[str]:
    """The words of the line that begins with `heading`."""
    (line,) = [line for line in FIRST.splitlines() if line.startswith(heading)]
    return line[len(heading) :].split()


FORESTS: dict[str, Callable[[], Sample]] = {
    "plain text": lambda: letters("a", "b", "c", "d"),
    "packed          a b": lambda: join([letters("a", "b"), letters("x", "y", "z")]),
    "shared prefix": lambda: build_trie([letters("s", "s", "u1", "a1"), letters("s", "s", "u2", "a2")]),
}


@pytest.mark.parametrize("heading", FORESTS)
def test_forests_on_the_first_page(heading):
    forest = FORESTS[heading]().forest
    words = drawn(heading)
    times, ends = words.index("time") + 1, words.index("end") + 1
    assert [int(word) for word in words[times : times + len(forest)]] == forest.time.tolist()
    assert [int(word) for word in words[ends : ends + len(forest)]] == forest.end.tolist()


def test_visibility_on_the_first_page():
    rows = re.findall(r"^(?:s|u\d|a\d) +([#.]{6})$", FIRST, re.MULTILINE)
    seen = visible(FORESTS["shared prefix"]().forest)
    assert rows == ["".join("#" if cell else "." for cell in row) for row in seen]


def test_visibility_of_branches_on_their_page():
    """Both drawings, row by row, and the times beside them, as attention masks are built from them."""
    page = (ROOT / "docs/branches.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\w   ((?:[#.] ){6}[#.]) +\w   ((?:[#.] ){6}[#.]) +(\d)$", page, re.MULTILINE)
    end, time = torch.tensor([[7, 7, 5, 5, 5, 7, 7]]), torch.tensor([[int(row[2]) for row in rows]])
    assert time.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    for number, columnar in enumerate((False, True)):
        seen = dense(end, time, columnar=columnar)[0, 0].tolist()
        assert [row[number].split() for row in rows] == [["#" if cell else "." for cell in row] for row in seen]


def test_turns_on_the_page_of_branches():
    """The fastest of the chosen pairs at theta 1e6, heads of 64 and a stride of 128."""
    page = (ROOT / "docs/branches.md").read_text(encoding="utf-8")
    ratios, turns = ([float(cell) for cell in re.findall(r"[\d.]+", re.search(head, page)[1])] for head in (  # type: ignore[index]
        r"\| ratio \|((?: [\d.]+ \|)+)\n\|---", r"\| largest turn, rad \|(.*)"
    ))  # fmt: skip
    computed = [128 * 1e6 ** (-(32 - round(32 * ratio)) / 32) for ratio in ratios]
    assert turns == pytest.approx(computed, rel=0.05) and len(turns) == 7


def test_rows_on_the_first_page():
    """Three chains stacked; and packed into two rows of eight, with the ends of each."""
    long, middle, short = letters("a", "b", "c", "d", "e"), letters("p", "q", "r", "s"), letters("x", "y", "z")
    (stacked,) = pack([long, middle, short], tokens_per_microbatch=15)
    packed = pack([long, middle, short], tokens_per_microbatch=16, row_tokens=8)
    lines = FIRST[FIRST.index("stacked   ") :].splitlines()[1:4]
    for line, row, length in zip(lines, stacked.ids, stacked.lengths, strict=True):
        assert line[:9].split() == [chr(token // 10) for token in row[:length]] + ["."] * (stacked.ids.shape[1] - length)
    ends = [[int(word) for word in line.split("end ")[1].split()] for line in lines[:2]]
    rows = {row.tolist()[0]: row.tolist() for batch in packed for row in batch.end}
    assert ends[0] == rows[5] and len(ends[0]) == 8
    assert ends[1][:4] == rows[4][:4] == [4] * 4
    assert ends[1] == [4, 4, 4, 4, 5, 6, 7, 8]


def test_edges_on_the_first_page():
    """The three lines of edges, on the tokens that stand before them."""
    for heading in ("clm", "span", "fim"):
        words = drawn(heading + "   ")
        at = words.index("edges")
        for source, _, target in (word.partition("->") for word in words[at + 1 :] if "->" in word and word != "->"):
            assert source in words[:at] and len(target) == 1, (heading, source)
    clm_words = drawn("clm   ")
    sample = letters(*clm_words[: clm_words.index("edges")])
    assert [f"{chr(s)}->{chr(t)}" for s, t in steps(sample)] == [word for word in clm_words if "->" in word]
    span_words = drawn("span   ")
    # the original tokens at the hidden places 2, 3 and 6 of a b c d e f g h, each from the position before
    source = [place - 1 for place in (2, 3, 6)]
    read = span_words[: span_words.index("edges")]
    hidden = Sample(forest=chain([ord(word) * 10 for word in read]), edges=edges(source, [10 * ord(c) for c in "cdg"]))
    assert [f"{chr(s)}->{chr(t)}" for s, t in steps(hidden)] == [word for word in span_words if "->" in word]


def steps(sample: Sample) -> list[tuple[int, int]]:
    """(letter read at the source, letter predicted) of every edge."""
    return [
        (sample.forest.ids[source] // 10, target // 10)
        for source, target in zip(sample.edges.source.tolist(), sample.edges.target.tolist(), strict=True)
    ]


def test_nothing_is_left_to_fill_in():
    """Markers of tables that are filled from results come in pairs, and no page has a leftover of its making."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text and "TODO" not in text, name(page)
        for marker in re.findall(r"<!-- ([A-Z]+) -->", text):
            assert text.count(f"<!-- /{marker} -->") == 1, (name(page), marker)


def write_tables() -> None:
    """Put the tables of settings between their markers."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for section in tables(page):
            start, end = f"<!-- SETTINGS {section} -->\n", f"<!-- /SETTINGS {section} -->"
            before, _, rest = text.partition(start)
            text = before + start + settings_table(SECTIONS[section]) + "\n" + end + rest.partition(end)[2]
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_tables()
