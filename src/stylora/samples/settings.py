"""The `data` section of a recipe: which files, what is held out, how text is mixed and cut, what of a conversation is learned.

Says what is wanted; reading, splitting, mixing and cutting are `store.py`, `windows.py` and `text.py`, and for conversations
`conversations.py` and `chat_data.py`. Knows no tokenizer and no base.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, SerializerFunctionWrapHandler

from stylora.corpus.clean import Cleaning
from stylora.errors import UserError

Paths = str | tuple[str, ...]
Share = Annotated[float, Field(ge=0, lt=1)]
_BOTH = {"format", "train", "validation", "seed"}
_TEXT = _BOTH | {
    "general", "general_lines", "general_validation", "general_ratio", "general_repeat", "window", "overlap", "min_window", "cleaning",
}  # fmt: skip
READ_BY: dict[str, set[str]] = {
    "novels": _TEXT, "text": _TEXT,
    "chat": _BOTH | {"max_length", "turns", "answers", "group_by", "fraction", "chat_template_kwargs"},
    "branches": _BOTH | {
        "chat_template_kwargs", "branches_per_sample", "min_branches_per_sample", "max_branches_per_sample", "max_seq_len",
        "batch_by_samples", "train_on_main",
    },
}  # fmt: skip
"""format -> the settings it reads"""


class Style(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One of several styles in a mix.

    train: files or folders of this style
    weight: how many times its tokens appear in an epoch: 0.5 is a fresh seeded half each epoch, 2 is everything twice
    """

    train: Paths
    weight: float = Field(default=1.0, gt=0)


