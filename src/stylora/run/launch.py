"""`stylora train --nproc N`: the same command in N processes of this machine, watched by torch's elastic agent (what torchrun runs).

When one of them dies the agent ends the others; here its reason becomes one sentence. Plain torchrun and `accelerate launch` work, too:
the processes find each other through the environment variables all three set.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SECONDS_TO_SAVE = "25"  # between the signal to stop and the one that can't be caught


def launch(processes: int, arguments: list[str]) -> int:
    """Run `stylora ARGUMENTS` in so many processes; the exit code: 0, the failing process's own, or 128 + the signal that stopped us."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its report of a failure is ours to give
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="stylora", max_restarts=0, monitor_interval=0.1,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "stylora", *arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        first = root_cause(failed.failures)
        if first.exitcode != 2:  # a mistake the user can mend was told by the process that met it
            print(f"stopped: {reason(first, processes)}", file=sys.stderr)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0


def root_cause(failures: dict[int, ProcessFailure]) -> ProcessFailure:
    """The failure that the others followed from: a process that was killed, else one with a user's mistake, else the first.

    Those that were waiting for the dead one fail with a broken connection. The agent ends the rest with SIGTERM, half a
    minute later with SIGKILL; neither says anything of them.
    """
    began = min(failure.timestamp for failure in failures.values())
    first = [failure for failure in failures.values() if failure.timestamp <= began + 1]  # in whole seconds
    ended = (-signal.SIGTERM, 128 + signal.SIGTERM)  # at once, or after saving
    killed = [failure for failure in first if failure.exitcode < 0 and failure.exitcode not in ended]
    failed = [failure for failure in first if failure.exitcode not in ended]
    return min(killed or failed or first, key=lambda failure: (failure.exitcode != 2, failure.timestamp, failure.local_rank))


def reason(failure: ProcessFailure, processes: int) -> str:
    """What happened to it, and what to do."""
    which = f"process {failure.local_rank} of {processes} (pid {failure.pid})"
    if failure.exitcode == -signal.SIGKILL:
        return (
            f"{which} was killed by SIGKILL, as a system out of memory does; the same command goes on from the last checkpoint, "
            "train.tokens_per_microbatch lowers the memory it takes"
        )
    if failure.exitcode < 0:
        return f"{which} was ended by {signal.Signals(-failure.exitcode).name}; the same command goes on from the last checkpoint"
    return f"{which} ended with exit code {failure.exitcode}; its message stands above"
