"""Forests as pictures: who sees whom, a tree in the terminal, a page of coloured tokens.

Every token is of one kind:

    trained   an edge predicts it from its parent
    masked    an edge predicts another token from its parent: MASK or noise stands here; ▢{剑} is what is read{what is learned}
    context   only read
    ahead     predicted but not read: the target of an edge where no such token follows; drawn, but no token of the forest

Knows no tokenizers: `piece` tells how a token is written, as `bytes` where it may be a part of a character. Such parts become
characters where they meet in one kind, else they are drawn in hex, `‹E5›`. Knows no terminals: `style` colours the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .forest import MASK, Forest, Sample, parents, visible

Piece = Callable[[int], str | bytes]
Style = Callable[[str, str], str]

KINDS = {
    "trained": "learned, and read by what follows",
    "masked": "learned, while a mask or noise is read",
    "context": "only read",
    "ahead": "learned, but not read: nothing follows it",
}
BLANK = "▢"  # MASK is drawn so
LONGEST = 4  # bytes of a character in UTF-8, so at most as many tokens of a byte-level vocabulary
SHOWN = {"\n": "↵", "\t": "⇥"}


@dataclass(frozen=True)
class Token:
    """One token as it is drawn. kind: of KINDS; text: as `piece` gives it; hidden: the targets in whose place it stands."""

    kind: str
    text: str | bytes
    hidden: tuple[str | bytes, ...] = ()


@dataclass(frozen=True)
class Run:
    """A stretch of a tree without a fork. ways: for each fork above it, is this the last way there? Empty at a root."""

    tokens: list[Token]
    ways: tuple[bool, ...]


def visibility_text(forest: Forest, labels: Sequence[str] | None = None) -> str:
    """T lines of T characters, `#` where the row sees the column; labels: one for each row, written before it.

    a  #..
    b  ##.
    c  ###
    """
    rows = ["".join("#" if sees else "." for sees in row) for row in visible(forest).tolist()]
    if labels is None:
        return "\n".join(rows)
    room = max(map(columns, labels), default=0)
    return "\n".join(f"{label}{' ' * (room - columns(label))}  {row}" for label, row in zip(labels, rows, strict=True))


def tree_text(sample: Sample, piece: Piece, width: int = 100, style: Style = lambda kind, text: text) -> str:
    """A drawing `width` terminal columns wide: a trunk as a running paragraph, the ways from its fork below it.

    style(kind, text): the text as it is to be printed; what it adds takes no columns. A blank line parts two trees.

    你好，
    ├─ 世界
    └─ 朋友
    """
    lines: list[str] = []
    for run in runs(sample, piece):
        if lines and not run.ways:
            lines.append("")
        margin = "".join("   " if last else "│  " for last in run.ways)
        corner = margin[:-3] + ("└─ " if run.ways[-1] else "├─ ") if run.ways else ""
        folded = fold(joined(run.tokens), max(width - len(margin), 20), style)
        lines.extend((margin if i else corner) + line for i, line in enumerate(folded))
    return "\n".join(lines)


def tokens_html(samples: Sequence[Sample], piece: Piece, title: str) -> str:
    """A page of all samples, tokens coloured by kind, with a legend and counts. No scripts, nothing from elsewhere."""
    counts = [count_kinds(sample) for sample in samples]
    total = {kind: sum(count[kind] for count in counts) for kind in KINDS}
    legend = "\n".join(
        f'<li><span class="{kind}">{kind}</span> <b>{total[kind]:,}</b> {meaning}</li>' for kind, meaning in KINDS.items()
    )
    sections = []
    for number, (sample, count) in enumerate(zip(samples, counts, strict=True), start=1):
        told = " · ".join(f"{n:,} {kind}" for kind, n in count.items() if n)
        paragraphs = "\n".join(paragraph(run) for run in runs(sample, piece))
        sections.append(f"<section>\n<h2>{number} <small>{len(sample):,} tokens: {told}</small></h2>\n{paragraphs}\n</section>")
    return (
        f'<!doctype html>\n<html lang="zh">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{CSS}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n<ul>\n{legend}\n</ul>\n</header>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def count_kinds(sample: Sample) -> dict[str, int]:
    """How many tokens are of each kind of KINDS; all but `ahead` sum to the tokens of the sample."""
    counts = dict.fromkeys(KINDS, 0)
    for kind, _, _ in classified(sample)[0]:
        counts[kind] += 1
    return counts


def classified(sample: Sample) -> tuple[list[tuple[str, int, list[int]]], list[list[int]], list[int]]:
    """(kind, id, hidden ids) of every token, tokens ahead after those of the forest; the children of each; the roots.

    A target belongs to the child that is that token. One without such a child is hidden by those children that are themselves no
    target, and ahead if there are none.
    """
    ids = sample.forest.ids.tolist()
    above = parents(sample.forest).tolist()
    children: list[list[int]] = [[] for _ in ids]
    for index, parent in enumerate(above):
        if parent >= 0:
            children[parent].append(index)
    targets: dict[int, dict[int, None]] = {}  # dicts for their order
    for source, target in zip(sample.edges.source.tolist(), sample.edges.target.tolist(), strict=True):
        targets.setdefault(source, {})[target] = None
    nodes: list[tuple[str, int, list[int]]] = [("masked" if token == MASK else "context", token, []) for token in ids]
    for source, wanted in targets.items():
        standing = {ids[child] for child in children[source]}
        lost = [target for target in wanted if target not in standing]
        others = [child for child in children[source] if ids[child] not in wanted]
        for child in children[source]:
            if ids[child] in wanted:
                nodes[child] = ("trained", ids[child], [])
            elif lost:
                nodes[child] = ("masked", ids[child], lost)
        if not others:
            for target in lost:
                children[source].append(len(nodes))
                children.append([])
                nodes.append(("ahead", target, []))
    return nodes, children, [index for index, parent in enumerate(above) if parent < 0]


def runs(sample: Sample, piece: Piece) -> Iterator[Run]:
    """The sample's trees from left to right, each cut at its forks, depth first."""
    nodes, children, roots = classified(sample)

    def token(node: int) -> Token:
        kind, word, hidden = nodes[node]
        return Token(kind, BLANK if word == MASK else piece(word), tuple(map(piece, hidden)))

    stack: list[tuple[int, tuple[bool, ...]]] = [(root, ()) for root in reversed(roots)]
    while stack:
        node, ways = stack.pop()
        tokens = [token(node)]
        while len(children[node]) == 1:
            node = children[node][0]
            tokens.append(token(node))
        yield Run(tokens, ways)
        stack.extend((child, (*ways, child == children[node][-1])) for child in reversed(children[node]))


