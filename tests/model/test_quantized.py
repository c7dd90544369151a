"""A base in 4 bits: what is packed and what is not, that it is known as the same base, and that LoRA's gradients on it are right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stylora.errors import UserError
from stylora.model import quantized
from stylora.model.adapter import attach, count_parameters, load_adapter, save_adapter
from stylora.model.base import fingerprint, load_base, same_base
from stylora.model.device import Device
from stylora.model.proofs import probe, prove_adapters_off, prove_base
from stylora.model.settings import Adapter

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
BF16 = replace(FP32, dtype=torch.bfloat16)
NEEDS_BITSANDBYTES = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_model, tokenizer) -> Path:
    """Wide enough that every linear layer has blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("wide") / "base"
    random_model("Qwen3", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@NEEDS_BITSANDBYTES
def test_linear_layers_are_packed_and_nothing_else(folder):
    whole, packed = load_base(str(folder), FP32), load_base(str(folder), FP32, load_in_4bit=True)
    theirs = dict(whole.model.named_parameters())
    for name, parameter in packed.model.named_parameters():
        assert quantized.is_packed(parameter) == name.endswith("proj.weight"), name
        assert quantized.whole_shape(parameter) == theirs[name].shape and not parameter.requires_grad
        if quantized.is_packed(parameter):
            assert parameter.dtype == torch.uint8 and parameter.numel() * 2 == theirs[name].numel()
        else:
            assert torch.equal(parameter, theirs[name]), name
    assert count_parameters(packed.model) == count_parameters(whole.model)
    held = sum(p.numel() * p.element_size() for p in whole.model.parameters())
    linear = sum(p.numel() for name, p in theirs.items() if name.endswith("proj.weight"))
    assert quantized.stored_bytes(whole.model) == held
    assert 0.5 * linear < quantized.stored_bytes(packed.model) - (held - 4 * linear) < 1.5 * linear, "codes, and scales of small layers"
    assert not packed.model.training


@NEEDS_BITSANDBYTES
def test_it_is_the_same_base_and_no_other(folder, random_model):
    whole, packed = load_base(str(folder), FP32), load_base(str(folder), BF16, load_in_4bit=True)
    ours, theirs = fingerprint(packed), fingerprint(whole)
    assert ours["architecture"] == theirs["architecture"] and None in ours["weights"] and None not in theirs["weights"]
    assert same_base(ours, theirs) and same_base(theirs, ours) and same_base(ours, ours)
    with torch.no_grad():
        whole.model.model.embed_tokens.weight += 0.1
    assert not same_base(ours, fingerprint(whole))
    other = replace(whole, model=random_model("Qwen3", hidden_size=64, intermediate_size=256, head_dim=16))
    assert not same_base(ours, fingerprint(other)), "shapes of packed weights count as they were"


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("adapter", [Adapter(r=4), Adapter(r=4, dora=True), Adapter(r=4, rslora=True)], ids=["lora", "dora", "rslora"])
def test_the_proofs_hold_on_it(folder, adapter, tmp_path):
    base = load_base(str(folder), FP32, load_in_4bit=True)
    proofs = prove_base(base.model, words=len(base.tokenizer))
    assert proofs.head == "module" and proofs.packs
    ids, before = probe(base.model, len(base.tokenizer))
    peft = attach(base.model, adapter, seed=0)
    assert "bit for bit" in prove_adapters_off(peft, before, ids)
    learns = [p for p in peft.parameters() if p.requires_grad]
    assert learns and all(p.dtype == torch.float32 for p in learns)
    with torch.no_grad():
        for parameter in learns:
            parameter += 0.1 * torch.randn_like(parameter)
        moved = peft(input_ids=ids).logits
    assert not torch.allclose(moved, before, atol=1e-2) and "bit for bit" in prove_adapters_off(peft, before, ids)
    save_adapter(peft, tmp_path, base_name="b")
    again = load_adapter(load_base(str(folder), FP32, load_in_4bit=True).model, tmp_path)
    assert torch.equal(again(input_ids=ids).logits, moved)


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_gradients_are_those_of_the_unpacked_weights_also_after_an_evaluation(folder, device, checkpointing):
    """A forward in eval mode may not change what later gradients are."""
    from bitsandbytes.functional import dequantize_4bit

    base, reference = load_base(str(folder), device, load_in_4bit=True), load_base(str(folder), device)
    packed = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.model.named_parameters():
            if quantized.is_packed(packed[name]):
                parameter.copy_(dequantize_4bit(packed[name], packed[name].quant_state))
        assert torch.allclose(base.model(input_ids=IDS).logits, reference.model(input_ids=IDS).logits, atol=1e-4)
    if checkpointing:
        base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for model in (base.model, reference.model):
        peft = attach(model, Adapter(r=4), seed=0)
        torch.manual_seed(1)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        peft.train()
        with torch.autocast("cpu", device.dtype, enabled=device.dtype != torch.float32):
            peft(input_ids=IDS).logits.float().logsumexp(-1).mean().backward()
        gradients.append({name: p.grad for name, p in peft.named_parameters() if p.requires_grad})
    ours, theirs = gradients
    tolerance = 1e-4 if device is FP32 else 0.05
    for name, gradient in theirs.items():
        assert gradient.norm() > 0 and (ours[name] - gradient).norm() <= tolerance * gradient.norm(), name


@NEEDS_BITSANDBYTES
def test_a_base_that_was_saved_packed_stays_as_it_is(folder, tmp_path, tokenizer):
    base = load_base(str(folder), BF16, load_in_4bit=True)
    base.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = base.model(input_ids=IDS).logits
        for asked in (True, False):
            again = load_base(str(tmp_path), BF16, load_in_4bit=asked)
            assert torch.equal(again.model(input_ids=IDS).logits, expected)
            assert same_base(fingerprint(again), fingerprint(base))


def test_a_missing_library_is_said_in_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="load_in_4bit: got no bitsandbytes, expected .*; pip install bitsandbytes") as caught:
        load_base(str(folder), FP32, load_in_4bit=True)
    assert "\n" not in str(caught.value)
    assert load_base(str(folder), FP32).model, "without the key nothing asks for it"


