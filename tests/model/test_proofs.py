"""The proofs pass where they should, and can fail: a leak, a wrong position, a wrong head are found."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from stylora.errors import UserError
from stylora.model import forest_model as forest_model_module
from stylora.model import proofs as module
from stylora.model.adapter import attach, save_adapter
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import probe, prove_adapters_off, prove_base, prove_branches, prove_kl
from stylora.model.rope_2d import Rope2d, install
from stylora.model.settings import Adapter
from stylora.model.stack import build_stack
from stylora.samples.anchors import Kl
from stylora.samples.branch_settings import Branches

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
    monkeypatch.setattr(forest_model_module, "attention_mask", lambda *_, **__: None)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs and "differs from the same document alone" in proofs.lines[-1]


def test_a_plain_causal_mask_is_a_leak(random_model, monkeypatch):
    def causal(end, *_, **__):
        return torch.ones(end.shape[1], end.shape[1]).tril().bool().expand(len(end), 1, -1, -1)

    monkeypatch.setattr(forest_model_module, "attention_mask", causal)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs and "leak" in proofs.lines[-1]


def test_a_leak_through_one_branch_of_a_tree_alone_is_found(random_model, monkeypatch):
    """Documents stay apart, branches do not: `end` replaced by the end of the whole tree."""
    right = forest_model_module.attention_mask

    def whole_tree(end, time, *rest, **more):
        trees = int((time == 0).sum())
        return right(end if trees > 1 else torch.full_like(end, end.shape[1]), time, *rest, **more)

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
    def refuse(*_, **__):
        raise ValueError("masks must be two-dimensional\nsecond line")

    monkeypatch.setattr(forest_model_module, "attention_mask", refuse)
    proofs = prove_base(random_model("Llama"), words=WORDS)
    assert not proofs.packs
    assert proofs.lines[-1] == "one chain per row: this model takes no ready mask (masks must be two-dimensional)"


def test_a_window_that_is_not_applied_is_found(random_model, monkeypatch):
    right = forest_model_module.attention_mask

    def without_window(end, time, config, *rest, **more):
        return right(end, time, type(config)(sliding_window=None), *rest, **more)

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


# --- KL sees the adapter ------------------------------------------------------------------------------------------------------------------


def with_kl(random_model, kl: Kl | None = None, *, adapter: Adapter | None = None, moved: float = 0.0) -> ForestModel:
    """A model with an adapter in it, in training mode; moved: how far its matrices are from their start."""
    peft = attach(random_model("Qwen3"), adapter or Adapter(r=4, dropout=0.3), seed=0).train()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter += moved * torch.randn_like(parameter)
    return ForestModel(peft.get_base_model(), words=WORDS, kl=kl or Kl())


def told(line: str) -> tuple[float, float]:
    """(KL now, KL when moved)"""
    found = re.fullmatch(r"KL sees the adapter: (\S+) now, (\S+) when it is moved a little", line)
    assert found, line
    return float(found[1]), float(found[2])


EVERY_KL = [Kl(), Kl(direction="reverse"), Kl(reference="frozen"), Kl(on="general"), Kl(sample=0.01), Kl(drop_gold=True)]


@pytest.mark.parametrize("kl", EVERY_KL, ids=str)
@pytest.mark.parametrize("moved", [0.0, 0.1])
def test_kl_sees_the_adapter_and_all_is_put_back(kl, moved, random_model):
    model = with_kl(random_model, kl, moved=moved)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trains = [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]
    modes, generator = [module.training for module in model.modules()], torch.get_rng_state()
    now, when_moved = told(prove_kl(model, words=WORDS))
    assert (now > 0) == (moved > 0) and when_moved > 1e-6
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()), "bit for bit"
    assert trains == [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]
    assert modes == [module.training for module in model.modules()] and torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(
    "adapter", [Adapter(targets=["embed_tokens"]), Adapter(targets=["lm_head"]), Adapter(r=2, dora=True), Adapter(targets=["q_proj"])]
)
def test_kl_sees_adapters_of_every_sort_of_module(adapter, random_model):
    """Of an embedding's two matrices it is A that begins with zeros."""
    now, moved = told(prove_kl(with_kl(random_model, adapter=adapter), words=WORDS))
    assert now == 0 < moved


