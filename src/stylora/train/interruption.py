"""SIGTERM and SIGINT: a run is asked to stop. It does so at the next safe place; a second signal ends the process at once.

Schedulers, container runtimes and people at a keyboard all stop programs this way. Knows nothing of training.
"""

from __future__ import annotations

import os
import signal
import threading
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

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False

    def __enter__(self) -> Interruption:
        in_main = threading.current_thread() is threading.main_thread()  # Python delivers signals nowhere else
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS} if in_main else {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
