"""Adapters on adapters: all of them work, the last one learns, and nothing else changes. Beside plain PEFT's own ways of adding them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from stylora.errors import UserError
from stylora.model.adapter import Adapter, adaptable, attach, restore_adapter, save_adapter
from stylora.model.reference import as_reference
from stylora.model.rope_2d import coordinates, install
from stylora.model.stack import activate, build_stack, check_stack, fold, frozen_hash, put_frozen, weigh
from stylora.model.stack_names import check_names, weights_of
from stylora.samples.branch_settings import Branches

IDS = torch.arange(3, 20)[None]


def spread(peft: PeftModel) -> PeftModel:
    """Move every matrix of the adapter that learns away from its start."""
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return peft


@pytest.fixture
def parts(random_model, tmp_path) -> dict[str, Path]:
    """Three saved adapters that do something, of other ranks, scales and modules, with dropout."""
    made = {
        "style": Adapter(r=4, alpha=8, dropout=0.5), "align": Adapter(r=2, alpha=7, dropout=0.5, targets=["q_proj", "down_proj"]),
        "instruct": Adapter(r=3, alpha=3, dropout=0.5, rslora=True, targets=["q_proj", "embed_tokens"]),
    }  # fmt: skip
    for seed, (name, adapter) in enumerate(made.items()):
        torch.manual_seed(seed)
        save_adapter(spread(attach(random_model("Qwen3"), adapter, seed=seed)), tmp_path / name, base_name="tiny")
    return {name: tmp_path / name for name in made}


def stack(random_model, parts: dict[str, Path], frozen: list[str], top: str | Adapter) -> PeftModel:
    below = tuple(str(parts[name]) for name in frozen)
    adapter = Adapter(path=str(parts[top]), frozen=below) if isinstance(top, str) else top.model_copy(update={"frozen": below})
    return build_stack(random_model("Qwen3").requires_grad_(False), adapter, seed=0)


TOPS = [
    "instruct", Adapter(r=2), Adapter(r=2, targets=["q_proj", "mlp.up_proj"]), Adapter(r=2, dora=True), Adapter(targets=["embed_tokens"]),
]  # fmt: skip


@pytest.mark.parametrize("frozen", [[], ["style"], ["style", "align"]])
@pytest.mark.parametrize("top", TOPS, ids=["saved", "all-linear", "modules", "dora", "embedding"])
def test_all_of_a_stack_work_and_the_last_learns(frozen, top, random_model, parts):
    peft = stack(random_model, parts, frozen, top)
    assert list(peft.peft_config) == list(peft.active_adapters) == [*(f"frozen{n}" for n in range(len(frozen))), "default"]
    learns = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, _ in peft.named_parameters() if ".default" in name} and learns
    check_stack(peft, trainable="default")
    frozen_weights = {name: value.clone() for name, value in peft.state_dict().items() if name not in learns}
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    peft.train()
    for _ in range(2):
        peft(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = peft.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen_weights.items())
    assert any((after[name] != 0).any() for name in learns if "lora_B" in name or "embedding_A" in name)


def test_check_stack_finds_an_adapter_that_is_off_and_one_that_learns_too(random_model, parts):
    """What PEFT does by itself: activate one only, and train what is active."""
    peft = stack(random_model, parts, ["style"], "align")
    peft.set_adapter("default")
    with pytest.raises(AssertionError, match="an adapter is not active"):
        check_stack(peft, trainable="default")
    peft.base_model.set_adapter(["frozen0", "default"])
    with pytest.raises(AssertionError, match="not what should learn: .*frozen0"):
        check_stack(peft, trainable="default")
    activate(peft, trainable="default")
    with pytest.raises(AssertionError, match="not what should learn"):
        check_stack(peft, trainable=None)
    activate(peft, trainable=None)
    assert not any(parameter.requires_grad for parameter in peft.parameters())


@torch.no_grad()
@pytest.mark.parametrize("names", [["style", "align"], ["align", "style", "instruct"]])
def test_a_stack_is_the_base_and_every_update(names, random_model, parts):
    """Against plain PEFT's concatenated adapter; the order does not matter to a sum."""
    ours = stack(random_model, parts, names[:-1], names[-1]).eval()(input_ids=IDS).logits
    peft = PeftModel.from_pretrained(random_model("Qwen3"), parts[names[0]], names[0])
    for name in names[1:]:
        peft.load_adapter(parts[name], name)
    if "instruct" in names:  # `cat` knows no embeddings; all three are active
        peft.base_model.set_adapter(names)
    else:
        peft.add_weighted_adapter(names, [1.0] * len(names), "both", combination_type="cat")
        peft.set_adapter("both")
    torch.testing.assert_close(ours, peft.eval()(input_ids=IDS).logits, rtol=0, atol=1e-5)
    for name in names:
        peft.set_adapter(name)
        assert not torch.allclose(ours, peft(input_ids=IDS).logits, atol=1e-3), "each of them is seen"


