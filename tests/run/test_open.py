"""MODEL, as every command takes it: weights behind a name, stacks that changed since, and what `--force` says of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.run.children import write_recipe
from tests.run.stacked import write_adapter, write_stack
from transformers import AutoModelForCausalLM

from stylora.errors import UserError
from stylora.generate.settings import Sampling
from stylora.model.adapter import adapter_weight, load_adapter
from stylora.model.base import load_base
from stylora.model.device import Device
from stylora.model.rope_2d import install, installed, remove
from stylora.model.settings import Adapter
from stylora.recipe.recipe import parse_recipe, read_yaml
from stylora.run import folder as run_folders
from stylora.run.folder import StageFolder, adapter_hash, adapter_name
from stylora.run.generate import stream_prompts
from stylora.run.open import Found, check_adapter, find_model, open_model, put_on
from stylora.run.stages import train_stages
from stylora.run.three_way_models import Subject, switched, variants
from stylora.samples.branch_settings import Branches

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
IDS = torch.arange(300, 340)[None]
QUICK = {"max_steps": 2, "samples_per_step": 4, "save_strategy": "no", "eval_strategy": "no", "report_to": [], "precision": "fp32"}
ROWS = [
    {"messages": [{"role": "user", "content": f"写一句{n}"}, {"role": "assistant", "content": f"第{n}句：雪落无声。"}]} for n in range(12)
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of `style`, and of `instruct` on it with the half of its weight."""
    folder = tmp_path_factory.mktemp("开 open")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    values = read_yaml(write_recipe(folder, **QUICK, learning_rate=1e-2))
    values["stages"] += [{
        "name": "instruct", "on": ["style"], "data": {"format": "chat", "train": str(rows)}, "train": {**QUICK, "learning_rate": 1e-2},
        "adapter": {"r": 3, "alpha": 8, "weights": {"style": 0.5}},
    }]  # fmt: skip
    recipe = parse_recipe({**values, "output_dir": str(folder / "run")}, [], name="open")
    train_stages(recipe, name="unused", console=Console(file=io.StringIO()), cache=folder / "cache")
    return folder / "run"


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@torch.no_grad()
def logits(name: object, **options) -> torch.Tensor:
    return open_model(str(name), FP32, **options).model(input_ids=IDS).logits


def spoil(folder: Path) -> None:
    """Other weights, in a file that is whole."""
    file = folder / "adapter_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


def test_the_weight_of_a_recipe_is_that_of_the_stack(trained):
    stack = json.loads((trained / "instruct/stack.json").read_text(encoding="utf-8"))
    told = [(entry["name"], entry["role"], entry["weight"], entry["path"]) for entry in stack["adapters"]]
    assert told == [("style", "frozen", 0.5, "../style/adapter"), ("instruct", "trained", 1.0, "adapter")]
    assert [entry["hash"] for entry in stack["adapters"]] == [adapter_hash(trained / name / "adapter") for name in ("style", "instruct")]
    assert torch.equal(logits(trained / "instruct"), logits(f"{trained / 'instruct'}@style=0.5"))


@torch.no_grad()
def test_weights_behind_the_name(trained):
    """0 leaves an adapter out, also in plain PEFT; 1 and 0.5 are what they say; nothing on disk changes."""
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    base, style = logits("tiny"), logits(trained / "style")
    assert torch.equal(logits(f"{trained}/style@style=0"), base)
    assert torch.equal(logits(f"{trained}/instruct@style=0,instruct=0"), base)
    torch.testing.assert_close(logits(f"{trained}/instruct@instruct=0,style=1"), style, rtol=0, atol=1e-5)
    opened = open_model(str(trained / "style"), FP32)
    with adapter_weight(opened.model, 0.3):
        expected = opened.model(input_ids=IDS).logits
    torch.testing.assert_close(logits(f"{trained}/style@style=0.3"), expected, rtol=0, atol=1e-5)
    stack = logits(trained / "instruct")
    others = [base, style, logits(f"{trained}/instruct@style=0"), logits(f"{trained}/instruct@style=1")]
    assert all((stack - other).abs().max() > 1e-3 for other in others)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    found = find_model(f"{trained}/instruct@style=1")
    assert not found.as_trained and find_model(f"{trained}/instruct").as_trained


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        ("@styel=0.5", r"got a weight for 'styel', expected one of style, instruct; did you mean 'style'\?"),
        ("@style=half", r"got 'half' as a weight, expected a number"),
        ("@style=0.5,style=1", "got two weights for 'style'"),
        ("@style", r"got 'style' behind @, expected names and weights"),
    ],
)  # fmt: skip
def test_weights_of_nothing(behind, message, trained):
    with pytest.raises(UserError, match=message):
        find_model(f"{trained}/instruct{behind}")
    with pytest.raises(UserError, match="got a weight for 'style', expected an adapter, and there is none"):
        find_model("tiny@style=1")


