"""Conversations as a script has them, through a pipe, and as a terminal does, with Ctrl-C: what is read, written and remembered."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.run.stacked import FP32, write_chat_base, write_stacks

from stylora.errors import UserError
from stylora.generate.decode import generate
from stylora.generate.settings import Sampling
from stylora.run import chat_session as page
from stylora.run.chat_session import converse, read_message
from stylora.run.conversation import Talk
from stylora.run.loaded import LoadedModel
from stylora.run.open import open_model

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory, base_folder) -> Path:
    return write_chat_base(base_folder, tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture(scope="module")
def stacks(tmp_path_factory, base) -> Path:
    return write_stacks(base, tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="module")
def loaded(stacks) -> LoadedModel:
    return LoadedModel(str(stacks / "instruct"), FP32)


def typed(*messages: str | BaseException) -> Callable[[str], str]:
    """Lines as they come; an error is raised in its place."""
    waiting = iter(messages)

    def line(prompt: str) -> str:
        text = next(waiting, EOFError())
        if isinstance(text, BaseException):
            raise text
        return text

    return line


@pytest.fixture
def say(loaded, capsys):
    """`say("你好", "/base")`: (exit code, stdout, stderr, the conversation) of these lines."""

    def run(*messages: str | BaseException, terminal: bool = True, new: int = 12, temperature: float = 0.0):
        talk = Talk(loaded, system=None, seed=0, max_new_tokens=new)
        capsys.readouterr()
        code = converse(talk, Sampling(max_new_tokens=new, temperature=temperature), FP32, typed(*messages), terminal=terminal)
        return code, *capsys.readouterr(), talk

    return run


@pytest.fixture
def piped(command, monkeypatch):
    """`piped(b"lines", MODEL, ...)`: runs `stylora chat MODEL ...` with these bytes as its input."""

    def run(given: bytes, *arguments: object):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
        monkeypatch.setattr(page, "choose_device", lambda: FP32)
        return command("chat", *arguments, "--max-new-tokens", 12)

    return run


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("given", "message"), [
    (["你好"], ("你好", False)),
    (["  你好 "], ("你好", False)),
    (["/style 0.5"], ("/style 0.5", True)),
    (["一\\", "  二\\", "三"], ("一\n  二\n三", False)),
    (["/system 一\\", "二"], ("/system 一\n二", True)),
    (['"""', "/一", "", "二\\", '"""'], ("/一\n\n二\\", False)),
    (['"""一', '二"""'], ("一\n二", False)),
    (['"""一"""'], ("一", False)),
    (['""""""'], ("", False)),
    ([""], ("", False)),
    (["一\\"], ("一", False)),  # and the end of the input
    (['"""一', "二"], ("一\n二", False)),
])  # fmt: skip
def test_messages_of_one_line_and_of_several(given, message):
    lines = typed(*given)
    assert read_message(lines) == message
    with pytest.raises(EOFError):
        read_message(lines)


def test_bytes_that_are_no_text():
    with pytest.raises(UnicodeError):
        read_message(typed("你\udce5"))


# ------------------------------------------------------------------------------------------------------------ answering


def test_an_answer_goes_on_with_the_whole_conversation(loaded, say):
    code, out, err, talk = say("一", "二", "/base", "三")
    tokenizer, sampling = loaded.base.tokenizer, Sampling(max_new_tokens=12, temperature=0)
    text, answers = "", []
    for question, model in (("一", loaded.model), ("二", loaded.model), ("三", None)):
        text += TURN.format(question)
        if model is None:
            with loaded.bare() as model:
                answers.append(generate(model, tokenizer, [text], sampling)[0].text)
        else:
            answers.append(generate(model, tokenizer, [text], sampling)[0].text)
        text += f"{answers[-1]}<|im_end|>\n"
    assert code == 0 and out == "".join(f"{answer}\n" for answer in answers)
    assert talk.exchanges == list(zip("一二三", answers, strict=True))
    assert "adapters off" in err and err.count("cut off after 12 tokens; --max-new-tokens allows more") == 3
    assert loaded.model is not None and not any(isinstance(m, torch.nn.Dropout) and m.training for m in loaded.model.modules())


def test_a_question_asked_again_is_answered_otherwise_and_the_session_is_reproducible(say):
    lines = ("一", "/undo", "一", "/undo", "/seed 0", "一")
    code, out, _, _ = say(*lines, temperature=1.5, new=20)
    assert out == say(*lines, temperature=1.5, new=20)[1]
    talks = [say(*lines[:n], temperature=1.5, new=20)[3].exchanges for n in (1, 3, 6)]
    assert talks[0] == talks[2] != talks[1]


def test_mistakes_are_told_in_a_line_and_the_conversation_goes_on(say):
    code, out, err, talk = say("一", "/stlye 1", "问" * 100, "", "/exit", "never read")
    assert code == 0 and len(talk.exchanges) == 1
    assert [line.split(":")[0] for line in err.splitlines()[1:]] == ["/stlye", "question"]


