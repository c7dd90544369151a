"""`stylora data branches`: rows of trunks and branches, made from conversations that share a context and from documents with sections.

    chat rows     equal leading messages are the trunk, what each goes on to ask and is answered are the branches: samples/shared_context.py
    documents     headings, statutes and their lists, chapters and their sections: samples/sections.py

What a file is shows in its first row: conversations, or documents. Every row is read as training reads it before anything is written; what
gives none is counted with the reason. Written whole or not at all. Imports no torch and opens no model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora.corpus.clean import Cleaning
from stylora.corpus.document import FileReport
from stylora.corpus.read import find_files, read_documents
from stylora.corpus.rows import HUB
from stylora.errors import UserError
from stylora.samples.branch_rows import BadRow, holds_branches, parse_row
from stylora.samples.conversations import Conversation, Reject, holds_conversations, read_conversations
from stylora.samples.sections import sectioned
from stylora.samples.shared_context import share_contexts

from .folder import write_text

LAYOUT = Cleaning(blanks=False, adverts=False, unwrap=False, near_duplicates=False)
"""Only what files did to the text: indentation and repeated lines belong to lists and code."""
_ROW = re.compile(r":\d+$")  # of a document's origin: it is a row of a table
Made = tuple[str, str, dict[str, Any]]  # (kind, origin, row)


def make_branches(
    inputs: Sequence[str], output: Path, *, least: int = 2, most: int = 8, longest: int = 1500, force: bool = False
) -> dict[str, Any]:
    """Write rows of branches to `output`, JSONL; tells what `show` prints.

    least: branches of a row; most: of a row of messages; longest: characters of a section that may be a branch; force: replace `output`
    Raises UserError for a bad path or output, and where nothing can be made.
    """
    _check(inputs, output, least, most, force)
    left_out: Counter[str] = Counter()
    reports: list[FileReport] = []
    talks, texts = _sorted_out(inputs, output, left_out)
    made: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind, origin, row in [
        *_from_talks(talks, least, most, reports, left_out), *_from_texts(texts, least, longest, reports, left_out)
    ]:  # fmt: skip
        try:
            known = parse_row(row, origin).fingerprint
        except BadRow as error:
            left_out[f"rows that training would refuse: {error}"] += 1
            continue
        left_out["rows that stand there twice"] += known in made
        made.setdefault(known, (kind, row))
    left_out = +left_out  # without zeros
    if not made:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out.most_common(3)) or "nothing in them"
        expected = "conversations that share a context, or documents with headings, lists （一）（二） or sections"
        raise UserError(", ".join(inputs), got=f"nothing to make branches of ({reasons})", expected=expected)
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row in made.values()))
    return {
        "output": str(output), "rows": len(made), "branches": sum(len(row["branches"]) for _, row in made.values()),
        "kinds": dict(Counter(kind for kind, _ in made.values()).most_common()), "left_out": dict(left_out.most_common()),
        "files": len(reports), "skipped": {report.path: report.skipped for report in reports if report.skipped is not None},
    }  # fmt: skip


def show(summary: dict[str, Any], console: Console) -> None:
    """A line for each figure."""
    of = ", ".join(f"{count:,} from {kind}" for kind, count in summary["kinds"].items())
    lines = [("files", f"{summary['files']:,}"), ("rows", f"{summary['rows']:,} with {summary['branches']:,} branches ({of})")]
    lines += [("left out", f"{count:,} {reason}") for reason, count in summary["left_out"].items()]
    lines += [("skipped", f"{path}: {reason}") for path, reason in summary["skipped"].items()]
    for name, told in [*lines, ("written", summary["output"])]:
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)


def _check(inputs: Sequence[str], output: Path, least: int, most: int, force: bool) -> None:
    if 2 * least - 1 > most:  # one more than the most could not be parted into two rows
        expected = f"at most {(most + 1) // 2}, about half of --max-branches, {most}"
        raise UserError("--min-branches", got=str(least), expected=expected, do="raise --max-branches, too")
    if output.suffix.lower() != ".jsonl" or output.is_dir() or not output.parent.is_dir():
        raise UserError("--output", got=str(output), expected="a .jsonl file in a folder that is there")
    if output.exists() and not force:
        raise UserError("--output", got=f"{output}, which is there already", expected="a new file", do="give --force to replace it")


def _sorted_out(inputs: Sequence[str], output: Path, left_out: Counter[str]) -> tuple[list[str], list[str]]:
    """Files of conversations, and all others; one that is to be replaced, and one that holds branches, is not read."""
    talks: list[str] = []
    texts = [path for path in inputs if path.startswith(HUB)]
    for file in find_files([path for path in inputs if not path.startswith(HUB)]):
        if file.resolve() == output.resolve():
            continue
        if holds_branches(file):
            left_out["files of main and branches, which are trained on as they are"] += 1
            continue
        (talks if holds_conversations(file) else texts).append(str(file))
    return talks, texts


def _from_talks(
    files: Sequence[str], least: int, most: int, reports: list[FileReport], left_out: Counter[str]
) -> Iterator[Made]:
    """Of the conversations of all files together."""
    rows: list[Conversation] = []
    for row in read_conversations(files, reports=reports):
        if isinstance(row, Reject):
            left_out[f"rows: {row.reason}"] += 1
        else:
            rows.append(row)
    for made in share_contexts(rows, least=least, most=most, left_out=left_out):
        yield "messages", "messages", made


def _from_texts(
    files: Sequence[str], least: int, longest: int, reports: list[FileReport], left_out: Counter[str]
) -> Iterator[Made]:
    if not files:
        return
    for document in read_documents(files, LAYOUT, reports=reports):
        title = "" if _ROW.search(document.origin) else document.source
        for each in sectioned(document.text, title, least=least, longest=longest, left_out=left_out):
            yield each.kind, document.origin, {"main": each.main, "branches": list(each.branches), "source": document.source}
    for report in reports:
        for _, reason in report.bad_rows:
            left_out[f"rows: {reason}"] += 1
