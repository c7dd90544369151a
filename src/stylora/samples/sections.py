"""Documents with sections -> trunks and branches: what stands above the sections is the trunk, each section is a branch.

    Markdown      # title, intro, ## section, ## section         main "title↵intro"           branches "section↵its text"
    chapters      第一章 总则, 第一节 ..., 第二节 ...               the same, from numbered headings
    lists         第三条 ...有下列情形之一的：                       main "《title》↵第三条 ...："   branches "（一）...", "（二）..."
                  （一）...（二）...

A document is read in the first of these ways that it has, lists before chapters, for statutes have both. A section that is too long for a
branch is read as a trunk with sections of its own, where it has them. Knows no files and no tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

NUMERALS = "0-9０-９零〇一二三四五六七八九十百千两"
_MARKDOWN = re.compile(r"(#{1,6})[ \t\u3000]+(\S.*?)[ \t#]*")
_FENCE = re.compile(r"\s*(```|~~~)")
_CHAPTER = re.compile(rf"\s*(第[{NUMERALS}]{{1,6}}[章编回](?:\s.*)?)")
_SECTION = re.compile(rf"\s*(第[{NUMERALS}]{{1,6}}节(?:\s.*)?)")
_ARTICLE = re.compile(rf"第[{NUMERALS}]{{1,9}}条")
_ITEM = re.compile(r"[（(][一二三四五六七八九十]{1,4}[）)]")
_BELOW_ITEM = re.compile(r"[（(]?[0-9０-９]{1,3}[.．、)）]")
_PROSE = re.compile("[。！？；，：:]")  # a heading and a title have none of these
TITLE = 40  # characters of a document's first line that may be its title
ARTICLE = 12  # lines of an article above its list that belong to the trunk


@dataclass(frozen=True, kw_only=True)
class Sectioned:
    """A trunk with its branches. kind: `markdown`, `list` or `chapters`"""

    kind: str
    main: str
    branches: tuple[str, ...]


@dataclass
class _Node:
    """A heading with what stands below it. level: 0 of the document itself"""

    level: int
    title: str
    lines: list[str] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)

    def whole(self) -> str:
        """Heading, text and all sections below."""
        return "\n".join(part for part in [self.own(), *(node.whole() for node in self.below)] if part)

    def own(self) -> str:
        """Heading and the text up to the next one."""
        return "\n".join(part for part in [self.title, self.text()] if part)

    def text(self) -> str:
        return "\n".join(self.lines).strip()

    def empty(self) -> bool:
        return not self.text() and all(node.empty() for node in self.below)


def sectioned(text: str, title: str, *, least: int, longest: int, left_out: Counter[str]) -> list[Sectioned]:
    """The trunks with branches of a document, in its order.

    title: of the document, "" for none; least: branches of a trunk; longest: characters of a branch; left_out: told what is none, and why
    """
    lines = text.split("\n")
    if title in (line.strip() for line in lines[:1]):
        title = ""  # the text says it itself
    root = _tree(lines, title, _markdown_heading)
    if len(root.below) > 1 or any(node.below for node in root.below):
        return list(_trunks(root, "markdown", least, longest, left_out))
    if found := list(_lists(lines, least, longest, left_out)):
        return found
    root = _tree(lines, title, _numbered_heading)
    if not root.below:
        left_out["documents without sections"] += 1
        return []
    return list(_trunks(root, "chapters", least, longest, left_out))


# ------------------------------------------------------------------------------------------------------------ headings


def _markdown_heading(line: str) -> tuple[int, str] | None:
    match = _MARKDOWN.fullmatch(line)
    return None if match is None else (len(match[1]), match[2])


def _numbered_heading(line: str) -> tuple[int, str] | None:
    """A chapter is of level 1, a section of level 2."""
    for level, pattern in ((1, _CHAPTER), (2, _SECTION)):
        match = pattern.fullmatch(line)
        if match is not None and len(match[1]) <= TITLE and not _PROSE.search(match[1]):
            return level, match[1].strip()
    return None


def _tree(lines: list[str], title: str, heading: Callable[[str], tuple[int, str] | None]) -> _Node:
    """The document as headings below headings. What looks like one in a fenced block is code."""
    path, fenced = [_Node(0, title)], False
    for line in lines:
        fenced ^= _FENCE.match(line) is not None
        found = None if fenced else heading(line)
        if found is None:
            path[-1].lines.append(line.rstrip())
            continue
        while path[-1].level >= found[0]:
            path.pop()
        node = _Node(*found)
        path[-1].below.append(node)
        path.append(node)
    return path[0]


def _trunks(node: _Node, kind: str, least: int, longest: int, left_out: Counter[str]) -> Iterator[Sectioned]:
    """Of a heading with sections below it, and of the sections that are too long for a branch."""
    filled = [each for each in node.below if not each.empty()]
    left_out["sections without text"] += len(node.below) - len(filled)
    branches = [each.whole() for each in filled]
    fitting = [branch for branch in branches if len(branch) <= longest]
    made = len(fitting) >= least and bool(node.own())
    if made:
        yield Sectioned(kind=kind, main=node.own(), branches=tuple(fitting))
    for each, branch in zip(filled, branches, strict=True):
        if made and len(branch) <= longest:
            continue
        if each.below:
            yield from _trunks(each, kind, least, longest, left_out)
        elif len(branch) > longest:
            left_out[f"sections of more than {longest:,} characters"] += 1
        else:
            left_out["sections without enough others, or without anything above them"] += 1


# --------------------------------------------------------------------------------------------------------------- lists


def _lists(lines: list[str], least: int, longest: int, left_out: Counter[str]) -> Iterator[Sectioned]:
    """Items （一）（二） below a line that ends in a colon, with what the article says above them."""
    stripped = [line.strip() for line in lines if line.strip()]
    title = _title(stripped)
    at = 0
    while at < len(stripped):
        if not _ITEM.match(stripped[at]):
            at += 1
            continue
        first, items = at, []
        while at < len(stripped) and (_ITEM.match(stripped[at]) or _BELOW_ITEM.match(stripped[at])):
            if _ITEM.match(stripped[at]):
                items.append(stripped[at])
            else:
                items[-1] += "\n" + stripped[at]
            at += 1
        if not first or not stripped[first - 1].endswith(("：", ":")):
            left_out["lists without a line above them that ends in a colon"] += 1
        elif len(items) < least:
            left_out[f"lists of fewer than {least} items"] += 1
        elif max(map(len, items)) > longest:
            left_out[f"lists with an item of more than {longest:,} characters"] += 1
        else:
            yield Sectioned(kind="list", main="\n".join([*title, *_article(stripped, first)]), branches=tuple(items))


def _title(lines: list[str]) -> list[str]:
    """The document's first line between title marks, where it looks like a title."""
    if not lines or len(lines[0]) > TITLE or _PROSE.search(lines[0]) or _ARTICLE.match(lines[0]):
        return []
    return [lines[0] if lines[0].startswith("《") else f"《{lines[0]}》"]


def _article(lines: list[str], first: int) -> list[str]:
    """The lines from the article's beginning to the list; the line above the list alone where no article begins near."""
    for begin in range(first - 1, max(-1, first - 1 - ARTICLE), -1):
        if _ARTICLE.match(lines[begin]):
            return lines[begin:first]
        if _ITEM.match(lines[begin]) or _numbered_heading(lines[begin]):
            break
    return lines[first - 1 : first]
