"""A stack as one LoRA, as a smaller one, as whole weights: beside plain PEFT, the full matrices' SVD, and the stack itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from stylora.errors import UserError
from stylora.model.adapter import Adapter, attach, save_adapter, strip
from stylora.model.export import Factors, attach_updates, cast_adapter, check_addable, compare, concatenate, logits_of, merge, shrink
from stylora.model.stack import activate, put_frozen

ROWS = [torch.arange(3, 20), torch.tensor([7, 7, 9])]
UNEVEN = {
    "style": Adapter(r=4, alpha=8), "align": Adapter(r=2, alpha=7, targets=["q_proj", "down_proj"]),
    "instruct": Adapter(r=3, alpha=3, rslora=True, targets=["v_proj", "down_proj"]),
}  # fmt: skip


def spread(peft: PeftModel, seed: int) -> PeftModel:
    """Make the adapter do something: its B is zero at the start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter += torch.randn_like(parameter) * 0.1
    return peft


@pytest.fixture
def parts(random_model, tmp_path) -> dict[str, Path]:
    """Saved adapters of other ranks, scales and modules."""
    for seed, (name, adapter) in enumerate(UNEVEN.items()):
        save_adapter(spread(attach(random_model("Qwen3"), adapter, seed=seed), seed), tmp_path / name, base_name="tiny")
    return {name: tmp_path / name for name in UNEVEN}


@pytest.fixture
def stack(random_model, parts) -> Callable[..., PeftModel]:
    """`stack("style", "align", weights=[0.7, 1])`: these adapters, all active, none learning, on a fresh base."""

    def build(*names: str, weights: list[float] | None = None, kind: str = "Qwen3", **changes) -> PeftModel:
        peft = put_frozen(random_model(kind, **changes), [str(parts[name]) for name in names], weights or [1.0] * len(names))
        assert isinstance(peft, PeftModel)
        activate(peft, trainable=None)
        return peft.eval()

    return build


def reloaded(random_model, peft: PeftModel, folder: Path) -> PeftModel:
    """Saved, and opened by plain PEFT on a base of its own."""
    save_adapter(peft, folder, base_name="tiny")
    return PeftModel.from_pretrained(random_model("Qwen3"), str(folder)).eval()


# ------------------------------------------------------------------------------------------------------------ concatenated


@pytest.mark.parametrize("names", [["style", "align"], ["instruct", "style", "align"], ["align", "instruct"], ["instruct"]])
def test_a_concatenated_stack_is_the_stack(names, stack, random_model, tmp_path):
    """In plain PEFT, from disk: whatever the ranks, scales and modules, and with rsLoRA first, where PEFT's own sum is not."""
    weights = [0.7, 1.0, -0.5][: len(names)]
    peft = stack(*names, weights=weights)
    ours = logits_of(peft, ROWS)
    updates = concatenate(peft)
    strip(peft.get_base_model())
    one = reloaded(random_model, attach_updates(peft.get_base_model(), updates), tmp_path / "one")
    difference = compare(ours, logits_of(one, ROWS), torch.float32)
    assert difference.largest <= 1e-5 and difference.passed
    ranks = {path: update.a.shape[0] for path, update in updates.items()}
    assert one.peft_config["default"].r == one.peft_config["default"].lora_alpha == max(ranks.values())
    for each in names:  # and it is more than any of them, and than the base
        assert len(names) == 1 or compare(ours, logits_of(stack(each), ROWS), torch.float32).largest > 1e-3
    assert compare(ours, logits_of(random_model("Qwen3"), ROWS), torch.float32).largest > 1e-3


def test_it_is_what_peft_concatenates_where_peft_is_right(stack):
    """The same matrices as `add_weighted_adapter`, the zeros where an adapter lacks a module included."""
    peft = stack("style", "align", weights=[0.7, 1.0])
    updates = concatenate(peft)
    peft.add_weighted_adapter(["frozen0", "frozen1"], [1.0, 1.0], "both", combination_type="cat")
    layers = dict(peft.get_base_model().named_modules())
    for path, update in updates.items():
        theirs = layers[path]
        torch.testing.assert_close(update.b @ update.a, theirs.lora_B["both"].weight @ theirs.lora_A["both"].weight, rtol=0, atol=1e-6)
    assert {path for path, layer in layers.items() if hasattr(layer, "lora_A") and "both" in layer.lora_A} == {*updates}


