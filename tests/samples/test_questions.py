"""Questions: the very tokens that stand before the answer in training."""

import numpy as np
import pytest

from stylora.run.plan import chat_format, open_tokenizer
from stylora.samples.conversations import BadConversation, conversation
from stylora.samples.questions import answer_ids, ask, question_of

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


def test_a_template_that_writes_the_question_anew(form, monkeypatch):
    question = ask(row().messages[:2], form)
    monkeypatch.setitem(vars(question), "ids", question.ids[:-1] + 1)
    with pytest.raises(BadConversation, match="anew"):
        answer_ids(question, "甲", form)
