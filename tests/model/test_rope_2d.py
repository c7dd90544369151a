"""The second coordinate: the formula beside plain Python's, layout by layout; what must stay the base to the bit; who is refused."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from stylora.errors import UserError
from stylora.model.adapter import adapter_weight, strip
from stylora.model.base import decoder_of
from stylora.model.reference import as_reference
from stylora.model.rope_2d import Rope2d, coordinates, install, installed, one_dimensional, radian, remove, told
from stylora.samples.branch_settings import Branches

MIXED = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
KINDS: dict[str, dict] = {
    "Qwen2": {}, "Qwen3": {}, "Llama": {}, "Gemma": {}, "Gemma2": {}, "Gemma3Text": {}, "Phi3": {}, "Glm4": {}, "Olmo2": {}, "Granite": {},
    "Mistral": {}, "Cohere2": MIXED,
    "GPTNeoX": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 1}},
}  # fmt: skip
INTERLEAVED = {"Cohere2"}
IDS = torch.arange(3, 27)[None].repeat(2, 1)
TIME = torch.arange(24).expand(2, -1)
COORDINATE = torch.tensor([[0] * 10 + [40] * 14, [0] * 4 + [120] * 20])


def branches(**changes) -> Branches:
    return Branches(**{"rope_2d_ratio": 0.5, "branch_stride": 40, **changes})


@torch.no_grad()
def logits(model, branch: Tensor | None = None) -> Tensor:
    with coordinates(model, branch):
        return model(input_ids=IDS, position_ids=TIME, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_must_be_the_base_is_the_base_to_the_bit(kind, random_model):
    """Ratio 0; `add` at coordinate 0; `one_dimensional`; and the model that it was taken off again."""
    model = random_model(kind, **KINDS[kind])
    rotary, base, state = decoder_of(model).rotary_emb, logits(model), model.state_dict().keys()
    plain = model(input_ids=IDS, use_cache=False).logits
    assert install(model, branches(rope_2d_ratio=0)) == 0 and decoder_of(model).rotary_emb is rotary and installed(model) is None
    adds = branches(positions="add", rope_2d_ratio=1)
    assert install(model, adds) == pytest.approx(40 * float(_frequencies(rotary).max())) and installed(model) == adds
    assert torch.equal(logits(model), base) and torch.equal(logits(model, torch.zeros_like(TIME)), base)
    moved = logits(model, COORDINATE)
    assert torch.equal(moved[0, :10], base[0, :10]) and not torch.equal(moved[0, 10:], base[0, 10:])
    with one_dimensional(model):
        assert torch.equal(logits(model, COORDINATE), base)
    assert torch.equal(logits(model, COORDINATE), moved), "and afterwards it is back"
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, plain) and model.state_dict().keys() == state
    install(model, branches())
    assert not torch.equal(logits(model), base), "with `replace` half of the pairs no longer turn by time"
    remove(model)
    assert decoder_of(model).rotary_emb is rotary and torch.equal(logits(model), base)


def _frequencies(rotary) -> Tensor:
    return getattr(rotary, "inv_freq", None) if hasattr(rotary, "inv_freq") else rotary.full_attention_inv_freq


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", ["replace", "add"])
@pytest.mark.parametrize("kind", [*KINDS, "GptOss"])
def test_cosines_and_sines_are_those_of_the_formula(kind, positions, dtype, random_model):
    """Pair by pair in plain Python, the slowest half by the coordinate; a layout is what the model's own code says of it."""
    config = {"GptOss": {**MIXED, "num_local_experts": 4, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}}.get(kind)
    model = random_model(kind, **(KINDS[kind] if config is None else config))
    install(model, branches(positions=positions))
    rope = decoder_of(model).rotary_emb
    rope.branch = COORDINATE
    for layer_type in rope.kinds:
        inverse = (getattr(rope.rotary, f"{layer_type}_inv_freq") if layer_type else rope.rotary.inv_freq).tolist()
        slow = sorted(range(len(inverse)), key=lambda pair: inverse[pair])[: max(1, round(0.5 * len(inverse)))]
        cos, sin = rope(torch.zeros(1, dtype=dtype), TIME, *([layer_type] if layer_type else []))
        assert cos.dtype == sin.dtype == (torch.float32 if kind == "Olmo2" else dtype), "as the model's own"
        for d in range(cos.shape[-1]):
            pair = d // 2 if kind in INTERLEAVED else d % len(inverse)
            for row, t in ((0, 3), (0, 17), (1, 23)):
                time, coordinate = int(TIME[row, t]), int(COORDINATE[row, t])
                position = (time * (positions == "add") + coordinate) if pair in slow else time
                expected = torch.tensor([math.cos(position * inverse[pair]), math.sin(position * inverse[pair])])
                torch.testing.assert_close(torch.stack([cos[row, t, d], sin[row, t, d]]).float(), expected.to(dtype).float(),
                                           rtol=0, atol=2e-5 if dtype == torch.float32 else 8e-3)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("positions", ["replace", "add"])
