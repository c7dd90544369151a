"""What the three-way test asks, what answers are expected to look like, and the style they are held against.

    asked      the recipe of --data; else that of the adapter on top; else the built-in instructions, which nobody has answered
    style      the last stage of text in that recipe; else that of the adapter below

Opens no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stylora.errors import UserError, did_you_mean
from stylora.evaluate.answer_shape import AnswerShape, learn_shape
from stylora.evaluate.instructions import INSTRUCTIONS
from stylora.evaluate.voice import Voice
from stylora.recipe.recipe import Recipe, Stage, load_recipe
from stylora.samples.chat_data import ChatData
from stylora.samples.conversations import BadConversation, Conversation, read_conversations
from stylora.samples.questions import Question, ask, last_answer, question_of, said
from stylora.samples.settings import as_list

from .evaluation_data import EvaluationData, HeldOutText, measured_on
from .folder import parent_stage
from .plan import chat_format, open_tokenizer
from .three_way_models import Subject

LONGEST = 512  # tokens of an answer, unless more are asked for
TYPICAL = 80  # characters of an answer to a built-in instruction that are scored


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions of all variants.

    source: where they are from, for people; kinds: of each question, None where its row has none
    shape: of training's answers; held_out: the questions with the answers that are right; both None for the built-in instructions
    branches: a conversation that is a tree, None where there is none; learned: how many of them an adapter was trained on, None where
        its rows can't be read
    typical: characters of an answer that are scored for style, and tokens, about as many; max_new_tokens: of an answer
    """

    source: str
    questions: list[Question]
    kinds: list[str | None]
    typical: int
    tokens: int
    max_new_tokens: int
    shape: AnswerShape | None = None
    held_out: HeldOutText | None = None
    branches: str | None = None
    learned: int | None = 0


@dataclass(frozen=True, kw_only=True)
class Yardsticks:
    """asked: as a recipe of one stage, of conversations; style: likewise, of text; None where nobody says it

    file: of conversations that are asked instead of those the recipe holds out; trained: recipes of the adapters, one stage each
    """

    asked: Recipe | None
    style: Recipe | None
    file: Path | None = None
    trained: list[Recipe] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def choose_yardsticks(subject: Subject, data: Path | None, stage: str | None, held_out: Path | None) -> Yardsticks:
    """Which recipes say what is asked and what the style is.

    data: a recipe that says it instead; stage: of conversations, in `data`; held_out: conversations to ask instead of those held out
    Raises UserError for a top that was not trained on conversations, an unknown stage, and `held_out` without a recipe.
    """
    own = [recipe for layer in reversed(subject.found.layers) if (recipe := _recipe_of(layer.folder)) is not None]
    top = _recipe_of(subject.found.adapters[-1]) if subject.instructed else None
    if top is not None and top.stages[0].data.format != "chat":
        raise UserError(subject.found.name, got=f"data.format {top.stages[0].data.format} at its top", expected="chat, for it is to answer",
                        do="name a stack whose last stage was trained on conversations")  # fmt: skip
    given = [] if data is None else _single(load_recipe(data))
    if stage is not None:
        given = _only(given, stage)
    asked = next((one for one in [*reversed(given), *own] if one.stages[0].data.format == "chat"), None)
    style = next((one for one in [*reversed(given), *own] if one.stages[0].data.format in ("novels", "text")), None)
    if asked is None and held_out is not None:
        raise UserError("--held-out", got="no recipe that says what the answers of training look like", expected="--data",
                        do="name the recipe of the instructions")  # fmt: skip
    base = {"base": subject.found.base}
    return Yardsticks(
        asked=None if asked is None else measured_on(asked, held_out).model_copy(update=base),
        style=None if style is None else style.model_copy(update=base),
        file=held_out, trained=[one.model_copy(update=base) for one in own],
    )  # fmt: skip


def _recipe_of(adapter: Path) -> Recipe | None:
    """Of the stage that an adapter is of; None for one from elsewhere."""
    stage = parent_stage(adapter)
    return None if stage is None else load_recipe(stage.recipe)


def _single(recipe: Recipe) -> list[Recipe]:
    """A recipe of one stage for each."""
    return [recipe.model_copy(update={"stages": [stage]}) for stage in recipe.stages]


def _only(given: Sequence[Recipe], stage: str) -> list[Recipe]:
    """Without the conversations of other stages. Raises UserError where none of these has that name."""
    names = [one.stages[0].name for one in given if one.stages[0].data.format == "chat"]
    if stage not in names:
        expected = "a stage of conversations in the recipe of --data"
        raise UserError("--stage", got=repr(stage), expected=expected, do=did_you_mean(stage, names) if names else "")
    return [one for one in given if one.stages[0].data.format != "chat" or one.stages[0].name == stage]


# ------------------------------------------------------------------------------------------------------------- questions


