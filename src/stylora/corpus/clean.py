"""Cleans the text of one novel: what files, editors and download sites did to it goes, what the author wrote stays.

Seven steps, each of which can be switched off and counts what it did. Characters first (newlines, invisible, blanks),
then lines, over and over until no step finds anything more: so cleaning a clean text changes nothing. The rules for
adverts are in `adverts.py`, those for near-duplicates in `duplicates.py`. Knows nothing of files, encodings and
chapters; markup of a whole HTML page is taken off by its reader before.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pydantic
from numpy.typing import NDArray

from .adverts import suspects, without_adverts
from .duplicates import MINIMA, SHORTEST, SeenParagraphs, signatures_of

__all__ = ["Cleaned", "Cleaning", "SeenParagraphs", "clean"]

LONG_LINE = 20_000  # characters: no author writes such a paragraph, and no joined one becomes longer
PARAGRAPH = 400  # characters: a long line is cut at the first sentence end after so many
_NEWLINES = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_NEWLINE_MARKS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad"
    "\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+"
)
_BLANK = "\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_BLANKS = re.compile(f"[{_BLANK}]{{2,}}|[{_BLANK.replace(' ', '')}]")
_STRIPPED = "".join(c for c in map(chr, range(0x3001)) if re.match(f"[{_BLANK}]", c))
_SENTENCE_END = re.compile(r"[。！？!?…]+[”’」』）)】]*|\.(?=\s)")
_CLOSED = tuple("。！？!?…：:；;.”’」』》）)】】—~～")
_HEADING = re.compile(
    r"\s*(?:正文\s*)?(?:第.{1,9}[章回节卷部集篇]|卷[一二三四五六七八九十\d]|楔子|序|引子|尾声|番外|chapter\s)",
    re.IGNORECASE,
)


class Cleaning(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Which steps of cleaning to take; all of them are for novels as they are found.

    newlines: CRLF, CR, form feeds, U+0085, U+2028 and U+2029 become `\\n`; else a whole book may be one paragraph.
        Counts newlines changed
    invisible: zero-width characters, soft hyphens, direction marks, control characters and NUL go; they split words
        into tokens the base has never seen. Counts characters
    blanks: indentation and trailing blanks go, runs of blanks and every full-width blank or tab within a line become
        one space, runs of blank lines one blank line; layout is not style. Off for code and for verse set by blanks.
        Counts characters taken out
    long_lines: a line of more than 20 000 characters is broken at sentence ends into paragraphs of about 400; windows
        and splits need borders. Counts breaks
    adverts: site lines, addresses, begging for votes and HTML remnants go; the model would learn them well, they
        repeat in every book. Counts lines and inserts
    unwrap: lines broken at a fixed width are joined; else the model learns to break words. Counts lines joined
    near_duplicates: a paragraph of at least 30 characters that came before, in this text or this corpus, goes;
        repeated text is learned by heart. Counts paragraphs
    """

    newlines: bool = True
    invisible: bool = True
    blanks: bool = True
    long_lines: bool = True
    adverts: bool = True
    unwrap: bool = True
    near_duplicates: bool = True


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A cleaned text and what was done to it.

    text: `\\n` between paragraphs
    counts: step -> how much it did, in the unit `Cleaning` names; every step that was on is there
    removed: `(step, line, text)` for adverts and near-duplicates; lines of the input text count from 1, and end where
        the newlines step (when it is on) says they end
    """

    text: str
    counts: dict[str, int]
    removed: list[tuple[str, int, str]]


@dataclass
class _Page:
    """The text while it is worked on: its lines, the input line each began on, and the account of the work."""

    lines: list[str]
    numbers: list[int]
    counts: dict[str, int]
    removed: list[tuple[str, int, str]] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)  # lines without adverts: the later rounds see only new ones
    signed: tuple[list[str], NDArray[np.uint32]] = field(default_factory=lambda: ([], np.empty((0, MINIMA), np.uint32)))

    def replace(self, new: dict[int, list[str]]) -> None:
        """Puts `new[i]`, any number of lines, in the place of line `i`."""
        if new:
            numbers = [n for i, n in enumerate(self.numbers) for _ in (new[i] if i in new else (0,))]
            self.lines = [part for i, line in enumerate(self.lines) for part in (new[i] if i in new else (line,))]
            self.numbers = numbers


def clean(text: str, cleaning: Cleaning, seen: SeenParagraphs) -> Cleaned:
    """Cleans one text; `seen` is the near-duplicate state of its corpus and takes in the paragraphs that stay.

    With a fresh `seen`, `clean(clean(x)) == clean(x)`.
    """
    counts = {step: 0 for step in Cleaning.model_fields if getattr(cleaning, step)}
    if cleaning.newlines and any(mark in text for mark in _NEWLINE_MARKS):
        text, counts["newlines"] = _NEWLINES.subn("\n", text)
    if cleaning.invisible:
        shorter = _INVISIBLE.sub(_joiner, text)
        counts["invisible"], text = len(text) - len(shorter), shorter
    if cleaning.blanks and ("  " in text or any(blank in text for blank in _STRIPPED if blank != " ")):
        shorter = _BLANKS.sub(" ", text)
        counts["blanks"], text = len(text) - len(shorter), shorter
    lines = text.split("\n")
    page = _Page(lines, list(range(1, len(lines) + 1)), counts)
    on: dict[str, Callable[[_Page], None]] = {
        name: step for name, step in _LINE_STEPS.items() if getattr(cleaning, name)
    }
    while True:
        _until_stable(page, on)
        if not cleaning.near_duplicates or not _drop_repeated(page, seen):
            break
    return Cleaned(text="\n".join(page.lines), counts=page.counts, removed=sorted(page.removed, key=lambda r: r[1]))


def _joiner(invisible: re.Match[str]) -> str:
    """What stays of a run of invisible characters: the joiner after an emoji, which is its spelling."""
    before = invisible.string[max(0, invisible.start() - 1) : invisible.start()]
    return "\u200d" if invisible[0] == "\u200d" and (before == "\ufe0f" or before > "\U0001f000") else ""


def _until_stable(page: _Page, steps: dict[str, Callable[[_Page], None]]) -> None:
    """Ends because every step but `long_lines` only shortens the text, and `unwrap` never makes a long line."""
    while True:
        before = page.lines
        for step in steps.values():
            step(page)
        if page.lines == before:
            return


def _drop_repeated(page: _Page, seen: SeenParagraphs) -> bool:
    """Drops the paragraphs that came before; when there are none, `seen` takes in all and the answer is False."""
    long = [i for i, line in enumerate(page.lines) if len(line) >= SHORTEST]
    paragraphs = [page.lines[i] for i in long]
    if page.signed[0] != paragraphs:
        page.signed = paragraphs, signatures_of(paragraphs)
    signatures = page.signed[1]
    again = seen.repeated(signatures)
    if not again.any():
        seen.add(signatures)
        return False
    gone = [long[k] for k in np.flatnonzero(again)]
    page.removed += [("near_duplicates", page.numbers[i], page.lines[i]) for i in gone]
    page.counts["near_duplicates"] += len(gone)
    page.signed = [paragraphs[k] for k in np.flatnonzero(~again)], signatures[~again]
    page.replace({i: [] for i in gone})
    return True


def _break_long_lines(page: _Page) -> None:
    new = {}
    for i, line in enumerate(page.lines):
        if len(line) > LONG_LINE:
            ends = [m.end() for m in _SENTENCE_END.finditer(line)]
            cuts, last = [0], 0
            while (k := bisect.bisect_left(ends, last + PARAGRAPH)) < len(ends) and ends[k] < len(line):
                cuts.append(last := ends[k])
            if len(cuts) > 1:
                new[i] = [line[a:b] for a, b in zip(cuts, cuts[1:] + [len(line)], strict=True)]
                page.counts["long_lines"] += len(new[i]) - 1
    page.replace(new)


def _take_adverts(page: _Page) -> None:
    bare = [line.strip() for line in page.lines]
    fresh = [i for i, line in enumerate(bare) if line not in page.judged]
    new = {}
    for k in suspects([bare[i] for i in fresh]):
        i = fresh[k]
        left, taken = without_adverts(bare[i])
        if taken:
            before, _, after = page.lines[i].partition(bare[i])
            new[i] = [before + left + after] if left.strip() else []
            page.counts["adverts"] += len(taken)
            page.removed += [("adverts", page.numbers[i], piece) for piece in taken]
    page.judged.update(line for i, line in enumerate(bare) if i not in new)
    page.replace(new)


def _strip_blanks(page: _Page) -> None:
    """Strips every line and keeps one blank line of a run, none at the beginning; the last newline stays."""
    lines, numbers, blank = [], [], True
    for line, number in zip(page.lines, page.numbers, strict=True):
        bare = line.strip(_STRIPPED)
        if "  " in bare:  # where an advert was cut out
            bare = _BLANKS.sub(" ", bare)
        if bare or not blank:
            lines.append(bare)
            numbers.append(number)
        blank = not bare
    page.counts["blanks"] += len("\n".join(page.lines)) - len("\n".join(lines))
    page.lines, page.numbers = lines, numbers


def _unwrap(page: _Page) -> None:
    """Joins lines that were broken at a fixed width; does nothing where the lengths show no such width."""
    lengths = np.array([len(line.rstrip()) for line in page.lines])
    span = _wrap_width(page.lines, lengths)
    if span is None:
        return
    full = (lengths > span[0]) & (lengths <= span[1])
    indented = np.array([line[:1].isspace() for line in page.lines])
    starts_new = np.append((indented | (lengths == 0))[1:], True)
    short_ends = starts_new[~full & (lengths > 0)]
    marked = len(short_ends) > 0 and short_ends.mean() > 0.7  # paragraphs begin with a blank, or after a blank line
    heading = np.array([bool(_HEADING.match(line)) and len(line) < 40 for line in page.lines])
    join = full & ~starts_new & ~np.append(heading[1:], True) & ~heading
    if not marked:
        join &= np.array([not line.rstrip().endswith(_CLOSED) for line in page.lines])
    _join(page, join.tolist())


def _wrap_width(lines: list[str], lengths: np.ndarray) -> tuple[int, int] | None:
    """`(low, high)`: lines with low < length <= high were broken by width. None where the text is not wrapped.

    Wrapped text has a spike of lengths just under its width, next to nothing above, and most lines of the spike end in
    the middle of a sentence. Paragraphs, verse and lists have no such spike, or end their lines properly.
    """
    filled = lengths[lengths > 0]
    if len(filled) < 10:
        return None
    sample = "".join(lines[:2000])
    slack, least = (4, 16) if sum(c > "\u2e7f" for c in sample[:4000]) > len(sample[:4000]) // 5 else (15, 40)
    histogram = np.bincount(np.minimum(filled, 400), minlength=401)
    window = np.convolve(histogram, np.ones(slack, int))[:401]  # window[w] = lines of length w - slack + 1 .. w
    window[:least] = window[400] = 0
    high = int(window.argmax())
    spike, below, above = int(window[high]), int(window[high - slack]), int(histogram[high + 1 :].sum())
    if spike < max(8, 0.2 * len(filled)) or spike < 3 * below or above > 0.03 * len(filled):
        return None
    ends = [line for line, n in zip(lines, lengths, strict=True) if high - slack < n <= high]
    if sum(not line.rstrip().endswith(_CLOSED) for line in ends) < 0.6 * len(ends):
        return None
    return high - slack, high


def _join(page: _Page, join: list[bool]) -> None:
    """Joins line `i` to the next where `join[i]`; a space stands between two words of letters."""
    lines: list[str] = []
    numbers: list[int] = []
    going = False
    for line, number, more in zip(page.lines, page.numbers, join, strict=True):
        if going and len(lines[-1]) + len(line) < LONG_LINE:
            space = " " if lines[-1][-1:].isascii() and line[:1].isascii() and line[:1].isalnum() else ""
            lines[-1] = lines[-1].rstrip() + space + line
            page.counts["unwrap"] += 1
        else:
            lines.append(line)
            numbers.append(number)
        going = more
    page.lines, page.numbers = lines, numbers


_LINE_STEPS = {"long_lines": _break_long_lines, "adverts": _take_adverts, "unwrap": _unwrap, "blanks": _strip_blanks}
