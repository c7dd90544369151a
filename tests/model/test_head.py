"""The fused head against a few lines in fp64, at Qwen's vocabulary; chunk borders; CE with KL; memory; the model's own logits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from stylora.model import head as module
from stylora.model.head import Anchored, Edges, edge_and_anchor_loss, edge_loss, edge_nats, logits_by_model

QWEN = 151_936


def problem(rows: int, width: int, vocabulary: int, seed: int = 0, edges_per_row: int = 3):
    """(head, hidden, row, target, weight): several edges from most sources, weights of any size."""
    torch.manual_seed(seed)
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    row = torch.randint(0, rows, (rows * edges_per_row,)).sort().values
    return head, torch.randn(rows, width), row, torch.randint(0, vocabulary, row.shape), torch.rand(row.shape) * 2 + 0.01


def reference(head, hidden, row, target, weight):
    """Three lines of fp64: loss, d loss / d hidden, d loss / d head weight."""
    h, w = hidden.double().requires_grad_(), head.weight.detach().double().requires_grad_()
    scores = h @ w.T
    loss = (weight.double() * (scores.logsumexp(-1)[row] - scores[row, target])).sum()
    return loss.item(), *torch.autograd.grad(loss, (h, w))


def anchors_on(count: int, head, hidden, *, gold: bool, vocabulary: int = 50, **settings) -> Anchored:
    """Anchors on the first `count` rows of hidden states, with `gold` up to three on each, some of them without a gold token."""
    torch.manual_seed(count)
    held = torch.arange(count).repeat_interleave(torch.arange(count) % 3 + 1) if gold else torch.arange(count)
    chosen = torch.randint(0, vocabulary, held.shape)
    chosen[::4] = -1
    given = dict(beta=0.3, reverse=False, logits=head) | settings
    return Anchored(
        hidden=hidden[:count] + torch.randn(count, hidden.shape[1]), held=held, weight=torch.rand(held.shape) + 0.1,
        gold=chosen if gold else None, **given,
    )  # fmt: skip


def reference_with_anchors(head, hidden, edges: Edges, anchors: Anchored):
    """In fp64, anchor by anchor: ce, kl, d total / d hidden, d total / d head weight. The reference's logits have no gradient."""
    h, w = hidden.double().requires_grad_(), head.weight.detach().double().requires_grad_()
    scores, held = h @ w.T, anchors.hidden.double() @ head.weight.detach().double().T
    ce = (edges.weight.double() * (scores.logsumexp(-1)[edges.row] - scores[edges.row, edges.target])).sum()
    kl = torch.zeros((), dtype=torch.float64)
    for number, (u, weight) in enumerate(zip(anchors.held.tolist(), anchors.weight.double(), strict=True)):
        gold = -1 if anchors.gold is None else int(anchors.gold[number])
        words = [word for word in range(scores.shape[1]) if word != gold]
        p, q = (torch.distributions.Categorical(logits=one[words]) for one in (scores[u], held[u]))
        kl = kl + weight * torch.distributions.kl_divergence(*((p, q) if anchors.reverse else (q, p)))
    total = ce + anchors.beta * kl
    if not total.requires_grad:
        return ce.item(), kl.item(), torch.zeros_like(h), torch.zeros_like(w)
    return ce.item(), kl.item(), *torch.autograd.grad(total, (h, w))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.double() - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.fixture(scope="module")
def qwen_problem():
    assert 230 > module.CHUNK_ELEMENTS // QWEN, "two chunks"
    given = problem(230, 32, QWEN)
    return given, reference(*given)


