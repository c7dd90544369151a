"""The recipe's `adapter` section. Imports no torch, knows no model: adapter.py carries it out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

OF_STACK = {"path", "frozen", "names", "weights", "fold_frozen"}
"""keys that say what an adapter goes on with and lies on; the others are its own shape"""


class Adapter(BaseModel, frozen=True, extra="forbid"):
    """One LoRA adapter.

    path: folder of a saved PEFT adapter to train on, instead of a fresh one; what else is said here is then said there
    frozen: folders of saved PEFT adapters below it, bottom to top, that work but do not learn; `on` fills it from earlier stages
    names: of the frozen ones, bottom to top, where those of their stages or folders would not tell them apart
    weights: factors of the frozen ones' updates by name, {style: 0.7}; 1 for those not named
    fold_frozen: add the frozen ones to the base's weights in memory: faster, rounded where the base is not fp32; not for `kl.reference:
        base`, which would see them, nor for a base in 4 bits
    r: rank, columns of A and B; more can learn more and costs more memory. 16 suits a style
    alpha: scale, the update is multiplied by alpha / r; twice the rank is customary
    dropout: share of the adapter's inputs zeroed in training; 0 makes runs independent of how samples are batched
    targets: `all-linear` (every linear layer but the head) or names of modules as PEFT matches them, e.g. [q_proj, v_proj]
    rslora: scale by alpha / sqrt(r), which keeps large ranks learning
    dora: weight-decomposed LoRA; better at small ranks, slower
    """

    path: str | None = None
    frozen: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    weights: dict[str, FiniteFloat] = {}
    fold_frozen: bool = False
    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"
    rslora: bool = False
    dora: bool = False

    @field_validator("targets", mode="before")
    @classmethod
    def one_name(cls, value: object) -> object:
        """A single module name stands for a list of one."""
        return [value] if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="after")
    def one_source(self) -> Adapter:
        """A saved adapter has its own rank and targets; a second word on them would have no reader."""
        more = sorted(self.model_fields_set - OF_STACK)
        if self.path is not None and more:
            raise ValueError(f"{', '.join(more)}: comes from the adapter in `path`; remove one of them")
        return self

    @model_serializer(mode="wrap")
    def without_idle(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Written out so that it passes `one_source` again."""
        return {key: value for key, value in handler(self).items() if self.path is None or key in OF_STACK}
