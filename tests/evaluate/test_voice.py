"""The style classifier: honest accuracy, calibrated scores, neither names nor formats, on the bundled examples and the public corpora."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stylora.errors import UserError
from stylora.evaluate.function_words import WORDS
from stylora.evaluate.passages import cut
from stylora.evaluate.voice import LENGTH, Voice, fit_voice

EXAMPLES = Path(__file__).parents[2] / "examples"
CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
NAME = "慕容长风"


def texts(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]


def passages(documents: list[str], most: int = 10_000) -> list[str]:
    return cut(documents, LENGTH, most=most, rng=np.random.default_rng(0)).texts


@pytest.fixture(scope="module")
def books() -> tuple[list[str], list[str]]:
    return texts(EXAMPLES / "wuxia"), texts(EXAMPLES / "modern")


@pytest.fixture(scope="module")
def voice(books) -> Voice:
    """Taught with all books but the last of each part."""
    return fit_voice(books[0][:-1], books[1][:-1])


def test_books_it_has_not_seen(voice, books):
    assert voice.accuracy > 0.95 and voice.apart
    own, other = (voice.style_score(passages(part[-1:])) for part in books)
    assert len(own) > 10 and len(other) > 10
    assert np.mean(own > 0.5) > 0.95 and np.mean(other < 0.5) > 0.95


def test_the_passages_are_balanced(voice, books):
    own, other = (len(passages(part[:-1])) for part in books)
    assert own != other and voice.passages == 2 * min(own, other)


def test_no_style_to_tell_apart_is_no_accuracy(books):
    """Every other stretch of each book against those between; a classifier scored on what it learned from would tell these apart."""
    found = fit_voice(*(["".join(book[i : i + 700] for i in range(700 * side, len(book), 1400)) for book in books[0]] for side in (0, 1)))
    assert found.passages > 300 and 0.35 < found.accuracy < 0.6
    own = np.array([found.classifier.scores(found.vectorizer.transform([text])) for text in passages(books[0])[:50]])
    assert np.abs(own).mean() > 0.2, "on what it learned from it is sure"


def test_scores_are_calibrated(books):
    """Where a fifth of the passages lies on the wrong side, what looks like style is style four times in five."""
    rng = np.random.default_rng(0)
    own, other = (passages(part[:-1]) for part in books)
    count = min(len(own), len(other)) // 10 * 10
    heaps: list[list[str]] = [[], []]
    for right, pool in enumerate((other[:count], own[:count])):
        for text in pool:
            heaps[right if rng.random() < 0.8 else 1 - right].append(text)
    mixed = [["".join(heap[i::6]) for i in range(6)] for heap in (heaps[1], heaps[0])]
    found = fit_voice(*mixed)
    assert 0.7 < found.accuracy < 0.9
    style, general = (found.style_score(passages(part[-1:])).mean() for part in books)
    assert 0.65 < style < 0.92 and 0.08 < general < 0.35


def test_the_score_is_no_more_certain_than_the_passages_can_make_it(voice, books):
    everything = [*passages(books[0]), *passages(books[1])]
    score, odds = voice.style_score(everything), voice.log_odds(everything)
    bound = math.log(voice.passages / 2 + 1)
    assert score == pytest.approx(1 / (1 + np.exp(-np.clip(odds, -bound, bound)))) and np.abs(odds).max() > bound
    assert len(np.unique(odds.round(6))) > 0.9 * len(odds)


def test_nothing_chinese_is_undecided(voice):
    assert voice.style_score(["", "  \n", "Hello, world 42", "龘龘龘"]).tolist() == [0.5] * 4
    assert voice.log_odds([""]).tolist() == [0.0] and voice.style_score([]).shape == (0,)


def test_format_is_no_style(voice, books):
    text = passages(books[0])[3]
    wrapped = "\n　　".join(text[i : i + 20] for i in range(0, len(text), 20))
    formatted = f"# 12\n\n* **{wrapped}** `see` <a href=/1>"
    assert voice.log_odds([wrapped, formatted]) == pytest.approx(voice.log_odds([text, text]))


def test_a_name_of_one_book_counts_for_nothing(books):
    marked = [books[0][0].replace("，", f"，{NAME}", 300), *books[0][1:]]
    found = fit_voice(marked, books[1])
    grams = found.vectorizer.get_feature_names_out()
    assert NAME[:3] in grams and NAME[:3] not in grams[found.classifier.kept]
    assert any(word in grams[found.classifier.kept] for word in ("，却", "只见", "道："))


def test_the_same_seed_is_the_same_voice(voice, books):
    again = fit_voice(books[0][:-1], books[1][:-1])
    sample = passages(books[0])[:20]
    assert (again.log_odds(sample) == voice.log_odds(sample)).all() and again.accuracy == voice.accuracy


def test_few_documents_are_told(books):
    found = fit_voice(books[0][:1], books[1])
    assert not found.apart and found.accuracy > 0.9


@pytest.mark.parametrize("style, general, part", [
    (["却说那日天色已晚。" * 10], None, "style"), (None, ["all of it is English " * 500], "general"), ([], None, "style"),
])  # fmt: skip
def test_too_little_chinese_text(style, general, part, books):
    with pytest.raises(UserError, match=f"the {part} text: got . passages of 150 Chinese characters"):
        fit_voice(books[0] if style is None else style, books[1] if general is None else general)


def test_function_words_are_those_of_the_parts(voice, books):
    style, general = (passages(part[-1:]) for part in books)
    own, other = (voice.pooled_function_word_distance(part, seed=0) for part in (style, general))
    assert own.high < other.low and own.low < own.mean < own.high
    assert voice.function_word_distance(style).mean() > own.mean, "noise"
    assert len(voice.habit.column) <= len(WORDS)
    near, far = voice.function_word_scale(style, seed=0)
    assert near < far and own.mean < far
    wrapped = ["\n".join(text) + " 42" for text in style]
    assert voice.pooled_function_word_distance(wrapped, seed=0) == own


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the public corpora are not there")
def test_old_novels_and_modern_text():
    style, general = (texts(CORPUS / part) for part in ("style", "general"))
    found = fit_voice(style, general)
    assert found.apart and found.passages == 4000 and found.accuracy > 0.97


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the public corpora are not there")
def test_one_book_teaches_more_than_its_names():
    """Taught with one novel, it knows the prose of eleven others, with other persons and places, from text that is none."""
    name = "水浒传"
    own = (CORPUS / "style" / f"{name}.txt").read_text(encoding="utf-8")
    others = [path.read_text(encoding="utf-8") for path in sorted((CORPUS / "style").glob("*.txt")) if path.stem != name]
    found = fit_voice([own], texts(CORPUS / "general"))
    assert np.mean(found.style_score(passages(others, most=600)) > 0.5) > 0.8
