"""Proofs at start, a few seconds on the real base: what the rest of the program relies on is shown, not assumed.

    adapters off = base                 the reference of KL and of every before/after figure
    fast head = the model's logits      else the head goes through the model's own forward
    two documents in one row = apart    else every row holds one chain
    a two-branch tree = its paths       likewise
    KL of a moved adapter > 0           else nothing would hold the model to its reference, and no loss would show it
    branches see what they should       by changing a token and looking where it shows; likewise that their coordinates reach the model

A leak is found exactly: the logits of document B may not change by one bit when document A before it changes. Positions and masks are
then compared with separate runs within the tolerance of the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.forest import Anchors, Forest, MicroBatch, Sample, build_trie, chain, edges, join, pack, whole_row
from stylora.samples.branch_settings import Branches, place

from .base import decoder_of
from .forest_model import ForestModel, to_tensors
from .head import logits_by_model
from .reference import as_reference
from .rope_2d import installed, radian

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}
"""Largest difference allowed, in standard deviations of the logits. A wrong mask or position differs by one or more."""


@dataclass(kw_only=True)
class Proofs:
    """head: "module" or "model"; packs: rows may hold several documents or trees; lines: what was proved, for the start-up print"""

    head: str = "module"
    packs: bool = True
    lines: list[str] = field(default_factory=list)


@torch.no_grad()
def prove_base(model: PreTrainedModel, *, words: int, length: int = 24) -> Proofs:
    """Prove the head and packing on a base (no adapters in it yet, or only fresh ones).

    words: real tokens of the tokenizer. Raises UserError where not even the model's own forward gives its logits from hidden states.
    """
    was_training = model.training
    model.eval()
    proofs = Proofs()
    ids = _tokens(words, 4, length)
    device = model.device
    head = model.get_output_embeddings()
    row = torch.from_numpy(ids[:1].astype(np.int64)).to(device)
    whole = model(input_ids=row, use_cache=False).logits[0]
    hidden = decoder_of(model)(input_ids=row, use_cache=False).last_hidden_state[0]
    if _close(head(hidden), whole):
        proofs.lines.append("the head module gives the model's logits: fast path")
    elif _close(logits_by_model(model)(hidden), whole):
        proofs.head = "model"
        proofs.lines.append("the model changes its logits after the head: its own forward is used")
    else:
        raise UserError(
            "base", got=type(model).__name__, expected="a decoder whose last hidden state gives the logits", do="use another base"
        )
    forest_model = ForestModel(model, words=words, head=proofs.head)
    reason = _refusal(forest_model, ids)
    proofs.packs = reason is None
    apart = "documents packed in one row and branches of a tree do not see each other"
    proofs.lines.append(apart if proofs.packs else f"one chain per row: {reason}")
    model.train(was_training)
    return proofs


def _refusal(model: ForestModel, ids: np.ndarray) -> str | None:
    """Why rows of several documents or trees are not exact on this model; None when they are."""
    a, b, c, d = (_sample(row) for row in ids)
    half = len(a) // 2
    try:
        first, second = _logits(model, join([a, c])), _logits(model, join([b, c]))
        shared = np.concatenate([ids[0][:half], ids[1][half:]])
        tree = _logits(model, build_trie([a, _sample(shared)]))
        other = _logits(model, build_trie([_sample(np.concatenate([ids[0][:half], ids[3][half:]])), _sample(shared)]))
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # a decoder that takes no ready mask
        return f"this model takes no ready mask ({str(error).splitlines()[0][:80]})"
    n = len(a)
    if not torch.equal(first[n:], second[n:]) or not torch.equal(tree[n:], other[n:]):
        return "this model's layers leak across documents in a row"
    alone_c, alone_a, alone_shared = _logits(model, c), _logits(model, a), _logits(model, _sample(shared))
    pairs = [(first[n:], alone_c), (first[:n], alone_a), (tree[:n], alone_a), (tree[n:], alone_shared[half:])]
    if not all(_close(together, apart) for together, apart in pairs):
        return "a document in a packed row differs from the same document alone"
    return None


def prove_adapters_off(model: PeftModel, before: Tensor, ids: Tensor) -> str:
    """With every adapter off the model is the base, bit for bit. before: logits of `ids` taken before adapters came."""
    with as_reference(model):
        after = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(before, after), "adapters off is not the base"
    return "adapters off = base, bit for bit"


def prove_kl(model: ForestModel, *, words: int) -> str:
    """The divergence sees the adapter: moved a little, it is above zero. The adapter is then put back, bit for bit.

    model: with `kl`, the adapter inside. The line says what the divergence is before the first step: 0 for a fresh adapter, unless its
        branches carry coordinates, which the reference does not.
    """
    ids = _tokens(words, 1, 24)[0]
    everywhere = Anchors(source=np.arange(len(ids), dtype=np.int32), weight=np.ones(len(ids), np.float32))
    sample = Sample(forest=chain(ids), edges=edges([0], [int(ids[1])]), anchors=everywhere)
    (batch,) = pack([sample], tokens_per_microbatch=len(ids))
    was_training = model.training
    model.eval()
    now = _divergence(model, batch)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]  # of the two matrices of LoRA either may be zero
    kept = [parameter.detach().clone() for parameter in learns]
    random = torch.Generator().manual_seed(0)
    for parameter in learns:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=random).to(parameter)
    moved = _divergence(model, batch)
    for parameter, values in zip(learns, kept, strict=True):
        parameter.data.copy_(values)
    model.train(was_training)
    assert np.isfinite(moved) and moved > 0, f"KL {moved} of an adapter that was moved"
    return f"KL sees the adapter: {now:.2g} now, {moved:.2g} when it is moved a little"


@torch.no_grad()
def _divergence(model: ForestModel, batch: MicroBatch) -> float:
    """Nats per anchor."""
    model(to_tensors(batch, model.model.device, anchor_divisor=float(batch.anchor_weight.sum())))
    return float(model.last_kl)


@torch.no_grad()
def prove_branches(model: ForestModel, branches: Branches, *, words: int) -> list[str]:
    """Two branches of a trunk see what `branches.visibility` says, to the bit, and are moved by their coordinates alone.

    model: as it will train, `install`ed and with `columnar` set. Gives a line for each thing proved. Raises UserError where the base reads
    masks or positions in another way.
    """
    assert model.columnar == (branches.visibility == "columnar") and place(installed(model.model)) == place(branches)
    was_training = model.training
    model.eval()
    two = _Two(model, words)
    try:
        reason = _columns(two) if model.columnar else _peers(two)
        if reason is None and branches.rope_2d_ratio:
            reason = _coordinates(two)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # a decoder that takes no ready mask
        reason = f"this model takes no ready mask ({str(error).splitlines()[0][:80]})"
    model.train(was_training)
    if reason is not None:
        raise UserError("base", got=f"{type(model.model).__name__}: {reason}", expected="a decoder that keeps branches apart",
                        do="use another base")  # fmt: skip
    seen = "their trunk and each other's earlier columns" if model.columnar else "their trunk and not each other"
    lines = [f"branches see {seen}, to the bit"]
    return [*lines, "a branch's coordinate moves that branch and nothing before it"] if branches.rope_2d_ratio else lines


class _Two:
    """Two branches of 6 tokens on a trunk of 8, about 1 rad apart. `two(changed=..., moved=...)`: [20, V] logits, where one token is
    another, or the first branch stands elsewhere."""

    trunk, length = 8, 6

    def __init__(self, model: ForestModel, words: int) -> None:
        self.model, self.words, self.radian = model, words, radian(model.model)
        self.ids = _tokens(words, 1, self.trunk + 2 * self.length)[0]

    def __call__(self, *, changed: int | None = None, moved: bool = False) -> Tensor:
        return _logits(self.model, Sample(forest=self.forest(changed, moved), edges=edges([], [])))

    def alone(self, number: int) -> Tensor:
        """[14, V]: one branch on the trunk, a chain."""
        own = range(self.trunk + number * self.length, self.trunk + (number + 1) * self.length)
        ids, branch = (column[[*range(self.trunk), *own]] for column in (self.ids, self.forest().branch))
        return _logits(self.model, Sample(forest=replace(chain(ids), branch=branch), edges=edges([], [])))

    def forest(self, changed: int | None = None, moved: bool = False) -> Forest:
        trunk, length = self.trunk, self.length
        ids, whole, first = self.ids.copy(), trunk + 2 * length, trunk + length
        if changed is not None:
            ids[changed] = (ids[changed] + 1) % self.words
        time = [*range(trunk), *range(trunk, first), *range(trunk, first)]
        branch = [0] * trunk + [(3 if moved else 1) * self.radian] * length + [2 * self.radian] * length
        end = [whole] * trunk + [first] * length + [whole] * length
        columns = (np.array(column, np.int32) for column in (time, branch, [0] * whole, end))
        return Forest(ids=ids, **dict(zip(("time", "branch", "root", "end"), columns, strict=True)))


def _peers(two: _Two) -> str | None:
    """Why branches are not as if each were alone; None where they are."""
    trunk, other = two.trunk, two.trunk + two.length
    before, after = two(), two(changed=trunk)
    if not torch.equal(before[:trunk], after[:trunk]) or not torch.equal(before[other:], after[other:]):
        return "its layers leak across branches"
    together = [before[:other], torch.cat([before[:trunk], before[other:]])]
    return None if all(_close(each, two.alone(i)) for i, each in enumerate(together)) else "a branch differs from the same branch alone"


def _columns(two: _Two) -> str | None:
    """Why branches do not see each other's earlier columns and nothing later; None where they do."""
    trunk, other, column = two.trunk, two.trunk + two.length, 2
    before, after = two(), two(changed=trunk + column)
    own, peer = slice(0, trunk + column), slice(other, other + column + 1)
    if not torch.equal(before[own], after[own]) or not torch.equal(before[peer], after[peer]):
        return "a token shows in an earlier or equal column"
    return "a branch does not see its peer" if torch.equal(before[other + column + 1], after[other + column + 1]) else None


