"""The proofs pass where they should, and can fail: a leak, a wrong position, a wrong head are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from stylora.errors import UserError
from stylora.model import forest_model as forest_model_module
from stylora.model import proofs as module
from stylora.model.proofs import probe, prove_adapters_off, prove_base

WORDS = 262


@pytest.mark.parametrize(
    ("kind", "attention", "head"),
    [
        ("Qwen2", "sdpa", "module"), ("Qwen2", "eager", "module"), ("Qwen3", "sdpa", "module"), ("Llama", "sdpa", "module"),
        ("Mistral", "sdpa", "module"), ("Mistral", "eager", "module"), ("Gemma3Text", "sdpa", "module"),
        ("Gemma3Text", "eager", "module"), ("Glm4", "sdpa", "module"), ("Granite", "sdpa", "model"), ("Gemma2", "eager", "model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_models_pack(kind, attention, head, dtype, random_model):
    model = random_model(kind, attention=attention).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    proofs = prove_base(model, words=WORDS)
    assert (proofs.head, proofs.packs) == (head, True)
    assert len(proofs.lines) == 2
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["Qwen3Next", "Qwen3_5Text"])
@pytest.mark.parametrize("length", [16, 24])  # 2 * 16 tokens: as long as the model is wide, so no shape can clash by luck
def test_hybrids_take_the_mask_and_leak(kind, length, random_model):
    """Their recurrent layers carry state from one document into the next: found by the leak itself, not by a crash."""
    proofs = prove_base(random_model(kind), words=WORDS, length=length)
    assert (proofs.head, proofs.packs) == ("module", False)
    assert proofs.lines[-1] == "one chain per row: this model's layers leak across documents in a row"


def test_the_training_mode_comes_back(random_model):
    model = random_model("Llama").train()
    prove_base(model, words=WORDS)
    assert model.training


def test_no_mask_at_all_is_refused(random_model, monkeypatch):
    """transformers itself keeps documents apart where positions start anew, but knows no trees: the tree is what fails."""
    monkeypatch.setattr(forest_model_module, "attention_mask", lambda *_: None)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs and "differs from the same document alone" in proofs.lines[-1]


def test_a_plain_causal_mask_is_a_leak(random_model, monkeypatch):
    def causal(end, *_):
        return torch.ones(end.shape[1], end.shape[1]).tril().bool().expand(len(end), 1, -1, -1)

    monkeypatch.setattr(forest_model_module, "attention_mask", causal)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs and "leak" in proofs.lines[-1]


def test_a_leak_through_one_branch_of_a_tree_alone_is_found(random_model, monkeypatch):
    """Documents stay apart, branches do not: `end` replaced by the end of the whole tree."""
    right = forest_model_module.attention_mask

    def whole_tree(end, time, *rest):
        trees = int((time == 0).sum())
        return right(end if trees > 1 else torch.full_like(end, end.shape[1]), time, *rest)

    monkeypatch.setattr(forest_model_module, "attention_mask", whole_tree)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs and "leak" in proofs.lines[-1]


def test_positions_that_run_on_through_a_row_are_found(random_model):
    """No leak at all, but a document in a row is not the document alone. RoPE is relative, so a tree shows it."""
    model = random_model("Llama")
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotary(x, torch.arange(x.shape[1])[None])
    proofs = prove_base(model, words=WORDS)
    assert not proofs.packs and "differs from the same document alone" in proofs.lines[-1]


def test_a_decoder_that_takes_no_mask_is_refused_with_its_reason(random_model, monkeypatch):
    def refuse(*_):
        raise ValueError("masks must be two-dimensional\nsecond line")

    monkeypatch.setattr(forest_model_module, "attention_mask", refuse)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs
    assert proofs.lines[-1] == "one chain per row: this model takes no ready mask (masks must be two-dimensional)"


def test_a_window_that_is_not_applied_is_found(random_model, monkeypatch):
    right = forest_model_module.attention_mask

    def without_window(end, time, config, *rest):
        return right(end, time, type(config)(sliding_window=None), *rest)

    monkeypatch.setattr(forest_model_module, "attention_mask", without_window)
    proofs = prove_base(random_model("Mistral"), words=WORDS)
    assert not proofs.packs and "differs" in proofs.lines[-1]


def test_logits_changed_after_the_head_take_the_models_forward(random_model):
    model = random_model("Llama")
    model.register_forward_hook(lambda _module, _inputs, output: output.__class__({**output, "logits": output.logits * 0.5}))
    proofs = prove_base(model, words=WORDS)
    assert (proofs.head, proofs.packs) == ("model", True)


def test_logits_that_hidden_states_do_not_give_are_refused(random_model):
    """What the model adds to its logits depends on the input ids: no head reproduces that."""
    model = random_model("Llama")

    def add(_module, _inputs, arguments, output):
        output.logits = output.logits + arguments["input_ids"][..., None].float().sin()
        return output

    model.register_forward_hook(add, with_kwargs=True)
    with pytest.raises(UserError, match="base: got LlamaForCausalLM, expected a decoder"):
        prove_base(model, words=WORDS)


def test_adapters_off_is_the_base_and_a_merged_adapter_is_not(random_model):
    model = random_model("Qwen3")
    ids, before = probe(model, WORDS)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        assert not torch.equal(peft(input_ids=ids).logits, before), "the adapter must do something"
    assert prove_adapters_off(peft, before, ids).startswith("adapters off = base")
    with torch.no_grad():
        peft.get_base_model().lm_head.weight += 1e-3
    with pytest.raises(AssertionError, match="adapters off is not the base"):
        prove_adapters_off(peft, before, ids)


def test_probe_reads_real_words_only(random_model):
    ids, logits = probe(random_model("Qwen3"), 7)
    assert ids.shape == (1, 24) and logits.shape[:2] == ids.shape
    assert int(ids.max()) < 7
    assert np.unique(module._tokens(7, 1, 24)).size > 3
