"""The table of two stages: shares, the free baseline and spreads, on figures small enough to work out by hand."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
from benchmarks.report import ROOT, with_tables

from benchmarks import alignment
from stylora.errors import UserError
from stylora.train.logs import append_line

REST = {"spikes": 0, "kl_to_base": 0.1} | dict.fromkeys(alignment.GENERATED, 0.5)


def seed(**losses: tuple[float, float]) -> dict:
    return {way.replace("_", " "): {"style": style, "general": general, **REST} for way, (style, general) in losses.items()}


def two() -> list[dict]:
    """Base 6 and 5; LoRA gains 2 of style and loses 1 of general; at half its weight it keeps 1.5 and loses 0.4."""
    first = seed(base=(6, 5), style=(4, 6), half=(4.5, 5.4), align=(4.2, 5.3))
    second = seed(base=(6, 5), style=(4, 6), half=(4.5, 5.4), align=(4.4, 5.3))
    for each in (first, second):
        each["style * 0.5"] = each.pop("half")
    return [first, second]


def test_table_by_hand():
    rows = {row["way"]: row for row in alignment.table(0.1, two())}
    assert list(rows) == ["style", "align", "style * 0.5"]
    lora, half, align = rows["style"], rows["style * 0.5"], rows["align"]
    assert (lora["kept"], lora["taken_back"], lora["over_free"]) == (1, 0, 0)
    assert (half["kept"], half["taken_back"]) == (pytest.approx(0.75), pytest.approx(0.6))
    assert half["over_free"] == pytest.approx(0), "the free curve passes through its own points"
    assert align["style_gain"] == pytest.approx(1.7) and align["style_gain_spread"] == pytest.approx(math.sqrt(0.02))
    assert (align["kept"], align["taken_back"]) == (pytest.approx(0.85), pytest.approx(0.7))
    # between (0.75, 0.6) and (1, 0): at 0.85 kept the free baseline takes 0.36 back
    assert align["over_free"] == pytest.approx(0.7 - 0.36)


def test_shares_of_a_forgetting_that_hardly_was_are_left_out():
    seeds = [seed(base=(6, 5), style=(4, 5.01), align=(4.2, 4.98))]
    rows = alignment.table(0.1, seeds)
    assert [row["taken_back"] for row in rows] == [row["over_free"] for row in rows] == [None, None]
    assert rows[1]["kept"] == pytest.approx(0.9) and rows[1]["forgetting"] == pytest.approx(-0.02)
    assert "| 90% | – | – |" in alignment.markdown(rows) and list(alignment.ratios(rows)) == ["kept of align at 0.1"]


def test_nothing_is_free_beyond_what_lora_learned():
    curve = [(0.0, 1.0), (0.5, 0.8), (1.0, 0.0)]
    assert alignment.taken_back_free(curve, 1.2) == 0.0
    assert alignment.taken_back_free(curve, 0.5) == pytest.approx(0.8)
    assert alignment.taken_back_free(curve, 0.75) == pytest.approx(0.4)
    assert math.isnan(alignment.taken_back_free(curve, -0.1)), "worse than the base at style: no weight from 0 to 1 is"


def test_spikes_are_jumps_above_what_is_usual(tmp_path):
    losses = [4.0, 4.1, 9.0, 4.0, 3.9, 7.7, 8.2]
    for step, loss in enumerate(losses, 1):
        append_line(tmp_path / "metrics.jsonl", {"step": step, "loss": loss})
    append_line(tmp_path / "metrics.jsonl", {"step": 7, "eval/style": 99.0})
    assert alignment.spikes(tmp_path) == 2  # 9.0 over 4.05, 8.2 over 4.05; 7.7 is below 2 * 4.0


def test_held_out_works_are_cut_and_the_others_are_not(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "甲乙":
        (tmp_path / "in" / f"{name}.txt").write_text(f"{name}走进门来，坐下。\n" * 90, encoding="utf-8")
    paths, held = alignment.shortened(tmp_path / "out", [str(tmp_path / "in")], ["乙"], 30)
    assert [Path(path).parent.name for path in paths] == ["in", "out"] and held == ["乙"]
    assert len(Path(paths[1]).read_text(encoding="utf-8")) == 30
    with pytest.raises(UserError, match=r"got 丙, expected one of: 乙, 甲"):
        alignment.shortened(tmp_path / "out", [str(tmp_path / "in")], ["丙"], 30)


def test_picture_shows_every_way(tmp_path):
    alignment.draw(alignment.table(0.0, two()) + alignment.table(0.1, two()), tmp_path / "plane.svg")
    text = (tmp_path / "plane.svg").read_text(encoding="utf-8")
    assert text.count(">align<") == 2 and text.count("general text in training: ") == 2
    alignment.draw(alignment.table(0.0, two()), tmp_path / "plane.png")
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")


def test_the_pages_tables_are_the_stored_result():
    result = json.loads((ROOT / "benchmarks/results/alignment.json").read_text(encoding="utf-8"))
    page = alignment.PAGE.read_text(encoding="utf-8")
    assert with_tables(page, alignment.tables(result)) == page, (
        "`python -m benchmarks alignment --tables benchmarks/results/alignment.json` writes them anew"
    )
    assert f"]({alignment.PICTURE.name})" in page and alignment.PICTURE.is_file()


@pytest.mark.slow
def test_all_ways_are_trained_and_measured_and_kept(tmp_path):
    parser = argparse.ArgumentParser()
    alignment.arguments(parser)
    options = parser.parse_args(["--work", str(tmp_path), "--held-out-characters", "400"])
    options.quick = True
    found = alignment.run(options)
    ways = [row["way"] for row in found["rows"]]
    assert ways == ["style", *(f"align {beta:g}" for beta in alignment.BETAS), "without gold", "general", "on general", "end to end",
                    *(f"style * {weight:g}" for weight in alignment.WEIGHTS)]  # fmt: skip
    kept = json.loads((tmp_path / "ratio-0-seed-0" / "figures.json").read_text(encoding="utf-8"))
    assert all(math.isfinite(value) for figures in kept.values() for value in figures.values())
    assert kept["style * 0.5"]["style"] != kept["style"]["style"] != kept["base"]["style"]
    assert alignment.run(options)["rows"] == found["rows"], "measured once, read the second time"
