"""What an answer is: any text, one label of a closed set, or JSON in one canonical form.

    text    as the row has it
    label   " Transit Bus\\n"              ->  "Transit Bus"
    json    '{"b": 1,"a":{"d":2, "c":3}}'  ->  '{"a": {"c": 3, "d": 2}, "b": 1}'

JSON whose keys stand in an order of chance teaches that order, which nothing tells: a loss that no training removes. So keys are sorted,
blanks are those of `json.dumps`, and characters stand as themselves. Lists keep their order, it may mean something.

Rewrites only what is learned: neither prompts nor answers of weight 0, nor answers that call tools. Knows no templates and no tokens.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from .conversations import BadConversation, Conversation, learned_answers, with_contents

Answers = Literal["text", "label", "json"]


def in_form(conversation: Conversation, answers: Answers, turns: Literal["all", "last"]) -> Conversation:
    """The conversation with every answer that is learned in its form. Raises BadConversation where one has another."""
    if answers == "text":
        return conversation
    contents = {}
    for number in learned_answers(conversation, turns):
        message = conversation.messages[number]
        if message.get("tool_calls"):
            continue
        if answers == "label":
            contents[number] = message["content"].strip()
            continue
        try:
            contents[number] = canonical_json(message["content"])
        except ValueError as error:
            raise BadConversation(f"the answer of message {number + 1} is no JSON: {error}") from None
    return with_contents(conversation, contents)


def canonical_json(text: str) -> str:
    """The same JSON with sorted keys, numbers as Python writes them: 10.50 is 10.5.

    Raises ValueError: no JSON, one key twice in an object, a number that JSON cannot write, or whose value would change.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_kept, parse_constant=_no_constant)
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


def _kept(digits: str) -> float:
    """The number, where it is written as the same one again."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large a number")
    try:
        same = Decimal(digits) == Decimal(repr(value))
    except InvalidOperation:  # an exponent of more than 18 digits
        same = False
    if not same:
        raise ValueError(f"{digits} would become {value!r}, which is all that a 64-bit number holds of it; round it, or quote it as text")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
