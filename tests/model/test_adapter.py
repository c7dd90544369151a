"""LoRA by PEFT: what the recipe says reaches it, only the adapter trains, and what is saved is plain PEFT, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from stylora.errors import UserError
from stylora.model.adapter import (
    Adapter,
    adapter_weight,
    attach,
    carries_coordinates,
    check_linear,
    count_parameters,
    load_adapter,
    read_branches,
    read_config,
    restore_adapter,
    save_adapter,
)
from stylora.model.rope_2d import install
from stylora.model.stack import build_stack
from stylora.samples.branch_settings import Branches

IDS = torch.arange(3, 20)[None]


def spread(peft: PeftModel) -> PeftModel:
    """Move every adapter matrix away from its start, so that the adapter does something."""
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter += torch.randn_like(parameter) * 0.1
    return peft


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text", "Glm4"])
def test_all_linear_attaches_everywhere_but_the_head(kind, random_model):
    model = random_model(kind)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    peft = attach(model, Adapter(), seed=0)
    adapted = {name.removesuffix(".lora_A") for name, module in peft.get_base_model().named_modules() if name.endswith("lora_A")}
    assert adapted == linear - {"lm_head"} and len(adapted) >= 12


def test_every_field_reaches_peft(random_model):
    adapter = Adapter(r=4, alpha=7, dropout=0.25, targets=["q_proj", "mlp.up_proj"], rslora=True, dora=True)
    config = attach(random_model("Qwen3"), adapter, seed=0, name="style").peft_config["style"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 7, 0.25)
    assert config.target_modules == {"q_proj", "mlp.up_proj"}
    assert (config.use_rslora, config.use_dora, config.task_type) == (True, True, "CAUSAL_LM")
    plain = attach(random_model("Qwen3"), Adapter(), seed=0).peft_config["default"]
    assert (plain.r, plain.lora_alpha, plain.lora_dropout, plain.use_rslora, plain.use_dora) == (16, 32, 0, False, False)


def test_scales_are_alpha_over_r_and_over_its_root(random_model):
    for rslora, scale in ((False, 8 / 4), (True, 8 / 2)):
        peft = attach(random_model("Qwen3"), Adapter(r=4, alpha=8, rslora=rslora), seed=0)
        assert peft.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == scale


def test_a_single_name_is_a_list_of_one():
    assert Adapter(targets="q_proj").targets == ["q_proj"]
    assert Adapter().targets == "all-linear"


@pytest.mark.parametrize("wrong", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"rank": 8}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Adapter(**wrong)


def test_an_unknown_target_names_the_closest(random_model):
    model = random_model("Qwen3")
    with pytest.raises(UserError) as caught:
        attach(model, Adapter(targets=["v_proj", "q_porj"]), seed=0, where="stages[1].adapter")
    assert caught.value.where == "stages[1].adapter.targets"
    assert caught.value.got == "'q_porj'" and caught.value.do == "did you mean 'q_proj'?"
    assert not any("lora" in name for name, _ in model.named_modules()), "the base must be left as it was"


@pytest.mark.parametrize("target", ["norm", "layers", "self_attn", "proj"])
def test_modules_lora_cannot_adapt_are_unknown_too(target, random_model):
    with pytest.raises(UserError, match="linear or embedding modules of this base; "):
        attach(random_model("Qwen3"), Adapter(targets=[target]), seed=0)


def test_counts_are_those_of_the_matrices(random_model):
    model = random_model("Qwen3")
    base = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == (base, base)
    shapes = [tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    added = sum(4 * (rows + columns) for rows, columns in shapes)
    assert count_parameters(attach(model, Adapter(r=4), seed=0)) == (added, base + added)


def test_a_fresh_adapter_changes_nothing_is_fp32_and_drawn_from_its_seed(random_model):
    before = random_model("Qwen3").bfloat16()
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # whatever ran before
        peft = attach(random_model("Qwen3").bfloat16(), Adapter(r=4), seed=seed)
        matrices = {name: p.detach() for name, p in peft.named_parameters() if p.requires_grad}
        assert {p.dtype for p in matrices.values()} == {torch.float32}
        assert torch.equal(peft(input_ids=IDS).logits, before(input_ids=IDS).logits)
        drawn.append(torch.cat([p.flatten() for p in matrices.values()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("dora", [False, True])
def test_only_the_adapter_trains(dora, random_model):
    peft = attach(random_model("Qwen3").train(), Adapter(r=4, dora=dora), seed=0)
    before = {name: value.clone() for name, value in peft.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        peft(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in peft.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("adapter", [Adapter(r=4), Adapter(r=4, rslora=True, dora=True, targets=["q_proj", "down_proj"])])
def test_a_saved_adapter_opens_in_plain_peft(adapter, random_model, tmp_path):
    peft = spread(attach(random_model("Qwen3"), adapter, seed=0))
    save_adapter(peft, tmp_path / "ad 适", base_name="Qwen/Qwen3-8B")
    logits = peft(input_ids=IDS).logits
    assert not torch.allclose(logits, random_model("Qwen3")(input_ids=IDS).logits, atol=1e-2)
    plain = PeftModel.from_pretrained(random_model("Qwen3"), tmp_path / "ad 适")
    assert torch.equal(plain(input_ids=IDS).logits, logits)
    for trainable in (False, True):
        ours = load_adapter(random_model("Qwen3").requires_grad_(False), tmp_path / "ad 适", trainable=trainable)
        assert torch.equal(ours(input_ids=IDS).logits, logits)
        assert (count_parameters(ours)[0] > 0) == trainable
    assert sorted(path.name for path in (tmp_path / "ad 适").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "ad 适" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "Qwen/Qwen3-8B"


WRITE = """
import sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from stylora.model.adapter import Adapter, attach, save_adapter
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
save_adapter(attach(model, Adapter(r=2), seed=0), Path(sys.argv[2]) / "all", base_name="tiny")
names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
save_adapter(attach(model.from_pretrained(sys.argv[1]), Adapter(r=2, targets=names), seed=0), Path(sys.argv[2]) / "some", base_name="tiny")
"""


def test_two_processes_write_the_same_bytes(base_folder, tmp_path):
    """PEFT keeps names of modules in sets, whose order depends on PYTHONHASHSEED."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, base_folder, tmp_path / seed], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    for kind in ("all", "some"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "1" / kind / file).read_bytes() == (tmp_path / "2" / kind / file).read_bytes()
    config = json.loads((tmp_path / "1" / "some" / "adapter_config.json").read_text(encoding="utf-8"))
    assert list(config) == sorted(config)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def saved(random_model, tmp_path):
    save_adapter(attach(random_model("Qwen3"), Adapter(r=4, targets=["q_proj"]), seed=0), tmp_path / "adapter", base_name="tiny")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("Qwen3", {"hidden_size": 64}, "size mismatch"),
        ("Qwen3", {"num_hidden_layers": 3}, "missing adapter keys"),
        ("Qwen3", {"num_hidden_layers": 1}, "2 of its weights find no module"),
        ("Qwen3Next", {"layer_types": ["linear_attention"] * 2}, "Target modules"),
    ],
)
def test_another_base_is_refused(kind, changes, reason, saved, random_model):
    with pytest.raises(UserError, match=reason) as caught:
        load_adapter(random_model(kind, **changes), saved)
    assert caught.value.where == str(saved) and "\n" not in str(caught.value) and "\t" not in str(caught.value)


