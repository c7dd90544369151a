"""Figures of answers against scikit-learn and cases made by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from stylora.evaluate.judging import OTHER, Answered, errors, judge

LABELS = ["公交车", "校车", "Motor Home", "Refuse Truck"]
LEAF = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -0.0]) | st.sampled_from(["", "速度", "1", "é"])
VALUES = st.recursive(
    LEAF, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "速", ""]), part, max_size=3), max_leaves=8
)


def answered(expected: str, got: str, label_set: str = "", number: int = 1) -> Answered:
    return Answered(origin=f"rows.jsonl:{number}", input="x", expected=expected, got=got, confidence=0.25, label_set=label_set)


def pair_of_json(expected: object, got: object) -> Answered:
    return answered(json.dumps(expected), got if isinstance(got, str) else json.dumps(got))


# --- texts and labels ---------------------------------------------------------------------------------------------------------------------


def test_texts_are_equal_after_stripping():
    rows = [answered("a b", " a b\n"), answered("a b", "a  b"), answered("A", "a"), answered("", " ")]
    assert judge("text", rows, None) == {"rows": 4, "exact": 0.5}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "卡车", "unknown"])), min_size=1, max_size=30))
def test_one_set_as_scikit_learn_has_it(pairs):
    expected, got = (list(column) for column in zip(*pairs, strict=True))
    figures = judge("label", [answered(*pair) for pair in pairs], {"": LABELS})
    seen = [answer if answer in LABELS else OTHER for answer in got]
    occurring = [label for label in LABELS if label in expected or label in seen]
    assert figures["accuracy"] == figures["exact"] == pytest.approx(accuracy_score(expected, got))
    assert figures["macro_f1"] == pytest.approx(f1_score(expected, seen, labels=occurring, average="macro", zero_division=0))
    confusion = figures["sets"][""]["confusion"]
    assert confusion["labels"] == [*LABELS, OTHER]
    assert np.array_equal(confusion["matrix"], confusion_matrix(expected, seen, labels=[*LABELS, OTHER]))


def test_sets_are_judged_apart_and_all_labels_alike():
    """A label of one set given in the other is `(other)` there; the mean is over labels, not over sets."""
    rows = [
        answered("CO2", "CO2", "[pollutant]"), answered("CO", "CO2", "[pollutant]"), answered("校车", "校车", "[vehicle]"),
        answered("校车", "CO", "[vehicle]"),
    ]  # fmt: skip
    figures = judge("label", rows, {"[vehicle]": ["公交车", "校车"], "[pollutant]": ["CO", "CO2"]})
    assert (figures["accuracy"], figures["rows"]) == (0.5, 4)
    one, other = figures["sets"]["[pollutant]"], figures["sets"]["[vehicle]"]
    assert one["confusion"] == {"labels": ["CO", "CO2", OTHER], "matrix": [[0, 1, 0], [0, 1, 0], [0, 0, 0]]}
    assert one["macro_f1"] == pytest.approx((0 + 2 / 3) / 2)
    assert other["confusion"] == {"labels": ["公交车", "校车", OTHER], "matrix": [[0, 0, 0], [0, 1, 1], [0, 0, 0]]}
    assert other["macro_f1"] == pytest.approx(2 / 3), "a label that never occurs does not count"
    assert figures["macro_f1"] == pytest.approx((0 + 2 / 3 + 2 / 3) / 3)


def test_without_a_list_of_labels_the_expected_ones_are_the_set():
    figures = judge("label", [answered("a", "a"), answered("b", "c"), answered(" a", "b")], None)
    assert figures["sets"][""]["confusion"] == {"labels": ["a", "b", OTHER], "matrix": [[1, 1, 0], [0, 0, 1], [0, 0, 0]]}


def test_an_expected_answer_outside_its_set_can_be_right():
    figures = judge("label", [answered("z", "z"), answered("z", "y")], {"": ["a"]})
    assert figures["accuracy"] == 0.5
    assert figures["sets"][""]["confusion"] == {"labels": ["a", "z", OTHER], "matrix": [[0, 0, 0], [0, 1, 1], [0, 0, 0]]}


# --- JSON ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "got", "hits", "n_got", "n_expected"),
    [
        ({"a": "x", "b": "y"}, {"b": "y", "a": "x"}, 2, 2, 2),
        ({"a": "x", "b": "y"}, {"a": "x", "b": "z", "c": "w"}, 1, 3, 2),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "c": 2}, 1, 2, 2),
        ({"a": ["x", "x", "y"]}, {"a": ["y", "x"]}, 2, 2, 3),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"c": 2, "b": 1}]}, 1, 1, 1),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1, "c": 3}]}, 0, 1, 1),
        ({"a": "x"}, {"a": ["x"]}, 0, 1, 1),
        ({"a": 1}, {"a": "1"}, 0, 1, 1),
        ({"a": 1}, {"a": True}, 0, 1, 1),
        ({"a": 1}, {"a": 1.0}, 1, 1, 1),
        ({"a": {}}, {"a": []}, 0, 1, 1),
        ({}, {}, 1, 1, 1),
        ({"a": "x"}, "no JSON", 0, 0, 1),
        ({"a": "x"}, '{"a": "x"', 0, 0, 1),
        ({"a": "x"}, '{"a": NaN}', 0, 0, 1),
        ({"a": "x"}, "[" * 100_000, 0, 0, 1),
        ({"a": "x"}, "9" * 10_000, 0, 0, 1),
    ],
)
def test_pairs_by_hand(expected, got, hits, n_got, n_expected):
    figures = judge("json", [pair_of_json(expected, got)], None)
    assert figures["json_valid"] == (0.0 if n_got == 0 else 1.0)
    assert figures["pair_precision"] == (hits / n_got if n_got else 0.0)
    assert figures["pair_recall"] == hits / n_expected
    assert figures["pair_f1"] == 2 * hits / (n_got + n_expected)


def test_rows_are_summed_before_they_are_divided():
    rows = [pair_of_json({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}), pair_of_json({"a": 1}, {"a": 2}), pair_of_json({"a": 1}, "?")]
    assert judge("json", rows, None) == {
        "rows": 3, "exact": 1 / 3, "json_valid": 2 / 3, "pair_precision": 3 / 4, "pair_recall": 3 / 5, "pair_f1": 2 * 3 / (4 + 5),
    }  # fmt: skip


def test_the_order_of_a_list_costs_exactness_and_no_pair():
    figures = judge("json", [pair_of_json([1, 2], [2, 1])], None)
    assert (figures["exact"], figures["pair_f1"]) == (0.0, 1.0)


def as_number(value: Any) -> Any:
    """A value with lists as sorted texts: what pairs can tell apart. true is not 1, and 1.0 is."""
    if isinstance(value, dict):
        return {key: as_number(part) for key, part in value.items()}
    if isinstance(value, list):
        return sorted(json.dumps(plain(item), sort_keys=True) for item in value)
    return (type(value) is bool, value)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value == int(value) else value


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES) | VALUES.map(lambda value: (value, value)), min_size=1, max_size=4))
def test_f1_is_1_where_all_is_equal_and_nowhere_else(pairs):
    figures = judge("json", [pair_of_json(expected, json.dumps(got)) for expected, got in pairs], None)
    assert (figures["pair_f1"] == 1.0) == all(as_number(expected) == as_number(got) for expected, got in pairs)
    assert figures["json_valid"] == 1.0
    if figures["exact"] == 1.0:
        assert figures["pair_f1"] == 1.0


def permuted(value: Any, data) -> Any:
    if isinstance(value, dict):
        return {key: permuted(value[key], data) for key in data.draw(st.permutations(list(value)))}
    return [permuted(item, data) for item in value] if isinstance(value, list) else value


@settings(max_examples=100, deadline=None)
@given(VALUES, VALUES, st.data())
def test_the_order_of_keys_and_blanks_change_nothing(expected, got, data):
    before = judge("json", [pair_of_json(expected, json.dumps(got))], None)
    written = json.dumps(permuted(got, data), separators=(",", ":"), ensure_ascii=False)
    other = answered(json.dumps(permuted(expected, data), indent=1), written)
    assert judge("json", [other], None) == before


# --- errors -------------------------------------------------------------------------------------------------------------------------------


def test_errors_are_the_wrong_rows_in_order():
    rows = [answered("a", "b", number=1), answered("a", "a ", number=2), answered("a", "", number=3)]
    assert list(errors(rows, "label")) == [
        {"where": "rows.jsonl:1", "input": "x", "expected": "a", "got": "b", "confidence": 0.25},
        {"where": "rows.jsonl:3", "input": "x", "expected": "a", "got": "", "confidence": 0.25},
    ]
    same = answered('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    assert [len(list(errors([same], kind))) for kind in ("json", "text", "label")] == [0, 1, 1]


def test_nothing_to_judge_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        judge("text", [], None)
    with pytest.raises(AssertionError, match=r"rows\.jsonl:1"):
        judge("json", [answered("no JSON", "{}")], None)
