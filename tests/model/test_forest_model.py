"""Forest = separate samples: the loss and every LoRA gradient, against plain PEFT and torch's cross-entropy; masks; nats; KL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from stylora.forest import MASK, Anchors, Forest, Sample, chain, edges, join, pack, stack, whole_row
from stylora.model import head as head_module
from stylora.model.forest_model import ForestModel, mean_embedding, pair_with_gold, to_tensors
from stylora.model.rope_2d import coordinates, install
from stylora.samples.anchors import Kl, add_anchors
from stylora.samples.branch_settings import Branches

CPU = torch.device("cpu")
WORDS = 262
LAYOUTS = {
    "stacked": dict(row_tokens=None, share_prefixes=False),
    "packed": dict(row_tokens=30, share_prefixes=False),
    "tries": dict(row_tokens=None, share_prefixes=True),
    "tries in rows": dict(row_tokens=20, share_prefixes=True),
}


def with_adapter(model, seed: int = 0):
    """Both matrices random: a fresh B is zero, and with it the gradient of A."""
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return peft


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def apart(peft, samples: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Each sample alone through the plain PEFT model, cross-entropy edge by edge, masks as the mean of all words' embeddings."""
    embed = peft.get_input_embeddings()
    mean = embed(torch.arange(WORDS)).mean(0)
    total = 0.0
    for sample in samples:
        ids = torch.tensor(sample.forest.ids.astype(np.int64))
        inputs = torch.where((ids == MASK)[:, None], mean, embed(ids.clamp_min(0)))[None]
        logits = peft(inputs_embeds=inputs).logits[0]
        nats = F.cross_entropy(
            logits[sample.edges.source.tolist()], torch.tensor(sample.edges.target.astype(np.int64)), reduction="none"
        )
        loss = (nats * torch.tensor(sample.edges.weight)).sum()
        loss.backward()
        total += float(loss.detach())
    return total, gradients(peft)


def together(peft, samples: list[Sample], budget: int, layout: dict) -> tuple[float, dict[str, torch.Tensor]]:
    model = ForestModel(peft.get_base_model(), words=WORDS)
    total = 0.0
    for batch in pack(samples, tokens_per_microbatch=budget, **layout):
        loss = model(to_tensors(batch, CPU))
        loss.backward()
        total += float(loss.detach())
    return total, gradients(peft)


def assert_same(ours, theirs) -> None:
    """To 1e-5 relative, each parameter for itself. Exact zeros (q and k of one-token rows) are rounding noise on both sides."""
    (loss, grads), (expected_loss, expected) = ours, theirs
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert grads.keys() == expected.keys() and all("lora_" in name for name in grads)
    noise = 3e-7 * torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (grads[name] - gradient).norm() <= 1e-5 * gradient.norm() + noise, name


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def peft_model(request, random_model):
    return with_adapter(random_model("Qwen3", attention=request.param))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), budget=st.integers(1, 60), layout=st.sampled_from(sorted(LAYOUTS)))
def test_forest_is_separate_samples(data, budget, layout, sample_lists, peft_model):
    samples = data.draw(sample_lists)
    assert_same(together(peft_model, samples, budget, LAYOUTS[layout]), apart(peft_model, samples))