def joined(tokens: Sequence[Token]) -> Iterator[Token]:
    """Tokens whose texts are `str`: neighbours of one kind that are parts of one character become one."""
    start = 0
    while start < len(tokens):
        groups = (tokens[start : start + size] for size in range(1, LONGEST + 1))
        group = next(filter(is_whole, groups), tokens[start : start + 1])
        start += len(group)
        if len(group) == 1:
            yield Token(group[0].kind, written(group[0].text), tuple(map(written, group[0].hidden)))
        elif group[0].kind == "masked":
            yield Token("masked", "".join(written(token.text) for token in group), (written(together(group)),))
        else:
            yield Token(group[0].kind, written(together(group)))


def is_whole(group: Sequence[Token]) -> bool:
    """Are they of one kind, and is what they are learned as (read as, where nothing is hidden) whole characters?"""
    if len({token.kind for token in group}) > 1 or any(len(token.hidden) > 1 for token in group):
        return False
    parts = [token.hidden[0] if token.hidden else token.text for token in group]
    if not all(isinstance(part, bytes) for part in parts):
        return len(parts) == 1
    return not BROKEN.search(together(group).decode("utf-8", "surrogateescape"))


def together(group: Sequence[Token]) -> bytes:
    """The bytes that `is_whole` asks about."""
    parts = (token.hidden[0] if token.hidden else token.text for token in group)
    return b"".join(part for part in parts if isinstance(part, bytes))


