"""Which adapters the three-way test is about, and the variants of the model that it compares.

    base       every adapter off
    style      those below on, the one on top off
    stack      all on, as MODEL has them
    instruct   the one on top on, those below off

A MODEL is a stack of two or more; the flags of older scripts name folders instead, which need not be stages of one run, or one adapter
alone, or a bare base: then fewer variants are left. Finds and switches; loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from peft import PeftModel

from stylora.errors import UserError
from stylora.generate.decode import Model
from stylora.model.base import same_base
from stylora.model.reference import as_reference
from stylora.model.rope_2d import one_dimensional
from stylora.model.stack import TOP, frozen_name, weigh

from .folder import adapter_hash, parent_stage, read_object
from .open import Found, Layer, find_model


@dataclass(frozen=True, kw_only=True)
class Subject:
    """found: the model; style: how many of its adapters, from the bottom, are the style; warnings: what is odd about it"""

    found: Found
    style: int
    warnings: tuple[str, ...] = ()

    @property
    def instructed(self) -> bool:
        """Is there an adapter on top of the style?"""
        return len(self.found.layers) > self.style


@dataclass(frozen=True, kw_only=True)
class OlderFlags:
    """What scripts of earlier days called the parts. base: as `--base`; lora: one adapter; style and instruct: one on the other"""

    base: str | None = None
    lora: str | None = None
    style: str | None = None
    instruct: str | None = None

    @property
    def given(self) -> bool:
        """Is any of them there?"""
        return any(each is not None for each in vars(self).values())


@dataclass(frozen=True, kw_only=True)
class Variant:
    """key: `base`, `style`, `stack` or `instruct`; name: for people; weights: of the adapters' updates, bottom to top"""

    key: str
    name: str
    weights: tuple[float, ...]


def refuse_idle(given: Mapping[str, bool]) -> None:
    """Raises UserError for the first flag that was given and that the test does not read. given: flag -> was it?"""
    for flag, there in given.items():
        if there:
            raise UserError(flag, got="a value, with --three-way", expected="none: held-out conversations are asked, once, of the stack",
                            do="leave it out; --held-out asks others")  # fmt: skip


def find_subject(models: Sequence[str], older: OlderFlags, *, base: str | None = None, force: bool = False) -> Subject:
    """The model of a MODEL argument, or of the older flags.

    Raises UserError for several MODELs, one of a single adapter, flags that exclude each other, and what `find_model` refuses.
    """
    if older.given:
        return _by_flags(models, older, base, force)
    if len(models) != 1:
        raise UserError("--three-way", got=f"{len(models)} MODELs", expected="one, a stack of adapters", do="measure one after the other")
    found = find_model(models[0], base=base, force=force)
    if len(found.layers) < 2:
        got = "one adapter" if found.layers else "no adapter"
        raise UserError(found.name, got=got, expected="a stack of at least two, a style below and instructions on top",
                        do="train a stage with `on`, or leave out --three-way")  # fmt: skip
    return Subject(found=found, style=len(found.layers) - 1)


def _by_flags(models: Sequence[str], older: OlderFlags, base: str | None, force: bool) -> Subject:
    if models:
        raise UserError("MODEL", got=models[0], expected="either a MODEL or the older flags", do="leave one of them out")
    if base is not None and older.base is not None:
        raise UserError("--base_model", got="a value beside --base, which is the same", expected="one of them")
    if (older.style is None) != (older.instruct is None):
        flag, other = ("--style_adapter", "--instruct_adapter")[:: 1 if older.style is not None else -1]
        raise UserError(flag, got=f"no {other} with it", expected="both", do="give one adapter alone as --lora_model")
    if older.lora is not None and older.style is not None:
        raise UserError("--lora_model", got="a value beside --style_adapter", expected="one adapter alone, or two on each other")
    base = base or older.base
    if older.style is not None and older.instruct is not None:
        return _on_each_other(_adapter(older.style, base, force), _adapter(older.instruct, base, force))
    if older.lora is not None:
        found = _adapter(older.lora, base, force)
        return Subject(found=found, style=len(found.layers))
    assert base is not None
    return Subject(found=replace(find_model(base, force=force), layers=(), stack=None), style=0)


