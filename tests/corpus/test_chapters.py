"""Chapter headings: what is one, what only looks like one, and that the chapters cover the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.corpus.chapters import Chapter, find_chapters

STYLE = Path(__file__).parents[2] / ".." / "shared" / "corpus" / "style"
BODY = "话说天下大势，分久必合。\n那人冷笑一声，转身便走。\n"
# Chapters per book as its source has them.
BOOKS = {
    "七剑十三侠": 184,
    "三侠五义": 120,
    "五鼠闹东京": 7,
    "仙侠五花剑": 31,
    "儿女英雄传": 42,
    "剑侠奇中奇全传": 48,
    "大汉三合明珠宝剑全传": 42,
    "小五义": 125,
    "水浒传": 121,
    "粉妆楼": 81,
    "绿牡丹": 64,
    "聊斋志异": 498,
}


def titles(text: str) -> list[str]:
    return [chapter.title for chapter in find_chapters(text)]


def book(*headings: str) -> str:
    return "".join(f"{heading}\n\n{BODY}\n" for heading in headings)


@pytest.mark.parametrize(
    "heading",
    [
        "第一章",
        "第1章 风起",
        "第一回　设阴谋临产换太子　奋侠义替死救皇娘",
        "第 12 章：你是谁？",
        "第０１节 雨夜",
        "正文 第一百二十三章 大结局",
        "卷一 考城隍",
        "卷三",
        "第二卷 江湖",
        "楔子 张天师祈禳瘟疫 洪太尉误走妖魔",
        "序",
        "《儿女英雄传》序",
        "引子",
        "尾声",
        "番外 多年以后",
        "番外一 重逢",
        "后记",
        "Chapter 3",
        "CHAPTER XII. The Duel",
        "Chapter Three",
        "## 第三章 夜行",
        "　　第四章 夜行",
    ],
)
def test_a_heading(heading: str) -> None:
    text = f"{BODY}{heading}\n{BODY}"
    front, chapter = find_chapters(text)
    assert front == Chapter("", 0, chapter.start)
    assert text[chapter.start :].strip(" 　").startswith(heading.strip("　"))
    assert chapter.title == heading.strip("#　 ")


@pytest.mark.parametrize(
    "line",
    [
        "第二回见面，他已经老了。",
        "第二回见面",
        "第一回是民国元年我初到北京的时候，当时一个朋友对我说，北京戏最好，你不去见见世面么？",
        "第三集是和彦和苏和歌手织叶的往事。",
        "第二章写得最好，",
        "他翻到第一章 风起",
        "序幕拉开了",
        "后记忆里只剩下风声",
        "卷起千堆雪",
        "第一条 为了保护消费者的合法权益",
        "Chapters are short",
        "第一章 " + "长" * 60,
    ],
)
def test_not_a_heading(line: str) -> None:
    assert titles(f"{BODY}{line}\n{BODY}") == [""]


def test_numbers_without_a_blank_count_when_the_book_writes_them_so() -> None:
    loose = ["第一章序", "第二章优胜记略", "第三章续优胜记略", "第四章恋爱的悲剧"]
    assert titles(book(*loose)) == loose
    assert titles(book("第一回 风起", "第二回 云涌") + "第二回见面\n" + BODY) == ["第一回 风起", "第二回 云涌"]


def test_a_table_of_contents_is_not_chapters() -> None:
    names = [f"第{i}章 风起{i}" for i in range(1, 121)]
    contents = "目录\n" + "\n".join(names) + "\n\n"
    assert titles(contents + book(*names)) == ["", *names]
    foreword = "这本书写了十年，今日终于完成。\n"
    assert titles(contents + foreword + book(*names)) == ["", *names]


def test_a_volume_above_its_first_chapter_is_one_chapter() -> None:
    text = book("第一卷 江湖\n\n第一章 风起", "第二章 云涌", "第二卷 庙堂\n第一章 入京", "第二章 面圣")
    assert titles(text) == ["第一卷 江湖 第一章 风起", "第二章 云涌", "第二卷 庙堂 第一章 入京", "第二章 面圣"]


def test_a_title_said_twice_is_one() -> None:
    assert titles(book("引子\n\n引子", "第一回 风起\n第一回 风起")) == ["引子", "第一回 风起"]


def test_a_number_out_of_order_is_prose_or_kept_when_nothing_goes_on_after_it() -> None:
    broken = ["第十章 甲", "第十一章 乙", "第二章 丙", "第十二章 丁"]
    assert titles(book(*broken)) == [broken[0], broken[1], broken[3]]
    missing = ["第一章 甲", "第三章 乙", "第四章 丙"]
    assert titles(book(*missing)) == missing


LINES = st.sampled_from(["第一章 甲", "第二章", "第二章乙", "序", "目录", "话说", "", "　", "第九回 丙，", "卷一"])


@given(st.lists(LINES).map("\n".join) | st.text())
def test_chapters_cover_the_text_without_gaps(text: str) -> None:
    chapters = find_chapters(text)
    assert "".join(text[c.start : c.end] for c in chapters) == text
    assert all(c.start < c.end for c in chapters)
    assert all(c.title for c in chapters[1:])


@pytest.mark.parametrize("name", BOOKS)
def test_the_books(name: str) -> None:
    path = STYLE / f"{name}.txt"
    if not path.exists():
        pytest.skip("the measuring corpus is not here")
    chapters = find_chapters(path.read_text(encoding="utf-8"))
    assert len(chapters) == BOOKS[name]
    assert all(chapter.title for chapter in chapters)
