"""A local model that says passages in plain words: the MODEL, asked by its chat template, without the thoughts that some write first.

Knows no novels and no files, and takes no notice of what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.generate.decode import Row, decode, end_tokens
from stylora.generate.settings import Sampling
from stylora.generate.text import Writer
from stylora.model.device import choose_device, keep_freed_memory
from stylora.samples.conversations import BadConversation
from stylora.samples.questions import ask, said

from .open import open_model
from .plan import chat_format, open_tokenizer

TEXT = "{text}"
THOUGHTLESS = {"enable_thinking": False}  # for the templates that ask; others do not look at it
LONGEST = 3  # tokens of a paraphrase to one of the passage
MORE = 16  # tokens beside these


@dataclass(frozen=True, kw_only=True)
class Written:
    """text: what was written, without reasoning and the blanks around it; stopped: it ended by itself"""

    text: str
    stopped: bool


class Paraphraser:
    """A model opened once.

    model: MODEL, as every command takes it; prompt: what it is asked, with {text} where the passage goes; sampling: how it answers, but
        for the length
    Raises UserError where MODEL can't be opened, or has no chat template.
    """

    def __init__(
        self, model: str, *, prompt: str, sampling: Sampling, base: str | None = None, trust_remote_code: bool = False
    ) -> None:  # fmt: skip
        keep_freed_memory()
        self.prompt, self.sampling = prompt, sampling
        self._device = choose_device()
        opened = open_model(model, self._device, base=base, trust_remote_code=trust_remote_code)
        self._model, self._base = opened.model, opened.base
        self._form = chat_format(self._base.name, open_tokenizer(self._base.name), THOUGHTLESS)
        self._ends = end_tokens(self._model, self._base.tokenizer)

    def write(self, passages: Sequence[str], first: int) -> list[Written]:
        """A paraphrase of each. first: number of the first passage, which with the seed fixes what is drawn.

        Raises UserError for a passage that leaves no room in the model's context.
        """
        rows = [self._row(passage, number) for number, passage in enumerate(passages, first)]
        with precision_context(self._device.device, self._device.dtype):
            for _ in decode(self._model, rows, self.sampling, self._ends):
                pass
        return [Written(text=said(row.text), stopped=row.stopped == "stop") for row in rows]

    def _row(self, passage: str, number: int) -> Row:
        try:
            question = ask([{"role": "user", "content": self.prompt.replace(TEXT, passage)}], self._form)
        except BadConversation as error:
            raise UserError("--prompt", got=str(error), expected="what the chat template of the base takes") from error
        ids, context = question.ids.tolist(), self._base.context
        if len(ids) >= context:
            expected = f"at most {context - 1}, one less than the model's context"
            raise UserError("--prompt", got=f"{len(ids)} tokens with its passage", expected=expected, do="shorten it, or lower --max-chars")
        tokenizer = self._base.tokenizer
        longest = LONGEST * len(tokenizer(passage, add_special_tokens=False)["input_ids"]) + MORE
        return Row(
            ids=ids, limit=min(longest, context - len(ids)), random=np.random.default_rng([self.sampling.seed, number]),
            writer=Writer(tokenizer, ids, []),
        )  # fmt: skip
