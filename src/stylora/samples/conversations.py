"""Rows of many shapes -> conversations of one form: OpenAI's `messages`, as chat templates read them.

    OpenAI              {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "tools": [...]}
    ShareGPT            {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], "system": "", "tools": "[]"}
    Alpaca              {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}
    prompt/completion   {"prompt": "...", "completion": "..."}, each a text or a list of messages

A message may carry a `weight`: what it counts in the loss. A row may carry a `group` (or a key of another name): what it was made from,
so that a split keeps together what belongs together. A row that is none of these, or teaches nothing, is a `Reject` with its
file, its line and the reason; the rows after it still come. Knows no templates and no tokens, writes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from stylora.corpus.clean import Cleaning
from stylora.corpus.document import FileReport
from stylora.corpus.intake import Intake
from stylora.corpus.read import find_files
from stylora.corpus.rows import HUB, BadRow, hub_rows, json_rows
from stylora.errors import UserError

SUFFIXES = (".jsonl", ".json")
SHAPES = ("messages", "conversations", "instruction", "prompt")
GROUP = "group"  # key of a row that names its group, where nobody says another
ROLES = {
    **dict.fromkeys(["system", "sys", "developer"], "system"), **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "bot", "model", "chatgpt"], "assistant"),
    **dict.fromkeys(["tool", "function", "observation", "tool_response", "function_response", "ipython"], "tool"),
    **dict.fromkeys(["function_call", "tool_call"], "function_call"),
}  # fmt: skip
"""what rows call a speaker -> what templates call it; `function_call` is an assistant that calls a tool"""
UNUSABLE = re.compile("[\ud800-\udfff\ufdd0-\ufdd3]")
"""Halves of a character, which no tokenizer takes, and four characters that Unicode gives to programs and `template.py` uses as marks."""

Message = dict[str, Any]


class BadConversation(ValueError):
    """A row that is no usable conversation, and why, in one clause."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One usable row.

    messages: in OpenAI's form; a message has a `role` and what else the template may read, and no value is None
    weights: what each message counts in the loss; 0 for all that are no answers
    tools: descriptions of functions, as the row has them; None for none
    origin: `rows.jsonl:17`; source: the file's name without its ending
    fingerprint: hex BLAKE2b-128 of all that is learned of the row, so that equal rows have equal ones, whatever their group
    group: what the row was made from, such as an alias: rows of one group lie on one side of a split; None where the row has none
    """

    messages: tuple[Message, ...]
    weights: tuple[float, ...]
    tools: list[Any] | None
    origin: str
    source: str
    fingerprint: str
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that cannot be used. origin: `rows.jsonl:17`; row: as it was parsed, None where it could not be"""

    origin: str
    reason: str
    row: object

    def as_json(self) -> dict[str, object]:
        """A line of a rejects file."""
        return {"where": self.origin, "reason": self.reason, "row": self.row}


def read_conversations(
    paths: Sequence[str], *, reports: list[FileReport], leave_out: Iterable[Path] = (), group_by: str = GROUP,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Conversation | Reject]:
    """Every row of files, folders and hub datasets (`hf:owner/name[:split]`), in order, as a conversation or a reject.

    reports: gets one for each file, filled while it is read; leave_out: files passed over; group_by: key of the rows that names
    their group; progress: called with (bytes read, in all). Raises UserError for a bad path, at once.
    """
    left_out = {path.resolve() for path in leave_out}
    inputs: list[str | Path] = []
    for path in paths:
        inputs += [path] if path.startswith(HUB) else [file for file in row_files(path) if file.resolve() not in left_out]
    return _conversations(inputs, reports, group_by, progress or (lambda done, total: None))