def test_the_folder_of_an_adapter_opens_what_it_lies_on(copied, tmp_path):
    """adapter_info.json says it; moved away from what is below, it is refused; the lower adapter is one by itself."""
    info = json.loads((copied / "instruct/adapter/adapter_info.json").read_text(encoding="utf-8"))
    assert (info["base_model"], info["style_adapter"], info["instruct_adapter"]) == ("tiny", "../../style/adapter", ".")
    assert torch.equal(logits(copied / "instruct/adapter"), logits(copied / "instruct"))
    assert not (copied / "style/adapter/adapter_info.json").exists() and len(find_model(str(copied / "style/adapter")).layers) == 1
    shutil.copytree(copied / "instruct/adapter", tmp_path / "alone")
    with pytest.raises(UserError, match="got no adapter_model.safetensors, expected the adapter that"):
        find_model(str(tmp_path / "alone"))


@pytest.mark.parametrize("place", ["instruct", "instruct/adapter"])
def test_a_style_trained_again_is_refused_and_forced_with_a_word(place, copied):
    was = logits(copied / place)
    spoil(copied / "style/adapter")
    with pytest.raises(UserError, match="style.adapter: got an adapter that was changed after training, expected hash .*--force"):
        find_model(str(copied / place))
    opened = open_model(str(copied / place), FP32, force=True)
    assert len(opened.forced) == 1 and "changed after training" in opened.forced[0]
    with torch.no_grad():
        assert not torch.equal(opened.model(input_ids=IDS).logits, was)
    assert not find_model(str(copied / place), force=True).as_trained