@pytest.mark.parametrize("trains", [False, True])
def test_equals_fp64_at_qwens_vocabulary(trains, qwen_problem):
    (head, hidden, row, target, weight), (expected, slope, head_slope) = qwen_problem
    head.requires_grad_(trains)
    head.weight.grad = None
    hidden = hidden.clone().requires_grad_()
    loss = edge_loss(hidden, row, target, weight, head, QWEN, trains=trains)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert_close(hidden.grad, slope)
    if trains:
        assert_close(head.weight.grad, head_slope)
    else:
        assert head.weight.grad is None


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 16, 17, 1000])
def test_chunk_borders_change_nothing(rows_at_once, trains, monkeypatch):
    head, hidden, row, target, weight = problem(16, 8, 50, seed=rows_at_once)
    expected, slope, head_slope = reference(head, hidden, row, target, weight)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", rows_at_once * 50)
    widest = []
    head.register_forward_hook(lambda _m, _i, output: widest.append(output.shape[0]))
    head.requires_grad_(trains)
    hidden.requires_grad_()
    loss = edge_loss(hidden, row, target, weight, head, 50, trains=trains)
    (loss * 3).backward()  # what follows the loss scales its gradient
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert_close(hidden.grad / 3, slope)
    if trains:
        assert_close(head.weight.grad / 3, head_slope)
    chunks = -(-16 // rows_at_once)
    assert len(widest) == chunks * (1 + trains) and sum(widest) == 16 * (1 + trains), "a trained head is run twice"
    assert max(widest) == -(-16 // chunks), "rows are spread evenly"


def test_rows_without_an_edge_get_no_gradient():
    head, hidden, *_ = problem(4, 8, 50)
    hidden.requires_grad_()
    row, target, weight = torch.tensor([1, 1, 3]), torch.tensor([5, 6, 7]), torch.ones(3)
    edge_loss(hidden, row, target, weight, head, 50, trains=False).backward()
    assert hidden.grad[[0, 2]].abs().max() == 0 and hidden.grad[[1, 3]].abs().min(1).values.max() > 0


@pytest.mark.parametrize("trains", [False, True])
def test_no_edges_no_loss(trains):
    head, hidden, *_ = problem(1, 8, 50)
    empty = torch.empty(0, dtype=torch.long)
    hidden = hidden[:0].requires_grad_()
    loss = edge_loss(hidden, empty, empty, torch.empty(0), head, 50, trains=trains)
    loss.backward()
    assert loss.item() == 0.0 and hidden.grad.shape == (0, 8)


def test_unsorted_edges_are_our_own_mistake():
    head, hidden, _, target, weight = problem(2, 8, 50, edges_per_row=1)
    with pytest.raises(AssertionError, match="sorted by source"):
        edge_loss(hidden, torch.tensor([1, 0]), target, weight, head, 50, trains=False)


def test_half_precision_hidden_states_keep_their_dtype_and_a_float32_loss():
    head, hidden, row, target, weight = problem(16, 8, 50)
    expected, slope, _ = reference(head, hidden, row, target, weight)
    low = hidden.bfloat16().requires_grad_()
    loss = edge_loss(low, row, target, weight, head.bfloat16(), 50, trains=False)
    loss.backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(expected, rel=1e-2)
    assert (low.grad.double() - slope).norm() <= 2e-2 * slope.norm()


def test_edge_nats_are_cross_entropy():
    torch.manual_seed(0)
    logits, row, target = torch.randn(5, 50), torch.tensor([0, 0, 4, 2]), torch.tensor([1, 49, 0, 7])
    assert torch.allclose(edge_nats(logits, row, target), nn.functional.cross_entropy(logits[row], target, reduction="none"))


# --------------------------------------------------------------------------------------------------------- CE with KL


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize("count", [0, 1, 9, 16])
@pytest.mark.parametrize(("rows_at_once", "rows_in_a_tile"), [(1, 1), (5, 2), (5, 5), (1000, 3), (1000, 1000)])
def test_ce_and_kl_equal_fp64(rows_at_once, rows_in_a_tile, count, gold, reverse, trains, monkeypatch):
    """Several edges on most rows and none on some, anchors on all, some or none of them; any chunk."""
    head, hidden, row, target, weight = problem(16, 8, 50, seed=rows_at_once)
    edges = Edges(*(column[(row != 3) & (row != 15)] for column in (row, target, weight)))
    anchors = anchors_on(count, head, hidden, gold=gold, reverse=reverse)
    ce, kl, slope, head_slope = reference_with_anchors(head, hidden, edges, anchors)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", rows_at_once * 50)
    monkeypatch.setattr(module, "TILE_CPU", rows_in_a_tile * 50 // torch.get_num_threads())
    head.requires_grad_(trains)
    hidden.requires_grad_()
    found = edge_and_anchor_loss(hidden, edges, anchors, head, 50, trains=trains)
    assert [x.item() for x in found] == pytest.approx([ce + 0.3 * kl, ce, kl], rel=1e-5)
    assert all(x.dtype == torch.float32 and x.shape == () for x in found)
    assert [x.requires_grad for x in found] == [True, False, False]
    (found[0] * 3).backward()
    assert_close(hidden.grad / 3, slope)
    if trains:
        assert_close(head.weight.grad / 3, head_slope)


@pytest.mark.parametrize("trains", [False, True])
def test_anchors_without_edges(trains):
    head, hidden, *_ = problem(6, 8, 50)
    empty = torch.empty(0, dtype=torch.long)
    edges = Edges(empty, empty, torch.empty(0))
    anchors = anchors_on(2, head, hidden, gold=False)
    _, kl, slope, _ = reference_with_anchors(head, hidden, edges, anchors)
    hidden.requires_grad_()
    total, ce, found = edge_and_anchor_loss(hidden, edges, anchors, head, 50, trains=trains)
    total.backward()
    assert ce.item() == 0 and found.item() == pytest.approx(kl, rel=1e-5) and total.item() == pytest.approx(0.3 * kl, rel=1e-5)
    assert_close(hidden.grad, slope)
    assert hidden.grad[2:].abs().max() == 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gold", [False, True])
def test_a_model_that_is_its_reference_has_kl_0_and_the_gradient_of_ce(gold, reverse):
    head, hidden, row, target, weight = problem(16, 8, 50)
    anchors = anchors_on(3, head, hidden, gold=gold, reverse=reverse)
    same = replace(anchors, hidden=hidden[:3].clone())
    gradients = []
    for given in (same, None):
        rows = hidden.clone().requires_grad_()
        total, ce, kl = edge_and_anchor_loss(rows, Edges(row, target, weight), given, head, 50, trains=False)
        total.backward()
        assert kl.item() == 0 and total.item() == ce.item()
        gradients.append(rows.grad)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gold", [False, True])
def test_ce_and_kl_at_qwens_vocabulary(gold, reverse, qwen_problem):
    (head, hidden, row, target, weight), _ = qwen_problem
    head.requires_grad_(False)
    anchors = anchors_on(12, head, hidden, gold=gold, vocabulary=QWEN, reverse=reverse)
    edges = Edges(row, target, weight)
    ce, kl, slope, _ = reference_with_anchors(head, hidden, edges, anchors)
    hidden = hidden.clone().requires_grad_()
    found = edge_and_anchor_loss(hidden, edges, anchors, head, QWEN, trains=False)
    found[0].backward()
    assert [x.item() for x in found[1:]] == pytest.approx([ce, kl], rel=1e-5)
    assert_close(hidden.grad, slope)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gold", [False, True])
def test_logits_that_are_kept_for_their_own_backward_stay_as_they_are(gold, reverse):
    """tanh, which caps logits, needs its result again; in fp32 a tile would be that very memory."""
    head, hidden, row, target, weight = problem(16, 8, 50)
    edges, anchors = Edges(row, target, weight), anchors_on(9, head, hidden, gold=gold, reverse=reverse)
    capped = replace(anchors, logits=lambda states: 5 * head(states))
    gradients = []
    for trains in (False, True):  # the second by autograd alone
        rows = hidden.clone().requires_grad_()
        total, *_ = edge_and_anchor_loss(rows, edges, capped, lambda states: torch.tanh(head(states)), 50, trains=trains)
        total.backward()
        gradients.append(rows.grad.double())
    assert_close(*gradients)


def test_without_anchors_the_head_does_what_it_did(monkeypatch):
    """Full chunks, one call each, and nothing of KL is computed."""
    head, hidden, row, target, weight = problem(16, 8, 50)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 8 * 50)
    for name in ("divergence_", "divergence"):
        monkeypatch.delattr(module, name)
    seen = []
    head.register_forward_hook(lambda _m, _i, output: seen.append(len(output)))
    total, ce, kl = edge_and_anchor_loss(hidden, Edges(row, target, weight), None, head, 50, trains=False)
    assert seen == [8, 8] and kl.item() == 0 and total.item() == ce.item()


def test_the_reference_is_asked_once_per_anchored_row():
    head, hidden, row, target, weight = problem(16, 8, 50)
    seen = []

    def logits(states):
        seen.append(len(states))
        assert not torch.is_grad_enabled()
        return head(states)

    anchors = anchors_on(3, head, hidden, gold=True, logits=logits)
    for trains in (False, True):
        edge_and_anchor_loss(hidden, Edges(row, target, weight), anchors, head, 50, trains=trains)
    assert seen == [3, 3] and len(anchors.held) > 3


MEASURE = """
import json, torch
from pathlib import Path
from torch.nn import functional as F
from stylora.model.head import Anchored, Edges, edge_and_anchor_loss
torch.set_num_threads(1)
rows, width, vocabulary = 1024, 64, 151_936
head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
target = torch.randint(0, vocabulary, (rows,))
def peak():  # kB; ru_maxrss would start at the peak of the process that called us
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
def run(loss, rows, held):
    hidden = torch.randn(rows, width, requires_grad=True)
    loss(hidden, target[:rows], torch.randn(rows, width) if held else None).backward()
    return peak()
def ours(hidden, target, held):
    row, weight = torch.arange(len(hidden)), torch.full((len(hidden),), 1 / len(hidden))
    anchors = None if held is None else Anchored(
        hidden=held, held=row, weight=weight, gold=None, logits=torch.no_grad()(head), beta=0.1, reverse=False
    )
    return edge_and_anchor_loss(hidden, Edges(row, target, weight), anchors, head, vocabulary, trains=False)[0]
def plain(hidden, target, held):
    scores = head(hidden)
    loss = F.cross_entropy(scores, target)
    if held is None:
        return loss
    return loss + 0.1 * F.kl_div(scores.log_softmax(-1), head(held).log_softmax(-1), reduction="batchmean", log_target=True)
for loss in (ours, plain):
    run(loss, 2, True)  # the libraries' own buffers
model = peak()
print(json.dumps([run(loss, rows, held) - model for loss in (ours, plain) for held in (False, True)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_peak_memory_is_under_a_quarter_of_the_plain_loss():
    """A process of its own, from the least to the most: what comes later can only raise the peak further."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, encoding="utf-8", check=True)
    ours, ours_held, plain, plain_held = json.loads(run.stdout)
    assert plain > 1.2e6 and plain_held > 2.4e6, "the plain loss holds at least two [N, V] tensors of 622 MB, with KL four"
    assert ours < plain / 4 and ours_held < plain_held / 4, (ours, ours_held, plain, plain_held)


@pytest.mark.parametrize(("kind", "equal"), [("Granite", False), ("Gemma2", False), ("Qwen3", True), ("Gemma3Text", True)])
def test_logits_by_model_are_the_models(kind, equal, random_model):
    model = random_model(kind, attention="eager")
    ids = torch.arange(3, 20)[None]
    whole = model(input_ids=ids, use_cache=False).logits[0]
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
    assert torch.allclose(logits_by_model(model)(hidden), whole, atol=1e-6)
    assert torch.allclose(model.get_output_embeddings()(hidden), whole, atol=1e-6) == equal
    assert logits_by_model(model)(hidden.detach().requires_grad_()).requires_grad


def test_the_decoder_comes_back_also_after_an_exception(random_model):
    model = random_model("Granite")
    decoder, names = model.get_decoder(), [name for name, _ in model.named_modules()]
    with pytest.raises(RuntimeError):
        logits_by_model(model)(torch.randn(4, 31))  # one column short of the head
    assert model.get_decoder() is decoder
    logits_by_model(model)(torch.randn(4, 32))
    assert model.get_decoder() is decoder
    assert [name for name, _ in model.named_modules()] == names


def test_gradients_in_fp16_survive_the_division_by_a_whole_step():
    """With W of a large step an edge weighs 1e-8; fp16's smallest number is 6e-8. The loss scaler multiplies by 2^16 in the backward."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden, target, row = torch.randn(6, 16), torch.randint(0, 50, (6,)), torch.arange(6)
    gradients = []
    for dtype in (torch.float32, torch.float16):
        rows = hidden.to(dtype, copy=True).requires_grad_()
        module = torch.nn.Linear(16, 50, bias=False, dtype=dtype).requires_grad_(False)
        module.weight.data.copy_(head.weight.data)
        loss = edge_loss(rows, row, target, torch.full((6,), 1e-8), module, 50, trains=False)
        (loss * 2.0**26).backward()
        gradients.append(rows.grad.float())
    assert torch.allclose(gradients[1], gradients[0], rtol=0.02, atol=1e-3 * gradients[0].abs().max())


def test_gradients_of_anchors_in_fp16_survive_it_too():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 50, bias=False), torch.randn(6, 16)
    held, row = hidden + torch.randn(6, 16), torch.arange(6)
    gradients = []
    for dtype in (torch.float32, torch.float16):
        rows = hidden.to(dtype, copy=True).requires_grad_()
        low = torch.nn.Linear(16, 50, bias=False, dtype=dtype).requires_grad_(False)
        low.weight.data.copy_(head.weight.data)
        anchors = Anchored(
            hidden=held.to(dtype), held=row, weight=torch.full((6,), 1e-8), gold=None, logits=low, beta=0.1, reverse=False
        )
        edges = Edges(row[:0], row[:0], torch.empty(0))
        (edge_and_anchor_loss(rows, edges, anchors, low, 50, trains=False)[0] * 2.0**28).backward()
        gradients.append(rows.grad.float())
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[1], gradients[0], rtol=0.02, atol=1e-2 * gradients[0].abs().max())
