"""What a comparison measures with, and how its result is told: processes of their own, peak memory, hardware, rows, ratios.

A measurement is a JSON object that one contender makes of one task, in a fresh process, so that its peak memory is its own. Contenders take
turns (A B A B ...), so that a slow minute of the machine hits all of them, and a row keeps the median of its rounds.

Knows no contender; imports neither torch nor transformers. Peak memory: proc_pid_status(5) and proc_pid_clear_refs(5).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["stylora", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"]

Json = dict[str, Any]
Measure = Callable[[Json], Json]
"""A task (what to measure, with which settings) -> a measurement."""


# ---------------------------------------------------------------------------------------------------------- measuring


def apart(module: str) -> Measure:
    """Measure in a fresh process: `python -m MODULE` is given the task on stdin and answers on its last line (`answer`)."""

    def measure(task: Json) -> Json:
        print(f"measuring  {task['contender']} {task['variant']}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", module]
        done = subprocess.run(
            command, input=json.dumps(task), stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    return measure


def answer(measure: Measure) -> None:
    """The other side of `apart`: what a contender's process does."""
    measurement = measure(json.load(sys.stdin))
    print("\n" + json.dumps(measurement), flush=True)


def take_turns(tasks: Sequence[Json], rounds: int, measure: Measure) -> list[list[Json]]:
    """`[task][round]`: every task once a round, in order."""
    measured: list[list[Json]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, results in zip(tasks, measured, strict=True):
            results.append(measure(task))
    return measured


def row(task: Json, measured: Sequence[Json], *, speed: str) -> Json:
    """A contender's row: the median of every figure, `rounds` with all values of `speed`; what is no number is the first round's."""
    merged: Json = {"contender": task["contender"], "settings": task["variant"]}
    for name, first in measured[0].items():
        figure = isinstance(first, int | float) and not isinstance(first, bool)
        merged[name] = round(median(m[name] for m in measured), 4) if figure else first
    return merged | {"rounds": [round(m[speed], 4) for m in measured]}


class PeakMemory:
    """Most resident memory of this process from `reset` on, in MB (1e6 bytes).

    before: resident when it was made. Where the kernel does not let a process reset its own peak, the peak since its start is taken.
    Freed memory goes back to the system first: what the work reused of it would not be counted. See malloc_trim(3), glibc's own.
    """

    def __init__(self) -> None:
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        self.reset = True
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # a kernel without CONFIG_PROC_PAGE_MONITOR
            self.reset = False
        self.before = _status("VmRSS")

    def peak(self) -> float:
        return _status("VmHWM")

    def above(self) -> float:
        """Peak less what was resident before."""
        return self.peak() - self.before


def _status(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024 / 1e6


# ------------------------------------------------------------------------------------------------------------ telling


def hardware() -> Json:
    """What it runs on.

    cores: usable by this process; load_before: runnable processes, mean of the last minute; gpu: as its driver names it, or None
    """
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cpu = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", told, re.MULTILINE)
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"}
    return {
        "cpu": cpu[1] if cpu else os.uname().machine,
        "cpu_flags": sorted(wanted & set(flags[1].split())) if flags else [],
        "cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
    }


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    told = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True)
    return ", ".join(told.stdout.split("\n")).strip(", ")


def versions() -> dict[str, str]:
    """Of Python and of everything that computes."""
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """A page with what stands between its markers `<!-- NAME -->` and `<!-- /NAME -->` replaced."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = page.partition(start)
        assert end in rest, f"no place for the table {name}"
        page = f"{before}{start}{table}\n{end}{rest.partition(end)[2]}"
    return page


def as_text(result: Mapping[str, Any]) -> str:
    """Hardware, versions, a table of rows (a column per figure that any row has), ratios, notes."""
    machine = result["hardware"]
    table = Table(title=f"{result['benchmark']}{' (quick)' if result['quick'] else ''}, {result['seconds']:.0f} s")
    columns = list(dict.fromkeys(name for each in result["rows"] for name in each))
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for each in result["rows"]:
        table.add_row(*(_cell(each.get(name)) for name in columns))
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(
            f"{machine['cpu']} ({', '.join(machine['cpu_flags'])}), {machine['cores']} cores, {machine['ram_gb']} GB, "
            f"GPU {machine['gpu']}, load before {machine['load_before']}"
        )
        console.print(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
        console.print(table)
        for name, value in result["ratios"].items():
            console.print(f"{name}  {value:.3f}")
        for note in result.get("notes", []):
            console.print(f"- {note}")
    return captured.get().rstrip("\n")


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_cell(v)}" for name, v in value.items())
    if isinstance(value, list):
        return " ".join(_cell(v) for v in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
