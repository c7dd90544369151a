"""The comparison of layouts: its design, its rows and tables by hand, and four runs of one step on the bundled base."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict

import pytest
from benchmarks.report import ROOT, with_tables
from tokenizers import Tokenizer

from benchmarks import branch_quality
from stylora.errors import UserError
from stylora.model.tokenizer_file import TINY, tokenizer_file

SMALL = branch_quality.Grid(
    ratios=(0.5,), turns=(0.3,), counts=(8,), ranks=(8,), short=None, rows=8, steps=1, learned=8
)
with_base = pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(tokenizer_file("tiny")))


# ------------------------------------------------------------------------------------------------------------- design


def test_strides_turn_the_fastest_chosen_pair_of_the_bundled_base():
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert config["rope_parameters"]["rope_theta"] == branch_quality.THETA and config["head_dim"] == 2 * branch_quality.PAIRS
    assert [branch_quality.stride(turn) for turn in branch_quality.Grid().turns] == [5, 30, 150]
    assert 8 * 150 <= config["max_position_embeddings"], "the coordinates of 8 branches lie in its context"


def test_the_design_moves_one_factor_and_crosses_two():
    grid = branch_quality.Grid()
    found = branch_quality.design(grid)
    assert len(found) == len(set(found)) == 45
    centre = asdict(grid.centre)
    moved = [sum(value != centre[name] for name, value in asdict(each).items() if name != "visibility") for each in found]
    assert Counter(zip((each.visibility for each in found), moved, strict=True)) == {
        ("isolated", 0): 1, ("isolated", 1): 13, ("isolated", 2): 2, ("columnar", 0): 1, ("columnar", 1): 14, ("columnar", 2): 14
    }  # fmt: skip
    crossed = {(each.ratio, each.count) for each in found if each.visibility == "columnar" and each.tokens == grid.tokens}
    assert crossed >= {(ratio, count) for ratio in grid.ratios for count in grid.counts if count > 1}


# --------------------------------------------------------------------------------------------------------------- rows


def test_texts_are_cut_at_an_end_of_a_sentence(tokenizer):
    text = "第一句话。第二句话很长很长，没有尽头"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert branch_quality.runs.cut(tokenizer, text, len(ids)) == text
    assert branch_quality.runs.cut(tokenizer, text, len(ids) - 1) == "第一句话。"
    plain = branch_quality.runs.cut(tokenizer, "没有句号的一句话" * 9, 6)
    assert plain and ("没有句号的一句话" * 9).startswith(plain) and len(plain) < 30


def test_held_out_rows_are_parted_and_every_kind_is_held_out(tmp_path):
    for name, rows in (("one", 8), ("two", 17)):
        lines = [{"main": f"{name}{row}：", "branches": ["甲", {"prompt": "问", "answer": "答"}, "丙"]} for row in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    files = {name: tmp_path / f"{name}.jsonl" for name in ("one", "two")}
    written = branch_quality.runs.write_rows(files, tmp_path / "rows", most=16, tokens=[24], counts=[2, 8])
    assert written["rows"] == {"one": 8, "two": 16}
    parts, whole = written["held"][24][2], written["held"][24][8]
    assert parts["kinds"] == ["one"] * 2 + ["two"] * 4 and whole["kinds"] == ["one", "two", "two"]

    def read(path):
        return [json.loads(line) for line in open(path, encoding="utf-8")]

    train, held, split = read(written["train"][24]), read(whole["path"]), read(parts["path"])
    assert len(train) == 7 + 14 and not {row["main"] for row in train} & {row["main"] for row in held}
    assert [row["branches"] for row in split[:2]] == [["甲", {"prompt": "问", "answer": "答"}], ["丙"]]
    assert [row["main"] for row in split[::2]] == [row["main"] for row in held]


def test_wrong_words_and_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="KIND=FILE"):
        branch_quality.named(["rows.jsonl"])
    with pytest.raises(UserError, match="a file of rows"):
        branch_quality.runs.read("one", tmp_path / "none.jsonl", 8)
    (tmp_path / "few.jsonl").write_text('{"main": "甲", "branches": ["乙"]}', encoding="utf-8")
    with pytest.raises(UserError, match="1 rows of texts"):
        branch_quality.runs.read("one", tmp_path / "few.jsonl", 8)


# ------------------------------------------------------------------------------------------------------------ figures


def invented(grid, seeds):
    """A run of every setting: columnar branches lose least at ratio 0.75, two of them at 0.25; rank helps a little."""
    for seed in seeds:
        for setting in branch_quality.design(grid):
            best = 0.25 if setting.count == 2 else 0.75
            loss = 2 + abs(setting.ratio - best) - setting.r / 1000 + 0.01 * seed + 0.1 * (setting.visibility == "isolated")
            losses = {"branches": loss, "trunks": 1.5, "cards": loss - 1}
            yield {"setting": asdict(setting), "seed": seed, "turn": setting.ratio, "before": None if seed else losses | {"branches": 3.0},
                   "after": losses, "tokens_read": 100, "seconds": 2.0}  # fmt: skip


def test_table_by_hand():
    grid = branch_quality.Grid()
    rows = branch_quality.table(branch_quality.design(grid), [0, 1, 2], list(invented(grid, [0, 1, 2])))
    centre = rows[0]
    assert (centre["before"], centre["loss"], centre["spread"]) == (3.0, pytest.approx(2.352), pytest.approx(0.01))
    assert centre["kinds"] == {"cards": pytest.approx(1.352)} and centre["tokens"] == 64
    assert branch_quality.best(rows) == {
        "best_ratio_isolated": 0.75, "best_ratio_columnar_2": 0.25, "best_ratio_columnar_4": 0.75,
        "best_ratio_columnar_8": 0.75, "best_ratio_columnar_short": 0.75,
    }  # fmt: skip
    told = {"hardware": {"cores": 2, "cpu": "CPU"}, "versions": {"torch": "2"}, "quick": False, "rows": rows,
            "settings": {"seeds": [0, 1, 2], "steps": 40, "learned": 24, "rows_of": {"cards": 9}}}  # fmt: skip
    found = branch_quality.tables(told)
    assert "| rank | 32 | 0.5 | 3.000 | 2.328 ± 0.010 | 3.000 | 2.228 ± 0.010 | 1.500 | 1.500 |" in found["QUALITY"]
    assert "| positions | add |" in found["QUALITY"] and found["QUALITY"].count("\n") == 2 + 5 + 3 + 2 + 4 + 4 + 1
    assert "| 0.75 | 30 | 0.75 | add | 2.102 ± 0.010 | 2.002 ± 0.010 | 1.500 | 1.500 |" in found["TURNED"]
    assert "| 2 | 2.252 ± 0.010 | **2.002 ± 0.010** |" in found["CROSS"] and "| 8, of at most 24 tokens |" in found["CROSS"]
    assert "ratio 0.6-0.7 | 8 branches of at most 24 tokens: 0.75 | at 0.75: +0.000 ± 0.000 |" in found["ADVICE"]
    assert "ratio 0.3-0.4 | 2 branches of at most 64 tokens: 0.25 | at 0.25: +0.000" in found["ADVICE"]
    assert "| 32 | at 4: +0.028 ± 0.000, at 8: +0.024 ± 0.000 |" in found["ADVICE"]


def test_picture_shows_every_group(tmp_path):
    grid = branch_quality.Grid()
    rows = branch_quality.table(branch_quality.design(grid), [0, 1], list(invented(grid, [0, 1])))
    branch_quality.draw(rows, tmp_path / "branches.svg")
    text = (tmp_path / "branches.svg").read_text(encoding="utf-8")
    assert text.count(">isolated<") == 2 and ">8 branches of at most 24 tokens<" in text
    assert ">2 branches<" in text and ">1 branches<" not in text


# --------------------------------------------------------------------------------------------------------------- runs


def options(tmp_path, **more):
    parser = argparse.ArgumentParser()
    branch_quality.arguments(parser)
    found = parser.parse_args(["--work", str(tmp_path), "--processes", "1"])
    found.quick = True
    return found


@with_base
def test_runs_measure_one_thing_go_on_and_leave_the_base_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(branch_quality, "QUICK", SMALL)
    base, _ = branch_quality.runs.opened()
    kept = {name: values.clone() for name, values in base.model.state_dict().items()}
    found = branch_quality.run(options(tmp_path))
    alone, alone_added, columnar, columnar_added = found["rows"]
    assert [(row["visibility"], row["positions"]) for row in found["rows"]] == [
        ("isolated", "replace"), ("isolated", "add"), ("columnar", "replace"), ("columnar", "add")
    ]  # fmt: skip
    assert alone["turn"] == pytest.approx(0.3) and alone["tokens_read"] == columnar["tokens_read"]
    assert all(row["loss"] != row["before"] for row in found["rows"])
    assert alone_added["trunks_before"] == columnar_added["trunks_before"] != alone["trunks_before"], "`add` leaves a trunk as it is"
    assert columnar["before"] != alone["before"] and set(alone["kinds"]) == {"cards", "rules", "sections"}
    now = base.model.state_dict()
    assert now.keys() == kept.keys() and all(values.equal(kept[name]) for name, values in now.items())

    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    computed = []
    whole = branch_quality.runs.run
    monkeypatch.setattr(branch_quality.runs, "run", lambda job: computed.append(job) or whole(job))
    again = branch_quality.run(options(tmp_path))
    assert [job.key for job in computed] == [json.loads(lines[-1])["key"]], "what lies in the log is not computed again"
    assert [row["losses"] for row in again["rows"]] == [row["losses"] for row in found["rows"]]


def test_the_pages_tables_are_the_stored_result():
    result = json.loads((ROOT / "benchmarks/results/branch-quality.json").read_text(encoding="utf-8"))
    page = branch_quality.PAGE.read_text(encoding="utf-8")
    assert with_tables(page, branch_quality.tables(result)) == page, (
        "`python -m benchmarks branch_quality --tables benchmarks/results/branch-quality.json` writes them anew"
    )
    assert f"]({branch_quality.PICTURE.name})" in page and branch_quality.PICTURE.is_file()