def test_missing_files_are_named(saved, random_model, tmp_path):
    with pytest.raises(UserError, match="got no adapter_config.json, expected a PEFT adapter folder"):
        load_adapter(random_model("Qwen3"), tmp_path / "nothing")
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="got no adapter_model.safetensors"):
        load_adapter(random_model("Qwen3"), saved)


@pytest.mark.parametrize(
    ("file", "content"),
    [("adapter_model.safetensors", "xx"), ("adapter_config.json", "{"), ("adapter_config.json", '{"peft_type": "NOPE"}')],
)
def test_damaged_files_are_refused(file, content, saved, random_model):
    (saved / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="got broken JSON" if content == "{" else "does not fit this base"):
        load_adapter(random_model("Qwen3"), saved)


def test_a_newer_pefts_extra_key_is_no_reason_to_refuse(saved, random_model):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "of_tomorrow": 1}), encoding="utf-8")
    with pytest.warns(UserWarning, match="of_tomorrow"):
        load_adapter(random_model("Qwen3"), saved)


@pytest.mark.filterwarnings("error:.*(remote|config file).*:UserWarning")
def test_an_adapted_embedding_is_saved_as_its_adapter_alone(random_model, tmp_path):
    """Without its base matrix, and without asking the hub about the base's vocabulary."""
    model = random_model("Qwen3")
    model.config.name_or_path = model.name_or_path = "nobody/nothing"
    peft = spread(attach(model, Adapter(r=2, targets=["embed_tokens"]), seed=0))
    save_adapter(peft, tmp_path, base_name="nobody/nothing")
    assert {key.rsplit(".", 1)[-1] for key in load_file(tmp_path / "adapter_model.safetensors")} == {"lora_embedding_A", "lora_embedding_B"}
    assert torch.equal(load_adapter(random_model("Qwen3"), tmp_path)(input_ids=IDS).logits, peft(input_ids=IDS).logits)


