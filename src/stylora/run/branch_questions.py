"""What `stylora branches` is asked: a trunk and how each branch begins, from options or from rows of a file.

    {"main": "...", "branches": ["a prompt", {"prompt": "...", "max_new_tokens": 20, "seed": 1}, {"text": "the beginning of a branch"}]}
    {"main": [messages], "branches": [[messages], ...]}        questions about one context

Rows are those of training (samples/branch_rows.py): an `answer`, what stands behind `answer_offset`, and an assistant's last message are
not read, so held-out rows can be asked as they are. A row that cannot be asked is refused with its line, before anything is loaded. Other
keys of a row (`id`, `meta`) are kept. Knows no tokens and no models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stylora.corpus.document import FileReport
from stylora.corpus.rows import BadRow as Unparsed
from stylora.errors import UserError, did_you_mean
from stylora.samples.branch_rows import file_rows
from stylora.samples.branches import Begun, Opening
from stylora.samples.conversations import SUFFIXES, UNUSABLE, Message

KEYS = ("prompt", "answer", "text", "answer_offset", "max_new_tokens", "seed", "messages")
"""of a branch that is an object"""
FORMS = 'a prompt, {"prompt"}, {"text"}, {"text", "answer_offset"} or a list of messages'


@dataclass(frozen=True, kw_only=True)
class Asked:
    """main: the trunk; openings: how each branch begins; limits, seeds: of each, None for the common ones
    where: what named it, for messages; row: the fields it came with, none of options"""

    main: str | list[Message]
    openings: Sequence[Opening]
    limits: Sequence[int | None]
    seeds: Sequence[int | None]
    where: str
    row: Mapping[str, Any] = field(default_factory=dict)


def from_options(main: str, branches: Sequence[str], count: int | None, *, chat: bool) -> Asked:
    """chat: main is a system prompt, each branch a user's question. Raises UserError where there is nothing to ask, or too much."""
    if bool(branches) == (count is not None):
        got = "both" if branches else "neither"
        raise UserError("--branch, --count", got=got, expected="prompts, or how many branches without any", do="give one of them")
    if not main.strip():
        raise UserError("--main", got="an empty text", expected="what the branches have in common")
    if chat and count is not None:
        raise UserError("--count", got="a number, with --chat", expected="a question for each branch", do="give them with --branch")
    openings: list[Opening] = []
    for number, prompt in enumerate(branches, 1):
        if not prompt:
            expected = "a text; --count is for branches without a prompt"
            raise UserError("--branch", got=f"an empty prompt, as number {number}", expected=expected)
        openings.append([{"role": "user", "content": prompt}] if chat else prompt)
    openings += [""] * (count or 0)
    none = [None] * len(openings)
    return Asked(
        main=[{"role": "system", "content": main}] if chat else main, openings=openings, limits=none, seeds=none, where="--branch"
    )


def read_asked(path: Path) -> list[Asked]:
    """The rows of a file. Raises UserError for one that holds none, and for the first row that can't be asked, with its line."""
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        got = f"a file ending in {path.suffix or 'nothing'}" if path.is_file() else "no such file"
        raise UserError(str(path), got=got, expected="rows of main and branches in " + " or ".join(SUFFIXES))
    report = FileReport(path=path.as_posix())
    asked = [_asked(value, f"{path}:{number}") for number, value in file_rows(path, report)]
    if report.skipped is not None or not asked:
        raise UserError(str(path), got=f"no rows ({report.skipped})" if report.skipped else "no rows", expected="rows of main and branches")
    return asked


def _asked(row: object, where: str) -> Asked:
    if not isinstance(row, Mapping):
        got = f"what is no row ({row.reason})" if isinstance(row, Unparsed) else f"a row that is a {type(row).__name__}"
        raise UserError(where, got=got, expected='an object, {"main": ..., "branches": [...]}')
    main, branches = row.get("main"), row.get("branches")
    if "main" not in row or "branches" not in row:
        missing = "main" if "main" not in row else "branches"
        got = "a text without branches, which asks nothing" if "text" in row else f"no `{missing}`"
        raise UserError(where, got=got, expected="`main` and `branches`", do=f"its keys are {', '.join(map(str, row))}" if row else "")
    if not isinstance(main, str | list) or not main or (isinstance(main, str) and not main.strip()):
        got = "an empty `main`" if isinstance(main, str | list) else f"`main` that is {main!r}"
        raise UserError(where, got=got, expected="a text or a list of messages")
    if not isinstance(branches, list) or not branches:
        got = "no branches" if branches == [] else "`branches`, which is no list"
        raise UserError(where, got=got, expected="a list of at least one")
    if UNUSABLE.search(_text_of(row)):
        raise UserError(where, got="a character that is no text", expected="text", do="take it out")
    read = [_branch(branch, f"{where}, branch {number}") for number, branch in enumerate(branches, 1)]
    return Asked(
        main=main if isinstance(main, str) else _messages(main, f"{where}, main"), openings=[each[0] for each in read],
        limits=[each[1] for each in read], seeds=[each[2] for each in read], where=where, row=row,
    )  # fmt: skip


def _text_of(value: Any) -> str:
    """Every text in a parsed row, one behind the other."""
    if isinstance(value, Mapping):
        return "".join(map(_text_of, value.values()))
    return "".join(map(_text_of, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def _branch(raw: object, where: str) -> tuple[Opening, int | None, int | None]:
    """(how it begins, its limit, its seed)"""
    if isinstance(raw, str):
        raw = {"prompt": raw}
    elif isinstance(raw, list):
        raw = {"messages": raw}
    if not isinstance(raw, Mapping):
        raise UserError(where, got=repr(raw), expected=FORMS)
    unknown = next((str(key) for key in raw if key not in KEYS), None)
    if unknown is not None:
        raise UserError(where, got=f"an unknown key `{unknown}`", expected=FORMS, do=did_you_mean(unknown, KEYS))
    ways = [key for key in ("prompt", "text", "messages") if key in raw]
    if len(ways) > 1 or (not ways and "answer" not in raw):
        raise UserError(where, got=" and ".join(ways) or "no beginning", expected=FORMS)
    return _opening(raw, ways[0] if ways else None, where), _number(raw, "max_new_tokens", 1, where), _number(raw, "seed", 0, where)


def _opening(raw: Mapping[str, Any], way: str | None, where: str) -> Opening:
    if way is None:  # an answer alone: opened by the fork
        return ""
    value = raw[way]
    if way == "messages":
        messages = _messages(value, where)
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if not asked or asked[-1]["role"] == "assistant":
            raise UserError(where, got="no question", expected="messages up to a user's")
        return asked
    if not isinstance(value, str):
        raise UserError(where, got=f"`{way}` that is {value!r}", expected="a text")
    offset = raw.get("answer_offset")
    if offset is None:
        return Begun(text=value) if way == "text" and value else value  # nothing behind the fork is the fork alone
    if way != "text" or isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset <= len(value):
        raise UserError(where, got=f"`answer_offset` {offset!r}", expected="a number of characters of its `text`")
    return value[:offset]


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(where, got=repr(value)[:40], expected="a list of messages")
    for message in value:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(where, got=repr(message)[:40], expected='messages, {"role": ..., "content": ...}')
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _number(raw: Mapping[str, Any], key: str, least: int, where: str) -> int | None:
    value = raw.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return value
    raise UserError(where, got=f"`{key}` {value!r}", expected=f"a whole number from {least}")
