"""Training processes for tests: children of a server that has the libraries imported already, so that each costs no start-up.

They are real processes, that real signals reach; two of them can train as one. Not for Windows.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def command(arguments: list[str], log: str, environment: dict[str, str], moment: str, do: str) -> None:
    """`stylora ARGUMENTS` with its output in a file. At the second time it comes to `moment` it does `do` to itself."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    import torch

    from stylora import cli

    torch.set_num_threads(1)
    if moment:
        at(moment, do)
    sys.argv = ["stylora", *arguments]
    cli.main()


def at(moment: str, do: str) -> None:
    """Put `do` in front of what happens at `moment`."""
    import stylora.model.forest_model as forest_model
    import stylora.run.folder as folder
    import stylora.run.measuring as measuring
    import stylora.run.train as train
    import stylora.samples.store as store
    import stylora.train.trainer as trainer

    owner, name, times = {
        "reading": (store, "_write_piece", 2), "training": (forest_model.ForestModel, "forward", 8),
        "measuring": (measuring, "measure", 3), "saving": (trainer, "save_adapter", 2),
        "publishing": (os, "replace", 2), "finishing": (train, "write_stack", 1),  # of the first stage
        "beginning": (folder, "keep_recipe", 2), "aligning": (forest_model, "as_reference", 5),  # of the second, which has KL
    }[moment]  # fmt: skip
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        if moment != "publishing" or Path(args[1]).parent.name == "adapter":
            calls.append(0)
        if len(calls) == times:
            if do.startswith("fill "):
                fill(Path(do[5:]))
            else:
                os.kill(os.getpid(), getattr(signal, do))
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2


def write_recipe(folder: Path, *, dropout: float = 0.0, more: Sequence[dict[str, Any]] = (), **train: object) -> Path:
    """A recipe of span training on a few windows of the examples, in fp32. more: stages after it"""
    for part in ("wuxia", "modern"):
        (folder / part).mkdir()
        for path in sorted((ROOT / "examples" / part).glob("*.txt"))[:4]:
            (folder / part / path.name).write_text(path.read_text(encoding="utf-8")[:500], encoding="utf-8")
    values = {"stages": [{
        "data": {"train": str(folder / "wuxia"), "general": str(folder / "modern"), "general_ratio": 0.2, "validation": 0.2,
                 "general_validation": 0.2, "window": 48, "min_window": 16},
        "objective": {"kind": "span"}, "adapter": {"r": 4, "alpha": 8, "dropout": dropout},
        "train": {"max_steps": 12, "samples_per_step": 5, "precision": "fp32", "learning_rate": 1e-3, **train},
        "sampling": {"max_new_tokens": 4},
    }, *more]}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return folder / "recipe.yaml"


class Runs:
    """Starts training processes on one recipe; their output and cache lie in `folder`."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["stylora.cli", "stylora.run.start", "stylora.run.train", "stylora.samples.store"])

    def start(
        self, out: Path, *overrides: str, moment: str = "", do: str = "", cache: Path | None = None,
        environment: dict[str, str] | None = None,
    ):  # fmt: skip
        """A process that trains into `out`; at `moment` it does `do` to itself."""
        self.log = self.folder / "log.txt"
        arguments = ["train", str(self.recipe), f"output_dir={out}", *overrides]
        given = {"STYLORA_CACHE": str(cache or self.folder / "cache"), **(environment or {})}
        process = self.context.Process(target=command, args=(arguments, str(self.log), given, moment, do))
        process.start()
        return process

    def finish(self, out: Path, *overrides: str, processes: int = 1, **options) -> int:
        """Train in one process, or several as one; the (worst) exit code."""
        (self.folder / "log.txt").unlink(missing_ok=True)
        started = [self.start(out, *overrides, environment=each, **options) for each in worlds(processes)]
        for process in started:
            process.join(300)
        return max(process.exitcode for process in started)

    @property
    def said(self) -> str:
        """What they printed since the last `finish` began."""
        return self.log.read_text(encoding="utf-8")


def worlds(processes: int) -> list[dict[str, str]]:
    """The environment of each, as torchrun sets it."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