def row_files(path: str) -> list[Path]:
    """The JSONL and JSON files that a path names. Raises UserError where there is none."""
    files = [file for file in find_files([path]) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(path, got="no such file among them", expected="conversations in " + " or ".join(SUFFIXES))
    return files


def holds_conversations(file: Path) -> bool:
    """Does the file's first readable row look like a conversation?"""
    if file.suffix.lower() not in SUFFIXES:
        return False
    with file.open("rb") as stream:
        for _, row in _rows(stream, FileReport(path=file.as_posix())):
            if isinstance(row, Mapping):
                return any(name in row for name in SHAPES) and "text" not in row
    return False


def conversation(row: object, *, origin: str, source: str, group_by: str = GROUP) -> Conversation:
    """One parsed row. group_by: its key that names its group. Raises BadConversation."""
    if isinstance(row, BadRow):
        raise BadConversation(row.reason)
    if not isinstance(row, Mapping):
        raise BadConversation(f"no object; expected one with {', '.join(SHAPES)}")
    tools = _tools(row.get("tools"))
    read = [_message(number, raw) for number, raw in enumerate(_raw_messages(row), 1)]
    messages, weights = tuple(message for message, _ in read), tuple(weight for _, weight in read)
    _refuse_useless(messages, weights)
    return Conversation(
        messages=messages, weights=weights, tools=tools, origin=origin, source=source, fingerprint=_fingerprint(messages, weights, tools),
        group=_group(row.get(group_by)),
    )  # fmt: skip


def learned_answers(conversation: Conversation, turns: Literal["all", "last"]) -> list[int]:
    """Numbers of the messages that are learned: answers of a weight, to something that was said before; of `last` the last of them."""
    learned = [number for number, weight in enumerate(conversation.weights) if weight and number]
    return learned if turns == "all" else learned[-1:]


def with_contents(conversation: Conversation, contents: Mapping[int, str]) -> Conversation:
    """The conversation with other texts in some messages. Raises BadConversation where one holds what is no text."""
    messages = tuple(
        {**message, "content": contents[number]} if number in contents else message for number, message in enumerate(conversation.messages)
    )
    fingerprint = _fingerprint(messages, conversation.weights, conversation.tools)
    return replace(conversation, messages=messages, fingerprint=fingerprint)


# ------------------------------------------------------------------------------------------------------------- files


def _conversations(
    inputs: Sequence[str | Path], reports: list[FileReport], group_by: str, progress: Callable[[int, int], None]
) -> Iterator[Conversation | Reject]:
    sizes = [item.stat().st_size if isinstance(item, Path) else 0 for item in inputs]
    for place, item in enumerate(inputs):
        report = FileReport(path=item.as_posix() if isinstance(item, Path) else item, n_bytes=sizes[place])
        reports.append(report)
        if isinstance(item, Path):
            with item.open("rb") as stream:
                yield from _converted(_rows(stream, report), report, item.stem, group_by)
        else:
            report.encoding, report.confidence, report.why = "utf-8", 1.0, "datasets"
            yield from _converted(hub_rows(item), report, item.removeprefix(HUB), group_by)
        progress(sum(sizes[: place + 1]), sum(sizes))


def _rows(stream: Any, report: FileReport) -> Iterable[tuple[int, object]]:
    """The rows of a JSONL file or of one JSON array, in whatever encoding."""
    intake = Intake(Cleaning(), None)
    return json_rows(decoded.text for _, decoded in intake.decoded_parts(stream, report))


def _converted(
    rows: Iterable[tuple[int, object]], report: FileReport, source: str, group_by: str
) -> Iterator[Conversation | Reject]:
    for number, row in rows:
        origin = f"{report.path}:{number}"
        report.counts["rows"] = report.counts.get("rows", 0) + 1
        try:
            yield conversation(row, origin=origin, source=source, group_by=group_by)
        except BadConversation as error:
            yield Reject(origin=origin, reason=str(error), row=None if isinstance(row, BadRow) else row)
        else:
            report.documents += 1


# ---------------------------------------------------------------------------------------------------------- one row


def _raw_messages(row: Mapping[str, Any]) -> list[Any]:
    """The row's messages in order, not looked at yet."""
    shape = next((name for name in SHAPES if name in row), None)
    if shape is None:
        raise BadConversation(f"none of {', '.join(SHAPES)} among its keys {', '.join(map(str, list(row)[:10])) or '(none)'}")
    if shape in ("messages", "conversations"):
        messages = row[shape]
        if not isinstance(messages, list) or not messages:
            raise BadConversation(f"`{shape}` is no list of messages" if messages else f"`{shape}` is empty")
    elif shape == "instruction":
        messages = _alpaca(row)
    else:
        messages = _prompt_and_completion(row)
    system = row.get("system")
    has_one = isinstance(messages[0], Mapping) and ROLES.get(str(messages[0].get("role", messages[0].get("from")))) == "system"
    if isinstance(system, str) and system and not has_one:
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _alpaca(row: Mapping[str, Any]) -> list[Any]:
    if "output" not in row:
        raise BadConversation("`instruction` without `output`")
    messages: list[Any] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadConversation("`history` is no list of [question, answer]")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = row["instruction"]
    if row.get("input"):
        asked = f"{asked}\n{row['input']}" if asked else row["input"]
    return [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]


def _prompt_and_completion(row: Mapping[str, Any]) -> list[Any]:
    if "completion" not in row:
        raise BadConversation("`prompt` without `completion`")
    prompt, completion = row["prompt"], row["completion"]
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    said = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    # What an assistant says in the prompt is not what this row is to teach.
    return [{"weight": 0, **message} if isinstance(message, Mapping) else message for message in asked] + said


def _message(number: int, raw: object) -> tuple[Message, float]:
    """A message in OpenAI's form, and its weight."""
    if not isinstance(raw, Mapping):
        raise BadConversation(f"message {number} is no object")
    said = raw.get("role", raw.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise BadConversation(f"message {number} has the unknown role {said!r}")
    others = {k: v for k, v in raw.items() if k not in ("role", "from", "content", "value", "weight") and v is not None}
    content = _content(number, raw.get("content", raw.get("value")))
    if role == "function_call":
        role, others["tool_calls"], content = "assistant", _called(number, content), None
    elif "tool_calls" in others:
        others["tool_calls"] = [_tool_call(number, call) for call in _listed(number, others["tool_calls"])]
    if not others.get("tool_calls"):
        others.pop("tool_calls", None)
    if content is None and (role != "assistant" or "tool_calls" not in others):
        raise BadConversation(f"message {number} has no content")
    if role == "assistant" and not (content or "").strip() and "tool_calls" not in others:
        raise BadConversation(f"message {number} is an empty answer")
    message = {"role": role, **({} if content is None else {"content": content}), **others}
    return message, _weight(number, role, raw.get("weight"))


def _content(number: int, content: object) -> str | None:
    """The text of a message; of a list of parts, that of its text parts, which must be all."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadConversation(f"the content of message {number} is {type(content).__name__}, expected text")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise BadConversation(f"message {number} has a part that is no text")
        texts.append(text)
    return "".join(texts)


def _called(number: int, content: str | None) -> list[Message]:
    """The calls that a ShareGPT `function_call` writes as JSON: one object, or a list of them."""
    try:
        calls = json.loads(content or "")
    except json.JSONDecodeError:
        raise BadConversation(f"message {number} is a function call that is no JSON") from None
    return [_tool_call(number, call) for call in (calls if isinstance(calls, list) else [calls])]


def _tool_call(number: int, call: object) -> Message:
    """A call as templates read it: `{"type": "function", "function": {"name", "arguments": an object}}`, with its id if it has one.

    OpenAI writes the arguments as a string of JSON, which templates would quote once more.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadConversation(f"message {number} has a tool call without a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            raise BadConversation(f"message {number} has a tool call whose arguments are no JSON") from None
    rest = {key: value for key, value in call.items() if key == "id"}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}, **rest}


def _listed(number: int, calls: object) -> list[Any]:
    if not isinstance(calls, list):
        raise BadConversation(f"the tool calls of message {number} are no list")
    return calls


def _weight(number: int, role: str, weight: object) -> float:
    """What a message counts; 1 for an answer where nobody said."""
    if weight is None:
        return float(role == "assistant")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise BadConversation(f"message {number} has the weight {weight!r}, expected a number of at least 0")
    if role != "assistant" and weight:
        raise BadConversation(f"message {number} has a weight but is no answer; only answers are learned")
    return float(weight)


def _tools(tools: object) -> list[Any] | None:
    """Descriptions of tools, given as a list or as the JSON of one; None where there are none."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError:
            raise BadConversation("`tools` is no JSON") from None
    if not tools or isinstance(tools, str):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadConversation("`tools` is no list of objects")
    return tools


def _group(value: object) -> str | None:
    """The name of a row's group: a text as it stands, anything else as JSON; None where the row has none."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _fingerprint(messages: Sequence[Message], weights: Sequence[float], tools: list[Any] | None) -> str:
    """Hash of all that is learned of a row. Raises BadConversation where it holds what is no text."""
    whole = json.dumps([messages, weights, tools], ensure_ascii=False, sort_keys=True)
    if found := UNUSABLE.search(whole):
        raise BadConversation(f"the character U+{ord(found[0]):04X}, which is no text")
    return blake2b(whole.encode(), digest_size=16).hexdigest()


def _refuse_useless(messages: Sequence[Message], weights: Sequence[float]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadConversation("no answer")
    if "user" not in roles:
        raise BadConversation("no message of a user")
    if not any(weights):
        raise BadConversation("every answer has the weight 0")
