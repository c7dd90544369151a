"""KL and its gradient in place against autograd in fp64; the gold token left out; exact zeros."""

from __future__ import annotations

import pytest
import torch

from stylora.model.divergence import divergence, divergence_, leave_out_, softmax


def pair(rows: int = 5, words: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, words) * 3, torch.randn(rows, words) * 3


def in_place(scores: torch.Tensor, reference: torch.Tensor, *, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL, its slope) of `divergence_`, which may take the reference's memory and nothing else."""
    own = scores.clone()
    model = softmax(own)
    p = model.p.clone()
    kl, pull = divergence_(own, model, reference.clone(), reverse=reverse)
    assert torch.equal(own, scores) and torch.equal(model.p, p)
    return kl, -pull


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_softmax_and_its_normaliser(shift):
    scores, _ = pair(words=20_000)
    found = softmax(scores + shift)
    exact = (scores + shift).double()
    assert torch.allclose(found.p.double(), exact.softmax(-1), rtol=1e-5, atol=1e-12)
    assert torch.allclose(found.normaliser.double(), exact.logsumexp(-1), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_value_and_slope(reverse):
    scores, reference = pair()
    exact = scores.double().requires_grad_()
    p, q = torch.distributions.Categorical(logits=exact), torch.distributions.Categorical(logits=reference.double())
    expected = torch.distributions.kl_divergence(*((p, q) if reverse else (q, p)))
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    for ours, theirs in zip(in_place(scores, reference, reverse=reverse), (expected, slope), strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    plain = divergence(scores.log_softmax(-1), reference.log_softmax(-1), reverse=reverse)
    assert torch.allclose(plain.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_equal_distributions_are_exactly_apart_by_nothing(reverse):
    scores, _ = pair()
    kl, slope = in_place(scores, scores, reverse=reverse)
    assert kl.abs().max() == 0 and slope.abs().max() == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_the_kl_of_nearly_equal_distributions_is_not_noise(reverse):
    """Scores that differ by 1e-3, KL 4e-7: the rounding of the normalisers alone would be as much."""
    scores, other = pair(rows=20, words=20_000)
    reference = (scores.double() + 3e-4 * other.double()).float()
    p, q = (torch.distributions.Categorical(logits=each.double()) for each in (scores, reference))
    expected = torch.distributions.kl_divergence(*((p, q) if reverse else (q, p)))
    kl, _ = in_place(scores, reference, reverse=reverse)
    assert 1e-7 < expected.mean() < 1e-6
    assert (kl.double() - expected).abs().mean() < 0.05 * expected.mean()


@pytest.mark.parametrize("reverse", [False, True])
def test_improbable_tokens_overflow_nothing(reverse):
    """Scores 300 apart: probabilities of 0 in float32 on either side."""
    scores, reference = torch.tensor([[0.0, 300.0, -300.0]]), torch.tensor([[300.0, 0.0, -300.0]])
    kl, slope = in_place(scores, reference, reverse=reverse)
    assert kl.item() == pytest.approx(300.0) and torch.isfinite(slope).all()


def test_without_the_gold_token_the_rest_is_shared_out_anew():
    scores, _ = pair(rows=3)
    gold = torch.tensor([7, -1, 0])
    left = leave_out_(scores.clone(), gold).softmax(-1)
    for row, token in enumerate(gold.tolist()):
        kept = [word for word in range(40) if word != token]
        assert torch.allclose(left[row, kept], scores[row, kept].softmax(-1))
        assert token < 0 or left[row, token] == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_a_gold_token_that_holds_nearly_all_hides_nothing(reverse):
    """It has all but 1e-13 of the mass; 1 - p would be 0 in float32. The rest differs as it did before."""
    scores, reference = pair(rows=1)
    expected = divergence(scores[:, 1:].log_softmax(-1), reference[:, 1:].log_softmax(-1), reverse=reverse)
    scores[:, 0], reference[:, 0] = 40.0, 40.0
    gold = torch.tensor([0])
    own, other = (leave_out_(each.clone(), gold) for each in (scores, reference))
    kl, slope = in_place(own, other, reverse=reverse)
    assert torch.allclose(kl, expected, rtol=1e-4) and slope[0, 0] == 0