def test_saving_again_replaces_what_was_there(saved, random_model):
    before = (saved / "adapter_model.safetensors").read_bytes()
    shutil.copy(saved / "adapter_config.json", saved / "adapter_config.tmp")
    save_adapter(spread(attach(random_model("Qwen3"), Adapter(r=4, targets=["q_proj"]), seed=0)), saved, base_name="tiny")
    assert (saved / "adapter_model.safetensors").read_bytes() != before
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("adapter", [Adapter(r=4), Adapter(r=2, dora=True), Adapter(r=2, targets=["embed_tokens", "q_proj"])])
def test_restoring_puts_the_saved_weights_back_and_touches_nothing_else(adapter, random_model, tmp_path):
    peft = spread(attach(random_model("Qwen3"), adapter, seed=0))
    whole = {name: value.clone() for name, value in peft.state_dict().items()}
    save_adapter(peft, tmp_path, base_name="tiny")
    parameters = {name: (id(parameter), parameter.requires_grad, parameter.dtype) for name, parameter in peft.named_parameters()}
    spread(peft)
    moved = {name for name, value in peft.state_dict().items() if not torch.equal(value, whole[name])}
    assert moved == {name for name in whole if "lora_" in name}
    restore_adapter(peft, tmp_path)
    assert all(torch.equal(value, whole[name]) for name, value in peft.state_dict().items())
    after = {name: (id(parameter), parameter.requires_grad, parameter.dtype) for name, parameter in peft.named_parameters()}
    assert after == parameters, "an optimizer holds these"


def test_restoring_leaves_other_adapters_and_what_is_active_as_they_are(random_model, tmp_path):
    peft = spread(attach(random_model("Qwen3"), Adapter(r=4), seed=0))
    save_adapter(peft, tmp_path, base_name="tiny")
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    peft.base_model.set_adapter(["default", "other"])
    for name, parameter in peft.named_parameters():
        parameter.requires_grad_(".other." in name)
    spread(peft)
    before = {name: value.clone() for name, value in peft.state_dict().items()}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    restore_adapter(peft, tmp_path)
    assert peft.active_adapters == ["default", "other"]
    assert all(parameter.requires_grad == (".other." in name) for name, parameter in peft.named_parameters())
    for name, value in peft.state_dict().items():
        restored = saved.get(name.replace(".default.", "."))
        assert torch.equal(value, before[name] if restored is None else restored), name
    assert sum(".default." in name for name in before) == len(saved)


