"""The comparison of branches, shrunk and in one process: all contenders say and learn the same. No figure of speed is asserted."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from benchmarks.__main__ import main

from benchmarks import report


@pytest.fixture(scope="module")
def branches():
    """The module, with torch on one thread: matrices this small only lose by more."""
    import torch

    from benchmarks import branches

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield branches
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def outcome(branches):
    from benchmarks import branches_contenders

    sizes = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    settings = replace(
        branches.QUICK, model=branches.QUICK.model | sizes, trunk=24, branches=3, prompts=(2, 5), new=6, learned=12, at_once=(3,), rounds=2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "SMALL", branches.SMALL | sizes | {"num_hidden_layers": 2})
        return branches.compare(settings, branches_contenders.measure)


def part(outcome, name):
    return [each for each in outcome["rows"] if each["settings"]["part"] == name]


def test_every_contender_has_a_row_and_those_compared_first_have_two_rounds(branches, outcome):
    decoders, trainers = part(outcome, "decode"), part(outcome, "train")
    assert [each["contender"] for each in decoders] == list(branches.DECODERS)
    assert {each["contender"] for each in decoders if len(each["rounds"]) == 2} == set(branches.COMPARED)
    assert [(each["contender"], each["settings"].get("at_once")) for each in trainers] == [
        ("forest", None), ("forest, columnar", None), ("separate", 3), ("own separate", 3)
    ]  # fmt: skip
    for each in decoders:
        assert 0 < each["seconds_after_prefill"] < each["seconds"] and "tokens" not in each


def test_in_fp32_all_say_the_same_and_learn_the_same(outcome):
    found = outcome["ratios"]
    assert found["equal_tokens"] == 1.0 and found["largest_loss_difference"] < 1e-4
    assert found["distinct_tokens"] >= 9, "a model that repeats itself would agree with anything"


def test_one_cache_holds_the_trunk_once(outcome):
    cache = {each["contender"]: each["cache_mb"] for each in part(outcome, "decode")}
    token = 1 * 2 * 2 * (32 // 4) * 2 / 1e6  # layers, keys and values, heads, width, bytes of bf16
    if cache["sequential"] > 40 * token:  # fp32, on a CPU without products in bf16
        token *= 2
    prompts = [2, 4, 5]
    assert cache["isolated"] == pytest.approx((24 + sum(prompts) + 3 * 5) * token, abs=1e-4)  # the last token drawn is never read
    assert cache["generate"] == pytest.approx(3 * (24 + 5 + 5) * token, abs=1e-4)
    assert cache["sequential"] == pytest.approx((24 + 5 + 5) * token, abs=1e-4)
    assert cache["sequential, copied"] == pytest.approx((24 + 24 + 5 + 5) * token, abs=1e-4)


def test_a_tree_has_the_trunk_once(outcome):
    tokens = {each["contender"]: each["tokens_per_step"] for each in part(outcome, "train")}
    assert tokens == {"forest": 60, "forest, columnar": 60, "separate": 108, "own separate": 108}


def row(contender, part, seconds, **more):
    return {"contender": contender, "settings": {"part": part, **more}, "seconds": seconds, "seconds_after_prefill": seconds / 2,
            "cache_mb": seconds, "memory_above_model_mb": 10 * seconds, "tokens_per_step": 9}  # fmt: skip


def test_ratios_are_to_the_faster_of_two_and_to_the_best_micro_batch(branches):
    seconds = {"isolated": 2, "columnar": 4, "sequential": 14, "own sequential": 12, "generate": 6, "sequential, copied": 8,
               "generate, copied": 3}  # fmt: skip
    decoders = [row(name, "decode", value) for name, value in seconds.items()]
    trainers = [row("forest", "train", 2), row("forest, columnar", "train", 3), row("separate", "train", 9, at_once=1),
                row("separate", "train", 8, at_once=2), row("own separate", "train", 5, at_once=1)]  # fmt: skip
    found = branches.ratios(decoders, trainers)
    assert found["decode_vs_sequential"] == 6 and found["decode_vs_generate"] == 3 and found["decode_vs_generate_copied"] == 1.5
    assert found["columnar_vs_sequential"] == 3 and found["decode_after_prefill_vs_generate"] == 3
    assert found["decode_cache_vs_generate"] == pytest.approx(1 / 3)
    assert found["train_vs_separate"] == 4 and found["train_vs_own_separate"] == 2.5 and found["train_memory_vs_separate"] == 0.25


def test_micro_batches_that_would_not_fit_are_left_out(branches, monkeypatch):
    monkeypatch.setattr(branches.torch.cuda, "is_available", lambda: False)
    for free, fitting in ((2e9, [1]), (20e9, [1, 2]), (40e9, [1, 2, 4]), (80e9, [1, 2, 4, 8])):
        monkeypatch.setattr(branches.psutil, "virtual_memory", lambda free=free: type("Free", (), {"available": free}))
        assert [rows for rows in branches.FULL.at_once if branches.fits(branches.FULL, rows, whole=True)] == fitting


def test_equal_tokens_are_counted(branches):
    assert branches.equal({"isolated": [[1, 2], [3, 4]], "sequential": [[1, 2], [3, 9]]}) == 0.75


def test_a_stored_result_is_written_into_the_pages(branches, tmp_path, monkeypatch, outcome):
    stored, pages = tmp_path / "branches.json", [tmp_path / "a.md", tmp_path / "b.md"]
    told = {"hardware": report.hardware(), "versions": report.versions(), "quick": True, "seconds": 1.0, "benchmark": "branches"}
    stored.write_text(json.dumps(outcome | told), encoding="utf-8")
    markers = "<!-- BRANCHES DECODE -->\nBEFORE\n<!-- /BRANCHES DECODE -->\n<!-- BRANCHES TRAIN -->\nBEFORE\n<!-- /BRANCHES TRAIN -->\n"
    for page in pages:
        page.write_text(markers, encoding="utf-8")
    monkeypatch.setattr(branches, "PAGES", pages)
    assert main(["branches", "--tables", str(stored)]) == 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "stylora, isolated" in text and "`labels`, a row for every branch | 3 |" in text and "BEFORE" not in text


@pytest.mark.parametrize("name", ["benchmarks.md", "branches.md"])
def test_the_pages_quote_the_stored_results(branches, name):
    stored, page = report.ROOT / "benchmarks/results/branches.json", report.ROOT / "docs" / name
    text = page.read_text(encoding="utf-8")
    assert report.with_tables(text, branches.tables(json.loads(stored.read_text(encoding="utf-8")))) == text


def test_the_pages_drawing_is_what_the_model_is_told():
    import torch

    from stylora.model.visibility import dense

    text = (report.ROOT / "docs/branches.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^[a-z] +((?:[#.] ){6}[#.]) +[a-z] +((?:[#.] ){6}[#.]) +(\d)$", text, re.MULTILINE)
    assert len(drawn) == 7
    end, time = torch.tensor([[7, 7, 5, 5, 5, 7, 7]]), torch.tensor([[int(line[2]) for line in drawn]])
    for place, columnar in enumerate((False, True)):
        seen = dense(end, time, columnar=columnar)[0, 0].tolist()
        assert [line[place].split() for line in drawn] == [["#" if sees else "." for sees in row] for row in seen]
