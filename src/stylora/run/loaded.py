"""A base that stays in memory while the stack on it changes: for a chat, a server, a notebook.

    loaded = LoadedModel("runs/wuxia/instruct", choose_device())
    loaded.weigh("style", 0.5)                 # half as much of one adapter
    loaded.swap("runs/letters/instruct")       # another stack; what both have in common is not read again
    with loaded.bare(): ...                    # the base alone, for as long as this lasts

A stack that is refused leaves the one that is there, with its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from peft import PeftModel
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.model.adapter import check_linear, load_adapter, strip
from stylora.model.base import Base, load_base
from stylora.model.device import Device
from stylora.model.reference import as_reference
from stylora.model.stack import activate, weigh
from stylora.model.stack_names import weights_of

from .folder import adapter_hash
from .open import Found, Layer, check_fingerprint, find_model


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """An adapter in memory. called: by PEFT; hash: of its file when it was read"""

    layer: Layer
    called: str
    hash: str


class LoadedModel:
    """A base and the stack that is on it now.

    base: with its tokenizer; found: what is on it; forced: what of it is not as it was in training
    """

    def __init__(
        self, name: str, device: Device, *, base: str | None = None, trust_remote_code: bool = False, force: bool = False
    ) -> None:
        """Raises what `open_model` raises."""
        found = find_model(name, base=base, force=force)
        self.base: Base = load_base(
            found.base, device, trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
        )
        self.found = Found(name=found.base, base=found.base, load_in_4bit=found.load_in_4bit)
        self.forced: tuple[str, ...] = ()
        self._peft: PeftModel | None = None
        self._adapters: tuple[_Loaded, ...] = ()
        self._number = 0
        self._put(found)

    @property
    def model(self) -> PeftModel | PreTrainedModel:
        """What to call: with the stack on it, in eval mode."""
        return self.base.model if self._peft is None else self._peft

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each adapter's update, bottom to top."""
        return {each.layer.name: each.layer.weight for each in self._adapters}

    def swap(self, name: str, *, force: bool = False) -> None:
        """Put another stack in place of the one that is there.

        Raises UserError, and leaves everything as it was, where it can't be opened or belongs to another base.
        """
        found = find_model(name, force=force)
        if found.load_in_4bit != self.found.load_in_4bit:
            packed = ("a base in 4 bits", "a base in whole weights")
            raise UserError(name, got=packed[not found.load_in_4bit], expected=packed[found.load_in_4bit], do="open it by itself")
        self._put(found)

    def weigh(self, name: str, weight: float) -> None:
        """Set the factor of one adapter's update. Raises UserError for a name that none has, and for an adapter that can't be weighted."""
        weights_of(list(self.weights), {name: weight}, where=self.found.name)
        self._put(replace(self.found, layers=tuple(
            replace(layer, weight=weight) if layer.name == name else layer for layer in self.found.layers
        )))  # fmt: skip

    @contextmanager
    def bare(self) -> Iterator[PreTrainedModel]:
        """The base alone: every adapter off."""
        if self._peft is None:
            yield self.base.model
            return
        with as_reference(self._peft, "base"):
            yield self.base.model

    def _put(self, found: Found) -> None:
        forced = check_fingerprint(self.base, found)
        kept = {(each.layer.folder, each.hash): each for each in self._adapters}
        there = self._peft
        now: list[_Loaded] = []
        try:
            for layer in found.layers:
                hash = adapter_hash(layer.folder)
                old = kept.get((layer.folder, hash))
                if old is None:
                    self._number += 1
                    old = _Loaded(layer=layer, called=f"adapter{self._number}", hash=hash)
                    self._peft = load_adapter(self.model, layer.folder, name=old.called)
                assert self._peft is not None
                if layer.weight != 1:
                    check_linear([self._peft.peft_config[old.called]])
                now.append(replace(old, layer=layer))
        except UserError:
            self._take_off({each.called for each in self._adapters}, there)
            raise
        self._adapters = tuple(now)
        self._take_off({each.called for each in now}, self._peft)
        for each in now:
            assert self._peft is not None
            weigh(self._peft, each.called, each.layer.weight)
        self.found, self.forced = found, forced
        self.model.eval()

    def _take_off(self, keep: set[str], peft: PeftModel | None) -> None:
        """Only the adapters in `keep` stay; the bare base where there are none. peft: that holds them"""
        if not keep or peft is None:
            strip(self.base.model)
            self._peft = None
            return
        for name in [name for name in peft.peft_config if name not in keep]:
            peft.delete_adapter(name)
        self._peft = peft
        activate(peft, trainable=None)
