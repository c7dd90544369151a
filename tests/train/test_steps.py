"""Steps are a pure function of their number: any order of access, every window once an epoch, the divisor, packing, shares."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylora.forest import Anchors, Sample, chain, edges
from stylora.model.adapter import Adapter, attach
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.samples.clm import clm
from stylora.train.steps import Step, Steps, cuts, idle, shares


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
    columns = ("ids", "end", "edge_source", "edge_target", "edge_weight", "anchor_source", "anchor_weight")
    arrays = [[getattr(batch, column).tolist() for column in columns] for batch in step.batches]
    return arrays, step.weight, step.anchor_weight, step.samples, step.tokens, step.forest_tokens


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
        anchors = Anchors(source=np.array([0, 2], np.int32), weight=np.array([2, index + 0.5], np.float32))
        weights = np.array([0.5, 0.25, 1 + index], np.float32)
        return Sample(forest=chain([index, 1, 2]), edges=edges([0, 0, 1], [1, 5, 2], weights), anchors=anchors)

    run = steps(build=weighted, tokens_per_microbatch=3)
    for number in range(6):
        indices = order(23)(0)[number * 4 : number * 4 + 4]
        assert len(run[number].batches) == len(indices)
        assert run[number].weight == pytest.approx(sum(1.75 + i for i in indices.tolist()))
        assert run[number].anchor_weight == pytest.approx(sum(2.5 + i for i in indices.tolist()))


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


# --- prefixes shared


def alike(index: int, epoch: int) -> Sample:
    """Four tokens that all samples share, two of its own."""
    return clm(np.array([7, 8, 9, 10, 11 + index, 1000 + epoch], np.int32))


@pytest.mark.parametrize(("budget", "computed"), [(100, 4 + 4 * 2), (8, 2 * (4 + 2 * 2)), (6, 4 * 6)])
def test_shared_prefixes_are_computed_once_and_weigh_the_same(budget, computed):
    apart, shared = (steps(build=alike, tokens_per_microbatch=budget, share_prefixes=share)[0] for share in (False, True))
    assert (apart.tokens, apart.forest_tokens) == (24, 24)
    assert (shared.tokens, shared.forest_tokens) == (24, computed)
    assert shared.weight == apart.weight == 20
    assert sum(batch.edge_weight.sum() for batch in shared.batches) == 20
    assert all(batch.ids.size <= budget for batch in shared.batches)


def test_a_model_that_cannot_keep_branches_apart_shares_no_prefixes():
    assert content(steps(build=alike, share_prefixes=True, packs=False)[0]) == content(steps(build=alike, packs=False)[0])
    assert content(steps(build=alike, share_prefixes=True)[0]) != content(steps(build=alike)[0])


# --- several processes


@pytest.mark.parametrize("row_tokens", [None, 20])
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_a_step_without_loss_and_agree_on_its_divisor(ranks, row_tokens):
    alone = steps(row_tokens=row_tokens)
    each = [steps(row_tokens=row_tokens, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert [len(run) for run in each] == [len(alone)] * ranks
    for number in range(len(alone)):
        whole, parts = alone[number], [run[number] for run in each]
        assert sorted(sum((windows_of(part) for part in parts), [])) == sorted(windows_of(whole))
        for part in parts:
            assert (part.weight, part.anchor_weight, part.samples, part.tokens) == (
                whole.weight, whole.anchor_weight, whole.samples, whole.tokens)  # fmt: skip
            assert part.forest_tokens == sum(batch.tokens for batch in part.batches)
        assert sum(part.forest_tokens for part in parts) == whole.forest_tokens == whole.tokens
        assert sum(batch.edge_weight.sum() for part in parts for batch in part.batches) == whole.weight


def test_a_process_without_a_share_takes_part_with_nothing():
    whole = steps(samples_per_step=1)[4]
    parts = [steps(samples_per_step=1, rank=rank, ranks=3)[4] for rank in range(3)]
    assert content(parts[0]) == content(whole)
    for part in parts[1:]:
        (batch,) = part.batches
        assert len(batch.edge_source) == len(batch.anchor_source) == 0 and batch.ids.size == whole.tokens
        assert (part.weight, part.samples, part.tokens, part.forest_tokens) == (whole.weight, 1, whole.tokens, 0)


def of_lengths(lengths: list[int]) -> list[Sample]:
    return [clm(np.full(length, number, np.int32)) for number, length in enumerate(lengths)]


def loads(dealt: list[list[Sample]]) -> list[int]:
    return [sum(map(len, part)) for part in dealt]


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 8))
def test_shares_are_a_partition_the_same_every_time_and_none_is_far_ahead(lengths, ranks):
    samples = of_lengths(lengths)
    dealt = shares(samples, ranks)
    assert len(dealt) == ranks
    assert sorted(id(sample) for part in dealt for sample in part) == sorted(map(id, samples))
    assert [[id(sample) for sample in part] for part in shares(samples, ranks)] == [[id(sample) for sample in part] for part in dealt]
    # whoever is ahead got its last sample when it was behind: the others have at least as much as it had
    assert max(loads(dealt)) <= sum(lengths) / ranks + (1 - 1 / ranks) * max(lengths, default=0)


def best_possible(lengths: list[int], ranks: int) -> int:
    """The smallest largest load, by trying all ways to choose each process's samples."""
    if ranks == 1 or not lengths:
        return sum(lengths)
    first, rest = lengths[0], lengths[1:]
    return min(
        max(first + sum(rest[i] for i in chosen), best_possible([length for i, length in enumerate(rest) if i not in chosen], ranks - 1))
        for size in range(len(rest) + 1)
        for chosen in combinations(range(len(rest)), size)
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_shares_are_nearly_as_even_as_can_be(lengths, ranks):
    """Graham 1969: the longest load of LPT is at most 4/3 - 1/(3m) of the best."""
    assert max(loads(shares(of_lengths(lengths), ranks))) <= (4 / 3 - 1 / (3 * ranks)) * best_possible(lengths, ranks) + 1e-9


def test_shares_drawn():
    """Graham's worst case for two processes (7 where 6 is possible), and one where longest first is perfect."""
    assert loads(shares(of_lengths([2, 3, 2, 3, 2]), 2)) == [7, 5]
    assert [[len(sample) for sample in part] for part in shares(of_lengths([1, 9, 2, 8, 3, 7]), 3)] == [[9, 1], [8, 2], [7, 3]]


@given(st.lists(st.integers(0, 9), max_size=9))
def test_one_process_gets_its_samples_in_their_order(lengths):
    samples = of_lengths(lengths)
    (only,) = shares(samples, 1)
    assert list(map(id, only)) == list(map(id, samples)) and only is not samples


@pytest.mark.parametrize("masked", [False, True])
def test_an_idle_batch_gives_every_weight_a_gradient_of_zero(masked, random_model, tokenizer):
    samples = [clm(np.arange(3, 3 + length, dtype=np.int32)) for length in (9, 4, 6, 0)]
    if masked:
        samples = [Sample(forest=chain(np.where(sample.forest.ids % 2, -1, sample.forest.ids)), edges=sample.edges) for sample in samples]
    batch = idle(samples)
    assert (batch.ids.tolist(), len(batch.edge_source)) == ([samples[1].forest.ids.tolist()], 0)
    peft = attach(random_model("Qwen3").train(), Adapter(r=2, dropout=0.5), seed=0)
    loss = ForestModel(peft.get_base_model(), words=len(tokenizer))(to_tensors(batch, torch.device("cpu"), divisor=7.0))
    assert loss == 0
    loss.backward()
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)
    assert all(parameter.grad is None for parameter in peft.parameters() if not parameter.requires_grad)


