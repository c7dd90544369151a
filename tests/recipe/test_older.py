"""Older recipes: what each key becomes, what is said about it, and mistakes named by the key that the user wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.recipe.older import is_older, translate
from stylora.recipe.recipe import Recipe, load_recipe, load_recipe_told, parse_recipe
from stylora.recipe.stages import inherit
from stylora.samples.objective import Objective
from stylora.samples.settings import Data
from stylora.train.settings import Train

ROOT = Path(__file__).parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
has_kl = pytest.mark.skipif("kl" not in Objective.model_fields, reason="objectives have no kl yet")
has_chat = pytest.mark.skipif("chat" not in get_args(Data.model_fields["format"].annotation), reason="data have no chat yet")
STYLE = """
model:
  model_name_or_path: some/base
  use_lora: true
  lora_r: 24
  lora_alpha: 48
  lora_dropout: 0.1
  lora_target_modules: [q_proj, v_proj]
data: {data_dir: books, max_length: 512, stride: 384, min_length: 40, val_ratio: 0.08}
training:
  output_dir: out/style
  num_train_epochs: 6
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 3
  learning_rate: 3e-5
  weight_decay: 0.02
  warmup_ratio: 0.03
  lr_scheduler_type: linear
  evaluation_strategy: steps
  eval_steps: 50
  save_steps: 70
  save_total_limit: 5
  logging_steps: 4
  gradient_checkpointing: true
  seed: 7
  kl_beta: 0
  dataloader_num_workers: 4
  logging_dir: logs
"""
CHAT = """
base_model: some/chat-base
lora: {r: 12, lora_alpha: 24, target_modules: [q_proj, o_proj], lora_dropout: 0.02, bias: none, task_type: CAUSAL_LM}
training: {num_train_epochs: 2, per_device_train_batch_size: 3, gradient_accumulation_steps: 5, learning_rate: 1.0e-4, output_dir: out/chat,
  load_best_model_at_end: true, metric_for_best_model: eval_loss, greater_is_better: false}
