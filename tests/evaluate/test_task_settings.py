"""The `task` section: which labels there are to choose from."""

from __future__ import annotations

import pytest

from stylora.errors import UserError
from stylora.evaluate.task_settings import label_sets


def test_labels_are_the_different_answers_or_those_that_are_named():
    assert label_sets(None, ["b", "a", "b"]) == {"": ("a", "b")}
    assert label_sets(("x", "y"), ["a"]) == {"": ("x", "y")}
    assert label_sets({"[car]": ("x", "y")}, []) == {"[car]": ("x", "y")}


@pytest.mark.parametrize(
    ("answers", "got"), [(["a", "a"], "label, and one answer in all training rows, 'a'"), ([], "label, and no answer")]
)
def test_a_single_answer_is_no_choice(answers, got):
    with pytest.raises(UserError) as caught:
        label_sets(None, answers)
    assert f"data.answers: got {got}, expected at least two different answers" in str(caught.value)
