"""Forms of answers: JSON keeps its value and loses its order, labels their blanks; whatever is not learned stays as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.samples.answer_forms import canonical_json, in_form
from stylora.samples.conversations import BadConversation, Conversation, conversation

USER = {"role": "user", "content": "问"}
CALL = [{"type": "function", "function": {"name": "find", "arguments": {}}}]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
)


def said(*answers: object) -> Conversation:
    """A conversation of these answers: texts, or messages."""
    messages = []
    for answer in answers:
        messages += [USER, answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}]
    return conversation({"messages": messages}, origin="rows.jsonl:1", source="rows")


def answers(row: Conversation) -> list[str]:
    return [message["content"] for message in row.messages if message["role"] == "assistant"]


@given(VALUES, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 2]))
def test_json_keeps_its_value_and_forgets_how_it_was_written(value, random, escaped, indent):
    def shuffled(part):
        if isinstance(part, dict):
            pairs = [(key, shuffled(item)) for key, item in part.items()]
            random.shuffle(pairs)
            return dict(pairs)
        return [shuffled(item) for item in part] if isinstance(part, list) else part

    canonical = canonical_json(json.dumps(value))
    assert json.loads(canonical) == value and canonical_json(canonical) == canonical
    assert canonical_json(json.dumps(shuffled(value), ensure_ascii=escaped, indent=indent)) == canonical


def test_keys_are_sorted_at_every_depth_and_lists_are_not():
    assert canonical_json('{"b": [3,1],"a":{"丁":2, "c":"\\u4e00"}}') == '{"a": {"c": "一", "丁": 2}, "b": [3, 1]}'


@pytest.mark.parametrize(("text", "reason"), [
    ("公交车", "Expecting value"), ("{'a': 1}", "Expecting property name"), ('{"a": 1} x', "Extra data"), ("", "Expecting value"),
    ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice"), ('[{"x": {"k": 1, "k": 2}}]', "the key 'k' stands twice"),
    ("[NaN]", "NaN is no number"), ("-Infinity", "-Infinity is no number"), ("1e999", "1e999 is too large"),
    ("0.12345678901234567890", "0.12345678901234567890 would become 0.12345678901234568"), ('{"a": [1e-400]}', "1e-400 would become 0.0"),
    ("1e-99999999999999999999", "would become 0.0"), ("[" * 100_000, "nested too deeply"), ("9" * 5000, "Exceeds the limit"),
])  # fmt: skip
def test_what_is_no_json_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        canonical_json(text)
    if text:
        with pytest.raises(BadConversation, match=f"the answer of message 2 is no JSON: .*{reason}"):
            in_form(said(text), "json", "all")


def test_only_what_is_learned_is_rewritten():
    messy = '{"b":1,"a":2}'
    answer = {"role": "assistant", "content": messy}
    row = said({**answer, "weight": 0}, messy, {**answer, "tool_calls": CALL}, messy)
    assert in_form(row, "text", "all") is row
    assert answers(in_form(row, "json", "all")) == [messy, '{"a": 2, "b": 1}', messy, '{"a": 2, "b": 1}']
    assert answers(in_form(row, "json", "last")) == [messy, messy, messy, '{"a": 2, "b": 1}']
    rewritten = in_form(row, "json", "all")
    assert (rewritten.weights, rewritten.tools, rewritten.origin, rewritten.group) == (row.weights, row.tools, row.origin, row.group)
    assert [m for m in rewritten.messages if m["role"] == "user"] == [USER] * 4
    assert in_form(said("no JSON", messy), "json", "last").messages[1]["content"] == "no JSON", "it is read and not learned"


def test_equal_in_form_is_equal():
    one, other = (in_form(said(text), "json", "all") for text in ('{"b":1,"a":2}', '{"a": 2, "b": 1}'))
    assert one.messages == other.messages and one.fingerprint == other.fingerprint == said('{"a": 2, "b": 1}').fingerprint
    assert in_form(said(" Bus\n"), "label", "all") == said("Bus")


def test_half_a_character_behind_an_escape_is_refused():
    """As text it is harmless; parsed and written with `ensure_ascii=False` it would reach the tokenizer."""
    assert said('{"a": "\\ud83d"}')
    with pytest.raises(BadConversation, match=r"U\+D83D"):
        in_form(said('{"a": "\\ud83d"}'), "json", "all")


@pytest.mark.parametrize(("written", "again"), [
    ("10.50", "10.5"), ("1E2", "100.0"), ("-0.0", "-0.0"), ("0.10", "0.1"), ("0.30000000000000004", "0.30000000000000004"),
    ("5e-324", "5e-324"), ("12345678901234567890", "12345678901234567890"), ("0e-500", "0.0"),
])  # fmt: skip
def test_numbers_are_rewritten_where_they_stay_the_same(written, again):
    assert canonical_json(written) == again