def test_a_process_without_samples_is_idle_though_prefixes_are_shared():
    """Five samples for eight processes: three of them have nothing to lay out as a trie."""
    run = [steps(windows=5, samples_per_step=5, share_prefixes=True, rank=rank, ranks=8)[0] for rank in range(8)]
    assert [len(step.batches) for step in run] == [1] * 8
    assert sum(len(step.batches[0].edge_source) == 0 for step in run) == 3


# --- steps that count something else than samples


def units(epoch: int) -> np.ndarray:
    """1 to 9 of each of 23 windows, others in every epoch."""
    return np.random.default_rng((2, epoch)).integers(1, 10, 23)


def by_hand(counts: list[int], size: int) -> list[list[int]]:
    """Places in order, in steps of at most `size` units, each of at least one place."""
    found: list[list[int]] = []
    for place, count in enumerate(counts):
        if not found or sum(counts[each] for each in found[-1]) + count > size:
            found.append([])
        found[-1].append(place)
    return found


def test_cuts_drawn():
    assert cuts(np.array([3, 4, 4, 1, 9, 2]), 8).tolist() == [0, 2, 4, 5, 6]
    assert cuts(np.array([1, 1, 1, 1, 1]), 2).tolist() == [0, 2, 4, 5]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(1, 20))