@pytest.mark.parametrize("kind", ["Qwen2", "Llama", "Mistral", "Gemma3Text", "Glm4"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_other_architectures_and_windows(kind, layout, random_model):
    """Conversations of 24 tokens under one system prompt of 10, windows of 8 tokens where the model has them."""
    rng = np.random.default_rng(len(kind))
    prompt = rng.integers(0, WORDS, 10).tolist()
    samples = []
    for weight in (1.0, 0.5, 1.0, 2.0):
        ids = [*prompt, *rng.integers(0, WORDS, 14).tolist()]
        ids[12] = MASK
        samples.append(Sample(forest=chain(ids), edges=edges(range(9, 23), rng.integers(0, WORDS, 14), weight)))
    peft = with_adapter(random_model(kind))
    assert_same(together(peft, [*samples, samples[0]], 64, LAYOUTS[layout]), apart(peft, [*samples, samples[0]]))


def test_any_budget_gives_one_result(random_model):
    rng = np.random.default_rng(0)
    samples = [
        Sample(forest=chain(ids := rng.integers(0, WORDS, n).tolist()), edges=edges(range(n - 1), ids[1:])) for n in (9, 3, 17, 5, 12)
    ]
    peft = with_adapter(random_model("Qwen3"))
    expected = apart(peft, samples)
    shapes = set()
    for budget in (1, 10, 25, 1000):
        for layout in LAYOUTS.values():
            shapes.add(tuple(b.ids.shape for b in pack(samples, tokens_per_microbatch=budget, **layout)))
            assert_same(together(peft, samples, budget, layout), expected)
    assert len(shapes) >= 6, "the layouts must differ, or nothing was tested"


def test_the_divisor_divides_the_loss_and_nothing_else(random_model):
    sample = Sample(forest=chain([1, 2, 3]), edges=edges([0, 1], [2, 3], np.array([1.0, 3.0])))
    model = ForestModel(random_model("Qwen3"), words=WORDS)
    whole, part = (to_tensors(stack([sample]), CPU, divisor=d) for d in (1.0, 8.0))
    assert torch.equal(part.weight * 8, whole.weight) and part.weight.dtype == torch.float32
    with torch.no_grad():
        assert model(part).item() == pytest.approx(model(whole).item() / 8, rel=1e-6)


def test_to_tensors_sorts_edges_and_numbers_their_sources():
    sample = Sample(forest=chain([1, 2, 3]), edges=edges([2, 0, 2], [7, 8, 9], np.array([1.0, 2.0, 3.0])))
    batch = to_tensors(stack([sample, sample]), CPU)
    assert batch.head_rows.tolist() == [0, 2, 3, 5]
    assert batch.row.tolist() == [0, 1, 1, 2, 3, 3]
    assert batch.target.tolist() == [8, 7, 9] * 2 and batch.weight.tolist() == [2.0, 1.0, 3.0] * 2


def test_the_head_runs_once_per_source(random_model, monkeypatch):
    """Several edges leave one source, most tokens none: the head reads as many rows as there are sources."""
    sample = Sample(forest=chain(range(20)), edges=edges([3, 3, 3, 7], [1, 2, 3, 4]))
    model = ForestModel(random_model("Qwen3"), words=WORDS)
    seen = []
    model.model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[0]))
    model(to_tensors(stack([sample]), CPU))
    assert seen == [2]


def test_nats_are_the_edges_own_in_chunks_too(random_model, monkeypatch):
    ids = np.random.default_rng(3).integers(0, WORDS, 30)
    sample = Sample(forest=chain(ids), edges=edges([*range(29), 4], [*ids[1:].tolist(), 9], 2.0))
    model = ForestModel(random_model("Qwen3"), words=WORDS)
    batch = to_tensors(stack([sample]), CPU)
    scores = model.model(input_ids=torch.tensor(ids)[None]).logits[0].log_softmax(-1)
    expected = -scores[batch.head_rows[batch.row], batch.target]
    for rows_at_once in (1, 7, 1024):
        monkeypatch.setattr("stylora.model.forest_model.CHUNK_ELEMENTS", rows_at_once * model.vocabulary)
        assert torch.allclose(model.nats(batch), expected, atol=1e-5)
    assert float((model.nats(batch) * batch.weight).sum()) == pytest.approx(model(batch).item(), rel=1e-5)
    nothing = to_tensors(whole_row(chain([1, 2])), CPU)
    assert model.nats(nothing).shape == (0,) and model(nothing).item() == 0.0


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text"])
def test_the_mask_is_the_mean_of_the_real_words(kind, random_model):
    """Gemma scales its embeddings by sqrt(D) inside the module; rows behind the last word are padding and do not count."""
    model = random_model(kind)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        embed.weight[WORDS:] = 1e3
    expected = embed(torch.arange(WORDS)).double().mean(0)
    assert torch.allclose(mean_embedding(model, WORDS).double(), expected, atol=1e-6)
    if kind == "Gemma3Text":
        assert torch.allclose(expected, embed.weight[:WORDS].double().mean(0) * 32**0.5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text"])
def test_masked_positions_get_that_vector_and_the_embedding_stays(kind, random_model):
    model = random_model(kind)
    before = model.get_input_embeddings().weight.clone()
    ours = ForestModel(model, words=WORDS)
    seen = []
    handle = model.get_decoder().register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw), with_kwargs=True)
    plain = to_tensors(whole_row(chain([3, 4, 5])), CPU)
    masked = to_tensors(whole_row(chain([3, MASK, 5])), CPU)
    ours.hidden(plain), ours.hidden(masked)
    handle.remove()
    assert "inputs_embeds" not in seen[0], "without a mask the ids go in as they are"
    given_embeddings = seen[1]["inputs_embeds"][0]
    assert torch.equal(given_embeddings[1], mean_embedding(model, WORDS))
    assert torch.equal(given_embeddings[[0, 2]], model.get_input_embeddings()(torch.tensor([3, 5])))
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_the_mask_is_neither_trained_nor_saved(random_model):
    peft = with_adapter(random_model("Qwen3"))
    ours = ForestModel(peft.get_base_model(), words=WORDS)
    assert not any("mask_vector" in name for name in ours.state_dict())
    ours(to_tensors(stack([Sample(forest=chain([3, MASK, 5]), edges=edges([1], [4]))]), CPU)).backward()
    assert not ours.mask_vector.requires_grad and ours.mask_vector.grad is None


