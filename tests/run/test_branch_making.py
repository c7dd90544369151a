"""`stylora data branches`: what is written is what training reads, whole or not at all, and what gives no row is counted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from stylora.errors import UserError
from stylora.run.branch_making import make_branches, show
from stylora.samples.branch_rows import Reject, read_branch_rows

PAGE = "# 渡口\n老渡口。\n## 船\n两条木船。\n## 船夫\n姓陆。\n"


def talk(question: str, system: str = "只看通知。") -> dict:
    said = (("system", system), ("user", question), ("assistant", "好。"))
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """One file of each kind, one of them in GBK, and one that nothing can be made of."""
    found = tmp_path / "我的 files"
    found.mkdir()
    rows = [talk("几点开船？"), talk("几点收船？"), talk("一个人", "别的"), {"messages": []}]
    (found / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (found / "page.md").write_text(PAGE, encoding="utf-8")
    (found / "again.md").write_text(PAGE, encoding="utf-8")
    rules = "乘船规定\n第一条 为了大家的安全，乘船的人应当遵守下面的规定，不得有下列行为：\n（一）站在船舷上；\n（二）与船夫争抢船桨。\n"
    (found / "rules.txt").write_text(rules, encoding="gb18030")
    (found / "texts.jsonl").write_text(json.dumps({"text": PAGE.replace("渡口", "码头")}) + '\n{"text": 5}', encoding="utf-8")
    (found / "plain.txt").write_text("一段话，没有章节。", encoding="utf-8")
    return found


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_kind_of_file(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    told = make_branches([str(folder)], output)
    rows = written(output)
    assert [row["main"] if isinstance(row["main"], str) else row["main"][0]["content"] for row in rows] == [
        "只看通知。", "渡口\n老渡口。",
        "《乘船规定》\n第一条 为了大家的安全，乘船的人应当遵守下面的规定，不得有下列行为：", "码头\n老码头。",
    ]  # fmt: skip
    assert (told["rows"], told["branches"], told["kinds"]) == (4, 8, {"markdown": 2, "messages": 1, "list": 1})
    assert told["left_out"] == {
        "conversations that share no context": 1, "rows: `messages` is empty": 1, "rows that stand there twice": 1,
        "documents without sections": 1, "rows: `text` is a number, expected a string": 1,
    }  # fmt: skip
    read = list(read_branch_rows([str(output)], reports=[]))
    assert len(read) == 4 and not any(isinstance(row, Reject) for row in read)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", folder.name], "nothing half-written"
    console = Console(file=io.StringIO(), width=200)
    show(told, console)
    assert "4 with 8 branches (2 from markdown, 1 from messages, 1 from list)" in console.file.getvalue()


def test_the_same_files_give_the_same_bytes_and_force_replaces(folder, tmp_path):
    output = folder / "out.jsonl"
    make_branches([str(folder)], output)
    first = output.read_bytes()
    with pytest.raises(UserError, match="which is there already"):
        make_branches([str(folder)], output)
    make_branches([str(folder)], output, force=True)
    assert output.read_bytes() == first, "what is replaced is not read"


def test_rows_with_branches_among_others_are_counted(folder, tmp_path):
    (folder / "there.jsonl").write_text(json.dumps({"main": "甲", "branches": ["乙"]}), encoding="utf-8")
    reason = "files of main and branches, which are trained on as they are"
    assert make_branches([str(folder)], tmp_path / "out.jsonl")["left_out"][reason] == 1


def test_what_cannot_be_used_is_refused_and_nothing_is_written(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    for inputs, where, options in (
        ([str(folder / "plain.txt")], "nothing to make branches of \\(1 documents without sections\\)", {}),
        ([str(folder / "nowhere.md")], "nothing there", {}), ([str(folder)], "--min-branches: got 5, expected at most 4", {"least": 5}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=where):
            make_branches(inputs, output, **options)
    for bad in (tmp_path / "out.json", tmp_path / "no folder" / "out.jsonl"):
        with pytest.raises(UserError, match="--output"):
            make_branches([str(folder)], bad)
    assert not output.exists() and sorted(tmp_path.iterdir()) == [folder]


def test_rows_with_branches_are_no_source(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"main": "甲", "branches": ["乙", "丙"]}), encoding="utf-8")
    with pytest.raises(UserError, match="files of main and branches, which are trained on as they are"):
        make_branches([str(file)], tmp_path / "out.jsonl")
