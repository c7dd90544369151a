"""Steps are a pure function of their number: any order of access, every window once an epoch, the divisor, packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.forest import Sample, chain, edges
from stylora.samples.clm import clm
from stylora.train.steps import Step, Steps


def order(windows: int):
    """A fresh order of `windows` indices for each epoch."""
    return lambda epoch: np.random.default_rng((1, epoch)).permutation(windows)


def window(index: int, epoch: int) -> Sample:
    """`index` may be read off every token, `epoch` off the last; lengths differ."""
    return clm(np.array([index] * (3 + index % 5) + [1000 + epoch], np.int32))


def steps(windows: int = 23, build=window, **changes) -> Steps:
    settings = dict(samples_per_step=4, tokens_per_microbatch=20, row_tokens=None, num_train_epochs=3, max_steps=-1, packs=True)
    return Steps(order(windows), build, **{**settings, **changes})


def content(step: Step) -> tuple:
    """Everything in it, comparable."""
    columns = ("ids", "end", "edge_source", "edge_target", "edge_weight")
    arrays = [[getattr(batch, column).tolist() for column in columns] for batch in step.batches]
    return arrays, step.weight, step.samples, step.tokens, step.forest_tokens


def windows_of(step: Step) -> list[int]:
    """Indices of the windows in it: each has one token behind its own, the epoch's."""
    found = []
    for batch in step.batches:
        for line in batch.ids:
            found += [int(before) for before, token in zip(line[:-1], line[1:], strict=True) if token >= 1000]
    return found


@given(st.permutations(range(18)))
def test_any_order_of_access_gives_the_same_steps(numbers):
    straight, shuffled = steps(), steps()
    expected = [content(straight[number]) for number in range(18)]
    for number in numbers:
        assert content(shuffled[number]) == expected[number]


@pytest.mark.parametrize("row_tokens", [None, 20])
def test_every_window_once_an_epoch_in_the_order_given(row_tokens):
    run = steps(row_tokens=row_tokens)
    assert run.per_epoch == 6 and len(run) == 18
    for epoch in range(3):
        found = [windows_of(run[epoch * 6 + place]) for place in range(6)]
        assert [len(step) for step in found] == [4, 4, 4, 4, 4, 3], "samples_per_step, and a last partial step"
        expected = order(23)(epoch).tolist()
        for place, step in enumerate(found):
            assert sorted(step) == sorted(expected[place * 4 : place * 4 + 4])
        assert sorted(sum(found, [])) == list(range(23))


def test_builds_with_the_epoch_it_is_in():
    for number in (0, 5, 6, 17):
        ids = np.concatenate([batch.ids.ravel() for batch in steps()[number].batches])
        assert set(ids[ids >= 1000].tolist()) == {1000 + number // 6}


def test_the_divisor_is_the_sum_of_all_weights():
    def weighted(index: int, epoch: int) -> Sample:
        return Sample(forest=chain([index, 1, 2]), edges=edges([0, 0, 1], [1, 5, 2], np.array([0.5, 0.25, 1 + index], np.float32)))

    run = steps(build=weighted, tokens_per_microbatch=3)
    for number in range(6):
        indices = order(23)(0)[number * 4 : number * 4 + 4]
        assert len(run[number].batches) == len(indices)
        assert run[number].weight == pytest.approx(sum(1.75 + i for i in indices.tolist()))


def test_what_a_step_counts():
    step = steps()[0]
    indices = order(23)(0)[:4].tolist()
    assert step.samples == 4
    assert step.tokens == step.forest_tokens == sum(4 + i % 5 for i in indices)
    assert step.weight == step.tokens - 4


@pytest.mark.parametrize(
    ("max_steps", "epochs", "total"), [(-1, 3, 18), (-1, 0.5, 3), (-1, 0.01, 1), (-1, 1.1, 7), (5, 3, 5), (40, 1, 40), (1, 3, 1)]
)
def test_how_many_steps(max_steps, epochs, total):
    assert len(steps(max_steps=max_steps, num_train_epochs=epochs)) == total


def test_max_steps_may_run_through_many_epochs():
    run = steps(max_steps=40)
    assert sorted(sum((windows_of(run[n]) for n in range(30, 36)), [])) == list(range(23))
    with pytest.raises(IndexError):
        run[40]
    with pytest.raises(IndexError):
        run[-1]


def test_a_model_that_cannot_keep_documents_apart_gets_one_sample_a_row():
    packed, apart = steps(row_tokens=20), steps(row_tokens=20, packs=False)
    assert any(not batch.causal for batch in packed[0].batches)
    for number in range(len(apart)):
        for batch in apart[number].batches:
            assert batch.causal
            assert all(sum(line >= 1000) == 1 for line in batch.ids)
    assert sorted(windows_of(packed[0])) == sorted(windows_of(apart[0]))


def test_the_budget_holds_and_one_sample_may_fill_a_step():
    for number in range(18):
        assert all(batch.ids.size <= 20 for batch in steps()[number].batches)
    assert [step.samples for step in map(steps(samples_per_step=1).__getitem__, range(3))] == [1, 1, 1]
    assert len(steps(samples_per_step=1000, num_train_epochs=1)) == 1