def test_a_batch_of_chains_goes_without_a_mask_and_a_tree_with_one(random_model):
    model = ForestModel(random_model("Qwen3"), words=WORDS)
    seen = []
    model.model.get_decoder().register_forward_pre_hook(lambda _m, _a, kw: seen.append(set(kw)), with_kwargs=True)
    rows = [Sample(forest=chain(ids), edges=edges([0], [1])) for ids in ([1, 2, 3], [1, 2, 4, 5])]
    for share in (False, True):
        for batch in pack(rows, tokens_per_microbatch=100, share_prefixes=share):
            model(to_tensors(batch, CPU))
    assert seen == [{"input_ids", "use_cache"}, {"input_ids", "use_cache", "attention_mask", "position_ids"}]


@pytest.mark.parametrize("kind", ["Granite", "Gemma2"])
def test_the_slow_head_trains_as_the_plain_model_does(kind, random_model, monkeypatch):
    """Where logits are scaled or capped after the head: loss and gradient through the model's own forward."""
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 3 * 320)
    peft = with_adapter(random_model(kind, attention="eager"))
    samples = [Sample(forest=chain([5, 6, 7, 8, 9, *tail]), edges=edges(range(6), [6, 7, 8, 9, *tail])) for tail in ([1, 2], [3, 4])]
    model = ForestModel(peft.get_base_model(), words=WORDS, head="model")
    (batch,) = pack(samples, tokens_per_microbatch=40, share_prefixes=True)
    loss = model(to_tensors(batch, CPU))
    loss.backward()
    assert_same((float(loss.detach()), gradients(peft)), apart(peft, samples))
    with pytest.raises(AssertionError):  # and the fast head would be wrong here
        assert_same(together(peft, samples, 40, LAYOUTS["tries"]), apart(peft, samples))


# --------------------------------------------------------------------------------------------------------- CE with KL


def held_apart(peft, samples: list[Sample], kl: Kl, reference=None) -> tuple[float, float, dict[str, torch.Tensor]]:
    """(ce, kl, gradients) of each sample alone through the plain PEFT model, anchor by anchor in fp64.

    reference: a model of its own; without one it is the PEFT model under PEFT's own `disable_adapter`
    """
    embed = peft.get_input_embeddings()
    mean = embed(torch.arange(WORDS)).mean(0)
    totals = torch.zeros(2, dtype=torch.float64)
    for sample in samples:
        ids = torch.tensor(sample.forest.ids.astype(np.int64))
        inputs = torch.where((ids == MASK)[:, None], mean, embed(ids.clamp_min(0)))[None]
        with torch.no_grad(), peft.disable_adapter() if reference is None else nullcontext():
            held = (reference or peft)(inputs_embeds=inputs).logits[0].double()
        scores = peft(inputs_embeds=inputs).logits[0].double()
        edges_, anchors = sample.edges, sample.anchors
        nats = -scores.log_softmax(-1)[edges_.source.tolist(), edges_.target.tolist()]
        parts = [(nats * torch.tensor(edges_.weight)).sum(), nats.new_zeros(())]
        for source, weight in zip(anchors.source.tolist(), anchors.weight.tolist(), strict=True):
            golds = edges_.target[edges_.source == source].tolist() if kl.drop_gold else []
            for gold in golds or [-1]:
                words = [word for word in range(scores.shape[1]) if word != gold]
                p, q = (torch.distributions.Categorical(logits=one[source, words]) for one in (scores, held))
                divergence = torch.distributions.kl_divergence(*((p, q) if kl.direction == "reverse" else (q, p)))
                parts[1] = parts[1] + weight / max(1, len(golds)) * divergence
        (parts[0] + kl.beta * parts[1]).backward()
        totals += torch.stack(parts).detach()
    return float(totals[0]), float(totals[1]), gradients(peft)


