"""Split before windows, mixed by tokens, fresh every epoch and the same in every run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.samples.holdout import split_runs
from stylora.samples.settings import Data
from stylora.samples.store import Piece, TokenStore
from stylora.samples.text import TextData, draw_evenly, prepare_text


@pytest.fixture
def general(tmp_path: Path, a_book) -> Path:
    folder = tmp_path / "general"
    folder.mkdir()
    for number in range(20, 25):
        (folder / f"常{number}.txt").write_text(a_book(number, 20), encoding="utf-8")
    return folder


@pytest.fixture
def prepare(bpe, tmp_path):
    def prepared(train, *, words=False, context=1024, **settings) -> TextData:
        data = Data(train=train if isinstance(train, dict) else str(train), **{"window": 64, "min_window": 16, **settings})
        return prepare_text(
            data, tokenizer=bpe, tokenizer_hash="t", words=words, context=context, cache=tmp_path / "cache"
        )

    return prepared


def tokens_of(bpe, folder: Path) -> dict[str, list[int]]:
    return {path.stem: bpe.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids for path in folder.iterdir()}


def by_book(data: TextData, indices) -> dict[str, list[int]]:
    """The tokens of every book, its windows put back in order."""
    joined: dict[str, list[int]] = {}
    for index in sorted(indices):
        joined.setdefault(data.source(index), []).extend(data.ids(index).tolist())
    return joined


def test_every_token_is_trained_or_held_out_by_book(prepare, bpe, books):
    data = prepare(books, validation=0.2)
    whole = tokens_of(bpe, books)
    train = by_book(data, data.epoch(0))
    held = set(whole) - set(train)
    assert held and train == {name: whole[name] for name in train}
    assert sum(map(len, data.validation["style"])) == sum(len(whole[name]) for name in held)
    sides = {side.held: side for side in data.summary.sides}
    assert set(sides[True].books) == held and set(sides[False].books) == set(train)
    assert sides[False].tokens == sum(map(len, train.values())) and sides[False].windows == len(data)
    assert abs(sides[True].tokens / (sides[True].tokens + sides[False].tokens) - 0.2) < 0.1
    texts = {path.stem: path.read_text(encoding="utf-8") for path in books.iterdir()}
    assert sides[True].characters == sum(len(texts[name]) for name in held)
    predicted = sum(len(window) - 1 for window in data.validation["style"])
    per_token = sides[True].characters / sides[True].tokens  # one book is held out here
    assert sum(data.validation_characters["style"]) == pytest.approx(predicted * per_token, rel=0.01)
    assert data.validation["general"] == [] and data.summary.leak == {"style": 0.0}


@pytest.mark.parametrize("mixed", [{"general_ratio": 0.2, "overlap": 8}, {"general_ratio": 0.0}])
def test_texts_are_whole_and_each_once(prepare, bpe, books, general, mixed):
    """Whatever windows are cut from them, and whether they are trained on or not."""
    data = prepare({"a": {"train": str(books), "weight": 3.0}}, general=str(general), validation=["书3"], general_validation=0.3, **mixed)
    whole = tokens_of(bpe, books)
    assert [ids.tolist() for ids in data.texts("style", held=True)] == [whole["书3"]]
    ours = sorted(ids.tolist() for ids in data.texts("style", held=False))
    assert ours == sorted(ids for name, ids in whole.items() if name != "书3")
    both = [ids.tolist() for held in (True, False) for ids in data.texts("general", held=held)]
    assert sorted(both) == sorted(tokens_of(bpe, general).values())
    held = {ids.tobytes() for ids in data.texts("general", held=True)}
    assert held and all(any(window.tobytes() in text for text in held) for window in data.validation["general"])


def test_named_books_are_held_out_by_name_or_file(prepare, books):
    data = prepare(books, validation=["书3", str(books / "书5.txt"), "书7.txt"])
    sides = {side.held: side for side in data.summary.sides}
    assert set(sides[True].books) == {"书3", "书5", "书7"} and len(sides[False].books) == 7


def test_validation_windows_never_overlap_but_training_windows_may(prepare, bpe, books):
    data = prepare(books, validation=["书3"], overlap=8)
    assert np.concatenate(data.validation["style"]).tolist() == tokens_of(bpe, books)["书3"]
    first, second = (data.ids(index) for index in range(2))
    assert (first[-8:] == second[:8]).all()


def test_one_book_is_held_out_by_its_last_chapters(prepare, tmp_path, bpe, a_book):
    book = tmp_path / "一本.txt"
    book.write_text(a_book(1, 60, chapters=10), encoding="utf-8")
    data = prepare(book, validation=0.1)
    text = book.read_text(encoding="utf-8")
    last = text.index("第10章")
    assert bpe.decode(np.concatenate(data.validation["style"])) == text[last:]
    assert bpe.decode(by_book(data, data.epoch(0))["一本"]) == text[:last]


def test_one_text_without_chapters_is_held_out_from_a_sentence_on(prepare, tmp_path, bpe, a_book):
    book = tmp_path / "一本.txt"
    book.write_text(a_book(1, 60), encoding="utf-8")
    data = prepare(book, validation=0.1)
    train, held = by_book(data, data.epoch(0))["一本"], np.concatenate(data.validation["style"]).tolist()
    assert bpe.decode(train + held) == book.read_text(encoding="utf-8")
    assert abs(len(held) / len(train + held) - 0.1) < 0.02
    assert bpe.decode(train)[-1] in "。！…”\n"


def test_rows_are_held_out_by_source_or_else_by_row(prepare, tmp_path, a_book):
    rows = [{"text": a_book(i, 2), "source": f"s{i % 5}"} for i in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = prepare(file, format="text", validation=0.2)
    sides = {side.held: side for side in data.summary.sides}
    assert len(sides[True].books) == 1 and not set(sides[True].books) & set(sides[False].books)
    file.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows), encoding="utf-8")
    data = prepare(file, format="text", validation=0.2)
    sides = {side.held: side for side in data.summary.sides}
    assert abs(sides[True].tokens / (sides[True].tokens + sides[False].tokens) - 0.2) < 0.03
    assert max(data.lengths) <= 64


def test_no_window_runs_across_rows(prepare, tmp_path, bpe):
    texts = [f"第{i}行，他说走。" for i in range(30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    data = prepare(file, format="text", validation=0)
    assert sorted(bpe.decode(data.ids(i)) for i in range(len(data))) == sorted(texts)


def test_no_window_runs_across_general_lines(prepare, tmp_path, books, bpe):
    """Long lines are cut, short ones stay whole; not told so, windows run across them. The style's lines are none."""
    lines = [f"第{i}行" + "他说走。" * (i % 40) for i in range(1, 60)]
    file = tmp_path / "general.txt"
    file.write_text("\n\n".join(lines), encoding="utf-8")
    chosen = dict(general=str(file), general_ratio=0.3, validation=0, general_validation=0, general_repeat=True)
    cleaning = {"near_duplicates": False}
    told, whole = (prepare(books, **chosen, cleaning=cleaning, general_lines=lines) for lines in (True, False))
    read: dict[tuple[int, int], list[int]] = {}
    for i in range(len(told)):
        if told.part(i) == "general":
            read[told.sample_id(i)] = told.ids(i).tolist()
    texts: dict[int, list[int]] = {}
    for (line, _), ids in sorted(read.items()):
        texts[line] = texts.get(line, []) + ids
    assert {bpe.decode(ids) for ids in texts.values()} == set(lines)
    assert any("\n" in bpe.decode(whole.ids(i)) for i in range(len(whole)) if whole.part(i) == "general")
    style = [[d.ids(i).tolist() for i in range(len(d)) if d.part(i) == "style"] for d in (told, whole)]
    assert style[0] == style[1] and told.fingerprint != whole.fingerprint


