"""Conversations that begin alike -> a trunk of what they share, and branches of what each goes on to ask.

    s c q1 a1       main s c      branches q1 a1 | q2 a2 | q3 a3 q4 a4          the same system prompt and context, several questions
    s c q2 a2
    s c q3 a3 q4 a4

What is shared ends before a question of the user: before the last one where others share all that stands above it, else before an earlier
one, as long as the user has said something above it. Many that share one system prompt are many rows. Knows no files, templates and tokens.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from .conversations import Conversation, Message

Shared = dict[str, list[tuple[Conversation, int]]]


def share_contexts(rows: Sequence[Conversation], *, least: int, most: int, left_out: Counter[str]) -> Iterator[dict[str, object]]:
    """Rows of `main` and `branches`, both of messages, in the order in which their contexts first came.

    least, most: branches of a row, most >= 2 x least - 1; more of one context become several rows of about equally many
    left_out: told what is none, and why
    """
    assert most >= 2 * least - 1, "else what is over `most` by one could not be parted into rows of `least`"
    waiting = list(_usable(rows, left_out))
    shared: Shared = {}
    for depth in range(max((len(cuts(row)) for row in waiting), default=0)):
        waiting = _gather(waiting, depth, shared, least)
    left_out["conversations that share no context"] += len(waiting)
    for gathered in shared.values():
        count = math.ceil(len(gathered) / most)
        for part in range(count):
            chosen = gathered[len(gathered) * part // count : len(gathered) * (part + 1) // count]
            first, at = chosen[0]
            yield {"main": list(first.messages[:at]), "branches": [_branch(row, cut) for row, cut in chosen]}


def cuts(row: Conversation) -> list[int]:
    """Where its context may end, the longest first: before the last question, or before one that is not the user's first message."""
    asked = [number for number, message in enumerate(row.messages) if message["role"] == "user"]
    return [at for at in reversed(asked) if at and (at == asked[-1] or at > asked[0])]


def _usable(rows: Sequence[Conversation], left_out: Counter[str]) -> Iterator[Conversation]:
    known: set[str] = set()
    for row in rows:
        if row.tools:
            left_out["conversations with tools"] += 1
        elif row.fingerprint in known:
            left_out["conversations that stand there twice"] += 1
        else:
            known.add(row.fingerprint)
            yield row


def _gather(waiting: Sequence[Conversation], depth: int, shared: Shared, least: int) -> list[Conversation]:
    """Put those together that share what stands above their cut of this depth; gives the others."""
    found: Shared = {}
    for row in waiting:
        places = cuts(row)
        if depth < len(places) and any(row.weights[places[depth] :]):
            key = json.dumps(row.messages[: places[depth]], ensure_ascii=False, sort_keys=True)
            found.setdefault(key, []).append((row, places[depth]))
    placed: set[str] = set()
    for key, group in found.items():
        if key in shared or len(group) >= least:
            shared.setdefault(key, []).extend(group)
            placed.update(row.fingerprint for row, _ in group)
    return [row for row in waiting if row.fingerprint not in placed]


def _branch(row: Conversation, at: int) -> list[Message]:
    """The messages behind the context; what an answer counts stands in it where it is not 1."""
    counted = zip(row.messages[at:], row.weights[at:], strict=True)
    return [{**message, "weight": weight} if message["role"] == "assistant" and weight != 1 else message for message, weight in counted]