def held_together(peft, samples: list[Sample], kl: Kl, budget: int, layout: dict) -> tuple[float, float, dict[str, torch.Tensor]]:
    model = ForestModel(peft.get_base_model(), words=WORDS, kl=kl)
    ce = divergence = 0.0
    for batch in pack(samples, tokens_per_microbatch=budget, **layout):
        loss = model(to_tensors(batch, CPU, drop_gold=kl.drop_gold))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(model.last_ce + kl.beta * model.last_kl), rel=1e-6)
        ce, divergence = ce + float(model.last_ce), divergence + float(model.last_kl)
    return ce, divergence, gradients(peft)


def held_samples(kl: Kl, gold_once: bool = False) -> list[Sample]:
    """Conversations of one prompt, some of them general, one twice, masks in two, several edges from one source."""
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, WORDS, 6).tolist()
    samples = []
    for number in range(4):
        ids = [*prompt, *rng.integers(0, WORDS, 7).tolist()]
        sources = [*range(5, 12), *([] if gold_once else [5, 8])]
        sample = Sample(forest=chain(ids), edges=edges(sources, rng.integers(0, WORDS, len(sources))))
        samples.append(add_anchors(sample, kl, general=number % 2 == 0, rng=rng))
    masked = chain([MASK if i == 3 else token for i, token in enumerate(samples[1].forest.ids.tolist())])
    return [*samples, samples[0], replace(samples[1], forest=masked)]


def assert_held_same(ours, theirs, beta: float) -> None:
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5)
    assert_same((ours[0] + beta * ours[1], ours[2]), (theirs[0] + beta * theirs[1], theirs[2]))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("drop_gold", [False, True])
