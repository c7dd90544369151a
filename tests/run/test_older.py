"""Recipes of the older forms train: the seeds' own YAML, with nothing but base and paths replaced; and files lie where they say."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

from stylora.errors import UserError
from stylora.recipe.recipe import load_recipe_told
from stylora.run.plan import open_tokenizer, read_data
from stylora.run.train import train
from stylora.samples.text import TextData

ROOT = Path(__file__).parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"


def yaml_blocks(seed: str) -> list[dict]:
    """Every YAML block of a seed that is a recipe or a section of one."""
    text = next(SEEDS.glob(f"{seed}_*.md")).read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return [block for block in blocks if {"model", "data", "training", "lora", "base_model"} & block.keys()]


def merged(*blocks: dict) -> dict:
    """Sections laid over each other, later keys first."""
    result: dict = {}
    for block in blocks:
        for key, value in block.items():
            result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`data/`: novels and a general.txt with a passage a line; `rows.json`: an array of conversations."""
    folder = tmp_path_factory.mktemp("旧")
    (folder / "data").mkdir()
    for path in sorted((ROOT / "examples" / "wuxia").glob("*.txt"))[:4]:
        (folder / "data" / path.name).write_text(path.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    general = sorted((ROOT / "examples" / "modern").glob("*.txt"))[:3]
    lines = [line for path in general for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 20][:60]
    (folder / "data" / "general.txt").write_text("\n".join(lines), encoding="utf-8")
    system = {"role": "system", "content": "把车型归入标准类别。只输出类别。"}
    rows = [
        {"messages": [system, {"role": "user", "content": f"[vehicle] {word}{n}"}, {"role": "assistant", "content": label}]}
        for n in range(10) for word, label in (("小轿车", "轿车"), ("大货车", "货车"), ("公交车", "客车"))
    ]  # fmt: skip
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def run(values: dict, folder: Path, out: Path, cache: Path, *overrides: str):
    """Two steps on the bundled base. Returns (outcome, what was translated, what was printed)."""
    (folder / "older.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    recipe, told = load_recipe_told(folder / "older.yaml", [f"output_dir={out}", "train.max_steps=2", *overrides])
    console = Console(file=io.StringIO(), width=300)
    return train(recipe, name="x", console=console, cache=cache), told, console.file.getvalue()


SMALL = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=1"]
SHORT = [*SMALL, "data.window=64", "data.min_window=16", "sampling.max_new_tokens=4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the seeds are not here")
def test_seeds_000_and_001_train_in_two_stages(folder, cache, tmp_path):
    """001's recipe; then 000's first stage laid over it; then its second on the first's checkpoint, with its KL."""
    (config,) = yaml_blocks("001")
    one, two = yaml_blocks("000")[:2]
    config = merged(config, {"model": {"model_name_or_path": "tiny"}, "data": {"data_dir": str(folder / "data")}})
    outcome, told, _ = run(config, folder, tmp_path / "001", cache, *SHORT)
    assert outcome.steps == 2 and set(outcome.held_out[-1]) == {"style", "general"}
    assert (tmp_path / "001" / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert any("2 x gradient_accumulation_steps 1 x 1 process -> train.samples_per_step 2" in line for line in told), told

    outcome, told, _ = run(merged(config, one), folder, tmp_path / "one", cache, *SHORT)
    assert outcome.steps == 2 and any("num_train_epochs" in line and "3-5" in line for line in told), told
    first = tmp_path / "one" / "checkpoint-2"
    before = {path.name: path.read_bytes() for path in first.iterdir()}

    second = merged(config, two, {"model": {"model_name_or_path": str(first)}})
    outcome, told, _ = run(second, folder, tmp_path / "two", cache, *SHORT)
    assert outcome.steps == 2 and any("goes on with this adapter" in line for line in told)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before, "the first stage is not touched"
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["eval/style"] == pytest.approx(last_style(tmp_path / "one"), abs=1e-6), "it begins where the first ended"
    assert all(row["kl"] > 0 for row in rows if "loss" in row)
    weights, theirs = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / "two", first))
    assert weights.keys() == theirs.keys() and any((weights[name] != theirs[name]).any() for name in weights)


def last_style(stage: Path) -> float:
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["eval/style"] for row in rows if "eval/style" in row][-1]


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the seeds are not here")
@pytest.mark.parametrize("lora", [0, 1], ids=["unified", "columns"])
def test_seed_003_trains(folder, cache, tmp_path, lora):
    """Its base, LoRA and training blocks; the second of each for the column mapper."""
    blocks = yaml_blocks("003")
    parts = [next(b for b in blocks if "base_model" in b)]
    for key in ("lora", "training"):
        found = [block for block in blocks if key in block]
        parts += found[: lora + 1]
    values = merged(*parts, {"base_model": "tiny", "data": {"train_file": str(folder / "rows.json")}})
    outcome, told, printed = run(values, folder, tmp_path, cache, *SMALL, "prompts=[]")
    assert outcome.steps == 2 and set(outcome.held_out[-1]) == {"answers"}
    assert (tmp_path / "final" / "adapter_model.safetensors").is_file() and (tmp_path / "checkpoint-2").is_dir()
    config = json.loads((tmp_path / "final" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == (32 if lora else 16)
    assert any("fp16" in line for line in told) and "best       step" in printed


def test_general_lines_of_an_older_recipe_are_samples_of_their_own(folder, tmp_path):
    """From its YAML through the translation and the cache: every window of general text lies in one line of general.txt."""
    values = {"model": {"model_name_or_path": "tiny"}, "data": {"data_dir": str(folder / "data"), "max_length": 64}}
    (tmp_path / "older.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    recipe, told = load_recipe_told(tmp_path / "older.yaml", ["data.min_window=8"])
    tokenizer = open_tokenizer("tiny")
    data = read_data(recipe, tokenizer, cache=tmp_path / "cache")
    assert isinstance(data, TextData) and any(line.startswith("data.general_lines true") for line in told)
    general = folder / "data" / "general.txt"
    lines = general.read_text(encoding="utf-8").splitlines()
    pieces = [piece for piece in data.pieces if piece.source == "general"]
    origins = {f"{general.as_posix()}:{number}": line for number, line in enumerate(lines, 1)}
    assert len(pieces) > 50 and all(piece.characters <= len(origins[piece.origin]) for piece in pieces)
    windows = [data.ids(i).tolist() for i in range(len(data)) if data.part(i) == "general"]
    windows += [ids.tolist() for ids in data.validation["general"]]
    texts = [tokenizer.decode(ids).strip("\ufffd") for ids in windows]  # a window may end inside a character
    assert len(texts) >= len(pieces) and all(any(text in line for line in lines) for text in texts)


def test_an_adapter_is_not_trained_into_its_own_folder(folder, cache, tmp_path):
    values = {
        "model": {"model_name_or_path": "tiny", "lora_r": 4}, "data": {"data_dir": str(folder / "data"), "max_length": 64},
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
    }  # fmt: skip
    run(values, folder, tmp_path / "one", cache, "data.min_window=16", "prompts=[]")
    values["model"]["model_name_or_path"] = str(tmp_path / "one" / "checkpoint-2")
    for place in (tmp_path / "one", tmp_path / "one" / "checkpoint-2"):
        with pytest.raises(UserError, match="the folder of adapter.path|another run|files that are no run"):
            run(values, folder, place, cache, "data.min_window=16", "prompts=[]")
    assert (tmp_path / "one" / "checkpoint-2" / "adapter_model.safetensors").is_file()