def test_general_lines_are_held_out_as_wholes(prepare, tmp_path, books, bpe):
    lines = [f"第{i}行，" + "他说走。" * (i % 7) for i in range(100)]
    file = tmp_path / "general.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    data = prepare(books, general=str(file), general_ratio=0, general_lines=True, general_validation=0.2)
    held = {bpe.decode(ids) for ids in data.validation["general"]}
    assert held < set(lines) and 10 < len(held) < 40


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_split_covers_every_token_once(data):
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=12).filter(lambda s: sum(s) > 1))
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=len(sizes), max_size=len(sizes)))
    share = data.draw(st.sampled_from([0, 0.05, 0.3, 0.9]))
    ends = np.cumsum(sizes).tolist()
    pieces = [
        Piece(source=n, origin=n, fingerprint=n, chapter="", start=e - s, end=e, characters=2 * s)
        for n, s, e in zip(names, sizes, ends, strict=True)
    ]
    ids = np.array(data.draw(st.lists(st.sampled_from([0, 1]), min_size=ends[-1], max_size=ends[-1])), np.int32)
    store = TokenStore(folder=Path(), ids=ids, words=None, pieces=pieces, reports=[])
    runs = split_runs(store, share, chapters=data.draw(st.booleans()), seed=1, sentence_end=np.array([False, True]))
    assert [i for run in runs for i in range(run.start, run.end)] == list(range(ends[-1]))
    assert sum(run.characters for run in runs) == 2 * ends[-1]
    assert any(run.held for run in runs) == (share > 0)
    assert any(not run.held for run in runs)


