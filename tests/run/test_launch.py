"""Several processes of one command: the agent's exit code, which failure is called the cause, and what is said about it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from stylora.run.launch import launch, reason, root_cause


def failed(local_rank: int, exitcode: int, at: int = 100) -> ProcessFailure:
    failure = ProcessFailure(local_rank=local_rank, pid=4000 + local_rank, exitcode=exitcode, error_file="")
    failure.timestamp = at
    return failure


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([failed(0, 1)], 0),
        ([failed(0, 1, 101), failed(1, 1, 100)], 1),  # the first
        ([failed(1, 1), failed(0, 1)], 0),  # at the same second: the lowest number
        ([failed(0, 1), failed(1, -signal.SIGKILL)], 1),  # who waited for the dead one fails, too
        ([failed(0, 1), failed(1, -signal.SIGKILL, 101)], 1),
        ([failed(0, -signal.SIGKILL, 125), failed(1, 1, 100)], 1),  # the agent's patience was at its end
        ([failed(0, -signal.SIGTERM), failed(1, 1)], 1),  # the agent sends SIGTERM itself
        ([failed(0, 143), failed(1, 1)], 1),  # also to one that saves first
        ([failed(0, 143), failed(1, -signal.SIGKILL)], 1),
        ([failed(0, -signal.SIGTERM), failed(1, -signal.SIGSEGV), failed(2, 1)], 1),
        ([failed(0, -signal.SIGKILL, 101), failed(1, -signal.SIGABRT, 100)], 1),
        ([failed(0, -signal.SIGTERM, 101), failed(1, -signal.SIGTERM, 100)], 1),  # somebody else's SIGTERM
        ([failed(0, 1, 104), failed(1, 143, 100)], 1),
        ([failed(0, 1), failed(1, 2)], 1),  # a user's mistake has been told
    ],
)
def test_the_root_cause(failures, cause):
    assert root_cause({failure.local_rank: failure for failure in failures}).local_rank == cause


def test_what_is_said_about_it():
    killed = reason(failed(1, -signal.SIGKILL), 2)
    assert killed.startswith("process 1 of 2 (pid 4001) was killed by SIGKILL, as a system out of memory does; ")
    assert "goes on from the last checkpoint" in killed and "train.tokens_per_microbatch" in killed
    assert reason(failed(0, -signal.SIGSEGV), 4) == (
        "process 0 of 4 (pid 4000) was ended by SIGSEGV; the same command goes on from the last checkpoint"
    )
    assert reason(failed(3, 1), 4) == "process 3 of 4 (pid 4003) ended with exit code 1; its message stands above"


@pytest.fixture
def stylora(tmp_path, monkeypatch):
    """`stylora(script)`: what runs in the place of every `python -m stylora ...`. Environment and signal handlers are restored."""
    for name, value in (("OMP_NUM_THREADS", "1"), ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")):
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    script = tmp_path / "stands-for-python"

    def stand_in(text: str) -> Path:
        script.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return tmp_path

    yield stand_in
    for number, handler in before.items():  # the agent leaves its own
        signal.signal(number, handler)


def test_every_process_gets_the_command_and_its_number(stylora, capfd):
    folder = stylora('cd "$(dirname "$0")" && echo "$@ $RANK $LOCAL_RANK $WORLD_SIZE" > "said $RANK"')
    assert launch(2, ["train", "a b.yaml"]) == 0
    for number in range(2):
        said = (folder / f"said {number}").read_text(encoding="utf-8")
        assert said == f"-u -m stylora train a b.yaml {number} {number} 2\n"
    assert "stopped" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("kill -9 $$", 137, ") was killed by SIGKILL"),
        ("exit 3", 3, ") ended with exit code 3; its message stands above"),
        ("exit 2", 2, None),  # a user's mistake, told already
    ],
)
def test_one_failing_process_ends_the_others_with_its_code(stylora, capfd, ending, code, said):
    folder = stylora(f'cd "$(dirname "$0")"; [ $RANK = 1 ] && sleep 0.3 && {ending}\necho $$ > other; exec sleep 100')
    began = time.monotonic()
    assert launch(2, ["train"]) == code
    assert time.monotonic() - began < 30
    other = int((folder / "other").read_text(encoding="utf-8"))
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)
    err = capfd.readouterr().err
    assert err.count("stopped: process 1 of 2 (pid ") == err.count("stopped: ") == (said is not None)
    assert said is None or said in err
    assert "Traceback" not in err


def test_one_that_does_not_stop_is_not_blamed_for_it(stylora, capfd, monkeypatch):
    """As one that waits in nccl for the dead one: it is deaf to SIGTERM, so the agent kills it in the end; here after 3 s, not 30."""
    monkeypatch.setattr(PContext.close, "__defaults__", (None, 3))
    stylora("[ $RANK = 1 ] && sleep 0.5 && exit 3\ntrap '' TERM; while :; do sleep 0.1; done")
    assert launch(2, ["train"]) == 3
    assert "stopped: process 1 of 2 (pid " in capfd.readouterr().err


def test_a_signal_to_the_agent_reaches_the_processes_and_becomes_its_exit_code(tmp_path):
    """In a process of its own: the agent catches signals of the main thread."""
    script = tmp_path / "stands-for-python"
    text = '#!/bin/sh\ntrap "echo saved >> $0.saved; exit 143" TERM\necho up >> $0.up\nwhile :; do sleep 0.1; done\n'
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    code = f"import sys; from stylora.run.launch import launch; sys.executable = {str(script)!r}; sys.exit(launch(2, ['train']))"
    agent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        up, until = Path(f"{script}.up"), time.monotonic() + 60
        while not (up.exists() and up.read_text(encoding="utf-8").count("up") == 2):
            assert agent.poll() is None and time.monotonic() < until, agent.stderr
            time.sleep(0.1)
        agent.send_signal(signal.SIGTERM)
        err = agent.communicate(timeout=30)[1]
    finally:
        agent.kill()
    assert agent.returncode == 143, err
    assert Path(f"{script}.saved").read_text(encoding="utf-8") == "saved\n" * 2
    assert "Traceback" not in err
