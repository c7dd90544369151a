"""Rows of a trunk with its branches: files -> rows, or the reason why a row is none.

    texts       {"main": "...", "branches": ["..", {"prompt": "...", "answer": "..."}, {"text": "..", "answer_offset": 1}, {"text": "..."}]}
    no branch   {"text": "..."}                                             a text of its own, whose trunk is learned
    messages    {"main": [messages], "branches": [[messages], ...]}         a context, and questions with their answers about it

`prompt` is read and `answer` is learned; a text without an offset is learned whole. `answer_offset` counts the characters of `text` before
the answer. `content` may stand for `text`. Other keys of a row (`id`, `meta`, `questions`) say nothing here. A row that cannot be used is a
`Reject` with its file, its line and the reason; the rows after it still come. Knows no tokens, no templates and no layout, writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any

from stylora.corpus.clean import Cleaning
from stylora.corpus.document import FileReport
from stylora.corpus.intake import Intake
from stylora.corpus.read import find_files
from stylora.corpus.rows import HUB, hub_rows, json_rows
from stylora.corpus.rows import BadRow as Unparsed
from stylora.errors import UserError

from .conversations import SUFFIXES, UNUSABLE, BadConversation, Message, Reject, conversation

TEXTS = ("text", "content")  # names of a branch's text
KEYS = ("prompt", "answer", "text", "content", "answer_offset")
"""of a branch of text"""
EXPECTED = 'a text, {"prompt", "answer"}, {"text"} or {"text", "answer_offset"}'


class BadRow(ValueError):
    """A row that is no usable trunk with branches, and why, in one clause."""


@dataclass(frozen=True, kw_only=True)
class BranchText:
    """A branch of text. prompt: read and not learned, "" where the fork opens the branch; answer: learned, with a stop token behind it"""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Turns:
    """A branch of messages, the first of them a user's. weights: what each counts in the loss, 0 for all that are no answers"""

    messages: list[Message]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class BranchRow:
    """One usable row.

    main: the trunk, a text or messages in OpenAI's form; branches: all of the trunk's kind, in the row's order; none of a text alone
    origin: `rows.jsonl:17`; fingerprint: hex BLAKE2b-128 of all that is read of the row; trunk: the same of its main alone
    """

    main: str | list[Message]
    branches: tuple[BranchText | Turns, ...]
    origin: str
    fingerprint: str
    trunk: str


def read_branch_rows(
    paths: Sequence[str], *, reports: list[FileReport], leave_out: Iterable[Path] = (), progress: Callable[[int, int], None] | None = None
) -> Iterator[BranchRow | Reject]:
    """Every row of files, folders and hub datasets (`hf:owner/name[:split]`), in order, as a row or a reject.

    reports: gets one for each file, filled while it is read; leave_out: files passed over; progress: called with (bytes read, in all)
    Raises UserError for a bad path, at once.
    """
    left_out = {path.resolve() for path in leave_out}
    inputs: list[str | Path] = []
    for path in paths:
        inputs += [path] if path.startswith(HUB) else [file for file in branch_files(path) if file.resolve() not in left_out]
    return _all_rows(inputs, reports, progress or (lambda done, total: None))


