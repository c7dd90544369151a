"""KL to the base against plain fp64 distributions, both directions, of chains, weights and tries; exactly 0 for a fresh adapter."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from stylora.evaluate import base_distance as module
from stylora.evaluate.base_distance import base_distance
from stylora.forest import MASK, Sample, build_trie, chain, edges
from stylora.model.forest_model import ForestModel
from stylora.samples.clm import clm


def windows() -> list[Sample]:
    return [clm(np.random.default_rng(n).integers(3, 250, size=3 + 7 * n % 23, dtype=np.int32)) for n in range(9)]


def weighted(n: int) -> Sample:
    """A chain that learns at some places, twice at one of them, with weights of all sizes."""
    draw = np.random.default_rng(100 + n)
    ids = draw.integers(3, 250, size=4 + 3 * n % 11)
    return Sample(
        forest=chain(ids), edges=edges([len(ids) - 1, 1, 0, 1], draw.integers(3, 250, size=4), draw.choice([0.25, 1, 3], size=4))
    )


def adapted(model, perturb: bool = True, **settings):
    """An adapter on everything linear, dropout live in training."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.3, **settings}
    peft = get_peft_model(model, LoraConfig(**config))
    torch.manual_seed(2)
    for name, parameter in peft.named_parameters() if perturb else ():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return model


def naive(base, model, samples: list[Sample]) -> tuple[float, float, float]:
    """(KL(base || model), KL(model || base), tokens): sample by sample, whole logits in fp64, no dropout."""
    model.eval()
    sums = np.zeros(3)
    for sample in samples:
        ids = torch.tensor(sample.forest.ids).long()[None]
        with torch.no_grad():
            logq, logp = (each(input_ids=ids).logits[0].double().log_softmax(-1) for each in (base, model))
        for source, weight in zip(sample.edges.source.tolist(), sample.edges.weight.tolist(), strict=True):
            p, q = logp[source], logq[source]
            sums += weight * np.array([(q.exp() * (q - p)).sum().item(), (p.exp() * (p - q)).sum().item(), 1.0])
    return sums[0] / sums[2], sums[1] / sums[2], sums[2]


def sharp(model):
    """The model with distributions that are far from even, as trained ones are."""
    model.get_output_embeddings().weight.data *= 30
    return model


@pytest.mark.parametrize("kind, head", [("Qwen3", "module"), ("Granite", "model"), ("Gemma2", "model")])
@pytest.mark.parametrize("chunk", [1, 5000, 1 << 25])
def test_equals_plain_distributions(kind, head, chunk, random_model, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    base, model = sharp(random_model(kind)), adapted(sharp(random_model(kind)))
    samples = [*windows(), *map(weighted, range(5))]
    found = base_distance(ForestModel(model, words=len(tokenizer), head=head), samples)
    forward, reverse, tokens = naive(base, model, samples)
    assert (found.forward, found.reverse) == pytest.approx((forward, reverse), rel=1e-5)
    assert found.tokens == tokens and abs(forward - reverse) > 1e-3 * forward


@pytest.mark.parametrize("tokens_at_once", [1, 50, 8192])
def test_any_batch_and_tries_as_the_chains_they_are_made_of(tokens_at_once, random_model, tokenizer):
    base, model = sharp(random_model("Qwen3")), adapted(sharp(random_model("Qwen3")))
    draw = np.random.default_rng(5)
    paths = []
    for n in range(4):
        prompt = draw.integers(3, 250, size=3 + n).tolist()
        tails = [draw.integers(3, 250, size=2 + m).tolist() for m in range(3)]
        paths.append([Sample(forest=chain(prompt + t), edges=edges([len(prompt) - 1, len(prompt)], t[:2], 0.5 + len(t))) for t in tails])
    samples = [*map(build_trie, paths), *windows()]
    found = base_distance(ForestModel(model, words=len(tokenizer)), samples, tokens_at_once=tokens_at_once)
    assert found == pytest.approx(naive(base, model, [*sum(paths, []), *windows()]), rel=1e-4)


def test_an_adapter_on_the_head_is_off_for_the_base(random_model, tokenizer):
    base, model = random_model("Qwen3"), adapted(random_model("Qwen3"), target_modules=["lm_head", "q_proj"])
    found = base_distance(ForestModel(model, words=len(tokenizer)), windows())
    assert found == pytest.approx(naive(base, model, windows()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_at_exactly_0(dtype, random_model, tokenizer):
    model = ForestModel(adapted(random_model("Qwen3").to(dtype), perturb=False), words=len(tokenizer)).train()
    masked = Sample(forest=chain([5, MASK, 7]), edges=edges([1], [9]))
    found = base_distance(model, [*windows(), *map(weighted, range(5)), masked], tokens_at_once=40)
    assert (found.forward, found.reverse) == (0.0, 0.0) and found.tokens > 100


def test_a_bare_base_is_at_0_and_nothing_to_predict_is_nothing(random_model, tokenizer):
    bare = ForestModel(random_model("Qwen3"), words=len(tokenizer))
    assert base_distance(bare, windows()) == (0.0, 0.0, sum(len(sample.edges) for sample in windows()))
    for samples in ([], [clm(np.array([5], np.int32))]):
        found = base_distance(bare, samples)
        assert math.isnan(found.forward) and math.isnan(found.reverse) and found.tokens == 0


def test_the_model_is_left_as_it_was(random_model, tokenizer):
    forest = ForestModel(adapted(random_model("Qwen3")), words=len(tokenizer)).train()
    before, generator = copy.deepcopy(forest.state_dict()), torch.get_rng_state()
    trains = [(name, parameter.requires_grad) for name, parameter in forest.named_parameters()]
    base_distance(forest, windows())
    assert all(part.training for part in forest.modules())
    assert trains == [(name, parameter.requires_grad) for name, parameter in forest.named_parameters()]
    assert all(torch.equal(value, before[name]) for name, value in forest.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state()), "no dropout was drawn"


def test_the_logits_of_a_batch_never_exist_at_once(random_model, tokenizer, monkeypatch):
    """No call of the head gives more than a quarter of the chunk's elements."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 40 * 320)
    model = adapted(random_model("Qwen3"))
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    base_distance(ForestModel(model, words=len(tokenizer)), windows())
    assert max(rows) == 10 and sum(rows) == 2 * sum(len(sample.edges) for sample in windows())


def test_sharing_beginnings_changes_no_figure(random_model, tokenizer):
    model = ForestModel(adapted(random_model("Qwen3")), words=len(tokenizer))
    samples = [Sample(forest=chain([7, 8, 9, *ids]), edges=edges([2, 3], ids)) for ids in ([20, 21], [20, 22], [30, 31], [20, 21])]
    apart, shared = (base_distance(model, samples, share_prefixes=share) for share in (False, True))
    assert apart.forward > 0 and shared == pytest.approx(apart, rel=1e-4)
