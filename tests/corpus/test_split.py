"""Splits against brute force, and the leak check against sets of tuples."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.corpus.split import choose_validation, contiguous_validation, counting_unit, leaked_share
from stylora.errors import UserError

SHARES = st.floats(0.01, 0.99)
BOOKS = st.dictionaries(st.text("甲乙丙丁abc", min_size=1, max_size=4), st.integers(1, 1000), min_size=2, max_size=8)


@settings(max_examples=150, deadline=None)
@given(BOOKS, SHARES, st.integers(0, 5))
def test_no_set_of_books_is_nearer_to_the_share(sizes: dict[str, int], share: float, seed: int) -> None:
    chosen = choose_validation(sizes, share, seed)
    assert chosen < set(sizes) and chosen
    target = share * sum(sizes.values())
    groups = (g for n in range(1, len(sizes)) for g in itertools.combinations(sizes.values(), n))
    best = min(abs(sum(group) - target) for group in groups)
    assert abs(sum(sizes[name] for name in chosen) - target) == pytest.approx(best, abs=1e-6)


@given(BOOKS, SHARES, st.integers(0, 5), st.randoms())
def test_the_order_of_the_books_is_without_meaning(sizes: dict[str, int], share: float, seed: int, random) -> None:
    items = list(sizes.items())
    random.shuffle(items)
    assert choose_validation(dict(items), share, seed) == choose_validation(sizes, share, seed)


def test_the_seed_decides_among_equals() -> None:
    sizes = {f"book{i}": 100 for i in range(20)}
    chosen = {choose_validation(sizes, 0.05, seed) for seed in range(30)}
    assert all(len(names) == 1 for names in chosen)
    assert len(chosen) > 5


def test_large_libraries_are_met_closely_and_quickly() -> None:
    rng = np.random.default_rng(0)
    sizes = {f"{i:04d}": int(s) for i, s in enumerate(rng.integers(50_000, 5_000_000, 3000))}
    total = sum(sizes.values())
    assert sum(sizes[name] for name in choose_validation(sizes, 0.05, 1)) / total == pytest.approx(0.05, rel=1e-2)


def test_nothing_to_hold_out_of_less_than_two_books() -> None:
    assert choose_validation({}, 0.1, 0) == choose_validation({"a": 5}, 0.1, 0) == frozenset()
    assert choose_validation({"a": 5, "empty": 0}, 0.1, 0) == frozenset()
    assert choose_validation({"a": 10_000, "b": 9_000}, 0.01, 0) == {"b"}


@given(st.lists(st.integers(1, 100), min_size=2, max_size=30), SHARES)
def test_the_run_at_the_end_is_the_nearest_run(sizes: list[int], share: float) -> None:
    held = contiguous_validation(sizes, share)
    assert held.stop == len(sizes) and 1 <= len(held) < len(sizes) and held.step == 1
    runs = [abs(sum(sizes[k:]) - share * sum(sizes)) for k in range(1, len(sizes))]
    assert abs(sum(sizes[i] for i in held) - share * sum(sizes)) == pytest.approx(min(runs))


@pytest.mark.parametrize("sizes", [[], [10]])
def test_one_chapter_cannot_be_split(sizes: list[int]) -> None:
    with pytest.raises(UserError, match="two chapters"):
        contiguous_validation(sizes, 0.1)


def brute(train: list[np.ndarray], validation: np.ndarray, run: int) -> float:
    seen = {tuple(a[i : i + run].tolist()) for a in train for i in range(len(a) - run + 1)}
    runs = [tuple(validation[i : i + run].tolist()) for i in range(len(validation) - run + 1)]
    return sum(r in seen for r in runs) / len(runs) if runs else 0.0


ARRAYS = st.lists(st.integers(0, 2), max_size=60).map(lambda x: np.asarray(x, np.int32))


@settings(max_examples=200, deadline=None)
@given(st.lists(ARRAYS, max_size=4), ARRAYS, st.integers(1, 9))
def test_leaks_are_those_of_brute_force(train: list[np.ndarray], validation: np.ndarray, run: int) -> None:
    assert leaked_share(train, validation, run) == pytest.approx(brute(train, validation, run), abs=1e-12)


def test_leaks_at_the_default_run_and_across_pieces() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 150_000, 2_500_000, dtype=np.int32)
    border = 1 << 20
    validation = np.concatenate([train[border - 30 : border + 30], rng.integers(0, 150_000, 100, dtype=np.int32)])
    assert leaked_share([train], validation) == pytest.approx((60 - 23) / (160 - 23))
    assert leaked_share([train[:border], train[border:]], validation) == pytest.approx(2 * (30 - 23) / (160 - 23))
    assert leaked_share([train], validation[60:]) == 0.0
    assert leaked_share([train], validation[:23]) == 0.0
    assert leaked_share([train.astype(np.uint16)], (validation % 65536).astype(np.int64)) > 0.2


def test_regular_sequences_do_not_collide() -> None:
    thue = np.array([bin(i).count("1") & 1 for i in range(4096)])
    assert leaked_share([thue], 1 - thue[:64], 64) == brute([thue], 1 - thue[:64], 64)
    assert leaked_share([np.zeros(100, int)], np.ones(100, int)) == 0.0
    assert leaked_share([np.zeros(24, int)], np.zeros(100, int)) == 1.0


def test_memory_is_flat() -> None:
    train = np.random.default_rng(0).integers(0, 150_000, 1 << 23, dtype=np.int32)
    validation = train[:50_000].copy()
    tracemalloc.start()
    leaked_share([train], validation)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_the_unit_says_whether_sums_are_exact() -> None:
    assert counting_unit({}, 0.5) == counting_unit({"a": 3, "empty": 0}, 0.5) == 1
    assert counting_unit({f"{n}": 1 for n in range(1000)}, 0.1) == 1 < counting_unit({f"{n}": 1 for n in range(60_000)}, 0.1)
