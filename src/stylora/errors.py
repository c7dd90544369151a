"""What the user did wrong, said well.

A `UserError` is one clear sentence about something the user can change: which field or file, what was there, what was
expected, and what to do. The command line prints it without a traceback and exits with 2. Our own mistakes are `assert`s.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something in the user's recipe, data, command or machine.

    where: the recipe key (`stages[0].data.window`), the file (`data/a.txt`, or `data/a.jsonl:17` with its line), or the flag
    got: what was found there, as the user would recognise it
    expected: what would have been right
    do: the next thing to try, an imperative clause; empty where `expected` already says it

    >>> print(UserError("data.window", got="2048", expected="at most 1024, the context of the base", do="lower it"))
    data.window: got 2048, expected at most 1024, the context of the base; lower it
    """

    def __init__(self, where: str, *, got: str, expected: str, do: str = "") -> None:
        self.where, self.got, self.expected, self.do = where, got, expected, do
        super().__init__(f"{where}: got {got}, expected {expected}" + (f"; {do}" if do else ""))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The clause that names the closest known word, or else all of them: "did you mean 'window'?"."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "one of: " + ", ".join(known)