@pytest.mark.parametrize("there", [Adapter(r=4, targets=["v_proj"]), Adapter(r=4, targets=["q_proj", "v_proj"]), Adapter(r=4, dora=True)])
def test_another_adapters_weights_are_not_restored(there, saved, random_model):
    peft = spread(attach(random_model("Qwen3"), there, seed=0))
    before = {name: value.clone() for name, value in peft.state_dict().items()}
    with pytest.raises(UserError, match="its weights have other names or numbers"):
        restore_adapter(peft, saved)
    assert all(torch.equal(value, before[name]) for name, value in peft.state_dict().items())


# --- the update scaled --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(random_model, tmp_path) -> PeftModel:
    """An adapter with rsLoRA's scale, frozen, and another rank on it."""
    save_adapter(spread(attach(random_model("Qwen3"), Adapter(r=4, rslora=True), seed=0)), tmp_path / "below", base_name="tiny")
    return spread(build_stack(random_model("Qwen3"), Adapter(r=2, frozen=[str(tmp_path / "below")]), seed=1)).eval()


@pytest.mark.parametrize("weight", [0, 0.3, 1, 2.5])
@torch.no_grad()
def test_a_weight_scales_the_update_of_every_matrix(stack, random_model, weight):
    """Against weights put together by hand; the adapters themselves, and afterwards the model, are what they were."""
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    trained, reference = stack(input_ids=IDS).logits, random_model("Qwen3")
    for name, module in stack.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            delta = sum(module.get_delta_weight(adapter) for adapter in ("frozen0", "default"))
            reference.get_submodule(name).weight += weight * delta
    with adapter_weight(stack, weight):
        assert torch.allclose(stack(input_ids=IDS).logits, reference(input_ids=IDS).logits, atol=1e-4)
        assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())
    assert torch.equal(stack(input_ids=IDS).logits, trained)


@torch.no_grad()
def test_weight_zero_is_the_base_bit_for_bit(stack, random_model):
    with adapter_weight(stack, 0):
        assert torch.equal(stack(input_ids=IDS).logits, random_model("Qwen3")(input_ids=IDS).logits)


def test_scales_come_back_after_an_error(stack):
    def scales() -> list[dict[str, float]]:
        return [dict(module.scaling) for module in stack.modules() if hasattr(module, "lora_A")]

    before = scales()
    with pytest.raises(RuntimeError, match="stopped"), adapter_weight(stack, 0.5):
        assert scales() == [{name: scale / 2 for name, scale in each.items()} for each in before]
        raise RuntimeError("stopped")
    assert scales() == before and before


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LoraConfig(use_dora=True, target_modules=["q_proj"]), "a DoRA adapter, whose length"),
        (LoraConfig(modules_to_save=["lm_head"], target_modules=["q_proj"]), "replaces whole weights"),
        (IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]), "IA3, which has no scale"),
    ],
)
def test_what_is_not_linear_has_no_weight(random_model, config, reason):
    peft = get_peft_model(random_model("Qwen3"), config)
    with pytest.raises(UserError, match=f"weight: got .*{reason}"), adapter_weight(peft, 0.5):
        pass
    check_linear([LoraConfig(use_rslora=True)])


TURNED, FLAT = Branches(branch_stride=16, visibility="columnar"), Branches(rope_2d_ratio=0, fork="。")


