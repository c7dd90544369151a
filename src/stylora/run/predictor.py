"""A trained task inside an application: text in, answer out, with how sure the model is.

    from stylora import Predictor

    predictor = Predictor("runs/unified")
    predictor.predict(["[vehicle] 公交车"])[0].answer          # Transit Bus

What the task is, its system prompt, labels, schema and threshold come from the stage's task.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stylora.errors import UserError
from stylora.evaluate.calibration import probabilities
from stylora.evaluate.held_out import precision_context
from stylora.evaluate.task import label_set
from stylora.model.base import load_base
from stylora.model.device import choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import prove_base
from stylora.samples.conversations import BadConversation, Message
from stylora.samples.questions import Question, ask

from .open import find_model, put_on
from .plan import chat_format, open_tokenizer
from .task import TaskFile, examiner, read_task

TEXT = "{text}"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """input: as given; answer: the label, the JSON or the text; the fallback where it is not known
    value: parsed JSON where answers are JSON (None where it is none), else the answer
    confidence: calibrated probability of a label; else the geometric mean probability of the answer's tokens
    known: is the confidence at least the threshold, the answer whole, and JSON where answers are JSON?
    """

    input: str
    answer: str
    value: Any
    confidence: float
    known: bool


class Predictor:
    """A model and its task, opened once.

    model: MODEL, as every command takes it; base: replaces the base it names; system: the system prompt, None for that of training
    template: what the user's turn says, with {text} in it; threshold: confidence below which an answer is not known, None for the task's
    fallback: what is answered then; constrain: labels only, JSON of the task's schema only
    batch_size: questions at once, which changes speed and memory only
    Raises UserError where MODEL can't be opened, has no chat template, or the template of the turn has no {text}.
    """

    def __init__(
        self, model: str, *, base: str | None = None, system: str | None = None, template: str = TEXT, threshold: float | None = None,
        fallback: str = "unknown", constrain: bool = True, batch_size: int = 32, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        if TEXT not in template:
            raise UserError("template", got=repr(template), expected=f"a text with {TEXT} in it, where the input goes")
        keep_freed_memory()
        found = find_model(model, base=base)
        self.task = (None if found.stack is None else read_task(found.stack.parent)) or TaskFile()
        if system is not None:
            self.task = replace(self.task, system=system)
        self.template, self.fallback, self.batch_size = template, fallback, batch_size
        self.threshold = self.task.unknown if threshold is None else threshold
        self._device = choose_device()
        bare = load_base(
            found.base, self._device, trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
        )
        proofs = prove_base(bare.model, words=len(bare.tokenizer))
        put_on(bare, found)
        self._form = chat_format(found.base, open_tokenizer(found.base), self.task.chat_template_kwargs)
        self._asks = examiner(self.task, self._form, bare, packs=proofs.packs)
        self._model = ForestModel(bare.model, words=len(bare.tokenizer), head=proofs.head).eval()
        self.constrain = constrain and self._asks.constrains()

    def predict(self, inputs: Sequence[str], *, told: Callable[[int], None] | None = None) -> list[Prediction]:
        """An answer to each input, in their order. told: called with how many more are answered.

        Raises UserError for an input that no label set claims, and one that is longer than the model's context.
        """
        questions = [self._question(text, number) for number, text in enumerate(inputs, 1)]
        found: list[Prediction] = []
        with precision_context(self._device.device, self._device.dtype):
            if self.constrain and self.task.answers == "label":
                for start in range(0, len(questions), self.batch_size):
                    found += self._labels(questions[start : start + self.batch_size], inputs[start : start + self.batch_size])
                    if told is not None:
                        told(len(found) - start)
            elif questions:
                given = self._asks.write(self._model, questions, constrain=self.constrain, batch_size=self.batch_size, told=told)
                found = [
                    self._prediction(text, each.text, each.confidence, whole=each.stopped)
                    for text, each in zip(inputs, given, strict=True)
                ]
        return found

    def _labels(self, questions: Sequence[Question], inputs: Sequence[str]) -> list[Prediction]:
        found = []
        for text, question, scores in zip(inputs, questions, self._asks.score(self._model, questions), strict=True):
            share = probabilities(scores, self.task.temperature)
            best = int(share.argmax())
            found.append(self._prediction(text, self.task.labels[label_set(self._asks.sets, question)][best], float(share[best])))
        return found

    def _question(self, text: str, number: int) -> Question:
        messages: list[Message] = [{"role": "system", "content": self.task.system}] if self.task.system else []
        try:
            turn: Message = {"role": "user", "content": self.template.replace(TEXT, text)}
            return ask([*messages, turn], self._form, origin=f"input {number}", reasoning=self.task.reasoning)
        except BadConversation as error:
            raise UserError(f"input {number}", got=str(error), expected="what the chat template of the base takes") from error

    def _prediction(self, text: str, answer: str, confidence: float, *, whole: bool = True) -> Prediction:
        """whole: it ended by itself; what was cut at the task's max_new_tokens is no answer"""
        known = whole and confidence >= self.threshold
        value: Any = answer
        if self.task.answers == "json":
            try:
                value = json.loads(answer)
            except json.JSONDecodeError:
                value, known = None, False
        if not known:
            answer = self.fallback
        return Prediction(input=text, answer=answer, value=value if known else None, confidence=confidence, known=known)
