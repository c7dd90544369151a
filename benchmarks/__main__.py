"""`python -m benchmarks NAME [--quick] [--json] [--out FILE]`: one comparison, every contender in the same run.

A comparison is a module with `run(options)`, which returns {"settings", "rows", "ratios"} and perhaps "notes", and where it has flags of
its own `arguments(parser)`. Only the one asked for is imported. Linux only: the memory of a process is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from stylora.errors import UserError

from . import report

COMPARISONS = {
    "style": "training on spans: the Trainer of transformers with PEFT against stylora",
    "data": "preparing a corpus: the bare tokenizer against all of it, and memory against size",
    "objectives": "clm, span and fim on held-out books, with and without general text",
    "kl": "a training step with cross-entropy alone, with KL beside it, and with both the plain way",
    "tasks": "chat SFT on structured tasks: shared prefixes against the Trainers of transformers and TRL",
    "alignment": "a second stage with KL: style kept against forgetting taken back, and the free baseline",
    "normalise": "labels and JSON on the bundled base: names it saw in new wordings, names it never saw",
    "stack": "a training step on a frozen adapter, beside the weights and folded into them",
    "branches": "several continuations of one trunk, decoded and trained at once, against one after the other",
    "branch_quality": "held-out loss of branches: what they see, where they stand, how many they are, rank",
    "lora": "LoRA, its options, prefix tuning and full fine-tuning on one small task",
    "troubleshooting": "symptoms provoked and cured: rate, epochs, forgetting, memory, speed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 with one sentence on stderr for what the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = next((word for word in words if word in COMPARISONS), None)
    comparison: Any = None if name is None else import_module(f"benchmarks.{name}")
    options = _parser(comparison).parse_args(words)
    try:
        print(compare(options, comparison))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(options: argparse.Namespace, comparison: Any) -> str:
    """Run it; the JSON object or the table to print. Raises UserError for a wrong place, before anything has run."""
    if sys.platform != "linux":
        raise UserError("benchmarks", got=sys.platform, expected="linux, where /proc tells the peak memory of a process")
    out: Path | None = options.out
    if out is not None and not out.resolve().parent.is_dir():
        raise UserError("--out", got=str(out), expected="a file in a folder that exists", do="make the folder first")
    machine, started = report.hardware(), time.perf_counter()
    found = comparison.run(options)
    seconds = round(time.perf_counter() - started, 1)
    result = {
        "benchmark": options.name, "quick": options.quick, "seconds": seconds, "hardware": machine, "versions": report.versions(), **found
    }  # fmt: skip
    text = json.dumps(result, ensure_ascii=False, indent=2)
    if out is not None:
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, out)
    return text if options.json else report.as_text(result)


def _parser(comparison: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="One comparison, every contender in the same run.",
        epilog="; ".join(f"{name}: {what}" for name, what in COMPARISONS.items()),
    )  # fmt: skip
    parser.add_argument("name", choices=list(COMPARISONS))
    parser.add_argument("--quick", action="store_true", help="a smaller run, under two minutes on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON object there")
    if hasattr(comparison, "arguments"):
        comparison.arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