class Data(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What is learned from: raw text or conversations.

    format: `novels`: files are books, cut into chapters where they have them; `text`: rows or passages (JSONL, Parquet), each of them
        a text of its own that no window runs across; `chat`: conversations (JSONL, JSON), of which the answers are learned;
        `branches`: trunks with several continuations (JSONL, JSON), which are learned
    train: files or folders, or (text) a mapping of style names to `{train, weight}`
    validation: what is held out, before any window is cut. A share (0..1) takes whole books (sources); of a single book its last
        chapters; of a single source of rows, rows by seed; of conversations whole ones by seed, equal rows and rows of one group
        together. A list names books or files, for chat files of conversations. 0 holds out nothing
    general: files or folders of ordinary text that keep the base from forgetting; None for none
    general_lines: is each line of general .txt files a passage of its own, as older recipes have them? Otherwise a file is one text
    general_validation: what of the general text is held out, as in `validation`; measures forgetting
    general_ratio: share of an epoch's training TOKENS that are general, 0 <= r < 1; 0 uses general text for validation only. Must be
        given with `general`, and only then. 0.05 to 0.1 is customary
    general_repeat: may a general window appear several times in an epoch when there is too little general text? Repeated text is
        learned by heart, so only when told
    window: longest training sample, in tokens; memory grows with it, at most the context of the base
    overlap: tokens repeated from the end of one window at the start of the next; they are trained twice, so 0 unless wanted
    min_window: shortest window kept by itself, in tokens, at most half a window; None takes an eighth of the window, at most 64. With
        little context little is learned. A shorter tail
        shares its tokens evenly with the window before it; none is lost
    cleaning: what is taken out of the text on its way in
    max_length: chat: longest conversation, in tokens; a longer one is refused and reported, never cut; None is the context of the base
    turns: chat: which answers of a conversation are learned, `all` or only the `last`
    answers: chat: what the learned answers are: `text`, whatever it says; `label`, one of a closed set; `json`, which is rewritten with
        sorted keys, and a row whose answer is no JSON is refused
    group_by: chat: the key of a row that names what it was made from (an alias in many wordings): rows of one group lie on one side of a
        split. None is the key `group`, where rows have it; rows without the key are groups of their own
    fraction: chat: share of the training rows that are used, 0 < f <= 1, for learning curves: by seed, a smaller share is part of a larger
        one, and what is held out stays the same
    chat_template_kwargs: chat, branches: variables for the base's chat template, such as `{enable_thinking: false}`
    branches_per_sample: branches: how many branches of a row an epoch reads at most; of more, others in every epoch, by seed
    max_branches_per_sample: branches: instead, a number drawn for every row and epoch, at most so many
    min_branches_per_sample: branches: and at least so many, where the row has them
    max_seq_len: branches: longest branch, in tokens; a row with a longer one is refused and reported, never cut
    batch_by_samples: branches: does `samples_per_step` count trunks? Otherwise it counts branches, and a step takes rows while they fit
    train_on_main: branches: is the trunk learned, too? That of a row without branches always is
    seed: of the split, the draws and the shuffle; runs with equal seeds see equal data
    """

    format: Literal["novels", "text", "chat", "branches"] = "novels"
    train: Paths | dict[str, Style]
    validation: Share | tuple[str, ...] = 0.05
    general: Paths | None = None
    general_lines: bool = False
    general_validation: Share | tuple[str, ...] = 0.05
    general_ratio: float | None = None
    general_repeat: bool = False
    window: int = Field(default=1024, ge=8)
    overlap: int = Field(default=0, ge=0)
    min_window: int | None = Field(default=None, ge=1)
    cleaning: Cleaning = Cleaning()
    max_length: int | None = Field(default=None, ge=2)
    turns: Literal["all", "last"] = "all"
    answers: Literal["text", "label", "json"] = "text"
    group_by: str | None = Field(default=None, min_length=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    chat_template_kwargs: dict[str, Any] = {}
    branches_per_sample: int = Field(default=8, ge=1)
    max_branches_per_sample: int | None = Field(default=None, ge=1)
    min_branches_per_sample: int = Field(default=1, ge=1)
    max_seq_len: int = Field(default=1024, ge=1)
    batch_by_samples: bool = False
    train_on_main: bool = False
    seed: int = Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Data:
        """What no single field can say. The mistakes are the user's, so they pass through pydantic as `UserError`."""
        idle = sorted(self.model_fields_set - READ_BY[self.format])
        if idle:
            expected = f"only settings that format `{self.format}` reads: {', '.join(sorted(READ_BY[self.format] - {'format'}))}"
            raise UserError(f"data.{idle[0]}", got="a value", expected=expected, do="remove it or change data.format")
        if self.format in ("chat", "branches") and isinstance(self.train, dict):
            rows = "conversations" if self.format == "chat" else "rows with main and branches"
            raise UserError("data.train", got="a mapping of styles", expected=f"files or folders of {rows}")
        if self.max_branches_per_sample is not None and "branches_per_sample" in self.model_fields_set:
            raise UserError("data.branches_per_sample", got="a value, beside data.max_branches_per_sample", expected="one of them")
        most = self.max_branches_per_sample
        if "min_branches_per_sample" in self.model_fields_set and most is None:
            expected = "data.max_branches_per_sample beside it"
            raise UserError("data.min_branches_per_sample", got="a value alone", expected=expected, do="set both, or neither")
        if most is not None and self.min_branches_per_sample > most:
            expected = f"at most data.max_branches_per_sample, {most}"
            raise UserError("data.min_branches_per_sample", got=str(self.min_branches_per_sample), expected=expected)
        if not self.train:
            raise UserError("data.train", got="nothing", expected="a file, a folder, a list of them, or a mapping of styles")
        if self.overlap >= self.window:
            raise UserError("data.overlap", got=f"{self.overlap} tokens", expected=f"less than data.window, {self.window} tokens")
        if self.min_window is not None and self.min_window > self.window // 2:
            half = f"at most half of data.window, {self.window // 2} tokens"
            raise UserError("data.min_window", got=f"{self.min_window} tokens", expected=half)
        check_ratio("data.general_ratio", self.general_ratio)
        if self.general is not None and self.general_ratio is None:
            raise UserError(
                "data.general_ratio", got="nothing, while data.general is given", expected="a share of tokens, such as 0.1",
                do="set it; 0 uses the general text for validation only",
            )  # fmt: skip
        if self.general is None and self.general_ratio:
            raise UserError(
                "data.general", got=f"nothing, while data.general_ratio is {self.general_ratio}", expected="general text",
                do="name a file or folder of ordinary text, or remove data.general_ratio",
            )  # fmt: skip
        return self

    @pydantic.model_serializer(mode="wrap")
    def _without_idle(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Written out with the settings of its format alone, so that a run's resolved recipe passes `_agree` again."""
        idle = "min_branches_per_sample" if self.max_branches_per_sample is None else "branches_per_sample"
        return {name: value for name, value in handler(self).items() if name in READ_BY[self.format] - {idle}}

    def styles(self) -> Iterator[tuple[str, list[str], float]]:
        """`(name, paths, weight)` of every style; a single unnamed one is called `style`."""
        if isinstance(self.train, dict):
            for name, style in self.train.items():
                yield name, as_list(style.train), style.weight
        else:
            yield "style", as_list(self.train), 1.0


def as_list(paths: Paths) -> list[str]:
    """One path or several, as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


def check_ratio(where: str, ratio: float | None) -> None:
    """Refuse a share of general text that leaves no room for the style. Raises UserError."""
    if ratio is not None and not 0 <= ratio < 1:
        raise UserError(
            where, got=f"{ratio}", expected="a share of at least 0 and below 1: at 1 there would be no style left to learn",
            do="try 0.1",
        )  # fmt: skip
