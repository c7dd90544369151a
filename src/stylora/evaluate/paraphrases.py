"""Is this a paraphrase of that passage? What a small model writes instead: nothing, the passage itself, a loop, a speech about the task.

Rules of form only. Whether the meaning is the same they cannot tell; read some of what they let through. Knows no models.
"""

from __future__ import annotations

import re
from typing import Literal

from .copying import TrainingText
from .repetition import fault, squeeze

Reason = Literal[
    "empty", "did not stop", "template text", "several lines", "not text", "loop", "repeats", "not Chinese", "too short", "too long", "copy"
]
RATIO = (0.3, 3.0)  # characters of a paraphrase to one of the passage
RUN = 20  # characters in one piece
SHARED = 0.6  # of the 4-grams
CHINESE = 0.8  # share of the letters
TEMPLATE = re.compile(r"<\|.*?\|>|</?think>|</?s>|\[/?INST\]|(?:^|\n)\s*(?:system|user|assistant|用户|助手)\s*(?:[:：]|\n|$)")
IDEOGRAPH = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")


def refuse(plain: str, passage: str, *, stopped: bool) -> Reason | None:
    """Why it is none; None where it may be one. stopped: it ended by itself

    not Chinese     less than 80 % of its letters are, and at least as many of the passage's
    too short, too long: below 0.3 and above 3 times the passage's characters
    copy            20 characters or more of the passage in one piece, or 60 % of its 4-grams of characters stand in the passage
    not text, loop, repeats: see `repetition.fault`
    """
    body, source = squeeze(plain), squeeze(passage)
    if not any(map(str.isalnum, body)):
        return "empty"
    if not stopped:
        return "did not stop"
    if TEMPLATE.search(plain):
        return "template text"
    if "\n" in plain.strip():
        return "several lines"
    if (wrong := fault(plain)) is not None:
        return wrong
    if _chinese(source) >= CHINESE > _chinese(body):
        return "not Chinese"
    if len(body) < RATIO[0] * len(source):
        return "too short"
    if len(body) > RATIO[1] * len(source):
        return "too long"
    return "copy" if _copied(body, source) else None


def _chinese(body: str) -> float:
    letters = sum(map(str.isalnum, body))
    return len(IDEOGRAPH.findall(body)) / letters if letters else 0.0


def _copied(body: str, source: str) -> bool:
    grams = {body[i : i + 4] for i in range(len(body) - 3)}
    if grams and sum(gram in source for gram in grams) >= SHARED * len(grams):
        return True
    return TrainingText([source]).longest_match(body)[0] >= RUN
