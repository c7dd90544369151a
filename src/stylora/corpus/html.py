"""HTML -> text, and which members of an EPUB hold its text, in reading order.

HTML here is what novels are scraped as: paragraphs, line breaks and entities around prose, with scripts and styles to
drop. Blocks become lines; the blanks HTML would collapse are collapsed. Knows no encodings and no cleaning: adverts
and full-width blanks stay.

References: HTML Living Standard 15.3 (which elements are blocks), EPUB 3.3 (container.xml -> package -> spine).
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

DROPPED = frozenset("script style head title template noscript iframe svg math select button".split())
BLOCKS = frozenset(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form "
    "h1 h2 h3 h4 h5 h6 header hr html legend li main nav ol p pre section summary table tbody tfoot thead tr ul".split()
)
WORD_BREAKS = frozenset({"td", "th"})
BEGINNING = re.compile(r"\ufeff?\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
TAG = re.compile(r"</?(?:p|br|div|span|a|b|i|font|h[1-6]|li|td|tr|table|center|strong|em)(?:\s[^<>]{0,300})?/?>", re.I)
HEAD = 20_000  # characters of a text that are looked at
CHARACTERS_PER_TAG = 300  # denser tags make markup; an advert's link here and there does not
BLANKS = re.compile(r"[ \t\n\r\f]+")  # HTML's white space: neither U+00A0 nor U+3000
INDENTED = re.compile(r"[\n\r]+(?=[ \t]*\u3000)")  # pages that leave the paragraphs to U+3000 mean them
BETWEEN_HAN = re.compile(r"(?<=[\u2e80-\u9fff\uff00-\uffef])[ \t]*[\n\r][ \t\n\r]*(?=[\u2e80-\u9fff\uff00-\uffef])")
MAX_XML = 16 << 20  # bytes of a container or package file; real ones are thousands of times smaller


class BadEpub(ValueError):
    """The archive is no readable EPUB; the message says why, in words for the user."""


def looks_like_html(text: str) -> bool:
    """Whether a text is an HTML page or fragment rather than prose with a few tags in it."""
    head = text[:HEAD]
    if "<" not in head:
        return False
    return BEGINNING.match(head) is not None or len(TAG.findall(head)) > max(2, len(head) / CHARACTERS_PER_TAG)


def html_to_text(markup: str) -> str:
    """The text a reader of the page would see, one line per block, `<br>` a line end, no blank lines but in `<pre>`."""
    parser = _Text()
    parser.feed(markup)
    parser.close()
    return parser.text()


SECTION = re.compile(r"<!\[(temp|cdata|ignore|include|rcdata|if|else|endif)(?![\w.-])", re.IGNORECASE)
"""Python's parser fails an assertion on any other"""


class _Text(HTMLParser):
    """Collects lines; `dropped` counts the open elements whose content nobody sees."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.line: list[str] = []
        self.dropped: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "head" in self.dropped and tag in BLOCKS:  # it was never closed
            self.dropped.clear()
        if tag in DROPPED:
            self.dropped.append(tag)
        elif tag == "br" or tag in BLOCKS:
            self.end_line()
        elif tag in WORD_BREAKS:
            self.line.append(" ")
        self.preformatted += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br" or tag in BLOCKS:  # `<script/>` and `<title/>` of XHTML hold nothing
            self.end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.dropped:
            del self.dropped[self.dropped.index(tag) :]
        elif tag == "pre" and self.preformatted:
            if any(self.line):  # not the line end before the tag
                self.end_line()
            self.preformatted -= 1
        elif tag in BLOCKS:
            self.end_line()

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![...`: the sections that SGML knows, and for anything else what browsers see, a comment up to the next `>`."""
        if SECTION.match(self.rawdata, i):
            return super().parse_marked_section(i, report)
        return self.parse_bogus_comment(i, report)

    def handle_data(self, data: str) -> None:
        if self.dropped:
            return
        if self.preformatted:
            *whole, rest = data.split("\n")
            for line in whole:
                self.line.append(line)
                self.end_line()
            self.line.append(rest)
        else:
            self.line.append(data)

    def end_line(self) -> None:
        whole = "".join(self.line)
        self.line.clear()
        if self.preformatted:
            self.lines.append(whole)
            return
        for line in INDENTED.split(whole):
            # Chinese has no blank between words, so the source's own line ends inside a paragraph are nothing
            if line := BLANKS.sub(" ", BETWEEN_HAN.sub("", line)).strip(" "):
                self.lines.append(line)

    def text(self) -> str:
        self.end_line()
        return "\n".join(self.lines)


def epub_members(archive: zipfile.ZipFile) -> list[str]:
    """The names of an EPUB's text documents in reading order (its spine), without its table of contents.

    Names are looked up in the archive and nowhere else, so absolute names and `..` reach nothing outside it.
    Raises BadEpub where the container, the package or every document is missing, broken or encrypted.
    """
    container = _xml(archive, "META-INF/container.xml")
    package_name = next((e.get("full-path", "") for e in container.iter() if _local(e) == "rootfile"), "")
    package = _xml(archive, package_name)
    items = {e.get("id"): e for e in package.iter() if _local(e) == "item"}
    encrypted, present, names = _encrypted(archive), set(archive.namelist()), []
    for reference in (e for e in package.iter() if _local(e) == "itemref"):
        item = items.get(reference.get("idref"))
        if item is None or reference.get("linear") == "no" or "nav" in item.get("properties", "").split():
            continue
        name = posixpath.normpath(posixpath.join(posixpath.dirname(package_name), unquote(item.get("href", ""))))
        if name in encrypted:
            raise BadEpub(f"{name} is encrypted (copy protection)")
        if name not in present:
            raise BadEpub(f"its spine names {name}, which is not in the archive")
        names.append(name)
    if not names:
        raise BadEpub("its spine is empty")
    return names


def _encrypted(archive: zipfile.ZipFile) -> set[str]:
    """Members under copy protection; fonts are often the only ones."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return set()
    tree = _xml(archive, "META-INF/encryption.xml")
    return {unquote(e.get("URI", "")) for e in tree.iter() if _local(e) == "CipherReference"}


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """Parse one XML member. Entity declarations are refused: no EPUB needs them, and they can grow without bound."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise BadEpub(f"{name or 'its package file'} is missing") from None
    if info.file_size > MAX_XML:
        raise BadEpub(f"{name} has {info.file_size} bytes")
    data = archive.read(info)
    if b"<!ENTITY" in data.replace(b"\0", b""):  # also where it is UTF-16
        raise BadEpub(f"{name} declares XML entities")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise BadEpub(f"{name} is not well-formed XML ({error})") from None


def _local(element: ElementTree.Element) -> str:
    """The tag without its namespace: packages of EPUB 2 and 3, and careless ones, differ in it."""
    return element.tag.rpartition("}")[2]