def test_attention_turns_queries_and_keys_by_them(positions, random_model):
    """One layer of Llama beside complex numbers: q and k as pairs (d, d + D/2), times exp(i angle), scores as real parts."""
    model = random_model("Llama", num_hidden_layers=1)
    install(model, branches(positions=positions, rope_2d_ratio=0.25))
    seen: list[tuple[Tensor, Tensor]] = []
    layer = model.model.layers[0]
    layer.self_attn.register_forward_hook(lambda _, args, kwargs, out: seen.append((kwargs["hidden_states"], out[0])), with_kwargs=True)
    logits(model, COORDINATE)
    hidden, given = seen[0]
    inverse, slowest = model.model.rotary_emb.rotary.inv_freq, 3
    position = TIME[..., None].repeat(1, 1, 4)
    position[..., slowest] = COORDINATE + (TIME if positions == "add" else 0)
    turn = torch.exp(1j * (position * inverse))[:, None]  # [B, 1, T, D/2]

    def heads(linear, count: int) -> Tensor:
        return linear(hidden).view(2, 24, count, 8).transpose(1, 2)

    def turned(x: Tensor) -> Tensor:
        return torch.complex(x[..., :4], x[..., 4:]) * turn

    q, k = turned(heads(layer.self_attn.q_proj, 4)), turned(heads(layer.self_attn.k_proj, 2)).repeat_interleave(2, 1)
    scores = (q @ k.conj().transpose(-1, -2)).real / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
    mixed = scores.softmax(-1) @ heads(layer.self_attn.v_proj, 2).repeat_interleave(2, 1)
    torch.testing.assert_close(layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2)), given, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text", "Cohere2"])
def test_a_step_with_a_cache_is_the_whole_row(kind, random_model):
    model = random_model(kind, **KINDS[kind])
    install(model, branches())
    whole, cache, parts = logits(model, COORDINATE), DynamicCache(config=model.config), []
    for start, stop in ((0, 12), (12, 13), (13, 14), (14, 24)):
        part = slice(start, stop)
        with coordinates(model, COORDINATE[:, part]):
            parts.append(model(IDS[:, part], position_ids=TIME[:, part], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


def test_the_coordinate_ends_with_the_call(random_model):
    model = random_model("Qwen3")
    install(model, branches())
    trunk, branch = logits(model), logits(model, COORDINATE)
    assert torch.equal(trunk, logits(model, torch.zeros_like(TIME))) and not torch.equal(trunk, branch)
    with pytest.raises(RuntimeError, match="on the way"), coordinates(model, COORDINATE):
        raise RuntimeError("on the way")
    assert torch.equal(logits(model), trunk)
    with pytest.raises(AssertionError, match=r"\[2, 20\]"):
        logits(model, COORDINATE[:, :20])
    assert torch.equal(logits(model), trunk)


def test_the_share_and_the_turn(random_model):
    """4 pairs of 1, 0.1, 0.01, 0.001 rad a position: which of them carry it, and what neighbours 40 apart turn by."""
    model = random_model("Qwen3")
    for ratio, chosen, turn in ((0.01, 1, 0.04), (0.25, 1, 0.04), (0.5, 2, 0.4), (0.75, 3, 4.0), (1.0, 4, 40.0)):
        assert install(model, branches(rope_2d_ratio=ratio)) == pytest.approx(turn, rel=1e-5)
        rope = decoder_of(model).rotary_emb
        assert isinstance(rope, Rope2d) and isinstance(rope.rotary, torch.nn.Module) and not isinstance(rope.rotary, Rope2d)
        assert rope._chosen.tolist() == [False] * (4 - chosen) + [True] * chosen + [False] * (4 - chosen) + [True] * chosen
        assert radian(model) == max(1, round(40 / turn))
        lines = told(branches(rope_2d_ratio=ratio), turn)
        assert f"at most {turn:g} rad" in lines[0]
        assert ["warning" in line for line in lines[1:]] == ([True] if turn < 0.05 else [False] if turn > math.pi else [])
        assert all("wraps" in line for line in lines[1:] if turn > math.pi)
    assert "same positions" in told(branches(rope_2d_ratio=0), 0.0)[0]


SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
}  # fmt: skip


@pytest.mark.parametrize("scaling", SCALED)
def test_frequencies_that_are_scaled_once_are_taken(scaling, random_model):
    model = random_model("Llama", rope_parameters=SCALED[scaling])
    base = logits(model)
    install(model, branches(positions="add", rope_2d_ratio=1))
    assert torch.equal(logits(model, torch.zeros_like(TIME)), base)
    with_time = logits(model, TIME)  # `add` time again on every pair: twice the angle
    remove(model)
    with torch.no_grad():
        twice = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), position_ids=2 * TIME, use_cache=False).logits
    torch.testing.assert_close(with_time, twice, rtol=1e-4, atol=1e-5)