@pytest.mark.parametrize("on", ["edges", "all", "general"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_ce_and_kl_are_those_of_separate_samples(direction, on, drop_gold, layout, peft_model, monkeypatch):
    """Edges of weight 1, as samples have them: then a trie's anchors pair with gold tokens as its samples' do."""
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 10 * 320)
    kl = Kl(beta=0.5, direction=direction, on=on, drop_gold=drop_gold)
    samples = held_samples(kl, gold_once=drop_gold)
    expected = held_apart(peft_model, samples, kl)
    assert expected[1] > 0
    assert_held_same(held_together(peft_model, samples, kl, 30, LAYOUTS[layout]), expected, 0.5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("on", ["edges", "all"])
def test_the_reference_of_a_stack_is_the_base_or_what_is_frozen(on, direction, random_model):
    """A trainable adapter on a frozen one, held to either; as references models of their own, without the adapters that are off."""
    model = random_model("Qwen3")
    bare, below = deepcopy(model), with_adapter(model)
    frozen = deepcopy(below)
    below.add_adapter("top", below.peft_config["default"])
    for name, parameter in below.named_parameters():
        if ".top." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    below.base_model.set_adapter(["default", "top"])
    below.set_requires_grad("default", False)
    divergences = []
    for reference, other in (("base", bare), ("frozen", frozen)):
        kl = Kl(beta=0.5, reference=reference, direction=direction, on=on)
        samples = held_samples(kl)
        expected = held_apart(below, samples, kl, other)
        assert_held_same(held_together(below, samples, kl, 30, LAYOUTS["tries"]), expected, 0.5)
        assert all(".top." in name for name in expected[2])
        divergences.append(expected[1])
    assert abs(divergences[0] - divergences[1]) > 1e-3 * divergences[0], "the two references differ, or nothing was tested"


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_several_gold_tokens_of_one_source_share_its_anchor(direction, peft_model):
    kl = Kl(beta=0.5, direction=direction, drop_gold=True, on="all")
    sample = add_anchors(
        Sample(forest=chain([3, 4, 5, 6]), edges=edges([1, 1, 2], [7, 8, 9])), kl, general=False, rng=np.random.default_rng(0)
    )
    assert_held_same(held_together(peft_model, [sample], kl, 30, LAYOUTS["stacked"]), held_apart(peft_model, [sample], kl), 0.5)


@pytest.mark.parametrize("kind", ["Granite", "Gemma2"])
def test_the_slow_head_holds_as_the_plain_model_does(kind, random_model, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 6 * 320)
    peft, kl = with_adapter(random_model(kind, attention="eager")), Kl(beta=0.5, reference="frozen")
    samples = held_samples(kl)
    model = ForestModel(peft.get_base_model(), words=WORDS, head="model", kl=kl)
    (batch,) = pack(samples, tokens_per_microbatch=100, share_prefixes=True)
    model(to_tensors(batch, CPU)).backward()
    assert_held_same((float(model.last_ce), float(model.last_kl), gradients(peft)), held_apart(peft, samples, kl), 0.5)


def test_an_adapter_on_the_head_is_off_for_the_reference(random_model, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 6 * 320)
    torch.manual_seed(0)
    peft = get_peft_model(random_model("Qwen3"), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    kl = Kl(beta=0.5)
    samples = held_samples(kl)
    assert_held_same(held_together(peft, samples, kl, 30, LAYOUTS["tries"]), held_apart(peft, samples, kl), 0.5)


@contextmanager
def calls(model: ForestModel) -> Iterator[list[tuple[int, ...]]]:
    """The shape [B, T] of every pass through the decoder."""
    seen: list[tuple[int, ...]] = []
    handle = model.model.get_decoder().register_forward_hook(lambda _m, _a, output: seen.append(output[0].shape[:2]))
    yield seen
    handle.remove()


@pytest.mark.parametrize("on", ["edges", "all", "general"])
def test_a_fresh_adapter_has_kl_0(on, random_model):
    """Bit for bit where the reference reads all that the model reads; to rounding where it reads the rows with anchors alone."""
    peft = get_peft_model(random_model("Qwen3"), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)).train()
    for direction in ("forward", "reverse"):
        kl = Kl(on=on, direction=direction)
        model = ForestModel(peft.get_base_model(), words=WORDS, kl=kl).train()
        for layout in LAYOUTS.values():
            for batch in pack(held_samples(kl), tokens_per_microbatch=60, **layout):
                loss = model(to_tensors(batch, CPU))
                assert abs(float(model.last_kl)) <= (1e-6 if on == "general" else 0)
                assert float(loss.detach()) == pytest.approx(float(model.last_ce), rel=1e-6)
    torch.nn.init.normal_(peft.get_base_model().model.layers[0].mlp.up_proj.lora_B["default"].weight, std=0.1)
    model(to_tensors(stack(held_samples(kl)), CPU))
    assert float(model.last_kl) > 1e-4


@pytest.mark.parametrize(
    ("kl", "passes"), [(None, 1), (Kl(beta=0.0), 1), (Kl(beta=0.1), 2), (Kl(beta=0.1, on="general"), 2)]
)
def test_without_beta_there_is_no_second_pass(kl, passes, peft_model):
    """Also where the batch carries anchors: nothing of the loss or of its gradient changes."""
    samples = held_samples(Kl())
    model = ForestModel(peft_model.get_base_model(), words=WORDS, kl=kl)
    with calls(model) as seen:
        model(to_tensors(stack(samples), CPU)).backward()
    assert len(seen) == passes
    assert (float(model.last_kl) > 0) == (passes == 2)
    if passes == 1:
        assert_same((float(model.last_ce), gradients(peft_model)), apart(peft_model, samples))
    gradients(peft_model)


def test_a_batch_without_anchors_has_one_pass_and_others_read_their_rows_alone(peft_model):
    kl = Kl(on="general")
    samples = held_samples(kl)
    model = ForestModel(peft_model.get_base_model(), words=WORDS, kl=kl)
    with calls(model) as seen:
        model(to_tensors(stack([samples[1], samples[3]]), CPU))
        model(to_tensors(stack(samples), CPU))
    assert seen == [(2, 13), (3, 13), (6, 13)]


def test_the_reference_leaves_the_model_as_it_was(random_model):
    """Modes, dropout's random numbers and what trains; a gradient reaches the adapter and nothing else."""
    peft = get_peft_model(random_model("Qwen3"), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)).train()
    peft.get_base_model().model.layers[0].eval()
    gradient = []
    for kl in (None, Kl(beta=1e-30)):
        model = ForestModel(peft.get_base_model(), words=WORDS, kl=kl)
        before = [module.training for module in peft.modules()], [p.requires_grad for p in peft.parameters()]
        torch.manual_seed(7)
        model(to_tensors(stack(held_samples(Kl())), CPU)).backward()
        assert before == ([module.training for module in peft.modules()], [p.requires_grad for p in peft.parameters()])
        gradient.append(gradients(peft))
    assert all("lora_" in name for name in gradient[1]) and gradient[1].keys() == gradient[0].keys()
    assert all(torch.allclose(gradient[0][name], gradient[1][name], rtol=1e-4, atol=1e-6) for name in gradient[0]), "the same dropout"


def test_w_and_v_divide_each_its_own(peft_model):
    model = ForestModel(peft_model.get_base_model(), words=WORDS, kl=Kl(beta=0.5))
    parts = []
    for divisors in ({}, dict(divisor=4.0, anchor_divisor=32.0)):
        with torch.no_grad():
            loss = model(to_tensors(stack(held_samples(Kl())), CPU, **divisors))
        parts.append([float(model.last_ce), float(model.last_kl)])
        assert float(loss) == pytest.approx(parts[-1][0] + 0.5 * parts[-1][1], rel=1e-6)
    assert parts[1] == pytest.approx([parts[0][0] / 4, parts[0][1] / 32], rel=1e-6)


def test_to_tensors_puts_anchored_rows_first():
    """Two rows of four tokens: anchors at flat 5 and 7 (twice), edges at 0, 5, 5 and 6."""
    anchors = Anchors(source=np.array([3, 1, 3], np.int32), weight=np.array([1.0, 2.0, 4.0], np.float32))
    bare = Sample(forest=chain([1, 2, 3, 4]), edges=edges([0], [9]))
    held = Sample(forest=chain([5, 6, 7, 8]), edges=edges([2, 1, 1], [10, 11, 12]), anchors=anchors)
    batch = to_tensors(stack([bare, held]), CPU, anchor_divisor=8.0)
    assert batch.head_rows.tolist() == [5, 7, 0, 6]
    assert batch.row.tolist() == [0, 0, 2, 3] and batch.target.tolist() == [11, 12, 9, 10]
    assert batch.anchors.rows.tolist() == [1] and batch.anchors.source.tolist() == [1, 3]
    assert batch.anchors.held.tolist() == [0, 1] and batch.anchors.weight.tolist() == [2 / 8, 5 / 8] and batch.anchors.gold is None
    paired = to_tensors(stack([bare, held]), CPU, drop_gold=True).anchors
    assert paired.held.tolist() == [0, 0, 1] and paired.gold.tolist() == [11, 12, -1] and paired.weight.tolist() == [1, 1, 5]
    assert to_tensors(stack([bare]), CPU).anchors is None


@pytest.mark.parametrize(
    ("weight", "edge_weights", "expected"),
    [
        (3.0, [1.0, 1.0], [(10, 1.0), (11, 1.0), (-1, 1.0)]),  # as drawn in the docstring
        (2.0, [1.0, 1.0], [(10, 1.0), (11, 1.0)]),
        (1.0, [1.0, 3.0], [(10, 0.25), (11, 0.75)]),
        (2.0, [], [(-1, 2.0)]),
        (0.3, [0.1, 0.1, 0.1], [(10, 0.1), (11, 0.1), (12, 0.1)]),
    ],
)
def test_an_anchor_is_shared_out_over_its_gold_tokens(weight, edge_weights, expected):
    rows, targets = np.zeros(len(edge_weights), np.int64), np.arange(10, 10 + len(edge_weights))
    held, gold, shares = pair_with_gold(
        np.array([weight]), np.append(rows, 1), np.append(targets, 99), np.array([*edge_weights, 1.0], np.float32)
    )
    assert held.tolist() == [0] * len(expected) and gold.tolist() == [token for token, _ in expected]
    assert shares.tolist() == pytest.approx([share for _, share in expected], rel=1e-6)


# ------------------------------------------------------------------------------------------- branches with coordinates


def trunk_and_branches(rng, count: int, layout: Branches, numbers=None) -> tuple[Sample, list[Sample]]:
    """(a tree of `count` branches of unequal length with an edge at every step, the same as chains); coordinates by `layout`."""
    trunk = rng.integers(0, WORDS, 5).tolist()
    texts = [rng.integers(0, WORDS, rng.integers(2, 9)).tolist() for _ in range(count)]
    places = [layout.coordinate(number) for number in (numbers or range(count))]
    return rows_of(trunk, texts, places)


def rows_of(trunk: list[int], texts: list[list[int]], places: list[int]) -> tuple[Sample, list[Sample]]:
    whole = len(trunk) + sum(map(len, texts))
    ids, time, branch, end = [*trunk], [*range(len(trunk))], [0] * len(trunk), [whole] * len(trunk)
    source, target, chains = [], [], []
    for text, place in zip(texts, places, strict=True):
        start = len(ids)
        ids += text
        time += range(len(trunk), len(trunk) + len(text))
        branch += [place] * len(text)
        end += [start + len(text)] * len(text)
        source += range(start, start + len(text) - 1)
        target += text[1:]
        alone = replace(chain([*trunk, *text]), branch=np.array([0] * len(trunk) + [place] * len(text), np.int32))
        chains.append(Sample(forest=alone, edges=edges(range(len(trunk), len(alone) - 1), text[1:])))
    columns = {name: np.array(column, np.int32) for name, column in
               {"ids": ids, "time": time, "branch": branch, "end": end, "root": [0] * whole}.items()}  # fmt: skip
    return Sample(forest=Forest(**columns), edges=edges(source, target)), chains


def one_by_one(model, chains: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Each chain alone through the model itself, cross-entropy of torch's own."""
    total = 0.0
    for sample in chains:
        columns = [torch.from_numpy(getattr(sample.forest, name).astype(np.int64))[None] for name in ("ids", "time", "branch")]
        with coordinates(model, columns[2]):
            logits = model(input_ids=columns[0], position_ids=columns[1], use_cache=False).logits[0]
        target = torch.tensor(sample.edges.target.astype(np.int64))
        loss = F.cross_entropy(logits[sample.edges.source.tolist()], target, reduction="sum")
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def at_once(model, samples: list[Sample], **layout) -> tuple[float, dict[str, torch.Tensor]]:
    forest, total = ForestModel(model.get_base_model() if hasattr(model, "peft_config") else model, words=WORDS), 0.0
    for batch in pack(samples, tokens_per_microbatch=400, **layout):
        loss = forest(to_tensors(batch, CPU))
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


@pytest.mark.parametrize("positions", ["replace", "add"])
@pytest.mark.parametrize("with_lora", [True, False], ids=["adapter", "base"])
@pytest.mark.parametrize(("kind", "count"), [("Qwen3", 1), ("Qwen3", 2), ("Qwen3", 16), ("Gemma3Text", 5), ("Glm4", 5), ("Mistral", 7)])
def test_isolated_branches_with_coordinates_are_separate_chains(kind, count, with_lora, positions, random_model):
    """Loss and gradients to 1e-5, of every weight where there is no adapter; as trees, as stacked chains, and as chains in one row."""
    model = with_adapter(random_model(kind)) if with_lora else random_model(kind)
    layout = Branches(rope_2d_ratio=0.75, branch_stride=9, positions=positions)
    install(model, layout)
    tree, chains = trunk_and_branches(np.random.default_rng(count), count, layout)
    expected = one_by_one(model, chains)
    for samples, options in (([tree], {}), (chains, {}), (chains, {"row_tokens": 100}), (chains, {"share_prefixes": True})):
        loss, grads = at_once(model, samples, **options)
        assert loss == pytest.approx(expected[0], rel=1e-5)
        noise = 3e-7 * torch.stack([g.norm() for g in expected[1].values()]).norm()
        assert grads.keys() == expected[1].keys() and len(grads) >= 20
        for name, gradient in expected[1].items():
            assert (grads[name] - gradient).norm() <= 1e-5 * gradient.norm() + noise, name


@torch.no_grad()
@pytest.mark.parametrize("columnar", [False, True])
def test_permuted_branches_are_permuted_and_coordinates_tell_them_apart(columnar, random_model):
    model = random_model("Qwen3")
    layout = Branches(rope_2d_ratio=0.5, branch_stride=30)
    install(model, layout)
    forest = ForestModel(model, words=WORDS, columnar=columnar)
    rng = np.random.default_rng(3)
    trunk, texts = rng.integers(0, WORDS, 5).tolist(), [rng.integers(0, WORDS, n).tolist() for n in (4, 7, 3, 6)]
    order = [2, 0, 3, 1]

    def hidden(texts: list[list[int]], numbers: list[int]) -> list[torch.Tensor]:
        tree, _ = rows_of(trunk, texts, [layout.coordinate(number) for number in numbers])
        found = forest.hidden(to_tensors(whole_row(tree.forest), CPU))[0]
        return list(found.split([len(trunk), *map(len, texts)]))

    first, *own = hidden(texts, [0, 1, 2, 3])
    again, *permuted = hidden([texts[i] for i in order], order)
    for place, i in enumerate(order):
        torch.testing.assert_close(permuted[place], own[i], rtol=1e-5, atol=1e-5)
    assert torch.allclose(first, again, atol=1e-5)
    _, *elsewhere = hidden(texts, order)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(own, elsewhere, strict=True)), "a coordinate is not an order"
    _, *fewer = hidden(texts[:3], [0, 1, 2])
    same = [torch.allclose(one, other, atol=1e-5) for one, other in zip(own[:3], fewer, strict=True)]
    assert same == [not columnar] * 3, "a peer that is not there changes nothing, unless it was seen"


@pytest.mark.parametrize("kind", ["Qwen3", "Mistral"])
@pytest.mark.parametrize("columnar", [False, True])
def test_a_token_sees_exactly_the_drawn_set(columnar, kind, random_model):
    """One layer: the gradient of every hidden state by every embedding is there where the drawing says so, and zero elsewhere."""
    model = random_model(kind, num_hidden_layers=1, sliding_window=3) if kind == "Mistral" else random_model(kind, num_hidden_layers=1)
    layout = Branches(visibility="columnar" if columnar else "isolated", branch_stride=30)
    install(model, layout)
    forest = ForestModel(model, words=WORDS, columnar=columnar)
    tree, _ = trunk_and_branches(np.random.default_rng(0), 3, layout)
    other, _ = trunk_and_branches(np.random.default_rng(1), 2, layout)
    batch = to_tensors(whole_row(join([tree, other]).forest), CPU)
    time, root, end = batch.time[0], torch.tensor(join([tree, other]).forest.root), batch.end[0]
    embedded: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: embedded.append(out))
    found = forest.hidden(batch)[0]
    index = range(len(time))
    seen = [[bool(g.any()) for g in torch.autograd.grad(found[q].sum(), embedded[0], retain_graph=True)[0][0]] for q in index]
    for q in index:
        for k in index:
            own = k <= q < int(end[k])
            earlier = bool(root[k] == root[q]) and int(time[k]) < int(time[q])
            near = kind != "Mistral" or int(time[q] - time[k]) < 3
            assert seen[q][k] == (((earlier or k == q) if columnar else own) and near), (q, k)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text", "Mistral", "Cohere2"])
