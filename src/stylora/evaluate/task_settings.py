"""The recipe's `task` section: what the answers of conversations are judged by. Imports no torch, knows no model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator

from stylora.errors import UserError

ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
LabelSets = dict[str, tuple[str, ...]]


OF_ANSWERS = {"labels": "label", "unknown": "label", "json_schema": "json"}
"""settings of a task that only one kind of answers has a use for, and which"""


class Task(BaseModel, frozen=True, extra="forbid"):
    """How answers are judged, beside their loss.

    labels: the closed set that answers come from, or a mapping `beginning of the input -> set` where there are several; None takes all
        different answers of the training rows. For `data.answers: label`
    unknown: probability; an answer that the model is less sure of is told as unknown by `predict`. 0 tells every answer
    json_schema: a JSON schema, or the file of one, that answers can be held to while they are written. For `data.answers: json`
    metric: a Python function of your own, `package.module:function`. It gets a list of {input, expected, got} and gives a number, or
        several by name
    rows: held-out rows that are answered at every evaluation in training, drawn by the data's seed; `stylora evaluate` answers all of them
    max_new_tokens: tokens; the longest answer that is written
    """

    labels: tuple[str, ...] | LabelSets | None = None
    unknown: float = Field(default=0.0, ge=0, lt=1)
    json_schema: str | dict[str, Any] | None = None
    metric: str | None = None
    rows: int = Field(default=200, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)

    @field_validator("labels")
    @classmethod
    def some_labels(cls, value: tuple[str, ...] | LabelSets | None) -> tuple[str, ...] | LabelSets | None:
        """A choice among at least two different ones."""
        for labels in [] if value is None else value.values() if isinstance(value, dict) else [value]:
            if len(set(labels)) != len(labels) or len(labels) < 2 or not all(label.strip() for label in labels):
                raise ValueError("at least two labels, none empty, none twice")
        return value

    @field_validator("metric")
    @classmethod
    def an_entry_point(cls, value: str | None) -> str | None:
        """As packages name them."""
        if value is not None and not ENTRY_POINT.fullmatch(value):
            raise ValueError("a Python function as package.module:function")
        return value

    def check(self, answers: str, where: str) -> None:
        """Raises UserError for settings that this kind of answers has no use for. where: of the section"""
        for name, kind in OF_ANSWERS.items():
            if name in self.model_fields_set and getattr(self, name) and answers != kind:
                raise UserError(
                    f"{where}.{name}", got=f"a value, while data.answers is {answers}", expected=f"data.answers: {kind}",
                    do=f"set data.answers, or remove {name}",
                )  # fmt: skip


def label_sets(labels: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None, answers: Iterable[str]) -> LabelSets:
    """Beginning of the input -> labels; "" for a single set. answers: of the training rows, where no labels are given

    Raises UserError where these are all the same: there is nothing to choose.
    """
    if labels is None:
        found = tuple(sorted(set(answers)))
        if len(found) < 2:
            raise UserError(
                "data.answers", got=f"label, and one answer in all training rows, {found[0]!r}" if found else "label, and no answer",
                expected="at least two different answers", do="add rows of other labels, or set task.labels",
            )  # fmt: skip
        return {"": found}
    return dict(labels) if isinstance(labels, Mapping) else {"": labels}


def set_of(sets: Mapping[str, tuple[str, ...]], text: str) -> str | None:
    """The set whose name the input begins with, the longest such name; None where none does."""
    return max((name for name in sets if text.startswith(name)), key=len, default=None)


def read_schema(schema: str | dict[str, Any] | None, where: str = "task.json_schema") -> dict[str, Any] | None:
    """The schema itself. Raises UserError where its file can't be read."""
    if not isinstance(schema, str):
        return schema
    try:
        found = json.loads(Path(schema).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(where, got=f"{schema}: {error}", expected="a file with a JSON schema, in UTF-8") from error
    if not isinstance(found, dict):
        raise UserError(where, got=f"{schema} with {type(found).__name__}", expected="a JSON object")
    return found
