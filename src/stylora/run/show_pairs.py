"""What `stylora data pairs` prints at the end: how many pairs, from what, and why the others are none. Reads nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def show(summary: dict[str, Any], console: Console) -> None:
    """A line for each figure."""
    asked, pairs = summary["asked"], summary["pairs"]
    there = f", {summary['there_already']:,} there already" if summary["there_already"] else ""
    lines = [
        ("passages", f"{summary['passages']:,} in {summary['books']:,} book{'s' * (summary['books'] != 1)}"),
        ("asked", f"{asked:,}{there}"),
        ("pairs", f"{pairs:,} ({pairs / asked:.1%} of those asked)"),
    ]
    if summary["rejected"]:
        lines.append(("refused", ", ".join(f"{number:,} {reason}" for reason, number in summary["rejected"].items())))
    if summary["passages_per_second"] is not None:
        lines.append(("speed", f"{summary['passages_per_second']:,.2f} passages/s"))
    lines += [("skipped", f"{path}: {reason}") for path, reason in summary["skipped"].items()]
    if summary["undecoded"]:
        lines.append(("warning", f"bytes that are no text in {summary['undecoded']:,} places; passages with them are left out"))
    if 2 * pairs < asked:
        lines.append(("warning", "most paraphrases were refused, and the others may say something else: read some, or take a larger model"))
    for name, told in [*lines, ("written", summary["output"])]:
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)
