"""`stylora branches`: what is asked, how it is shown, rows of a file that go on where they stopped, and the method of `LoadedModel`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.run.stacked import FP32, write_adapter, write_chat_base, write_stacks

from stylora.errors import UserError
from stylora.generate.decode import stream
from stylora.generate.settings import Sampling
from stylora.model.settings import Adapter
from stylora.run import branch_table as table_page
from stylora.run import branches as page
from stylora.run import show_branches
from stylora.run.branch_questions import from_options, read_asked
from stylora.run.branch_table import branch_table
from stylora.run.branches import Asking, tasks_of
from stylora.run.loaded import LoadedModel
from stylora.run.open import find_model
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Begun

GREEDY = Sampling(temperature=0, max_new_tokens=8)
DRAWN = Sampling(temperature=1.2, max_new_tokens=8, seed=4)
TURNED = Branches(rope_2d_ratio=1, branch_stride=20)


@pytest.fixture
def rows(tmp_path):
    """`rows({...}, {...})`: a file of these rows."""

    def write(*values: object, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
        return path

    return write


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --------------------------------------------------------------------------------------------------------------- what is asked


def test_every_form_of_a_branch(rows):
    path = rows(
        {"main": "m", "branches": ["p", {"prompt": "q", "answer": "no"}, {"text": "begun"}, {"text": "abc", "answer_offset": 2}], "id": 3},
        {"main": "m", "branches": [
            {"answer": "no"}, {"prompt": "", "max_new_tokens": 3, "seed": 0}, {"text": "x", "answer_offset": 0}, {"text": ""},
        ]},
        {"main": [{"role": "system", "content": "s", "x": 1}],
         "branches": [[{"role": "user", "content": "u"}, {"role": "assistant", "content": "no"}],
                      {"messages": [{"role": "user", "content": "v"}], "seed": 5}]},
    )  # fmt: skip
    first, second, third = read_asked(path)
    assert first.openings == ["p", "q", Begun(text="begun"), "ab"] and first.row["id"] == 3 and first.where == f"{path}:1"
    assert second.openings == [""] * 4 and second.limits == [None, 3, None, None] and second.seeds == [None, 0, None, None]
    assert third.main == [{"role": "system", "content": "s"}]
    assert third.openings == [[{"role": "user", "content": "u"}], [{"role": "user", "content": "v"}]] and third.seeds == [None, 5]


@pytest.mark.parametrize(("row", "message"), [
    ([1], "a row that is a list"), ({"branches": ["a"]}, "no `main`"), ({"text": "a"}, "got a text without branches, which asks nothing"),
    ({"main": "a", "branch": ["a"]}, "no `branches`, expected `main` and `branches`; its keys are main, branch"),
    ({"main": " ", "branches": ["a"]}, "an empty `main`"), ({"main": 3, "branches": ["a"]}, "`main` that is 3"),
    ({"main": "a", "branches": []}, "got no branches"), ({"main": "a", "branches": "b"}, "no list"),
    ({"main": "a", "branches": [7]}, "rows.jsonl:2, branch 1: got 7"),
    ({"main": "a", "branches": ["b", {"promt": "c"}]}, "branch 2: got an unknown key `promt`"),
    ({"main": "a", "branches": [{"prompt": "c", "text": "d"}]}, "got prompt and text"),
    ({"main": "a", "branches": [{"seed": 1}]}, "got no beginning"),
    ({"main": "a", "branches": [{"prompt": "c", "max_new_tokens": 0}]}, "`max_new_tokens` 0, expected a whole number from 1"),
    ({"main": "a", "branches": [{"prompt": "c", "seed": True}]}, "`seed` True"),
    ({"main": "a", "branches": [{"text": "c", "answer_offset": 2}]}, "`answer_offset` 2"),
    ({"main": "a", "branches": [{"prompt": 1}]}, "`prompt` that is 1"),
    ({"main": [{"role": "user"}], "branches": [[{"role": "user", "content": "u"}]]}, "expected messages"),
    ({"main": [{"role": "user", "content": "u"}], "branches": [[{"role": "assistant", "content": "u"}]]}, "got no question"),
    ({"main": "a", "branches": ["\ud800"]}, "a character that is no text"),
])  # fmt: skip
def test_rows_that_cannot_be_asked_are_refused_with_their_line(row, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"main": "a", "branches": ["b"]}) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_asked(path)
    assert message in str(caught.value) and "rows.jsonl:2" in str(caught.value)


def test_files_that_hold_no_rows(tmp_path, rows):
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"main": \n', encoding="utf-8")
    for name, message in (
        ("empty.jsonl", r"got no rows \(empty\), expected rows of main and branches"), ("none.jsonl", "no such file"),
        ("bad.jsonl", r"bad.jsonl:1: got what is no row \(not valid JSON"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_asked(tmp_path / name)


def test_options():
    assert from_options("m", ["a", "b"], None, chat=False).openings == ["a", "b"]
    assert from_options("m", [], 3, chat=False).openings == ["", "", ""]
    asked = from_options("m", ["q"], None, chat=True)
    assert asked.main == [{"role": "system", "content": "m"}] and asked.openings == [[{"role": "user", "content": "q"}]]
    for main, prompts, count, chat, message in (
        ("m", [], None, False, "got neither"), ("m", ["a"], 2, False, "got both"), (" ", ["a"], None, False, "--main: got an empty text"),
        ("m", ["a", ""], None, False, "an empty prompt, as number 2"), ("m", [], 2, True, "a number, with --chat"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            from_options(main, prompts, count, chat=chat)


def test_copies_are_refused_and_only_those(base_folder, tmp_path):
    adapter = write_adapter(base_folder, tmp_path / "turned", Adapter(r=2), seed=0, branches=TURNED)
    plain, turned = find_model(str(base_folder)), find_model(str(adapter))
    three = from_options("m", [], 3, chat=False)
    with pytest.raises(UserError, match="these would be 3 copies of one; sample with --temperature"):
        tasks_of(plain, [three], GREEDY)
    for found, sampling, asked in ((plain, DRAWN, three), (turned, GREEDY, three), (plain, GREEDY, from_options("m", [], 1, chat=False))):
        tasks, _ = tasks_of(found, [asked], sampling)
        assert len(tasks[0].openings) == len(asked.openings)


def test_what_does_not_fit_is_refused_before_the_model_is_loaded(base_folder, tmp_path, rows):
    adapter = write_adapter(base_folder, tmp_path / "turned", Adapter(r=2), seed=0, branches=TURNED)
    with pytest.raises(UserError, match="--branch, branch 13: got coordinate 260, expected at most 256"):
        tasks_of(find_model(str(adapter)), [from_options("m", ["a"] * 13, None, chat=False)], GREEDY)
    long = read_asked(rows({"main": "a", "branches": ["b"]}, {"main": "长" * 90, "branches": ["b"]}))
    with pytest.raises(UserError, match=r"rows.jsonl:2, branch 1: got 271 tokens, 270 of them of the trunk, expected less than 256"):
        tasks_of(find_model(str(base_folder)), long, GREEDY)
    with pytest.raises(UserError, match="got 'runs/no/such', expected `tiny`, a folder, or a hub id"):
        tasks_of(find_model("runs/no/such"), [from_options("m", ["a"], None, chat=False)], GREEDY)
    with pytest.raises(UserError, match="no chat template"):
        tasks_of(find_model(str(base_folder)), [from_options("m", ["a"], None, chat=True)], GREEDY)


def test_columnar_branches_that_cannot_advance_together_are_refused_before_the_model_is_loaded(base_folder, tmp_path, rows, monkeypatch):
    columnar = Branches(visibility="columnar", rope_2d_ratio=0)
    adapter = str(write_adapter(base_folder, tmp_path / "columnar", Adapter(r=2), seed=0, branches=columnar))
    for module in (page, table_page):
        monkeypatch.setattr(module, "open_ready", lambda *_, **__: pytest.fail("the model was loaded"))
    asking = Asking(sampling=GREEDY, live=2)
    with pytest.raises(UserError, match="live: got 2, expected at least 3"):
        page.branches(adapter, from_options("m", ["a", "b", "c"], None, chat=False), asking, lambda *_: show_branches.silent())
    source = rows({"main": "a", "branches": ["b"]}, {"main": "a", "branches": ["b", "c", "d"]})
    with pytest.raises(UserError, match="live: got 2, expected at least 3"):
        branch_table(adapter, source, tmp_path / "out.jsonl", asking=asking, console=Console(file=io.StringIO()))
    assert not (tmp_path / "out.jsonl.partial").exists()


# ------------------------------------------------------------------------------------------------------------ the Python API


@pytest.mark.parametrize("name", ["style", "instruct"])
def test_loaded_branches_are_what_the_model_says_to_each_alone(name, base_folder, tmp_path):
    loaded = LoadedModel(str(write_stacks(base_folder, tmp_path / "stacks") / name), FP32)
    prompts = ["山上", "b", "a longer prompt"]
    for sampling in (GREEDY, DRAWN):
        texts = ["", "", ""]
        for branch, text in loaded.branches("从前", prompts, sampling, seeds=[1, 2, 3], limits=[None, 2, None]):
            texts[branch] += text
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1):
            ids = [*loaded.base.tokenizer("从前")["input_ids"], *loaded.base.tokenizer(prompt)["input_ids"]]
            seeded = sampling.model_copy(update={"seed": number, "max_new_tokens": 2 if number == 2 else 8})
            assert text == "".join(stream(loaded.model, loaded.base.tokenizer, ids, seeded))
    with loaded.bare() as bare:
        assert bare is loaded.base.model
    for short in ({"limits": [3]}, {"seeds": [1, 2, 3, 4]}):
        with pytest.raises(UserError, match="for 3 branches, expected one for each of them"):
            loaded.branches("从前", prompts, GREEDY, **short)


def test_branches_of_an_adapter_that_was_trained_on_them(base_folder, tmp_path):
    """They stand where they stood in training, so that three without a prompt differ; and messages go through the chat template."""
    base = write_chat_base(base_folder, tmp_path / "chat")
    loaded = LoadedModel(str(write_adapter(base, tmp_path / "turned", Adapter(r=2), seed=0, branches=TURNED)), FP32)

    def said(main, openings) -> list[str]:
        texts = ["" for _ in openings]
        for branch, text in loaded.branches(main, openings, GREEDY):
            texts[branch] += text
        return texts

    assert len(set(said("从前", ["", Begun(text=""), ""]))) == 3
    assert len(said([{"role": "system", "content": "s"}], [[{"role": "user", "content": "q"}]] * 2)) == 2
    with pytest.raises(UserError, match=r"branches: got what the base cannot read \(branch 1 is a text, unlike main\)"):
        said([{"role": "system", "content": "s"}], ["q"])


# --------------------------------------------------------------------------------------------------------------- the command


def test_one_trunk(command, refused):
    ran = command("branches", "tiny", "--main", "从前有一座山，", "-b", "山上", "--branch", "山下", "--max-new-tokens", 6, "--json")
    told = json.loads(ran.out)
    assert [each["opening"] for each in told["continuations"]] == ["山上", "山下"] and told["visibility"] == "isolated"
    assert told["tokens"] == sum(each["tokens"] for each in told["continuations"]) <= 12 and not told["apart"]
    assert told["read_separately"] > told["read"] and told["shared"] == round(1 - told["read"] / told["read_separately"], 4)
    plain = command("branches", "tiny", "--main", "从前有一座山，", "-b", "山上", "--branch", "山下", "--max-new-tokens", 6)
    lines = [f"[{n}] {each['opening']}{each['text']}" for n, each in enumerate(told["continuations"], 1)]
    assert plain.out.startswith("\n".join(lines) + "\n") and "tokens/s" in plain.out and "shared" in plain.out
    for arguments, message in (
        (["--branch", "a"], "--main: got none"), (["--main", "a"], "got neither"),
        (["--main", "a", "-b", "c", "--output", "x.jsonl"], "--output: got that without --input"),
        (["--input", "x.jsonl", "--count", 2], "--count: got that and --input"), (["--input", "x.jsonl"], "--output: got none"),
        (["--main", "a", "--count", 2, "--temperature", 0], "2 copies of one"),
    ):  # fmt: skip
        assert message in refused("branches", "tiny", *arguments)


def table(base: Path, source: Path, output: Path, **options) -> dict:
    asking = Asking(**{"sampling": DRAWN, "trunks": 2, **options})
    return branch_table(str(base), source, output, asking=asking, console=Console(file=io.StringIO()))


ROWS = [{"id": n, "main": "从前" * n, "branches": ["a", {"prompt": "bc", "max_new_tokens": n}, ""][: 1 + n % 3]} for n in range(1, 6)]


@pytest.fixture
def in_fp32(monkeypatch):
    monkeypatch.setattr(page, "choose_device", lambda: FP32)


@pytest.mark.usefixtures("in_fp32")
def test_a_file_that_was_interrupted_is_the_file_that_was_not(base_folder, tmp_path, rows, monkeypatch):
    source, output, whole = rows(*ROWS), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    told = table(base_folder, source, whole, trunks=5, live=1)
    found = read(whole)
    assert [{key: row[key] for key in ("id", "main", "branches")} for row in found] == ROWS and told["rows"] == 5
    assert all(len(row[key]) == len(row["branches"]) for row in found for key in table_page.KEYS)
    assert all(row["tokens"][1] <= row["id"] for row in found if len(row["branches"]) > 1)
    assert told["tokens"] == sum(sum(row["tokens"]) for row in found)
    decoded, batches = table_page._decoded, []

    def killed(*arguments):
        batches.append(arguments[4])
        if len(batches) == 2:
            raise MemoryError
        return decoded(*arguments)

    monkeypatch.setattr(table_page, "_decoded", killed)
    with pytest.raises(MemoryError):
        table(base_folder, source, output)
    assert not output.exists() and len(read(tmp_path / "out.jsonl.partial")) == 3
    with pytest.raises(UserError, match="temperature 1.2, now 0"):
        table(base_folder, source, output, sampling=GREEDY)
    again = table(base_folder, source, output)
    assert batches == [range(0, 2), range(2, 4), range(2, 4), range(4, 5)] and again["there_already"] == 2
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl", "whole.jsonl"]
    with pytest.raises(UserError, match="which is there already"):
        table(base_folder, source, output)
    assert table(base_folder, source, output, force=True)["rows"] == 5


def test_files_that_are_not_written(base_folder, tmp_path, rows):
    source = rows({"main": "a", "branches": ["b"]}, {"main": "a", "branches": ["b"], "tokens": 3})
    for output, message in (
        (tmp_path / "out.csv", "a file in .jsonl"), (tmp_path / "no" / "out.jsonl", "a folder that is there"),
        (source, "the file of --input"), (tmp_path / "out.jsonl", r"rows.jsonl:2: got a key `tokens`"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            table(base_folder, source, output)


# ------------------------------------------------------------------------------------------------------------------ the view


def piece(branch: int, text: str, stopped: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(branch=branch, text=text, stopped=stopped)


PIECES = [piece(1, "夜"), piece(0, "晨"), piece(1, "深", "stop"), piece(0, "光", "length")]


def test_plain_lines_come_in_the_order_of_the_branches():
    written: list[str] = []
    with show_branches.plain(written.append, ["一、", "二、"]) as take:
        for number, each in enumerate(PIECES):
            take(each)
            assert bool(written) == (number == 3), "the second has stopped, the first has not"
    assert written == ["[1] 一、晨光\n", "[2] 二、夜深\n"]


@pytest.mark.parametrize("width", [30, 120])
def test_panes_fill_side_by_side_where_there_is_room(width):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=40, color_system=None, legacy_windows=False)
    with show_branches.panes(console, ["一、[b]", "二、"]) as take:
        for each in PIECES:
            take(each)
    lines = file.getvalue().splitlines()
    together = [line for line in lines if "晨光" in line and "夜深" in line]
    assert bool(together) == (width == 120)
    assert any("一、[b]" in line for line in lines) and any("length" in line for line in lines)


def test_all_that_a_branch_said_stands_in_its_pane():
    """Also where nothing parts the words."""
    file, said = io.StringIO(), "".join(chr(0x4E00 + n) for n in range(90))
    console = Console(file=file, force_terminal=True, width=60, height=40, color_system=None, legacy_windows=False)
    with show_branches.panes(console, ["一、", "二、"]) as take:
        for number, letter in enumerate(said):
            take(piece(0, letter, "length" if number == 89 else None))
        take(piece(1, "x", "stop"))
    last = file.getvalue().rpartition("1 一")[2]
    assert "".join(letter for letter in last if letter in said) == said and "…" not in last


def test_a_long_branch_keeps_its_pane_low_until_the_end():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, height=30, color_system=None, legacy_windows=False)
    with show_branches.panes(console, ["a"]) as take:
        for number in range(50):
            take(piece(0, f"line {number}\n"))
            assert len(show_branches._last_lines("x\n" * number, 30)) <= show_branches.LINES
        take(piece(0, "", "stop"))
    assert all(f"line {number} " in file.getvalue() for number in range(50))