def test_an_edited_configuration_is_another_adapter(copied):
    """The weights are the same, their scale is not. Where the base lies is not part of it."""
    file = copied / "style/adapter/adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere/tiny"}), encoding="utf-8")
    assert len(find_model(str(copied / "instruct")).layers) == 2
    file.write_text(json.dumps(config | {"lora_alpha": 1}), encoding="utf-8")
    with pytest.raises(UserError, match="got an adapter_config.json that was changed after training"):
        find_model(str(copied / "instruct"))
    assert "adapter_config.json" in find_model(str(copied / "instruct"), force=True).forced[0]


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda stack: stack.pop("adapters"), "no adapters"),
        (lambda stack: stack["adapters"][0].pop("hash"), "no hash"),
        (lambda stack: stack["adapters"][0].update(weight="half"), "'half' as the weight of style"),
        (lambda stack: stack["adapters"][0].update(weight=float("nan")), "nan as the weight of style"),
    ],
)
def test_an_edited_stack_is_refused_in_words(spoiled, message, copied):
    path = copied / "instruct/stack.json"
    stack = json.loads(path.read_text(encoding="utf-8"))
    spoiled(stack)
    path.write_text(json.dumps(stack), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        find_model(str(copied / "instruct"))


@pytest.mark.parametrize("force", [False, True])
def test_a_broken_configuration_is_refused_in_words(force, copied):
    (copied / "style/adapter/adapter_config.json").write_text('{"r": ', encoding="utf-8")
    for name in ("instruct", "instruct/adapter", "style/adapter"):
        with pytest.raises(UserError, match="broken JSON"):
            find_model(str(copied / name), force=force)


def test_an_adapter_that_names_no_base_needs_one(copied):
    path = copied / "style/adapter/adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="names no base"):
        find_model(str(path.parent))
    assert find_model(str(path.parent), base="tiny").base == "tiny"


def test_an_adapter_goes_under_another_with_the_weights_it_was_trained_with(trained):
    """Or with others that the user chose; the weight that nobody spoke of is 1, which would be another model."""
    fingerprint = json.loads((trained / "instruct/stack.json").read_text(encoding="utf-8"))["base"]["fingerprint"]
    style, instruct = (trained / name / "adapter" for name in ("style", "instruct"))
    for weight in (0.5, None):
        check_adapter(instruct, "tiny", fingerprint, {style: weight})
    with pytest.raises(UserError, match="at weight 1, expected 0.5, with which it was trained"):
        check_adapter(instruct, "tiny", fingerprint, {style: 1.0})


def test_another_base_is_refused_and_forced_with_a_word(copied):
    file = copied / "instruct/stack.json"
    stack = json.loads(file.read_text(encoding="utf-8"))
    stack["base"]["fingerprint"] = {key: "another" for key in stack["base"]["fingerprint"]}
    file.write_text(json.dumps(stack), encoding="utf-8")
    with pytest.raises(UserError, match="not the base it was trained on"):
        open_model(str(copied / "instruct"), FP32)
    assert "not the base it was trained on" in open_model(str(copied / "instruct"), FP32, force=True).forced[0]


def test_files_that_are_not_one_adapter(copied, tmp_path):
    """Missing, of another rank than its configuration says, and several in one folder as plain PEFT saves them."""
    for name in ("style", "instruct"):
        shutil.copytree(copied / name / "adapter", tmp_path / "both" / name)
    with pytest.raises(UserError, match="got a folder of several adapters.*name one of them: instruct, style"):
        find_model(str(tmp_path / "both"))
    (tmp_path / "both/instruct/adapter_info.json").unlink()
    config = json.loads((tmp_path / "both/style/adapter_config.json").read_text(encoding="utf-8"))
    shutil.copy(tmp_path / "both/instruct/adapter_model.safetensors", tmp_path / "both/style/adapter_model.safetensors")
    assert config["r"] != 3
    with pytest.raises(UserError, match="an adapter that does not fit this base .*size mismatch"):
        open_model(str(tmp_path / "both/style"), FP32)
    (copied / "style/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="style.adapter: got no adapter_model.safetensors, expected the adapter that stack.json names"):
        find_model(str(copied / "instruct"))


@pytest.mark.parametrize(
    ("place", "name"),
    [("runs/wuxia/style/adapter", "style"), ("out/style/checkpoint-20", "style"), ("out/style/checkpoints/checkpoint-20", "style"),
     ("lora/stage1/final", "stage1"), ("my-lora", "my-lora"), ("adapter", "adapter")],
)  # fmt: skip
def test_an_adapter_is_called_by_where_it_lies(place, name):
    assert adapter_name(place) == name


def test_generate_and_evaluate_say_what_was_forced(copied, command, refused):
    spoil(copied / "style/adapter")
    asked = ["generate", copied / "instruct", "--prompt", "雪", "--max-new-tokens", 2]
    assert "changed after training" in refused(*asked)
    ran = command(*asked, "--force")
    assert ran.code == 0 and "warning    forced: " in ran.err and ran.out.startswith("雪")


# --------------------------------------------------------------------------------------------------------- branches


TURNED = Branches(branch_stride=24, visibility="columnar")
LAYOUTS = {
    "turned": TURNED, "other": TURNED.model_copy(update={"branch_stride": 8}), "flat": Branches(rope_2d_ratio=0, fork="。"), "text": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def of_branches(tmp_path_factory, base_folder) -> Path:
    """A stage with each of the layouts, and stacks of several."""
    folder = tmp_path_factory.mktemp("branches")
    parts = {
        name: write_adapter(base_folder, folder / name / "adapter", Adapter(r=2), seed=seed, branches=layout)
        for seed, (name, layout) in enumerate(LAYOUTS.items())
    }
    stacks = [[name] for name in parts] + [["text", "turned"], ["turned", "flat"], ["turned", "other"]]
    for names in stacks:
        write_stack(base_folder, folder / "+".join(names), {name: parts[name] for name in names})
    return folder


@torch.no_grad()
def read(model) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 30)[None]).logits


@pytest.mark.parametrize(
    ("name", "layout"),
    [("turned", "turned"), ("turned/adapter", "turned"), ("flat", "flat"), ("text", "text"), ("text+turned", "turned"),
     ("turned+flat", "turned"), ("turned+flat@turned=0", "flat"), ("turned@turned=0", "text"), ("turned+other@turned=0", "other"),
     ("text+turned@text=0.5", "turned")],
)  # fmt: skip
def test_a_model_stands_where_its_adapters_were_trained(name, layout, of_branches, base_folder):
    opened = open_model(str(of_branches / name), FP32)
    assert opened.branches == find_model(str(of_branches / name)).branches == LAYOUTS[layout]
    assert installed(opened.model) == (opened.branches if layout in ("turned", "other") else None)


def test_what_it_reads_there_is_what_the_adapter_reads_by_hand(of_branches, base_folder):
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base_folder), of_branches / "turned" / "adapter").eval()
    one = read(model)
    install(model, TURNED)
    assert torch.equal(read(open_model(str(of_branches / "turned"), FP32).model), read(model)) and not torch.equal(one, read(model))
    bare = read(AutoModelForCausalLM.from_pretrained(base_folder).eval())
    assert torch.equal(read(open_model(str(of_branches / "turned@turned=0"), FP32).model), bare), "left out, it leaves the base"


