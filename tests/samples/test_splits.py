"""Splits by group: nothing of a group or equal to a row on the other side, the share reached, seeds that count; nested fractions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.samples.conversations import Conversation, conversation
from stylora.samples.splits import held_out, inseparable, one_by_one, subset


def row(text: str, group: object = None) -> Conversation:
    return conversation({"prompt": text, "completion": "y", "group": group}, origin="r", source="r")


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | st.sampled_from("ABCDE")), max_size=20),
    st.floats(0.05, 0.9), st.integers(0, 3),
)  # fmt: skip
def test_equal_rows_and_groups_stay_on_one_side(made, share, seed):
    rows = [row(text, group) for text, group in made]
    sides = held_out(rows, share, seed)
    for key in (lambda each: each.fingerprint, lambda each: each.group):
        for name in {key(each) for each in rows} - {None}:
            assert len({side for each, side in zip(rows, sides, strict=True) if key(each) == name}) == 1
    parts = len(set(inseparable(rows)))
    assert any(sides) == (parts > 1) and (not all(sides) or not sides)
    assert held_out(rows, share, seed) == sides and not any(held_out(rows, 0.0, seed))


def test_what_cannot_be_parted_is_linked_through_others():
    rows = [row("a", "A"), row("a", "B"), row("b", "B"), row("c", "C"), row("b"), row("d")]
    names = inseparable(rows)
    assert names[0] == names[1] == names[2] == names[4] and len(set(names)) == 3


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_share_is_of_rows_whatever_the_sizes_of_groups(share):
    rng = np.random.default_rng(0)
    rows = [row(f"{group} {n}", f"g{group}") for group in range(60) for n in range(int(rng.integers(1, 40)))]
    drawn = [held_out(rows, share, seed) for seed in (0, 1)]
    assert drawn[0] != drawn[1] and all(sum(sides) == pytest.approx(share * len(rows), abs=1) for sides in drawn)


def test_without_groups_the_split_is_of_different_rows():
    """The rule that data without groups have always had: their split must not change under a run."""
    rows = [row(f"{n % 20}") for n in range(60)]
    names = sorted({each.fingerprint for each in rows})
    chosen = {names[i] for i in np.random.default_rng(7).permutation(20)[:5]}
    assert held_out(rows, 0.25, 7) == [each.fingerprint in chosen for each in rows]
    assert held_out([row("a", "A")], 0.5, 0) == [False] and held_out([], 0.5, 0) == []


@given(st.integers(0, 200), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 3))
def test_fractions_are_nested(count, one, other, seed):
    small, large = (subset(count, fraction, seed) for fraction in sorted((one, other)))
    assert set(small) <= set(large) and small == sorted(set(small)) and subset(count, 1.0, seed) == list(range(count))
    assert len(large) == (max(1, round(max(one, other) * count)) if count else 0)


def test_very_many_small_groups_are_held_out_by_the_share_too():
    """The table of sums would count each in units of many rows, and hold out a tenth of what was asked for."""
    rows = [row(f"{n}", f"g{n}") for n in range(60_000)]
    drawn = [held_out(rows, 0.1, seed) for seed in (0, 1)]
    assert [sum(sides) for sides in drawn] == [6_000, 6_000] and drawn[0] != drawn[1]
    assert held_out(rows[::-1], 0.1, 0)[::-1] == drawn[0], "the order of the rows is without meaning"


@given(
    st.dictionaries(st.text("甲乙abc", min_size=1, max_size=4), st.integers(1, 50), min_size=1, max_size=30),
    st.floats(0.01, 0.99), st.integers(0, 3),
)  # fmt: skip
def test_one_by_one_comes_as_near_as_its_smallest_group(sizes, share, seed):
    chosen, target = one_by_one(sizes, share, seed), share * sum(sizes.values())
    left = [size for name, size in sizes.items() if name not in chosen]
    held = sum(sizes[name] for name in chosen)
    assert chosen <= set(sizes) and left and (bool(chosen) or len(sizes) == 1)
    assert held <= target < held + min(left) or len(sizes) == 1 or (len(chosen) == 1 and held == min(sizes.values()))
    assert one_by_one(dict(reversed(sizes.items())), share, seed) == chosen


@pytest.mark.parametrize("count", [2, 50, 3_000])
def test_where_sums_are_exact_nothing_is_drawn_one_by_one(count, monkeypatch):
    rows = [row(f"{n}", f"g{n % count}") for n in range(2 * count)]
    monkeypatch.setattr("stylora.samples.splits.one_by_one", None)
    assert sum(held_out(rows, 0.2, 0)) == max(2, round(0.4 * count))
