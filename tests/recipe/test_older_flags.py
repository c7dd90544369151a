"""The flags of the trainer of branches: what each becomes, what is said of it, and mistakes named by the flag."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.recipe.older_flags import FLAGS, SWITCHES, read_flags, translate_flags
from stylora.recipe.recipe import Recipe, load_flags_told, parse_recipe

SEED = Path(__file__).parents[3] / "shared" / "seeds"
QUICK = (
    "--base_model Qwen/Qwen2.5-0.5B-Instruct --data_path data.jsonl --lora_rank 8 --batch_size 4 --batch_by_samples "
    "--max_branches_per_sample 16 --rope_2d_ratio 0.5 --epochs 3 --ddp"
)
LEAST = ["--base_model", "b", "--data_path", "d"]


@pytest.fixture(autouse=True)
def has_bf16(monkeypatch):
    """Whatever machine runs the tests."""
    monkeypatch.setattr("stylora.recipe.older_flags.multiplies", lambda precision: True)


def read(words: str | list[str], **settings) -> tuple[Recipe, list[str]]:
    recipe, lines, _ = load_flags_told(words.split() if isinstance(words, str) else words, **settings)
    return recipe, lines


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        read(list(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def current(base: str = "b", rows: str = "d", name: str = "lora_b", **sections: dict) -> Recipe:
    """What nobody said, in the current form, and what is said."""
    stage = {
        "name": "parallel",
        "data": {"format": "branches", "train": rows, "max_seq_len": 1024, "branches_per_sample": 8, "batch_by_samples": False},
        "branches": {"visibility": "columnar", "rope_2d_ratio": 0.5, "branch_stride": 128, "positions": "replace"},
        "adapter": {"r": 8, "alpha": 8, "targets": "all-linear"},
        "train": {"num_train_epochs": 3, "learning_rate": 1e-4, "samples_per_step": 16, "precision": "bf16"},
    }
    for section, values in sections.items():
        stage[section] = {key: value for key, value in {**stage[section], **values}.items() if value is not None}
    return parse_recipe({"base": base, "output_dir": f"out/lora/{name}", "layout": "beside", "stages": [stage]}, [], name="test")


def test_the_quick_start():
    data = {"batch_by_samples": True, "max_branches_per_sample": 16, "min_branches_per_sample": 1, "branches_per_sample": None}
    base = "Qwen/Qwen2.5-0.5B-Instruct"
    expected = current(base, "data.jsonl", "lora_Qwen2.5-0.5B-Instruct", data=data, train={"samples_per_step": 32})
    recipe, lines = read(QUICK, processes=8)
    assert recipe == expected
    assert lines == [
        f"--base_model {base} -> base",
        "--out_dir out/lora, --lora_name lora -> output_dir out/lora/lora_Qwen2.5-0.5B-Instruct: checkpoint-N, and what a run leaves",
        "layout beside: the finished adapter in out/lora/lora_Qwen2.5-0.5B-Instruct_final, as safetensors; the original wrote a .pth",
        "--data_path data.jsonl -> data.train, with data.format branches",
        "data.max_seq_len 1024: not given, the original's default",
        "--max_branches_per_sample 16 -> data.max_branches_per_sample 16",
        "data.min_branches_per_sample 1: not given, the original's default",
        "--batch_by_samples -> data.batch_by_samples true: a batch counts rows",
        "branches.visibility columnar: branches see each other's earlier tokens, as in the original",
        "branches.positions replace, as in the original; but each branch counts its own time, whoever is beside it",
        "--rope_2d_ratio 0.5 -> branches.rope_2d_ratio 0.5",
        "branches.branch_stride 128: not given, the original's default",
        "--lora_rank 8 -> adapter.r 8",
        "adapter.alpha 8: the original had no scale, which is alpha = rank",
        "adapter.targets all-linear: the original adapted square layers only, of which some bases have none",
        "--epochs 3 -> train.num_train_epochs 3",
        "train.learning_rate 0.0001: not given, the original's default",
        "--batch_size 4 x --accumulation_steps 1 x 8 processes -> train.samples_per_step 32 rows "
        "(--accumulation_steps: not given, the original's default)",
        "--ddp: 8 processes train together",
        "train.precision bf16: not given, the original's default",
    ]


def test_what_nobody_says_is_what_the_original_took():
    assert read(LEAST)[0] == current()


def test_every_flag_is_read():
    words = [
        "--base_model=Qwen/Qwen2.5-7B-Instruct", "--data_path", "a=b.jsonl", "--lora_rank=32", "--lora_name", "甲", "--out_dir", "o/",
        "--rope_2d_ratio", "0.3", "--branch_stride", "64", "--align_to", "left", "--max_seq_len", "512", "--branches-per-sample", "4",
        "--epochs", "1", "--batch_size", "1", "--accumulation_steps", "8", "--learning_rate", "5e-5", "--dtype", "float32", "--ddp",
        "--interleave_branches", "train.max_steps=7",
    ]  # fmt: skip
    recipe, lines = read(words, processes=2)
    expected = current(
        "Qwen/Qwen2.5-7B-Instruct", "a=b.jsonl", data={"max_seq_len": 512, "branches_per_sample": 4},
        branches={"rope_2d_ratio": 0.3, "branch_stride": 64}, adapter={"r": 32, "alpha": 32},
        train={"num_train_epochs": 1, "learning_rate": 5e-5, "samples_per_step": 16, "precision": "fp32", "max_steps": 7},
    )  # fmt: skip
    assert recipe == expected.model_copy(update={"output_dir": "o/甲_Qwen2.5-7B-Instruct"})
    assert "--align_to left: always so" in lines and any(line.startswith("--interleave_branches: no meaning here") for line in lines)
    said = {flag for flag in FLAGS if any(flag in line for line in lines)}
    assert said == {*FLAGS} - {"--batch_by_samples", "--max_branches_per_sample", "--min_branches_per_sample"}


def test_a_number_of_branches_that_is_drawn():
    recipe, _ = read([*LEAST, "--max_branches_per_sample", "6", "--min_branches_per_sample", "2"])
    data = recipe.stages[0].data
    assert (data.max_branches_per_sample, data.min_branches_per_sample, data.branches_per_sample) == (6, 2, 8)


@pytest.mark.parametrize(("name", "precision"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32"), ("bf16", "bf16")])
def test_precision(monkeypatch, name, precision):
    assert read([*LEAST, "--dtype", name])[0].stages[0].train.precision == precision
    monkeypatch.setattr("stylora.recipe.older_flags.multiplies", lambda precision: False)
    recipe, lines = read([*LEAST, "--dtype", name])
    assert recipe.stages[0].train.precision == (None if precision != "fp32" else "fp32")
    assert (precision == "fp32") != any("this one has no" in line for line in lines)


@pytest.mark.skipif(not SEED.is_dir(), reason="the seeds are not here")
def test_every_command_of_the_seed_loads():
    """As its page has them, each with the data path that the page leaves out of some."""
    text = next(SEED.glob("004_*.md")).read_text(encoding="utf-8").replace("\\\n", " ")
    calls = [line.partition("train_hf_lora.py")[2].split() for line in text.splitlines() if "train_hf_lora.py" in line]
    sizes = {}
    for words in calls:
        recipe, _ = read(words if "--data_path" in words else [*words, "--data_path", "d"], processes=4)
        sizes[recipe.base] = (recipe.stages[0].adapter.r, recipe.stages[0].train.samples_per_step)
    assert len(calls) == 4 and sizes["Qwen/Qwen2.5-1.5B-Instruct"] == (16, 32) and sizes["Qwen/Qwen2.5-7B-Instruct"] == (32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base_model", "b"], "stylora train: --data_path: got nothing, expected rows of main and branches"),
        (["--data_path", "d"], "--base_model: got nothing, expected a base"),
        ([*LEAST, "--lora_rnk", "8"], "--lora_rnk: got an unknown flag, expected one that is known here; did you mean '--lora_rank'?"),
        ([*LEAST, "--epoch=8"], "--epoch=8: got an unknown flag, expected one that is known here; did you mean '--epochs'?"),
        ([*LEAST, "--forse"], "--forse: got an unknown flag, expected one that is known here; did you mean '--force'?"),
        ([*LEAST, "--lora_rank"], "--lora_rank: got nothing behind it, expected a value"),
        ([*LEAST, "--lora_rank", "--ddp"], "--lora_rank: got nothing behind it"),
        ([*LEAST, "--ddp=true"], "--ddp: got 'true', expected no value"),
        ([*LEAST, "--epochs", "1", "--epochs=2"], "--epochs: got two of them, expected one"),
        ([*LEAST, "recipe.yaml"], "stylora train: got 'recipe.yaml', expected a flag, or an override key=value"),
        ([*LEAST, "--align_to", "right"], "--align_to: got 'right', expected left: all branches begin where the trunk ends"),
        ([*LEAST, "--rope_2d_ratio", "1.2"], "--rope_2d_ratio: got '1.2', expected input should be less than or equal to 1"),
        ([*LEAST, "--lora_rank", "x"], "--lora_rank: got 'x', expected input should be a valid integer"),
        ([*LEAST, "--batch_size", "0"], "--batch_size: got 0, expected at least 1"),
        ([*LEAST, "--batch_size", "1.5"], "--batch_size: got '1.5', expected a whole number"),
        ([*LEAST, "--learning_rate", "-1"], "--learning_rate: got '-1', expected input should be greater than 0"),
        ([*LEAST, "--dtype", "int8"], "--dtype: got 'int8', expected bfloat16, float16 or float32"),
        ([*LEAST, "--lora_name", "a/b"], "--lora_name: got 'a/b', expected a name, no path"),
        ([*LEAST, "--min_branches_per_sample", "2"], "data.min_branches_per_sample: got a value alone"),
        ([*LEAST, "train.lerning_rate=1"], "train.lerning_rate: got an unknown key"),
    ],
)
def test_mistakes(words, message):
    assert message in refused(*words)


GROUPS = [["--epochs", "2"], ["--lora_rank=4"], ["--ddp"], ["--batch_by_samples"], ["train.max_steps=3"], LEAST[:2], LEAST[2:]]


@given(st.permutations(GROUPS))
def test_the_order_of_flags_changes_nothing(groups):
    flags, overrides = read_flags([word for group in groups for word in group])
    expected = {"--epochs": "2", "--lora_rank": "4", "--ddp": True, "--batch_by_samples": True, "--base_model": "b", "--data_path": "d"}
    assert (flags, overrides) == (expected, ["train.max_steps=3"])


def test_translating_leaves_the_flags_as_they_were():
    flags = {"--base_model": "b", "--data_path": "d", **{f"--{name}": True for name in SWITCHES}}
    before = dict(flags)
    translate_flags(flags, processes=1)
    assert flags == before


def test_every_flag_is_documented():
    """With its default, in the table of the page."""
    page = (Path(__file__).parents[2] / "docs" / "older-recipes.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `--")}
    assert set(rows) == set(FLAGS)
    defaults = {"--lora_rank": "8", "--epochs": "3", "--batch_size": "16", "--dtype": "bfloat16", "--max_seq_len": "1024"}
    assert {flag: rows[flag].split("|")[2].strip() for flag in defaults} == defaults
