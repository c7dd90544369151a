"""The `objective` section: what it refuses, and that a stored one opens again."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from stylora.samples.objective import Objective, Vocabulary, build_sample

VOCABULARY = Vocabulary(ordinary=np.arange(50, 60, dtype=np.int32), fim=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="clm", mask_ratio=0.2), "mask_ratio: objective `clm` does not read this"),
        (dict(kind="clm", loss="middle", spm_rate=0.1), "loss, spm_rate: objective `clm` does not read this"),
        (dict(kind="fim", whole_words=True), "whole_words: objective `fim` does not read this"),
        (dict(kind="span", fim_rate=0.5), "fim_rate: objective `span` does not read this"),
        (dict(mask_ratio=0), "greater than 0"),
        (dict(mask_ratio=1.01), "less than or equal to 1"),
        (dict(kind="fim", fim_rate=0), "greater than 0"),
        (dict(span_ratio=-0.1), "greater than or equal to 0"),
        (dict(span_length=(5, 3)), "1 <= shortest <= longest"),
        (dict(span_length=(0, 3)), "1 <= shortest <= longest"),
        (dict(kind="mlm"), "'clm', 'span', 'fim', 'answers' or 'branches'"),
        (dict(kinds="clm"), "Extra inputs"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValidationError, match=message):
        Objective(**settings)


@pytest.mark.parametrize("kind", ["clm", "span", "fim"])
def test_what_was_written_out_in_full_can_be_read_again(kind):
    """A run keeps its resolved recipe; it names only what this kind reads, so that it passes its own check."""
    objective = Objective(kind=kind)
    for dumped in (objective.model_dump(), objective.model_dump(mode="json")):
        assert Objective.model_validate(dumped) == objective
    assert objective.model_dump()["kind"] == kind


def test_all_that_a_kind_reads_is_written_out():
    assert set(Objective(kind="clm").model_dump()) == {"kind"}
    assert set(Objective(kind="span").model_dump()) == {"kind", "mask_ratio", "span_ratio", "span_length", "whole_words"}
    assert set(Objective(kind="fim").model_dump()) == {"kind", "fim_rate", "spm_rate", "loss"}


def test_clm_predicts_every_token_but_the_first():
    a, b, c, d = ids = np.array([7, 8, 9, 10], np.int32)
    sample = build_sample(Objective(kind="clm"), ids, vocabulary=VOCABULARY, key=(0, 0, 0, 0))
    assert sample.forest.ids.tolist() == ids.tolist()
    assert list(zip(sample.edges.source.tolist(), sample.edges.target.tolist(), strict=True)) == [(0, b), (1, c), (2, d)]
    assert sample.edges.weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize("length", [1, 2])
def test_clm_on_very_short_windows(length):
    assert len(build_sample(Objective(kind="clm"), np.arange(length, dtype=np.int32), vocabulary=VOCABULARY, key=(0,)).edges) == length - 1


@pytest.mark.parametrize("key", [(0, 0, 0, 0), (2**64 - 1, 0, -(2**63), 2**63 - 1)])
def test_any_integers_make_a_key(key):
    sample = build_sample(Objective(kind="span"), np.arange(40, dtype=np.int32), vocabulary=VOCABULARY, key=key)
    assert len(sample.edges) == round(0.15 * 39)