data: {train_file: rows/train.json, val_file: rows/val.json, max_length: 96}
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """An empty working folder, so that no `./data` is found by chance."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(text: str, *overrides: str, processes: int = 1) -> tuple[Recipe, list[str]]:
    Path("older.yaml").write_text(text, encoding="utf-8")
    return load_recipe_told(Path("older.yaml"), overrides, processes=processes)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        told(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- what they become


def test_style_recipe():
    """Every key of it, against the same recipe written in the current form."""
    recipe, lines = told(STYLE, processes=2)
    assert recipe == parse_recipe({
        "base": "some/base", "output_dir": "out/style", "layout": "flat",
        "stages": [{
            "data": {"format": "novels", "train": "books", "window": 512, "overlap": 128, "min_window": 40, "validation": 0.08},
            "objective": {"kind": "span", "mask_ratio": 0.15, "span_ratio": 0.5, "span_length": [3, 5]},
            "adapter": {"r": 24, "alpha": 48, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
            "train": {
                "num_train_epochs": 6, "samples_per_step": 12, "tokens_per_microbatch": 1024, "learning_rate": 3e-5, "weight_decay": 0.02,
                "warmup_steps": 0.03, "lr_scheduler_type": "linear", "eval_steps": 50, "save_steps": 70, "save_total_limit": 5,
                "logging_steps": 4, "gradient_checkpointing": True, "seed": 7,
            },
        }],
    }, [], name="now")  # fmt: skip
    assert lines == [
        "model.model_name_or_path some/base -> base",
        "training.output_dir out/style -> output_dir out/style",
        "layout flat: checkpoint-N and the adapter in output_dir itself, as the original",
        "model.lora_r 24 -> adapter.r 24",
        "model.lora_alpha 48 -> adapter.alpha 48",
        "model.lora_dropout 0.1 -> adapter.dropout 0.1",
        "model.lora_target_modules [q_proj, v_proj] -> adapter.targets [q_proj, v_proj]",
        "data.max_length 512 -> data.window 512",
        "data.data_dir books -> data.train",
        "data.stride 384 -> data.overlap 128, what is left of a window of 512; the original did not read it and always repeated a fifth",
        "data.min_length 40 -> data.min_window 40; shorter ends are joined to the window before, not dropped",
        "data.val_ratio 0.08 -> data.validation 0.08",
        "objective span: mask_ratio 0.15, span_ratio 0.5, span_length [3, 5], as the original's description",
        "training.kl_beta 0: no KL, nothing to set",
        "training.per_device_train_batch_size 2 x gradient_accumulation_steps 3 x 2 processes -> train.samples_per_step 12",
        "train.tokens_per_microbatch 1024: per_device_train_batch_size 2 x 512 tokens",
        "training.num_train_epochs 6, training.learning_rate 3e-5, training.lr_scheduler_type linear, training.weight_decay 0.02, "
        "training.gradient_checkpointing true, training.eval_steps 50, training.save_steps 70, training.save_total_limit 5, "
        "training.logging_steps 4, training.seed 7: the same in train",
        "training.warmup_ratio 0.03 -> train.warmup_steps 0.03",
        "training.evaluation_strategy steps -> train.eval_strategy steps",
        "training.dataloader_num_workers: no meaning here, ignored; samples are laid out before they are asked for",
        "training.logging_dir: no meaning here, ignored",
    ]


def test_every_key_of_a_style_recipe_is_named():
    _, lines = told(STYLE)
    values = yaml.safe_load(STYLE)
    for section, keys in values.items():
        for key in keys.keys() - {"use_lora"}:  # true, as always
            assert any(re.search(rf"\b{section}\.{key}\b|x {key}\b", line) for line in lines), key


@has_chat
def test_chat_recipe():
    recipe, lines = told(CHAT)
    assert recipe == parse_recipe({
        "base": "some/chat-base", "output_dir": "out/chat", "layout": "final",
        "stages": [{
            "data": {"format": "chat", "train": "rows/train.json", "validation": ["rows/val.json"], "max_length": 96},
            "adapter": {"r": 12, "alpha": 24, "dropout": 0.02, "targets": ["q_proj", "o_proj"]},
            "train": {
                "num_train_epochs": 2, "samples_per_step": 15, "tokens_per_microbatch": 288, "learning_rate": 1e-4, "warmup_steps": 0.1,
                "metric_for_best_model": "loss", "greater_is_better": False,
            },
        }],
    }, [], name="now")  # fmt: skip
    assert "data.val_file rows/val.json -> data.validation [rows/val.json]" in lines
    assert "training.load_best_model_at_end true -> train.metric_for_best_model loss" in lines
    assert "training.warmup_ratio 0.1: not given, the original's default" in lines


@has_chat
@pytest.mark.parametrize(("train", "held"), [("train_file", "eval_file"), ("train_path", "validation_file"), ("train", "test_file")])
def test_names_of_chat_files(train, held):
    data = told(f"base_model: b\ndata: {{{train}: a.json, {held}: b.json}}\n")[0].stages[0].data
    assert (data.train, data.validation) == ("a.json", ("b.json",))


@has_chat
@pytest.mark.parametrize("text", ["data: {max_length: 77}", "training: {max_length: 77}", "model: {max_length: 77}", "max_length: 77"])
def test_max_length_stands_anywhere(text):
    assert told(f"{text}\nbase_model: b\n")[0].stages[0].data.max_length == 77
    if not text.startswith("max_length"):
        assert told(f"{text}\n{'' if text.startswith('training') else 'training: {}'}\n")[0].stages[0].data.window == 77


def test_a_fragment_takes_the_originals_defaults_and_names_them():
    recipe, lines = told("training: {kl_beta: 0, num_train_epochs: 3-5}\n", processes=2)
    stage = recipe.stages[0]
    assert (recipe.base, recipe.output_dir, recipe.layout, stage.data.train) == ("Qwen/Qwen3-8B", "./output/wuxia_model", "flat", "./data")
    assert (stage.data.window, stage.data.overlap, stage.adapter.r, stage.adapter.alpha) == (1024, 0, 16, 32)
    assert (stage.train.num_train_epochs, stage.train.samples_per_step, stage.train.learning_rate) == (5, 64, 5e-5)
    assert "training.num_train_epochs 3-5 -> train.num_train_epochs 5, the upper end" in lines
    for chosen in ("base Qwen", "output_dir ", "adapter.r 16", "adapter.alpha", "data.window", "data.train", "training.learning_rate"):
        (line,) = [line for line in lines if line.startswith(chosen)]
        assert line.endswith(": not given, the original's default"), line
    assert any("samples_per_step 64 (per_device_train_batch_size and gradient_accumulation_steps: not given" in line for line in lines)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 64), accumulation=st.integers(1, 64), processes=st.integers(1, 8), window=st.integers(8, 4096))
def test_the_step(batch, accumulation, processes, window):
    text = {"training": {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}, "data": {"max_length": window}}
    train = parse_recipe(text, [], name="r", processes=processes).stages[0].train
    assert (train.samples_per_step, train.tokens_per_microbatch) == (batch * accumulation * processes, batch * window)


def test_samples_per_step_may_be_given_instead():
    train = told("training: {samples_per_step: 10}\n", processes=4)[0].stages[0].train
    assert (train.samples_per_step, train.tokens_per_microbatch) == (10, Train().tokens_per_microbatch)


@settings(max_examples=50, deadline=None)
@given(window=st.integers(8, 2048), stride=st.integers(1, 2048), shortest=st.integers(0, 4096))
def test_stride_and_min_length(window, stride, shortest):
    values = {"data": {"max_length": window, "stride": min(stride, window), "min_length": shortest}, "training": {}}
    data = parse_recipe(values, [], name="r").stages[0].data
    assert data.window - data.overlap == min(stride, window)
    assert data.min_window == max(1, min(shortest, window // 2))


@pytest.mark.parametrize("rate", ["5e-5", "'5e-5'", "5.0e-5", "0.00005"])
def test_numbers_that_yaml_reads_as_text(rate):
    """YAML 1.1 takes 5e-5 for text: it has no dot. In both forms it is a number."""
    for text in (f"training: {{learning_rate: {rate}}}", f"stages: [{{data: {{train: x}}, train: {{learning_rate: {rate}}}}}]"):
        assert told(text)[0].stages[0].train.learning_rate == 5e-5
    assert told("training: {per_device_train_batch_size: '2', gradient_accumulation_steps: '3'}")[0].stages[0].train.samples_per_step == 6


@has_kl
def test_kl_beta():
    recipe, lines = told("training: {kl_beta: 0.1}\n")
    objective = recipe.stages[0].objective
    assert (objective.kind, objective.kl.beta) == ("span", 0.1)
    assert "training.kl_beta 0.1 -> objective.kl.beta 0.1" in lines
    assert "training.kl_beta: got -1" in refused("training: {kl_beta: -1}\n")


def test_kl_beta_is_a_number():
    assert "older.yaml: training.kl_beta: got 'x', expected a number" in refused("training: {kl_beta: x}\n")


def test_without_kl_nothing_of_it_is_in_the_recipe():
    for beta in ("0", "0.0", "'0'"):
        older = translate({"training": {"kl_beta": yaml.safe_load(beta)}}, name="r", processes=1)
        assert older.values["stages"][0]["objective"].keys() == {"kind", "mask_ratio", "span_ratio", "span_length"}


@pytest.mark.parametrize(
    ("asked", "gpu", "gpu_bf16", "precision", "said"),
    [
        ("fp16: true", False, False, None, "training.fp16 -> train.precision null"),
        ("fp16: true, bf16: false", False, False, None, "training.fp16 -> train.precision null"),
        ("fp16: true", True, False, "fp16", "training.fp16 true -> train.precision fp16"),
        ("bf16: true", True, False, None, "training.bf16 -> train.precision null"),
        ("bf16: true", True, True, "bf16", "training.bf16 true -> train.precision bf16"),
        ("bf16: true, fp16: false", False, False, "bf16", "training.bf16 true -> train.precision bf16"),
        ("bf16: false", False, False, "fp32", "training.bf16 false -> train.precision fp32"),
    ],
)
def test_precision_the_device_lacks(monkeypatch, asked, gpu, gpu_bf16, precision, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu_bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    recipe, lines = told(f"training: {{{asked}}}\n")
    assert recipe.stages[0].train.precision == precision
    assert [line for line in lines if "precision" in line][0].startswith(said)


# ---------------------------------------------------------------------------------------------------------- which files are read


@pytest.fixture
def books(place) -> Path:
    (place / "data" / "more").mkdir(parents=True)
    for name in ("甲.txt", "more/乙.TXT"):
        (place / "data" / name).write_text("剑光一闪。\n", encoding="utf-8")
    return place / "data"


def test_a_folder_of_novels_is_the_folder(books):
    data = told("data: {data_dir: data}\n")[0].stages[0].data
    assert (data.format, data.train, data.general, data.general_ratio) == ("novels", "data", None, None)


@pytest.mark.parametrize("name", ["general.txt", "general.jsonl"])
def test_general_text_is_taken_out_of_the_style(books, name):
    (books / name).write_text("今天天气好\n", encoding="utf-8")
    recipe, lines = told("data: {data_dir: ./data}\n")
    data = recipe.stages[0].data
    assert (data.train, data.general, data.general_ratio) == (("data/more/乙.TXT", "data/甲.txt"), f"data/{name}", 0.1)
    by_line = "data.general_lines true: each line of it is a passage of its own, as the original's description"
    assert data.general_lines == (by_line in lines) == (name == "general.txt")
    assert f"data/{name} -> data.general, taken out of the style; the original learned it as style" in lines
    assert "data.data_dir ./data -> data.train, 2 files of it" in lines
    assert "data.general_ratio 0.1: the default of mix_data.py, here a share of tokens" in lines


def test_rows_in_the_folder_of_novels_are_not_read_twice(books):
    (books / "mixed.jsonl").write_text('{"text": "剑光"}\n', encoding="utf-8")
    recipe, lines = told("data: {data_dir: data}\n")
    assert recipe.stages[0].data.train == ("data/more/乙.TXT", "data/甲.txt")
    assert "data/mixed.jsonl: not read, a data_dir holds novels; name it in data.processed_data_file to read it" in lines


def test_a_processed_file_is_read_where_it_is(books):
    text = "data: {data_dir: data, processed_data_file: data/mixed.jsonl}\n"
    recipe, lines = told(text)
    assert (recipe.stages[0].data.format, recipe.stages[0].data.train) == ("novels", "data")
    assert "data.processed_data_file data/mixed.jsonl: not there, so data is read; no such file is needed or written" in lines
    (books / "mixed.jsonl").write_text('{"text": "剑光"}\n', encoding="utf-8")
    (books / "general.txt").write_text("今天\n", encoding="utf-8")
    recipe, lines = told(text)
    data = recipe.stages[0].data
    assert (data.format, data.train, data.general) == ("text", "data/mixed.jsonl", None)
    assert "data.processed_data_file data/mixed.jsonl -> data.train; it is there, so data_dir data is not read" in lines


def test_a_folder_without_novels(place):
    (place / "data").mkdir()
    (place / "data" / "general.txt").write_text("今天\n", encoding="utf-8")
    assert "older.yaml: data.data_dir: got 'data', expected novels beside general.txt" in refused("data: {data_dir: data}\n")


# -------------------------------------------------------------------------------------------------------------------- overrides


def test_overrides_reach_both_forms():
    older = ["training.per_device_train_batch_size=5", "model.lora_r=4", "data.max_length=256", "data.stride=256"]
    current = ["base=tiny", "data.validation=0", "train.max_steps=2", "train.warmup_steps=0", "adapter.dropout=0", "output_dir=o"]
    recipe, _ = told(STYLE, *current, *older)
    stage = recipe.stages[0]
    assert (stage.train.samples_per_step, stage.adapter.r, stage.data.window, stage.data.overlap) == (15, 4, 256, 0)
    assert (recipe.base, recipe.output_dir, stage.data.validation, stage.adapter.dropout) == ("tiny", "o", 0, 0)
    assert (stage.train.max_steps, stage.train.warmup_steps) == (2, 0)
    if "chat" in get_args(Data.model_fields["format"].annotation):
        assert told(CHAT, "lora.r=3", "base_model=other")[0] == told(CHAT.replace("r: 12", "r: 3").replace("some/chat-base", "other"))[0]


def test_overrides_of_the_older_form_do_not_reach_the_current_one():
    current = "stages: [{data: {train: x}}]"
    assert "stages[0].training: got an unknown key" in refused(current, "training.learning_rate=1")
    assert "stages[0].model: got an unknown key" in refused(current, "model.lora_r=1")


# --------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rate: abc}", "older.yaml: training.learning_rate: got 'abc', expected input should be a valid number"),
        ("training: {warmup_ratio: -1}", "older.yaml: training.warmup_ratio: got -1, expected"),
        ("training: {lr_scheduler_type: cosin}", "older.yaml: training.lr_scheduler_type: got 'cosin', expected"),
        ("training: {evaluation_strategy: often}", "older.yaml: training.evaluation_strategy: got 'often', expected"),
        ("training: {learning_rat: 1}", "older.yaml: training.learning_rat: got an unknown key, expected a key of older recipes; "
                                        "did you mean 'learning_rate'?"),
        ("training: {num_train_epochs: three}", "older.yaml: training.num_train_epochs: got 'three', expected"),
        ("training: {per_device_train_batch_size: many}", "older.yaml: training.per_device_train_batch_size: got 'many', expected a whole"),
        ("training: {per_device_train_batch_size: 0}", "older.yaml: training.per_device_train_batch_size: got 0, expected at least 1"),
        ("training: {gradient_accumulation_steps: 1.5}", "older.yaml: training.gradient_accumulation_steps: got 1.5, expected a whole"),
        ("training: {gradient_accumulation_steps: .inf}", "older.yaml: training.gradient_accumulation_steps: got inf, expected a whole"),
        ("training: {warmup_ratio: 0.1, warmup_steps: 3}", "older.yaml: training: got {warmup_steps, warmup_ratio}, expected warmup"),
        ("training: {optim: sgd}", "older.yaml: training.optim: got 'sgd', expected adamw_torch"),
        ("training: 3", "older.yaml: training: got 3, expected a mapping"),
        ("model: {lora_r: 0}", "older.yaml: model.lora_r: got 0, expected"),
        ("model: {lora_rank: 4}", "older.yaml: model.lora_rank: got an unknown key"),
        ("model: {use_lora: false}", "older.yaml: model.use_lora: got False, expected true: only LoRA adapters are trained"),
        ("lora: {bias: all}", "older.yaml: lora.bias: got 'all', expected none"),
        ("lora: {task_type: SEQ_CLS}", "older.yaml: lora.task_type: got 'SEQ_CLS', expected CAUSAL_LM"),
        ("data: {data_dir: [a]}", "older.yaml: data.data_dir: got ['a'], expected a path"),
        ("data: {max_length: 4}", "older.yaml: data.max_length: got 4, expected"),
        ("data: {max_length: 64, stride: 65}", "older.yaml: data.stride: got 65, expected 1 to 64"),
        ("data: {max_length: 64, stride: 0}", "older.yaml: data.stride: got 0, expected 1 to 64"),
        ("data: {val_ratio: 2}", "older.yaml: data.val_ratio: got 2, expected"),
        ("data: {max_length: 64}\ntraining: {max_length: 32}",
         "older.yaml: data.max_length: got data.max_length 64, training.max_length 32, expected one of them"),
        ("base_model: a\nmodel: {model_name_or_path: b}",
         "older.yaml: base_model: got base_model a, model.model_name_or_path b, expected one of them"),
        ("training: {}\nbas: tiny", "older.yaml: bas: got an unknown key, expected a key of older recipes; did you mean 'base'?"),
        ("training: {}\n1: 2", "older.yaml: 1: got an unknown key"),
        ("stages: []\nmodel: {}\ntraining: {}", "older.yaml: stages, model, training: got both forms at once"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_the_older_key(text, message):
    assert message in refused(text)


@pytest.mark.parametrize("key", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_both_ways_to_say_the_step(key):
    both = "got both forms at once"
    assert f"training.{key}: {both}" in refused(f"training: {{samples_per_step: 8, {key}: 2}}")
    assert both in refused(f"training: {{{key}: 2}}", "train.samples_per_step=8")
    assert both in refused(f"training: {{{key}: 2}}", f"train.{key}=8")
    assert f"stages[0].train.{key}: {both}" in refused(f"stages: [{{data: {{train: x}}, train: {{samples_per_step: 8, {key}: 2}}}}]")
    alone = refused(f"stages: [{{data: {{train: x}}, train: {{{key}: 2}}}}]")
    assert both not in alone and alone.endswith("; use samples_per_step")
    assert told("training: {seed: 1}", "train.samples_per_step=8")[0].stages[0].train.samples_per_step == 8, "a default may be overridden"


def test_a_checkpoint_as_base_is_an_adapter_to_go_on_with(place):
    (place / "checkpoint-20").mkdir()
    config = place / "checkpoint-20" / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "tiny"}', encoding="utf-8")
    recipe, lines = told("model: {model_name_or_path: ./checkpoint-20, use_lora: true, lora_r: 64}")
    assert (recipe.base, recipe.stages[0].adapter.path) == ("tiny", "./checkpoint-20")
    assert "model.model_name_or_path ./checkpoint-20 -> adapter.path: goes on with this adapter on its base, tiny" in lines
    assert "model.lora_r 64: no meaning here, the adapter in ./checkpoint-20 has its own" in lines
    config.write_text("{}", encoding="utf-8")
    message = refused("model: {model_name_or_path: ./checkpoint-20}")
    assert "model.model_name_or_path: got './checkpoint-20', expected a base, or an adapter whose adapter_config.json names one" in message
    (place / "checkpoint-20" / "adapter_config.json").unlink()
    assert told("model: {model_name_or_path: ./checkpoint-20}")[0].base == "./checkpoint-20"


# --------------------------------------------------------------------------------------------------------------- the current form


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_in_the_current_form_are_left_alone(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert not is_older(values, path.name)
    recipe, lines = load_recipe_told(path, processes=4)
    assert (recipe, lines) == (Recipe.model_validate(inherit(values, path.name)), [])


def test_older_names_in_the_current_form_are_told():
    train = "{warmup_ratio: 0.1, evaluation_strategy: 'no', bf16: true, fp16: false, metric_for_best_model: eval_loss}"
    recipe, lines = told(f"stages: [{{data: {{train: x}}, train: {train}}}]")
    assert recipe.stages[0].train == Train(warmup_steps=0.1, eval_strategy="no", precision="bf16", metric_for_best_model="loss")
    assert lines == [
        "train.warmup_ratio 0.1 -> train.warmup_steps 0.1", "train.evaluation_strategy no -> train.eval_strategy no",
        "train.bf16 true -> train.precision bf16", "train.metric_for_best_model eval_loss -> train.metric_for_best_model loss",
    ]  # fmt: skip


def test_a_current_recipe_without_stages_is_not_taken_for_an_older_one():
    assert "older.yaml: stages: got nothing" in refused("base: tiny\n")
    assert "older.yaml: stages: got nothing" in refused("base: tiny\ndata: {train: x}\n")
    assert not is_older({"data": {"train": "x"}}, "r") and is_older({"data": {"data_dir": "x"}}, "r")


@pytest.mark.parametrize("text", [STYLE, pytest.param(CHAT, marks=has_chat), "training: {seed: 3}"])
def test_the_translation_is_a_recipe_that_translates_no_more(text, place):
    recipe, _ = told(text)
    (place / "now.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    again, lines = load_recipe_told(place / "now.yaml", processes=8)
    assert (again, lines) == (recipe, [])


# ------------------------------------------------------------------------------------------------------------ the originals, the page


def seed_blocks() -> list:
    found = []
    for path in sorted(SEEDS.glob("00[013]_*.md")):
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)):
            marks = [has_chat] if re.search("^(base_model|lora):", text, re.MULTILINE) else []
            marks += [has_kl] if re.search("kl_beta: 0[.]", text) else []
            found.append(pytest.param(text, marks=marks, id=f"{path.name[:3]}-{number}"))
    return found


@pytest.mark.parametrize("text", seed_blocks())
def test_blocks_of_the_originals_load_alone(text):
    recipe, lines = told(text)
    assert recipe.layout in ("flat", "final") and lines


@has_chat
@has_kl
@pytest.mark.skipif(not SEEDS.is_dir(), reason="no originals here")
def test_blocks_of_the_originals_load_merged():
    """Stage 2 on stage 1 of one, all sections of another."""
    blocks = {block.id: yaml.safe_load(block.values[0]) for block in seed_blocks()}
    first, second = blocks["000-0"], blocks["000-1"]
    merged = {"model": second["model"], "training": first["training"] | second["training"]}
    stage = told(yaml.safe_dump(merged))[0].stages[0]
    assert (stage.objective.kl.beta, stage.train.num_train_epochs, stage.train.learning_rate) == (0.1, 3, 1e-5)
    unified = {**blocks["003-0"], **blocks["003-1"], **blocks["003-3"]}
    recipe = told(yaml.safe_dump(unified))[0]
    stage = recipe.stages[0]
    assert (recipe.base, recipe.layout, stage.data.format) == ("Qwen/Qwen2.5-3B-Instruct", "final", "chat")
    assert (stage.train.samples_per_step, stage.train.learning_rate, stage.train.warmup_steps) == (16, 2e-4, 0.1)
    assert (stage.train.eval_steps, stage.train.save_steps, stage.train.metric_for_best_model) == (100, 100, "loss")
    column = {section: unified[section] | blocks[there][section] for section, there in (("lora", "003-2"), ("training", "003-4"))}
    stage = told(yaml.safe_dump(unified | column))[0].stages[0]
    assert (stage.adapter.r, stage.adapter.alpha, len(stage.adapter.targets), stage.train.num_train_epochs) == (32, 64, 7, 8)


def test_the_example_on_the_page_prints_what_stands_there(books):
    """docs/older-recipes.md: its first recipe and the lines below it."""
    (books / "general.txt").write_text("今天天气好\n", encoding="utf-8")
    page = (ROOT / "docs" / "older-recipes.md").read_text(encoding="utf-8")
    (older,) = re.findall(r"^```yml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    printed = re.search(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert printed is not None and told(older, processes=2)[1] == printed[1].splitlines()
    assert load_recipe(Path("older.yaml"), processes=2).stages[0].train.samples_per_step == 64