REFUSED = {
    "dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "change with the length"),
    "longrope": ("Phi3", {"original_max_position_embeddings": 128, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0,
        "original_max_position_embeddings": 128}}, "change with the length"),
    "images": ("Qwen3_5Text", {}, "several dimensions"),
    "mrope": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}, "several dimensions"),
    "learned positions": ("GPT2", {}, "no rotary embedding"),
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_who_is_refused(way, random_model):
    kind, changes, reason = REFUSED[way]
    model = random_model(kind, **changes)
    modules = [*model.modules()]
    with pytest.raises(UserError, match=rf"branches.rope_2d_ratio: got 0.5, on .*{reason}.*; set it to 0") as refusal:
        install(model, branches())
    assert refusal.value.where == "branches.rope_2d_ratio"
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))
    assert install(model, branches(rope_2d_ratio=0)) == 0, "and nothing is in the way of ratio 0"


def test_angles_of_another_formula_are_refused(random_model, monkeypatch):
    """A rotary embedding that bends after 100 positions, and one that gives complex numbers."""
    for bent in (lambda cos, t: torch.where(t[..., None] > 100, -cos, cos), lambda cos, _: torch.complex(cos, cos)):
        model = random_model("Llama")
        rotary = model.model.rotary_emb
        right = rotary.forward
        monkeypatch.setattr(rotary, "forward", lambda x, t, right=right, bent=bent: (bent(right(x, t)[0], t), right(x, t)[1]))
        with pytest.raises(UserError, match="branches.rope_2d_ratio"):
            install(model, branches())
        assert model.model.rotary_emb is rotary


def test_two_rotary_embeddings_are_refused(random_model):
    model = random_model("Llama")
    model.model.layers[1].self_attn.rotary = deepcopy(model.model.rotary_emb)
    with pytest.raises(UserError, match="more than one rotary embedding"):
        install(model, branches())


def adapted(model):
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return peft.eval()


def test_under_peft_and_with_every_adapter_off_the_base_as_it_is(random_model):
    """The coordinate reaches the model through the PeftModel around it; `as_reference`, weight 0 and `strip` give the base's positions."""
    model = random_model("Qwen3")
    base = logits(model)
    peft = adapted(model)
    one = logits(peft)
    install(peft, branches())
    assert installed(model) == installed(peft) == branches()
    both = logits(peft, COORDINATE)
    assert not torch.equal(both, one) and torch.equal(logits(model, COORDINATE), both)
    with as_reference(peft):
        assert torch.equal(logits(peft, COORDINATE), base)
    with as_reference(peft.get_base_model(), "frozen"):
        assert torch.equal(logits(peft, COORDINATE), base)
    with adapter_weight(peft, 0):
        assert torch.equal(logits(peft, COORDINATE), base)
    assert torch.equal(logits(peft, COORDINATE), both)
    strip(model)
    assert installed(model) is None and torch.equal(logits(model), base)
