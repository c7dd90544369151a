"""A conversation with a model: what was said, the tokens of the next question, and what a command changes.

    你是谁？         a question; `ask` writes the whole conversation by the base's chat template, `keep` remembers the answer
    /style 0.5      a command, which `command` carries out; COMMANDS lists them, and every adapter's name is one more

A question is written as in training: behind the empty thoughts that some templates write, where the stage's answers had none. What a
template does with the thoughts of earlier answers is left to it.

Reads nothing from a terminal, prints nothing and draws no token: chat_session.py does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stylora.errors import UserError, did_you_mean
from stylora.samples.chat import ChatFormat
from stylora.samples.conversations import BadConversation, Message
from stylora.samples.questions import ask

from .loaded import LoadedModel
from .open import Found, find_model
from .plan import chat_format, open_tokenizer
from .task import read_task


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question on its way. ids: of the conversation, up to the opened answer; number: with the seed it makes the draw
    left_out: are earlier exchanges missing in it, for the first time?"""

    ids: list[int]
    number: int
    left_out: bool


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a stack was taught to be asked. system: its system prompt, "" for none; reasoning: do answers begin with thoughts?"""

    form: ChatFormat
    system: str
    reasoning: bool


def manner_of(found: Found, base: str) -> Manner:
    """As the task.json of a stage says; else as the template has it. base: name of the base, whose template it is

    Raises UserError for a base without a chat template, and a broken task.json.
    """
    task = None if found.stack is None else read_task(found.stack.parent)
    form = chat_format(base, open_tokenizer(base), {} if task is None else task.chat_template_kwargs)
    return Manner(form=form, system="" if task is None else task.system, reasoning=task is None or task.reasoning)


class Talk:
    """A conversation and the model it is had with.

    exchanges: (question, answer), the oldest first; left_out: how many of the oldest the model is no longer told
    seed, number: of the draw; a number is an answer's, counted from when the seed was set, answers taken back included
    own_system: the system prompt that was asked for, None where nobody did; bare: do the adapters pause? over: is it at its end?
    """

    def __init__(self, loaded: LoadedModel, *, system: str | None, seed: int, max_new_tokens: int, force: bool = False) -> None:
        """system: the system prompt, "" for none, None for that of the stack's training; max_new_tokens: kept free for an answer
        force: of `swap`. Raises what `manner_of` raises."""
        self.loaded, self.seed, self.force = loaded, seed, force
        self.room = min(max_new_tokens, loaded.base.context // 2)
        self.manner = manner_of(loaded.found, loaded.base.name)
        self.exchanges: list[tuple[str, str]] = []
        self.left_out = self.number = 0
        self.bare = self.over = False
        self.own_system = system

    @property
    def system(self) -> str:
        """The system prompt that is in force, "" for none."""
        return self.manner.system if self.own_system is None else self.own_system

    def messages(self, first: int = 0) -> list[Message]:
        """System prompt and exchanges, from number `first` on."""
        told: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.exchanges[first:]:
            told += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return told

    def ask(self, question: str) -> Asked:
        """The conversation with this question. The oldest exchanges are left out where they leave no room for an answer.

        Raises UserError for a question that is too long by itself, and one that the template refuses.
        """
        context, before = self.loaded.base.context, self.left_out
        for first in range(before, len(self.exchanges) + 1):
            ids = self._ids(question, first)
            if len(ids) + self.room <= context:
                break
        if len(ids) >= context:
            expected = f"at most {context - 1:,}, one less than the model's context"
            raise UserError("question", got=f"{len(ids):,} tokens", expected=expected, do="shorten it")
        self.left_out = first
        self.number += 1
        return Asked(ids=ids, number=self.number - 1, left_out=first > 0 and before == 0)

    def keep(self, question: str, answer: str) -> bool:
        """Remember an exchange: whether there was an answer to remember."""
        if answer.strip():
            self.exchanges.append((question, answer))
        return bool(answer.strip())

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash: what there is to say about it.

        Raises UserError, and leaves everything as it was, where that can't be done.
        """
        words = line[1:].split(maxsplit=1)
        word, rest = (*words, "", "")[:2]
        if word in COMMANDS:
            return COMMANDS[word].run(self, rest.strip())
        name, _, factor = line[1:].strip().rpartition(" ")
        weights = self.loaded.weights
        if name.strip() in weights:  # it may have blanks in it
            return self._weigh(name.strip(), factor)
        if word in weights:
            return self._weigh(word, rest)
        known = {f"/{each}" for each in (*COMMANDS, *weights)}
        raise UserError(f"/{word}", got="no command", expected="one of those of /help", do=did_you_mean(f"/{word}", known))

    def _ids(self, question: str, first: int) -> list[int]:
        turns = [*self.messages(first), {"role": "user", "content": question}]
        try:
            return ask(turns, self.manner.form, reasoning=self.manner.reasoning).ids.tolist()
        except BadConversation as error:
            raise UserError("question", got=str(error), expected="what the chat template of the base takes") from error

    def _weigh(self, name: str, factor: str) -> str:
        try:
            weight = float(factor)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"/{name}", got=repr(factor), expected=f"a factor of its update, as in /{name} 0.5")
        self.loaded.weigh(name, weight)
        return f"{name} has weight {weight:g}"


