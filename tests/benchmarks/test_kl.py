"""The comparison of KL's cost runs, shrunk and in one process; all contenders do the same work. No figure of speed is asserted."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from statistics import median
from types import SimpleNamespace

import pytest
from benchmarks.__main__ import main

from benchmarks import report
from stylora.samples.anchors import Kl


@pytest.fixture(scope="module")
def kl():
    """The module, with torch on one thread: matrices this small only lose by more."""
    import torch

    from benchmarks import kl

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield kl
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(kl):
    """The quick setting with a model of width 32, two micro-batches to try the plain way with, and a rate at which KL is soon no noise."""
    model = kl.style.QWEN | dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    first, second = kl.QUICK
    return [
        replace(first, model=model, words=500, window=48, naive=(4, 2), learning_rate=0.05),
        replace(second, window=32, samples_per_step=2),
    ]


@pytest.fixture(scope="module")
def outcome(kl, small):
    return kl.compare(small, kl.measure)


def test_rows_of_both_bases_compared_in_turns_and_the_rest_once(outcome):
    rows = [(each["contender"], *each["settings"].values(), len(each["rounds"])) for each in outcome["rows"]]
    fewer = "ce+kl on 0.25 of the anchors"
    assert rows == [
        ("stylora", "random", "ce", 4, 2), ("stylora", "random", "ce+kl", 4, 2), ("stylora", "random", fewer, 4, 1),
        ("naive", "random", "ce+kl", 4, 1), ("naive", "random", "ce+kl", 2, 1),
        ("stylora", "tiny", "ce", 2, 2), ("stylora", "tiny", "ce+kl", 2, 2), ("stylora", "tiny", fewer, 2, 1),
    ]  # fmt: skip
    for each in outcome["rows"]:
        assert each["seconds_per_step"] == pytest.approx(median(each["rounds"]), abs=1e-4) and each["seconds_per_step"] > 0
        assert each["memory_above_model_mb"] >= 0


def test_every_contender_has_the_same_losses(outcome):
    """In the precision of this device, bf16 on most; KL 0 before the first step, and of a quarter of the anchors another sum."""
    ce, held, fewer, naive, naive_in_halves, *tiny = outcome["rows"]
    assert ce["kl"] == [0.0, 0.0] and ce["ce"][0] == pytest.approx(math.log(512), abs=0.2)
    assert tiny[0]["kl"] == [0.0, 0.0] and tiny[0]["ce"] == pytest.approx(tiny[1]["ce"], rel=0.01)
    for each in (held, fewer, naive, naive_in_halves, *tiny[1:]):
        assert len(each["ce"]) == len(each["kl"]) == 2 and each["kl"][0] == pytest.approx(0, abs=1e-4) and each["kl"][1] > 0
    for each in (fewer, naive, naive_in_halves):
        assert each["ce"] == pytest.approx(held["ce"], rel=0.01)
        assert each["kl"][1] == pytest.approx(held["kl"][1], rel=0.3 if each is fewer else 0.05)


def test_ratios_come_from_the_rows(kl):
    def row(seconds, memory):
        return {"seconds_per_step": seconds, "memory_above_model_mb": memory}

    rows = [row(10.0, 1000.0), row(15.0, 1100.0), row(12.0, 1050.0)]
    bare = {"time_kl_over_ce": 1.5, "memory_kl_over_ce": 1.1, "time_fewer_anchors_over_ce": 1.2}
    assert kl._ratios(rows) == pytest.approx(bare)
    both = [*rows, row(30.0, 11000.0), row(40.0, 4400.0)]
    assert kl._ratios(both) == pytest.approx(bare | {"memory_vs_naive": 0.1, "memory_vs_leanest_naive": 0.25})


def test_ratios_of_the_first_base_are_bare(outcome):
    of_one = {"time_kl_over_ce", "memory_kl_over_ce", "time_fewer_anchors_over_ce"}
    naive = {"memory_vs_naive", "memory_vs_leanest_naive"}
    assert outcome["ratios"].keys() == of_one | naive | {f"tiny_{name}" for name in of_one}
    ce, held = outcome["rows"][:2]
    assert outcome["ratios"]["time_kl_over_ce"] == held["seconds_per_step"] / ce["seconds_per_step"]


def test_gradients_of_both_ways_are_the_same(kl, small, random_model):
    """In fp32, whole and in halves, with an adapter that is not fresh."""
    import torch

    from stylora.model.adapter import Adapter, attach
    from stylora.model.device import choose_device
    from stylora.model.forest_model import ForestModel

    device, held, gradients = choose_device("fp32"), Kl(beta=0.5), []
    settings = replace(small[0], words=262, window=12)
    windows = kl.style.draw_windows(replace(kl.style.FULL, words=262, window=13, samples_per_step=4, warm_up=0, steps=1))
    for way in ("stylora", "naive", "naive in halves"):
        model = random_model("Qwen3")
        peft = attach(model, Adapter(r=4), seed=0)
        torch.manual_seed(0)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        if way == "stylora":
            backward = kl.stylora(ForestModel(model, words=262, kl=held), windows, settings, device, held, 4)
        else:
            backward = kl.naive(peft, windows[None], device, held, 4 if way == "naive" else 2)
        losses = backward(0)
        gradients.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (losses, expected), *others = gradients
    assert losses[1] > 0 and all("lora_" in name for name in expected)
    for found, grads in others:
        assert found == pytest.approx(losses, rel=1e-5) and grads.keys() == expected.keys()
        assert all(torch.allclose(grads[name], expected[name], rtol=1e-3, atol=1e-6) for name in expected)


def test_the_command_takes_the_number_of_layers(kl, outcome, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(kl.psutil, "virtual_memory", lambda: SimpleNamespace(available=30e9))
    monkeypatch.setattr(kl, "compare", lambda bases, measure: asked.append(bases) or outcome)
    assert main(["kl", "--json"]) == 0 and main(["kl", "--quick", "--layers", "8", "--json"]) == 0
    full, quick = asked
    assert [each.model and each.model["num_hidden_layers"] for each in full] == [4, None]
    assert [each.model and each.model["num_hidden_layers"] for each in quick] == [8, None]
    assert full[0].window * full[0].samples_per_step == 4096 and full[0].model["vocab_size"] == 151_936
    assert full[0].naive[0] == full[0].samples_per_step, "memory is compared with as many windows at once"
    printed = json.loads("{" + capsys.readouterr().out.split("\n{", 1)[1])
    assert printed["benchmark"] == "kl" and printed["quick"] and printed["ratios"].keys() == outcome["ratios"].keys()
    assert printed["settings"]["tiny"] == json.loads(json.dumps(outcome["settings"]["tiny"])) == json.loads(json.dumps(asdict(
        replace(kl.QUICK[1], window=32, samples_per_step=2)
    )))  # fmt: skip


def test_too_little_memory_for_the_plain_way_is_said_at_once(kl, monkeypatch, capsys):
    monkeypatch.setattr(kl, "compare", lambda bases, measure: pytest.fail("nothing may be measured"))
    monkeypatch.setattr(kl.psutil, "virtual_memory", lambda: SimpleNamespace(available=16e9))
    assert main(["kl"]) == 2
    assert "16.0 GB" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- pages


def test_what_the_pages_quote_is_made_of_the_rows(kl, outcome):
    told = outcome | {"hardware": {"cores": 2, "cpu": "a processor"}, "versions": {"torch": "9.9"}, "quick": True}
    table = kl.tables(told)["KL"].splitlines()
    rows = [line.split(" | ") for line in table if line.startswith(("| random", "| tiny"))]
    assert [row[1] for row in rows] == [each["contender"] for each in outcome["rows"]]
    assert rows[0][5] == rows[5][5] == "1.00" and rows[1][5] == f"{outcome['ratios']['time_kl_over_ce']:.2f}"
    assert rows[6][7] == f"{outcome['ratios']['tiny_memory_kl_over_ce']:.2f} |" and "`--quick`" in table[-1]
    assert f"{outcome['ratios']['tiny_time_fewer_anchors_over_ce']:.2f}" in kl.costs(told)["COST"]


def test_a_stored_result_is_written_into_the_pages(kl, outcome, tmp_path, monkeypatch, capsys):
    told = outcome | {"hardware": report.hardware(), "versions": report.versions(), "quick": False}
    pages, result = [tmp_path / "a.md", tmp_path / "b.md"], tmp_path / "kl.json"
    for page, name in zip(pages, ("KL", "COST"), strict=True):
        page.write_text(f"before\n<!-- {name} -->\nold\n<!-- /{name} -->\nafter\n", encoding="utf-8")
    result.write_text(json.dumps(told), encoding="utf-8")
    monkeypatch.setattr(kl, "PAGES", pages)
    assert main(["kl", "--tables", str(result), "--json"]) == 0
    assert kl.tables(told)["KL"] in pages[0].read_text(encoding="utf-8") and "old" not in pages[0].read_text(encoding="utf-8")
    assert pages[1].read_text(encoding="utf-8") == f"before\n<!-- COST -->\n{kl.costs(told)['COST']}\n<!-- /COST -->\nafter\n"
    assert main(["kl", "--tables", str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err


def test_the_pages_quote_the_stored_result(kl):
    stored = report.ROOT / "benchmarks/results/kl.json"
    if not stored.is_file():
        pytest.skip("nothing was measured yet")
    result = json.loads(stored.read_text(encoding="utf-8"))
    for page, told in zip(kl.PAGES, (kl.tables(result), kl.costs(result)), strict=True):
        text = page.read_text(encoding="utf-8")
        assert report.with_tables(text, told) == text