def ask_held_out(yardsticks: Yardsticks, cache: Path | None) -> Asked:
    """The conversations that the recipe's stage holds out, up to their last answers. Raises UserError where there are none."""
    recipe = yardsticks.asked
    assert recipe is not None
    (stage,) = recipe.stages
    read = EvaluationData(recipe=recipe, cache=cache)
    data = read.data
    assert isinstance(data, ChatData), "the recipe was chosen for it"
    tokenizer = open_tokenizer(recipe.base)
    form = chat_format(recipe.base, tokenizer, stage.data.chat_template_kwargs)
    asked = [question for row in data.held_rows if (question := question_of(row, form)) is not None]
    answers = [answer for _, answer in _pairs(data) if answer]  # some are nothing but thoughts
    if not asked or not answers:
        raise UserError(
            "data.validation", got=f"{len(asked)} questions held out, and {len(answers)} answers to learn the form from",
            expected="some of each", do="set data.validation, or give other conversations with --held-out",
        )  # fmt: skip
    lengths = [len(tokenizer.encode(answer, add_special_tokens=False).ids) for answer in answers]
    kinds = _kinds(stage)
    return Asked(
        source=f"held-out conversations of the stage {stage.name}" if yardsticks.file is None else f"conversations of {yardsticks.file}",
        questions=asked, kinds=[kinds.get(each.origin) for each in asked],
        typical=int(np.median([len(answer) for answer in answers])), tokens=int(np.median(lengths)),
        max_new_tokens=min(LONGEST, 2 * max(lengths)), shape=learn_shape(answers, _special(tokenizer)),
        held_out=read.held_out(recipe.base), branches=data.branches, learned=_learned(asked, yardsticks, cache),
    )  # fmt: skip


def _pairs(data: ChatData) -> list[tuple[str, str]]:
    """(what is asked, what is answered) at the end of every training row."""
    ends = [(row.messages, number) for row in data.train_rows if (number := last_answer(row)) is not None]
    return [(messages[number - 1].get("content") or "", said(messages[number]["content"])) for messages, number in ends]


def _learned(asked: Sequence[Question], yardsticks: Yardsticks, cache: Path | None) -> int | None:
    """How many of these an adapter was trained on. The split of its own recipe sees to it that there are none; another's does not."""
    known: set[tuple[str, str | None]] = set()
    for recipe in yardsticks.trained:
        if recipe.stages[0].data.format != "chat" or recipe == yardsticks.asked:
            continue
        try:
            data = EvaluationData(recipe=recipe, cache=cache).data
        except UserError:  # its files are gone, or changed
            return None
        assert isinstance(data, ChatData)
        known.update(_pairs(data))
    return sum((each.input, each.expected) in known for each in asked)


def ask_built_in(base: str) -> Asked:
    """The built-in instructions. Raises UserError for a base without a chat template, or one that refuses them."""
    tokenizer = open_tokenizer(base)
    form = chat_format(base, tokenizer, {})
    pairs = [(kind, text) for kind, texts in INSTRUCTIONS.items() for text in texts]
    try:
        questions = [ask([{"role": "user", "content": text}], form, origin=f"instruction {i}") for i, (_, text) in enumerate(pairs, 1)]
    except BadConversation as error:
        raise UserError("base", got=str(error), expected="a chat template that takes a single question") from error
    together = "".join(text for _, text in pairs)
    tokens = round(TYPICAL * len(tokenizer.encode(together, add_special_tokens=False).ids) / len(together))
    return Asked(
        source=f"{len(pairs)} built-in instructions", questions=questions, kinds=[kind for kind, _ in pairs], typical=TYPICAL,
        tokens=tokens, max_new_tokens=min(LONGEST, 2 * tokens),
    )  # fmt: skip


def _kinds(stage: Stage) -> dict[str, str | None]:
    """Where a row stands -> its `kind`, of rows that have one."""
    validation = stage.data.validation
    assert not isinstance(stage.data.train, dict), "the settings refuse styles of conversations"
    paths = [*as_list(stage.data.train), *(validation if isinstance(validation, tuple) else [])]
    rows = read_conversations(paths, reports=[], group_by="kind")
    return {row.origin: row.group for row in rows if isinstance(row, Conversation)}


def _special(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


# ----------------------------------------------------------------------------------------------------------------- style


def learn_voice(yardsticks: Yardsticks, asked: Asked, *, seed: int, cache: Path | None) -> Voice | None:
    """What tells the style from general text, in passages about as long as answers; None where it can't be had, and a warning why."""
    if yardsticks.style is None:
        yardsticks.warnings.append("no style score: no stage of text says what the style is; name its recipe with --data")
        return None
    read = EvaluationData(recipe=yardsticks.style, cache=cache)
    try:
        voice = read.voice(tokens=asked.tokens, seed=seed)
    except UserError as error:
        yardsticks.warnings.append(f"no style score: the text of the style can't be read ({error})")
        return None
    yardsticks.warnings.extend(read.warnings)
    return voice
