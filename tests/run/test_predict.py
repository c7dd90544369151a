"""`stylora predict`: every row keeps its fields and gets an answer, whatever the table's form, and however often it was stopped.

The model is a fake that answers from the text, so that what was asked can be seen.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from stylora.errors import UserError
from stylora.run import predict as page
from stylora.run.open import Found
from stylora.run.predict import Asking, predict
from stylora.run.prediction_files import NOTHING, Outcome, Table, read_table, write_table
from stylora.run.prediction_log import append, open_log
from stylora.run.show_prediction import show
from stylora.train.interruption import Interrupted

NAMES = ["公交", "校车", "", "公交", "摩托, 车", "第一行\n第二行", '他说"车"', "公交", "校车", "卡车", " ", "🚌"]


class Fake:
    """Answers with the text turned round. asked: every batch"""

    def __init__(self, stop_at: Callable[[], None] = lambda: None) -> None:
        self.asked: list[list[str]] = []
        self.stop_at = stop_at

    def __call__(self, model: str, asking: Asking) -> Fake:
        return self

    def predict(self, inputs: Sequence[str], /) -> list[SimpleNamespace]:
        self.asked.append(list(inputs))
        self.stop_at()
        return [SimpleNamespace(answer=text[::-1], confidence=1 / (1 + len(text)), known=len(text) < 5) for text in inputs]


def outcome(text: str) -> dict[str, Any]:
    """What the fake says of a row."""
    if not text.strip():
        return {"prediction": None, "confidence": None, "known": False}
    return {"prediction": text[::-1], "confidence": round(1 / (1 + len(text)), 4), "known": len(text) < 5}


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture
def ask(tmp_path) -> Callable[..., tuple[dict[str, Any], Fake]]:
    """`ask(source)`: its column 车型 to out.jsonl, three inputs at once."""

    def run(source: Path, column: str = "车型", output: str = "out.jsonl", fake: Fake | None = None, **options: Any):
        fake = fake or Fake()
        options = {"asking": Asking(batch_size=3), "console": quiet(), "load": fake} | options
        return predict("tiny", source, column, tmp_path / output, **options), fake

    return run


def written_csv(path: Path, rows: Sequence[dict[str, str]], *, encoding: str = "utf-8", delimiter: str = ",") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def table_rows() -> list[dict[str, str]]:
    return [{"编 号": str(number), "车型": name, "note": "a;b"} for number, name in enumerate(NAMES)]


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- every form of table ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["comma", "semicolon", "tab", "tsv", "gbk", "utf-16", "bom", "jsonl", "json", "parquet"])
def test_every_field_is_kept_in_order_whatever_the_form(ask, tmp_path, form):
    rows = table_rows()
    delimiters = {"semicolon": ";", "tab": "\t", "tsv": "\t"}
    encodings = {"gbk": "gb18030", "utf-16": "utf-16", "bom": "utf-8-sig"}
    source = tmp_path / f"表.{form if form in ('tsv', 'jsonl', 'json', 'parquet') else 'csv'}"
    if form == "jsonl":
        jsonl(source, rows)
    elif form == "json":
        source.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif form == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    else:
        written_csv(source, rows, delimiter=delimiters.get(form, ","), encoding=encodings.get(form, "utf-8"))
    summary, _ = ask(source)
    expected = [{**row, **outcome(row["车型"])} for row in rows]
    found = read_jsonl(tmp_path / "out.jsonl")
    assert found == expected and [list(row) for row in found] == [list(row) for row in expected]
    assert (summary["rows"], summary["empty"], summary["undecoded"]) == (12, 2, 0)
    ask(source, output="out.csv")
    told = [
        {**row, "prediction": row["prediction"] or "", "confidence": f"{row['confidence']:.4f}" if row["prediction"] else "",
         "known": "true" if row["known"] else "false"}
        for row in expected
    ]  # fmt: skip
    assert read_csv(tmp_path / "out.csv") == told
    assert left(tmp_path) == {source.name, "out.csv", "out.jsonl"}


def test_values_that_are_no_texts(ask, tmp_path):
    """Kept as they are in JSONL, as JSON in CSV; rows may differ in their fields."""
    rows = [{"a": {"b": "公交"}, "n": 1.5}, {"x": None, "a": {"b": 7}}, {"n": [1, "é"]}, {"a.b": "whole name", "a": {"b": "path"}}]
    source = jsonl(tmp_path / "rows.jsonl", rows)
    _, fake = ask(source, "a.b")
    assert fake.asked == [["公交", "7", "whole name"]]
    assert [list(row) for row in read_jsonl(tmp_path / "out.jsonl")] == [[*row, "prediction", "confidence", "known"] for row in rows]
    ask(source, "a.b", "out.csv")
    found = read_csv(tmp_path / "out.csv")
    assert list(found[0]) == ["a", "n", "x", "a.b", "prediction", "confidence", "known"]
    assert (found[0]["a"], found[0]["n"], found[1]["x"]) == ('{"b": "公交"}', "1.5", "")
    assert (found[2]["n"], found[2]["prediction"]) == ('[1, "é"]', "")


def test_dates_and_decimals_of_parquet(ask, tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    row = {"车型": "公交", "day": datetime.date(2024, 2, 29), "price": Decimal("1.50")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "t.parquet")
    ask(tmp_path / "t.parquet")
    (found,) = read_jsonl(tmp_path / "out.jsonl")
    assert (found["day"], found["price"]) == ("2024-02-29", "1.50")


def test_halves_of_characters_are_kept_and_not_asked(ask, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"车型": "公\\ud83d交"}\n', encoding="utf-8")
    _, fake = ask(tmp_path / "a.jsonl")
    assert fake.asked == [["公\ufffd交"]]
    assert read_jsonl(tmp_path / "out.jsonl")[0]["车型"] == "公\ud83d交"
    ask(tmp_path / "a.jsonl", output="out.csv")
    assert read_csv(tmp_path / "out.csv")[0]["车型"] == "公\ufffd交"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@given(cells=st.lists(st.text("公交 x\n", max_size=4), min_size=1).filter(any), end=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_blank_lines_of_one_column_are_blank_cells(tmp_path_factory, suffix, cells, end):
    """But for those that the file ends with."""
    path = tmp_path_factory.mktemp("one") / f"t{suffix}"
    lines = ["车型", *(f'"{cell}"' if "\n" in cell else cell for cell in cells)]
    path.write_text("\n" + "\n".join(lines) + "\n" * end, encoding="utf-8", newline="")
    while not cells[-1]:
        cells = cells[:-1]
    table = read_table(path, "车型")
    assert [row["车型"] for row in table.rows] == cells
    assert table.texts == [cell if cell.strip() else "" for cell in cells]


def test_blank_lines_between_several_columns_are_no_rows(ask, tmp_path):
    (tmp_path / "t.csv").write_text("\n编 号,车型\n\n1,公交\n\n\n2,\n\n", encoding="utf-8")
    ask(tmp_path / "t.csv")
    assert [row["编 号"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["1", "2"]
    (tmp_path / "one.csv").write_text("车型\n公交\n\n校车\n\n\n", encoding="utf-8")
    summary, _ = ask(tmp_path / "one.csv", output="one.out.csv")
    assert (summary["rows"], summary["empty"]) == (3, 1)
    assert [row["prediction"] for row in read_csv(tmp_path / "one.out.csv")] == ["交公", "", "车校"]


def test_bytes_that_are_no_text_are_told(ask, tmp_path):
    (tmp_path / "a.csv").write_bytes("车型\n公交\n".encode() * 30 + b"\xff\xfe\n")
    summary, _ = ask(tmp_path / "a.csv")
    assert summary["undecoded"] == 1
    shown = Console(file=io.StringIO(), width=200)
    show(summary, shown)
    assert "U+FFFD, in 1 places" in shown.file.getvalue()


def test_a_cell_as_long_as_a_chapter(ask, tmp_path):
    long = "车" * 200_000
    written_csv(tmp_path / "a.csv", [{"车型": long}])
    ask(tmp_path / "a.csv")
    assert read_jsonl(tmp_path / "out.jsonl")[0]["prediction"] == long


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from('\t\n\r,;"'), max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_what_was_written_reads_as_what_was_given(tmp_path_factory, rows):
    """CSV there and back, whatever is in a cell."""
    path = tmp_path_factory.mktemp("cells") / "t.csv"
    table = Table(columns=["a", "列"], rows=[{"a": a, "列": b} for a, b in rows], texts=["x"] * len(rows))
    write_table(path, table, [NOTHING] * len(rows))
    assert [(row["a"], row["列"]) for row in read_csv(path)] == rows
    path.write_bytes(path.read_bytes().replace(b"prediction,confidence,known", b"p,c,k", 1))
    found = read_table(path, "a")
    assert [(row["a"], row["列"]) for row in found.rows] == rows
    assert found.texts == [a if a.strip() else "" for a, _ in rows]


# --- what cannot be read or written -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "车型,b\n1,2\n1,2,3\n", "a.csv:3: got 3 fields in a row that ends here, expected 2"),
        ("a.csv", "车型,b\n1,2\n1\n", "a.csv:3: got 1 fields"),
        ("a.csv", '车型,b\n"1,2\n3,4\n', "broken CSV"),
        ("a.csv", "车型,车型\n1,2\n", "two columns named '车型'"),
        ("a.csv", "车型,known\n1,2\n", "got a column `known`"),
        ("a.csv", "车型\n", "got no rows"),
        ("a.csv", "", "got empty"),
        ("a.csv", "PK\x03\x04" + "x" * 100, "binary (a ZIP archive)"),
        ("a.jsonl", '{"车型": "1"}\n{"车型": \n', "a.jsonl:2: got not valid JSON"),
        ("a.jsonl", '{"车型": "1"}\n["公交"]\n', 'a.jsonl:2: got ["公交"], expected a JSON object'),
        ("a.json", '[{"车型": "1"}, 7]', "a.json:1: got 7, expected a JSON object"),
        ("a.parquet", "no Parquet", "broken Parquet"),
        ("a.xlsx", "x", "got a file ending in .xlsx, expected a table in .csv, .tsv, .jsonl, .json, .parquet"),
        ("a", "x", "got a file ending in nothing"),
    ],
)
def test_a_table_that_cannot_be_read_whole(ask, tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        ask(tmp_path / name)
    assert words in str(refused.value)
    assert left(tmp_path) == {name}


def test_no_file_a_folder_and_an_unknown_column(ask, tmp_path):
    with pytest.raises(UserError, match="got no such file"):
        ask(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match="got a folder"):
        ask(tmp_path / "b.csv")
    source = written_csv(tmp_path / "c.csv", table_rows())
    with pytest.raises(UserError, match="did you mean '编 号'"):
        ask(source, "编号")
    with pytest.raises(UserError, match="one of: note, 编 号, 车型"):
        ask(source, "x")
    nested = jsonl(tmp_path / "d.jsonl", [{"request": {"text": "a"}}])
    with pytest.raises(UserError, match=r"did you mean 'request\.text'"):
        ask(nested, "request.txt")


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("out.txt", {}, "expected a file in .csv or .jsonl"),
        ("no/out.csv", {}, "a file in a folder that is there"),
        ("t.csv", {}, "got the file of --input"),
        ("out.csv", {"asking": Asking(template="[v]")}, "--template: got '[v]', expected {text} in it"),
        ("folder.csv", {}, "a file in a folder that is there"),
    ],
)
def test_wrong_calls_ask_nothing(ask, tmp_path, output, options, words):
    source = written_csv(tmp_path / "t.csv", table_rows())
    (tmp_path / "folder.csv").mkdir()
    before, fake = source.read_bytes(), Fake()
    with pytest.raises(UserError) as refused:
        ask(source, output=output, fake=fake, **options)
    assert words in str(refused.value) and not fake.asked
    assert source.read_bytes() == before and left(tmp_path) == {"t.csv", "folder.csv"}


# --- equal inputs, limits, batches --------------------------------------------------------------------------------------------------------


def test_equal_inputs_are_asked_once_in_the_order_they_come(ask, tmp_path):
    summary, fake = ask(written_csv(tmp_path / "t.csv", table_rows()))
    different = [name for name in dict.fromkeys(NAMES) if name.strip()]
    assert fake.asked == [different[:3], different[3:6], different[6:]]
    assert (summary["different"], summary["rows"]) == (len(different), len(NAMES))
    assert summary["answers"][:2] == [{"prediction": "交公", "rows": 3, "share": 0.3}, {"prediction": "车校", "rows": 2, "share": 0.2}]
    assert summary["known"] == pytest.approx(sum(len(name) < 5 for name in NAMES if name.strip()) / 10)
    assert summary["confidence"] == pytest.approx(sum(1 / (1 + len(name)) for name in NAMES if name.strip()) / 10, abs=1e-4)


def test_the_first_rows_only(ask, tmp_path):
    summary, fake = ask(written_csv(tmp_path / "t.csv", table_rows()), limit=4)
    assert summary["rows"] == 4 and fake.asked == [["公交", "校车"]]
    assert [row["车型"] for row in read_jsonl(tmp_path / "out.jsonl")] == NAMES[:4]


def test_nothing_to_ask_loads_no_model(ask, tmp_path):
    source = written_csv(tmp_path / "t.csv", [{"车型": "", "b": "1"}, {"车型": " ", "b": "2"}])
    summary, fake = ask(source, load=lambda *_: pytest.fail("loaded"))
    assert (summary["known"], summary["answers"], summary["empty"]) == (None, [], 2)
    show(summary, quiet())


def test_the_settings_reach_the_model(tmp_path):
    asking, seen = Asking(base="b", system="s", template="[v] {text}", threshold=0.5, fallback="?", constrain=False, batch_size=2), []

    def load(model: str, given: Asking) -> Fake:
        seen.append((model, given))
        return Fake()

    source = written_csv(tmp_path / "t.csv", table_rows())
    predict("tiny", source, "车型", tmp_path / "o.csv", asking=asking, console=quiet(), load=load)
    assert seen == [("tiny", asking)]


class Choosy(Fake):
    """Takes no text of more than four characters, as a `Predictor` refuses what is longer than the context."""

    def predict(self, inputs: Sequence[str], /) -> list[SimpleNamespace]:
        for number, text in enumerate(inputs, 1):
            if len(text) > 4:
                raise UserError(f"input {number}", got=f"{len(text)} tokens", expected="at most 4", do="shorten it")
        return super().predict(inputs)


def test_inputs_that_cannot_be_asked_are_told_and_the_others_answered(ask, tmp_path):
    source = written_csv(tmp_path / "t.csv", table_rows())
    summary, fake = ask(source, fake=Choosy())
    assert fake.asked == [["公交", "校车"], ["卡车"], ["🚌"]]
    assert [(entry["row"], entry["reason"]) for entry in summary["refused"]] == [
        (row, f"got {len(NAMES[row - 1])} tokens, expected at most 4") for row in (5, 6, 7)
    ]
    assert (summary["unanswered"], summary["empty"], summary["known"]) == (3, 2, 1.0)
    found = [row["prediction"] for row in read_jsonl(tmp_path / "out.jsonl")]
    assert found == [name[::-1] if name.strip() and len(name) <= 4 else None for name in NAMES]
    shown = Console(file=io.StringIO(), width=200)
    show(summary, shown)
    assert "3 that could not be asked" in shown.file.getvalue() and "row 5: got 5 tokens" in shown.file.getvalue()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
def test_a_first_row_that_cannot_be_asked_ends_nothing(ask, tmp_path, batch_size):
    """Nor a batch of them: later rows are asked, and stopped there it goes on."""
    names = ["too long", "too long", "", "long as well", "公交", "校车"]
    source = jsonl(tmp_path / "t.jsonl", [{"车型": name} for name in names])
    summary, _ = ask(source, fake=Choosy(), asking=Asking(batch_size=batch_size))
    assert [entry["row"] for entry in summary["refused"]] == [1, 4] and summary["unanswered"] == 3
    expected = [None, None, None, None, "交公", "车校"]
    assert [row["prediction"] for row in read_jsonl(tmp_path / "out.jsonl")] == expected
    with pytest.raises(KeyboardInterrupt):
        ask(source, output="b.jsonl", fake=Choosy(killed), asking=Asking(batch_size=batch_size))
    again, _ = ask(source, output="b.jsonl", fake=Choosy(), asking=Asking(batch_size=batch_size))
    assert [row["prediction"] for row in read_jsonl(tmp_path / "b.jsonl")] == expected
    assert again["refused"] == summary["refused"], "where nothing was answered yet it is told again what could not be"


@pytest.mark.parametrize("stopped", [False, True])
def test_where_nothing_can_be_asked_the_call_is_wrong(ask, tmp_path, stopped):
    """Of the whole table; then nothing is left that the next call could take for answers."""
    source = jsonl(tmp_path / "t.jsonl", [{"车型": ""}, *({"车型": "x" * (10 - n)} for n in range(5))])

    class Stopped(Choosy):
        def predict(self, inputs: Sequence[str], /) -> list[SimpleNamespace]:
            if len(inputs[0]) < 8:  # in the second batch
                killed()
            return super().predict(inputs)

    if stopped:
        with pytest.raises(KeyboardInterrupt):
            ask(source, fake=Stopped())
        assert (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n") == 1 + 4
    for _ in range(2):
        with pytest.raises(UserError, match="^row 2: got 10 tokens, expected at most 4; shorten it$"):
            ask(source, fake=Choosy())
        assert left(tmp_path) == {"t.jsonl"}

    def broken() -> None:
        raise UserError("model", got="nan", expected="numbers")

    with pytest.raises(UserError, match="^model: got nan"):
        ask(source, output="other.csv", fake=Fake(broken))


# --- stopped and gone on with -------------------------------------------------------------------------------------------------------------


def stopped_at(number: int, how: Callable[[], None]) -> Fake:
    """A fake that something happens to in its batch of that number, from 1."""
    fake = Fake()
    fake.stop_at = lambda: how() if len(fake.asked) == number else None
    return fake


def killed() -> None:
    raise KeyboardInterrupt  # nothing in the code catches it


def test_killed_at_every_line_of_the_partial_file(ask, tmp_path):
    """Before, at and behind its end, and within. The table is the same to the byte, and no batch that is there whole is asked again."""
    source = written_csv(tmp_path / "t.csv", table_rows())
    _, whole = ask(source)
    expected = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    partial = tmp_path / "out.jsonl.partial"
    with pytest.raises(KeyboardInterrupt):
        ask(source, fake=stopped_at(3, killed))
    there = partial.read_bytes()
    assert there.count(b"\n") == 1 + 11, "the header, and the rows before the third batch"
    assert not (tmp_path / "out.jsonl").exists()
    header = there.index(b"\n") + 1
    ends = [at for at in range(header, len(there) + 1) if there[at - 1] == 10]
    for end in sorted({*ends, *(end - 1 for end in ends[1:]), *(end + 7 for end in ends[:-1])}):
        partial.write_bytes(there[:end])
        summary, fake = ask(source)
        assert (tmp_path / "out.jsonl").read_bytes() == expected
        done = there[header:end].count(b"\n")
        assert summary["there_already"] == done
        known = set(NAMES[:done])
        assert fake.asked == [batch for batch in whole.asked if not known >= set(batch)]
        assert left(tmp_path) == {"t.csv", "out.jsonl"}
        (tmp_path / "out.jsonl").unlink()


def test_what_a_power_cut_leaves(ask, tmp_path):
    source = written_csv(tmp_path / "t.csv", table_rows())
    with pytest.raises(KeyboardInterrupt):
        ask(source, fake=stopped_at(2, killed))
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b"\0" * 40 + b"\n" + b'{"prediction": "x", "confidence": 1.0, "known": true}\n')
    ask(source)
    assert [row["prediction"] for row in read_jsonl(tmp_path / "out.jsonl")] == [outcome(name)["prediction"] for name in NAMES]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_and_keeps_what_is_done(ask, tmp_path, number):
    source, before = written_csv(tmp_path / "t.csv", table_rows()), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        ask(source, fake=stopped_at(2, lambda: os.kill(os.getpid(), number)))
    assert left(tmp_path) == {"t.csv", "out.jsonl.partial"}
    summary, fake = ask(source)
    assert summary["there_already"] == 5 and len(fake.asked) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_the_disk_is_full(ask, tmp_path, monkeypatch):
    """While rows are put down, and while the table is written: nothing half-written takes the table's place."""
    source = written_csv(tmp_path / "t.csv", table_rows())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(page, "append", full)
        with pytest.raises(OSError):
            ask(source)
    assert left(tmp_path) == {"t.csv", "out.jsonl.partial"}
    (tmp_path / "out.jsonl").write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            write_table(tmp_path / "out.jsonl", Table(columns=["a"], rows=[{"a": 1}], texts=[""]), [NOTHING])
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "old"
    summary, _ = ask(source)
    assert summary["there_already"] == 0 and left(tmp_path) == {"t.csv", "out.jsonl"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"asking": Asking(system="新")}, 'system null, now "新"'),
        ({"asking": Asking(template="[v] {text}", threshold=0.5)}, 'template "{text}", now "[v] {text}"; threshold null, now 0.5'),
        ({"asking": Asking(constrain=False)}, "constrain true, now false"),
        ({"asking": Asking(base="other")}, 'base "tiny", now "other"'),
        ({"column": "note"}, 'column "车型", now "note"'),
        ({}, "input changed"),
    ],
)
def test_another_call_does_not_go_on_unless_it_begins_anew(ask, tmp_path, monkeypatch, change, words):
    source = written_csv(tmp_path / "t.csv", table_rows())
    with pytest.raises(KeyboardInterrupt):
        ask(source, fake=stopped_at(2, killed))
    partial = tmp_path / "out.jsonl.partial"
    there = partial.read_bytes()
    if not change:
        written_csv(source, [*table_rows(), {"编 号": "x", "车型": "新", "note": ""}])
    if "base" in words:
        monkeypatch.setattr(page, "find_model", lambda name, base: Found(name=name, base=base or name))
    with pytest.raises(UserError) as refused:
        ask(source, **change)
    assert words in str(refused.value) and "--force" in str(refused.value)
    assert partial.read_bytes() == there
    summary, _ = ask(source, **change, force=True)
    assert summary["there_already"] == 0 and left(tmp_path) == {"t.csv", "out.jsonl"}


