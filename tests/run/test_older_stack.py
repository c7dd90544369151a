"""The JSON of a second stage trains: an instruct adapter on a frozen style adapter, files where the original has them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.run.children import write_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from stylora.errors import UserError
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import load_recipe, load_recipe_told
from stylora.run.open import find_model
from stylora.run.train import train

ROOT = Path(__file__).parents[2]
QUICK = {"max_steps": 2, "samples_per_step": 2, "save_steps": 1, "eval_strategy": "no", "report_to": []}
pytestmark = pytest.mark.skipif(not (TINY / "tokenizer.json").is_file(), reason="the bundled base is not there yet")


@pytest.fixture(scope="module")
def style(tmp_path_factory) -> Path:
    """An adapter of two steps, in the layout of the original's first stage."""
    folder = tmp_path_factory.mktemp("一 stage1")
    recipe = load_recipe(write_recipe(folder, dropout=0.0, more=[], **QUICK), [f"output_dir={folder / 'style'}", "layout=flat"])
    train(recipe, name="x", console=Console(file=io.StringIO()), cache=folder / "cache")
    return folder / "style" / "checkpoint-2"


@pytest.fixture(scope="module")
def config(style, tmp_path_factory) -> dict[str, Any]:
    """Rows as the original has them: `conversations` of `role` and `content`, or of `from` and `value`, with a record_id."""
    folder = tmp_path_factory.mktemp("rows")
    lines = (ROOT / "examples" / "instruct" / "wuxia.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    spoken = {"user": "human", "assistant": "gpt"}
    rows = []
    for number, line in enumerate(lines):
        turns = json.loads(line)["messages"]
        if number % 2:
            turns = [{"from": spoken[turn["role"]], "value": turn["content"]} for turn in turns]
        rows.append({"conversations": turns, "record_id": number})
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return {
        "base_model_name": "tiny", "stage1_adapter_path": str(style), "dataset_path": str(folder / "rows.jsonl"), "max_seq_length": 256,
        "lora_r": 4, "lora_alpha": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
    }  # fmt: skip


def run(config: dict[str, Any], out: Path, *overrides: str) -> tuple[Any, list[str]]:
    """Two steps of it."""
    file = out.parent / "stage2_config.json"
    file.write_text(json.dumps({**config, "output_dir": str(out)}), encoding="utf-8-sig")
    recipe, told = load_recipe_told(file, ["train.max_steps=2", "train.eval_strategy=no", "train.save_steps=1", *overrides])
    return train(recipe, name="x", console=Console(file=io.StringIO()), cache=out.parent / "cache"), told


def test_it_trains_a_second_adapter_on_the_first(config, style, tmp_path):
    before = {path.name: path.read_bytes() for path in style.iterdir() if path.is_file()}
    out = tmp_path / "stage2_instruct_new_adapter"
    outcome, told = run(config, out)
    assert outcome is not None and outcome.steps == 2
    assert {path.name: path.read_bytes() for path in style.iterdir() if path.is_file()} == before, "the style adapter is not touched"
    for place in (out, out / "checkpoint-2"):
        assert (place / "adapter_model.safetensors").is_file() and (place / "adapter_config.json").is_file()
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
    info = json.loads((out / "adapter_info.json").read_text(encoding="utf-8"))
    assert (out / info["style_adapter"]).resolve() == style.resolve()
    found = find_model(str(out))
    assert [layer.name for layer in found.layers] == ["style", "instruct"] and found.base == "tiny"
    assert [folder.resolve() for folder in found.adapters] == [style.resolve(), out.resolve()]
    assert find_model(f"{out}@style=0.5").layers[0].weight == 0.5
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["loss"] > 0 for row in rows if "loss" in row] == [True, True]
    assert any("2 x gradient_accumulation_steps 1 x 1 process -> train.samples_per_step 2" in line for line in told)
    assert run(config, out)[0] is None, "given again, it is done"


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> Path:
    """The bundled base with one layer of random weights."""
    folder = tmp_path_factory.mktemp("base") / "shallow"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    described = AutoConfig.from_pretrained(TINY)
    layers = {"num_hidden_layers": 1}
    if getattr(described, "layer_types", None):
        layers["layer_types"] = described.layer_types[:1]
    described.update(layers)
    AutoModelForCausalLM.from_config(described).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bare", [False, True], ids=["a run's adapter", "an adapter from elsewhere"])
def test_an_adapter_of_another_base(config, style, shallow, tmp_path, bare):
    """Of a run's the base's fingerprint tells, of another the shapes."""
    place = style
    if bare:
        place = tmp_path / "elsewhere"
        place.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(style / name, place / name)
    with pytest.raises(UserError) as caught:
        run({**config, "base_model_name": str(shallow), "stage1_adapter_path": str(place)}, tmp_path / "out")
    words = "an adapter that does not fit this base" if bare else "which is not the base it was trained on"
    assert str(place) in str(caught.value) and words in str(caught.value)
    assert not (tmp_path / "out" / "stack.json").exists()


def test_mistakes_on_the_command_line(config, refused, tmp_path):
    """Exit code 2 and one sentence, before anything is written."""
    file = tmp_path / "c.json"
    file.write_text(json.dumps({**config, "stage1_adapter_path": "nowhere", "output_dir": str(tmp_path / "o")}), encoding="utf-8")
    assert "stage1_adapter_path: got 'nowhere', expected a folder with an adapter_config.json" in refused("train", file)
    file.write_text('{"base_model_name": "tiny",\n "seed" 1}', encoding="utf-8")
    assert "c.json:2: got broken JSON" in refused("train", file)
    assert not (tmp_path / "o").exists()
