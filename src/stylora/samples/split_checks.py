"""Does a split tell the truth? Questions with several answers, and held-out rows that were as good as learned.

    contradictions   the same messages, different answers: whatever a model says, it is wrong on some of them
    near copies      held-out questions that a training row of the same answer asks in almost the same words: "公交车是哪种车型？" held out,
                     "公交车是什么车型" learned. Many of them mean that the rows were made from fewer, and the split tore those apart

Two questions are nearly equal where they are equal without case, blanks, punctuation and digits, or where their normalised indel
similarity is at least 0.8 (`rapidfuzz.fuzz.ratio`). What all questions begin or end with is no likeness and left out; a question of
which nothing is left is like none. Compared are at most 500 held-out rows, drawn by the seed, fewer where that would take seconds, by
the first 200 characters of each. Knows no files, no templates and no tokens.
"""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os.path import commonprefix

import numpy as np
from rapidfuzz import fuzz, process

from .conversations import Conversation, learned_answers

SIMILAR = 80  # of 100, as `fuzz.ratio` counts
COMPARED = 500  # held-out rows at most, drawn by the seed
LEAST = 20  # ... and at least
WORK = 2_500_000  # pairs of texts of a machine word, about a second; the work grows with the square of their length
WORD = 64  # characters
LONGEST = 200  # characters of a question: what is alike in so many is alike
DROPPED = ("P", "Z", "C", "N")  # Unicode's punctuation, blanks, controls and numbers


def contradictions(rows: Sequence[Conversation]) -> list[tuple[str, ...]]:
    """For each question with different answers the rows that ask it, those of one answer together. Equal rows are no contradiction."""
    asked: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        question, answer = _question(row), answer_of(row)
        asked[question][answer].append(row.origin)
    return [tuple(origin for origins in said.values() for origin in origins) for said in asked.values() if len(said) > 1]


def near_copies(train: Sequence[Conversation], held: Sequence[Conversation], seed: int) -> tuple[int, int]:
    """(held-out rows that nearly equal a training row of the same answer, held-out rows compared)."""
    drawn = [held[i] for i in np.random.default_rng(seed).permutation(len(held))[:COMPARED].tolist()]
    texts = [text[:LONGEST] for text in without_frame(normalised([_last_question(row) for row in [*train, *drawn]]))]
    learned: dict[str, set[str]] = defaultdict(set)
    for row, text in zip(train, texts, strict=False):
        learned[answer_of(row)].add(text)
    asked: dict[str, list[str]] = defaultdict(list)
    words = -(-max(map(len, texts), default=0) // WORD)
    compared = work = 0
    for row, text in zip(drawn, texts[len(train) :], strict=True):
        work += len(learned[answer_of(row)]) * words**2
        if work > WORK and compared >= LEAST:
            break
        asked[answer_of(row)] += [text] if text else []
        compared += 1
    return sum(_near(questions, sorted(learned[answer])) for answer, questions in asked.items()), compared


def _near(questions: Sequence[str], known: Sequence[str]) -> int:
    """How many of the questions are nearly one of the known ones."""
    if not known:
        return 0
    alike = process.cdist(questions, known, scorer=fuzz.ratio, score_cutoff=SIMILAR, dtype=np.uint8, workers=1)
    return int(alike.any(axis=1).sum())


def normalised(texts: Sequence[str]) -> list[str]:
    """In Unicode's normal form KC, without case, blanks, punctuation and digits; with them where little else is left ("12+35")."""
    whole = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    dropped = {ord(character): None for character in set().union(*whole) if unicodedata.category(character)[0] in DROPPED}
    kept = [text.translate(dropped) for text in whole]
    return [short if 3 * len(short) >= len(text) else text for short, text in zip(kept, whole, strict=True)]


def without_frame(texts: Sequence[str]) -> list[str]:
    """The texts without what all of them begin and end with: an instruction says nothing about likeness."""
    start = len(commonprefix(texts))
    rest = [text[start:] for text in texts]
    end = len(commonprefix([text[::-1] for text in rest]))
    return [text[: len(text) - end] for text in rest]


def answer_of(row: Conversation) -> str:
    """The row's last answer that is learned, with its calls of tools, as one text."""
    (last,) = learned_answers(row, "last")
    return _text_of(row.messages[last])


def _question(row: Conversation) -> str:
    (last,) = learned_answers(row, "last")
    return json.dumps([row.messages[:last], row.tools], ensure_ascii=False, sort_keys=True)


def _last_question(row: Conversation) -> str:
    (last,) = learned_answers(row, "last")
    return next((message["content"] for message in reversed(row.messages[:last]) if message["role"] == "user"), "")


def _text_of(message: Mapping[str, object]) -> str:
    return json.dumps([message.get("content"), message.get("tool_calls")], ensure_ascii=False, sort_keys=True)
