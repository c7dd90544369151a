"""The reference is the base (or the frozen adapters on it), and afterwards nothing is other than before."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stylora.model.reference import adapted_layers, as_reference

IDS = torch.arange(3, 20)[None]


def logits(model) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.3, **settings})


def perturb(peft) -> None:
    torch.manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.fixture
def stack(random_model):
    """(peft, its base's logits, logits with `style` alone): a frozen adapter below a trainable one, dropout everywhere."""
    model = random_model("Qwen3", attention_dropout=0.3)
    base = logits(model)
    peft = get_peft_model(model, lora(), adapter_name="style")
    peft.add_adapter("instruct", lora(target_modules=["q_proj", "down_proj"]))
    perturb(peft)
    style = logits(peft.eval())
    peft.base_model.set_adapter(["style", "instruct"])
    peft.set_requires_grad("style", False)
    peft.train()
    for name, module in peft.named_modules():  # a frozen adapter's dropout is off while the rest trains
        if name.endswith("lora_dropout.style"):
            module.eval()
    return peft, base, style


def state(peft) -> list:
    """All that may not change: modes, what trains, which adapters are active, whether they are on, every value."""
    layers = adapted_layers(peft)
    return [
        [(name, module.training) for name, module in peft.named_modules()],
        [(name, parameter.requires_grad) for name, parameter in peft.named_parameters()],
        [(list(layer.active_adapters), layer.disable_adapters) for layer in layers],
        {name: value.clone() for name, value in peft.state_dict().items()},
    ]


def assert_unchanged(before: list, after: list) -> None:
    assert before[:3] == after[:3]
    assert all(torch.equal(before[3][name], value) for name, value in after[3].items())


@pytest.mark.parametrize("reference", ["base", "frozen"])
def test_the_reference_of_a_stack(reference, stack):
    peft, base, style = stack
    before, generator = state(peft), torch.get_rng_state()
    with as_reference(peft.get_base_model(), reference):
        inside = logits(peft.get_base_model())
    assert torch.equal(inside, base if reference == "base" else style) and not torch.equal(base, style)
    assert not inside.requires_grad
    assert_unchanged(before, state(peft))
    assert torch.equal(generator, torch.get_rng_state()), "no dropout was drawn"
    trains = {name for name, flag in before[1] if flag}
    assert trains and all("instruct" in name for name in trains)


def test_pefts_own_way_would_train_the_frozen_adapter(stack):
    """Why there is a context of our own. If this fails PEFT was mended, and `disable_adapter` will do."""
    peft, *_ = stack
    with peft.disable_adapter():
        pass
    assert any(parameter.requires_grad for name, parameter in peft.named_parameters() if ".style." in name)


@pytest.mark.parametrize("reference", ["base", "frozen"])
def test_one_adapter_has_one_reference(reference, random_model):
    model = random_model("Llama")
    base = logits(model)
    peft = get_peft_model(model, lora(use_dora=True, lora_dropout=0.0))
    perturb(peft)
    before, changed = state(peft), logits(model)
    with as_reference(model, reference):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), changed) and not torch.equal(changed, base)
    assert_unchanged(before, state(peft))


def test_all_comes_back_after_an_exception(stack):
    peft, *_ = stack
    before = state(peft)
    with pytest.raises(RuntimeError, match="on the way"), as_reference(peft, "frozen"):
        raise RuntimeError("on the way")
    assert_unchanged(before, state(peft))


def test_adapters_that_were_off_stay_off(stack):
    peft, base, _ = stack
    peft.base_model.disable_adapter_layers()
    before = state(peft)
    with as_reference(peft):
        assert torch.equal(logits(peft), base)
    assert_unchanged(before, state(peft))


def test_an_adapter_named_like_a_parameter(random_model):
    model = random_model("Qwen3")
    peft = get_peft_model(model, lora(lora_dropout=0.0), adapter_name="weight")
    peft.add_adapter("top", lora(lora_dropout=0.0))
    perturb(peft)
    below = logits(peft)
    peft.base_model.set_adapter(["weight", "top"])
    peft.set_requires_grad("weight", False)
    with as_reference(model, "frozen"):
        assert torch.equal(logits(model), below)


def test_adapters_on_the_embedding_and_the_head(random_model):
    model = random_model("Qwen3")
    base = logits(model)
    peft = get_peft_model(model, lora(target_modules=["embed_tokens", "lm_head"], lora_dropout=0.0))
    perturb(peft)
    before, changed = state(peft), logits(model)
    with as_reference(model, "frozen"):
        assert torch.equal(logits(model), base)
    assert not torch.equal(changed, base)
    assert_unchanged(before, state(peft))


def test_a_bare_model_has_no_reference(random_model):
    with pytest.raises(AssertionError, match="its own reference"), as_reference(random_model("Qwen3")):
        pass
