"""Opening a base: frozen, whole, with a tokenizer; or one sentence about what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylora.errors import UserError
from stylora.model.base import TINY, base_path, decoder_of, fingerprint, hash_file, load_base, same_base, tokenizer_file
from stylora.model.device import Device

CPU = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")


@pytest.fixture
def offline(monkeypatch):
    """No connection: the hub's answer to a name nobody has must not take a network to test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def copy(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "copy")


def test_a_folder_opens_frozen_in_eval_mode_with_a_pad_token(base_folder, random_model, tokenizer):
    base = load_base(str(base_folder), CPU)
    assert base.name == base.path == str(base_folder) and base.context == 256
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert base.tokenizer.pad_token == "<|endoftext|>" and len(base.tokenizer) == len(tokenizer)
    for ours, theirs in zip(base.model.parameters(), random_model("Qwen3").parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_dtype_and_attention_are_as_asked(base_folder):
    base = load_base(str(base_folder), replace(CPU, dtype=torch.bfloat16), attention="eager")
    assert base.model.dtype == torch.bfloat16 and base.model.config._attn_implementation == "eager"
    assert load_base(str(base_folder), CPU).model.config._attn_implementation == "sdpa"


def test_the_stop_token_pads_where_there_is_no_pad_token(copy):
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["pad_token"]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert load_base(str(copy), CPU).tokenizer.pad_token == "<|im_end|>"


@pytest.mark.parametrize("name", ["no/such/folder", "stylora-nobody/does-not-exist", "a b/c??", "/absolute/folder"])
def test_a_name_of_nothing(name, offline):
    with pytest.raises(UserError) as caught:
        load_base(name, CPU, where="--base")
    message = str(caught.value)
    assert message.startswith(f"--base: got '{name}', expected `tiny`, a folder") and "\n" not in message
    with pytest.raises(UserError, match="check the name and the connection"):
        tokenizer_file(name)


def test_damaged_bases_are_refused(copy):
    """Each of these transformers raises something else for, or nothing at all."""
    weights, config = copy / "model.safetensors", copy / "config.json"
    whole, plan = weights.read_bytes(), json.loads(config.read_text(encoding="utf-8"))

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            load_base(str(copy), CPU)
        assert "\n" not in str(caught.value)
        weights.write_bytes(whole)
        config.write_text(json.dumps(plan), encoding="utf-8")

    weights.write_bytes(whole[:1000])
    refused("transformers says")
    weights.unlink()
    refused("transformers says")
    config.write_text("{", encoding="utf-8")
    refused("transformers says")
    config.write_text(json.dumps({**plan, "model_type": "t5"}), encoding="utf-8")
    refused("transformers says")
    config.write_text(json.dumps({**plan, "hidden_size": 16}), encoding="utf-8")
    refused("transformers says")
    kept = load_file(weights)
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, weights, metadata={"format": "pt"})
    refused(r"without 1 of its weights \(model.layers.1.mlp.up_proj.weight")
    load_base(str(copy), CPU)  # and whole again it opens


def test_a_folder_without_a_tokenizer_is_refused(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="no words in its tokenizer|transformers says"):
        load_base(str(copy), CPU)
    with pytest.raises(UserError, match="got no tokenizer.json in"):
        tokenizer_file(str(copy))


def test_tied_weights_are_not_missing(random_model, tokenizer, tmp_path):
    random_model("Qwen3", tie_word_embeddings=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = load_base(str(tmp_path), CPU)
    assert base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight


def test_paths_of_names(base_folder):
    assert base_path("tiny") == str(TINY) and base_path("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert tokenizer_file(str(base_folder)) == base_folder / "tokenizer.json"


def test_hash_file_is_blake2b(tmp_path):
    import hashlib

    path = tmp_path / "file"
    path.write_bytes(b"ab" * (1 << 22))
    assert hash_file(path) == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_a_fingerprint_tells_weights_and_shapes_apart_and_nothing_else(base_folder, copy, random_model):
    base = load_base(str(base_folder), CPU)
    same = load_base(str(copy), CPU)
    here = fingerprint(base)
    assert here == fingerprint(same), "where a base lies does not matter"
    for dtype in (torch.bfloat16, torch.float16):
        rounded = load_base(str(copy), Device(device=CPU.device, dtype=dtype, why=""))
        assert same_base(here, fingerprint(rounded)), "nor what it was rounded to"
    with torch.no_grad():
        same.model.lm_head.weight[0, 0] += 1
    assert not same_base(here, fingerprint(same))
    assert not same_base(here, fingerprint(replace(base, model=random_model("Qwen3", rope_theta=5e5))))


def test_decoder_and_head_make_the_model(random_model):
    model = random_model("Qwen3")
    ids = torch.arange(5)[None]
    hidden = decoder_of(model)(input_ids=ids).last_hidden_state
    assert torch.equal(model.get_output_embeddings()(hidden), model(input_ids=ids).logits)
