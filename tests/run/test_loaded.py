"""Stacks swapped and weighed on a base in memory, beside models opened anew; and what is refused leaves no trace."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from tests.run.stacked import FP32, write_adapter, write_stack, write_stacks
from transformers import AutoModelForCausalLM

from stylora.errors import UserError
from stylora.model.base import load_base
from stylora.model.rope_2d import installed
from stylora.model.settings import Adapter
from stylora.run import loaded as page
from stylora.run.loaded import LoadedModel
from stylora.run.open import open_model
from stylora.samples.branch_settings import Branches

IDS = torch.arange(3, 40)[None]


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def stacks(tmp_path_factory, base_folder) -> Path:
    return write_stacks(base_folder, tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="module")
def opened(stacks):
    """`opened("instruct@style=0.5")`: the logits of a model opened anew."""
    return cache(lambda name: logits(open_model(str(stacks / name), FP32).model))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The stages whose adapters were read, in order."""
    seen: list[str] = []
    load = page.load_adapter

    def counted(model, folder, **options):
        seen.append(folder.resolve().parent.name)
        return load(model, folder, **options)

    monkeypatch.setattr(page, "load_adapter", counted)
    return seen


def test_swapped_stacks_are_those_opened_anew_and_what_they_share_is_read_once(stacks, opened, reads):
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    assert reads == ["style", "instruct"] and torch.equal(logits(loaded.model), opened("instruct"))
    for name, read in (("letters", ["letters"]), ("instruct", ["instruct"]), ("style", []), ("letters", ["letters"]), ("letters", [])):
        reads.clear()
        loaded.swap(str(stacks / name))
        assert reads == read
        assert torch.equal(logits(loaded.model), opened(name))
        assert list(loaded.weights) == ([name] if name == "style" else ["style", name])
    assert len({tuple(opened(name).flatten()[:9].tolist()) for name in ("style", "instruct", "letters")}) == 3
    assert not loaded.model.training and not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_stacks_that_share_nothing(stacks, opened, base_folder, tmp_path):
    parts = {name: write_adapter(base_folder, tmp_path / name, Adapter(r=2), seed=seed) for seed, name in enumerate("ab", 5)}
    other = write_stack(base_folder, tmp_path / "stack", parts)
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    loaded.swap(str(other))
    assert torch.equal(logits(loaded.model), logits(open_model(str(other), FP32).model))
    loaded.swap(str(stacks / "letters"))
    assert torch.equal(logits(loaded.model), opened("letters"))


def test_the_order_is_that_of_the_stack_whatever_was_read_first(stacks, opened, reads):
    loaded = LoadedModel(str(stacks / "instruct" / "adapter"), FP32)
    loaded.swap(str(stacks / "instruct"))
    assert reads == ["instruct", "style"] and torch.equal(logits(loaded.model), opened("instruct"))


@pytest.fixture
def foul(stacks, base_folder, random_model, tokenizer, tmp_path) -> dict[str, Path]:
    """Stacks that can't be put on this base, by what is wrong with them."""
    copy = shutil.copytree(stacks, tmp_path / "copied")
    changed = copy / "letters" / "adapter" / "adapter_model.safetensors"
    save_file({key: value * 1.5 for key, value in load_file(changed).items()}, changed)
    (copy / "instruct" / "adapter" / "adapter_model.safetensors").unlink()
    other, wide = tmp_path / "other base", tmp_path / "wide base"
    random_model("Qwen3", seed=7).save_pretrained(other)
    random_model("Qwen3", seed=7, intermediate_size=96).save_pretrained(wide)
    for folder in (other, wide):
        tokenizer.save_pretrained(folder)
    on_other = write_stack(other, tmp_path / "on other", {"a": write_adapter(other, tmp_path / "on other" / "adapter", Adapter(), seed=3)})
    unfit = write_adapter(wide, tmp_path / "unfit", Adapter(), seed=3)
    config = unfit / "adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace(wide.name, base_folder.name).replace(
        wide.parent.as_posix(), base_folder.parent.as_posix()), encoding="utf-8")  # fmt: skip
    biased = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), LoraConfig(target_modules="all-linear", bias="all"))
    biased.save_pretrained(tmp_path / "biased")
    dora = write_adapter(base_folder, tmp_path / "dora", Adapter(dora=True), seed=3)
    letters = {"style": stacks / "style" / "adapter", "letters": stacks / "letters" / "adapter"}
    return {
        "changed": copy / "letters", "missing": copy / "instruct", "other base": on_other, "bare": other, "shape": unfit,
        "biased": tmp_path / "biased", "dora": Path(f"{dora}@dora=0.5"),
        "packed": write_stack(base_folder, tmp_path / "packed", letters, load_in_4bit=True),
        "unfit above": write_stack(base_folder, tmp_path / "above", {**letters, "unfit": unfit}),
    }  # fmt: skip


