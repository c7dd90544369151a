"""HTML taken off as a browser would; EPUBs read in the order of their spine, and nothing but their spine."""

from __future__ import annotations

import html
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stylora.corpus.html import BadEpub, epub_members, html_to_text, looks_like_html

MESSY = Path(__file__).parents[3] / "shared" / "corpus" / "messy"

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>"""
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="two" href="text/%E4%BA%8C.xhtml"/><item id="one" href="text/1.xhtml"/>
<item id="nav" href="nav.xhtml" properties="nav"/><item id="ad" href="ad.xhtml"/><item id="css" href="a.css"/>
</manifest><spine><itemref idref="nav"/><itemref idref="one"/><itemref idref="two"/><itemref idref="ad" linear="no"/>
</spine></package>"""


def epub(**members: str) -> zipfile.ZipFile:
    """An EPUB of the members given by name, on top of a good container and package; "" takes one out."""
    files = {"META-INF/container.xml": CONTAINER, "OEBPS/book.opf": PACKAGE}
    files |= {f"OEBPS/{name}": "<p>x</p>" for name in ("text/1.xhtml", "text/二.xhtml", "nav.xhtml", "ad.xhtml")}
    files |= members
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            if text:
                archive.writestr(name, text)
    return zipfile.ZipFile(stream)


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>一</p><p>二</p>", "一\n二"),
        ("一<br>二<br/>三", "一\n二\n三"),
        ("<div>外<p>内</p>外</div>", "外\n内\n外"),
        ("<p>a &lt;b&gt; &amp; &#20013;&#x6587; &mdash;</p>", "a <b> & 中文 —"),
        ("<p>&nbsp;&nbsp;引子</p>", "\xa0\xa0引子"),
        ("<p>　　全角</p>", "　　全角"),
        ("<script>var a = '<p>x</p>';</script><style>p {}</style>正文", "正文"),
        ("<head><title>题</title><meta charset=x></head><body>正文</body>", "正文"),
        ("<head><title>题</title><p>忘了关</p>", "忘了关"),
        ("<p>中文一行\n  接着一行</p>", "中文一行接着一行"),
        ("<p>two\n   words</p>", "two words"),
        ("<div>　　第一段\n　　第二段</div>", "　　第一段\n　　第二段"),
        ("<pre>诗\n\n 句</pre>", "诗\n\n 句"),
        ("<!-- <p>注释</p> -->正文", "正文"),
        ("<b>粗</b><i>斜</i>体", "粗斜体"),
        ("<tr><td>甲</td><td>乙</td></tr>", "甲 乙"),
        ("若 a < b 则", "若 a < b 则"),
        ("<script/>还在", "还在"),
        ("", ""),
    ],
)
def test_html_to_text(markup: str, text: str) -> None:
    assert html_to_text(markup) == text


@given(st.lists(st.text(alphabet="天地玄黄，。<>&\"' a", min_size=1).map(str.strip).filter(bool), max_size=10))
@settings(deadline=None)
def test_escaped_paragraphs_come_back(paragraphs: list[str]) -> None:
    markup = "".join(f"<p>{html.escape(p)}</p>\n" for p in paragraphs)
    assert html_to_text(markup) == "\n".join(" ".join(p.split()) for p in paragraphs)


@example("<![;")
@example("<![if")
@example("<![CDATA[甲]]>乙")
@example("<![nonsense x]>乙")
@given(st.text(alphabet="<>/!-&;#px 中\n\"'[]?", max_size=80))
@settings(deadline=None, max_examples=200)
def test_any_markup_is_read(markup: str) -> None:
    assert "\r" not in html_to_text(markup)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<html><body>正文</body></html>", True),
        ("\n<!DOCTYPE HTML>\n<p>正文", True),
        ('<?xml version="1.0"?>\n<!-- x --><html xmlns="x">', True),
        ("<p>一段。</p>\n<p>二段。</p>\n<p>三段。</p>", True),
        ("一段很长的话。<br>\n" * 50, True),
        ("一段很长的话，没有标记。\n" * 50, False),
        ("一段很长的话，没有标记。\n" * 200 + '<a href="http://x.com">首发</a>', False),
        ("他说：a < b，b > c。\n" * 50, False),
        ("", False),
    ],
)
def test_looks_like_html(text: str, answer: bool) -> None:
    assert looks_like_html(text) is answer


def test_epub_members_follow_the_spine() -> None:
    assert epub_members(epub()) == ["OEBPS/text/1.xhtml", "OEBPS/text/二.xhtml"]


def test_a_package_without_a_namespace_or_folder() -> None:
    package = '<p><manifest><item id="a" href="./a.html"/></manifest><spine><itemref idref="a"/></spine></p>'
    members = {"META-INF/container.xml": '<container><rootfile full-path="b.opf"/></container>', "b.opf": package}
    assert epub_members(epub(**members, **{"a.html": "x"})) == ["a.html"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"META-INF/container.xml": ""}, "container.xml is missing"),
        ({"META-INF/container.xml": "<container/>"}, "package file is missing"),
        ({"META-INF/container.xml": "<container>"}, "not well-formed"),
        ({"OEBPS/book.opf": ""}, "book.opf is missing"),
        ({"OEBPS/book.opf": "<package><spine/></package>"}, "spine is empty"),
        ({"OEBPS/text/1.xhtml": ""}, "not in the archive"),
        ({"OEBPS/book.opf": PACKAGE.replace("text/1.xhtml", "../../../etc/passwd")}, "not in the archive"),
        ({"OEBPS/book.opf": PACKAGE.replace("text/1.xhtml", "/etc/passwd")}, "not in the archive"),
        ({"OEBPS/book.opf": '<!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><package>&b;</package>'}, "entities"),
        (
            {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/text/1.xhtml"/></e>'},
            "encrypted",
        ),
    ],
)
def test_bad_epubs_say_why(members: dict[str, str], reason: str) -> None:
    with pytest.raises(BadEpub, match=reason):
        epub_members(epub(**members))


def test_encrypted_fonts_do_no_harm() -> None:
    font = '<e><CipherReference URI="OEBPS/font.otf"/></e>'
    assert len(epub_members(epub(**{"META-INF/encryption.xml": font}))) == 2


def test_messy_html_gives_its_paragraphs_and_no_markup() -> None:
    if not MESSY.is_dir():
        pytest.skip("the corpus of awkward files is not here")
    markup = next(MESSY.glob("17*")).read_text(encoding="utf-8")
    text = html_to_text(markup)
    source = (MESSY.parent / "style" / "五鼠闹东京.txt").read_text(encoding="utf-8")
    assert looks_like_html(markup) and "<" not in text and "var a" not in text and "第一回" not in text.split("\n")[0]
    paragraphs = [line.strip() for line in text.split("\n")]
    assert len(paragraphs) > 20 and all(p in source for p in paragraphs)


@pytest.mark.parametrize("number", ["04", "05", "08", "11", "14"])
def test_messy_prose_is_no_html(number: str) -> None:
    if not MESSY.is_dir():
        pytest.skip("the corpus of awkward files is not here")
    assert not looks_like_html(next(MESSY.glob(f"{number}*")).read_text(encoding="utf-8"))
