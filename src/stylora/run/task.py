"""The task of a stage of conversations: the questions held out, how answers are made and judged, and what `predict` needs to know later.

`task.json` lies beside the adapter: kind of answers, system prompt, labels, schema, and the temperature that makes labels' probabilities
mean what they say, fitted on what was held out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stylora.errors import UserError
from stylora.evaluate.judging import Answered, errors
from stylora.evaluate.task import Examined, Examiner, Kind, load_metric
from stylora.evaluate.task_settings import LabelSets, Task, label_sets, read_schema
from stylora.generate.answers import Schema
from stylora.generate.decode import end_tokens
from stylora.model.base import Base
from stylora.model.forest_model import ForestModel
from stylora.recipe.recipe import Stage
from stylora.samples.chat import ChatFormat
from stylora.samples.chat_data import ChatData
from stylora.samples.conversations import Conversation
from stylora.samples.questions import Question, last_answer, question_of, reasons, said

from .folder import write_json, write_text

TASK, ERRORS = "task.json", "errors.jsonl"


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """What task.json says.

    answers: kind of the answers; system: the commonest system prompt of the training rows, "" for none
    labels: beginning of the input -> labels, for answers of a closed set; temperature: of labels' probabilities
    unknown: probability below which an answer is told as unknown
    json_schema: of JSON answers; chat_template_kwargs: as in training; max_new_tokens: of an answer
    reasoning: did any answer of training come with thoughts before it?
    """

    answers: Kind = "text"
    system: str = ""
    labels: dict[str, list[str]] = field(default_factory=dict)
    unknown: float = 0.0
    temperature: float = 1.0
    json_schema: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 256
    reasoning: bool = False

    @property
    def sets(self) -> LabelSets:
        """As they are scored."""
        return {name: tuple(labels) for name, labels in self.labels.items()}


def task_file(stage: Stage, rows: Iterable[Conversation]) -> TaskFile:
    """What a stage of conversations says of its task. rows: those it trains on. Raises UserError for a schema that can't be read."""
    task, data = stage.task or Task(), stage.data
    systems: Counter[str] = Counter()
    answers, reasoning = [], False
    for row in rows:
        first, number = row.messages[0], last_answer(row)
        systems[(first.get("content") or "") if first["role"] == "system" else ""] += 1
        if number is not None:
            answers.append((row, said(row.messages[number]["content"])))
            reasoning = reasoning or reasons(row.messages[number])
    sets = label_sets(task.labels, [answer for _, answer in answers]) if data.answers == "label" else {}
    every = {label for labels in sets.values() for label in labels}
    stray = [(row.origin, answer) for row, answer in answers if sets and answer not in every]
    if stray:
        where, answer = stray[0]
        raise UserError(
            where, got=f"the answer {answer!r}, as in {len(stray):,} of the training rows", expected="one of task.labels",
            do="correct the row, or add the label",
        )  # fmt: skip
    return TaskFile(
        answers=data.answers, system=systems.most_common(1)[0][0] if systems else "",
        labels={name: list(labels) for name, labels in sets.items()}, unknown=task.unknown, json_schema=read_schema(task.json_schema),
        chat_template_kwargs=data.chat_template_kwargs, max_new_tokens=task.max_new_tokens, reasoning=reasoning,
    )  # fmt: skip


def read_task(folder: Path) -> TaskFile | None:
    """Of a stage's folder; None where it was no stage of conversations. Raises UserError for a broken file."""
    path = folder / TASK
    if not path.is_file():
        return None
    try:
        return TaskFile(**json.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise UserError(str(path), got=f"a broken file ({error})", expected="what training wrote there", do="train it again") from error


def write_task(folder: Path, task: TaskFile) -> None:
    """Beside the adapter."""
    write_json(folder / TASK, asdict(task))


@dataclass(frozen=True, kw_only=True)
class TaskAtHand:
    """A stage's task while it trains. asks: how; questions: held out, those that every evaluation answers and `every` one of them"""

    told: TaskFile
    asks: Examiner
    questions: list[Question]
    every: list[Question]


def task_at_hand(
    stage: Stage, data: ChatData, form: ChatFormat, base: Base, *, packs: bool
) -> TaskAtHand | None:
    """Everything the task needs, checked before training. None for a stage without one: free answers, and nothing said of them.

    Raises what its parts raise.
    """
    task = stage.task if stage.task is not None or stage.data.answers == "text" else Task()
    if task is None:
        return None
    told = task_file(stage, data.train_rows)
    asks = examiner(told, form, base, packs=packs, metric=task.metric)
    every = held_out_questions(data, form, asks)
    return TaskAtHand(told=told, asks=asks, questions=some(every, task.rows, stage.data.seed), every=every)


def examiner(told: TaskFile, form: ChatFormat, base: Base, *, packs: bool, metric: str | None = None) -> Examiner:
    """Asks and judges as the task says. metric: the user's own. Raises UserError where that can't be imported, or the schema compiled."""
    ends, vocabulary = end_tokens(base.model, base.tokenizer), base.model.get_output_embeddings().weight.shape[0]
    return Examiner(
        kind=told.answers, form=form, tokenizer=base.tokenizer, ends=ends, context=base.context, sets=told.sets, packs=packs,
        schema=None if told.json_schema is None else Schema(told.json_schema, base.tokenizer, vocabulary=vocabulary, ends=ends),
        metric=None if metric is None else load_metric(metric), max_new_tokens=told.max_new_tokens, reasoning=told.reasoning,
    )  # fmt: skip


def held_out_questions(data: ChatData, form: ChatFormat, asks: Examiner) -> list[Question]:
    """The held-out conversations up to their last answer; one that calls a tool is none here.

    Raises UserError for an input that no label set claims.
    """
    found = [question for row in data.held_rows if (question := question_of(row, form)) is not None]
    if asks.kind == "label":
        asks.tries(found)
    broken = [question for question in found if asks.schema is not None and not asks.schema.accepts(question.expected or "")]
    if broken:
        raise UserError(
            broken[0].origin, got=f"an answer that is none of the schema's, as in {len(broken):,} of {len(found):,} held-out rows",
            expected="answers of task.json_schema", do="correct the row or the schema",
        )  # fmt: skip
    return found


def some(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """So many of them, drawn by the seed, in their order."""
    kept = np.random.default_rng(seed).permutation(len(questions))[:count]
    return [questions[i] for i in sorted(kept.tolist())]


def both_ways(asks: Examiner, model: ForestModel, questions: Sequence[Question], temperature: float) -> dict[str, Examined]:
    """`free`: as the model writes; `constrained`: held to labels or schema, where there is anything to hold to.

    temperature: of labels' probabilities
    """
    found = {"free": asks.examine(model, questions, constrain=False)}
    if asks.constrains():
        found["constrained"] = asks.examine(model, questions, constrain=True, temperature=temperature)
    return found


def write_errors(folder: Path, rows: Sequence[Answered], kind: Kind) -> None:
    """errors.jsonl: every wrong answer, in the order of the rows."""
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in errors(rows, kind)]
    write_text(folder / ERRORS, "".join(lines))