def test_other_batches_and_other_limits_may_go_on(ask, tmp_path):
    source = written_csv(tmp_path / "t.csv", table_rows())
    with pytest.raises(KeyboardInterrupt):
        ask(source, fake=stopped_at(2, killed), limit=9)
    summary, _ = ask(source, asking=Asking(batch_size=2))
    assert (summary["there_already"], summary["rows"]) == (5, len(NAMES))


def test_another_adapter_or_task_is_another_model(tmp_path):
    """The header has the hash of every adapter and of task.json, and whether the base is packed."""
    stage = tmp_path / "stage"
    (stage / "adapter").mkdir(parents=True)
    source = written_csv(tmp_path / "t.csv", table_rows())

    def header(weights: bytes, task: str, packed: bool = False, behind: str = "") -> dict[str, Any]:
        (stage / "adapter/adapter_model.safetensors").write_bytes(weights)
        (stage / "task.json").write_text(task, encoding="utf-8")
        entry = {"name": "stage", "path": "adapter", "hash": page.adapter_hash(stage / "adapter")}
        described = {"base": {"name": "tiny", "fingerprint": {}, "load_in_4bit": packed}, "adapters": [entry]}
        (stage / "stack.json").write_text(json.dumps(described), encoding="utf-8")
        return page._header(f"{stage}{behind}", source, "车型", Asking())

    others = ((b"2", "{}"), (b"1", "[]"), (b"1", "{}", True), (b"1", "{}", False, "@stage=0.5"))
    first = header(b"1", "{}")
    assert header(b"1", "{}") == first
    differing = [{key for key in first if header(*given)[key] != first[key]} for given in others]
    assert differing == [{"adapters"}, {"task"}, {"load_in_4bit"}, {"adapters"}]


