"""A base that stays in memory while the stack on it changes: for a chat, a server, a notebook.

    loaded = LoadedModel("runs/wuxia/instruct")
    loaded.weigh("style", 0.5)                 # half as much of one adapter
    loaded.swap("runs/letters/instruct")       # another stack; what both have in common is not read again
    with loaded.bare(): ...                    # the base alone, for as long as this lasts
    for branch, text in loaded.branches("第一章", ["晨，", "夜，"]): ...      # continuations of one text, decoded together

A stack that is refused leaves the one that is there, with its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from stylora.errors import UserError
from stylora.generate.settings import Sampling
from stylora.model.adapter import LORA_2D, check_linear, load_adapter, read_branches, strip
from stylora.model.base import Base, base_path, fingerprint, load_base
from stylora.model.device import Device, choose_device
from stylora.model.proofs import prove_base
from stylora.model.reference import as_reference
from stylora.model.rope_2d import install
from stylora.model.stack import activate, weigh
from stylora.model.stack_names import weights_of
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Opening
from stylora.samples.conversations import Message

from .branch_questions import Asked
from .branches import Ready, tasks_of
from .folder import adapter_hash, config_hash, read_object
from .open import Found, Layer, agreed, check_fingerprint, find_model


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """An adapter in memory. called: by PEFT; file: where it was read, with the hashes of its weights and its configuration then; branches:
    how those were laid out that it was trained on, None where it was trained on other data"""

    layer: Layer
    called: str
    file: tuple[Path, str, str]
    branches: Branches | None


def _layout(adapters: Sequence[_Loaded], where: str) -> Branches | None:
    """How branches are laid out on these adapters. Raises UserError where they stand at different positions."""
    return agreed({each.layer.name: each.branches for each in adapters if each.layer.weight}, where=where)


class LoadedModel:
    """A base and the stack that is on it now.

    base: with its tokenizer; found: what is on it; forced: what of it is not as it was in training
    """

    def __init__(
        self, name: str, device: Device | None = None, *, base: str | None = None, trust_remote_code: bool = False, force: bool = False
    ) -> None:
        """device: by default the best there is; the rest as for `open_model`, which also says what is raised.

        Only plain LoRA adapters are taken: what writes into the base's own weights can't be taken off again.
        """
        found = find_model(name, base=base, force=force)
        self.base: Base = load_base(
            found.base, device or choose_device(), trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
        )
        self.found = Found(name=found.base, base=found.base, load_in_4bit=found.load_in_4bit)
        self.forced: tuple[str, ...] = ()
        self._given = base
        self._fingerprint = fingerprint(self.base)  # adapters rename the base's parameters
        self._peft: PeftModel | None = None
        self._adapters: tuple[_Loaded, ...] = ()
        self._number = 0
        self._apart: bool | None = None  # does it read branches one after the other? None until it is asked for any
        self._put(found)

    @property
    def model(self) -> PeftModel | PreTrainedModel:
        """What to call: with the stack on it, in eval mode."""
        return self.base.model if self._peft is None else self._peft

    @property
    def layout(self) -> Branches | None:
        """How branches are laid out; None where no adapter was trained on any."""
        return _layout(self._adapters, self.found.name)

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each adapter's update, bottom to top."""
        return {each.layer.name: each.layer.weight for each in self._adapters}

    def swap(self, name: str, *, force: bool = False) -> None:
        """Put another stack in place of the one that is there.

        Raises UserError, and leaves everything as it was, where it can't be opened or belongs to another base.
        """
        found = find_model(name, base=self._given, force=force)
        if found.load_in_4bit != self.found.load_in_4bit:
            packed = ("a base in 4 bits", "a base in whole weights")
            raise UserError(name, got=packed[not found.load_in_4bit], expected=packed[found.load_in_4bit], do="open it by itself")
        self._put(found)

    def weigh(self, name: str, weight: float) -> None:
        """Set the factor of one adapter's update, in memory. Raises UserError for a name that none has, for an adapter that can't be
        weighted, and where those that are not left out stand at different positions."""
        weights_of(list(self.weights), {name: weight}, where=self.found.name)
        (chosen,) = [each for each in self._adapters if each.layer.name == name]
        assert self._peft is not None
        adapters = tuple(
            replace(each, layer=replace(each.layer, weight=weight)) if each is chosen else each for each in self._adapters
        )
        layout = _layout(adapters, self.found.name)
        with ExitStack() as undo:
            weigh(self._peft, chosen.called, weight)
            undo.callback(weigh, self._peft, chosen.called, chosen.layer.weight)
            install(self.base.model, layout)
            undo.pop_all()
        self._adapters = adapters
        self.found = replace(self.found, layers=tuple(each.layer for each in self._adapters), weighted=True)

    def branches(
        self, main: str | Sequence[Message], openings: Sequence[Opening], sampling: Sampling | None = None, *,
        limits: Sequence[int | None] | None = None, seeds: Sequence[int | None] | None = None, live: int = 64,
    ) -> Iterator[tuple[int, str]]:  # fmt: skip
        """Continue `main` in several ways at once: (number of the branch, text that it gains), as they come.

        main: a text, or messages; openings: how each branch begins, a prompt ("" for none), `Begun(text)`, or a question's messages
        limits: tokens of each branch at most; seeds: a draw of its own for each; None for those of `sampling`; live: advance together
        As the stack was trained on branches (`layout`), else isolated. Raises UserError for what can't be decoded, at once.
        """
        for name, given in (("limits", limits), ("seeds", seeds)):
            if given is not None and len(given) != len(openings):
                raise UserError(name, got=f"{len(given)} for {len(openings)} branches", expected="one for each of them")
        sampling, none = sampling or Sampling(), [None] * len(openings)
        asked = Asked(main=main if isinstance(main, str) else [*main], openings=openings, limits=limits or none, seeds=seeds or none,
                      where="branches")  # fmt: skip
        tasks, layout = tasks_of(self.found, [asked], sampling)
        if self._apart is None:
            with self.bare() as model:
                self._apart = not prove_base(model, words=len(self.base.tokenizer)).packs
        ready = Ready(model=self.model, base=self.base, layout=layout, apart=self._apart)
        return ((piece.branch, piece.text) for piece in ready.decode(tasks, sampling, live) if piece.text)

    @contextmanager
    def bare(self) -> Iterator[PreTrainedModel]:
        """The base alone: every adapter off."""
        if self._peft is None:
            yield self.base.model
            return
        with as_reference(self._peft, "base"):
            yield self.base.model

    def _put(self, found: Found) -> None:
        forced = self._check_base(found)
        with ExitStack() as undo:  # whatever ends it: a refusal, no more memory, Ctrl-C
            undo.callback(self._keep, self._peft, self._adapters)
            now = self._read(found.layers)
            install(self.base.model, _layout(now, found.name))
            undo.pop_all()
        self._keep(self._peft, now)
        self.found, self.forced = found, forced

    def _check_base(self, found: Found) -> tuple[str, ...]:
        """What was forced. Raises UserError for a MODEL of another base than the one in memory, unless forced."""
        forced = check_fingerprint(self.base, found, self._fingerprint)
        if found.fingerprint is not None or Path(base_path(found.base)).resolve() == Path(self.base.path).resolve():
            return forced
        if not found.force or not found.layers:
            expected = f"{self.base.name}, which is in memory"
            raise UserError(found.name, got=f"the base {found.base}", expected=expected, do="open it by itself")
        return (*forced, f"{self.base.name}: in place of {found.base}")

    def _read(self, layers: Sequence[Layer]) -> tuple[_Loaded, ...]:
        """An adapter in memory for each layer: one that is there already, else read from its file."""
        now: list[_Loaded] = []
        for layer in layers:
            file = (layer.folder.resolve(), adapter_hash(layer.folder), config_hash(layer.folder))
            taken = {each.called for each in now}
            old = next((each for each in self._adapters if each.file == file and each.called not in taken), None)
            now.append(self._load(layer, file) if old is None else replace(old, layer=layer))
            if layer.weight != 1:
                assert self._peft is not None
                check_linear([self._peft.peft_config[now[-1].called]])
        return tuple(now)

    def _load(self, layer: Layer, file: tuple[Path, str, str]) -> _Loaded:
        _check_removable(layer.folder)
        self._number += 1
        loaded = _Loaded(layer=layer, called=f"adapter{self._number}", file=file, branches=read_branches(layer.folder))
        self._peft = load_adapter(self.model, layer.folder, name=loaded.called)
        return loaded

    def _keep(self, peft: PeftModel | None, adapters: tuple[_Loaded, ...]) -> None:
        """Only these adapters stay, in this order and with their weights; the bare base where there are none. peft: that holds them"""
        names = [each.called for each in adapters]
        if peft is None or not names:
            strip(self.base.model)
            self._peft = None
        else:
            self._peft = peft
            peft.set_adapter(names[-1])  # the one whose configuration PEFT asks for must not be one that goes
            for name in [name for name in peft.peft_config if name not in names]:
                peft.delete_adapter(name)
            for name in names:  # updates are added in this order, as in a model opened anew
                peft.peft_config[name] = peft.peft_config.pop(name)
            activate(peft, trainable=None)
            for each in adapters:
                weigh(peft, each.called, each.layer.weight)
        self._adapters = adapters
        install(self.base.model, self.layout)
        self.model.eval()


def _check_removable(folder: Path) -> None:
    """Raises UserError for an adapter that would leave something behind in the base when it is taken off."""
    config, reason = read_object(folder / "adapter_config.json"), None
    if config.get("peft_type") not in ("LORA", LORA_2D):
        reason = f"an adapter of type {config.get('peft_type')}"
    elif config.get("bias", "none") != "none":
        reason = "an adapter that changes biases of the base"
    elif config.get("modules_to_save") or config.get("trainable_token_indices"):
        reason = "an adapter that replaces whole weights beside LoRA"
    if reason is not None:
        raise UserError(str(folder), got=reason, expected="plain LoRA, which can be taken off the base again")
