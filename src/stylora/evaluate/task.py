"""What a model answers to the questions of a task, and how well: the answers, judged, with and without a constraint.

    label     every label scored on a tree (generate/labels.py), or written freely
    json      held to a schema while it is written, or written freely
    text      written freely

Takes a model in the state it is to be measured in. Knows no recipes and no files.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from stylora.errors import UserError
from stylora.generate.answers import Answer, Schema, answer_questions
from stylora.generate.labels import LabelTrie, label_trie, score_labels
from stylora.model.forest_model import ForestModel
from stylora.samples.chat import ChatFormat
from stylora.samples.conversations import BadConversation
from stylora.samples.questions import Question, answer_ids, said

from .calibration import calibration_error, fit_temperature, probabilities
from .judging import Answered, judge
from .task_settings import LabelSets, set_of

Kind = Literal["text", "label", "json"]
Metric = Callable[[list[dict[str, Any]]], "float | Mapping[str, float]"]
TAKEN = {  # by what `judge` and `_labels` say, and by losses
    "rows", "exact", "accuracy", "macro_f1", "sets", "calibration", "json_valid", "pair_precision", "pair_recall", "pair_f1",
    "answers", "loss", "style", "general",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Examined:
    """rows: the answers; metrics: what `judge` says of them; temperature: of labels' probabilities, fitted on these rows, None without"""

    rows: list[Answered]
    metrics: dict[str, Any]
    temperature: float | None = None


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """A task, ready to be asked: how answers are made and judged.

    form: of the base; ends: tokens that end an answer; context: longest input of the base, tokens; sets: beginning of the input -> labels
    schema: of JSON answers; metric: the user's own; max_new_tokens: of an answer; reasoning: do answers begin with thoughts?
    packs: was the base proved to keep branches of a tree apart?
    """

    kind: Kind
    form: ChatFormat
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    context: int
    sets: LabelSets
    schema: Schema | None = None
    metric: Metric | None = None
    max_new_tokens: int = 256
    reasoning: bool = False
    packs: bool = True

    def constrains(self) -> bool:
        """Is there anything to hold answers to? Thoughts are no JSON, so what begins with them is not held to a schema."""
        return self.kind == "label" or (self.schema is not None and not self.reasoning)

    def examine(
        self, model: ForestModel, questions: Sequence[Question], *, constrain: bool, temperature: float | None = None, batch_size: int = 32
    ) -> Examined:
        """Answer and judge questions that somebody has answered.

        constrain: labels only, or JSON of the schema only; temperature: of labels' probabilities, None fits it on these very rows
        Raises UserError for an input that no label set claims, and whatever answering raises.
        """
        if constrain and self.kind == "label":
            return self._labels(model, questions, temperature)
        given = self.write(model, questions, constrain=constrain, batch_size=batch_size)
        rows = [
            answered(question, each.text, each.confidence, label_set(self.sets, question) if self.kind == "label" else "")
            for question, each in zip(questions, given, strict=True)
        ]
        return Examined(rows=rows, metrics=self._judged(rows))

    def write(
        self, model: ForestModel, questions: Sequence[Question], *, constrain: bool, batch_size: int = 32,
        told: Callable[[int], None] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """The answer to each, written token by token, without reasoning. told: called with the number of answers a batch has given"""
        found = answer_questions(
            model.model, self.tokenizer, [question.ids for question in questions], ends=self.ends, max_new_tokens=self.max_new_tokens,
            schema=self.schema if constrain else None, batch_size=batch_size, packs=self.packs, told=told,
        )  # fmt: skip
        return [replace(each, text=said(each.text)) for each in found]

    def score(self, model: ForestModel, questions: Sequence[Question]) -> list[np.ndarray]:
        """float64 [L] each: log probability of every label of the question's set. Raises UserError for a question that is too long."""
        tries = self.tries(questions)
        for number, (question, trie) in enumerate(zip(questions, tries, strict=True), 1):
            if len(question.ids) + trie.longest > self.context:
                expected = f"at most {self.context - trie.longest} tokens, so that every label fits the model's context"
                raise UserError(f"question {number}", got=f"{len(question.ids)} tokens", expected=expected, do="shorten it")
        return score_labels(model, [question.ids for question in questions], tries, packs=self.packs)

    def tries(self, questions: Sequence[Question]) -> list[LabelTrie]:
        """The labels of each question's set. Raises UserError where the chat template does not write answers as they are."""
        found: dict[str, LabelTrie] = {}
        for question in questions:
            name = label_set(self.sets, question)
            if name not in found:  # behind an opened answer a label has the same tokens whatever was asked
                try:
                    found[name] = label_trie([answer_ids(question, label, self.form) for label in self.sets[name]])
                except BadConversation as error:
                    raise UserError(
                        "data.chat_template_kwargs", got=str(error), expected="labels that stand behind a question as they are",
                        do="set what the template asks for, as in {enable_thinking: false}",
                    ) from error  # fmt: skip
        return [found[label_set(self.sets, question)] for question in questions]

    def _labels(self, model: ForestModel, questions: Sequence[Question], temperature: float | None) -> Examined:
        scores = self.score(model, questions)
        names = [label_set(self.sets, question) for question in questions]
        known = [(row, self.sets[name].index(told)) for row, name, question in zip(scores, names, questions, strict=True)
                 if (told := question.expected or "") in self.sets[name]]  # fmt: skip
        fitted = fit_temperature([row for row, _ in known], [right for _, right in known]) if temperature is None else temperature
        rows = []
        for row, name, question in zip(scores, names, questions, strict=True):
            best = int(row.argmax())
            rows.append(answered(question, self.sets[name][best], float(probabilities(row, fitted)[best]), name))
        metrics = self._judged(rows)
        right = [each.got == each.expected.strip() for each in rows]
        raw = [float(probabilities(row).max()) for row in scores]
        metrics["calibration"] = {
            "temperature": fitted, "error": calibration_error([each.confidence for each in rows], right),
            "error_uncalibrated": calibration_error(raw, right),
        }  # fmt: skip
        return Examined(rows=rows, metrics=metrics, temperature=fitted)

    def _judged(self, rows: Sequence[Answered]) -> dict[str, Any]:
        found = judge(self.kind, rows, self.sets or None)
        if self.metric is not None:
            found |= own_figures(self.metric, rows)
        return found


def answered(question: Question, text: str, confidence: float, name: str) -> Answered:
    """An answer beside what was expected."""
    return Answered(
        origin=question.origin, input=question.input, expected=question.expected or "", got=text, confidence=confidence, label_set=name
    )


def label_set(sets: LabelSets, question: Question) -> str:
    """The set whose name the input begins with. Raises UserError where none does."""
    name = set_of(sets, question.input)
    if name is None:
        expected = "an input that begins with one of " + ", ".join(repr(each) for each in sets)
        raise UserError(question.origin or "input", got=f"{question.input[:40]!r}, which no label set claims", expected=expected)
    return name


def load_metric(name: str, where: str = "task.metric") -> Metric:
    """The function `package.module:function`, installed or in the working folder. Raises UserError where it is not there."""
    module, _, function = name.partition(":")
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(where, got=f"{name!r} ({error})", expected="a Python function that can be imported") from error
    finally:
        sys.path[:] = before
    if not callable(found):
        raise UserError(where, got=f"{name!r}, a {type(found).__name__}", expected="a function")
    return found


def own_figures(metric: Metric, rows: Sequence[Answered]) -> dict[str, float]:
    """What a user's metric says, by name; a single number is called as the function is.

    Raises UserError for anything else, and for a name that another figure has.
    """
    told = metric([{"input": row.input, "expected": row.expected, "got": row.got} for row in rows])
    name = getattr(metric, "__name__", "metric")
    figures = dict(told) if isinstance(told, Mapping) else {name: told}
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
            raise UserError("task.metric", got=f"{key}: {type(value).__name__}", expected=f"a number, or numbers by name, from {name}")
        if key in TAKEN:
            raise UserError("task.metric", got=f"a figure called {key}", expected="a name that is not taken already", do="rename it")
    return {str(key): float(value) for key, value in figures.items()}


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers among the metrics: what training logs and chooses the best adapter by."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and name != "rows"}
