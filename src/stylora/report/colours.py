"""Colours of a report, for light and for dark surroundings. Plots are drawn in the light ones; on a page each is a variable of its name.

Curves stand off their background by 3:1 and text by 4.5:1 (WCAG 2.2, 1.4.3 and 1.4.11) in both, as a test computes.
"""

from __future__ import annotations

from typing import NamedTuple


class Colour(NamedTuple):
    """`#rrggbb` each."""

    light: str
    dark: str


SURFACES = {
    "page": Colour("#f7f6f3", "#131517"),
    "card": Colour("#ffffff", "#1b1e21"),
    "line": Colour("#e5e2dc", "#32373c"),
    "ink": Colour("#1d2125", "#e8e6e1"),
    "quiet": Colour("#5b636b", "#9da6ae"),
    "good": Colour("#17704f", "#5fcf9f"),
    "bad": Colour("#b03a16", "#f59a70"),
}
"""name -> background of the page and of cards, lines, text, secondary text, figures that got better, figures that got worse"""

CURVES = [
    Colour("#1f5fa8", "#7db4f0"), Colour("#d4651a", "#f0904e"), Colour("#0f7a68", "#4fc7ae"), Colour("#8c3fa0", "#d79ae6"),
    Colour("#8f7200", "#dcbf57"), Colour("#b5264f", "#f5869f"), Colour("#56606b", "#b4bec8"), Colour("#1189ab", "#62cbe8"),
]  # fmt: skip
"""of the curves, in their order; a ninth begins anew, with another dash"""

DASHES: list[tuple[float, ...]] = [(), (5, 2), (1.5, 1.8), (6, 2, 1.5, 2)]


def curve_colour(number: int) -> str:
    """The light one of a curve."""
    return CURVES[number % len(CURVES)].light


def dash(number: int) -> tuple[float, ...]:
    """Lengths of strokes and gaps in points; none for a full line."""
    return DASHES[number // len(CURVES) % len(DASHES)]


def variables() -> dict[str, Colour]:
    """Name of a CSS variable -> its colours."""
    return SURFACES | {f"curve-{number}": colour for number, colour in enumerate(CURVES)}


def style_sheet() -> str:
    """The variables of both surroundings as CSS."""
    light = " ".join(f"--{name}: {colour.light};" for name, colour in variables().items())
    dark = " ".join(f"--{name}: {colour.dark};" for name, colour in variables().items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
