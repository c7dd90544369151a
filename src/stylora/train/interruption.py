"""SIGTERM and SIGINT: a run is asked to stop. It does so at the next safe place; a second signal ends the process at once.

Schedulers, container runtimes and people at a keyboard all stop programs this way. Knows nothing of training.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """The run was asked to stop, and did. Like KeyboardInterrupt no `Exception`: a library that swallows those must not swallow this."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + self.number


class Interruption:
    """Catches the signals while it is entered.

    with Interruption() as interruption:
        with interruption.at_once():   # here nothing can be lost: Interrupted is raised on the spot
            read_data()
        step()                         # here the signal is only noted ...
        if interruption.number:        # ... until somebody looks
            save()
    """

    def __init__(self, patience: float | None = None) -> None:
        """patience: seconds after a signal in which the process must have ended, whatever it is doing. For one of several, which may
        be waiting in a library for one that is gone, where no Python runs that could look at the signal; None waits for ever."""
        self.number: int | None = None
        self.patience = patience
        self._at_once = False

    def __enter__(self) -> Interruption:
        in_main = threading.current_thread() is threading.main_thread()  # Python delivers signals nowhere else
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS} if in_main else {}
        if in_main and self.patience is not None:
            reading, writing = socket.socketpair()
            writing.setblocking(False)
            signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)  # written to at once, also when no Python runs
            threading.Thread(target=_end_after, args=(reading, self.patience), daemon=True).start()
            self._wakeup = writing
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and self.patience is not None:
            signal.set_wakeup_fd(-1)
            self._wakeup.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._at_once:
            raise Interrupted(number)
        # no print: the signal may have come in the middle of one
        os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this step; once more to stop at once\n".encode())

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted as soon as a signal comes, or now if one came before."""
        if self.number is not None:
            raise Interrupted(self.number)
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before


def _end_after(signals: socket.socket, patience: float) -> None:
    """Wait for a signal's number; then end the process if it is still there after `patience` seconds."""
    number = signals.recv(1)
    if number:  # nothing comes when the other end is closed
        time.sleep(patience)
        os._exit(128 + number[0])
