"""The shapes of public chat templates (templates/*.jinja): ids are those of transformers, and what is learned is the answer and its stop.

Each has a tokenizer of its own, byte by byte with the special tokens that the template writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stylora.errors import UserError
from stylora.samples.chat import ChatFormat
from stylora.samples.conversations import BadConversation, conversation
from stylora.samples.template import ChatTemplate

FOLDER = Path(__file__).parent / "templates"
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is known of a family: file, special tokens, what ends a text and an answer, how a call of a tool reads (None: it has none)

    before: what is learned of an answer ahead of its text; rewrites: history is written anew, so answers have paths of their own
    """

    file: str
    special: tuple[str, ...]
    eos: str
    stop: str
    call: str | None
    bos: str | None = None
    before: str = ""
    rewrites: bool = False
    variables: dict = field(default_factory=dict)


CHATML_CALL = '<tool_call>\n{"name": "find", "arguments": {"城市": "杭州"}}\n</tool_call>'
EMPTY = "<think>\n\n</think>\n\n"
SHAPES = {
    "qwen2.5": Shape(file="qwen2_5", special=IM, eos="<|im_end|>", stop="<|im_end|>", call=CHATML_CALL),
    "qwen3": Shape(file="qwen3", special=IM, eos="<|im_end|>", stop="<|im_end|>", call=CHATML_CALL, before=EMPTY, rewrites=True),
    "qwen3 without thinking": Shape(
        file="qwen3", special=IM, eos="<|im_end|>", stop="<|im_end|>", call=CHATML_CALL, rewrites=True,
        variables={"enable_thinking": False},
    ),
    "llama3": Shape(
        file="llama3", special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        bos="<|begin_of_text|>", eos="<|eot_id|>", stop="<|eot_id|>", call='{"name": "find", "parameters": {"城市": "杭州"}}',
    ),
    "mistral": Shape(
        file="mistral", special=("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), bos="<s>", eos="</s>", stop="</s>",
        call='[TOOL_CALLS] [{"name": "find", "arguments": {"城市": "杭州"}}]', rewrites=True,
    ),
    "gemma": Shape(
        file="gemma", special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>", stop="<end_of_turn>",
        call=None,
    ),
    "glm": Shape(
        file="glm", special=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        eos="<|endoftext|>", stop="<|endoftext|>", call='find\n{"城市": "杭州"}', before="\n",
    ),
}  # fmt: skip

SYSTEM = {"role": "system", "content": "你是诗人。"}
USER, ANSWER = {"role": "user", "content": "写诗"}, {"role": "assistant", "content": "明月光"}
MORE, LAST = {"role": "user", "content": "再来"}, {"role": "assistant", "content": "好的。\n地上霜"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"城市": "杭州"}}}]}
FOUND = {"role": "tool", "content": '{"景点": "西湖"}'}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "查", "parameters": {"type": "object"}}}]
TALKS = {
    "single": [USER, ANSWER], "system": [SYSTEM, USER, ANSWER], "turns": [USER, ANSWER, MORE, LAST],
    "system and turns": [SYSTEM, USER, ANSWER, MORE, LAST],
}  # fmt: skip
CALLS = {
    "call": [USER, CALL], "call and answer": [SYSTEM, USER, CALL, FOUND, LAST], "a later call": [USER, ANSWER, MORE, CALL, FOUND, LAST],
}  # fmt: skip


class Base:
    """A shape with its tokenizer: as transformers has it, and as we do."""

    def __init__(self, shape: Shape, plain) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer.from_str(plain.backend_tokenizer.to_str())
        backend.add_special_tokens(list(shape.special))
        named = {"eos_token": shape.eos, "pad_token": shape.eos, **({"bos_token": shape.bos} if shape.bos else {})}
        self.shape, self.source = shape, (FOLDER / f"{shape.file}.jinja").read_text(encoding="utf-8")
        self.theirs = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=self.source, **named)
        template = ChatTemplate(self.source, special=shape.special, variables={**named, **shape.variables})
        self.form = ChatFormat(template, backend, shape.eos)

    def reference(self, messages, tools=None) -> list[int]:
        return self.theirs.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False, **self.shape.variables)

    def learned(self, paths) -> dict[int, str]:
        """message -> what the edges of its answer spell, from the targets of the sample itself."""
        found: dict[int, str] = {}
        for path in paths:
            for answer in path.answers:
                sample = self.form.sample([type(path)(ids=path.ids, answers=(answer,), quoted=0)])
                assert answer.message not in found, "every answer is learned once"
                found[answer.message] = self.theirs.decode(sample.edges.target.tolist(), skip_special_tokens=False)
        return found


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def base(request, tokenizer) -> Base:
    return Base(request.param, tokenizer)


