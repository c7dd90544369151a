"""A chat template, rendered as transformers renders it, with notes on who wrote what.

    messages -> text        <|im_start|>user\\n写诗<|im_end|>\\n<|im_start|>assistant\\n好<|im_end|>\\n
    quoted                  where the MESSAGES wrote what is a special token of the tokenizer: such text must not become one
    blocks                  where the template says `{% generation %}`: what the model itself would write

The environment is that of transformers' `utils/chat_template_utils.py` (Apache-2.0): same filters, same globals, same sandbox; its module
is not imported because samples do without transformers. `tests/samples/test_chat.py` holds the two against each other. Both notes are
kept by marks, characters that Unicode reserves for programs, which are taken out again.

Knows no tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stylora.errors import UserError

from .conversations import BadConversation, Message

QUOTE, UNQUOTE, BLOCK, UNBLOCK = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
MARKS = re.compile(f"[{QUOTE}{UNQUOTE}{BLOCK}{UNBLOCK}]")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that rows give it; templates read the first, gpt-oss the second
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a template raises on purpose, and what its expressions raise on messages it was not made for."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """text: without marks; quoted, blocks: half-open ranges of it, in order"""

    text: str
    quoted: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A chat template, compiled.

    source: in Jinja; special: the tokens that may not come from messages; variables: what it may read besides messages and tools,
    as `bos_token` and `enable_thinking`. Raises UserError for a template that does not parse.
    """

    def __init__(self, source: str, *, special: Sequence[str], variables: dict[str, Any]) -> None:
        self.variables = variables
        self.has_blocks = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        longest_first = sorted((token for token in special if token), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError("base", got=f"a chat template that does not parse ({error})", expected="a template in Jinja") from error

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, *, opened: bool = False) -> Rendered:
        """What the template makes of them. opened: and then the beginning of an answer. Raises BadConversation where it refuses."""
        try:
            marked = self._template.render(
                messages=[self._quoted(_reasoning_named(message)) for message in messages], tools=self._quoted(tools), documents=None,
                add_generation_prompt=opened, **self.variables,
            )  # fmt: skip
        except TEMPLATE_ERRORS as error:
            raise BadConversation(f"the chat template refuses it: {error}") from error
        return _unmarked(marked)

    def _quoted(self, value: Any) -> Any:
        """The same value with every special token in its strings marked."""
        if isinstance(value, str):
            return self.special.sub(f"{QUOTE}\\g<0>{UNQUOTE}", value)
        if isinstance(value, dict):
            return {key: item if key == "role" else self._quoted(item) for key, item in value.items()}
        return [self._quoted(item) for item in value] if isinstance(value, list | tuple) else value

    def own_specials(self, rendered: Rendered) -> list[re.Match[str]]:
        """The special tokens in it that the template wrote."""
        quoted = set(rendered.quoted)
        return [match for match in self.special.finditer(rendered.text) if match.span() not in quoted]


def _reasoning_named(message: Message) -> Message:
    """With what the row calls reasoning under the names that templates read."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _unmarked(marked: str) -> Rendered:
    """The text without marks, and where they were."""
    pieces: list[str] = []
    length, begun = 0, {QUOTE: -1, BLOCK: -1}
    ranges: dict[str, list[tuple[int, int]]] = {QUOTE: [], BLOCK: []}
    at = 0
    for mark in MARKS.finditer(marked):
        pieces.append(marked[at : mark.start()])
        length, at = length + mark.start() - at, mark.end()
        opening = {UNQUOTE: QUOTE, UNBLOCK: BLOCK}.get(mark[0])
        if opening is None:
            begun[mark[0]] = length
        elif begun[opening] >= 0:
            ranges[opening].append((begun[opening], length))
            begun[opening] = -1
    text = "".join([*pieces, marked[at:]])
    return Rendered(text=text, quoted=tuple(ranges[QUOTE]), blocks=tuple(ranges[BLOCK]))


# ------------------------------------------------------------------------------------------- as transformers renders


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: its contents, between marks, in a scope of their own."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        around = [nodes.Output([nodes.TemplateData(mark)]) for mark in (BLOCK, UNBLOCK)]
        return nodes.Scope([around[0], *body, around[1]]).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    functions: dict[str, Callable[..., Any]] = {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    environment.globals.update(functions)
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
