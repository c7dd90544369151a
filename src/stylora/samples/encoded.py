"""One conversation in the base's words, or the reason why it cannot be learned from.

    conversation -> its answers in their form -> the paths of the template -> no longer than the limit

A longer one is refused, never cut. Knows no files and no other conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .answer_forms import in_form
from .chat import ChatFormat, Path
from .conversations import BadConversation, Conversation, Reject
from .settings import Data


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A conversation, its answers in the form that is learned, and its paths in the base's words.

    length: tokens of its sample, what its paths share counted once
    """

    conversation: Conversation
    paths: tuple[Path, ...]
    length: int


def encode(conversation: Conversation, form: ChatFormat, data: Data, limit: int) -> Encoded | Reject:
    """The conversation in tokens, or why it cannot be used."""
    try:
        conversation = in_form(conversation, data.answers, data.turns)
        paths = form.paths(conversation, data.turns)
    except BadConversation as error:
        return rejected(conversation, str(error))
    longest = max(len(path.ids) for path in paths)
    if longest > limit:
        return rejected(conversation, f"{longest} tokens, more than {limit}; an answer is never cut")
    length = longest if len(paths) == 1 else len(form.sample(paths))
    return Encoded(conversation=conversation, paths=tuple(paths), length=length)


def rejected(conversation: Conversation, reason: str) -> Reject:
    """A conversation that was read but cannot be learned from, in the form all of them have."""
    row: dict[str, Any] = {"messages": list(conversation.messages)}
    if conversation.tools:
        row["tools"] = conversation.tools
    return Reject(origin=conversation.origin, reason=reason, row=row)


def characters(encoded: Encoded) -> int:
    """Characters of the answers it teaches, stop tokens left out."""
    return sum(answer.characters for path in encoded.paths for answer in path.answers)