@NEEDS_BITSANDBYTES
def test_a_broken_library_is_no_mistake_of_the_base(folder, monkeypatch):
    """Nothing is said of the base, and none of transformers' table of tracebacks."""
    def broken(*_, **__):
        raise RuntimeError("compiled without this device\nand more")

    with monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.functional.quantize_4bit", broken)
        with pytest.raises(UserError, match="load_in_4bit: got a bitsandbytes that can't pack here .compiled without this dev") as caught:
            load_base(str(folder), FP32, load_in_4bit=True)
        assert "\n" not in str(caught.value) and str(folder) not in str(caught.value)
        assert load_base(str(folder), FP32).model, "without the key nothing asks for it"
    with monkeypatch.context() as patch:
        patch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda *_: False)
        with pytest.raises(UserError, match="load_in_4bit: got a bitsandbytes that can't pack here .Using `bitsandbytes`"):
            load_base(str(folder), FP32, load_in_4bit=True)
    with pytest.raises(UserError, match="base: got .*expected `tiny`, a folder"):
        load_base(str(folder / "none"), FP32, load_in_4bit=True)


@NEEDS_BITSANDBYTES
def test_importing_it_says_nothing_and_its_errors_are_told():
    """PEFT imports it wherever it is installed; some CPUs lack a kernel that nobody here asks for."""
    code = "import stylora.model.adapter, logging, sys; assert 'bitsandbytes' in sys.modules; {}"
    ran = subprocess.run([sys.executable, "-c", code.format("")], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
    code = "import stylora, logging; logging.getLogger('bitsandbytes.backends.cpu.ops').{}('kernel')"
    told = [subprocess.run([sys.executable, "-c", code.format(how)], capture_output=True, text=True).stderr for how in ("warning", "error")]
    assert told == ["", "kernel\n"]
