"""Every shape of row gives the same conversation; every unusable row is named with its line and its reason, and the rest still comes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stylora.corpus.document import FileReport
from stylora.errors import UserError
from stylora.samples.conversations import (
    BadConversation,
    Conversation,
    Reject,
    conversation,
    holds_conversations,
    learned_answers,
    read_conversations,
    with_contents,
)  # fmt: skip

SHARED = Path(__file__).parents[3] / "shared" / "corpus"
USER, ANSWER = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
SYSTEM = {"role": "system", "content": "S"}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"q": "西湖"}}}


def read(row: object) -> Conversation:
    return conversation(row, origin="rows.jsonl:1", source="rows")


def rows(path: Path | str) -> tuple[list[Conversation], list[Reject], FileReport]:
    reports: list[FileReport] = []
    found = list(read_conversations([str(path)], reports=reports))
    return [each for each in found if isinstance(each, Conversation)], [each for each in found if isinstance(each, Reject)], reports[0]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [{"role": "developer", "content": "S"}, USER, {**ANSWER, "tool_calls": None}], "tools": []},
        {"messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "问"}]}, ANSWER]},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}], "system": "S", "tools": ""},
        {"conversations": [SYSTEM, USER, ANSWER], "system": "another one does not stand beside it"},
        {"instruction": "问", "input": "", "output": "答", "system": "S"},
        {"prompt": "问", "completion": "答", "system": "S"},
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
    ],
)
def test_every_shape_is_the_same_conversation(row):
    found = read(row)
    assert found.messages == (SYSTEM, USER, ANSWER) and found.weights == (0, 0, 1) and found.tools is None
    assert found.fingerprint == read({"messages": [SYSTEM, USER, ANSWER]}).fingerprint


def test_alpaca_with_input_and_history():
    found = read({"instruction": "改写", "input": "山高", "output": "山峻", "history": [["一", "二"]]})
    assert [message["content"] for message in found.messages] == ["一", "二", "改写\n山高", "山峻"]
    assert found.weights == (0, 1, 0, 1)


def test_the_prompt_is_not_what_a_completion_teaches():
    found = read({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]})
    assert found.weights == (0, 0, 0, 1)


def test_weights():
    row = {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 0.5}]}
    assert read(row).weights == (0, 0, 0, 0.5)
    assert all("weight" not in message for message in read(row).messages), "templates never see it"
    assert read(row).fingerprint != read({"messages": [USER, ANSWER, USER, ANSWER]}).fingerprint


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "{}"}, ANSWER]},
        {
            "messages": [
                USER, {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"q": "西湖"}'}}]},
                {"role": "tool", "content": "{}"}, ANSWER,
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "问"}, {"from": "function_call", "value": '{"name": "find", "arguments": {"q": "西湖"}}'},
                {"from": "observation", "value": "{}"}, {"from": "gpt", "value": "答"},
            ]
        },
    ],
)  # fmt: skip
def test_tool_calls_are_kept_in_one_form(row):
    for tools in ([{"name": "find"}], '[{"name": "find"}]'):
        found = read({**row, "tools": tools})
        assert found.messages == (USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "{}"}, ANSWER)
        assert found.weights == (0, 1, 0, 1) and found.tools == [{"name": "find"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "no object"), (None, "no object"), ({}, "none of messages"), ({"message": [USER, ANSWER]}, "among its keys message"),
        ({"messages": []}, "`messages` is empty"), ({"messages": "hi"}, "`messages` is no list"),
        ({"messages": [1]}, "message 1 is no object"),
        ({"messages": [USER]}, "no answer"), ({"messages": [ANSWER]}, "no message of a user"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 2 is an empty answer"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "message 2 has no content"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "message 1 has no content"),
        ({"messages": [{"role": "robot", "content": "x"}, ANSWER]}, "unknown role 'robot'"),
        ({"messages": [{"role": ["user"], "content": "x"}, ANSWER]}, "unknown role"),
        ({"messages": [{"content": "x"}]}, "unknown role None"),
        ({"messages": [{"role": "user", "content": 5}, ANSWER]}, "content of message 1 is int"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "message 1 has a part that is no text"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every answer has the weight 0"),
        ({"messages": [USER, {**ANSWER, "weight": -1}]}, "weight -1"), ({"messages": [USER, {**ANSWER, "weight": True}]}, "weight True"),
        ({"messages": [USER, {**ANSWER, "weight": float("nan")}]}, "weight nan"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "message 1 has a weight but is no answer"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": "x"}]}, "tool calls of message 2 are no list"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a tool call without a name"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "arguments are no JSON"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "tool_call", "value": "find(x)"}]}, "function call that is no JSON"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "`tools` is no JSON"),
        ({"messages": [USER, ANSWER], "tools": [1]}, "`tools` is no list"),
        ({"instruction": "x"}, "`instruction` without `output`"), ({"prompt": "x"}, "`prompt` without `completion`"),
        ({"instruction": "x", "output": "y", "history": ["z"]}, "`history` is no list of"),
        ({"messages": [USER, {"role": "assistant", "content": "半\ud83d个"}]}, "U+D83D"),
        ({"messages": [{"role": "user", "content": "\ufdd0"}, ANSWER]}, "U+FDD0"),
    ],
)  # fmt: skip
def test_unusable_rows_say_why(row, reason):
    with pytest.raises(BadConversation) as caught:
        read(row)
    assert reason in str(caught.value)


def test_the_group_of_a_row():
    row = {"messages": [USER, ANSWER], "group": "公交车", "alias": 7, "nothing": ""}
    assert read(row).group == "公交车" and read({"messages": [USER, ANSWER]}).group is None
    groups = {key: conversation(row, origin="r", source="r", group_by=key).group for key in ("alias", "nothing", "missing")}
    assert groups == {"alias": "7", "nothing": None, "missing": None}
    assert read(row).fingerprint == read({"messages": [USER, ANSWER]}).fingerprint, "equal rows are equal whatever their group"


def test_learned_answers_and_other_contents():
    row = read({"messages": [ANSWER, USER, ANSWER, USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 2}]})
    assert learned_answers(row, "all") == [2, 6] and learned_answers(row, "last") == [6], "the first answers nothing"
    other = with_contents(row, {6: "别的"})
    assert other.messages[6] == {**ANSWER, "content": "别的"} and other.messages[:6] == row.messages[:6] and other.weights == row.weights
    assert other.fingerprint != row.fingerprint == with_contents(row, {6: "答"}).fingerprint


def test_a_file_goes_on_behind_a_bad_row(tmp_path):
    path = tmp_path / "行.jsonl"
    good = json.dumps({"messages": [USER, ANSWER]}, ensure_ascii=False)
    path.write_bytes("\r\n".join(["\ufeff" + good, "", '{"messages": [', '{"messages": []}', good]).encode())
    good_rows, rejects, report = rows(path)
    assert [each.origin.rpartition(":")[2] for each in good_rows] == ["1", "5"] and {each.source for each in good_rows} == {"行"}
    assert [(each.origin, each.row) for each in rejects] == [(f"{path.as_posix()}:3", None), (f"{path.as_posix()}:4", {"messages": []})]
    assert rejects[1].as_json() == {"where": f"{path.as_posix()}:4", "reason": "`messages` is empty", "row": {"messages": []}}
    assert (report.documents, report.counts["rows"]) == (2, 4)


def test_an_array_and_another_encoding(tmp_path):
    path = tmp_path / "rows.json"
    asked = {"role": "user", "content": "请问，这一首诗是谁写的？他是哪一个朝代的人，还写过什么？"}
    path.write_bytes(json.dumps([{"messages": [asked, ANSWER]}, {"prompt": "x"}], ensure_ascii=False, indent=1).encode("gb18030"))
    good_rows, rejects, report = rows(path)
    assert good_rows[0].messages == (asked, ANSWER) and len(rejects) == 1 and report.encoding == "gb18030"


def test_folders_and_files_left_out(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name, "completion": "y"}), encoding="utf-8")
    (tmp_path / "novel.txt").write_text("他提剑走进酒店。", encoding="utf-8")
    found = list(read_conversations([str(tmp_path)], reports=[], leave_out=[tmp_path / "b.jsonl"]))
    assert [each.messages[0]["content"] for each in found if isinstance(each, Conversation)] == ["a.jsonl"]
    assert holds_conversations(tmp_path / "a.jsonl") and not holds_conversations(tmp_path / "novel.txt")
    (tmp_path / "c.jsonl").write_text('{"text": "他提剑走进酒店。"}', encoding="utf-8")
    assert not holds_conversations(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match="conversations in .jsonl or .json"):
        read_conversations([str(tmp_path / "novel.txt")], reports=[])


@pytest.mark.skipif(not (SHARED / "messy" / "20_bad_chat.jsonl").is_file(), reason="the shared corpus is not there")
def test_the_messy_file():
    good_rows, rejects, _ = rows(SHARED / "messy" / "20_bad_chat.jsonl")
    reasons = {
        4: "not valid JSON", 5: "no object", 6: "no object", 7: "`messages` is empty", 8: "no answer", 9: "no message of a user",
        10: "message 2 is an empty answer", 11: "message 1 has no content", 12: "message 1 has the unknown role", 24: "none of messages",
    }  # fmt: skip
    found = {int(each.origin.rpartition(":")[2]): each.reason for each in rejects}
    assert list(found) == list(reasons) and all(reasons[line] in found[line] for line in reasons), found
    assert [int(each.origin.rpartition(":")[2]) for each in good_rows] == [1, 2, *range(13, 24), 25]
    assert good_rows[0].messages[0]["role"] == "system", "the byte order mark is no part of a row"
    good_rows, rejects, _ = rows(SHARED / "messy" / "22_json_array_not_jsonl.json")
    assert len(good_rows) == 6 and not rejects


@pytest.mark.skipif(not (SHARED / "chat").is_dir(), reason="the shared corpus is not there")
def test_public_sets_are_read_whole():
    counts = {"identity_alpaca_raw.json": 75, "glaive_toolcall_zh_sharegpt_raw.json": 300, "glaive_toolcall_zh_messages.jsonl": 157}
    for path, count in counts.items():
        good_rows, rejects, _ = rows(SHARED / "chat" / path)
        assert (len(good_rows), rejects) == (count, []), path