# ------------------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.28])
def test_general_share_is_a_share_of_tokens(prepare, books, general, ratio):
    data = prepare(books, general=str(general), general_ratio=ratio, general_validation=0)
    longest = data.lengths.max()
    for epoch in range(5):
        chosen = data.epoch(epoch)
        general_tokens = sum(data.lengths[i] for i in chosen if data.part(i) == "general")
        style_tokens = data.lengths[chosen].sum() - general_tokens
        assert abs(general_tokens - ratio / (1 - ratio) * style_tokens) <= longest
        assert len(set(chosen.tolist())) == len(chosen) == data.summary.epoch_windows
    assert data.summary.general_share == pytest.approx(ratio, abs=longest / data.summary.epoch_tokens)
    assert data.summary.warnings == ()


def test_epochs_are_fresh_and_reproducible(prepare, books, general):
    one, two = (prepare(books, general=str(general), general_ratio=0.1) for _ in range(2))
    for epoch in range(3):
        assert (one.epoch(epoch) == two.epoch(epoch)).all()
    drawn = [frozenset(i for i in one.epoch(e).tolist() if one.part(i) == "general") for e in range(6)]
    style = [frozenset(i for i in one.epoch(e).tolist() if one.part(i) == "style") for e in range(6)]
    assert len(set(drawn)) > 1 and len(set(style)) == 1
    assert (one.epoch(0) != one.epoch(1)).any()
    other_seed = prepare(books, general=str(general), general_ratio=0.1, seed=1, validation=0.05)
    assert other_seed.epoch(0).tolist() != one.epoch(0).tolist()


def test_short_general_text_is_used_up_and_said(prepare, books, general):
    data = prepare(books, general=str(general), general_ratio=0.8)
    general_windows = [i for i in range(len(data)) if data.part(i) == "general"]
    assert set(general_windows) <= set(data.epoch(0).tolist())
    (warning,) = [w for w in data.summary.warnings if "short" in w]
    assert f"{data.summary.general_share:.2%}" in warning and "general_repeat" in warning
    assert data.summary.general_share < 0.8


def test_general_repeats_when_told(prepare, books, general):
    data = prepare(books, general=str(general), general_ratio=0.8, general_repeat=True)
    assert data.summary.general_share == pytest.approx(0.8, abs=0.005)
    assert not any("short" in warning for warning in data.summary.warnings)
    chosen = [i for i in data.epoch(0).tolist() if data.part(i) == "general"]
    times = Counter(data.ids(i).tobytes() for i in chosen)
    assert max(times.values()) - min(times.values()) <= 1 < max(times.values())
    ids = [data.sample_id(i) for i in chosen]
    assert len(set(ids)) == len(ids), "two times of one window would be masked alike"


def test_ratio_zero_uses_general_text_for_validation_only(prepare, books, general):
    data = prepare(books, general=str(general), general_ratio=0.0)
    assert {data.part(i) for i in range(len(data))} == {"style"} and data.validation["general"]
    assert data.summary.general_share == 0


def test_weights_of_styles(prepare, tmp_path, books, a_book):
    other = tmp_path / "另"
    other.mkdir()
    for number in range(30, 34):
        (other / f"另{number}.txt").write_text(a_book(number, 30), encoding="utf-8")
    styles = {"a": {"train": str(books), "weight": 0.5}, "b": {"train": [str(other)], "weight": 2}}
    data = prepare(styles, validation=0)
    tokens = {side.style: side.tokens for side in data.summary.sides if not side.held}
    halves = set()
    for epoch in range(6):
        chosen = data.epoch(epoch)
        a = [i for i in chosen.tolist() if data.source(i).startswith("书")]
        b = [i for i in chosen.tolist() if data.source(i).startswith("另")]
        halves.add(frozenset(a))
        assert abs(data.lengths[a].sum() - tokens["a"] / 2) <= 64
        assert data.lengths[b].sum() == 2 * tokens["b"]
        assert set(Counter(data.ids(i).tobytes() for i in b).values()) == {2}
        assert len(chosen) == data.summary.epoch_windows
    assert len(halves) > 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 99))
def test_drawing_evenly(lengths, count, seed):
    count = min(count, len(lengths))
    sizes = np.array(lengths)
    drawn = draw_evenly(sizes, count, np.random.default_rng(seed))
    assert len(set(drawn.tolist())) == count
    assert abs(sizes[drawn].sum() - count * sizes.mean()) <= sizes.max() - sizes.min()


