"""The comparison of fine-tuning methods runs, shrunk and in one process; computed sizes are PEFT's; no figure of speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
from benchmarks.__main__ import main
from benchmarks.lora_sizes import BASES, RANKS

from benchmarks import lora_sizes, lora_task, report
from stylora.model.tokenizer_file import TINY

NEEDS_BASE = pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there")
STORED = report.ROOT / "benchmarks/results/lora.json"


@pytest.fixture(scope="module")
def lora():
    """The module, with torch on one thread."""
    import torch

    from benchmarks import lora

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lora
    torch.set_num_threads(threads)


# -------------------------------------------------------------------------------------------------------------- computed


@pytest.mark.parametrize("name", ["Qwen2.5-3B", "Qwen2.5-7B", "Qwen3-8B"])
def test_sizes_are_those_of_a_model_without_weights(name):
    """Against transformers and PEFT on the meta device, whole and in their parts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    shape = BASES[name]
    kind = Qwen3Config if shape.norms else Qwen2Config
    config = kind(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == shape.parameters
        assert sum(p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight")) == shape.packable
        peft = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"), low_cpu_mem_usage=True)
    assert sum(p.numel() for p in peft.parameters() if p.requires_grad) == shape.lora(16)


def test_lora_of_the_3b_base_is_thirty_million():
    """Not the 8.4 million, of 32 layers, that are told of it elsewhere."""
    shape = BASES["Qwen2.5-3B"]
    assert shape.layers == 36 and shape.lora(16) == 29_933_568 and shape.parameters == 3_085_938_688
    assert [shape.lora(r) for r in RANKS] == [r * shape.lora(1) for r in RANKS]
    assert f"{shape.lora(16) / shape.parameters:.2%}" == "0.97%"


def test_bytes_of_packed_weights_are_those_of_bitsandbytes():
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    import torch
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True)
    scales = state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * state.state2.absmax.element_size()
    assert (codes.numel() + scales) / 1024**2 == pytest.approx(lora_sizes.PACKED, rel=1e-9)


def test_memory_is_a_sum_of_its_parts():
    head, rule, *lines = lora_sizes.memory_table().splitlines()
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1 and len(lines) == len(BASES)
    for line, shape in zip(lines, BASES.values(), strict=True):
        whole, packed, learned, eight, lora, qlora, full = (float(cell) for cell in line.split(" | ", 1)[1].strip(" |").split(" | "))
        assert lora == pytest.approx(whole + learned, abs=0.02) and qlora == pytest.approx(packed + learned, abs=0.02)
        assert full == pytest.approx(8 * whole, abs=0.1) and eight < learned and packed < 0.6 * whole
        assert whole == pytest.approx(2e-9 * shape.parameters, abs=0.01)
    assert lora_sizes.parameters_table().splitlines()[4].startswith("| Qwen2.5-3B | 3.09 B | 36 | 15.0 M, 0.48% | 29.9 M, 0.97% |")


# ------------------------------------------------------------------------------------------------------------------ task


def test_the_rows_are_what_is_told_of_them(tmp_path):
    paths = lora_task.write_rows(tmp_path)
    rows = {side: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for side, path in paths.items()}
    assert {side: len(each) for side, each in rows.items()} == {"train": 560, "validation": 80, "seen": 80, "unseen": 144}
    asked = {side: {row["messages"][1]["content"] for row in each} for side, each in rows.items()}
    for side in asked:
        assert len(asked[side]) == len(rows[side]) and not any(asked[side] & asked[other] for other in asked if other != side)
    words = {name: each.split() for name, each in lora_task.CLASSES.items()}
    assert all(len(each) == len(set(each)) == 12 for each in words.values()) and len(sum(map(tuple, words.values()), ())) == 96
    for name, each in words.items():
        for word in each[: lora_task.UNSEEN_WORDS]:
            assert {w.format(word) for w in lora_task.WORDINGS} <= asked["unseen"], word
            others = {w.format(other) for w in lora_task.WORDINGS for other in sum(words.values(), []) if other != word}
            assert not any(word in text for text in asked["train"] - others), name
    assert lora_task.write_rows(tmp_path)["train"].read_text(encoding="utf-8") == paths["train"].read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- measured


def test_every_contender_is_a_recipe(lora, tmp_path):
    files = lora_task.write_rows(tmp_path)
    assert {"LoRA", "LoRA on q and v", "rsLoRA", "DoRA", "LoRA+", "LoRA, 8-bit AdamW", "QLoRA", "prefix tuning", "full fine-tuning"} == set(
        lora.FULL.contenders
    )
    recipes = {}
    for name, (rates, changes) in lora.FULL.contenders.items():
        attempt = lora.Attempt(contender=name, changes=changes, settings=lora.FULL, files=files, folder=tmp_path)
        recipes[name] = attempt.recipe(rates[0], 7)
        assert recipes[name].stages[0].train.learning_rate == rates[0] and recipes[name].stages[0].train.seed == 7
    assert recipes["QLoRA"].load_in_4bit and not recipes["LoRA"].load_in_4bit
    assert recipes["LoRA+"].stages[0].train.loraplus_lr_ratio == 16 and recipes["LoRA"].stages[0].train.loraplus_lr_ratio is None
    assert recipes["DoRA"].stages[0].adapter.dora and recipes["rsLoRA"].stages[0].adapter.rslora
    assert len(lora.FULL.seeds) == 3


@NEEDS_BASE
def test_every_way_is_trained_and_judged(lora):
    ways = ["LoRA", "prefix tuning", "full fine-tuning"]
    if importlib.util.find_spec("bitsandbytes") is not None:
        ways.insert(1, "QLoRA")
    contenders = {name: ((1e-3,), lora.FULL.contenders[name][1]) for name in ways}
    settings = replace(lora.QUICK, contenders=contenders, max_steps=2, samples_per_step=4, rows=3)
    outcome = lora.compare(settings, lora.measure)
    rows = {row["contender"]: row for row in outcome["rows"]}
    assert list(rows) == ways
    for row in rows.values():
        assert 0 <= row["seen_accuracy"] <= 1 and 0 < row["seen_loss"] < 20 and row["seconds_per_step"] > 0 and row["memory_mb"] >= 0
        assert row["seen_accuracy_sd"] == 0 and row["learning_rate"] == 1e-3
    full = rows["full fine-tuning"]
    assert full["share"] == 1 and full["trainable"] > 10 * rows["LoRA"]["trainable"] > 100 * rows["prefix tuning"]["trainable"] / 10
    assert rows["LoRA"]["adapter_bytes"] == pytest.approx(4 * rows["LoRA"]["trainable"], rel=0.05)
    if "QLoRA" in rows:
        assert rows["QLoRA"]["base_mb"] < rows["LoRA"]["base_mb"] and rows["QLoRA"]["trainable"] == rows["LoRA"]["trainable"]
    told = outcome | {"hardware": report.hardware(), "versions": report.versions(), "quick": True}
    table = lora.tables(told)["METHODS"].splitlines()
    assert len(table) == 2 + len(ways) and len({line.count("|") for line in table}) == 1
    assert "a quick run" in lora.tables(told)["MEASURED"] and "2 steps of 4 rows, 1 seeds" in lora.tables(told)["MEASURED"]
    assert outcome["ratios"]["parameters of full fine-tuning vs LoRA"] == full["trainable"] / rows["LoRA"]["trainable"]


@NEEDS_BASE
def test_a_row_is_right_only_with_all_of_its_answer(lora, tmp_path):
    """Scores made by hand: every target the most likely one, then one of them not."""
    import torch

    from stylora.model.base import load_base
    from stylora.model.device import choose_device

    files = lora_task.write_rows(tmp_path)
    attempt = lora.Attempt(contender="LoRA", changes={}, settings=lora.FULL, files=files, folder=tmp_path)
    samples = lora.read_samples(attempt.recipe(1e-3, 0, "seen"))[:5]
    base, device = load_base("tiny", choose_device("fp32")), choose_device("fp32")

    class Oracle(torch.nn.Module):
        def __init__(self, wrong: int) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, input_ids, attention_mask, use_cache):
            logits = torch.zeros(*input_ids.shape, 6400)
            for k, row in enumerate(samples):
                assert attention_mask[k].sum() == len(row.forest.ids)
                for number, (source, target) in enumerate(lora.edges_of(row)):
                    logits[k, source, 7 if k < self.wrong and number == 1 else target] = 20.0
            return type("Output", (), {"logits": logits})

    assert lora.judge(Oracle(0), base, samples, device) == (pytest.approx(0, abs=1e-3), 1.0)
    loss, right = lora.judge(Oracle(2), base, samples, device)
    assert right == 0.6 and loss > 1


def test_the_pages_tables_are_the_stored_result(lora):
    if not STORED.is_file():
        pytest.skip("nothing was measured yet")
    page, result = lora.PAGE.read_text(encoding="utf-8"), json.loads(STORED.read_text(encoding="utf-8"))
    assert report.with_tables(page, lora.tables(result)) == page, (
        "`python -m benchmarks lora --tables benchmarks/results/lora.json` writes them anew"
    )


def test_the_computed_tables_of_the_page_are_computed(lora):
    page = lora.PAGE.read_text(encoding="utf-8")
    assert report.with_tables(page, {"PARAMETERS": lora_sizes.parameters_table(), "MEMORY": lora_sizes.memory_table()}) == page


def test_a_stored_result_that_is_not_there_is_said(lora, tmp_path, capsys):
    assert main(["lora", "--tables", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
