"""Rows of branches by epoch: rows of one trunk lie on one side, draws are the seed's, nothing is cut, all that is not used is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.model.tokenizer_file import TINY
from stylora.samples.branch_data import BranchData, prepare_branches
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import BranchFormat
from stylora.samples.settings import Data

SHARED = Path(__file__).parents[3] / "shared" / "corpus"
EXAMPLES = Path(__file__).parents[2] / "examples" / "branches"
STOP = "<|im_end|>"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
LAYOUT = Branches(branch_stride=8)
FORM = BranchFormat(TOKENIZER, LAYOUT, eos_token=STOP, chat=None)


def write(path: Path, rows: list[object]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def row(number: int, branches: int = 3) -> dict[str, object]:
    return {"main": f"第{number}件事：", "branches": [f"其{n}，{'说' * (1 + (number + n) % 5)}。" for n in range(branches)]}


def prepare(train: str, *, layout: Branches = LAYOUT, context: int = 512, **given) -> BranchData:
    return prepare_branches(Data(format="branches", train=train, **given), layout, form=FORM, context=context)


def told(data: BranchData, epoch: int = 0) -> list[list[int]]:
    return [data.sample(index, epoch).forest.ids.tolist() for index in range(len(data))]


def words(sample) -> str:
    return TOKENIZER.decode(sample.forest.ids.tolist())


def test_epochs_hold_every_row_once(tmp_path):
    data = prepare(write(tmp_path / "rows.jsonl", [row(n) for n in range(40)]), validation=0.1, seed=3)
    assert len(data) == 36 and len(data.validation_samples["branches"]) == 4
    assert sorted(data.epoch(0)) == sorted(data.epoch(1)) == list(range(36)) and data.epoch(0).tolist() != data.epoch(1).tolist()
    assert data.epoch(0).tolist() == data.epoch(0).tolist() and data.epoch(0).dtype == np.int64
    assert data.lengths.tolist() == [len(data.sample(i, 0)) for i in range(36)]
    assert told(data, 0) == told(data, 1), "all branches fit, so nothing is drawn"
    assert data.branch_counts(0).tolist() == [3] * 36 and data.branch_counts(0).dtype == np.int64
    assert {data.part(i) for i in range(36)} == {"branches"} and data.source(0).startswith((tmp_path / "rows.jsonl").as_posix() + ":")
    summary = data.summary
    assert (summary.rows, summary.held, summary.branches, summary.alone, summary.most, summary.duplicates) == (36, 4, 108, 0, 3, 0)
    assert summary.epoch_tokens == data.lengths.sum() and (summary.epoch_samples, summary.epoch_branches) == (36, 108)
    assert summary.epoch_learned_tokens == sum(data.sample(i, 0).edges.weight.sum() for i in range(36))
    assert summary.warnings == () and json.dumps(summary.as_json())
    assert dict(summary.told())["held out"] == "4 rows; rows of one trunk lie on one side"
    assert data.proof() == "branches decode to answer + stop: 96 answers of 32 rows"


def test_rows_of_one_trunk_lie_on_one_side(tmp_path):
    rows = [{"main": f"第{n % 20}件事：", "branches": [f"其{n}。"]} for n in range(60)]
    path = write(tmp_path / "rows.jsonl", rows)
    sides = {}
    for seed in (0, 0, 1):
        data = prepare(path, validation=0.2, seed=seed)
        held = {words(sample).partition("：")[0] for sample in data.validation_samples["branches"]}
        learned = {words(data.sample(index, 0)).partition("：")[0] for index in range(len(data))}
        assert len(data) == 48 and len(held) == 4 and not held & learned and len(held | learned) == 20
        assert sides.setdefault(seed, held) == held
    assert sides[0] != sides[1]
    one = prepare(write(tmp_path / "one.jsonl", rows[::20]), validation=0.5)
    assert len(one) == 3 and one.summary.warnings[0].startswith("nothing is held out: all rows have one trunk")
    assert prepare(path, validation=0.0).validation_samples == {"branches": []}


def test_sample_ids_are_of_the_rows(tmp_path):
    twice = prepare(write(tmp_path / "twice.jsonl", [row(n % 20) for n in range(40)]), validation=0.0)
    ids = [twice.sample_id(index) for index in range(40)]
    assert len(set(ids)) == 40 and len({name for name, _ in ids}) == 20 and all(0 <= name < 2**63 for name, _ in ids)
    fewer = prepare(write(tmp_path / "fewer.jsonl", [row(n) for n in range(5, 10)]), validation=0.0)
    assert {fewer.sample_id(index) for index in range(5)} <= set(ids), "the same whatever else is in the data"


def test_other_branches_are_drawn_every_epoch_and_stand_in_the_rows_order(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(n, 12) for n in range(30)])
    data, again, other = (prepare(path, validation=0.0, branches_per_sample=4, seed=seed) for seed in (0, 0, 1))
    whole = prepare(path, validation=0.0, branches_per_sample=12)
    drawn = [[tuple(data.drawn(index, epoch)) for index in range(30)] for epoch in range(3)]
    assert all(len(set(each)) == 4 and list(each) == sorted(each) for epoch in drawn for each in epoch)
    assert drawn[0] != drawn[1] != drawn[2] and len(set(drawn[0])) > 20, "by epoch, and by row"
    assert [told(data, epoch) for epoch in range(3)] == [told(again, epoch) for epoch in range(3)]
    assert told(data) != told(other)
    for index in (0, 17):
        sample, full = data.sample(index, 0), whole.sample(index, 0)
        trunk = int((full.forest.branch == 0).sum())
        parts = [full.forest.ids[full.forest.branch == LAYOUT.coordinate(number)].tolist() for number in data.drawn(index, 0)]
        assert sample.forest.ids.tolist() == full.forest.ids[:trunk].tolist() + sum(parts, [])
        assert sorted(set(sample.forest.branch.tolist())) == [0, 8, 16, 24, 32], "coordinates count those that are read"
    assert all(data.lengths[index] >= max(len(data.sample(index, epoch)) for epoch in range(3)) for index in range(30))
    assert (data.branch_counts(0) == 4).all() and data.summary.epoch_branches == 120 and data.summary.branches == 360


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 3))
def test_dynamic_counts_lie_within_what_was_asked(tmp_path_factory, least, most, seed):
    least, most = min(least, most), max(least, most)
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [row(n, 1 + n % 10) for n in range(30)])
    data = prepare(path, validation=0.0, min_branches_per_sample=least, max_branches_per_sample=most, seed=seed)
    for epoch in (0, 1):
        counts = data.branch_counts(epoch)
        there = np.array([1 + index % 10 for index in range(30)])
        assert (counts >= np.minimum(least, there)).all() and (counts <= np.minimum(most, there)).all()
        assert counts.tolist() == [len(data.drawn(index, epoch)) for index in range(30)]
        assert counts.tolist() == [len(set(data.sample(index, epoch).forest.branch.tolist())) - 1 for index in range(30)]


def test_dynamic_counts_take_every_value(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(n, 9) for n in range(60)])
    data = prepare(path, validation=0.0, min_branches_per_sample=2, max_branches_per_sample=5)
    assert set(data.branch_counts(0).tolist()) == {2, 3, 4, 5} and data.branch_counts(0).tolist() != data.branch_counts(1).tolist()


def test_texts_alone_are_learned_whole_beside_rows_with_branches(tmp_path):
    data = prepare(write(tmp_path / "rows.jsonl", [{"text": "渡口在东边。"}, row(1)]), validation=0.0, max_branches_per_sample=4)
    assert data.branch_counts(0)[0] == 1 and data.summary.alone == 1
    sample = data.sample(0, 0)
    assert sample.edges.target.tolist() == [*sample.forest.ids[1:].tolist(), TOKENIZER.token_to_id(STOP)]
    assert data.proof() == "branches decode to answer + stop: 4 answers of 2 rows"


def test_held_out_rows_are_read_with_their_first_branches(tmp_path):
    train = write(tmp_path / "a.jsonl", [row(n) for n in range(6)])
    held = write(tmp_path / "b.jsonl", [row(50, 12), {"text": "一二三"}, row(3)])
    data = prepare(str(tmp_path), validation=[held], branches_per_sample=2)
    assert len(data) == 6 and data.source(5).startswith(Path(train).as_posix())
    first, alone, _ = data.validation_samples["branches"]
    assert words(first).startswith("第50件事：") and "其1" in words(first) and "其2" not in words(first)
    assert sorted(set(first.forest.branch.tolist())) == [0, 8, 16]
    said = row(50, 2)["branches"]
    assert data.validation_characters["branches"][:2] == [sum(map(len, said)), 3]
    assert len(alone.edges) == len(alone)
    assert data.summary.warnings[0].startswith("1 held-out rows have a trunk that also stands in the training data")
    trunks = prepare(str(tmp_path), validation=[held], branches_per_sample=2, train_on_main=True)
    assert trunks.validation_characters["branches"][0] == sum(map(len, said)) + len("第50件事：")
    with pytest.raises(UserError, match="missing.jsonl"):
        prepare(train, validation=["missing.jsonl"])
    with pytest.raises(UserError, match="data.train: got only files that are held out"):
        prepare(held, validation=[held])


def test_what_does_not_fit_is_refused_and_never_cut(tmp_path):
    long = [{"main": "甲", "branches": ["乙", "长话" * 60]}, {"main": "渡" * 90, "branches": ["乙"]}, {"text": "船" * 600}]
    path = write(tmp_path / "rows.jsonl", [row(1), *long, "{", row(2)])
    data = prepare(path, validation=0.0, max_seq_len=40, context=80, branches_per_sample=3)
    refused = {reject.origin.rpartition(":")[2]: reject.reason for reject in data.rejects}
    assert sorted(refused) == ["2", "3", "4", "5"] and len(data) == 2
    assert refused["2"].startswith("branch 2 has ") and refused["2"].endswith("more than data.max_seq_len, 40; it is never cut")
    assert refused["3"].startswith("main and the longest branch have ") and "the context of the base, 80" in refused["3"]
    assert refused["4"].startswith("the text has ") and "not valid JSON" in refused["5"]
    assert [reject.as_json()["row"] for reject in data.rejects][:3] == [
        {"main": "甲", "branches": [{"prompt": "", "answer": "乙"}, {"prompt": "", "answer": "长话" * 60}]},
        {"main": "渡" * 90, "branches": [{"prompt": "", "answer": "乙"}]}, {"text": "船" * 600},
    ]  # fmt: skip
    roomy = prepare(path, validation=0.0, context=2048)
    assert len(roomy) == 5 and len(roomy.rejects) == 1, "the complement: nothing but the broken row"


def test_the_limits_are_exact(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(1, 2)])
    sample = prepare(path, validation=0.0).sample(0, 0)
    longest, branch = int(sample.forest.time.max()) + 1, int(np.bincount(sample.forest.branch)[8::8].max())
    flat, added = Branches(rope_2d_ratio=0), Branches(branch_stride=8, positions="add")
    few = {"validation": 0.0, "branches_per_sample": 2}
    assert len(prepare(path, layout=flat, context=longest, max_seq_len=branch, **few)) == 1
    assert len(prepare(path, layout=added, context=longest + 8, **few)) == 1
    for layout, context, least, reason in (
        (flat, longest - 1, branch, "main and the longest"), (flat, longest, branch - 1, "max_seq_len"),
        (added, longest + 7, branch, "the coordinate 8 of the last branch"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"no usable row .*{reason}"):
            prepare(path, layout=layout, context=context, max_seq_len=least, **few)


@pytest.mark.parametrize(("layout", "context", "most", "fits"), [
    (Branches(), 1024, 8, True), (Branches(), 1023, 8, False), (Branches(), 1024, 9, False),
    (Branches(rope_2d_ratio=0), 512, 40, True),
    (Branches(positions="add"), 1024, 8, True), (Branches(positions="add"), 1024, 9, False),
])  # fmt: skip
def test_coordinates_past_the_context_are_refused_at_once(tmp_path, layout, context, most, fits):
    path = write(tmp_path / "rows.jsonl", [row(1)])
    for name in ("branches_per_sample", "max_branches_per_sample"):
        if fits:
            assert len(prepare(path, layout=layout, context=context, validation=0.0, **{name: most})) == 1
        else:
            with pytest.raises(UserError, match=rf"branches\.branch_stride: got 128, .* branch {most} at .* lower it, or data\.{name}"):
                prepare("nowhere", layout=layout, context=context, **{name: most})


def test_nothing_left_names_the_first_reasons(tmp_path):
    path = write(tmp_path / "rows.jsonl", ["{", {"main": "甲", "branches": []}])
    with pytest.raises(UserError, match="data.train: got no usable row .*rows.jsonl:1: not valid JSON.*rows.jsonl:2: `branches` is empty"):
        prepare(path)


def test_what_is_told_of_repeated_quoted_and_indistinguishable_branches(tmp_path):
    rows = [{"main": "甲", "branches": ["乙", "乙", {"prompt": "问", "answer": "乙"}]}, {"main": "丙<|im_end|>", "branches": ["丁"]}]
    path = write(tmp_path / "rows.jsonl", rows)
    data = prepare(path, validation=0.0)
    assert (data.summary.duplicates, data.summary.quoted, data.summary.warnings) == (1, 1, ())
    assert {"repeated", "quoted"} <= dict(data.summary.told()).keys() and len(data.sample(0, 0).edges) == 6, "repeated branches are kept"
    flat = prepare(path, validation=0.0, layout=Branches(rope_2d_ratio=0))
    assert flat.summary.warnings[0].startswith("1 rows have several branches without a prompt, and nothing tells these apart")
    assert prepare(path, validation=0.0, layout=Branches(rope_2d_ratio=0, visibility="columnar")).summary.warnings == ()


def test_the_fingerprint_is_of_what_is_trained(tmp_path):
    rows = [row(n) for n in range(10)]
    prints = {
        name: prepare(write(tmp_path / f"{name}.jsonl", changed), layout=layout, **given).fingerprint
        for name, changed, layout, given in (
            ("a", rows, LAYOUT, {}), ("copy", [{**each, "id": 1} for each in rows], LAYOUT, {}), ("seed", rows, LAYOUT, {"seed": 1}),
            ("less", rows[:-1], LAYOUT, {}), ("drawn", rows, LAYOUT, {"branches_per_sample": 2}),
            ("main", rows, LAYOUT, {"train_on_main": True}), ("stride", rows, Branches(branch_stride=9), {}),
            ("columnar", rows, Branches(branch_stride=8, visibility="columnar"), {}),
        )
    }  # fmt: skip
    assert prints["a"] == prints["copy"] and len(set(prints.values())) == 7


@pytest.mark.parametrize("name", ["cards", "sections", "rules"])
def test_the_examples_are_all_used(name):
    data = prepare(str(EXAMPLES / f"{name}.jsonl"), layout=Branches(), context=2048)
    assert data.rejects == [] and len(data) > 30 and data.proof() and data.summary.duplicates == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared corpus is not there")
def test_a_messy_file_gives_its_good_rows():
    data = prepare(str(SHARED / "messy" / "21_bad_parallel.jsonl"), layout=Branches(), context=2048, validation=0.0)
    assert sorted(int(reject.origin.rpartition(":")[2]) for reject in data.rejects) == [3, 4, 5, 6, 7, 8, 10, 11, 15, 17]
    assert [int(data.source(index).rpartition(":")[2]) for index in range(len(data))] == [1, 2, 9, 12, 13, 14, 18]
    assert data.branch_counts(0).tolist() == [3, 1, 8, 1, 3, 2, 4] and data.drawn(2, 0) != data.drawn(2, 1)
