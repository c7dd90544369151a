"""Forest = separate samples: the loss and every LoRA gradient, against plain PEFT and torch's cross-entropy; masks; nats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from stylora.forest import MASK, Sample, chain, edges, pack, stack, whole_row
from stylora.model import head as head_module
from stylora.model.forest_model import ForestModel, mean_embedding, to_tensors

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
    noise = 1e-7 * torch.stack([g.norm() for g in expected.values()]).norm()
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