def test_kl_of_an_adapter_on_another_sees_the_one_that_learns(random_model, tmp_path):
    """Held to the frozen one it is 0 before the first step; held to the base it is not."""
    below = attach(random_model("Qwen3"), Adapter(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in below.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(below, tmp_path, base_name="tiny")
    for reference in ("frozen", "base"):
        peft = build_stack(random_model("Qwen3"), Adapter(r=2, frozen=(str(tmp_path),)), seed=1)
        frozen = {name: value.clone() for name, value in peft.state_dict().items()}
        model = ForestModel(peft.get_base_model(), words=WORDS, kl=Kl(reference=reference))
        now, moved = told(prove_kl(model, words=WORDS))
        assert (now == 0) == (reference == "frozen") and moved > now
        assert all(torch.equal(value, frozen[name]) for name, value in peft.state_dict().items())


@pytest.mark.parametrize("way", ["swallowed", "the reference is the model", "no number"])
def test_a_kl_that_is_broken_is_found(way, random_model, monkeypatch):
    """As the original's was: an exception on its way was swallowed, and the loss went on without it."""
    model = with_kl(random_model)
    if way == "swallowed":
        monkeypatch.setattr(ForestModel, "_anchored", lambda self, batch: None)
    elif way == "the reference is the model":
        monkeypatch.setattr(forest_model_module, "as_reference", lambda *_: torch.no_grad())
    else:
        right = forest_model_module.edge_and_anchor_loss

        def no_number(*args, **kwargs):
            total, ce, kl = right(*args, **kwargs)
            return total, ce, kl * float("nan")

        monkeypatch.setattr(forest_model_module, "edge_and_anchor_loss", no_number)
    with pytest.raises(AssertionError, match="of an adapter that was moved"):
        prove_kl(model, words=WORDS)


# --------------------------------------------------------------------------------------------------------- branches


def branching(model, **settings) -> tuple[ForestModel, Branches]:
    layout = Branches(**{"branch_stride": 16, **settings})
    install(model, layout)
    return ForestModel(model, words=WORDS, columnar=layout.visibility == "columnar"), layout


@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
@pytest.mark.parametrize("kind", ["Qwen2", "Llama", "Mistral", "Gemma2", "Gemma3Text", "Glm4", "Granite", "GPTNeoX"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_branches_of_dense_models(kind, dtype, visibility, random_model):
    model = random_model(kind).to(dtype).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for positions, ratio in (("replace", 0.5), ("add", 1.0), ("replace", 0.0)):
        forest, layout = branching(model, visibility=visibility, positions=positions, rope_2d_ratio=ratio)
        lines = prove_branches(forest, layout, words=WORDS)
        assert len(lines) == (2 if ratio else 1) and ("not each other" in lines[0]) == (visibility == "isolated")
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
def test_branches_on_a_model_that_leaks_are_refused(visibility, random_model):
    forest, layout = branching(random_model("Qwen3Next"), visibility=visibility)
    with pytest.raises(UserError, match="base: got Qwen3NextForCausalLM: (its layers leak|a token shows)"):
        prove_branches(forest, layout, words=WORDS)


@pytest.mark.parametrize(
    ("visibility", "wrong", "reason"),
    [
        ("isolated", "columnar", "leak across branches"), ("columnar", "isolated", "does not see its peer"),
        ("columnar", "a column too many", "an earlier or equal column"), ("isolated", "flat time", "differs from the same branch alone"),
    ],
)  # fmt: skip
def test_wrong_masks_of_branches_are_found(visibility, wrong, reason, random_model, monkeypatch):
    right = forest_model_module.attention_mask
    forest, layout = branching(random_model("Llama"), visibility=visibility, rope_2d_ratio=0.5)

    def mask(end, time, *rest, columnar):
        if wrong in ("columnar", "isolated"):
            return right(end, time, *rest, columnar=wrong == "columnar")
        seen = right(end, time, *rest, columnar=columnar)
        return seen | (time[:, None, None, :] == time[:, None, :, None]) if wrong == "a column too many" else seen

    monkeypatch.setattr(forest_model_module, "attention_mask", mask)
    if wrong == "flat time":
        rotary = forest.model.model.rotary_emb.rotary
        asked = rotary.forward
        monkeypatch.setattr(rotary, "forward", lambda x, position_ids: asked(x, torch.arange(x.shape[1])[None].expand(len(x), -1)))
    with pytest.raises(UserError, match=reason):
        prove_branches(forest, layout, words=WORDS)


@pytest.mark.parametrize("wrong", ["ignored", "everywhere"])
def test_coordinates_that_go_elsewhere_are_found(wrong, random_model, monkeypatch):
    """A model that does not ask its rotary embedding for each call, and one that moves the trunk too."""
    forest, layout = branching(random_model("Llama"))
    right = Rope2d.forward

    def forward(self, x, position_ids, layer_type=None):
        if wrong == "ignored":
            return self.original(x, position_ids, "")
        if self.branch is not None:
            self.branch = self.branch.amax(1, keepdim=True).expand_as(self.branch)
        return right(self, x, position_ids, layer_type)

    monkeypatch.setattr(Rope2d, "forward", forward)
    with pytest.raises(UserError, match="does not reach its layers" if wrong == "ignored" else "reaches its trunk|differs from"):
        prove_branches(forest, layout, words=WORDS)