REFUSALS = {
    "changed": "changed after training", "missing": "no adapter_model.safetensors", "other base": "not the base it was trained on",
    "bare": "got the base .*other base, expected .* in memory", "shape": "does not fit this base", "biased": "changes biases",
    "dora": "a DoRA adapter", "packed": "got a base in 4 bits", "unfit above": "does not fit this base",
}  # fmt: skip


@pytest.mark.parametrize("start", ["instruct", "base"])
def test_a_refused_swap_leaves_everything_as_it_was(start, stacks, foul, base_folder):
    loaded = LoadedModel(str(base_folder if start == "base" else stacks / start), FP32)
    if start == "instruct":
        loaded.weigh("style", 0.5)
    before, weights, found = logits(loaded.model), loaded.weights, loaded.found
    names = [name for name, _ in loaded.model.named_parameters()]
    assert set(foul) == set(REFUSALS)
    for kind, path in foul.items():
        with pytest.raises(UserError, match=REFUSALS[kind]):
            loaded.swap(str(path))
        assert torch.equal(logits(loaded.model), before), kind
        assert (loaded.weights, loaded.found, loaded.forced) == (weights, found, ())
        assert [name for name, _ in loaded.model.named_parameters()] == names, kind
    loaded.swap(str(stacks / "letters"))
    assert torch.equal(logits(loaded.model), logits(open_model(str(stacks / "letters"), FP32).model))


def test_a_first_adapter_that_does_not_fit_leaves_a_clean_base(foul, base_folder):
    loaded = LoadedModel(str(base_folder), FP32)
    with pytest.raises(UserError, match="does not fit"):
        loaded.swap(str(foul["shape"]))
    assert loaded.model is loaded.base.model and not hasattr(loaded.model, "peft_config")
    assert not any(isinstance(module, BaseTunerLayer) for module in loaded.model.modules())


def test_an_interrupted_swap_leaves_everything_as_it_was(stacks, monkeypatch):
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    before, load = logits(loaded.model), page.load_adapter

    def stopped(*given, **options):
        load(*given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "load_adapter", stopped)
    with pytest.raises(KeyboardInterrupt):
        loaded.swap(str(stacks / "letters"))
    assert torch.equal(logits(loaded.model), before) and list(loaded.weights) == ["style", "instruct"]


def test_force_opens_what_was_changed_and_says_so(stacks, foul):
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    loaded.swap(str(foul["changed"]), force=True)
    assert [line for line in loaded.forced if "changed after training" in line]
    assert torch.equal(logits(loaded.model), logits(open_model(str(foul["changed"]), FP32, force=True).model))
    loaded.swap(str(foul["other base"]), force=True)
    assert ["not the base it was trained on" in line for line in loaded.forced] == [True]
    loaded.swap(str(stacks / "instruct"))
    assert loaded.forced == ()


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_weights_are_those_of_a_model_opened_with_them(weight, stacks, opened, reads):
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    reads.clear()
    loaded.weigh("style", 0.3)
    loaded.weigh("style", weight)
    assert torch.equal(logits(loaded.model), opened(f"instruct@style={weight}"))
    assert loaded.weights == {"style": weight, "instruct": 1} and not loaded.found.as_trained and reads == []
    loaded.swap(str(stacks / "letters"))
    assert torch.equal(logits(loaded.model), opened("letters"))  # weights do not outlive their stack
    loaded.swap(f"{stacks / 'letters'}@letters={weight}")
    assert torch.equal(logits(loaded.model), opened(f"letters@letters={weight}"))