def test_peft_alone_gets_a_sum_with_rslora_wrong(stack):
    """Why it is not used here; if this ever fails, it may be."""
    peft = stack("instruct", "align")
    ours = logits_of(peft, ROWS)
    peft.add_weighted_adapter(["frozen0", "frozen1"], [1.0, 1.0], "both", combination_type="cat")
    peft.set_adapter("both")
    assert not compare(ours, logits_of(peft, ROWS), torch.float32).passed


def test_nothing_of_the_stack_changes(stack):
    peft = stack("style", "align", weights=[0.7, 1.0])
    before = {name: value.clone() for name, value in peft.state_dict().items()}
    concatenate(peft)
    after = peft.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_modules_go_by_their_last_names_only_where_that_is_all_of_them(stack, parts, random_model, tmp_path):
    """An adapter of one layer stays one of one layer."""
    peft = stack("align")
    updates = concatenate(peft)
    base = peft.get_base_model()
    strip(base)
    every = attach_updates(base, updates).peft_config["default"].target_modules
    strip(base)
    first = {path: update for path, update in updates.items() if ".0." in path}
    whole = attach_updates(base, first)
    assert every == {"q_proj", "down_proj"}
    assert whole.peft_config["default"].target_modules == {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"}
    again = reloaded(random_model, whole, tmp_path / "first")
    assert compare(logits_of(whole, ROWS), logits_of(again, ROWS), torch.float32).largest <= 1e-6
    assert {path.split(".")[4] for path, _ in again.named_parameters() if "lora_" in path} == {"0"}


def test_an_adapter_saved_in_bf16_is_half_as_large_and_nearly_the_same(stack, random_model, tmp_path):
    peft = stack("style", "align")
    ours, updates = logits_of(peft, ROWS), concatenate(peft)
    strip(peft.get_base_model())
    one = attach_updates(peft.get_base_model(), updates)
    cast_adapter(one, torch.bfloat16)
    again = reloaded(random_model, one, tmp_path / "one")
    assert {value.dtype for value in load_file(tmp_path / "one" / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert compare(ours, logits_of(again, ROWS), torch.float32, torch.bfloat16).passed
    assert not compare(ours, logits_of(again, ROWS), torch.float32).passed


REFUSED = {
    "DoRA": LoraConfig(use_dora=True), "replaces whole weights": LoraConfig(modules_to_save=["lm_head"]),
    "changes biases": LoraConfig(bias="lora_only"), "bare parameters": LoraConfig(target_parameters=["mlp.experts.gate_up_proj"]),
    "type IA3": IA3Config(),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_add_up_is_refused(reason):
    with pytest.raises(UserError, match=f"some/folder: got .*{reason}.*--as merged"):
        check_addable(REFUSED[reason], "some/folder")
    check_addable(LoraConfig(use_rslora=True, rank_pattern={"q_proj": 2}), "some/folder")


def test_an_embedding_is_refused(random_model):
    peft = spread(attach(random_model("Qwen3"), Adapter(r=2, targets=["embed_tokens", "q_proj"]), seed=0), 0)
    with pytest.raises(UserError, match="model.embed_tokens: got LoRA on an embedding"):
        concatenate(peft)


# ------------------------------------------------------------------------------------------------------------------ shrunk


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(1, 9), full=st.integers(1, 8), rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 9),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
)  # fmt: skip
def test_a_shrunk_update_is_the_nearest_of_its_rank(rank, full, rows, columns, seed, scale):
    """As the SVD of the whole matrix has it; its error is the distance; exact where there is room for all."""
    generator = torch.Generator().manual_seed(seed)
    update = Factors(torch.randn(full, columns, generator=generator), torch.randn(rows, full, generator=generator) * scale)
    whole = update.b.double() @ update.a.double()
    shrunk = shrink({"m": update}, rank)
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    nearest = u[:, :rank] * s[:rank] @ vh[:rank]
    ours = shrunk.updates["m"].b.double() @ shrunk.updates["m"].a.double()
    assert (ours - nearest).norm() <= 1e-6 * whole.norm()
    assert abs((ours - whole).norm() / whole.norm() - shrunk.error) <= 1e-6
    assert shrunk.updates["m"].a.shape[0] <= rank
    if rank >= min(full, rows, columns):
        assert shrunk.error <= 1e-7


def test_errors_are_of_each_module_and_of_all(stack):
    updates = concatenate(stack("style", "align"))
    shrunk = shrink(updates, 2)
    lost = {path: (update.b @ update.a - shrunk.updates[path].b @ shrunk.updates[path].a).norm() for path, update in updates.items()}
    whole = {path: (update.b @ update.a).norm() for path, update in updates.items()}
    for path in updates:
        assert shrunk.errors[path] == pytest.approx(float(lost[path] / whole[path]), rel=1e-4)
    root = torch.stack([*lost.values()]).norm() / torch.stack([*whole.values()]).norm()
    assert shrunk.error == pytest.approx(float(root), rel=1e-4)
    assert min(shrunk.errors.values()) < shrunk.error < max(shrunk.errors.values())


def test_an_update_that_is_nothing_loses_nothing():
    zero = Factors(torch.randn(3, 5), torch.zeros(4, 3))
    shrunk = shrink({"m": zero}, 2)
    assert shrunk.error == 0 and not (shrunk.updates["m"].b @ shrunk.updates["m"].a).any()


@pytest.mark.parametrize("rank", [2, 9, 20])
def test_a_shrunk_stack_reloads_as_it_was(rank, stack, random_model, tmp_path):
    peft = stack("style", "align", "instruct")
    ours = logits_of(peft, ROWS)
    updates = concatenate(peft)
    strip(peft.get_base_model())
    whole = attach_updates(peft.get_base_model(), shrink(updates, rank).updates)
    before = logits_of(whole, ROWS)
    again = logits_of(reloaded(random_model, whole, tmp_path / "one"), ROWS)
    assert compare(before, again, torch.float32).largest <= 1e-6
    assert compare(ours, again, torch.float32).passed == (rank >= 9)  # 4 + 2 + 3


# ------------------------------------------------------------------------------------------------------------------ merged


@pytest.mark.parametrize("names", [["style", "align"], ["align", "style", "instruct"]])
def test_a_merged_stack_is_the_stack(names, stack):
    peft = stack(*names, weights=[0.7, 1.0, -0.5][: len(names)])
    ours = logits_of(peft, ROWS)
    merged = merge(peft)
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert compare(ours, logits_of(merged, ROWS), torch.float32).largest <= 1e-5


def test_dora_merges(random_model):
    peft = spread(attach(random_model("Qwen3"), Adapter(r=2, dora=True), seed=0), 0).eval()
    ours = logits_of(peft, ROWS)
    assert compare(ours, logits_of(merge(peft), ROWS), torch.float32).largest <= 1e-5


def test_an_embedding_merges_but_where_it_is_the_head(random_model):
    adapter = Adapter(r=2, targets=["embed_tokens"])
    apart = spread(attach(random_model("Qwen3", tie_word_embeddings=False), adapter, seed=0), 0).eval()
    ours = logits_of(apart, ROWS)
    assert compare(ours, logits_of(merge(apart), ROWS), torch.float32).largest <= 1e-5
    tied = spread(attach(random_model("Qwen3", tie_word_embeddings=True), adapter, seed=0), 0)
    with pytest.raises(UserError, match="both are one matrix"):
        merge(tied)


def test_what_has_no_weights_to_add_is_refused(random_model):
    from peft import PromptTuningConfig

    peft = get_peft_model(random_model("Qwen3"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="type PROMPT_TUNING"):
        merge(peft)
    biased = get_peft_model(random_model("Qwen3"), LoraConfig(r=2, lora_bias=True, target_modules=["o_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="lora_bias.*on layers of the base that have none"):
        merge(biased)


# ---------------------------------------------------------------------------------------------------------------- compared


def test_a_difference_is_measured_against_the_largest_logit():
    one = [torch.tensor([[100.0, 0.0]])]
    near, far = [torch.tensor([[100.0, 0.0009]])], [torch.tensor([[100.0, 0.002]])]
    assert compare(one, near, torch.float32).passed and not compare(one, far, torch.float32).passed
    assert compare(one, far, torch.float32, torch.bfloat16).passed
    small = [torch.tensor([[0.01, 0.0]])]
    assert compare(small, [torch.tensor([[0.01, 9e-6]])], torch.float32).passed


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_does_not_pass(place):
    rows = [torch.zeros(1, 2), torch.zeros(1, 2)]
    broken = [row.clone() for row in rows]
    broken[place][0, 1] = float("nan")
    assert not compare(rows, broken, torch.float32).passed
    assert not compare(broken, rows, torch.float32).passed
