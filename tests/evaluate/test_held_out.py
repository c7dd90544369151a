"""Held-out loss against a plain transformers loop, of windows, weighted edges and tries; its standard error against a bootstrap."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from stylora.evaluate.held_out import HeldOut, measure, precision_context, ratio_error
from stylora.forest import Sample, build_trie, chain, edges
from stylora.model.forest_model import ForestModel
from stylora.samples.clm import clm

WINDOWS = [np.random.default_rng(n).integers(3, 250, size=2 + 7 * n % 31, dtype=np.int32) for n in range(17)]
SAMPLES = [clm(window) for window in WINDOWS]
CHARACTERS = [1.5 * (len(window) - 1) for window in WINDOWS]


@pytest.fixture(scope="module")
def model(random_model, tokenizer) -> ForestModel:
    return ForestModel(random_model("Qwen3"), words=len(tokenizer))


@pytest.fixture(scope="module")
def reference(model) -> list[float]:
    """Summed cross-entropy of every window, one at a time, from the model's own logits."""
    with torch.no_grad():
        ids = [torch.tensor(window).long() for window in WINDOWS]
        return [cross_entropy(model.model(input_ids=w[None]).logits[0, :-1], w[1:], reduction="sum").item() for w in ids]


@pytest.mark.parametrize("tokens_at_once", [1, 33, 64, 8192])
def test_equals_a_plain_loop_over_windows(model, reference, tokens_at_once):
    found = measure(model, SAMPLES, CHARACTERS, tokens_at_once=tokens_at_once)
    assert found.nats == pytest.approx(reference, abs=1e-5 * max(reference))
    assert found.tokens.tolist() == [len(window) - 1 for window in WINDOWS]
    assert found.loss == pytest.approx(sum(reference) / sum(len(window) - 1 for window in WINDOWS), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


@pytest.mark.parametrize("seed", range(3))
def test_each_window_keeps_its_own_figure_in_any_order(model, reference, seed):
    order = np.random.default_rng(seed).permutation(len(WINDOWS))
    found = measure(model, [SAMPLES[i] for i in order], [CHARACTERS[i] for i in order], tokens_at_once=50)
    assert found.nats == pytest.approx([reference[i] for i in order], abs=1e-5 * max(reference))
    assert found.characters.tolist() == [CHARACTERS[i] for i in order]


def test_windows_of_equal_length_are_not_mixed_up(model):
    same = [clm(np.full(9, token, np.int32)) for token in (5, 6, 7, 5)]
    found = measure(model, same, [8] * 4).nats
    assert found[0] == found[3] and len({round(x, 4) for x in found}) == 3


def test_a_window_of_one_token_says_nothing(model):
    found = measure(model, [SAMPLES[3], clm(np.array([5], np.int32))], [9, 0])
    assert (found.nats[1], found.tokens[1], found.characters[1]) == (0, 0, 0)
    assert found.loss == pytest.approx(measure(model, SAMPLES[3:4], [9]).loss)


def weighted(n: int) -> Sample:
    """A chain that learns at some of its places, twice at one of them, with weights of all sizes."""
    draw = np.random.default_rng(100 + n)
    ids = draw.integers(3, 250, size=4 + 3 * n % 11)
    source = [len(ids) - 1, 1, 0, 1]
    return Sample(forest=chain(ids), edges=edges(source, draw.integers(3, 250, size=4), draw.choice([0.25, 1, 3], size=4)))


def one_at_a_time(model: ForestModel, sample: Sample) -> tuple[float, float]:
    """(nats, weight) of a chain, edge by edge, from the model's own logits."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor(sample.forest.ids).long()[None]).logits[0].double()
    columns = (sample.edges.source.tolist(), sample.edges.target.tolist(), sample.edges.weight.tolist())
    rows = list(zip(*columns, strict=True))
    return sum(-w * logits[s].log_softmax(-1)[t].item() for s, t, w in rows), sum(w for *_, w in rows)


@pytest.mark.parametrize("tokens_at_once", [1, 40, 8192])
def test_edges_count_by_their_weight(model, tokens_at_once):
    samples = [weighted(n) for n in range(9)]
    expected = [one_at_a_time(model, sample) for sample in samples]
    found = measure(model, samples, [1.0] * 9, tokens_at_once=tokens_at_once)
    assert found.nats == pytest.approx([nats for nats, _ in expected], rel=1e-4)
    assert found.tokens.tolist() == [weight for _, weight in expected]
    assert found.loss == pytest.approx(sum(nats for nats, _ in expected) / sum(weight for _, weight in expected), rel=1e-4)


@pytest.mark.parametrize("tokens_at_once", [1, 40, 8192])
@pytest.mark.parametrize("seed", range(2))
def test_tries_among_chains_count_as_the_chains_they_are_made_of(model, tokens_at_once, seed):
    """One system prompt, several conversations: a sample is a trie; its loss is that of its paths, each computed by itself."""
    paths = []
    for n in range(10):
        draw = np.random.default_rng(200 + n)
        prompt = draw.integers(3, 250, size=2 + n % 3).tolist()
        tails = [draw.integers(3, 250, size=(9, 1, 2)[n % 3] + n % 4).tolist() for m in range(1 + n % 3)]
        paths.append([
            Sample(forest=chain(prompt + tail), edges=edges([len(prompt) - 1, len(prompt + tail) - 1], [tail[0], 9], 0.5 + m))
            for m, tail in enumerate(tails)
        ])  # fmt: skip
    order = np.random.default_rng(seed).permutation(10)
    samples = [build_trie(paths[i]) for i in order]
    kinds = [sample.forest.is_chain for sample in sorted(samples, key=len)]
    assert sum(a is not b for a, b in zip(kinds[:-1], kinds[1:], strict=True)) > 3, "long and short ones of both kinds"
    expected = [np.sum([one_at_a_time(model, path) for path in paths[i]], axis=0) for i in order]
    found = measure(model, samples, np.arange(10), tokens_at_once=tokens_at_once)
    assert found.nats == pytest.approx([nats for nats, _ in expected], rel=1e-4)
    assert found.tokens == pytest.approx([weight for _, weight in expected])
    assert found.characters.tolist() == list(range(10))


def test_columns_come_back_from_json(model):
    found = measure(model, SAMPLES[:4], CHARACTERS[:4])
    again = HeldOut.from_json(json.loads(json.dumps(found.as_json())))
    assert (again.loss, again.error, again.loss_per_character) == (found.loss, found.error, found.loss_per_character)
    for name, column in vars(found).items():
        assert getattr(again, name).dtype == np.float64 and getattr(again, name).tolist() == column.tolist()


def test_the_model_is_left_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        measure(model, SAMPLES[:2], CHARACTERS[:2])
        assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_figures_by_token_and_by_character():
    found = HeldOut(nats=np.array([6.0, 2.0]), tokens=np.array([3, 1]), characters=np.array([6.0, 2.0]))
    assert found.loss == 2.0 and found.loss_per_character == 1.0
    assert found.perplexity == pytest.approx(math.e**2) and found.perplexity_per_character == pytest.approx(math.e)


def test_the_standard_error_is_that_of_a_bootstrap():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 256, size=80)
    totals = sizes * rng.normal(4, 0.5, size=80) + rng.normal(0, 10, size=80)
    draws = rng.integers(0, 80, size=(20_000, 80))
    spread = (totals[draws].sum(1) / sizes[draws].sum(1)).std()
    assert ratio_error(totals, sizes) == pytest.approx(spread, rel=0.05)


def test_the_standard_error_of_equal_windows_is_the_textbook_one():
    means = np.random.default_rng(1).normal(4, 1, size=50)
    assert ratio_error(means * 100, np.full(50, 100)) == pytest.approx(means.std(ddof=1) / math.sqrt(50))
    assert HeldOut(nats=means * 100, tokens=np.full(50, 100), characters=np.ones(50)).error == ratio_error(means * 100, np.full(50, 100))


def test_one_window_has_no_error():
    assert math.isnan(ratio_error(np.array([3.0]), np.array([1])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_precision_context(dtype):
    a = torch.randn(4, 4)
    with precision_context(torch.device("cpu"), dtype):
        assert (a @ a).dtype is dtype


@pytest.mark.parametrize("tokens_at_once", [1, 40, 8192])
def test_sharing_beginnings_changes_no_figure(model, tokens_at_once):
    """Of conversations that begin alike, also equal ones, trees and weights: as each of them by itself."""

    def said(*ids: int, weight: float = 1.0) -> Sample:
        return Sample(forest=chain([7, 8, 9, *ids]), edges=edges(np.arange(2, len(ids) + 2), ids, weight))

    tree = build_trie([said(40, 41), said(40, 42)])
    samples = [said(20, 21, 22), said(20, 21, 23), said(20, 21, 22), said(30, weight=0.25), tree, SAMPLES[2]]
    apart = measure(model, samples, [1.0] * len(samples))
    shared = measure(model, samples, [1.0] * len(samples), tokens_at_once=tokens_at_once, share_prefixes=True)
    assert shared.nats == pytest.approx(apart.nats, abs=1e-4) and shared.tokens.tolist() == apart.tokens.tolist()
