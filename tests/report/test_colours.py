"""Colours that can be told from what they stand on: contrast as WCAG 2.2 defines it, in light and in dark surroundings."""

from __future__ import annotations

import pytest

from stylora.report.colours import CURVES, SURFACES, curve_colour, dash, style_sheet, variables


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_the_known_one():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_curves_stand_off_their_background(mode):
    surfaces = {name: getattr(colour, mode) for name, colour in SURFACES.items()}
    for ground in ("page", "card"):
        for text in ("ink", "quiet", "good", "bad"):
            assert contrast(surfaces[text], surfaces[ground]) >= 4.5, (text, ground)
        for colour in CURVES:
            assert contrast(getattr(colour, mode), surfaces[ground]) >= 3, (colour, ground)


def test_every_drawn_colour_is_one_variable():
    drawn = [colour.light for colour in variables().values()]
    assert len(set(drawn)) == len(drawn), "a colour of the drawing could not be told from another"
    assert all(colour.light in style_sheet() and colour.dark in style_sheet() for colour in variables().values())


def test_more_curves_than_colours_differ_in_their_dashes():
    assert len({(curve_colour(number), dash(number)) for number in range(4 * len(CURVES))}) == 4 * len(CURVES)
