"""Rows of trunks and branches: every form is read, every bad row is refused with what is wrong and what is right, and no other is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.samples.branch_rows import BadRow, BranchText, Turns, holds_branches, parse_row, read_branch_rows
from stylora.samples.conversations import Reject

MESSY = Path(__file__).parents[3] / "shared" / "corpus" / "messy" / "21_bad_parallel.jsonl"
SYSTEM = {"role": "system", "content": "只看文章回答。"}
USER, ANSWER = {"role": "user", "content": "几点开门？"}, {"role": "assistant", "content": "七点。"}


def parse(row: object):
    return parse_row(row, "rows.jsonl:1")


def read(paths: list[str], **options):
    reports: list = []
    return list(read_branch_rows(paths, reports=reports, **options)), reports


@pytest.mark.parametrize(("branch", "prompt", "answer"), [
    ("七点。", "", "七点。"),
    ({"text": "七点。"}, "", "七点。"),
    ({"content": "七点。"}, "", "七点。"),
    ({"prompt": "问：几点\n答：", "answer": "七点。"}, "问：几点\n答：", "七点。"),
    ({"answer": "七点。"}, "", "七点。"),
    ({"text": "答：七点。", "answer_offset": 2}, "答：", "七点。"),
    ({"content": "答：七点。", "answer_offset": 2, "id": 5}, "答：", "七点。"),
    ({"text": "𠮷答：七点。", "answer_offset": 3}, "𠮷答：", "七点。"),  # characters, neither bytes nor UTF-16 units
    ({"text": "七点。", "answer_offset": 0}, "", "七点。"),
    ({"text": "七点。", "answer_offset": None}, "", "七点。"),
    (" 七点\n", "", " 七点\n"),
])  # fmt: skip
def test_every_form_of_a_branch(branch, prompt, answer):
    row = parse({"main": "开门时间：", "branches": [branch, "九点。"], "id": 3, "meta": {}, "questions": ["?"], "answers": ["!"]})
    assert row.main == "开门时间：" and row.origin == "rows.jsonl:1"
    assert row.branches == (BranchText(prompt=prompt, answer=answer), BranchText(prompt="", answer="九点。"))


def test_a_text_alone_has_no_branches():
    row = parse({"text": "一段话。", "source": "甲"})
    assert (row.main, row.branches) == ("一段话。", ())


def test_messages_and_what_an_assistant_says_in_main_is_not_learned():
    main = [SYSTEM, {"from": "human", "value": "你好"}, {"from": "gpt", "value": "好"}]
    row = parse({"main": main, "branches": [[USER, ANSWER], [USER, {**ANSWER, "weight": 0.5}]]})
    assert [message["role"] for message in row.main] == ["system", "user", "assistant"]
    assert row.branches == (Turns(messages=[USER, ANSWER], weights=(0.0, 1.0)), Turns(messages=[USER, ANSWER], weights=(0.0, 0.5)))


@pytest.mark.parametrize(("row", "reason"), [
    (17, "a number, expected an object with `main` and `branches`"),
    (None, "null, expected an object"),
    ({}, "no `main` among its keys (none)"),
    ({"branches": ["甲"]}, "no `main` among its keys branches"),
    ({"main": "甲"}, "no `branches` beside `main`"),
    ({"main": "", "branches": ["甲"]}, "`main` is empty"),
    ({"main": " \n", "branches": ["甲"]}, "`main` is empty"),
    ({"main": [], "branches": [[USER, ANSWER]]}, "`main` is empty"),
    ({"main": 3, "branches": ["甲"]}, "`main` is a number, expected a text or a list of messages"),
    ({"text": "　"}, "`text` is empty"),
    ({"text": ["甲"]}, "`text` is a list, expected a text"),
    ({"main": "甲", "text": "乙", "branches": ["丙"]}, "both `main` and `text`, expected one of them"),
    ({"text": "甲", "branches": ["乙"]}, "`branches` beside `text`, expected `main` with `branches`, or `text` alone"),
    ({"text": "甲乙", "answer_offset": 1}, "`answer_offset` beside `text`"),
    ({"main": "甲", "branches": "乙"}, "`branches` is a text, expected a list"),
    ({"main": "甲", "branches": None}, "`branches` is null, expected a list"),
    ({"main": "甲", "branches": []}, "`branches` is empty, expected at least one"),
    ({"main": "甲", "branches": ["乙", " \n　"]}, "branch 2 is empty"),
    ({"main": "甲", "branches": ["乙", 2]}, "branch 2 is a number, expected a text, "),
    ({"main": "甲", "branches": [None]}, "branch 1 is null, expected a text, "),
    ({"main": "甲", "branches": [True]}, "branch 1 is a boolean"),
    ({"main": "甲", "branches": [[USER, ANSWER]]}, "branch 1 is a list, expected a text"),
    ({"main": "甲", "branches": [{"q": "乙"}]}, "branch 1 has the keys q, expected a text, "),
    ({"main": "甲", "branches": [{"text": 5}]}, "`text` of branch 1 is a number, expected a text"),
    ({"main": "甲", "branches": [{"prompt": None, "answer": "乙"}]}, "`prompt` of branch 1 is null, expected a text"),
    ({"main": "甲", "branches": [{"prompt": "乙", "answer": " "}]}, "branch 1 has an empty answer"),
    ({"main": "甲", "branches": [{"prompt": "乙"}]}, "branch 1 has the keys prompt"),
    ({"main": "甲", "branches": [{"prompt": "乙", "text": "丙"}]}, "branch 1 has `prompt` beside `text`, expected a text"),
    ({"main": "甲", "branches": [{"content": "乙丙", "answer": "丙"}]}, "branch 1 has `answer` beside `content`"),
    ({"main": "甲", "branches": [{"text": "乙丙", "answer_offset": 2}]}, "branch 1 has an empty answer"),
    ({"main": "甲", "branches": [{"text": "乙丙", "answer_offset": 3}]}, "`answer_offset` of branch 1 is 3, outside its text of 2 char"),
    ({"main": "甲", "branches": [{"text": "乙丙", "answer_offset": -1}]}, "`answer_offset` of branch 1 is -1, outside"),
    ({"main": "甲", "branches": [{"text": "乙丙", "answer_offset": True}]}, "`answer_offset` of branch 1 is a boolean, expected a whole"),
    ({"main": "甲", "branches": [{"text": "乙丙", "answer_ofset": 1}]}, "branch 1 has the key `answer_ofset`, expected a text, "),
    ({"main": "甲", "branches": [{"text": "乙丙", "answer_offset": 1.0}]}, "`answer_offset` of branch 1 is a number, expected a whole"),
    ({"main": "甲", "branches": ["\ud800"]}, "the character U+D800, which is no text"),
    ({"main": [SYSTEM], "branches": ["乙"]}, "branch 1 is a text, expected a list of messages, as `main` is"),
    ({"main": [SYSTEM], "branches": [[]]}, "branch 1 is empty"),
    ({"main": [SYSTEM], "branches": [[USER]]}, "main with branch 1: no answer"),
    ({"main": [SYSTEM], "branches": [[USER, ANSWER], [ANSWER]]}, "main with branch 2: no message of a user"),
    ({"main": [SYSTEM, USER], "branches": [[ANSWER]]}, "branch 1 begins with a message of the role 'assistant', expected a user's"),
    ({"main": [{"role": "bard", "content": "甲"}], "branches": [[USER, ANSWER]]}, "message 1 has the unknown role 'bard'"),
    ({"main": [SYSTEM], "branches": [[USER, ANSWER]], "tools": [{}]}, "`tools`, which rows of branches have no place for"),
])  # fmt: skip
def test_bad_rows_say_what_is_wrong(row, reason):
    with pytest.raises(BadRow) as error:
        parse(row)
    assert reason in str(error.value)


def test_equal_rows_have_equal_fingerprints_and_equal_mains_equal_trunks():
    one = parse({"main": "甲", "branches": ["乙"], "id": 1})
    same = parse({"main": "甲", "branches": [{"prompt": "", "answer": "乙"}], "id": 2})
    other = parse({"main": "甲", "branches": ["丙"]})
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.trunk == same.trunk == other.trunk != parse({"text": "乙"}).trunk
    assert parse({"text": "甲"}).trunk == one.trunk, "its text is learned, so it lies on the side of the rows it is the trunk of"


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 30))
def test_an_offset_cuts_the_text_in_two(text, at):
    try:
        row = parse({"main": "甲", "branches": [{"text": text, "answer_offset": at}]})
    except BadRow:
        assert at > len(text) or not text[at:].strip() or any(0xFDD0 <= ord(letter) <= 0xFDD3 for letter in text)
    else:
        assert row.branches[0].prompt == text[:at] and row.branches[0].answer == text[at:]


def test_files_folders_and_arrays_and_what_is_left_out(tmp_path):
    folder = tmp_path / "行 rows"
    folder.mkdir()
    good = {"main": "这家店几点开门，几点关门？我们明天想来看看。", "branches": ["早上七点开门，晚上九点关门。"]}
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([json.dumps(good), "", "{broken", '{"text": "丙"}']).encode())
    (folder / "b.json").write_text(json.dumps([good, 5], indent=1, ensure_ascii=False), encoding="gb18030")
    (folder / "c.jsonl").write_text(json.dumps(good), encoding="utf-8")
    done: list = []
    rows, reports = read([str(folder)], leave_out=[folder / "c.jsonl"], progress=lambda *at: done.append(at))
    assert [isinstance(row, Reject) for row in rows] == [False, True, False, False, True]
    assert [row.origin.rpartition("/")[2] for row in rows] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "b.json:2", "b.json:8"]
    assert "not valid JSON" in rows[1].reason and rows[1].row is None and rows[4].row == 5
    assert rows[0].fingerprint == rows[3].fingerprint
    assert [(report.documents, report.counts["rows"]) for report in reports] == [(2, 3), (1, 2)]
    assert done[-1][0] == done[-1][1] == sum((folder / name).stat().st_size for name in ("a.jsonl", "b.json"))


def test_paths_without_rows_are_refused_at_once(tmp_path):
    (tmp_path / "a.txt").write_text("甲", encoding="utf-8")
    for path in (tmp_path / "nowhere", tmp_path / "a.txt", tmp_path):
        with pytest.raises(UserError):
            read_branch_rows([str(path)], reports=[])


def test_what_a_file_holds_is_told_by_its_first_row(tmp_path):
    for name, text, holds in (
        ("a.jsonl", '{broken\n{"main": "甲", "branches": []}', True), ("b.json", '[{"main": "甲"}]', True),
        ("c.jsonl", '{"messages": []}', False), ("d.jsonl", '{"text": "甲"}', False), ("e.jsonl", "", False),
        ("f.txt", '{"main": 1}', False),
    ):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert holds_branches(tmp_path / name) == holds, name


@pytest.mark.skipif(not MESSY.is_file(), reason="the shared corpus is not there")
def test_every_bad_row_of_a_messy_file_is_named():
    rows, _ = read([str(MESSY)])
    refused = {int(row.origin.rpartition(":")[2]): row.reason for row in rows if isinstance(row, Reject)}
    assert sorted(refused) == [3, 4, 5, 6, 7, 8, 15, 17], "lines 10 and 11 are too long for a base, which is not for this page to say"
    named = {3: "empty", 4: "`main` is empty", 5: "no `main`", 6: "branch 2", 7: "a list", 8: "a number", 15: "JSON", 17: "both"}
    for line, words in named.items():
        assert words in refused[line]
    assert {int(row.origin.rpartition(":")[2]) for row in rows} - set(refused) == {1, 2, 9, 10, 11, 12, 13, 14, 18}
