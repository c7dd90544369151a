"""The flat JSON of a second stage: what each key becomes, what is said of it, and mistakes named by the user's own keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stylora.errors import UserError
from stylora.recipe.older_stack import KEYS, OWN, STACK
from stylora.recipe.recipe import Recipe, load_recipe, load_recipe_told, parse_recipe

CONFIG = {
    "base_model_name": "some/base", "stage1_adapter_path": "stage1/checkpoint-531", "dataset_path": "rows.jsonl",
    "output_dir": "out", "max_seq_length": 512, "lora_r": 8, "lora_alpha": 24, "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"], "learning_rate": 3e-5, "num_train_epochs": 4, "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 5, "warmup_ratio": 0.03, "lr_scheduler_type": "linear", "logging_steps": 7, "save_steps": 70,
    "save_total_limit": 3, "bf16": True, "gradient_checkpointing": True, "seed": 9, "max_samples": 5000, "eos_loss_weight": 5.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def adapter(tmp_path, monkeypatch) -> Path:
    """The style adapter's folder, as far as the translation looks at it, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "stage1" / "checkpoint-531"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}), encoding="utf-8")
    return folder


def written(values: dict, name: str = "stage2_config.json", encoding: str = "utf-8") -> Path:
    Path(name).write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding=encoding)
    return Path(name)


