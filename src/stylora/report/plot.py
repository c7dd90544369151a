"""A plot of a report, drawn by matplotlib: as SVG for the page, in the page's own colours and fonts, or as PNG to pass on.

For the page only what lies inside the axes is drawn: title, legend and units are the page's, in whatever language it shows. Text stays
text, and the same plot gives the same bytes. For a PNG all is drawn, in one language; without a font of Chinese characters in English.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D

from .colours import CURVES, curve_colour, dash, variables
from .drawing import BAD, CARD, INK, MARKERS, QUIET, WIDTH, WRONG, draw
from .panel import Panel
from .words import both, word

PNG_MARGINS = (64, 14, 44, 62)
DPI = 200

CHINESE = (
    "Noto Sans CJK SC", "Source Han Sans SC", "Noto Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "SimHei", "Heiti TC", "STHeiti", "Noto Sans CJK JP", "Noto Sans CJK TC", "Arial Unicode MS", "Droid Sans Fallback",
)  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"


def chinese_font() -> str | None:
    """The family of a font of this machine that has Chinese characters."""
    installed = {font.name for font in fontManager.ttflist}
    return next((name for name in CHINESE if name in installed), None)


@contextmanager
def _settings(panel: Panel, *fonts: str) -> Iterator[None]:
    """matplotlib's, for one plot; nothing of the user's own is read and nothing stays behind. fonts: before the one that comes with it"""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # on the page another font draws it; in a PNG it is a box
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "svg.fonttype": "none", "svg.hashsalt": panel.key, "text.parse_math": False, "path.simplify": False, "font.size": 10.5,
            "font.family": [*fonts, "DejaVu Sans"],
        })  # fmt: skip
        yield


# ---------------------------------------------------------------------------------------------------------------- the page


def to_svg(panel: Panel) -> str:
    """An `<svg>` element to stand in a page: no size, colours as `var(--name)`, ids that begin with the plot's key."""
    with _settings(panel):
        written = io.StringIO()
        draw(panel)[0].savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(written.getvalue())
    names = {colour.light: f"var(--{name})" for name, colour in variables().items()}
    own = re.compile("|".join(map(re.escape, names)))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{panel.key}-{value}")
            elif key == f"{XLINK}href":
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{panel.key}-"))
            elif key == "style":
                value = re.sub(r"font-family:[^;]*(;|$)", "", re.sub(r"font: *([\d.]+px)[^;]*", r"font-size: \1", value))  # the page's own
                element.set(key, own.sub(lambda found: names[found.group()], value))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{panel.key}-"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "plot")
    root.set("aria-hidden", "true")  # what it shows is said in words and tables beside it
    return ElementTree.tostring(root, encoding="unicode")


def pointed(panel: Panel) -> dict[str, Any]:
    """What a pointer over the plot is told: the box of the axes, and each line's points in pixels of the SVG with their tips."""
    with _settings(panel):
        figure, axes = draw(panel)
        height = figure.bbox.height
        lines = []
        for line in panel.lines:
            if line.look == "faint" or not line.tips:  # the smoothed one on top of it speaks for it
                continue
            places = axes.transData.transform(np.column_stack([line.x, line.y])) * 72 / figure.dpi
            inside = np.column_stack([places[:, 0], height * 72 / figure.dpi - places[:, 1]]).round(1)
            lines.append({"colour": line.colour % len(CURVES), "at": inside.tolist(), "tips": [list(both(tip)) for tip in line.tips]})
    return {"plane": panel.plane, "lines": lines}


# -------------------------------------------------------------------------------------------------------------------- PNG


def save_png(panel: Panel, path: Path, language: str) -> None:
    """The whole plot with title, legend and units, 200 dots an inch. language: `en`, or `zh` where this machine has a font for it."""
    font = chinese_font()
    language = language if font else "en"
    with _settings(panel, *([font] if font else [])):
        figure, axes = draw(panel, PNG_MARGINS, extra=46)
        figure.patch.set_facecolor(CARD)
        figure.patch.set_visible(True)
        unit = panel.unit.of(language)
        figure.text(PNG_MARGINS[0] / WIDTH, 1 - 20 / (72 * figure.get_figheight()), panel.title.of(language), fontsize=13, color=INK,
                    fontproperties=_bold())  # fmt: skip
        axes.set_ylabel(unit, color=QUIET)
        axes.set_xlabel(panel.across.of(language), color=QUIET)
        handles = list(_handles(panel, language))
        if len(handles) > 1 or panel.marks:
            axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=9, labelcolor=QUIET,
                        handlelength=1.6, columnspacing=1.2, borderaxespad=0.2)  # fmt: skip
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _bold() -> FontProperties:
    return FontProperties(family=matplotlib.rcParams["font.family"], weight="bold")


def _handles(panel: Panel, language: str) -> Iterator[Line2D]:
    """The legend: a line for each name, and the marks that there are."""
    seen, several = set(), len({line.colour for line in panel.lines}) > 1
    for line in panel.lines:
        if (name := both(line.name).of(language)) not in seen and line.look != "faint":
            seen.add(name)
            dashes = (2, 2) if line.look == "frontier" else dash(line.colour) or (1, 0)
            yield Line2D([], [], color=curve_colour(line.colour), dashes=dashes, linewidth=1.8, label=name)
    for kind in dict.fromkeys(mark.kind for mark in panel.marks):
        if kind in MARKERS:
            color = BAD if kind in WRONG and not several else QUIET
            yield Line2D([], [], linestyle="", color=color, label=word(kind).of(language), **MARKERS[kind])
    if any(mark.kind == "overfitting" for mark in panel.marks):
        yield Line2D([], [], color=QUIET if several else BAD, linestyle=(0, (4, 3)), linewidth=1, label=word("overfitting").of(language))
