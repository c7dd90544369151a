"""`stylora chat`: read a message, write the answer as it comes, until the end of the input.

    at a terminal      a prompt, line editing where there is readline; Ctrl-C stops an answer, twice at the prompt it leaves
    from a pipe        no prompt; a message a line

Answers go to stdout and everything else to stderr, so a script reads answers alone. A mistake is told in one line, and the conversation
goes on. What a message does is conversation.py's.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from types import FrameType

from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.generate.decode import decode, end_tokens, open_row
from stylora.generate.settings import Sampling
from stylora.model.device import Device, choose_device

from .conversation import Talk, manner_of
from .loaded import LoadedModel
from .open import find_model

PROMPT, MORE, BLOCK = "> ", ". ", '"""'
INTERRUPTED = 128 + signal.SIGINT  # as shells report it
Lines = Callable[[str], str]
"""Asks for a line with a prompt: the line without its end. Raises EOFError when there is none left, KeyboardInterrupt at Ctrl-C."""


def chat(
    name: str, sampling: Sampling, *, system: str | None = None, base: str | None = None, trust_remote_code: bool = False,
    force: bool = False,
) -> int:  # fmt: skip
    """Hold a conversation with MODEL: the exit code. system: as for `Talk`

    Raises UserError for a MODEL that can't be opened, a base without a chat template, and piped input that is no UTF-8.
    """
    found = find_model(name, base=base, force=force)
    manner_of(found, found.base)  # what has no template is refused before gigabytes are read
    device = choose_device()
    loaded = LoadedModel(name, device, base=base, trust_remote_code=trust_remote_code, force=force)
    talk = Talk(loaded, system=system, seed=sampling.seed, max_new_tokens=sampling.max_new_tokens, force=force)
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # not there on Windows, whose console edits lines by itself
            import readline  # noqa: F401  # gives `input` its editing
    _say(talk.command("/stack") + ("\n/help shows the commands" if terminal else ""))
    return converse(talk, sampling, device, terminal_line if terminal else piped_lines(), terminal=terminal)


def converse(talk: Talk, sampling: Sampling, device: Device, lines: Lines, *, terminal: bool) -> int:
    """Take messages until they end: the exit code."""
    asked_to_leave = False  # was Ctrl-C the last thing that came to the prompt?
    while not talk.over:
        try:
            text, is_command = read_message(lines)
        except EOFError:
            break
        except KeyboardInterrupt:
            if asked_to_leave or not terminal:
                return INTERRUPTED
            asked_to_leave = True
            _say("\nCtrl-C once more, or /exit, to leave")
            continue
        except UnicodeError as error:
            trouble = UserError("input", got="bytes that are no text", expected="text in UTF-8")
            if not terminal:  # where it goes on is not known
                raise trouble from error
            _say(str(trouble))
            continue
        asked_to_leave = False
        try:
            if is_command:
                _say(talk.command(text))
            elif text:
                answer(talk, text, sampling, device)
        except UserError as error:
            _say(str(error))
        except KeyboardInterrupt:  # in a command; or the second in an answer
            if not is_command:
                return INTERRUPTED
            _say("\nstopped")
    return 0


def answer(talk: Talk, question: str, sampling: Sampling, device: Device) -> None:
    """Write the answer to a question and remember both; one that is stopped is remembered as far as it came.

    Raises UserError for a question that can't be asked.
    """
    asked = talk.ask(question)
    if asked.left_out:
        _say("the beginning of the conversation is left out from here on: the model's context is full")
    drawing = sampling.model_copy(update={"seed": talk.seed})
    tokenizer = talk.loaded.base.tokenizer
    with (talk.loaded.bare() if talk.bare else nullcontext(talk.loaded.model)) as model, precision_context(device.device, device.dtype):
        row = open_row(model, tokenizer, asked.ids, drawing, number=asked.number, chat=False, where="question")
        with stopping() as stopped, closing(decode(model, [row], drawing, end_tokens(model, tokenizer))) as pieces:
            try:
                for piece in pieces:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    if stopped():
                        break
            finally:
                sys.stdout.write("\n")
                sys.stdout.flush()
    kept = talk.keep(question, row.text)
    if not kept:
        _say("no answer; the question is forgotten")
    elif row.stopped == "length":
        _say(f"cut off after {row.tokens} tokens; --max-new-tokens allows more" if row.tokens == sampling.max_new_tokens
             else f"cut off after {row.tokens} tokens: the model's context is full")  # fmt: skip


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C is noted, and the function tells whether it came; once more it is raised."""
    came: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # Python delivers signals nowhere else
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if in_main:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------------------- reading


def read_message(lines: Lines) -> tuple[str, bool]:
    r"""The next message, and whether it is a command. A line that ends with a backslash goes on; `\"""` opens and closes a block.

    Raises EOFError where there is none left, UnicodeError for bytes that are no text, and what `lines` raises.
    """
    text = lines(PROMPT)
    if text.lstrip().startswith(BLOCK):
        text, is_command = _read_block(text.lstrip().removeprefix(BLOCK), lines), False
    else:
        while text.endswith("\\"):
            text = text.removesuffix("\\") + "\n" + (_next(lines) or "")
        is_command = text.lstrip().startswith("/")
    text.encode("utf-8")  # a terminal passes on bytes that are no text as halves of surrogate pairs
    return text.strip(), is_command


def _read_block(text: str, lines: Lines) -> str:
    """A block from behind its opening on, up to its end or that of the input."""
    while not text.rstrip().endswith(BLOCK):
        line = _next(lines)
        if line is None:
            return text
        text += "\n" + line
    return text.rstrip().removesuffix(BLOCK)


def _next(lines: Lines) -> str | None:
    """The line after one that goes on; None where there is none."""
    try:
        return lines(MORE)
    except EOFError:
        return None


def terminal_line(prompt: str) -> str:
    """A line from the keyboard."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)  # stdout is a file or a pipe, for answers alone
    sys.stderr.flush()
    return input()


def piped_lines() -> Lines:
    """Lines of stdin, in UTF-8 whatever the system's encoding is."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig")

    def line(prompt: str) -> str:
        text = sys.stdin.readline()
        if not text:
            raise EOFError
        return text.removesuffix("\n")

    return line


def _say(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)