def test_a_full_context_is_told_once(say):
    _, _, err, talk = say(*["问" * 20] * 6, new=30)
    assert err.count("the beginning of the conversation is left out") == 1 and talk.left_out >= 2


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def pressing(monkeypatch):
    """`pressing(3, times=1)`: Ctrl-C while the fourth piece is computed."""
    decode = page.decode

    def press(at: int, times: int = 1) -> None:
        def pressed(*given) -> Iterator[str]:
            for number, piece in enumerate(decode(*given)):
                if number == at:
                    for _ in range(times):
                        signal.raise_signal(signal.SIGINT)
                yield piece

        monkeypatch.setattr(page, "decode", pressed)

    return press


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(say, pressing, loaded, monkeypatch):
    monkeypatch.setattr(page, "end_tokens", lambda *given: frozenset())  # it goes on by itself
    whole = say("一", new=40, temperature=1.5)[3].exchanges[0][1]
    before, flags = signal.getsignal(signal.SIGINT), [module.training for module in loaded.model.modules()]
    pressing(20)
    code, out, _, talk = say("一", "/exit", new=40, temperature=1.5)
    ((question, said),) = talk.exchanges
    assert code == 0 and question == "一" and out == said + "\n"
    assert said and whole.startswith(said) and len(said) < len(whole)
    assert signal.getsignal(signal.SIGINT) is before and [module.training for module in loaded.model.modules()] == flags


def test_twice_in_an_answer_ends_the_program(say, pressing, loaded):
    before = signal.getsignal(signal.SIGINT)
    pressing(2, times=2)
    assert say("一", "二")[0] == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_twice_at_the_prompt_ends_the_program(say):
    code, out, err, _ = say(KeyboardInterrupt(), KeyboardInterrupt(), "一")
    assert (code, out) == (130, "") and "once more" in err
    assert say(KeyboardInterrupt(), "/help", KeyboardInterrupt(), "/help")[0] == 0
    assert say('"""', "一", KeyboardInterrupt(), "/save x.jsonl")[3].exchanges == []  # the block is not asked
    assert say(KeyboardInterrupt(), "一", terminal=False)[0] == 130


def test_ctrl_c_in_a_command_keeps_the_conversation(say, monkeypatch):
    def stopped(self, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(Talk, "command", stopped)
    code, _, err, talk = say("一", "/stack somewhere", "二")
    assert code == 0 and len(talk.exchanges) == 2 and "stopped" in err


def test_bytes_that_are_no_text_end_a_pipe_and_not_a_terminal(say):
    code, _, err, talk = say("你\udce5", "一")
    assert code == 0 and "bytes that are no text" in err and len(talk.exchanges) == 1
    with pytest.raises(UserError, match="bytes that are no text"):
        say("你\udce5", terminal=False)


# ------------------------------------------------------------------------------------------------------------- the command


def test_a_pipe_gets_answers_alone(piped, stacks, loaded, tmp_path):
    file = tmp_path / "said.jsonl"
    lines = f"\ufeff一\r\n/style 0.5\n二\\\n三\n/save {file}\n"
    ran = piped(lines.encode(), stacks / "instruct", "--temperature", 1.5, "--system", "你")
    system = "<|im_start|>system\n你<|im_end|>\n"
    tokenizer, sampling = loaded.base.tokenizer, Sampling(max_new_tokens=12, temperature=1.5)
    first = generate(loaded.model, tokenizer, [system + TURN.format("一")], sampling)[0].text
    half = open_model(f"{stacks / 'instruct'}@style=0.5", FP32).model
    history = f"{system}{TURN.format('一')}{first}<|im_end|>\n"
    second = generate(half, tokenizer, ["the first draw", history + TURN.format("二\n三")], sampling)[1].text
    assert (ran.code, ran.out) == (0, f"{first}\n{second}\n")
    assert "> " not in ran.err and "style has weight 0.5" in ran.err and "/help" not in ran.err
    saved = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [each["content"] for each in saved] == ["你", "一", first, "二\n三", second]


def test_what_was_saved_is_read_as_data(command, piped, stacks, tmp_path):
    file = tmp_path / "said.jsonl"
    piped(f"一\n二\n/save {file}\n/reset\n三\n/save {file}\n".encode(), stacks / "instruct")
    ran = command("data", file, "--json")
    assert ran.code == 0, ran.err
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2


def test_a_base_without_a_chat_template_is_refused_before_it_is_read(refused, base_folder, monkeypatch):
    monkeypatch.setattr(page, "LoadedModel", lambda *given, **options: pytest.fail("read"))
    assert "which has no chat template, expected a base that was made for chat" in refused("chat", base_folder)


def test_no_text_in_the_pipe_is_refused(piped, stacks):
    ran = piped(b"\xc4\xe3\xba\xc3\n", stacks / "instruct")
    assert ran.code == 2 and "input: got bytes that are no text, expected text in UTF-8" in ran.err
    assert piped(b"", stacks / "instruct").code == 0


def test_wrong_options_are_refused(refused, stacks):
    assert refused("chat", stacks / "instruct", "--top-p", 0).startswith("--top-p: got")
