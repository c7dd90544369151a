"""A second rotary coordinate: the slowest pairs of the rotary embedding turn by the branch a token belongs to, the others by its time.

    pair (frequency)     0 (1.0)   1 (0.1)  |  2 (0.01)   3 (0.001)         rope_2d_ratio 0.5 of 4 pairs
    replace turns it by  time      time     |  coordinate                   trunk 0, branches 1 x stride, 2 x stride, ...
    add                  time      time     |  time + coordinate            trunk 0, branches 0, 1 x stride, ...

A module without weights stands in for the decoder's `rotary_emb`. What stood there is asked with `time` alone, so that whatever it makes of
long positions stays true, and gives cos and sin [B, T, D]; where a dim belongs to a chosen pair, ours takes the place of its. Which pair a
dim belongs to is read off the original's own output at position 1, for models lay them out in several ways: in halves, interleaved, over a
part of the head. That our formula is theirs is proved at install; models are taken by that proof, not by a list.

Rotary embedding: Su et al. 2021 (arXiv 2104.09864). Knows no forests, no adapters and no data.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.samples.branch_settings import Branches

from .base import decoder_of

VISIBLE = 0.05
"""rad: neighbours that are turned apart by less are hard to tell from each other"""
SAME = 1e-5
CHANGING = ("dynamic", "longrope")
"""rope types whose frequencies depend on how long a row is"""


class Rope2d(nn.Module):
    """Stands in for a rotary embedding. Same arguments, same output; `branch`, int64 [B, T], comes through `coordinates`.

    rotary: what stood there; kinds: the layer types it is asked for one by one, "" alone where it is asked once
    """

    def __init__(self, rotary: nn.Module, branches: Branches, kinds: list[str]) -> None:
        super().__init__()
        self.rotary, self.branches, self.kinds = rotary, branches, kinds
        self.branch: Tensor | None = None
        self.off = False
        self.fastest = 0.0
        for kind in kinds:
            pair, chosen, fastest = _layout(self, kind, branches.rope_2d_ratio)
            self.register_buffer(f"{kind}_pair", pair, persistent=False)
            self.register_buffer(f"{kind}_chosen", chosen, persistent=False)
            self.fastest = max(self.fastest, fastest)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """cos, sin [B, T, D] in the dtype of x. position_ids: int64 [B, T], time"""
        kind = layer_type or ""
        given = self.original(x, position_ids, kind)
        adds = self.branches.positions == "add"
        if self.off or (adds and self.branch is None):
            return given
        branch = torch.zeros_like(position_ids) if self.branch is None else self.branch
        assert branch.shape == position_ids.shape, (branch.shape, position_ids.shape)
        turned = getattr(self, f"{kind}_chosen").expand(*branch.shape, -1)
        if adds:  # at coordinate 0 the original's own numbers, not those that ours round to
            turned = turned & (branch != 0)[..., None]
        cos, sin = self.own(position_ids + branch if adds else branch, kind)
        return torch.where(turned, cos.to(given[0].dtype), given[0]), torch.where(turned, sin.to(given[1].dtype), given[1])

    def original(self, x: Tensor, position_ids: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """What stood there, asked for one layer type."""
        return self.rotary(x, position_ids, kind) if kind else self.rotary(x, position_ids)

    def own(self, position: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """cos, sin: float32 [B, T, D] of every pair by our formula. position: int64 [B, T]"""
        frequency = self.frequencies(kind)[getattr(self, f"{kind}_pair")]
        angle = position[..., None].float() * frequency
        scaling = getattr(self.rotary, f"{kind}_attention_scaling" if kind else "attention_scaling", 1.0)
        return angle.cos() * scaling, angle.sin() * scaling

    def frequencies(self, kind: str) -> Tensor:
        """float32 [pairs], rad per position, as they are now: they go where the model goes."""
        return getattr(self.rotary, f"{kind}_inv_freq" if kind else "inv_freq").float()


def _layout(rope: Rope2d, kind: str, ratio: float) -> tuple[Tensor, Tensor, float]:
    """(pair int64 [D], chosen bool [D], the fastest chosen frequency): which pair each dim of the output turns with."""
    frequency = rope.frequencies(kind)
    x = torch.zeros(1, 1, 1, device=frequency.device)
    cos, sin = rope.original(x, torch.ones(1, 1, dtype=torch.long, device=frequency.device), kind)
    angle = torch.atan2(sin[0, 0], cos[0, 0])  # at position 1 the frequency itself; the sine tells the slow ones, whose cosine is 1
    pair = (angle[:, None] - frequency[None, :]).abs().argmin(dim=1)
    turning = int((frequency > 0).sum())  # some models keep pairs that never turn
    slowest_first = frequency.argsort()[len(frequency) - turning :]
    carriers = slowest_first[: max(1, round(ratio * turning))]
    chosen = torch.zeros(len(frequency), dtype=torch.bool, device=frequency.device)
    chosen[carriers] = True
    return pair, chosen[pair], float(frequency[carriers].max())


# ------------------------------------------------------------------------------------------------- putting it in place


def install(model: PreTrainedModel, branches: Branches | None) -> float:
    """Give the model the positions of these branches in place of any others; its own at ratio 0, and for None.

    model: also a PeftModel. Returns the largest rotation between neighbouring branches, in rad; 0 where nothing is installed
    Raises UserError, and leaves the model its own positions, where it can't be proved that they are understood.
    """
    remove(model)
    if branches is None or branches.rope_2d_ratio == 0:
        return 0.0
    decoder = decoder_of(model)
    reason = _refusal(model, decoder)
    if reason is not None:
        raise _refused(branches, model, reason)
    rotary = decoder.rotary_emb
    assert isinstance(rotary, nn.Module)
    try:
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        kinds = sorted(set(model.config.layer_types)) if by_kind else [""]
        rope = Rope2d(rotary, branches, kinds)
        proved = all(_is_the_original(rope, kind, model.config.max_position_embeddings) for kind in kinds)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:  # it is built in another way
        raise _refused(branches, model, f"a rotary embedding of its own ({str(error).splitlines()[0][:80]})") from error
    if not proved:
        raise _refused(branches, model, "a rotary embedding whose angles are not frequency x position")
    decoder.rotary_emb = rope
    return branches.branch_stride * rope.fastest


def remove(model: nn.Module) -> None:
    """Give the model its own positions back."""
    for parent in [*model.modules()]:
        rotary = dict(parent.named_children()).get("rotary_emb")
        if isinstance(rotary, Rope2d):
            parent.rotary_emb = rotary.rotary


def installed(model: PreTrainedModel) -> Branches | None:
    """The branches whose positions the model has; None where it has its own."""
    rope = _rope(model)
    return None if rope is None else rope.branches


def radian(model: PreTrainedModel) -> int:
    """Coordinates so far apart turn the fastest pair that carries them by about 1 rad; 0 where none does."""
    rope = _rope(model)
    return 0 if rope is None else max(1, round(1 / rope.fastest))


def _rope(model: PreTrainedModel) -> Rope2d | None:
    rotary = getattr(decoder_of(model), "rotary_emb", None)
    return rotary if isinstance(rotary, Rope2d) else None


def _refusal(model: PreTrainedModel, decoder: nn.Module) -> str | None:
    """What of the model can't carry a second coordinate; None where the proof may decide."""
    config, rotary = model.config, getattr(decoder, "rotary_emb", None)
    if not isinstance(rotary, nn.Module):
        return "no rotary embedding of its decoder"
    of_images = hasattr(rotary, "mrope_section") or _has(getattr(config, "rope_parameters", None), "mrope_section")
    if of_images or config.get_text_config() is not config:
        return "positions of several dimensions, as models that read more than text have them"
    turning = [path for path, _ in decoder.named_buffers() if path.endswith("inv_freq")]
    if any(not path.startswith("rotary_emb.") for path in turning):
        return "more than one rotary embedding"
    kinds = getattr(rotary, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if any(each in str(kind) for each in CHANGING):
            return f"frequencies that change with the length of a row (rope type {kind})"
    return None


def _has(values: Any, key: str) -> bool:
    """Does a dict, or one inside it, have this key?"""
    return isinstance(values, dict) and (key in values or any(_has(value, key) for value in values.values()))


@torch.no_grad()
def _is_the_original(rope: Rope2d, kind: str, context: int) -> bool:
    """Is our formula, with time on every pair, what the original gives? Up to the last position of the context."""
    device = rope.frequencies(kind).device
    position = torch.tensor([sorted({0, 1, 2, 3, 7, context // 3, context // 2, context - 1})], device=device)
    theirs = rope.original(torch.zeros(1, 1, 1, device=device), position, kind)
    both = zip(rope.own(position, kind), theirs, strict=True)
    return all(ours.shape == each.shape and bool((ours - each).abs().max() <= SAME) for ours, each in both)


def _refused(branches: Branches, model: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        "branches.rope_2d_ratio", got=f"{branches.rope_2d_ratio:g}, on {type(decoder_of(model)).__name__} with {reason}",
        expected="a base whose rotary pairs can carry a coordinate", do="set it to 0, which tells branches apart by what they see alone",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- in use


@contextmanager
def coordinates(model: PreTrainedModel, branch: Tensor | None) -> Iterator[None]:
    """Inside, the chosen pairs carry these coordinates: int64 [B, T], as the call's `position_ids`. None: every token has coordinate 0, as
    outside. Changes nothing for a model with positions of its own."""
    rope = _rope(model)
    if rope is None:
        yield
        return
    before, rope.branch = rope.branch, branch
    try:
        yield
    finally:
        rope.branch = before


@contextmanager
def one_dimensional(model: nn.Module) -> Iterator[None]:
    """Inside, the model has its own positions, time alone, whatever is installed. model: any module around the rotary embedding"""
    ropes = [module for module in model.modules() if isinstance(module, Rope2d)]
    before = [rope.off for rope in ropes]
    try:
        for rope in ropes:
            rope.off = True
        yield
    finally:
        for rope, off in zip(ropes, before, strict=True):
            rope.off = off


def told(branches: Branches, turn: float) -> list[str]:
    """What is printed of the positions: how far neighbours are turned apart, and a warning where that is next to nothing.

    turn: rad, from `install`
    """
    if branches.rope_2d_ratio == 0:
        return ["branches stand at the same positions (rope_2d_ratio 0): what they see tells them apart"]
    lines = [f"neighbouring branches are {branches.branch_stride} positions apart, which turns their pairs by at most {turn:.3g} rad"]
    if turn < VISIBLE:
        lines.append(f"warning: below {VISIBLE} rad branches are hard to tell apart; raise branches.branch_stride or rope_2d_ratio")
    if turn > pi:
        lines.append("above 3.14 rad the fastest pair wraps: neighbours may look alike to it, the slower ones tell them apart")
    return lines