def _coordinates(two: _Two) -> str | None:
    """Why a branch's coordinate is not what tells it apart; None where it is."""
    before, after = two(), two(moved=True)
    first = slice(two.trunk, two.trunk + two.length)
    if not torch.equal(before[: first.start], after[: first.start]):
        return "a branch's coordinate reaches its trunk"
    return "a branch's coordinate does not reach its layers" if torch.equal(before[first], after[first]) else None


def probe(model: PreTrainedModel, words: int) -> tuple[Tensor, Tensor]:
    """(ids [1, T], logits [1, T, V]) of the bare base, to be held against the adapted model later."""
    ids = torch.from_numpy(_tokens(words, 1, 24).astype(np.int64)).to(model.device)
    with torch.no_grad():
        return ids, model(input_ids=ids, use_cache=False).logits


def _tokens(words: int, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, words, size=(rows, length), dtype=np.int32)


def _sample(ids: Sequence[int] | np.ndarray) -> Sample:
    return Sample(forest=chain(ids), edges=edges([], []))


def _logits(model: ForestModel, sample: Sample) -> Tensor:
    """[T, V] of every token of a forest of one row. A chain goes the plain causal way, anything else under its mask."""
    batch = to_tensors(whole_row(sample.forest), model.model.device)
    return model.logits(model.hidden(batch)[0])


def _close(ours: Tensor, theirs: Tensor) -> bool:
    scale = theirs.float().std().clamp_min(1e-6)
    return bool(((ours.float() - theirs.float()).abs().max() / scale) <= TOLERANCE[theirs.dtype])