def files(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("branches", [TURNED, FLAT, None], ids=["turned", "flat", "none"])
def test_an_adapter_of_branches_comes_back(branches, random_model, tmp_path):
    """Below another one and above; the file says how its branches stand; nothing is written into the folder."""
    peft = spread(attach(random_model("Qwen3"), Adapter(r=4, rslora=True, dropout=0.25), seed=0))
    install(peft, branches)
    expected = peft.eval()(input_ids=IDS).logits
    save_adapter(peft, tmp_path, base_name="tiny", branches=branches)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == ("STYLORA_LORA_2D" if branches is TURNED else "LORA")
    assert config.get("branches") == (branches and branches.model_dump(mode="json")) and read_branches(tmp_path) == branches
    before, read = files(tmp_path), read_config(tmp_path)
    assert isinstance(read, LoraConfig) and carries_coordinates(read) == (branches is TURNED)
    assert (read.r, read.use_rslora, read.lora_dropout, read.task_type) == (4, True, 0.25, "CAUSAL_LM")
    loaded = load_adapter(random_model("Qwen3"), tmp_path, trainable=True)
    install(loaded, branches)
    assert torch.equal(loaded.eval()(input_ids=IDS).logits, expected)
    assert all(parameter.requires_grad for name, parameter in loaded.named_parameters() if "lora_" in name)
    assert not loaded.peft_config["default"].inference_mode
    check_linear(loaded.peft_config.values())
    other = load_adapter(attach(random_model("Qwen3"), Adapter(), seed=1), tmp_path, name="second")
    assert not any(parameter.requires_grad for name, parameter in other.named_parameters() if ".second" in name)
    other.set_adapter("second")
    install(other, branches)
    assert torch.equal(other.eval()(input_ids=IDS).logits, expected)
    empty = attach(random_model("Qwen3"), Adapter(r=4, rslora=True), seed=2)
    restore_adapter(empty, tmp_path)
    install(empty, branches)
    assert torch.equal(empty.eval()(input_ids=IDS).logits, expected)
    assert files(tmp_path) == before


def test_plain_peft_fails_on_turned_branches_and_opens_flat_ones(random_model, tmp_path):
    peft = spread(attach(random_model("Qwen3"), Adapter(r=4), seed=0))
    save_adapter(peft, tmp_path / "turned", base_name="tiny", branches=TURNED)
    save_adapter(peft, tmp_path / "flat", base_name="tiny", branches=FLAT)
    with pytest.raises(KeyError, match="STYLORA_LORA_2D"):
        PeftModel.from_pretrained(random_model("Qwen3"), str(tmp_path / "turned"))
    with pytest.raises(KeyError, match="STYLORA_LORA_2D"):
        attach(random_model("Qwen3"), Adapter(), seed=0).load_adapter(str(tmp_path / "turned"), "second")
    with pytest.warns(UserWarning, match="branches"):
        opened = PeftModel.from_pretrained(random_model("Qwen3"), str(tmp_path / "flat"))
    assert torch.equal(opened(input_ids=IDS).logits, peft.eval()(input_ids=IDS).logits)


def test_what_a_later_stage_says_takes_the_place_of_what_an_earlier_one_said(random_model, tmp_path):
    save_adapter(attach(random_model("Qwen3"), Adapter(), seed=0), tmp_path / "first", base_name="tiny", branches=FLAT)
    again = load_adapter(random_model("Qwen3"), tmp_path / "first", trainable=True)
    save_adapter(again, tmp_path / "text", base_name="tiny")
    save_adapter(again, tmp_path / "turned", base_name="tiny", branches=TURNED)
    assert read_branches(tmp_path / "text") is None and read_branches(tmp_path / "turned") == TURNED
    assert "branches" not in json.loads((tmp_path / "text" / "adapter_config.json").read_text(encoding="utf-8"))
    assert files(tmp_path / "text")["adapter_model.safetensors"] == files(tmp_path / "turned")["adapter_model.safetensors"]


@pytest.mark.parametrize("told", [None, {"rope_2d_ratio": 2}, {"of_tomorrow": 1}, "all"])
def test_branches_that_cant_be_read_are_refused(told, saved):
    path = saved / "adapter_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "peft_type": "STYLORA_LORA_2D", "branches": told}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="branches that can't be read"):
        read_branches(saved)
