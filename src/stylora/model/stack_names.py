"""Names and weights of the adapters of a stack. Imports no torch, knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stylora.errors import UserError, did_you_mean


def weights_of(names: Sequence[str], weights: Mapping[str, float], *, where: str) -> tuple[float, ...]:
    """A factor for each adapter, by its name; 1 where nothing is said. Raises UserError for a name that none of them has."""
    for name in weights:
        if name not in names:
            expected = f"one of {', '.join(names)}" if names else "an adapter, and there is none"
            raise UserError(where, got=f"a weight for {name!r}", expected=expected, do=did_you_mean(name, names))
    return tuple(weights.get(name, 1.0) for name in names)


def check_dora(dora: bool, *, folded: bool, dropout: float) -> None:
    """Raises UserError for a DoRA adapter on others that would be trained as another model than it is opened as.

    It divides by the length of W_base + dW, of which folding makes another one; and it scales what lies below, but not under dropout.
    """
    if dora and folded:
        raise UserError("adapter.fold_frozen", got="true, under a DoRA adapter", expected="the base whose length it divides by",
                        do="fold nothing, or use plain LoRA")  # fmt: skip
    if dora and dropout:
        raise UserError("adapter.dropout", got=f"{dropout:g}, of a DoRA adapter on others", expected="0, for it scales what lies below",
                        do="set dropout: 0, or use plain LoRA")  # fmt: skip


def check_names(names: Iterable[str], *, where: str, do: str) -> None:
    """Raises UserError for two adapters of one name: a weight or a switch would not know which of them is meant."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(where, got=f"two adapters called {name!r}", expected="a name each", do=do)
        seen.add(name)