def talk(messages, tools=None):
    return conversation({"messages": messages, **({"tools": tools} if tools else {})}, origin="rows.jsonl:1", source="rows")


def expected(shape: Shape, messages) -> dict[int, str]:
    """The template's words for each answer and the stop."""
    found = {}
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            text = shape.call if message.get("tool_calls") else message["content"]
            found[number] = f"{shape.before}{text}{shape.stop}"
    return found


@pytest.mark.parametrize("messages", TALKS.values(), ids=TALKS)
def test_ids_are_transformers_and_what_is_learned_is_answer_and_stop(base, messages):
    row = talk(messages)
    paths = base.form.paths(row)
    assert {number: said.lstrip(" ") for number, said in base.learned(paths).items()} == expected(base.shape, messages)
    assert base.form.prove(row, "all") == len(expected(base.shape, messages))
    assert (len(paths) > 1) == (base.shape.rewrites and MORE in messages and (SYSTEM in messages or base.shape.file == "qwen3"))
    for path in paths:
        asked = messages[: path.answers[-1].message + 1]
        whole = base.reference(asked)
        assert path.ids.tolist() == whole[: len(path.ids)] and len(path.ids) >= len(whole) - 1, "but for a line feed behind the stop"
    assert paths[0].ids.tolist() == base.reference(messages)
    (last,) = base.form.paths(row, "last")
    assert last.ids.tolist() == paths[0].ids.tolist() and [answer.message for answer in last.answers] == [len(messages) - 1]


@pytest.mark.parametrize("messages", CALLS.values(), ids=CALLS)
def test_calls_of_tools_are_learned_as_the_template_writes_them(base, messages):
    row = talk(messages, TOOLS)
    if base.shape.call is None:  # it leaves a call out in silence, which the proof finds, and refuses the role of a tool
        with pytest.raises((BadConversation, UserError), match="roles must alternate|as what is learned of message 2"):
            base.form.prove(row, "all")
        return
    found = base.learned(base.form.paths(row))
    for number, said in expected(base.shape, messages).items():
        assert found[number].removeprefix(EMPTY).strip() == said.removeprefix(EMPTY).strip()
    assert len(found) == base.form.prove(row, "all") == sum(message["role"] == "assistant" for message in messages)
    assert json.dumps(TOOLS[0]["function"]["name"]) in base.theirs.decode(base.form.paths(row)[0].ids.tolist())
    assert base.form.paths(row)[0].ids.tolist() == base.reference(messages, TOOLS)


def test_the_default_system_prompt_is_read_and_not_learned(base):
    text = base.theirs.decode(base.form.paths(talk(TALKS["single"]))[0].ids.tolist())
    assert ("helpful assistant" in text) == (base.shape.file == "qwen2_5")
    assert base.learned(base.form.paths(talk(TALKS["single"])))[1].lstrip(" ") == f"{base.shape.before}明月光{base.shape.stop}"


def test_thoughts_are_learned_where_they_were_thought(tokenizer):
    """Each answer with its own thought, on a path without those that were dropped before the next question."""
    messages = [USER, {**ANSWER, "reasoning_content": "一"}, MORE, {**LAST, "content": "<think>\n二\n</think>\n\n地上霜"}]
    base = Base(SHAPES["qwen3"], tokenizer)
    paths = base.form.paths(talk(messages))
    said = {1: "<think>\n一\n</think>\n\n明月光<|im_end|>", 3: "<think>\n二\n</think>\n\n地上霜<|im_end|>"}
    assert base.learned(paths) == said and len(paths) == 2
    assert paths[0].ids.tolist() == base.reference(messages) and "一" not in base.theirs.decode(paths[0].ids.tolist())
    assert paths[1].ids.tolist() == base.reference(messages[:2])[: len(paths[1].ids)]