def test_adapters_at_two_positions_are_refused(of_branches):
    with pytest.raises(UserError, match="turned at rope_2d_ratio 0.5, branch_stride 24, .*; other at .* branch_stride 8.*@NAME=0"):
        find_model(str(of_branches / "turned+other"))


def test_a_base_that_cant_carry_them_is_refused(of_branches, random_model, tokenizer, tmp_path):
    """Of the same shapes, with frequencies that change with the length."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    random_model("Qwen3", rope_parameters=scaling).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="branches.rope_2d_ratio: got 0.5, on Qwen3Model with frequencies that change"):
        open_model(str(of_branches / "turned/adapter"), FP32, base=str(tmp_path))
    open_model(str(of_branches / "flat/adapter"), FP32, base=str(tmp_path))


def test_models_put_on_one_base_in_turn_find_it_plain(of_branches, base_folder):
    """As `stylora evaluate` opens them: after one with coordinates the next has none, even where nobody took them off."""
    base = load_base(str(base_folder), FP32)
    bare = read(base.model)
    for taken_off in (True, False):
        for name in ("turned", "text", "other", "flat", "turned"):
            opened = put_on(base, find_model(str(of_branches / name)))
            assert torch.equal(read(opened.model), read(open_model(str(of_branches / name), FP32).model))
            assert isinstance(opened.model, PeftModel)
            opened.model.unload()
            if taken_off:
                remove(base.model)
                assert torch.equal(read(base.model), bare)
    assert torch.equal(read(put_on(base, Found(name="base", base=str(base_folder))).model), bare)


def test_parts_of_a_stack_stand_where_they_were_trained(of_branches, base_folder, capsys):
    """The variants of a three-way test, and `generate --without-adapter`: the base is the base, a style of text as it is alone."""
    found = find_model(str(of_branches / "text+turned"))
    opened, together = put_on(load_base(str(base_folder), FP32), found), read(open_model(found.name, FP32).model)
    alone = {name: read(open_model(f"{found.name}{behind}", FP32).model) for name, behind in
             {"base": "@text=0,turned=0", "style": "@turned=0", "stack": "", "instruct": "@text=0"}.items()}  # fmt: skip
    for variant in variants(Subject(found=found, style=1)):
        with switched(opened.model, found, variant):
            torch.testing.assert_close(read(opened.model), alone[variant.key], rtol=0, atol=1e-6)
        assert torch.equal(read(opened.model), together)
    assert len({float(each.sum()) for each in alone.values()}) == 4
    said = []
    for name, without in ((str(of_branches / "turned"), True), (str(base_folder), False), (str(of_branches / "turned"), False)):
        greedy = Sampling(temperature=0, max_new_tokens=12)
        stream_prompts(name, ["abcdefgh"], greedy, chat=False, base=None, without_adapter=without, trust_remote_code=False)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_stack_json_says_how_branches_are_laid_out(of_branches, tmp_path, monkeypatch):
    """Beside its adapters; and nothing of a stage of other data."""
    monkeypatch.setattr(run_folders, "frozen_entries", lambda *_: [])
    shutil.copytree(of_branches / "turned", tmp_path / "stage")
    stage = StageFolder(path=tmp_path / "stage")
    for branches in (TURNED, None):
        data = {"train": "rows.jsonl", **({"format": "branches"} if branches else {})}
        values = {"name": "s", "data": data, **({"branches": branches.model_dump()} if branches else {})}
        recipe = parse_recipe({"base": "tiny", "stages": [values]}, [], name="x")
        run_folders.write_stack(stage, recipe, base_fingerprint={}, steps=1, made={})
        described = json.loads(stage.stack.read_text(encoding="utf-8"))
        assert described.get("branches") == (branches and branches.model_dump(mode="json")) and described["adapters"][0]["name"] == "s"