def test_drawing_is_fair():
    rng = np.random.default_rng(0)
    sizes = np.arange(15) + 50
    times = np.bincount(np.concatenate([draw_evenly(sizes, 10, rng) for _ in range(3000)]), minlength=15)
    assert np.abs(times / 3000 - 10 / 15).max() < 0.05  # 0.0086 is one standard error


# ------------------------------------------------------------------------------------------------- what is handed out


def test_sample_ids_do_not_depend_on_the_rest_of_the_corpus(prepare, books, tmp_path):
    alone = prepare(books / "书4.txt", validation=0)
    among = prepare(books, validation=["书1"])
    mine = [i for i in range(len(among)) if among.source(i) == "书4"]
    assert [among.sample_id(i) for i in mine] == [alone.sample_id(i) for i in range(len(alone))]
    everything = [among.sample_id(i) for i in range(len(among))]
    assert len(set(everything)) == len(everything)
    assert all(0 <= hashed < 2**63 and number >= 0 for hashed, number in everything)


def test_word_starts_belong_to_the_window(prepare, bpe, books):
    data, plain = prepare(books, words=True), prepare(books)
    starts = data.word_starts(1)
    assert starts.dtype == bool and len(starts) == data.lengths[1] == len(data.ids(1))
    assert starts.any() and not starts.all() and plain.word_starts(1) is None
    assert data.ids(1).dtype == np.int32 and (data.ids(1) == plain.ids(1)).all()


def test_the_leak_check_finds_a_book_under_two_names(prepare, books):
    text = (books / "书9.txt").read_text(encoding="utf-8")
    (books / "又名.txt").write_text(text[: len(text) // 2], encoding="utf-8")
    loose = {"near_duplicates": False}
    data = prepare(books, validation=["又名"], cleaning=loose)
    assert data.summary.leak["style"] > 0.9
    assert any("stands in the training text" in warning for warning in data.summary.warnings)


def test_summary_as_json(prepare, books, general):
    (books / "坏.txt").write_bytes("他说走进来。".encode() * 20 + b"\n\xff\n")
    data = prepare(books, general=str(general), general_ratio=0.1)
    out = json.loads(json.dumps(data.summary.as_json()))
    assert set(out) == {field.name for field in dataclasses.fields(data.summary)}
    assert len(out["reports"]) == 11 + 5 and len(out["sides"]) == 4


# --------------------------------------------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"overlap": 64}, "data.overlap", "less than data.window, 64"),
        ({"min_window": 40}, "data.min_window", "at most half"),
        ({"general": "g", "general_ratio": 1}, "data.general_ratio", "below 1"),
        ({"general": "g", "general_ratio": -0.1}, "data.general_ratio", "got -0.1"),
        ({"general": "g"}, "data.general_ratio", "such as 0.1"),
        ({"general_ratio": 0.1}, "data.general", "nothing, while"),
        ({"train": []}, "data.train", "got nothing"),
        ({"train": {}}, "data.train", "got nothing"),
    ],
)
def test_settings_that_contradict_each_other(settings, where, message):
    with pytest.raises(UserError, match=message) as caught:
        Data(**{"train": "a", "window": 64, "min_window": 16, **settings})
    assert caught.value.where == where


@pytest.mark.parametrize("settings", [{"validation": 1.0}, {"window": 0}, {"windw": 3}, {"train": {"a": {"train": "x", "weight": 0}}}])
def test_settings_out_of_range(settings):
    with pytest.raises(pydantic.ValidationError):
        Data(**{"train": "a", **settings})


def test_a_window_longer_than_the_context(prepare, books):
    with pytest.raises(UserError, match="got 64 tokens, expected at most 32 tokens") as caught:
        prepare(books, context=32)
    assert caught.value.where == "data.window"


def test_an_unknown_book_is_named_with_the_closest(prepare, books, general, a_book):
    (books / "射雕.txt").write_text(a_book(77, 9), encoding="utf-8")
    with pytest.raises(UserError, match="did you mean '射雕'") as caught:
        prepare(books, validation=["射雕传"])
    assert caught.value.where == "data.validation"
    with pytest.raises(UserError) as caught:
        prepare(books, general=str(general), general_ratio=0.1, general_validation=["射雕"])
    assert caught.value.where == "data.general_validation"


def test_no_training_text_left(prepare, books, general):
    with pytest.raises(UserError, match="no training text left") as caught:
        prepare(books, validation=[f"书{n}" for n in range(10)])
    assert caught.value.where == "data.train"
    with pytest.raises(UserError, match="change data.general_validation"):
        prepare(books, general=str(general), general_ratio=0.1, general_validation=[f"常{n}" for n in range(20, 25)])
