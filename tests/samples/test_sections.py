"""Documents as trunks with branches: headings of two kinds, lists of articles; nothing is lost without being counted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.samples.sections import Sectioned, sectioned


def read(text: str, title: str = "", *, least: int = 2, longest: int = 60) -> tuple[list[Sectioned], Counter[str]]:
    left_out: Counter[str] = Counter()
    return sectioned(text, title, least=least, longest=longest, left_out=left_out), +left_out


MARKDOWN = """# 渡口
老渡口，两条船。

## 船
两条木船。

```
# 这是代码
```
### 桨
枣木的。
## 船夫 ##
姓陆。
## 空的
"""


def test_markdown_headings():
    (found,), left_out = read(MARKDOWN)
    assert found == Sectioned(
        kind="markdown", main="渡口\n老渡口，两条船。",
        branches=("船\n两条木船。\n\n```\n# 这是代码\n```\n桨\n枣木的。", "船夫\n姓陆。"),
    )  # fmt: skip
    assert left_out == {"sections without text": 1}


def test_a_section_too_long_for_a_branch_is_a_trunk_of_its_own():
    text = "# 甲\n引\n## 乙\n" + "长" * 30 + "\n### 一\n说一\n### 二\n说二\n## 丙\n说丙\n## 丁\n说丁\n## 戊\n" + "长" * 80
    found, left_out = read(text, longest=40)
    assert [(each.main.partition("\n")[0], each.branches) for each in found] == [
        ("甲", ("丙\n说丙", "丁\n说丁")), ("乙", ("一\n说一", "二\n说二")),
    ]  # fmt: skip
    assert left_out == {"sections of more than 40 characters": 1}


def test_a_file_without_a_title_of_its_own_has_its_name():
    text = "## 乙\n说乙\n## 丙\n说丙"
    assert read(text, "甲")[0][0].main == "甲"
    assert read("甲\n" + text, "甲")[0][0].main == "甲", "and not twice"
    assert read(text) == ([], {"sections without enough others, or without anything above them": 2})


STATUTE = """渡口管理办法
（2020年通过）
第一章 总则
第一节 一般规定
第一条 为了管好渡口，制定本办法。
第二条 乘船的人应当遵守规矩。
　　有下列情形之一的，不得上船：
　　（一）喝醉的；
　　1．走不稳的；
　　（二）带油桶的。
前款以外的人可以上船。
第三条 渡船停航：
（一）大雾。
（一）没有冒号的；
（二）也一样。
第二章 附则
有下列情形的，另行规定:
（一）甲；
（二）乙。
"""


def test_articles_with_lists():
    found, left_out = read(STATUTE)
    assert found == [
        Sectioned(
            kind="list", main="《渡口管理办法》\n第二条 乘船的人应当遵守规矩。\n有下列情形之一的，不得上船：",
            branches=("（一）喝醉的；\n1．走不稳的；", "（二）带油桶的。"),
        ),
        Sectioned(
            kind="list", main="《渡口管理办法》\n第三条 渡船停航：", branches=("（一）大雾。", "（一）没有冒号的；", "（二）也一样。")
        ),
        Sectioned(kind="list", main="《渡口管理办法》\n有下列情形的，另行规定:", branches=("（一）甲；", "（二）乙。")),
    ]  # fmt: skip
    assert left_out == {}


@pytest.mark.parametrize(("text", "reason"), [
    ("办法\n应当：\n（一）甲。\n完", "lists of fewer than 2 items"),
    ("办法\n应当。\n（一）甲；\n（二）乙。", "lists without a line above them that ends in a colon"),
    ("（一）甲；\n（二）乙。", "lists without a line above them that ends in a colon"),
    ("应当：\n（一）" + "长" * 80 + "；\n（二）乙。", "lists with an item of more than 60 characters"),
    ("一段话。\n第三节课上，他睡着了。", "documents without sections"),
])  # fmt: skip
def test_what_is_no_row_is_counted(text, reason):
    found, left_out = read(text)
    assert found == [] and left_out[reason] == 1


def test_chapters_with_sections():
    text = "航行手册\n第一章 出航\n出航之前看天。\n第一节 看云\n云低有雨。\n第二节　看浪\n浪白有风。\n第二章 归航\n" + "长" * 80
    (found,), left_out = read(text, longest=20, title="航行手册")
    assert found == Sectioned(
        kind="chapters", main="第一章 出航\n出航之前看天。", branches=("第一节 看云\n云低有雨。", "第二节　看浪\n浪白有风。")
    )
    assert left_out == {"sections of more than 20 characters": 1}
    whole, _ = read(text, longest=200)
    assert whole[0].main == "航行手册" and [branch[:3] for branch in whole[0].branches] == ["第一章", "第二章"]


LINES = ["# 甲", "## 乙", "### 丙", "一段话。", "", "第一章 丁", "第一节 戊", "规矩：", "（一）己", "```"]


@given(st.lists(st.sampled_from(LINES), max_size=14))
def test_branches_are_the_documents_own_lines(lines):
    for each in read("\n".join(lines), "名", longest=12)[0]:
        assert len(each.branches) >= 2 and each.main and all(0 < len(branch) <= 12 for branch in each.branches)
        said = {*lines, *(line.lstrip("# ") for line in lines)}
        assert all(line in said for branch in each.branches for line in branch.split("\n"))