def test_a_table_that_is_there_is_replaced_by_force_alone(ask, tmp_path):
    source = written_csv(tmp_path / "t.csv", table_rows())
    output = tmp_path / "out.jsonl"
    output.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="which is there already.*--force"):
        ask(source)
    with pytest.raises(KeyboardInterrupt):
        ask(source, force=True, fake=stopped_at(2, killed))
    assert output.read_text(encoding="utf-8") == "precious", "until the new one is whole"
    summary, _ = ask(source)
    assert summary["there_already"] == 5 and len(read_jsonl(output)) == len(NAMES)


def test_the_same_command_goes_on_with_force_too(ask, tmp_path):
    """It is what an interrupted command is told; with another header it begins anew."""
    source = written_csv(tmp_path / "t.csv", table_rows())
    (tmp_path / "out.jsonl").write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        ask(source, force=True, fake=stopped_at(2, killed))
    with pytest.raises(KeyboardInterrupt):
        ask(source, force=True, fake=stopped_at(2, killed))
    assert (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n") == 1 + 11
    summary, _ = ask(source, force=True)
    assert summary["there_already"] == 11 and len(read_jsonl(tmp_path / "out.jsonl")) == len(NAMES)
    again, _ = ask(source, force=True)
    assert again["there_already"] == 0, "a finished table is made anew"


def test_a_partial_file_that_is_none_of_ours(tmp_path):
    path = tmp_path / "x.partial"
    for text in ("", "notes", "[1]\n", '{"a": 1}\n'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="a file that is no unfinished table"):
            open_log(path, {"a": 1}, force=False)
        assert path.read_text(encoding="utf-8") == text
    assert open_log(path, {"a": 1}, force=True) == []
    append(path, [Outcome("交\u2028公\n\ud83d", 0.25, True), NOTHING])
    assert open_log(path, {"a": 1}, force=False) == [Outcome("交\u2028公\n\ud83d", 0.25, True), NOTHING]


def test_a_partial_file_without_a_row_is_begun_anew(tmp_path):
    """A MODEL that did not open left it."""
    path = tmp_path / "x.partial"
    assert open_log(path, {"base": "tyni"}, force=False) == []
    assert open_log(path, {"base": "tiny"}, force=False) == []
    append(path, [NOTHING])
    with pytest.raises(UserError, match='base "tiny", now "tyni"'):
        open_log(path, {"base": "tyni"}, force=False)


def test_one_process_at_a_time(ask, tmp_path):
    source = written_csv(tmp_path / "t.csv", table_rows())
    with FileLock(tmp_path / "out.jsonl.lock"), pytest.raises(UserError, match="another process is writing"):
        ask(source)
    ask(source)


# --- the command line ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_model(monkeypatch) -> list[Asking]:
    """The command line's model; gives the settings it was opened with."""
    opened: list[Asking] = []

    def load(model: str, asking: Asking) -> Fake:
        opened.append(asking)
        return Fake()

    monkeypatch.setattr(page, "_predictor", load)
    return opened


def test_the_command(command, tmp_path, fake_model):
    source = written_csv(tmp_path / "我的 t.csv", table_rows())
    options = ["--system", "s", "--template", "[v] {text}", "--threshold", 0.5, "--fallback", "?", "--no-constrain", "--batch-size", 4]
    ran = command("predict", "tiny", "--input", source, "--column", "车型", "--output", tmp_path / "o.csv", *options)
    assert ran.code == 0, ran
    assert fake_model == [Asking(system="s", template="[v] {text}", threshold=0.5, fallback="?", constrain=False, batch_size=4)]
    assert "12 (7 different inputs, each answered once, 2 empty)" in ran.out
    assert re.search(r"^交公 +3 +30\.0%$", ran.out, re.M) and "rows/s" in ran.out and str(tmp_path / "o.csv") in ran.out
    assert len(read_csv(tmp_path / "o.csv")) == len(NAMES)


def test_json_is_alone_and_progress_silent(command, tmp_path, fake_model):
    source = written_csv(tmp_path / "t.csv", table_rows())
    ran = command("predict", "tiny", "--input", source, "--column", "车型", "--output", tmp_path / "o.csv", "--limit", 3, "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert (told["rows"], told["empty"], told["output"]) == (3, 1, str(tmp_path / "o.csv"))


def test_mistakes_are_one_sentence(refused, tmp_path):
    source = written_csv(tmp_path / "t.csv", table_rows())
    call = ["predict", "tiny", "--input", source, "--output", tmp_path / "o.csv", "--column"]
    assert refused(*call, "车 型").startswith("--column: got '车 型', expected a column of ")
    assert refused(*call, "车型", "--template", "x").startswith("--template: got 'x'")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_interrupted_it_says_how_to_go_on(command, tmp_path, monkeypatch):
    source = written_csv(tmp_path / "t.csv", table_rows())
    call = ["predict", "tiny", "--input", source, "--column", "车型", "--output", tmp_path / "o.csv"]
    monkeypatch.setattr(page, "_predictor", stopped_at(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    ran = command(*call)
    assert (ran.code, ran.out) == (128 + signal.SIGTERM, "") and "the same command goes on" in ran.err
