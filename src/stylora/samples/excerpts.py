"""A cleaned novel -> excerpts: whole sentences of one paragraph, a few dozen characters together, none of which overlap.

    天色将晚。那汉子推门进来，道：“店家，打酒！要热的。”说罢坐下。他腰间挂着一口刀
    |--------| |-------------------------------------------| |------|
    an excerpt is the longest run of these that is short enough; what has no end, or an open quotation mark, is in none

Knows no tokens and no models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

END = re.compile(r"(?:[。！？!?…]+|\.(?=\s|$))[」』”’）)》\"]*")
PAIRS = (("“", "”"), ("‘", "’"), ("「", "」"), ("『", "』"), ("（", "）"), ("(", ")"), ("《", "》"))
BROKEN = "\ufffd"


def excerpts(text: str, *, shortest: int, longest: int) -> Iterator[str]:
    """The excerpts of a text, in its order. shortest, longest: characters; text: `\\n` between paragraphs"""
    for paragraph in text.split("\n"):
        held = ""
        for sentence in [*sentences(paragraph), ""]:
            if sentence and len((held + sentence).strip()) <= longest:
                held += sentence
                continue
            if shortest <= len(held.strip()) and BROKEN not in held:
                yield held.strip()
            held = sentence if len(sentence.strip()) <= longest else ""


def sentences(paragraph: str) -> Iterator[str]:
    """Its sentences, in which every quotation mark and bracket is closed; what comes behind the last of them is left out.

    A speech of several sentences stays one: 道：“打酒！要热的。”
    """
    start = 0
    for match in END.finditer(paragraph):
        sentence = paragraph[start : match.end()]
        if _closed(sentence):
            yield sentence
            start = match.end()


def _closed(text: str) -> bool:
    return text.count('"') % 2 == 0 and all(text.count(opening) == text.count(closing) for opening, closing in PAIRS)
