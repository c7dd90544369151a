"""Plots as SVG and as PNG: the same bytes every time, the page's own colours, text that stays text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from PIL import Image
from tests.report.made import HOSTILE, evaluation, model, stage, two_stages

from stylora.report import plot
from stylora.report.colours import variables
from stylora.report.drawing import HEIGHT, WIDTH, ticks_written
from stylora.report.panels import panels
from stylora.report.plot import chinese_font, pointed, save_png, to_svg

NAME = f"对齐 $x_1$ {HOSTILE}"


@pytest.fixture(scope="module")
def drawn():
    """Every plot of a run of two stages, the second of a hostile name."""
    first, second = two_stages(name=NAME)
    return panels([replace(first, evaluation=evaluation(model("x", 5.5, 5.02))), second])


def test_the_same_plot_gives_the_same_bytes(drawn):
    first = [to_svg(panel) for panel in drawn]
    assert [to_svg(panel) for panel in reversed(drawn)][::-1] == first
    assert not re.search(r"20\d\d-\d\d-\d\d", first[0])


def test_another_process_gives_the_same_bytes(drawn, tmp_path):
    """Also one with other settings of matplotlib's in its folder, and another seed of Python's hashes."""
    (tmp_path / "matplotlibrc").write_text("font.size: 40\naxes.facecolor: red\n", encoding="utf-8")
    code = "from tests.report.made import *; from stylora.report.panels import panels; from stylora.report.plot import to_svg\n"
    code += "print(to_svg(panels([stage()])[1]))"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUTF8": "1", "PYTHONHASHSEED": "7"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=tmp_path, env=environment)
    assert shown.stdout.strip() == to_svg(panels([stage()])[1])


def test_colours_are_variables_of_the_page_and_ids_are_unique(drawn):
    seen: set[str] = set()
    for panel in drawn:
        root = ElementTree.fromstring(to_svg(panel))
        ids = {value for element in root.iter() if (value := element.get("id"))}
        assert not ids & seen, "ids of two plots on one page"
        seen |= ids
        for element in root.iter():
            assert not re.search(r"#[0-9a-fA-F]{6}", element.get("style", "")), element.attrib
            named = re.findall(r"var\(--([\w-]+)\)", element.get("style", ""))
            assert set(named) <= set(variables())
            links = re.findall(r"url\(#([^)]+)\)", " ".join(element.attrib.values())) + [element.get("href", "#")[1:]]
            assert set(filter(None, links)) <= ids
            assert not any(key.startswith("on") for key in element.attrib)
        assert "width" not in root.attrib and root.get("viewBox", "").split()[:3] == ["0", "0", str(WIDTH)]


def test_text_is_text(drawn):
    plane = to_svg(drawn[0])
    texts = ["".join(element.itertext()).strip() for element in ElementTree.fromstring(plane).iter() if element.tag == "text"]
    assert NAME in texts and "style" in texts
    assert "<script" not in plane and "<img" not in plane and "font-family" not in plane


def test_nothing_of_matplotlibs_settings_is_changed(drawn):
    before = dict(matplotlib.rcParams)
    to_svg(drawn[0])
    assert dict(matplotlib.rcParams) == before


def test_what_a_pointer_is_told_lies_on_the_lines(drawn):
    for panel in drawn:
        found = pointed(panel)
        svg = to_svg(panel)
        height = float(re.search(r'viewBox="0 0 460 (\d+)"', svg)[1])  # type: ignore[index]
        assert len(found["lines"]) == sum(line.look != "faint" and bool(line.tips) for line in panel.lines)
        for line in found["lines"]:
            assert len(line["at"]) == len(line["tips"]) and all(len(tip) == 2 for tip in line["tips"])
            assert all(0 <= x <= WIDTH and -1 <= y <= height + 1 for x, y in line["at"])
        json.dumps(found)
    (curve, *_) = pointed(drawn[2])["lines"]
    dots = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', to_svg(drawn[2]))
    assert [(round(float(x), 1), round(float(y), 1)) for x, y in dots[: len(curve["at"])]] == [tuple(point) for point in curve["at"]]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_png(drawn, tmp_path, language):
    for panel in drawn:
        path = tmp_path / f"{panel.key}.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save_png(panel, path, language)
        first = path.read_bytes()
        save_png(panel, path, language)
        assert path.read_bytes() == first
        with Image.open(path) as image:
            assert image.width == int(WIDTH / 72 * 200) and image.height > HEIGHT / 72 * 200
            colours = image.convert("RGB").getcolors(1 << 24) or []
            assert max(colours)[1] == (255, 255, 255) and len(colours) > 50


def test_without_a_chinese_font_a_png_is_in_english(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "chinese_font", lambda: None)
    save_png(drawn[1], tmp_path / "zh.png", "zh")
    save_png(drawn[1], tmp_path / "en.png", "en")
    assert (tmp_path / "zh.png").read_bytes() == (tmp_path / "en.png").read_bytes()


@pytest.mark.skipif(chinese_font() is None, reason="no font with Chinese characters here")
def test_with_one_it_is_in_chinese(drawn, tmp_path):
    save_png(drawn[1], tmp_path / "zh.png", "zh")
    save_png(drawn[1], tmp_path / "en.png", "en")
    assert (tmp_path / "zh.png").read_bytes() != (tmp_path / "en.png").read_bytes()


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 0.5, 1], ["0.0", "0.5", "1.0"]), ([-0.2, -0.0, 0.2], ["−0.2", "0.0", "0.2"]), ([0, 1000, 20000], ["0", "1,000", "20,000"]),
        ([0, 5e-5, 1e-4], ["0", "5e-5", "1e-4"]), ([0.00025, 0.0005], ["0.00025", "0.00050"]), ([], []),
        ([2e7, 4e7], ["20,000,000", "40,000,000"]),
    ],
)  # fmt: skip
def test_ticks_have_the_same_digits(ticks, texts):
    assert ticks_written(ticks) == texts


def test_a_gradient_norm_that_explodes_is_drawn_on_a_logarithmic_axis():
    rows = [{"step": step, "grad_norm": 10.0 ** (step / 10)} for step in range(1, 40)]
    (panel,) = panels([stage(rows=rows, origin=None)])
    assert panel.logarithmic
    texts = re.findall(r">([\d,.]+)</text>", to_svg(panel))
    assert {"10", "100", "1000"} <= set(texts)


def test_one_point_is_drawn():
    begun = stage(rows=[{"step": 0, "eval/style": 6.0, "eval/general": 5.0}])
    assert all("<use" in to_svg(panel) for panel in panels([begun]))