BROKEN = re.compile("[\udc80-\udcff]+")  # what "surrogateescape" makes of bytes that are no UTF-8 (PEP 383)


def written(text: str | bytes) -> str:
    """Text that can be shown in one line anywhere: bytes that are no character and invisible characters are spelled out."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    text = BROKEN.sub(lambda found: "‹" + found[0].encode("utf-8", "surrogateescape").hex(" ").upper() + "›", text)
    return "".join(
        SHOWN.get(char) or (f"‹U+{ord(char):04X}›" if unicodedata.category(char) in INVISIBLE else char) for char in text
    )


INVISIBLE = {"Cc", "Cf", "Zl", "Zp"}  # controls (a terminal would obey them), formats and separators of lines


def columns(text: str) -> int:
    """How many terminal columns a text takes: East Asian wide characters take two, combining ones none (UAX 11)."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def fold(tokens: Iterator[Token], room: int, style: Style) -> Iterator[str]:
    """Lines of at most `room` columns; only a token longer than a line is cut."""
    line, used = "", 0
    for token in tokens:
        assert isinstance(token.text, str)
        text = token.text + (f"{{{'|'.join(map(str, token.hidden))}}}" if token.hidden else "")
        if used + columns(text) > room >= columns(text):
            yield line
            line, used = "", 0
        part = ""
        for char in text:
            if used + columns(char) > room:
                yield line + (style(token.kind, part) if part else "")
                line, part, used = "", "", 0
            part += char
            used += columns(char)
        line += style(token.kind, part)
    yield line


def paragraph(run: Run) -> str:
    """A run as HTML, indented by the forks above it."""
    return f'<p style="--ways: {len(run.ways)}">{"".join(map(span, joined(run.tokens)))}</p>'


def span(token: Token) -> str:
    """A token as HTML; what it hides stands above it."""
    text = escape(str(token.text)).replace(SHOWN["\n"], SHOWN["\n"] + "<br>")
    if token.kind == "context":
        return text
    if token.hidden:
        return f'<ruby class="{token.kind}">{text}<rt>{escape("|".join(map(str, token.hidden)))}</rt></ruby>'
    return f'<span class="{token.kind}">{text}</span>'


CSS = """\
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #23262b; --quiet: #767b84; --line: #dcd9d1;
  --trained: #d5eadd; --trained-ink: #12452c; --masked: #fbe0b5; --masked-ink: #6b3d00; --ahead: #7b61b8; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --ink: #dcdfe4; --quiet: #878d97; --line: #373b42;
  --trained: #1d4331; --trained-ink: #bfe8cf; --masked: #573c11; --masked-ink: #f8d9a0; --ahead: #b6a2ea; } }
body { max-width: 48rem; margin: 3rem auto; padding: 0 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.6 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 1rem; }
h2 { font-size: 1rem; font-weight: 600; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
small, li { color: var(--quiet); font-size: .85rem; font-weight: 400; }
small { margin-left: .5rem; }
ul { list-style: none; margin: 0; padding: 0; display: grid; gap: .35rem; }
li b { color: var(--ink); display: inline-block; min-width: 4rem; text-align: right; margin-right: .5rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
p { margin: .5rem 0 .5rem calc(var(--ways) * 1.75rem); color: var(--quiet); white-space: pre-wrap; overflow-wrap: anywhere;
  font: 18px/2.3 "Noto Serif CJK SC", "Source Han Serif SC", "Songti SC", SimSun, serif; }
p:not([style="--ways: 0"]) { padding-left: .75rem; border-left: 2px solid var(--line); }
.trained, .masked, .ahead { border-radius: .25em; padding: .1em .12em; margin: 0 1px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.trained { background: var(--trained); color: var(--trained-ink); }
.masked { background: var(--masked); color: var(--masked-ink); }
.ahead { color: var(--ahead); outline: 1px dashed; outline-offset: -1px; }
ruby.masked { padding-block: 0; }
rt { font-size: .62em; position: relative; top: -.3em; color: var(--masked-ink); }
li span, li .context { display: inline-block; width: 4.5rem; margin: 0; padding: .1em 0; text-align: center; }
@media print { body { margin: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
