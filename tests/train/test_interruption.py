"""Signals: the first is noted, or raised where nothing can be lost; the second ends the process; afterwards all is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from stylora.train.interruption import SIGNALS, Interrupted, Interruption

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request) -> signal.Signals:
    return request.param


@pytest.fixture(autouse=True)
def handlers():
    """Whoever catches signals here besides gets them back."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_first_signal_is_noted_and_work_goes_on(number, capfd):
    with Interruption() as interruption:
        assert interruption.number is None
        signal.raise_signal(number)
        assert interruption.number == number
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * 2, "a second one must end the process"
    assert capfd.readouterr().err == f"\n{number.name}: saving at the end of this step; once more to stop at once\n"


def test_at_once_raises_on_the_spot_and_says_nothing(number, capfd):
    reached = []
    with Interruption() as interruption, pytest.raises(Interrupted) as caught, interruption.at_once():
        signal.raise_signal(number)
        reached.append("behind the signal")
    assert reached == [] and caught.value.number == interruption.number == number
    assert capfd.readouterr().err == ""


def test_at_once_raises_for_a_signal_that_came_before(number):
    with Interruption() as interruption:
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as caught, interruption.at_once():
            raise AssertionError("must not be reached")
        assert caught.value.number == number


def test_at_once_ends_with_its_block_also_after_an_error_and_inside_another():
    with Interruption() as interruption:
        with interruption.at_once():
            with pytest.raises(ValueError), interruption.at_once():
                raise ValueError
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGTERM)
    with Interruption() as interruption:
        with pytest.raises(ValueError), interruption.at_once():
            raise ValueError
        signal.raise_signal(signal.SIGTERM)
        assert interruption.number == signal.SIGTERM


@pytest.mark.parametrize("error", [None, ValueError, Interrupted])
def test_handlers_are_restored(number, error):
    def mine(number, frame):
        pass

    before = signal.signal(number, mine)
    try:
        if error is None:
            with Interruption():
                assert signal.getsignal(number) != mine
                signal.raise_signal(number)
        elif error is ValueError:
            with pytest.raises(ValueError), Interruption():
                raise ValueError
        else:
            with pytest.raises(Interrupted), Interruption() as interruption, interruption.at_once():
                signal.raise_signal(number)
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_in_a_thread_it_catches_nothing_and_breaks_nothing():
    before, seen = [signal.getsignal(each) for each in SIGNALS], []

    def work() -> None:
        with Interruption() as interruption, interruption.at_once():
            seen.append(([signal.getsignal(each) for each in SIGNALS], interruption.number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_interrupted_is_not_swallowed_as_an_exception():
    assert not issubclass(Interrupted, Exception)
    assert Interrupted(signal.SIGTERM).exit_code == 143 and Interrupted(signal.SIGINT).exit_code == 130
    assert str(Interrupted(signal.SIGTERM)) == "SIGTERM"


CHILD = """
import sys, time
from stylora.train.interruption import Interrupted, Interruption
try:
    with Interruption() as interruption:
        print("ready", flush=True)
        while interruption.number is None or sys.argv[1] == "deaf":
            time.sleep(0.01)
        with interruption.at_once():
            pass
except Interrupted as stop:
    sys.exit(stop.exit_code)
"""


@pytest.fixture
def start():
    """`start("listening")` or `start("deaf")`: a process that has entered an Interruption; ended with the test."""
    children = []

    def begin(kind: str) -> subprocess.Popen:
        children.append(subprocess.Popen([sys.executable, "-c", CHILD, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert children[-1].stdout.readline() == "ready\n"
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def test_a_process_that_stops_exits_with_128_and_the_signal(number, start):
    child = start("listening")
    child.send_signal(number)
    assert child.communicate(timeout=30)[1] == f"\n{number.name}: saving at the end of this step; once more to stop at once\n"
    assert child.returncode == 128 + number


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: f"then {number.name}")
def test_a_second_signal_ends_the_process_at_once(number, second, start):
    child = start("deaf")
    child.send_signal(number)
    assert child.stderr.readline() == "\n" and number.name in child.stderr.readline()
    child.send_signal(second)
    child.communicate(timeout=30)
    assert child.returncode == -second


STUCK = """
import hashlib
from stylora.train.interruption import Interruption

with Interruption(patience=0.5):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)  # minutes outside Python, as in a library that waits for a lost peer
"""


def test_with_patience_a_process_ends_though_no_python_runs(number):
    child = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == 128 + number
