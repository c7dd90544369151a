"""Keys and values of trunks and their branches: what a trunk's branches have in common is read once and kept once.

    one row     trunk a b c │ branches 0 1 2 0 1 2 0 2 0 2 ...        a column more for each forward; branch 1 has stopped

A forward reads tokens of every branch that lives, in one row under a ready mask (column_mask.py); layers with a window are masked, too, and
keep all keys. What stopped leaves when that pays. `OwnCaches` reads the same for models that let tokens of one row see each other: every
branch in a row of its own, trunk and all. Knows models, no tokenizers and no sampling.

Relatives: Hydragen (arXiv 2402.05099) and the cascade attention of FlashInfer part attention to a shared prefix from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from stylora.model.base import decoder_of
from stylora.model.rope_2d import coordinates

from .column_mask import TRUNK, Places, column_mask
from .decode import last

Model = PreTrainedModel | PeftModel
DEAD = 0.25  # share of the keys that nobody reads any more, above which they leave: it costs as much as a forward's own copy of the keys


class Tail(NamedTuple):
    """Tokens that a branch goes on with.

    tree: number of its trunk; branch: its own number, which no branch of any tree shares; ids: int [T], at least one
    time: of the first; coordinate: the branch's second coordinate
    """

    tree: int
    branch: int
    ids: np.ndarray
    time: int
    coordinate: int = 0


class Caches(Protocol):
    """What is kept of the tokens that were read."""

    def plant(self, tree: int, trunk: np.ndarray) -> None:
        """Read a trunk, int [T]; an empty one is none."""

    def read(self, tails: Sequence[Tail]) -> Tensor:
        """float32 [N, V]: the logits behind the last token of each."""

    def drop(self, *, tree: int | None = None, branch: int | None = None) -> None:
        """Nobody goes on with this branch, or with anything on this tree."""


class SharedCache:
    """One row of keys for everything that lives. columnar: see column_mask.py"""

    def __init__(self, model: Model, *, columnar: bool = False) -> None:
        self.model, self.columnar = model, columnar
        self._cache = DynamicCache()  # without the configuration: every layer keeps all keys
        nothing = torch.empty(0, dtype=torch.int64, device=model.device)
        self._places = Places(nothing, nothing, nothing)
        self._counts: dict[tuple[int, int], int] = {}  # (tree, branch) -> its keys
        self._gone: list[tuple[int, int]] = []
        self._dead = 0

    @property
    def keys(self) -> int:
        """Tokens that are kept now, those that nobody reads any more included."""
        return len(self._places.time)

    def plant(self, tree: int, trunk: np.ndarray) -> None:
        """One causal forward without a mask, and without the head: nothing is drawn from a trunk."""
        self._sweep()
        if not len(trunk):
            return
        ids = torch.from_numpy(trunk.astype(np.int64)).to(self.model.device)
        own = DynamicCache()
        decoder_of(bare(self.model))(input_ids=ids[None], past_key_values=own, use_cache=True)
        if self.keys:
            _join(self._cache, own)
        else:
            self._cache = own
        time = torch.arange(len(ids), device=ids.device)
        self._note(Places(torch.full_like(time, tree), torch.full_like(time, TRUNK), time), {(tree, TRUNK): len(trunk)})

    def read(self, tails: Sequence[Tail]) -> Tensor:
        self._sweep()
        lengths = np.array([len(tail.ids) for tail in tails])
        ends = np.cumsum(lengths)
        first = np.array([[tail.tree, tail.branch, tail.time, tail.coordinate] for tail in tails]).T.repeat(lengths, axis=1)
        first[2] += np.arange(ends[-1]) - (ends - lengths).repeat(lengths)
        columns = np.concatenate([first, np.concatenate([tail.ids for tail in tails])[None]])
        tree, branch, time, coordinate, ids = torch.from_numpy(columns).to(self.model.device)
        own = Places(tree, branch, time)
        self._note(own, {(tail.tree, tail.branch): len(tail.ids) for tail in tails})
        mask = column_mask(own, self._places, self.model.config, self.model.dtype, columnar=self.columnar)
        with coordinates(bare(self.model), coordinate[None]):
            out = self.model(
                input_ids=ids[None], position_ids=time[None], attention_mask=mask, past_key_values=self._cache, use_cache=True,
                logits_to_keep=torch.from_numpy(ends - 1).to(ids.device),
            )  # fmt: skip
        return out.logits[0].float()

    def drop(self, *, tree: int | None = None, branch: int | None = None) -> None:
        gone = [each for each in self._counts if tree in (None, each[0]) and branch in (None, each[1])]
        self._gone += gone
        self._dead += sum(self._counts.pop(each) for each in gone)

    def _note(self, places: Places, counts: dict[tuple[int, int], int]) -> None:
        self._places = Places(*(torch.cat(pair) for pair in zip(self._places, places, strict=True)))
        for each, count in counts.items():
            self._counts[each] = self._counts.get(each, 0) + count

    def _sweep(self) -> None:
        """Let the keys go that nobody reads any more, once there are enough of them."""
        if self._dead <= DEAD * self.keys:
            return
        if self._counts:
            tree, branch, _ = self._places
            kept = torch.ones_like(tree, dtype=torch.bool)
            for gone_tree, gone_branch in self._gone:
                kept &= (tree != gone_tree) | (branch != gone_branch)
            index = kept.nonzero()[:, 0]
            _keep(self._cache, index)
            self._places = Places(*(column[index] for column in self._places))
        else:
            self._cache = DynamicCache()
            self._places = Places(*(column[:0] for column in self._places))
        self._gone, self._dead = [], 0


class OwnCaches:
    """Every branch in a row of its own, in whatever cache its model wants. There is no second coordinate."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._trunks: dict[int, np.ndarray] = {}
        self._caches: dict[tuple[int, int], Cache] = {}

    def plant(self, tree: int, trunk: np.ndarray) -> None:
        self._trunks[tree] = trunk

    def read(self, tails: Sequence[Tail]) -> Tensor:
        scores = []
        for tail in tails:
            cache = self._caches.get((tail.tree, tail.branch))
            ids = tail.ids if cache is not None else np.concatenate([self._trunks[tail.tree], tail.ids])
            row = torch.from_numpy(ids.astype(np.int64))[None].to(self.model.device)
            out = self.model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=last(row))
            self._caches[tail.tree, tail.branch] = out.past_key_values
            scores.append(out.logits[0, -1].float())
        return torch.stack(scores)

    def drop(self, *, tree: int | None = None, branch: int | None = None) -> None:
        for each in [each for each in self._caches if tree in (None, each[0]) and branch in (None, each[1])]:
            del self._caches[each]
        if branch is None and tree is not None:
            self._trunks.pop(tree, None)


def bare(model: Model) -> PreTrainedModel:
    """The causal language model itself, its adapters inside."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def _join(cache: DynamicCache, other: DynamicCache) -> None:
    """Put the keys of another one-row cache behind these."""
    for layer, more in zip(_filled(cache), _filled(other), strict=True):
        layer.keys = torch.cat([layer.keys, more.keys], dim=-2)
        layer.values = torch.cat([layer.values, more.values], dim=-2)


def _keep(cache: DynamicCache, index: Tensor) -> None:
    """Only the keys at these places stay."""
    for layer in _filled(cache):
        layer.keys = layer.keys.index_select(-2, index.to(layer.keys.device))
        layer.values = layer.values.index_select(-2, index.to(layer.values.device))


def _filled(cache: DynamicCache) -> list[Any]:
    """Its layers that hold keys [1, H, K, D] and values; some models share those of a layer with another."""
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