def _adapter(name: str, base: str | None, force: bool) -> Found:
    found = find_model(name, base=base, force=force)
    if not found.layers:
        raise UserError(name, got="a model without an adapter", expected="a PEFT adapter folder, a stage or a checkpoint")
    return found


def _on_each_other(style: Found, instruct: Found) -> Subject:
    """The adapters of `style`, and the top one of `instruct` on them. Raises UserError where that was trained on others, unless forced."""
    ours, theirs = [adapter_hash(folder) for folder in style.adapters], _trained_on(instruct)
    warnings, forced = [], (*style.forced, *instruct.forced)
    if not theirs:
        warnings.append(f"{instruct.name} does not say what it was trained on: whether {style.name} lay below it is not known")
    elif ours != theirs:
        trouble = "an adapter that was trained on another style"
        if not instruct.force:
            raise UserError(instruct.name, got=trouble, expected=f"one that was trained on {style.name}",
                            do="give the style it was trained on, or use --force")  # fmt: skip
        forced = (*forced, f"{instruct.name}: {trouble}")
    if style.fingerprint and instruct.fingerprint and not same_base(style.fingerprint, instruct.fingerprint):
        raise UserError(instruct.name, got=f"an adapter of another base than that of {style.name}", expected="one base")
    own = ours == theirs == [adapter_hash(folder) for folder in instruct.adapters[:-1]] and not style.weighted
    below = instruct.layers[:-1] if own else style.layers
    return Subject(warnings=tuple(warnings), style=len(below), found=replace(
        instruct, layers=_told_apart((*below, instruct.layers[-1])), stack=instruct.stack if own else None,
        fingerprint=instruct.fingerprint or style.fingerprint,
        load_in_4bit=style.load_in_4bit or instruct.load_in_4bit, weighted=style.weighted or instruct.weighted, forced=forced,
    ))  # fmt: skip


def _told_apart(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """With numbers behind the names that more than one of them has."""
    names = [layer.name for layer in layers]
    return tuple(
        replace(layer, name=f"{layer.name}{number}") if names.count(layer.name) > 1 else layer for number, layer in enumerate(layers)
    )


def _trained_on(found: Found) -> list[str]:
    """Hashes of the adapters below the one on top as it was trained, bottom to top; none where nothing says it."""
    if len(found.layers) > 1:
        return [adapter_hash(folder) for folder in found.adapters[:-1]]
    stage = parent_stage(found.adapters[-1])
    if stage is None or not stage.stack.is_file():
        return []
    return [entry["hash"] for entry in read_object(stage.stack)["adapters"][:-1]]


def variants(subject: Subject) -> list[Variant]:
    """What is compared, the base first."""
    layers, style = subject.found.layers, subject.style
    weights = tuple(layer.weight for layer in layers)
    names = [layer.name for layer in layers]
    off = (0.0,) * len(layers)
    found = [Variant(key="base", name="base", weights=off)]
    if style:
        found.append(Variant(key="style", name=" + ".join(["base", *names[:style]]), weights=weights[:style] + off[style:]))
    if subject.instructed:
        found.append(Variant(key="stack", name=" + ".join(["base", *names]), weights=weights))
        found.append(Variant(key="instruct", name=" + ".join(["base", *names[style:]]), weights=off[:style] + weights[style:]))
    return found


@contextmanager
def switched(model: Model, found: Found, variant: Variant) -> Iterator[None]:
    """Inside, the model is that variant; afterwards it is as it was. Raises UserError for an adapter that can't be weighted."""
    if not isinstance(model, PeftModel):
        yield
        return
    if variant.key == "base":
        with as_reference(model, "base"):
            yield
        return
    called = [*map(frozen_name, range(len(found.layers) - 1)), TOP]
    changed = [
        (name, layer.weight, weight)
        for name, layer, weight in zip(called, found.layers, variant.weights, strict=True) if layer.weight != weight
    ]  # fmt: skip
    for name, _, weight in changed:
        weigh(model, name, weight)
    left = replace(found, layers=tuple(replace(layer, weight=w) for layer, w in zip(found.layers, variant.weights, strict=True)))
    branching = left.branches is not None and left.branches.rope_2d_ratio
    try:
        with nullcontext() if branching else one_dimensional(model):
            yield
    finally:
        for name, before, _ in changed:
            weigh(model, name, before)