def test_dropout_of_what_is_frozen_stays_off_whatever_mode_is_set(random_model, parts):
    """Two passes in training mode: the top's dropout alone changes the logits; with none on top nothing does."""
    for top, noisy in (("align", True), (Adapter(r=2), False)):
        peft = stack(random_model, parts, ["style"], top)
        for _ in range(2):
            peft.train()
            one, two = (peft(input_ids=IDS).logits for _ in range(2))
            assert torch.equal(one, two) != noisy
            peft.eval()
    peft = stack(random_model, parts, ["style"], "align").train()
    live = {name for name, module in peft.named_modules() if isinstance(module, nn.Dropout) and module.p and module.training}
    assert live and all(name.endswith("lora_dropout.default") for name in live)


@pytest.mark.parametrize("frozen", [["style"], ["align", "style"]])
def test_what_is_saved_of_a_stack_is_its_top_in_plain_peft(frozen, random_model, parts, tmp_path):
    before = {path: path.read_bytes() for folder in parts.values() for path in folder.iterdir()}
    peft = spread(stack(random_model, parts, frozen, Adapter(r=2)))
    save_adapter(peft, tmp_path / "top", base_name="tiny")
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in (tmp_path / "top").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    weights = load_file(tmp_path / "top" / "adapter_model.safetensors")
    ours = {name.replace(".default.", "."): value for name, value in peft.state_dict().items() if ".default." in name}
    assert weights.keys() == ours.keys() and all(torch.equal(weights[name], value) for name, value in ours.items())
    plain = PeftModel.from_pretrained(random_model("Qwen3"), tmp_path / "top")
    peft.base_model.set_adapter("default")
    with torch.no_grad():
        assert torch.equal(plain(input_ids=IDS).logits, peft.eval()(input_ids=IDS).logits)


def test_restoring_the_top_leaves_what_is_below(random_model, parts, tmp_path):
    peft = stack(random_model, parts, ["style"], "align")
    whole = {name: value.clone() for name, value in peft.state_dict().items()}
    save_adapter(peft, tmp_path / "top", base_name="tiny")
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            parameter += 1.0 if ".default." in name else 0.0
    restore_adapter(peft, tmp_path / "top")
    assert all(torch.equal(value, whole[name]) for name, value in peft.state_dict().items())
    check_stack(peft, trainable="default")


def test_a_fresh_adapter_starts_the_same_on_others_and_alone(random_model, parts):
    alone = attach(random_model("Qwen3"), Adapter(r=2), seed=0)
    on = stack(random_model, parts, ["style", "align"], Adapter(r=2))
    ours = {name: value for name, value in on.state_dict().items() if ".default." in name}
    theirs = {name: value for name, value in alone.state_dict().items() if ".default." in name}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    below = stack(random_model, parts, ["style"], "align")
    with torch.no_grad():
        assert torch.equal(on.eval()(input_ids=IDS).logits, below.eval()(input_ids=IDS).logits), "it changes nothing yet"


