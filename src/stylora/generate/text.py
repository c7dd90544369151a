"""A prompt -> tokens; drawn tokens -> text, piece by piece: never half a character, never a part of a stop text.

Byte-level vocabularies cut Chinese characters: 剑 may be two tokens, and neither alone is text. Decoding a few tokens together with
the ones before them settles that and the blanks that some tokenizers add at a beginning. Knows tokenizers, no models.

    tokens      剑   光‹E4›   ‹B8 80›   <stop>       stop text "。\\n"
    written     剑   光       一        -            a "。" waits until the next token shows that no "\\n" follows

The two offsets are those of Text Generation Inference (`decode_token` in its server, Apache-2.0) and vLLM's detokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 5  # tokens of the prompt that are decoded with the first ones of the continuation
UNFINISHED = "\ufffd"  # what decoding leaves of a character whose bytes have not all come


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], chat: bool) -> list[int]:
    """Token ids of a prompt as it stands, or as a user turn with the opening of the assistant's (`chat`, needs a chat template).

    What is given as ids, as a conversation that its template wrote, stays as it is.
    """
    if not isinstance(prompt, str):
        return list(prompt)
    if not chat:
        return tokenizer(prompt)["input_ids"]
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an assistant's turn in the chat template (ChatML: `<|im_end|>`); None without a template."""
    if tokenizer.chat_template is None:
        return None
    answer = "stylora"  # what follows it in a rendered conversation is the template's own
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert isinstance(text, str)
    rest = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    return next((token for token in rest if token in tokenizer.added_tokens_decoder), None)


class Writer:
    """Writes the continuation of a prompt. `push` a token and get the text that is now certain; `close` gives what was held back.

    stopped: a stop text has come; the text before it is complete and `push` must not be called again
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.ids = list(prompt[-CONTEXT:])
        self.before = 0  # decoding starts here, at tokens already written: they decide on blanks
        self.written = len(self.ids)  # tokens from here on have not been decoded to text yet
        self.held = ""  # decoded, but perhaps the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain, perhaps none."""
        assert not self.stopped
        self.ids.append(token)
        fresh = self._fresh()
        if fresh.endswith(UNFINISHED):
            return ""
        if fresh:  # tokens without text (special ones) stay, and are decoded again with the next
            self.before, self.written = self.written, len(self.ids)
        return self._certain(fresh)

    def close(self) -> str:
        """What is left when no token follows; a character that never came whole is not written."""
        if self.stopped:
            return ""
        text = self._certain(self._fresh().rstrip(UNFINISHED)) + self.held
        self.held = ""
        return text

    def _fresh(self) -> str:
        """The text of the tokens that were not written yet."""
        old = self._decode(self.ids[self.before : self.written])
        return self._decode(self.ids[self.before :])[len(old) :]

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _certain(self, fresh: str) -> str:
        """The part of held + fresh that stands before a stop text and cannot become one; the rest is held."""
        text = self.held + fresh
        found = [at for at in map(text.find, self.stop) if at >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self.stop), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it.

    overlap("他说。", "。\\n") == 1
    """
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
