"""A recipe with `load_in_4bit`: trained, gone on with, and opened on the base as the recipe had it, packed."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from stylora.model.base import load_base
from stylora.model.device import Device
from stylora.model.quantized import is_packed
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import parse_recipe
from stylora.run.evaluate import by_base
from stylora.run.open import find_model, open_model
from stylora.run.train import train

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
    pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the bundled base is not there"),
]
FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
IDS = torch.arange(300, 330)[None]


def recipe(folder, **changes):
    """Two steps on one book."""
    stage = {
        "data": {"train": str(ROOT / "examples/wuxia/双刀会全传.txt"), "window": 64, "min_window": 16}, "objective": {"kind": "clm"},
        "adapter": {"r": 4}, "prompts": [], "train": {
            "max_steps": 2, "samples_per_step": 2, "save_steps": 1, "eval_strategy": "no", "report_to": "none", "precision": "fp32",
            "learning_rate": 1e-2, "gradient_checkpointing": True,
        },
    }  # fmt: skip
    return parse_recipe({"base": "tiny", "output_dir": str(folder), "stages": [stage], **changes}, [], name="recipe")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_a_stage_opens_on_the_base_it_was_trained_on(tmp_path, cache):
    console = Console(record=True, width=200, file=io.StringIO())
    train(recipe(tmp_path / "packed", load_in_4bit=True), name="r", console=console, cache=cache)
    assert "weights in 4 bits" in console.export_text()
    stage = tmp_path / "packed/style"
    assert json.loads((stage / "stack.json").read_text(encoding="utf-8"))["base"]["load_in_4bit"] is True
    packed = load_base("tiny", FP32, load_in_4bit=True).model
    expected = None
    for place in (tmp_path / "packed", stage / "stack.json", stage / "adapter", stage / "checkpoints/checkpoint-2"):
        opened = open_model(str(place), FP32)
        assert any(is_packed(p) for p in opened.base.model.parameters()), place
        found = logits(opened.model)
        assert expected is None or torch.equal(found, expected), place
        expected = found
        with opened.model.disable_adapter():
            assert torch.equal(logits(opened.model), logits(packed))
    assert not torch.equal(expected, logits(packed))


def test_a_stage_on_the_whole_base_is_apart_from_it(tmp_path):
    one, other = find_model("tiny"), replace(find_model("tiny"), load_in_4bit=True)
    assert [len(group) for group in by_base([one, other, one])] == [2, 1]
    assert not any(is_packed(p) for p in open_model("tiny", FP32).base.model.parameters())


def test_an_optimizer_that_is_not_there_is_told_before_anything_is_read(tmp_path, command, recipe_file):
    if torch.cuda.is_available():
        pytest.skip("a GPU has it")
    ran = command("train", recipe_file(train="{samples_per_step: 4, optim: paged_adamw_8bit}"), f"output_dir={tmp_path / 'run'}")
    assert ran.code == 2 and ran.err.startswith("error: train.optim: got paged_adamw_8bit on ") and ran.err.count("\n") == 1
    assert "windows" not in ran.out and not (tmp_path / "run").exists()
