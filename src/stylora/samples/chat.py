"""One conversation -> one sample: the template's words as tokens, an edge onto every token of an answer and onto its stop token.

    <u> hi <e> <a> hello <e> <u> more <e> <a> yes <e>        edges  <a>->hello  hello-><e>      <a>->yes  yes-><e>

**Where an answer is** is read off the template itself, by rendering prefixes: what stands before an answer is the conversation up to it
with the answer opened (`add_generation_prompt`), and the answer is what the conversation with it says more, up to the stop token. A
template with `{% generation %}` says itself what it trains. Where the template writes no stop token (GLM), the last edge goes to the
end-of-text token, which is then predicted and not read.

**Templates that write history anew** (Qwen3 drops earlier `<think>` blocks, Mistral moves the system prompt): an answer was given to the
history as it was then, so it gets a path of its own, and the paths of a record share what they have in common.

    one path            s u1 a1 u2 a2                  two paths           s u1 t1 a1
                                                                              u1 a1 u2 t2 a2

Tokens are cut as `apply_chat_template(tokenize=True)` cuts them, except that special tokens in messages stay text. Answers are told from
prompts by place, never by ids, so it does not matter whether padding and end of text are one token.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, processors

from stylora.errors import UserError
from stylora.forest import Edges, Sample, build_trie, chain

from .conversations import BadConversation, Conversation, Message
from .template import ChatTemplate, Rendered

Turns = Literal["all", "last"]
ANSWER = "\ue000"  # stands for an answer, to see where it would begin; a character that nobody writes


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One answer in a text. spans: half-open ranges that are learned; stop: the last of them ends with a stop token"""

    message: int
    weight: float
    spans: tuple[tuple[int, int], ...]
    stop: bool

    @property
    def end(self) -> int:
        return self.spans[-1][1]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer in tokens. message: its number; targets: int32 [E], places of its tokens in the path; written: its characters,
    the stop token's left out; stop: the stop token stands in the path, as the last target, else `end_of_text` is predicted behind it"""

    message: int
    weight: float
    targets: np.ndarray
    characters: int
    stop: bool


@dataclass(frozen=True, kw_only=True)
class Path:
    """A conversation as it stood when its answers were given. ids: int32 [T]; quoted: special tokens in messages, kept as text"""

    ids: np.ndarray
    answers: tuple[Answer, ...]
    quoted: int