def test_a_later_column_changes_nothing_to_the_bit(kind, random_model):
    changes = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"]) if kind == "Cohere2" else {}
    model = random_model(kind, **changes)
    layout = Branches(visibility="columnar", branch_stride=30)
    install(model, layout)
    forest = ForestModel(model, words=WORDS, columnar=True)
    tree, _ = rows_of([1, 2, 3], [[4, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14]], [30, 60, 90])
    before = forest.hidden(to_tensors(whole_row(tree.forest), CPU))[0]
    time = torch.from_numpy(tree.forest.time)
    for place in range(3, len(time)):
        ids = tree.forest.ids.copy()
        ids[place] = 200
        after = forest.hidden(to_tensors(whole_row(replace(tree.forest, ids=ids)), CPU))[0]
        stays = (time <= time[place]) & (torch.arange(len(time)) != place)
        assert torch.equal(before[stays], after[stays])
        assert all((before[i] != after[i]).any() for i in (time > time[place]).nonzero().flatten().tolist())


@pytest.mark.parametrize("columnar", [False, True])
def test_gradient_checkpointing_changes_nothing_of_branches(columnar, random_model):
    model = with_adapter(random_model("Qwen3"))
    layout = Branches(branch_stride=30)
    install(model, layout)
    tree, chains = trunk_and_branches(np.random.default_rng(5), 4, layout)
    forest = ForestModel(model.get_base_model(), words=WORDS, columnar=columnar).train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            forest.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        losses = [forest(to_tensors(stack(rows), CPU)) for rows in ([tree], chains)]
        sum(losses).backward()
        found.append(([float(loss.detach()) for loss in losses], gradients(model)))
    assert found[0][0] == found[1][0] and found[0][1].keys() == found[1][1].keys() and found[0][1]
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


@torch.no_grad()
def test_the_reference_of_branches_stands_where_the_base_stands(random_model):
    """KL against the base: of a model whose adapter does nothing, the divergence that is left is that of the positions."""
    model = random_model("Qwen3")
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    layout = Branches(branch_stride=30, rope_2d_ratio=1)
    tree, _ = trunk_and_branches(np.random.default_rng(5), 3, layout)
    anchors = Anchors(source=np.arange(len(tree), dtype=np.int32), weight=np.ones(len(tree), np.float32))
    batch = to_tensors(stack([replace(tree, anchors=anchors)]), CPU)
    forest = ForestModel(peft.get_base_model(), words=WORDS, kl=Kl(beta=1.0)).eval()
    plain = forest.hidden(batch)
    forest(batch)
    assert float(forest.last_kl) == pytest.approx(0, abs=1e-6)
    install(model, layout)
    forest(batch)
    own, base = (forest.logits(each).double().log_softmax(-1) for each in (forest.hidden(batch), plain))
    apart = float((base.exp() * (base - own)).sum())
    assert apart > 1e-4 and float(forest.last_kl) == pytest.approx(apart, rel=1e-2)
