"""The comparison of what a frozen adapter costs, shrunk and in one process: all contenders learn the same thing. No speed is asserted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmarks.__main__ import main

from benchmarks import report


@pytest.fixture(scope="module")
def stack():
    """The module, with torch on one thread: matrices this small only lose by more."""
    import torch

    from benchmarks import stack

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield stack
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def outcome(stack):
    model = stack.kl.style.QWEN | dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    small = replace(stack.QUICK[0], model=model, words=500, window=48, learning_rate=0.02)
    return stack.compare([small], stack.measure)


def test_contenders_learn_the_same_adapter_and_the_stack_starts_elsewhere(outcome):
    single, stacked, folded = outcome["rows"]
    assert [each["contender"] for each in outcome["rows"]] == ["single", "stack", "folded"]
    assert single["trainable"] == stacked["trainable"] == folded["trainable"] > 0
    assert stacked["loss"] == pytest.approx(folded["loss"], rel=0.01) and stacked["loss"][0] != single["loss"][0]
    assert single["folded_difference"] is stacked["folded_difference"] is None and 0 < folded["folded_difference"] < 1


def test_ratios_are_to_the_adapter_alone(outcome):
    single, stacked, folded = outcome["rows"]
    for name, each in (("stack", stacked), ("folded", folded)):
        assert outcome["ratios"][f"time_{name}_over_single"] == each["seconds_per_step"] / single["seconds_per_step"]
        assert outcome["ratios"][f"memory_{name}_over_single"] == each["memory_above_model_mb"] / single["memory_above_model_mb"]


def three_way() -> dict:
    share = {"mean": 0.5, "low": 0.25, "high": 0.75}
    shares = {"follows": share, "stops": share, "style_score": share, "style_kept": None}
    return {"variants": [{"name": "base", **shares, "held_out": {"perplexity": {"mean": 9.4}}}]}


def test_a_stored_result_is_written_into_the_pages(stack, tmp_path, monkeypatch, outcome):
    stored, parts, pages = tmp_path / "stack.json", tmp_path / "three.json", [tmp_path / "a.md", tmp_path / "b.md"]
    told = {"hardware": report.hardware(), "versions": report.versions(), "quick": True, "seconds": 1.0, "benchmark": "stack"}
    for row in outcome["rows"]:
        row["memory_above_model_mb"] = max(row["memory_above_model_mb"], 1.0)
    stored.write_text(json.dumps(outcome | told), encoding="utf-8")
    parts.write_text(json.dumps(three_way()), encoding="utf-8")
    pages[0].write_text("<!-- STACK -->\nBEFORE\n<!-- /STACK -->\n", encoding="utf-8")
    pages[1].write_text("<!-- THREE -->\nBEFORE\n<!-- /THREE -->\n<!-- STACK -->\n<!-- /STACK -->\n", encoding="utf-8")
    monkeypatch.setattr(stack, "PAGES", pages)
    monkeypatch.setattr(stack, "THREE_WAY", parts)
    assert main(["stack", "--tables", str(stored)]) == 0
    assert "on a frozen one, folded into the base" in pages[0].read_text(encoding="utf-8")
    lower = pages[1].read_text(encoding="utf-8")
    assert "| base | 50% (25% to 75%) | 50% (25% to 75%) | 50% (25% to 75%) |  | 9 |" in lower and "BEFORE" not in lower


@pytest.mark.parametrize("name", ["benchmarks.md", "stacks.md"])
def test_the_pages_quote_the_stored_results(stack, name):
    stored, page = report.ROOT / "benchmarks/results/stack.json", report.ROOT / "docs" / name
    tables = stack.tables(json.loads(stored.read_text(encoding="utf-8")))
    if name == "stacks.md":
        tables |= stack.parts(json.loads(stack.THREE_WAY.read_text(encoding="utf-8")))
    text = page.read_text(encoding="utf-8")
    assert report.with_tables(text, tables) == text
