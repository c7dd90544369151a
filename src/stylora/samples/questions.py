"""Conversations up to an answer: what a model is asked, and what it should say.

    conversation     s u1 a1 u2 a2              question     s u1 a1 u2 <a>        expected    a2

The tokens are those before the words of the answer in training, by the same template (chat.py). Where rows come with reasoning, the
question ends before it, and the answer is what stands behind it. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chat import ChatFormat
from .conversations import BadConversation, Conversation, Message
from .template import REASONING

THOUGHT = "</think>"


@dataclass(frozen=True, kw_only=True)
class Question:
    """ids: int32 [T], up to the opened answer; input: the last message before it; expected: the answer, None where nobody gave one

    origin: file and line; messages, tools: what the ids were made of
    """

    origin: str
    ids: np.ndarray
    input: str
    expected: str | None
    messages: tuple[Message, ...]
    tools: list[Any] | None


def last_answer(conversation: Conversation) -> int | None:
    """The number of the last message that is learned; None where that calls a tool instead of saying something."""
    number = max(number for number, weight in enumerate(conversation.weights) if weight)
    message = conversation.messages[number]
    return None if message.get("tool_calls") or message.get("content") is None else number


def reasons(message: Message) -> bool:
    """Does the answer come with what was thought before it?"""
    return THOUGHT in (message.get("content") or "") or any(message.get(name) for name in REASONING)


def said(text: str) -> str:
    """An answer without the reasoning before it and the blanks around it."""
    return text.rpartition(THOUGHT)[2].strip()


def question_of(conversation: Conversation, form: ChatFormat) -> Question | None:
    """The conversation up to its last answer that is learned; None where that calls a tool."""
    number = last_answer(conversation)
    if number is None:
        return None
    answer = conversation.messages[number]
    asked = ask(
        conversation.messages[:number], form, tools=conversation.tools, origin=conversation.origin, reasoning=reasons(answer)
    )
    return Question(**{**vars(asked), "expected": said(answer["content"])})


def ask(
    messages: Sequence[Message], form: ChatFormat, *, tools: list[Any] | None = None, origin: str = "", reasoning: bool = False
) -> Question:
    """A question of these messages, the last of them the input. Raises BadConversation where the template refuses them."""
    ids, _ = form.encode(form.asked(messages, tools, reasoning=reasoning))
    told = messages[-1].get("content") or ""
    return Question(origin=origin, ids=ids, input=told, expected=None, messages=tuple(messages), tools=tools)


def answer_ids(question: Question, answer: str, form: ChatFormat) -> np.ndarray:
    """int32 [A]: the tokens that stand behind the question where `answer` is given, the stop token included.

    Raises BadConversation where the template writes the question anew once it is answered.
    """
    messages = (*question.messages, {"role": "assistant", "content": answer})
    weights = (*[0.0] * len(question.messages), 1.0)
    given = Conversation(messages=messages, weights=weights, tools=question.tools, origin=question.origin, source="", fingerprint="")
    (path,) = form.paths(given, "last")
    (learned,) = path.answers
    if not np.array_equal(path.ids[: len(question.ids)], question.ids):
        raise BadConversation("the chat template writes the question anew once it is answered")
    ids = path.ids[len(question.ids) : learned.targets[-1] + 1]
    return ids if learned.stop else np.append(ids, np.int32(form.end_of_text or 0))