def branch_files(path: str) -> list[Path]:
    """The JSONL and JSON files that a path names. Raises UserError where there is none."""
    files = [file for file in find_files([path]) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(path, got="no such file among them", expected="rows of main and branches in " + " or ".join(SUFFIXES))
    return files


def holds_branches(file: Path) -> bool:
    """Is the file's first readable row a trunk with branches?"""
    if file.suffix.lower() in SUFFIXES:
        for _, value in file_rows(file, FileReport(path=file.as_posix())):
            if isinstance(value, Mapping):
                return "main" in value or "branches" in value
    return False


def file_rows(file: Path, report: FileReport) -> Iterator[tuple[int, object]]:
    """(line or row number, what was parsed there) of JSONL or one JSON array, in whatever encoding. report: told how it was decoded"""
    with file.open("rb") as stream:
        yield from json_rows(decoded.text for _, decoded in Intake(Cleaning(), None).decoded_parts(stream, report))


def _all_rows(
    inputs: Sequence[str | Path], reports: list[FileReport], progress: Callable[[int, int], None]
) -> Iterator[BranchRow | Reject]:
    sizes = [item.stat().st_size if isinstance(item, Path) else 0 for item in inputs]
    for place, item in enumerate(inputs):
        if isinstance(item, Path):
            report = FileReport(path=item.as_posix(), n_bytes=sizes[place])
            rows: Iterable[tuple[int, object]] = file_rows(item, report)
        else:
            report = FileReport(path=item, encoding="utf-8", confidence=1.0, why="datasets")
            rows = hub_rows(item)
        reports.append(report)
        report.counts["rows"] = 0
        for number, value in rows:
            report.counts["rows"] += 1
            origin = f"{report.path}:{number}"
            try:
                yield parse_row(value, origin)
            except BadRow as error:
                yield Reject(origin=origin, reason=str(error), row=None if isinstance(value, Unparsed) else value)
            else:
                report.documents += 1
        progress(sum(sizes[: place + 1]), sum(sizes))


# ---------------------------------------------------------------------------------------------------------- one row


def parse_row(value: object, origin: str) -> BranchRow:
    """One parsed row. origin: `rows.jsonl:17`. Raises BadRow with the reason."""
    if isinstance(value, Unparsed):
        raise BadRow(value.reason)
    if not isinstance(value, Mapping):
        raise BadRow(f"{_kind(value)}, expected an object with `main` and `branches`")
    main = _main(value)
    if "main" not in value:
        branches: tuple[BranchText | Turns, ...] = ()
    elif isinstance(main, str):
        branches = tuple(_branch_text(number, raw) for number, raw in enumerate(_listed(value), 1))
    else:
        if value.get("tools"):
            raise BadRow("`tools`, which rows of branches have no place for")
        read = [_turns(number, main, raw, origin) for number, raw in enumerate(_listed(value), 1)]
        main, branches = read[0][0], tuple(turns for _, turns in read)
    return BranchRow(main=main, branches=branches, origin=origin, fingerprint=_hash([main, _plain(branches)]), trunk=_hash(main))


def _main(row: Mapping[str, Any]) -> str | list[Any]:
    """The trunk, not looked into where it is a list."""
    keys = [key for key in ("main", "text") if key in row]
    if len(keys) != 1:
        named = ", ".join(map(str, list(row)[:10])) or "(none)"
        raise BadRow("both `main` and `text`, expected one of them" if keys else f"no `main` among its keys {named}")
    key, main = keys[0], row[keys[0]]
    if key == "text" and (odd := next((name for name in ("branches", "answer_offset") if name in row), None)):
        raise BadRow(f"`{odd}` beside `text`, expected `main` with `branches`, or `text` alone")
    if not isinstance(main, str) and not (key == "main" and isinstance(main, list)):
        raise BadRow(f"`{key}` is {_kind(main)}, expected a text" + (" or a list of messages" if key == "main" else ""))
    if not main or (isinstance(main, str) and not main.strip()):
        raise BadRow(f"`{key}` is empty")
    return main


def _listed(row: Mapping[str, Any]) -> list[Any]:
    """The row's branches, not looked at yet."""
    branches = row.get("branches")
    if "branches" not in row:
        raise BadRow('no `branches` beside `main`; a text without branches is {"text": ...}')
    if not isinstance(branches, list):
        raise BadRow(f"`branches` is {_kind(branches)}, expected a list")
    if not branches:
        raise BadRow("`branches` is empty, expected at least one")
    return branches


def _branch_text(number: int, raw: object) -> BranchText:
    """A branch of a text, in any of its forms."""
    if isinstance(raw, str):
        raw = {"text": raw}
    if not isinstance(raw, Mapping):
        beside = "; messages go with a `main` of messages" if isinstance(raw, list) else ""
        raise BadRow(f"branch {number} is {_kind(raw)}, expected {EXPECTED}{beside}")
    for name in map(str, raw):  # other keys are for others, but this one is not what it was meant to be
        meant = get_close_matches(name, KEYS, n=1, cutoff=0.8)
        if meant and name not in KEYS:
            raise BadRow(f"branch {number} has the key `{name}`, expected {EXPECTED}; did you mean `{meant[0]}`?")
    key = next((name for name in TEXTS if name in raw), None)
    other = next((name for name in ("prompt", "answer") if name in raw), None)
    if key is not None and other is not None:  # one of them would be left out without a word
        raise BadRow(f"branch {number} has `{other}` beside `{key}`, expected {EXPECTED}")
    if "answer" in raw:
        prompt, answer = _text(number, raw, "prompt") if "prompt" in raw else "", _text(number, raw, "answer")
        what = "answer"
    else:
        if key is None:
            named = ", ".join(map(str, list(raw)[:10])) or "(none)"
            raise BadRow(f"branch {number} has the keys {named}, expected {EXPECTED}")
        text, what = _text(number, raw, key), key
        at = _offset(number, raw.get("answer_offset"), text)
        prompt, answer = text[:at], text[at:]
    if not answer.strip():
        empty = what == "answer" or prompt
        raise BadRow(f"branch {number} has an empty answer" if empty else f"branch {number} is empty")
    return BranchText(prompt=prompt, answer=answer)


def _text(number: int, raw: Mapping[str, Any], key: str) -> str:
    if not isinstance(raw[key], str):
        raise BadRow(f"`{key}` of branch {number} is {_kind(raw[key])}, expected a text")
    return raw[key]


def _offset(number: int, offset: object, text: str) -> int:
    """Characters before the answer; 0 where nobody said."""
    if offset is None:
        return 0
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise BadRow(f"`answer_offset` of branch {number} is {_kind(offset)}, expected a whole number of characters")
    if not 0 <= offset <= len(text):
        raise BadRow(f"`answer_offset` of branch {number} is {offset}, outside its text of {len(text)} characters")
    return offset


def _turns(number: int, main: list[Any], raw: object, origin: str) -> tuple[list[Message], Turns]:
    """The messages of main and of a branch, read as one conversation; what an assistant says in main is not what the branch teaches."""
    if not isinstance(raw, list) or not raw:
        raise BadRow(f"branch {number} is {_kind(raw)}, expected a list of messages, as `main` is" if raw else f"branch {number} is empty")
    read = [{**message, "weight": 0} if isinstance(message, Mapping) else message for message in main]
    try:
        whole = conversation({"messages": [*read, *raw]}, origin=origin, source="")
    except BadConversation as error:
        raise BadRow(f"main with branch {number}: {error}") from None
    at = len(main)
    if whole.messages[at]["role"] != "user":
        raise BadRow(f"branch {number} begins with a message of the role {whole.messages[at]['role']!r}, expected a user's")
    return list(whole.messages[:at]), Turns(messages=list(whole.messages[at:]), weights=whole.weights[at:])


def _plain(branches: Sequence[BranchText | Turns]) -> list[list[Any]]:
    return [[each.prompt, each.answer] if isinstance(each, BranchText) else [each.messages, each.weights] for each in branches]


def _hash(read: object) -> str:
    """Hash of what is read of a row. Raises BadRow where it holds what is no text."""
    whole = json.dumps(read, ensure_ascii=False, sort_keys=True)
    if found := UNUSABLE.search(whole):
        raise BadRow(f"the character U+{ord(found[0]):04X}, which is no text")
    return blake2b(whole.encode(), digest_size=16).hexdigest()


def _kind(value: object) -> str:
    """What a value is called in JSON; a list that is empty is `an empty list`."""
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    names: dict[type, str] = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "an object")
