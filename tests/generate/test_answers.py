"""Answers in batches: those of every question by itself, of transformers' own greedy search, and held to a schema where one is given."""

import json

import numpy as np
import pytest
import torch

from stylora.errors import UserError
from stylora.generate.answers import Schema, answer_questions, shares_cache
from stylora.generate.decode import end_tokens
from stylora.generate.shared_cache import SharedCache

SCHEMA = {"type": "object", "additionalProperties": {"enum": ["a", "b"]}, "minProperties": 1, "maxProperties": 2}


@pytest.fixture(scope="module")
def model(random_model):
    return random_model("Qwen3")


@pytest.fixture(scope="module")
def questions(tokenizer) -> list[np.ndarray]:
    """Different lengths, two with a beginning in common, one that is the other's beginning, one twice."""
    texts = ["sys: bus?", "sys: bus? yes", "sys: car", "other", "sys: car"]
    return [np.array(tokenizer(text)["input_ids"], np.int32) for text in texts]


def ask(model, tokenizer, questions, **options):
    return answer_questions(model, tokenizer, questions, ends=end_tokens(model, tokenizer), **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize("kind", ["Qwen3", "Mistral", "Llama", "Gemma3Text", "Qwen3Next", "Qwen3_5Text"])
def test_they_are_transformers_greedy_search(kind, random_model, tokenizer, questions):
    model = random_model(kind, max_position_embeddings=256)
    found = ask(model, tokenizer, questions, batch_size=3)
    for question, answer in zip(questions, found, strict=True):
        row = torch.from_numpy(question.astype(np.int64))[None]
        with torch.no_grad():
            whole = model.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False, use_cache=True,
                eos_token_id=sorted(end_tokens(model, tokenizer)), pad_token_id=0,
            )[0]  # fmt: skip
        new = whole[len(question) :].tolist()
        assert answer.stopped == (new[-1] in end_tokens(model, tokenizer))
        assert answer.text == tokenizer.decode(new[: len(new) - answer.stopped], skip_special_tokens=True).rstrip("\ufffd")


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_changes_nothing(batch_size, model, tokenizer, questions):
    alone = [ask(model, tokenizer, [question])[0] for question in questions]
    together = ask(model, tokenizer, questions, batch_size=batch_size)
    assert [each.text for each in together] == [each.text for each in alone]
    np.testing.assert_allclose([each.confidence for each in together], [each.confidence for each in alone], rtol=1e-4)
    assert together[2] == together[4]


def test_confidence_is_the_geometric_mean_of_the_chosen_probabilities(model, tokenizer, questions):
    (answer,) = ask(model, tokenizer, questions[:1], max_new_tokens=3)
    ids, product = questions[0].tolist(), 1.0
    for _ in range(3):
        with torch.no_grad():
            share = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        token = int(share.argmax())
        product *= share[token].item()
        ids.append(token)
    assert answer.confidence == pytest.approx(product ** (1 / 3), rel=1e-4)


def test_a_schema_is_kept_to_or_the_answer_is_cut_short(model, tokenizer, questions):
    ends = end_tokens(model, tokenizer)
    schema = Schema(
        {"type": "object", "properties": {"k": {"enum": ["a", "b"]}}, "required": ["k"], "additionalProperties": False}, tokenizer,
        vocabulary=model.get_output_embeddings().weight.shape[0], ends=ends,
    )  # fmt: skip
    for answer in ask(model, tokenizer, questions, schema=schema, max_new_tokens=40, batch_size=2):
        assert answer.stopped and json.loads(answer.text) in ({"k": "a"}, {"k": "b"})
        assert answer.text == json.dumps(json.loads(answer.text)), "the blanks of training"
    assert all(not answer.stopped for answer in ask(model, tokenizer, questions, schema=schema, max_new_tokens=3))


def test_a_schema_is_followed_in_the_order_of_sorted_keys(model, tokenizer):
    """As answers are learned; the schema itself may name them in any order, at any depth."""
    def whole(**properties):
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    outer = whole(to={"enum": ["x"]}, a=whole(z={"enum": [1]}, b={"enum": [2]}))
    schema = Schema(outer, tokenizer, vocabulary=320, ends=end_tokens(model, tokenizer))
    assert schema.accepts('{"a": {"b": 2, "z": 1}, "to": "x"}')
    assert not schema.accepts('{"to": "x", "a": {"b": 2, "z": 1}}') and not schema.accepts('{"a": {"b": 2, "z": 1}')


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Gemma2", "Mistral"])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_one_trunk_for_all_rows_is_a_copy_for_each(kind, batch_size, random_model, tokenizer, questions, monkeypatch):
    """Answers on a shared cache, held to a schema or not; models with windows keep their own rows."""
    model, planted = random_model(kind), []
    plant = SharedCache.plant
    monkeypatch.setattr(SharedCache, "plant", lambda self, tree, trunk: planted.append(len(trunk)) or plant(self, tree, trunk))
    schema = Schema(SCHEMA, tokenizer, vocabulary=320, ends=end_tokens(model, tokenizer))
    alike = [*questions[:3], questions[4]]
    for held in (None, schema):
        copied, shared = (ask(model, tokenizer, alike, schema=held, batch_size=batch_size, packs=packs) for packs in (False, True))
        assert [(each.text, each.stopped) for each in shared] == [(each.text, each.stopped) for each in copied]
        np.testing.assert_allclose([each.confidence for each in shared], [each.confidence for each in copied], rtol=1e-4)
    assert bool(planted) == shares_cache(model) and (not planted or min(planted) >= 5)


def test_what_cannot_be_asked(model, tokenizer):
    with pytest.raises(UserError, match="question 1: got 300 tokens, expected at most 255"):
        ask(model, tokenizer, [np.ones(300, np.int32)])
    with pytest.raises(UserError, match="task.json_schema"):
        Schema({"type": "nonsense"}, tokenizer, vocabulary=320, ends=frozenset([2]))


def test_no_trunk_for_layers_that_keep_a_window_or_a_state(random_model):
    assert shares_cache(random_model("Qwen3")) and shares_cache(random_model("Llama"))
    assert not shares_cache(random_model("Mistral")) and not shares_cache(random_model("Gemma3Text"))
