"""Questions: the very tokens that stand before the answer in training."""

from pathlib import Path

import numpy as np
import pytest

from stylora.run.plan import chat_format, open_tokenizer
from stylora.samples.chat import ChatFormat
from stylora.samples.conversations import BadConversation, conversation
from stylora.samples.questions import answer_ids, ask, question_of, said
from stylora.samples.template import ChatTemplate

ROW = {
    "messages": [
        {"role": "system", "content": "短"}, {"role": "user", "content": "一"}, {"role": "assistant", "content": "甲"},
        {"role": "user", "content": "二"}, {"role": "assistant", "content": "乙 bus"},
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def form(base_folder):
    return chat_format(str(base_folder), open_tokenizer(str(base_folder)), {})


@pytest.fixture(scope="module")
def base_folder(base_folder, tokenizer, tmp_path_factory):
    """With a template: ChatML."""
    folder = tmp_path_factory.mktemp("chat base")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
    return folder


def row(**changes):
    return conversation({**ROW, **changes}, origin="rows.jsonl:1", source="rows")


def test_question_and_answer_are_what_training_reads(form):
    given = row()
    question = question_of(given, form)
    assert (question.input, question.expected, question.origin) == ("二", "乙 bus", "rows.jsonl:1")
    (path,) = form.paths(given, "last")
    whole = np.concatenate([question.ids, answer_ids(question, question.expected, form)])
    np.testing.assert_array_equal(whole, path.ids[: len(whole)])
    (learned,) = path.answers
    assert learned.targets[0] == len(question.ids) and learned.targets[-1] == len(whole) - 1, "from the first word to the stop token"


def test_a_question_nobody_answered(form):
    question = ask(row().messages[:2], form)
    assert question.expected is None and question.input == "一"
    answered = question_of(row(messages=ROW["messages"][:3]), form)
    assert answer_ids(question, "甲", form).tolist() == answer_ids(answered, "甲", form).tolist()


def test_the_last_answer_that_is_learned(form):
    messages = [*ROW["messages"][:-1], {**ROW["messages"][-1], "weight": 0}]
    assert question_of(row(messages=messages), form).expected == "甲"


def test_calls_are_no_answers(form):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert question_of(row(messages=[ROW["messages"][1], call]), form) is None


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
def test_the_empty_thoughts_of_qwen3_belong_to_the_question(thinking, variables):
    """As in training: behind them the words of the answer come first, so what is written is JSON from its first token on."""
    form, given = thinking(variables), row(messages=ROW["messages"][:3])
    question = question_of(given, form)
    (path,) = form.paths(given, "last")
    answer = answer_ids(question, "甲", form)
    np.testing.assert_array_equal(np.concatenate([question.ids, answer]), path.ids[: len(question.ids) + len(answer)])
    assert len(answer) == len(form.encode(form.template.render([{"role": "user", "content": "甲"}]))[0]) - len(
        form.encode(form.template.render([{"role": "user", "content": ""}]))[0]) + 1, "the answer and its stop token"  # fmt: skip


def test_rows_with_reasoning_are_asked_before_it(thinking):
    form = thinking({})
    given = row(messages=[ROW["messages"][1], {"role": "assistant", "content": "甲", "reasoning_content": "想"}])
    question = question_of(given, form)
    (path,) = form.paths(given, "last")
    (learned,) = path.answers
    assert len(question.ids) == learned.targets[0] and question.expected == "甲"
    assert said("<think>\n想\n</think>\n\n 甲\n") == "甲" and said(" 乙 ") == "乙"


def test_a_template_that_opens_thoughts_and_leaves_them_out(thinking):
    """As DeepSeek-R1: the question is the text of training, not that of the generation prompt."""
    form = thinking({}, source=(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ))  # fmt: skip
    given = row(messages=ROW["messages"][:3])
    question = question_of(given, form)
    (path,) = form.paths(given, "last")
    np.testing.assert_array_equal(question.ids, path.ids[: len(question.ids)])
    assert len(question.ids) == path.answers[0].targets[0]


@pytest.fixture
def thinking(tokenizer):
    """Qwen3's template, or another source, with these variables."""
    source_of_qwen3 = (Path(__file__).parent / "templates" / "qwen3.jinja").read_text(encoding="utf-8")

    def build(variables, source=source_of_qwen3):
        special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
        return ChatFormat(ChatTemplate(source, special=special, variables=variables), tokenizer.backend_tokenizer, "<|im_end|>")

    return build


def test_a_template_that_writes_the_question_anew(form, monkeypatch):
    question = ask(row().messages[:2], form)
    monkeypatch.setitem(vars(question), "ids", question.ids[:-1] + 1)
    with pytest.raises(BadConversation, match="anew"):
        answer_ids(question, "甲", form)