def test_a_step_takes_samples_in_order_while_their_units_fit(counts, size):
    found = cuts(np.array(counts), size).tolist()
    assert [list(range(*ends)) for ends in pairwise(found)] == by_hand(counts, size)


@given(st.integers(1, 60), st.integers(1, 20))
def test_a_unit_each_is_the_same_as_none(windows, size):
    settings = dict(windows=windows, samples_per_step=size, num_train_epochs=2.3)
    ones, none = (steps(**settings, counts=counts) for counts in (lambda epoch: np.ones(windows, np.int64), None))
    assert (ones.ends, ones.per_epoch, len(ones)) == (none.ends, none.per_epoch, len(none))
    for number in (0, len(none) // 2, len(none) - 1):
        assert content(ones[number]) == content(none[number])
        assert ones.epochs_done(number + 1) == pytest.approx(none.epochs_done(number + 1))


def test_epochs_that_differ_in_their_steps_have_every_window_once():
    run = steps(counts=units, samples_per_step=12)
    assert len({end - begin for begin, end in pairwise([0, *run.ends])}) > 1, "they differ"
    for epoch, (begin, end) in enumerate(pairwise([0, *run.ends])):
        expected = [order(23)(epoch)[places].tolist() for places in by_hand(units(epoch)[order(23)(epoch)].tolist(), 12)]
        assert [sorted(windows_of(run[number])) for number in range(begin, end)] == [sorted(step) for step in expected]
        assert all(run.epoch_of(number) == epoch for number in range(begin, end))
        assert (run.begin(epoch), run.epochs_done(end)) == (begin, epoch + 1)
    assert len(run) == run.ends[-1]


@given(st.permutations(range(12)))
def test_any_order_of_access_gives_the_same_steps_of_any_size(numbers):
    straight, shuffled = (steps(counts=units, samples_per_step=30) for _ in range(2))
    assert len(straight) >= 12
    expected = [content(straight[number]) for number in range(12)]
    for number in numbers:
        assert content(shuffled[number]) == expected[number]


@pytest.mark.parametrize("most", [1, 5, 40])
def test_steps_of_units_may_be_counted_or_go_by_a_share_of_an_epoch(most):
    whole, counted = steps(counts=units, samples_per_step=12, num_train_epochs=9), steps(counts=units, samples_per_step=12, max_steps=most)
    assert len(counted) == most == counted.ends[-1] and counted.ends[:-1] == whole.ends[: len(counted.ends) - 1]
    assert content(counted[most - 1]) == content(whole[most - 1])
    first, second = whole.ends[0], whole.ends[1] - whole.ends[0]
    assert len(steps(counts=units, samples_per_step=12, num_train_epochs=1.5)) == first + math.ceil(second / 2)
    assert len(steps(counts=units, samples_per_step=12, num_train_epochs=0.001)) == 1


def test_processes_agree_on_steps_that_count_units():
    alone = steps(counts=units, samples_per_step=12)
    each = [steps(counts=units, samples_per_step=12, rank=rank, ranks=2) for rank in range(2)]
    for number in range(len(alone)):
        parts = [run[number] for run in each]
        busy = [part for part in parts if part.forest_tokens]  # one without a share reads something and learns nothing
        assert sorted(sum((windows_of(part) for part in busy), [])) == sorted(windows_of(alone[number]))
        assert [part.weight for part in parts] == [alone[number].weight] * 2