def refused(values: dict, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(written(values), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(*keys: str) -> dict:
    return {key: value for key, value in CONFIG.items() if key not in keys}


def current() -> Recipe:
    return parse_recipe({
        "base": "some/base", "output_dir": "out", "layout": "flat",
        "stages": [{
            "name": "instruct",
            "data": {"format": "chat", "train": "rows.jsonl", "turns": "last", "max_length": 512},
            "adapter": {"frozen": ["stage1/checkpoint-531"], "names": ["style"], "r": 8, "alpha": 24, "dropout": 0.1,
                        "targets": ["q_proj", "v_proj"]},
            "train": {
                "num_train_epochs": 4, "samples_per_step": 30, "tokens_per_microbatch": 1536, "learning_rate": 3e-5, "warmup_steps": 0.03,
                "lr_scheduler_type": "linear", "logging_steps": 7, "save_steps": 70, "save_total_limit": 3, "precision": "bf16",
                "gradient_checkpointing": True, "seed": 9,
            },
        }],
    }, [], name="now")  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_key_of_it(encoding):
    """Against the same recipe written in the current form."""
    recipe, lines = load_recipe_told(written(CONFIG, encoding=encoding), processes=2)
    assert recipe == current()
    assert lines == [
        "stage1_adapter_path stage1/checkpoint-531 -> adapter.frozen, at work in every step; no weight of it changes",
        "adapter.names [style], the new one is called instruct",
        "base_model_name some/base -> base",
        "layout flat: checkpoint-N and the adapter in output_dir itself, as the original",
        "lora_r 8 -> adapter.r 8",
        "lora_alpha 24 -> adapter.alpha 24",
        "lora_dropout 0.1 -> adapter.dropout 0.1",
        "target_modules [q_proj, v_proj] -> adapter.targets [q_proj, v_proj]",
        "max_seq_length 512 -> data.max_length 512",
        "data.format chat: dataset_path has conversations",
        "dataset_path rows.jsonl -> data.train rows.jsonl",
        "data.turns last: as the original; answers before it are read here, which the original left out",
        "training.per_device_train_batch_size 3 x gradient_accumulation_steps 5 x 2 processes -> train.samples_per_step 30",
        "train.tokens_per_microbatch 1536: per_device_train_batch_size 3 x 512 tokens",
        "num_train_epochs 4, learning_rate 3e-05, lr_scheduler_type linear, gradient_checkpointing true, save_steps 70, "
        "save_total_limit 3, logging_steps 7, seed 9: the same in train",
        "training.warmup_ratio 0.03 -> train.warmup_steps 0.03",
        "training.bf16 true -> train.precision bf16",
        "max_samples: no meaning here, ignored; all rows are used; data.fraction takes a share of them",
        "eos_loss_weight: no meaning here, ignored; no original ever read it",
    ]


def test_what_is_not_said_is_the_originals_and_named():
    recipe, lines = load_recipe_told(written({key: CONFIG[key] for key in sorted(OWN)}))
    stage = recipe.stages[0]
    assert (recipe.output_dir, recipe.layout, stage.name) == ("stage2_instruct_new_adapter", "flat", "instruct")
    assert (stage.adapter.r, stage.adapter.alpha, stage.adapter.dropout, stage.adapter.targets) == (64, 128, 0.05, "all-linear")
    assert (stage.data.max_length, stage.data.turns, stage.train.samples_per_step) == (2048, "last", 64)
    assert (stage.train.num_train_epochs, stage.train.learning_rate) == (2, 5e-5)
    for said in ("output_dir", "adapter.r 64", "adapter.alpha 128", "adapter.dropout", "adapter.targets", "data.max_length 2048",
                 "training.learning_rate", "training.num_train_epochs"):  # fmt: skip
        (line,) = [line for line in lines if line.startswith(said)]
        assert line.endswith(": not given, the original's default"), line


def test_every_key_it_knows_can_be_given():
    """None of them is refused as unknown, in the file or in an override."""
    for key in sorted(KEYS - {"base_model", "train_dataset_path", "train_file"}):
        values = {**{name: CONFIG[name] for name in OWN}, key: CONFIG.get(key)}
        try:
            load_recipe(written(values))
        except UserError as error:
            assert "unknown key" not in str(error), key


def test_names_of_held_out_rows():
    for key in ("eval_dataset_path", "val_file"):
        assert load_recipe(written(CONFIG | {key: "held.jsonl"})).stages[0].data.validation == ("held.jsonl",)
    assert load_recipe(written(CONFIG | {"validation_split": 0.1})).stages[0].data.validation == 0.1


def test_the_base_is_the_adapters_where_nobody_names_one(adapter):
    recipe, lines = load_recipe_told(written(without("base_model_name")))
    assert recipe.base == "some/base" and "base some/base, which stage1/checkpoint-531/adapter_config.json names" in lines
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "base_model_name: got nothing, expected the base" in refused(without("base_model_name"))
    _, lines = load_recipe_told(written(CONFIG))
    assert not any("names" in line and "fit" in line for line in lines)


def test_another_base_than_the_adapter_names_is_said():
    _, lines = load_recipe_told(written(CONFIG | {"base_model_name": "other/base"}))
    told = "stage1/checkpoint-531/adapter_config.json names some/base; base is what this file says, and the adapter must fit it"
    assert told in lines


def test_overrides_in_its_own_keys_and_in_the_current_ones(adapter):
    recipe = load_recipe(written(CONFIG), [
        "lora_r=4", "max_seq_length=128", "per_device_train_batch_size=1", "learning_rate=1e-3", "dataset_path=other.jsonl", "base=tiny",
        "train.max_steps=2", "data.validation=0", "prompts=[]",
    ])  # fmt: skip
    stage = recipe.stages[0]
    assert (stage.adapter.r, stage.data.max_length, stage.train.samples_per_step, stage.train.learning_rate) == (4, 128, 5, 1e-3)
    assert (recipe.base, stage.data.train, stage.train.max_steps, stage.data.validation) == ("tiny", "other.jsonl", 2, 0)
    assert stage.adapter.frozen == ("stage1/checkpoint-531",)


def test_yaml_of_the_same_keys_is_the_same_recipe():
    assert load_recipe(written(CONFIG, "stage2.yaml"), processes=2) == current()


# ----------------------------------------------------------------------------------------------------------------------- refused


def test_an_unknown_key_names_the_nearest():
    told = refused({**without("stage1_adapter_path"), "stage1_adapter_pth": "stage1/checkpoint-531"})
    expected = "stage1_adapter_pth: got an unknown key, expected a key of older recipes; did you mean 'stage1_adapter_path'?"
    assert told == f"stage2_config.json: {expected}"


def test_the_adapter_has_to_be_there(adapter):
    assert "stage1_adapter_path: got None, expected the folder of the style adapter" in refused(without("stage1_adapter_path"))
    told = refused(CONFIG | {"stage1_adapter_path": "nowhere"})
    assert "stage1_adapter_path: got 'nowhere', expected a folder with an adapter_config.json" in told
    (adapter.parent / "run" / "adapter").mkdir(parents=True)
    (adapter.parent / "run" / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert refused(CONFIG | {"stage1_adapter_path": "stage1/run"}).endswith("name stage1/run/adapter")
    (adapter / "adapter_config.json").write_text("{", encoding="utf-8")
    assert "an adapter_config.json in JSON" in refused(CONFIG)


def test_mistakes_are_named_by_the_users_key():
    assert "stage2_config.json: learning_rate: got 'fast'" in refused(CONFIG | {"learning_rate": "fast"})
    assert "stage2_config.json: max_seq_length: got 'long', expected a whole number" in refused(CONFIG | {"max_seq_length": "long"})
    assert "stage2_config.json: dataset_path: got nothing" in refused(without("dataset_path"))
    assert "stage2_config.json: lora_r: got 0" in refused(CONFIG | {"lora_r": 0})
    both = refused(CONFIG | {"eval_dataset_path": "held.jsonl", "val_ratio": 0.1})
    assert "val_ratio: got 0.1, expected nothing beside eval_dataset_path" in both


def test_both_forms_at_once():
    assert "stages" in refused(CONFIG | {"stages": [{"data": {"train": "x"}}]})


@pytest.mark.parametrize(
    ("text", "line"), [('{"base_model_name": "a",\n "lora_r": 8,\n "seed" 1}', 3), ('{\n"a": 1,\n}', 2), ("", 1)]
)
def test_broken_json_is_told_with_its_line(text, line):
    Path("broken.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(Path("broken.json"))
    assert str(caught.value).startswith((f"broken.json:{line}: got broken JSON", f"broken.json:{line + 1}: got broken JSON"))


def test_a_json_recipe_of_the_current_form_is_one():
    values = {"base": "tiny", "stages": [{"data": {"train": "x", "window": 64}, "train": {"learning_rate": 5e-5}}]}
    assert load_recipe(written(values, "now.json")) == parse_recipe(values, [], name="now")
    Path("tabs.json").write_text('{\n\t"stages": [{"data": {"train": "x"}, "train": {"learning_rate": 5e-5}}]\n}', encoding="utf-8")
    assert load_recipe(Path("tabs.json")).stages[0].train.learning_rate == STACK.train["learning_rate"]
    Path("list.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="list.json: got list, expected a mapping"):
        load_recipe(Path("list.json"))
