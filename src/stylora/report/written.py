"""How figures are written: perplexities, changes, steps, times. The same in both languages."""

from __future__ import annotations

import math
from datetime import datetime

from .figures import perplexity


def whole(number: int) -> str:
    """12,400"""
    return f"{number:,}"


def short(value: float) -> str:
    """Three or four digits that matter: 0.0123, 5.836, 84.2, 740, 12,400, 3.2e+09."""
    size = abs(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "–"
    if size >= 1e6 or 0 < size < 1e-3:
        return _signed(f"{value:.1e}")
    return _signed(f"{value:,.{0 if size >= 100 else 1 if size >= 20 else 3 if size >= 1 else 4}f}")


def of_loss(loss: float) -> str:
    """Perplexity of a loss in nats."""
    value = perplexity(loss)
    return short(value) if value >= 20 or not math.isfinite(value) else f"{value:.2f}"


def nats(value: float, *, sign: bool = False) -> str:
    """5.836, or +0.112 with a sign."""
    return _signed(f"{value:+.3f}" if sign else f"{value:.3f}")


def change(share: float, *, sign: bool = True) -> str:
    """Of a perplexity: −53.8 %; without a sign 53.8 %."""
    if not math.isfinite(share):
        return "∞ %"
    percent = 100 * share if sign else abs(100 * share)
    digits = 0 if abs(percent) >= 1000 else 1
    return _signed(f"{percent:+,.{digits}f} %" if sign else f"{percent:,.{digits}f} %")


def scored(before: float | None, after: float | None) -> str:
    """A metric before → after: 48.0 % → 92.3 %; beyond 0 to 1 it is no share, and stays a number."""
    numbers = [value for value in (before, after) if value is not None]
    shares = all(0 <= value <= 1 for value in numbers)
    return " → ".join(f"{100 * value:.1f} %" if shares else short(value) for value in numbers) or "–"


def share(value: float) -> str:
    """Of a whole: 97 %."""
    return f"{_signed(f'{100 * value:.0f}')} %"


def between(interval: tuple[float, float] | None) -> str:
    """−55.6 … −51.9 %; empty where it is not known."""
    return f"{change(interval[0]).removesuffix(' %')} … {change(interval[1])}" if interval else ""


def duration(seconds: float) -> str:
    """48 s, 3 min 12 s, 2 h 05 min"""
    total = round(seconds)
    hours, minutes = total // 3600, total % 3600 // 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {total % 60:02} s" if minutes else f"{total} s"


def moment(when: str) -> str:
    """Day and minute of an ISO 8601 time."""
    return datetime.fromisoformat(when).strftime("%Y-%m-%d %H:%M") if when else "–"


def _signed(text: str) -> str:
    """With a minus as long as a plus."""
    return text.replace("-", "−") if "e" not in text else text.replace("-", "−", 1) if text.startswith("-") else text
