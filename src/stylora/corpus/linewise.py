"""Which encoding every line of a file is in, among those that keep line ends as single bytes.

The encodings of a file that changes half-way are the cheapest path through its lines, paying a toll for every change
(Viterbi, 1967). The change itself may lie inside a line; it is looked for byte by byte.

Knows no byte order marks, does not decode for keeps and passes no judgement.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .frequent import COST, code_points

LINEWISE = {"utf-8": "utf-8", "gb18030": "gb18030", "cp950": "big5", "big5hkscs": "big5-hkscs", "cp1252": "cp1252"}
"""Codec -> its name in reports, in the order that decides ties. None of them uses \\n or \\r inside a character."""
SWITCH_COST = 20.0  # nats for a change of encoding between two lines: three frequent characters misread


def line_costs(data: bytes, codec: str) -> np.ndarray:
    """`[L]` nats it takes to write each line in `codec`; a line ends after every `\\n` and every `\\r`."""
    codes = code_points(data.decode(codec, "replace"))  # what cannot be decoded costs as U+FFFD
    return np.add.reduceat(COST[codes], _line_starts(codes))


def _line_starts(units: np.ndarray) -> np.ndarray:
    """`[L]` where lines begin among bytes or code points."""
    starts = np.flatnonzero((units == 0x0A) | (units == 0x0D)) + 1
    return np.concatenate([np.zeros(min(1, len(units)), np.int64), starts[starts < len(units)]])


def cheapest_path(costs: np.ndarray) -> np.ndarray:
    """`costs [C, L]` -> `[L]`, the codec of every line, cheapest in sum with SWITCH_COST for every change (Viterbi)."""
    telling = np.flatnonzero(costs.max(axis=0) > costs.min(axis=0))  # pure ASCII is the same in all of them
    total, best = np.zeros(len(costs)), int(costs.sum(axis=1).argmin())
    if not (costs[:, telling].argmin(axis=0) != best).any():
        return np.full(costs.shape[1], best)
    back = np.empty((len(telling), len(costs)), np.int8)
    stay = np.arange(len(costs))
    for i, line in enumerate(telling):
        cheapest = int(total.argmin())
        switch = total > total[cheapest] + SWITCH_COST
        back[i] = np.where(switch, cheapest, stay)
        total = np.minimum(total, total[cheapest] + SWITCH_COST) + costs[:, line]
    path, codec, upper = np.empty(costs.shape[1], np.int8), int(total.argmin()), costs.shape[1]
    for i in range(len(telling) - 1, -1, -1):
        path[telling[i] : upper] = codec
        codec, upper = int(back[i, codec]), int(telling[i])
    path[:upper] = path[upper]
    return path


def segments_of(data: bytes, path: np.ndarray) -> list[tuple[str, int, int]]:
    """`(codec, start, end)` in bytes, one per run of lines in one encoding; the change may fall inside a line."""
    lines = [*_line_starts(np.frombuffer(data, np.uint8)).tolist(), len(data)]
    assert len(lines) == len(path) + 1, "a codec swallowed a line end"
    codecs_of = [list(LINEWISE)[k] for k in path.tolist()]
    bounds = [0]
    for line in (np.flatnonzero(np.diff(path)) + 1).tolist():
        low = max(bounds[-1], lines[line - 1])
        bounds.append(_change(data, low, lines[line + 1], codecs_of[line - 1], codecs_of[line]))
    if len(bounds) == 1:
        return [(codecs_of[0], 0, len(data))]

    def codec_of(part: bytes) -> str:  # asked again: a line shared with the neighbour spoke for the wrong Big5
        return min(LINEWISE, key=lambda codec: float(line_costs(part, codec).sum()))

    return [(codec_of(data[a:b]), a, b) for a, b in pairwise([*bounds, len(data)]) if a < b]


def _change(data: bytes, low: int, high: int, before: str, after: str) -> int:
    """The byte at which `data[low:high]`, two lines, goes over from one encoding to the other: a narrowing grid."""
    window, offset = data[low:high], low

    def cost(at: int) -> tuple[float, int]:  # of equal ones, the last: ASCII stays with what it follows
        first, second = window[: at - offset], window[at - offset :]
        return float(line_costs(first, before).sum() + line_costs(second, after).sum()), -at

    while high - low > 64:
        step = (high - low) // 16
        at = min(range(low, high + 1, step), key=cost)
        low, high = max(low, at - step), min(high, at + step)
    return min(range(low, high + 1), key=cost)
