"""Burrows' Delta: how far the function words of a text are from a style's habit.

Particles, pronouns, conjunctions and the like, classical and modern, which say little of the subject and much of the hand. A profile is
the rate of each word among a text's characters, as a z-score over passages; Delta is the mean over words of |z(text) - z(style)|.

A text of 150 characters holds some forty of them: alone it is mostly noise, and a passage of the style itself is far from the
style's mean. So texts are pooled, and read against what as much text of the style and of the general part has. Knows no models.

References: Burrows 2002, Delta; Argamon 2008, Interpreting Burrows's Delta; pooling and how much text is enough: Eder 2015.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Interval

WORDS = (
    "的 了 着 过 地 得 们 个 这 那 是 在 和 与 及 或 把 被 让 给 对 从 向 到 由 为 为了 以 于 之 乎 者 也 矣 焉 哉 耳 兮 夫 其 彼 此 "
    "而 则 乃 便 就 却 又 再 还 都 皆 俱 只 只见 但 但见 不 没 没有 未 无 非 莫 休 勿 别 若 如 如果 假如 倘 虽 虽然 但是 然而 不过 因 "
    "因为 因此 所以 故 既 即 且 况 并 并且 而且 我 你 您 他 她 它 咱 吾 余 汝 尔 伊 俺 自己 什么 怎么 怎 哪 谁 何 甚 岂 孰 吗 呢 吧 啊 "
    "呀 么 道 曰 云 说道 却说 且说 话说 正是 于是 可以 能 能够 会 要 应该 应当 须 当 可 很 非常 十分 更 最 太 极 上 下 里 中 前 后 时 "
    "间 所 等 儿 将 来 去 起来 下来 已 已经 曾 正 方 才 刚 通过 根据 关于 进行"
).split()
PATTERN = re.compile("|".join(sorted(WORDS, key=len, reverse=True)))  # the longest word counts: 只见 is no 只
COLUMN = {word: column for column, word in enumerate(WORDS)}
COMMON = 0.02  # share of the passages that a word must stand in; a rarer one has wild z-scores
RESAMPLES = 2000
DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class Habit:
    """The function words of a style.

    column: int [W], the words of WORDS that are common enough; mean, scale: float64 [W], rates of passages of both parts
    centre: float64 [W], z-scores of the style; style, general: float64 [N, W], rates of the passages of each part; length: their characters
    """

    column: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    centre: np.ndarray
    style: np.ndarray
    general: np.ndarray
    length: int

    def distance(self, bodies: Sequence[str]) -> np.ndarray:
        """float64 [N]: Delta of each text to the style; nan for a text without characters. bodies: as `passages.plain` gives them"""
        counts, lengths = self._counts(bodies)
        with np.errstate(invalid="ignore"):
            return self._delta(counts / lengths[:, None])

    def pooled(self, bodies: Sequence[str], *, seed: int, level: float) -> Interval:
        """Delta of all texts as one, with an interval by bootstrap over texts.

        A resample is noisier than the texts themselves, and noise adds to a sum of magnitudes. So the percentiles are taken of how far
        resamples lie from their own mean.
        """
        counts, lengths = self._counts(bodies)
        if not lengths.sum():
            return Interval(np.nan, np.nan, np.nan)
        figure = float(self._delta(counts.sum(0) / lengths.sum()))
        if len(bodies) == 1:
            return Interval(figure, np.nan, np.nan)
        rng = np.random.default_rng(seed)
        times = rng.multinomial(len(bodies), np.full(len(bodies), 1 / len(bodies)), size=RESAMPLES)
        sizes = times @ lengths
        resampled = self._delta((times @ counts)[sizes > 0] / sizes[sizes > 0, None])
        low, high = np.quantile(resampled - resampled.mean(), [(1 - level) / 2, (1 + level) / 2])
        return Interval(figure, max(figure + float(low), 0.0), figure + float(high))

    def scales(self, characters: int, *, seed: int) -> tuple[float, float]:
        """(style, general): the mean Delta of passages drawn from each part, as many as make up `characters`."""
        count = max(1, round(characters / self.length))
        rng = np.random.default_rng(seed)
        found = []
        for rates in (self.style, self.general):
            drawn = rates[rng.integers(0, len(rates), size=(DRAWS, count))].mean(1)
            found.append(float(self._delta(drawn).mean()))
        return found[0], found[1]

    def _counts(self, bodies: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return word_counts(bodies)[:, self.column], np.array([len(body) for body in bodies], float)

    def _delta(self, rates: np.ndarray) -> np.ndarray:
        """rates: [..., W] -> [...]"""
        return np.abs((rates - self.mean) / self.scale - self.centre).mean(-1)


def habit_of(style: Sequence[str], general: Sequence[str]) -> Habit:
    """From passages of one length, as many of each part."""
    length = len(style[0])
    rates = word_counts([*style, *general]) / length
    column = np.flatnonzero((rates > 0).mean(0) >= COMMON)
    rates = rates[:, column]
    mean, scale = rates.mean(0), rates.std(0)
    own, other = rates[: len(style)], rates[len(style) :]
    return Habit(
        column=column, mean=mean, scale=scale, centre=(own.mean(0) - mean) / scale, style=own, general=other, length=length
    )


def word_counts(bodies: Sequence[str]) -> np.ndarray:
    """float64 [N, len(WORDS)]: how often each function word stands in each text."""
    counts = np.zeros((len(bodies), len(WORDS)))
    for row, body in zip(counts, bodies, strict=True):
        for word in PATTERN.findall(body):
            row[COLUMN[word]] += 1
    return counts