class ChatFormat:
    """How a base writes conversations: its template and its tokenizer.

    end_of_text: the tokenizer's eos token; None where it has none
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, end_of_text: str | None) -> None:
        self.template = template
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # its settings are changed below
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # nothing is added, and no blank loses its place
        self.end_of_text = None if end_of_text is None else self._tokenizer.token_to_id(end_of_text)

    def paths(self, conversation: Conversation, turns: Turns = "all") -> list[Path]:
        """The conversation up to its last answer that is learned, then what earlier answers were given to, where that was another text.

        Raises BadConversation where the template refuses it, or nothing can be learned.
        """
        learned = [number for number, weight in enumerate(conversation.weights) if weight and number]
        if not learned:
            raise BadConversation("no answer to anything")
        texts: list[tuple[Rendered, list[Turn]]] = []
        for number in reversed(learned if turns == "all" else learned[-1:]):
            rendered, turn = self._turn(conversation, number)
            part = rendered if not texts else cut(rendered, turn.end)
            home = next((there for text, there in texts if begins_with(text, cut(rendered, turn.end))), None)
            if home is None:
                texts.append((part, [turn]))
            else:
                home.append(turn)
        return [self._path(text, there[::-1]) for text, there in texts]

    def sample(self, paths: Sequence[Path]) -> Sample:
        """The paths as one tree, with the edges of their answers."""
        chains = [Sample(forest=chain(path.ids), edges=self._edges(path)) for path in paths]
        return chains[0] if len(chains) == 1 else build_trie(chains)

    def asked(self, messages: Sequence[Message], tools: list[Any] | None, *, reasoning: bool) -> Rendered:
        """What stands before the words of an answer to these messages, as in training: behind the empty thoughts that Qwen3 writes, too.

        reasoning: answers begin with thoughts, so before these. Raises BadConversation where the template refuses it.
        """
        if reasoning:
            return self.template.render(messages, tools, opened=True)
        whole = self.template.render([*messages, {"role": "assistant", "content": ANSWER}], tools)
        if ANSWER not in whole.text:
            raise BadConversation("the chat template does not write an answer as it is")
        return cut(whole, whole.text.rindex(ANSWER))

    def encode(self, rendered: Rendered) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, int32 [T], and the range of the text each stands for, int64 [T, 2]."""
        if not rendered.quoted:
            return self._encoded(rendered.text, 0, as_text=False)
        pieces, at = [], 0
        for match in self.template.own_specials(rendered):
            pieces.append(self._encoded(rendered.text[at : match.start()], at, as_text=True))
            pieces.append((np.array([self._tokenizer.token_to_id(match[0])], np.int32), np.array([match.span()])))
            at = match.end()
        pieces.append(self._encoded(rendered.text[at:], at, as_text=True))
        return np.concatenate([ids for ids, _ in pieces]), np.concatenate([places for _, places in pieces])

    def prove(self, conversation: Conversation, turns: Turns) -> int:
        """Decode what is learned and compare it with the row itself: how many answers. Raises UserError where one is not answer + stop."""
        proved = 0
        for path in self.paths(conversation, turns):
            for answer in path.answers:
                message = conversation.messages[answer.message]
                last = path.ids[answer.targets[-1]] if answer.stop else self.end_of_text
                token = (self._tokenizer.id_to_token(int(last)) if last is not None else None) or ""
                targets = answer.targets[:-1] if answer.stop else answer.targets
                said = self._tokenizer.decode(path.ids[targets].tolist(), skip_special_tokens=False)
                if not self.template.special.fullmatch(token) or not says(said, message):
                    raise UserError(
                        conversation.origin, got=f"{said!r} and {token!r} as what is learned of message {answer.message + 1}",
                        expected="the answer and the stop token", do="check the chat template of the base",
                    )  # fmt: skip
                proved += 1
        return proved

    def _turn(self, conversation: Conversation, number: int) -> tuple[Rendered, Turn]:
        """The conversation up to answer `number`, and where it is."""
        messages, tools = conversation.messages, conversation.tools
        whole = self.template.render(messages[: number + 1], tools)
        opened = self.template.render(messages[:number], tools, opened=True)
        start = len(os.path.commonprefix([whole.text, opened.text]))
        if start < len(opened.text):  # DeepSeek-R1 opens `<think>`, and leaves it out of the answer
            before = self.template.render(messages[:number], tools)
            if start < len(before.text.rstrip()):
                raise BadConversation(f"the chat template writes what stands before message {number + 1} anew once it is there")
        spans = [(start, len(whole.text))]
        if self.template.has_blocks:
            spans = [block for block in whole.blocks if block[1] > start]
            if not spans:
                raise BadConversation(f"the chat template's generation blocks leave out message {number + 1}")
        end = self._stop(whole, spans[0][0], spans[-1][1])
        if end is not None:
            spans[-1] = (spans[-1][0], end)
        elif self.end_of_text is None:
            raise UserError("base", got="neither a stop token in the chat template nor an eos_token", expected="one of them")
        return whole, Turn(message=number, weight=conversation.weights[number], spans=tuple(spans), stop=end is not None)

    def _stop(self, rendered: Rendered, start: int, end: int) -> int | None:
        """The end of the stop token of an answer at `start` to `end`: the last special token in it, or else the first behind it.

        None where other text lies between.
        """
        own = self.template.own_specials(rendered)
        inside = [match.end() for match in own if start <= match.start() and match.end() <= end][-1:]
        behind = [match.end() for match in own if match.start() >= end and not rendered.text[end : match.start()].strip()][:1]
        return next((at for at in inside if not rendered.text[at:end].strip()), behind[0] if behind else None)

    def _path(self, rendered: Rendered, turns: Sequence[Turn]) -> Path:
        ids, places = self.encode(rendered)
        answers = []
        for turn in turns:
            hit = np.zeros(len(ids), bool)
            for start, end in turn.spans:
                hit |= (places[:, 1] > start) & (places[:, 0] < end) & (places[:, 1] > places[:, 0])
            hit[:1] = False  # nothing comes before the first token
            characters = sum(end - start for start, end in turn.spans)
            if turn.stop:
                characters -= next(len(m[0]) for m in self.template.special.finditer(rendered.text) if m.end() == turn.end)
            targets = np.flatnonzero(hit).astype(np.int32)
            answers.append(Answer(message=turn.message, weight=turn.weight, targets=targets, characters=characters, stop=turn.stop))
        return Path(ids=ids, answers=tuple(answers), quoted=len(rendered.quoted))

    def _edges(self, path: Path) -> Edges:
        """Onto every target from the token before it; behind an answer without a stop token, to the end of text."""
        sources, targets, weights = [], [], []
        for answer in path.answers:
            source, target = answer.targets - 1, path.ids[answer.targets]
            if not answer.stop:
                assert self.end_of_text is not None, "`_turn` refuses answers without an end"
                source, target = np.append(source, answer.targets[-1]), np.append(target, self.end_of_text)
            sources.append(source)
            targets.append(target)
            weights.append(np.full(len(source), answer.weight))
        return Edges(
            source=np.concatenate(sources).astype(np.int32), target=np.concatenate(targets).astype(np.int32),
            weight=np.concatenate(weights).astype(np.float32),
        )  # fmt: skip

    def _encoded(self, text: str, offset: int, *, as_text: bool) -> tuple[np.ndarray, np.ndarray]:
        self._tokenizer.encode_special_tokens = as_text
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int32), np.array(encoded.offsets, np.int64).reshape(-1, 2) + offset


def cut(rendered: Rendered, end: int) -> Rendered:
    """Its beginning."""
    quoted = tuple(span for span in rendered.quoted if span[1] <= end)
    return Rendered(text=rendered.text[:end], quoted=quoted, blocks=rendered.blocks)


def begins_with(rendered: Rendered, beginning: Rendered) -> bool:
    """Is one the beginning of the other, special tokens and quoted ones alike?"""
    return rendered.text.startswith(beginning.text) and rendered.quoted[: len(beginning.quoted)] == beginning.quoted


def says(said: str, message: dict) -> bool:
    """Is that the answer of the message, and before it nothing but reasoning or calls of tools? Blanks and the normaliser's work aside."""
    answer = squeezed((message.get("content") or "").rpartition("</think>")[2])
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    if names:
        return answer in squeezed(said) and all(squeezed(name) in squeezed(said) for name in names)
    return squeezed(said).endswith(answer)


def squeezed(text: str) -> str:
    """Without blanks, in Unicode's normal form KC."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))