# -------------------------------------------------------------------------------------------------------- the commands


def _stack(talk: Talk, rest: str) -> str:
    if rest:
        found = find_model(rest, force=talk.force)
        manner = manner_of(found, talk.loaded.base.name)  # before anything changes
        talk.loaded.swap(rest, force=talk.force)
        talk.manner = manner
    layers = talk.loaded.found.layers
    lines = [f"base {talk.loaded.base.name}" + (", adapters off" if talk.bare and layers else "" if layers else ", no adapters")]
    lines += [f"  {layer.name}  weight {layer.weight:g}  {layer.folder.as_posix()}" for layer in layers]
    return "\n".join([*lines, *(f"warning    forced: {line}" for line in talk.loaded.forced)])


def _base(talk: Talk, rest: str) -> str:
    if not talk.loaded.weights:
        raise UserError("/base", got=f"{talk.loaded.found.name}, which has no adapters", expected="a stack to switch off")
    talk.bare = not talk.bare
    return "adapters off: the base answers" if talk.bare else "adapters on: the stack answers"


def _system(talk: Talk, rest: str) -> str:
    if rest:
        talk.own_system = "" if rest == '""' else rest
    return f"system prompt: {talk.system}" if talk.system else "no system prompt"


def _reset(talk: Talk, rest: str) -> str:
    talk.exchanges.clear()
    talk.left_out = 0
    return "the conversation begins anew"


def _undo(talk: Talk, rest: str) -> str:
    if not talk.exchanges:
        raise UserError("/undo", got="nothing said yet", expected="an exchange to take back")
    question, _ = talk.exchanges.pop()
    talk.left_out = min(talk.left_out, len(talk.exchanges))
    return f"taken back: {question}"


def _seed(talk: Talk, rest: str) -> str:
    if not (rest.isascii() and rest.isdigit()):
        raise UserError("/seed", got=repr(rest), expected="a number from 0")
    talk.seed, talk.number = int(rest), 0
    return f"seed {talk.seed}"


def _save(talk: Talk, rest: str) -> str:
    path = Path(rest).expanduser()
    if path.suffix != ".jsonl":
        raise UserError("/save", got=repr(rest), expected="a file that ends in .jsonl")
    if not talk.exchanges:
        raise UserError("/save", got="nothing said yet", expected="a conversation to save")
    row = json.dumps({"messages": talk.messages()}, ensure_ascii=False)
    try:
        torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(("\n" if torn else "") + row + "\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(str(path), got=reason, expected="a file that can be written in a folder that is there") from error
    return f"saved {len(talk.exchanges)} exchanges to {path}"


def _help(talk: Talk, rest: str) -> str:
    lines = [(f"/{word} {command.takes}".rstrip(), command.told) for word, command in COMMANDS.items()]
    adapters = ", ".join(talk.loaded.weights) or "there are none now"
    lines.append(("/NAME FACTOR", f"weigh an adapter's update, 0 leaves it out: {adapters}"))
    lines.append(('LINE \\, """', 'a line that ends with a backslash goes on; """ opens and closes a block, which is never a command'))
    return "\n".join(f"{usage:<15} {told}" for usage, told in lines)


def _exit(talk: Talk, rest: str) -> str:
    talk.over = True
    return ""


class Command(NamedTuple):
    """takes: what is given with it; told: what it does; run: does it, and gives back what there is to say"""

    takes: str
    told: str
    run: Callable[[Talk, str], str]


COMMANDS = {
    "stack": Command("[MODEL]", "show the adapters and their weights; MODEL is put in their place", _stack),
    "base": Command("", "let the base answer without adapters; again: with them", _base),
    "system": Command("[TEXT]", 'show the system prompt, or set it; "" takes it away', _system),
    "reset": Command("", "forget what was said", _reset),
    "undo": Command("", "take back the last question and its answer", _undo),
    "seed": Command("N", "draw the following answers from this seed", _seed),
    "save": Command("FILE", "append the conversation to a .jsonl file, which `data` of format chat reads", _save),
    "help": Command("", "show this", _help),
    "exit": Command("", "leave; so does the end of the input", _exit),
}
