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


def check_names(names: Iterable[str], *, where: str, do: str) -> None:
    """Raises UserError for two adapters of one name: a weight or a switch would not know which of them is meant."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(where, got=f"two adapters called {name!r}", expected="a name each", do=do)
        seen.add(name)