@pytest.mark.parametrize("target", ["base_layer", "lora_A", "frozen0", "q_porj"])
def test_targets_on_a_stack_are_modules_of_the_base(target, random_model, parts):
    with pytest.raises(UserError, match=f"adapter.targets: got '{target}', expected linear or embedding modules") as caught:
        stack(random_model, parts, ["style"], Adapter(targets=[target]))
    assert target != "q_porj" or caught.value.do == "did you mean 'q_proj'?"
    model = stack(random_model, parts, ["style", "instruct"], Adapter(targets=["q_proj"]))
    assert {path.rsplit(".", 1)[-1] for path in adaptable(model)} == {path.rsplit(".", 1)[-1] for path in adaptable(random_model("Qwen3"))}


PLAIN = dict(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
NOT_PLAIN = {
    "biases": (LoraConfig(**PLAIN, bias="all"), "changes biases of the base"),
    "head": (LoraConfig(**PLAIN, modules_to_save=["lm_head"]), "replaces whole weights"),
    "tokens": (LoraConfig(**PLAIN, trainable_token_indices=[1, 2]), "replaces whole weights"),
    "ia3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), "of type IA3"),
    "prompt": (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "of type PROMPT_TUNING"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_does_not_add_up_is_not_stacked(kind, random_model, parts, tmp_path):
    config, reason = NOT_PLAIN[kind]
    get_peft_model(random_model("Qwen2").requires_grad_(False), config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=f"{reason}.*, expected plain LoRA"):
        build_stack(random_model("Qwen2"), Adapter(frozen=(str(tmp_path / "other"),)), seed=0)


def test_a_missing_or_unfit_adapter_below_is_named(random_model, parts, tmp_path):
    with pytest.raises(UserError, match="nothing: got no adapter_config.json"):
        build_stack(random_model("Qwen3"), Adapter(frozen=(str(tmp_path / "nothing"),)), seed=0)
    for frozen, top in (((parts["style"],), None), ((parts["align"], parts["style"]), None), ((), parts["style"])):
        adapter = Adapter(frozen=tuple(map(str, frozen)), path=top and str(top))
        with pytest.raises(UserError, match="got an adapter that does not fit this base"):
            build_stack(random_model("Qwen3", num_hidden_layers=1), adapter, seed=0)


# --- weights, folding, and what may not change ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_a_weight_is_a_factor_of_one_update(factor, random_model, parts):
    """Against the sum of weights in fp64; setting it twice is setting it once, and 1 is as it was."""
    peft = put_frozen(random_model("Qwen3"), [str(parts["style"]), str(parts["align"])])
    activate(peft, trainable=None)
    whole = peft(input_ids=IDS).logits
    layer = next(module for path, module in peft.named_modules() if path.endswith("layers.0.self_attn.q_proj"))
    updates = [layer.get_delta_weight(f"frozen{n}").double() for n in range(2)]
    for _ in range(2):
        weigh(peft, "frozen0", factor)
    now = [layer.get_delta_weight(f"frozen{n}").double() for n in range(2)]
    torch.testing.assert_close(now[0], factor * updates[0], rtol=0, atol=1e-6)
    assert torch.equal(now[1], updates[1])
    assert not torch.allclose(peft(input_ids=IDS).logits, whole, atol=1e-3)
    weigh(peft, "frozen0", 1.0)
    assert torch.equal(peft(input_ids=IDS).logits, whole)


def test_dora_has_no_weight_but_its_own(random_model, tmp_path):
    save_adapter(spread(attach(random_model("Qwen3"), Adapter(r=2, dora=True), seed=0)), tmp_path, base_name="tiny")
    peft = put_frozen(random_model("Qwen3"), [str(tmp_path)], [1.0])
    with pytest.raises(UserError, match="DoRA"):
        weigh(peft, "frozen0", 0.5)


@torch.no_grad()
@pytest.mark.parametrize("weights", [(), (0.5, 1.0)])
def test_folded_is_unfolded(weights, random_model, parts):
    """In fp32 to 1e-5, and what is on top starts and works alike; the base is another one afterwards."""
    below = Adapter(path=str(parts["instruct"]), frozen=(str(parts["style"]), str(parts["align"])))
    apart = build_stack(random_model("Qwen3").requires_grad_(False), below, seed=0, weights=weights).eval()(input_ids=IDS).logits
    base = random_model("Qwen3").requires_grad_(False)
    bare = base(input_ids=IDS).logits
    folded, difference = fold(base, below.frozen, weights, IDS)
    assert folded is base and 0 < difference < 1e-5
    assert not torch.allclose(base(input_ids=IDS).logits, bare, atol=1e-3)
    peft = build_stack(base, below.model_copy(update={"fold_frozen": True}), seed=0, weights=weights)
    assert list(peft.peft_config) == ["default"]
    torch.testing.assert_close(peft.eval()(input_ids=IDS).logits, apart, rtol=0, atol=1e-5)
    learns = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert learns and all(".default" in name for name in learns)


def test_an_embedding_that_is_also_the_head_is_not_folded_into(random_model, parts):
    """The head would take the update too: logits would be those of another model."""
    base = random_model("Qwen3", tie_word_embeddings=True).requires_grad_(False)
    with pytest.raises(UserError, match="an embedding that is also the head"):
        fold(base, (str(parts["instruct"]),), (), IDS)


@pytest.mark.parametrize(("options", "message"), [({"fold_frozen": True}, "under a DoRA adapter"), ({}, "of a DoRA adapter on others")])
def test_dora_on_others_is_trained_as_it_is_opened_or_not_at_all(options, message, random_model, parts, tmp_path):
    """Folded it divides by another length; under dropout it leaves unscaled what lies below. Also one that was saved elsewhere."""
    saved = attach(random_model("Qwen3"), Adapter(r=2, dora=True, dropout=0.1), seed=0)
    save_adapter(saved, tmp_path / "dora", base_name="tiny")
    base, below = random_model("Qwen3").requires_grad_(False), (str(parts["style"]),)
    with pytest.raises(UserError, match=message):
        build_stack(base, Adapter(path=str(tmp_path / "dora"), frozen=below, **options), seed=0)


def test_the_gradient_of_the_top_is_the_same_folded_and_not(random_model, parts):
    gradients = []
    for folds in (False, True):
        base = random_model("Qwen3").requires_grad_(False)
        adapter = Adapter(r=2, frozen=(str(parts["style"]),), fold_frozen=folds)
        if folds:
            fold(base, adapter.frozen, (), IDS)
        peft = build_stack(base, adapter, seed=3)
        peft(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in peft.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0].values())


def test_the_hash_of_what_is_frozen_sees_it_alone(random_model, parts):
    peft = stack(random_model, parts, ["style"], "align")
    before = frozen_hash(peft)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            parameter += 1.0 if ".default." in name else 0.0
    assert frozen_hash(peft) == before
    with torch.no_grad():
        next(p for name, p in peft.named_parameters() if "frozen0" in name).view(-1)[0] += 1e-6
    assert frozen_hash(peft) != before


def test_names_and_weights():
    assert weights_of(["style", "align"], {"align": 0.5}, where="x") == (1.0, 0.5)
    with pytest.raises(UserError, match=r"x: got a weight for 'aling', expected one of style, align; did you mean 'align'\?"):
        weights_of(["style", "align"], {"aling": 0.5}, where="x")
    check_names(["style", "align"], where="x", do="")
    with pytest.raises(UserError, match="x: got two adapters called 'style', expected a name each; rename"):
        check_names(["style", "align", "style"], where="x", do="rename")


# --------------------------------------------------------------------------------------------------------- branches


TURNED, FLAT = Branches(branch_stride=16), Branches(rope_2d_ratio=0)


@pytest.fixture
def of_branches(random_model, tmp_path) -> dict[str, str]:
    made = {"turned": TURNED, "flat": FLAT, "text": None}
    for seed, (name, branches) in enumerate(made.items()):
        torch.manual_seed(seed)
        peft = spread(attach(random_model("Qwen3"), Adapter(r=2), seed=seed))
        save_adapter(peft, tmp_path / name, base_name="tiny", branches=branches)
    return {name: str(tmp_path / name) for name in made}


OTHERS = {
    "none": None, "flat": FLAT, "stride": TURNED.model_copy(update={"branch_stride": 8}),
    "ratio": TURNED.model_copy(update={"rope_2d_ratio": 0.25}), "add": TURNED.model_copy(update={"positions": "add"}),
}  # fmt: skip


@pytest.mark.parametrize("branches", OTHERS)
@pytest.mark.parametrize("where", ["path", "frozen"])
def test_an_adapter_at_other_positions_is_refused(where, branches, of_branches, random_model):
    adapter = Adapter(path=of_branches["turned"]) if where == "path" else Adapter(frozen=(of_branches["text"], of_branches["turned"]))
    with pytest.raises(UserError, match=r"branches: got .*turned, which was trained at rope_2d_ratio 0.5, branch_stride 16, pos.*say them"):
        build_stack(random_model("Qwen3"), adapter, seed=0, branches=OTHERS[branches])


@pytest.mark.parametrize("branches", [TURNED, TURNED.model_copy(update={"visibility": "columnar"})])
@pytest.mark.parametrize("where", ["path", "frozen"])
def test_an_adapter_at_the_same_positions_is_taken(where, branches, of_branches, random_model):
    below = (of_branches["text"], of_branches["flat"])
    adapter = Adapter(path=of_branches["turned"], frozen=below) if where == "path" else Adapter(frozen=(*below, of_branches["turned"]))
    peft = build_stack(random_model("Qwen3"), adapter, seed=0, branches=branches)
    assert len(peft.active_adapters) == (3 if where == "path" else 4)


@pytest.mark.parametrize("name", ["flat", "text"])
def test_adapters_at_the_bases_own_positions_go_with_any_branches(name, of_branches, random_model):
    for branches in (None, FLAT, TURNED):
        build_stack(random_model("Qwen3"), Adapter(path=of_branches[name]), seed=0, branches=branches)
        build_stack(random_model("Qwen3"), Adapter(frozen=(of_branches[name],)), seed=0, branches=branches)


def test_turned_branches_are_not_folded(of_branches, random_model):
    adapter = Adapter(frozen=(of_branches["turned"],), fold_frozen=True)
    with pytest.raises(UserError, match="adapter.fold_frozen: got true, with .*turned"):
        build_stack(random_model("Qwen3"), adapter, seed=0, branches=TURNED)


@torch.no_grad()
@pytest.mark.parametrize("name", ["text", "turned"])
def test_the_frozen_reference_stands_where_it_was_trained(name, of_branches, random_model):
    """A style that was trained on text is held to as such; one of branches with their coordinates."""
    below = put_frozen(random_model("Qwen3"), [of_branches[name]])
    install(below, TURNED if name == "turned" else None)
    time = torch.arange(17)[None]
    branch = (time > 5) * 16

    def logits(model: nn.Module) -> torch.Tensor:
        with coordinates(model, branch):
            return model(input_ids=IDS, position_ids=time).logits

    expected = logits(below.eval())
    peft = spread(build_stack(random_model("Qwen3"), Adapter(r=2, frozen=(of_branches[name],)), seed=0, branches=TURNED)).eval()
    install(peft, TURNED)
    own = logits(peft)
    with as_reference(peft.get_base_model(), "frozen"):
        torch.testing.assert_close(logits(peft), expected, rtol=0, atol=1e-6)
    assert (own - expected).abs().max() > 1e-2
