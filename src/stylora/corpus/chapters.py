"""Finds the chapters of a novel by their headings.

A heading is a short line that begins with a number and a unit (第十二回, 卷一, Chapter 3) or is one of the few words
that stand without a number (楔子, 序, 尾声, 番外). The line must look like a title, not like a sentence; the numbers
of a book must go up; headings with nothing between them are a table of contents, or a volume above its first chapter.
Titles without number and word (a collection of tales) are not found. Knows nothing of books and splits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DIGITS = "0-9０-９零〇一二三四五六七八九十百千两廿卅壹贰叁肆伍陆柒捌玖拾"
_UNIT = "章回节節卷部集篇折幕话話"
_GAP = r"[ \t\u3000\xa0]"
_WORDS = (
    r"(?:《[^》\n]{1,20}》)?(?:[自小代原总新]?序[言章幕曲]?|自叙|引[子言]|小引|楔子|前言|缘起(?:首回)?|弁言|尾声|后记|跋|终章|终曲|附录|题记|番外篇?"
    r"|大?结局|final chapter|prologue|epilogue|preface|afterword)"
)
_HEADING = re.compile(
    rf"\n{_GAP}*(?P<title>(?:\#{{1,6}}{_GAP}+)?[【〖「\[]?(?:正文{_GAP}*)?(?:"
    rf"第{_GAP}?(?P<number>[{_DIGITS}]{{1,9}}){_GAP}?(?P<unit>[{_UNIT}])|(?P<volume>卷){_GAP}?(?P<volume_number>[{_DIGITS}]{{1,4}})"
    rf"|(?P<chapter>[Cc]hapter|CHAPTER){_GAP}+(?P<chapter_number>[0-9]{{1,4}}|[IVXLC]{{1,8}}\b|[A-Za-z]{{3,12}}\b)"
    rf"|(?P<word>{_WORDS})(?=[】〗」\] \t\u3000\xa0:：\n]|[{_DIGITS}]))(?P<rest>[^\n]{{0,40}}))(?=\n)"
)
_SENTENCE = re.compile(r"[。；;”]|[，,：:]$|^[，,。]")  # in the rest of a line: this is prose
_LOOSE = re.compile(r"[，,。！!？?：:；;“”…、了是]")  # after a unit without a blank, a title has none of these
_SEPARATED = re.compile(rf"{_GAP}|[】〗」\]:：、.．—-]|$")
_VALUES = {c: i for i, c in enumerate("零一二三四五六七八九")} | {c: i for i, c in enumerate("〇壹贰叁肆伍陆柒捌玖")}
_VALUES |= {"两": 2, "廿": 20, "卅": 30}
_TENS = {"十": 10, "拾": 10, "百": 100, "千": 1000}
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
CONTENTS = 4  # so many headings with nothing between them are a table of contents


@dataclass(frozen=True)
class Chapter:
    """One chapter: its heading without blanks around it ("" for what stands before the first), `text[start:end]`."""

    title: str
    start: int
    end: int


@dataclass(frozen=True)
class _Heading:
    title: str
    start: int
    end: int
    kind: str  # the unit, or "" for a word
    number: int | None
    loose: bool  # nothing between the unit and the title: 第一章序


def find_chapters(text: str) -> list[Chapter]:
    """The chapters of a text in order; they cover it without gaps. [] for an empty text.

    Text before the first heading is a chapter with title "" (blanks alone belong to the first). Headings that follow
    each other directly are one chapter, titles joined by a blank (第一卷 … 第一章 …), equal titles once.
    """
    if not text:
        return []
    headings = _joined(_in_order(_without_contents(_candidates(text), text)), text)
    if not headings or text[: headings[0].start].strip():
        headings = [_Heading("", 0, 0, "", None, False), *headings]
    starts = [0] + [heading.start for heading in headings[1:]] + [len(text)]
    return [Chapter(h.title, a, b) for h, a, b in zip(headings, starts[:-1], starts[1:], strict=True)]


def _candidates(text: str) -> list[_Heading]:
    """Every line that reads like a heading; without a blank after the unit only where most of them are written so."""
    found = []
    for match in _HEADING.finditer(f"\n{text}\n"):  # offsets in `text` are one less
        rest, title = match["rest"], match["title"].strip().strip("#【】〖〗「」[]").strip()
        loose = not _SEPARATED.match(rest) and not match["word"]
        if _SENTENCE.search(rest.strip()) or (loose and (len(rest) > 20 or _LOOSE.search(rest))):
            continue
        number = match["number"] or match["volume_number"] or match["chapter_number"]
        kind = match["unit"] or match["volume"] or ("chapter" if match["chapter"] else "")
        value = _value(number) if number else None
        if number and value is None:
            continue
        found.append(_Heading(title, match.start("title") - 1, match.end("title") - 1, kind, value, loose))
    n_loose = sum(h.loose for h in found)
    if n_loose < 3 or 2 * n_loose <= sum(bool(h.kind) for h in found):
        found = [h for h in found if not h.loose]
    return found


def _value(number: str) -> int | None:
    """The value of 十二, 一百零三, 一二〇, 12, １２, XII, Three; None for what is no number."""
    if number[0].isascii():
        if number.isdecimal():
            return int(number)
        if set(number) <= _ROMAN.keys():
            values = [_ROMAN[c] for c in number]
            return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))
        names = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
        return names.index(number.lower()) + 1 if number.lower() in names else None
    if number.isdecimal():
        return int(number)
    if not set(number) & _TENS.keys() and not set(number) & {"廿", "卅"}:
        digits = "".join(str(_VALUES[c]) if c in _VALUES else str(int(c)) for c in number)
        return int(digits)
    total, digit = 0, 0
    for c in number:
        if c in _TENS:
            total, digit = total + (digit or 1) * _TENS[c], 0
        else:
            digit += _VALUES[c] if c in _VALUES else int(c)
    return total + digit


def _without_contents(headings: list[_Heading], text: str) -> list[_Heading]:
    """Drops tables of contents: runs of headings with nothing between, and their last where its title comes again."""
    empty = [not text[a.end : b.start].strip() for a, b in zip(headings, headings[1:], strict=False)] + [False]
    kept: list[_Heading] = []
    i = 0
    while i < len(headings):
        stop = i
        while empty[stop]:
            stop += 1
        # `stop` has text under it: the first real heading after the table, or the last of the table itself
        if stop - i >= CONTENTS:
            real = headings[stop]
            again = any(h.title == real.title for h in headings[stop + 1 :])
            kept += [] if again else [real]
        else:
            kept += headings[i : stop + 1]
        i = stop + 1
    return kept


def _in_order(headings: list[_Heading]) -> list[_Heading]:
    """Drops a number that breaks a run which goes on after it: 11, 2, 12 -> 11, 12. Restarts at 1 stay."""
    last: dict[str, int] = {}
    upcoming: dict[str, list[int]] = {}
    for heading in reversed(headings):
        if heading.number is not None:
            upcoming.setdefault(heading.kind, []).append(heading.number)
    kept = []
    for heading in headings:
        if heading.number is None:
            kept.append(heading)
            continue
        following = upcoming[heading.kind]
        following.pop()
        before = last.get(heading.kind, 0)
        fits = before <= heading.number <= before + 1 or heading.number == 1
        if fits or not following or following[-1] != before + 1:
            kept.append(heading)
            last[heading.kind] = heading.number
    return kept


def _joined(headings: list[_Heading], text: str) -> list[_Heading]:
    """Makes one heading of those with nothing between them."""
    joined: list[_Heading] = []
    for heading in headings:
        if joined and not text[joined[-1].end : heading.start].strip():
            before = joined[-1]
            title = before.title if heading.title == before.title else f"{before.title} {heading.title}"
            heading = _Heading(title, before.start, heading.end, heading.kind, heading.number, heading.loose)
            joined.pop()
        joined.append(heading)
    return joined
