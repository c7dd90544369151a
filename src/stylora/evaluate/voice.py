"""Does a text sound like the style? A classifier of character n-grams, style against general text, and Burrows' Delta beside it.

An n-gram counts only where it stands in two documents: names of persons and places are those of one book. What else does not belong to
a voice is gone before (evaluate/passages.py). Still the classifier separates by everything that tells the two parts apart, subject and
period too. It compares models that were given the same prompts; it is no measure of quality.

Knows no models. References: character n-grams for authorship, Stamatatos 2013; calibration on held-out scores, Platt 1999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from stylora.errors import UserError

from .function_words import Habit, habit_of
from .intervals import Interval
from .passages import FOLDS, Passages, cut, plain

LENGTH = 150  # characters of a passage, about those of a generation of 128 tokens
FEWEST, MOST = 10, 2000  # passages of each part


@dataclass(frozen=True, kw_only=True)
class Voice:
    """What tells the style from general text; made by `fit_voice`.

    accuracy: 0..1, share of held-out passages that the classifier puts on their side; each was held out once, in five turns
    passages: how many, half of them style
    apart: whole documents were held out on both sides; False where a side has less than five, and other parts of the same text taught it
    """

    accuracy: float
    passages: int
    apart: bool
    vectorizer: CountVectorizer
    classifier: Classifier
    slope: float
    offset: float
    habit: Habit

    def log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N]: of being of the style, where style and general are equally many. 0 for a text without Chinese characters.

        It goes on telling texts apart where all are far on one side and their scores are all near 0 or 1, but there it is extrapolated.
        """
        if not len(texts):
            return np.zeros(0)
        counts = self.vectorizer.transform([plain(text) for text in texts])
        odds = self.slope * self.classifier.scores(counts) + self.offset
        return np.where(np.diff(counts.indptr) > 0, odds, 0.0)

    def style_score(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N], 0..1: the same as a probability, no nearer to 0 or 1 than as many passages as there were can make anyone certain.

        The sigmoid was fitted to held-out passages of real text: of those with a score of 0.8 four in five are of the style. 0.5 for a text
        without Chinese characters.
        """
        bound = math.log(self.passages / 2 + 1)
        return expit(np.clip(self.log_odds(texts), -bound, bound))

    def function_word_distance(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N]: Burrows' Delta of each text to the style; nan without Chinese characters. One short text is mostly noise."""
        return self.habit.distance([plain(text) for text in texts])

    def pooled_function_word_distance(self, texts: Sequence[str], *, seed: int, level: float = 0.95) -> Interval:
        """Delta of all texts together (the field `mean`), with an interval by bootstrap over texts."""
        return self.habit.pooled([plain(text) for text in texts], seed=seed, level=level)

    def function_word_scale(self, texts: Sequence[str], *, seed: int) -> tuple[float, float]:
        """(style, general): the Delta of as much text as this, drawn from either part: what to read the pooled one against."""
        return self.habit.scales(sum(len(plain(text)) for text in texts), seed=seed)


def fit_voice(style: Sequence[str], general: Sequence[str], *, seed: int = 0, length: int = LENGTH) -> Voice:
    """Learn what tells the style from general text.

    style, general: documents, whole books where there are: what is held out for `accuracy` is whole documents
    seed: draws the passages; length: characters of a passage, about those of the texts that will be scored
    Raises UserError where a part has too little Chinese text.
    """
    rng = np.random.default_rng(seed)
    parts = {name: cut(texts, length, most=MOST, rng=rng) for name, texts in (("style", style), ("general", general))}
    for name, part in parts.items():
        if len(part) < FEWEST:
            raise UserError(
                f"the {name} text", got=f"{len(part)} passages of {length} Chinese characters", expected=f"at least {FEWEST}",
                do="give more of it",
            )  # fmt: skip
    count = min(map(len, parts.values()))
    own, other = (cut(texts, length, most=count, rng=rng) for texts in (style, general))
    texts = [*own.texts, *other.texts]
    vectorizer = CountVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, lowercase=False)
    counts = vectorizer.fit_transform(texts)
    truth = np.repeat([1, 0], count)
    scores = _held_out_scores(counts, truth, own, other)
    slope, offset = _platt(scores, truth)
    return Voice(
        accuracy=float(((slope * scores + offset > 0) == truth).mean()), passages=2 * count, apart=own.apart and other.apart,
        vectorizer=vectorizer, classifier=_fit(counts, truth, _units(own, other)), slope=slope, offset=offset,
        habit=habit_of(own.texts, other.texts),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """kept: int [F], columns of n-grams that count; weights: of them; model: linear, over rows of (1 + log n) * idf, of length 1"""

    kept: np.ndarray
    weights: TfidfTransformer
    model: LogisticRegression

    def scores(self, counts: csr_matrix) -> np.ndarray:
        """float64 [N], before calibration; above 0 is style. counts: [N, all n-grams]"""
        return self.model.decision_function(self.weights.transform(counts[:, self.kept]))


def _units(own: Passages, other: Passages) -> np.ndarray:
    """int [2 N]: units of both parts, none with the number of another."""
    return np.concatenate([own.unit, other.unit + own.unit.max() + 1])


def _fit(counts: csr_matrix, truth: np.ndarray, unit: np.ndarray) -> Classifier:
    """counts: [N, n-grams]; truth: int [N], 1 for style; unit: int [N]"""
    _, unit = np.unique(unit, return_inverse=True)
    member = csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit)))))
    kept = np.flatnonzero(np.asarray((member @ counts > 0).sum(0)).ravel() >= 2)
    weights = TfidfTransformer(sublinear_tf=True).fit(counts[:, kept])
    model = LogisticRegression(C=1.0, max_iter=1000).fit(weights.transform(counts[:, kept]), truth)
    return Classifier(kept=kept, weights=weights, model=model)


def _held_out_scores(counts: csr_matrix, truth: np.ndarray, own: Passages, other: Passages) -> np.ndarray:
    """float64 [N]: each passage scored by a classifier that has seen nothing of its fold."""
    fold, unit = np.concatenate([own.fold, other.fold]), _units(own, other)
    scores = np.empty(len(truth))
    for held in range(FOLDS):
        rest, out = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        scores[out] = _fit(counts[rest], truth[rest], unit[rest]).scores(counts[out])
    return scores


def _platt(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(slope, offset) of the sigmoid that gives the held-out passages their most likely probabilities (Platt 1999).

    Nobody is certain of anything: of n passages of a side, each counts as one part in n + 2 of the other side. A classifier that is wrong
    more often than right knows nothing, and its opposite knows no more: (0, 0), a score of 0.5 for everything.
    """
    doubt = 1 / (np.bincount(truth)[truth] + 2)
    sigmoid = LogisticRegression(C=1e10, max_iter=1000).fit(
        np.tile(scores, 2)[:, None], np.concatenate([truth, 1 - truth]), sample_weight=np.concatenate([1 - doubt, doubt])
    )
    slope, offset = float(sigmoid.coef_[0, 0]), float(sigmoid.intercept_[0])
    return (slope, offset) if slope > 0 else (0.0, 0.0)