def test_what_is_in_memory_is_weighed_whatever_happened_to_its_file(stacks, tmp_path):
    copy = shutil.copytree(stacks, tmp_path / "copied")
    loaded = LoadedModel(str(copy / "instruct"), FP32)
    shutil.rmtree(copy)
    loaded.weigh("style", 0.5)
    assert torch.equal(logits(loaded.model), logits(open_model(f"{stacks / 'instruct'}@style=0.5", FP32).model))


def test_weights_that_nobody_has(stacks, foul):
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    with pytest.raises(UserError, match="a weight for 'stile'.*did you mean 'style'"):
        loaded.weigh("stile", 0.5)
    dora = LoadedModel(str(foul["dora"]).partition("@")[0], FP32)
    before = logits(dora.model)
    with pytest.raises(UserError, match="DoRA"):
        dora.weigh("dora", 0.5)
    assert torch.equal(logits(dora.model), before) and dora.weights == {"dora": 1}


def test_bare_is_the_base_bit_for_bit_and_swapping_to_it_and_back(stacks, opened, base_folder):
    base = logits(load_base(str(base_folder), FP32).model)
    loaded = LoadedModel(str(stacks / "instruct"), FP32)
    with loaded.bare() as model:
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(loaded.model), opened("instruct")) and not torch.equal(base, opened("instruct"))
    loaded.swap(str(base_folder))
    assert loaded.weights == {} and torch.equal(logits(loaded.model), base)
    with loaded.bare() as model:
        assert torch.equal(logits(model), base)
    loaded.swap(str(stacks / "instruct"))
    assert torch.equal(logits(loaded.model), opened("instruct"))


def test_the_base_that_was_given_is_that_of_every_stack(stacks, opened, base_folder, tmp_path):
    elsewhere = shutil.copytree(base_folder, tmp_path / "elsewhere")
    loaded = LoadedModel(str(stacks / "instruct" / "adapter"), FP32, base=str(elsewhere))
    loaded.swap(str(stacks / "letters" / "adapter"))
    assert torch.equal(logits(loaded.model), opened("letters/adapter"))


def test_positions_come_and_go_with_the_adapter(stacks, base_folder, random_model, tmp_path):
    """Of branches with coordinates: swapped in and out, left out by its weight and put back, bare; a refusal leaves them as they were."""
    turned, other = Branches(branch_stride=24), Branches(branch_stride=8, positions="add")
    parts = {"style": stacks / "style" / "adapter"}
    for seed, (name, layout) in enumerate({"turned": turned, "other": other}.items(), 7):
        parts[name] = write_adapter(base_folder, tmp_path / name / "adapter", Adapter(r=2), seed=seed, branches=layout)
    one = str(write_stack(base_folder, tmp_path / "one", {name: parts[name] for name in ("style", "turned")}))
    two = str(write_stack(base_folder, tmp_path / "two", {name: parts[name] for name in ("style", "other")}))
    both = str(write_stack(base_folder, tmp_path / "both", parts))
    expected = {name: logits(open_model(name, FP32).model) for name in (one, two, str(stacks / "letters"))}
    base = logits(load_base(str(base_folder), FP32).model)
    loaded = LoadedModel(str(stacks / "letters"), FP32)
    for name, layout in ((one, turned), (str(stacks / "letters"), None), (two, other), (one, turned)):
        loaded.swap(name)
        assert loaded.layout == layout == installed(loaded.model) and torch.equal(logits(loaded.model), expected[name])
    with loaded.bare() as bare:
        assert torch.equal(logits(bare), base)
    with pytest.raises(UserError, match="turned at .*; other at "):
        loaded.swap(both)
    assert torch.equal(logits(loaded.model), expected[one])
    loaded.weigh("turned", 0)
    assert loaded.layout is None is installed(loaded.model)
    assert torch.equal(logits(loaded.model), logits(open_model(f"{one}@turned=0", FP32).model))
    loaded.weigh("turned", 1)
    assert loaded.layout == turned and torch.equal(logits(loaded.model), expected[one])
    loaded.swap(f"{both}@other=0")
    with pytest.raises(UserError, match="turned at .*; other at "):
        loaded.weigh("other", 1)
    assert loaded.layout == turned and loaded.weights["other"] == 0
