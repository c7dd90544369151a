"""Raw text -> the windows of every epoch: stores opened, split by book, cut, weighted and mixed with general text by tokens.

    store -> runs (training | held out) -> windows -> epochs: every style by its weight + general windows, shuffled

An epoch is drawn from (seed, epoch) alone, and all epochs have equally many windows. Weights and shares below a whole are drawn by
systematic sampling over the windows in order of length (Madow & Madow 1944), so that a share of windows is the same share of tokens.

Knows no objective, no batches and no model; it hands out ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from stylora.corpus.document import FileReport
from stylora.corpus.split import leaked_share
from stylora.errors import UserError
from stylora.forest import Sample

from .clm import clm
from .holdout import Run, refuse_unknown, split_runs
from .settings import Data, as_list
from .store import Piece, TokenStore, open_store, report_row
from .windows import cut_windows, sentence_end_table

Part = Literal["style", "general"]
PARTS: tuple[Part, Part] = ("style", "general")
LEAK_RUN = 24  # tokens; shorter runs are common phrases
LEAK_WARNING = 0.01
FAR_FROM_SHARE = 2.0


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the split of one style or of the general text.

    part: `style` or `general`; style: the style's name, `general` for general text; held: held out for validation
    books: names of its sources; tokens, characters: of the text, each counted once; windows: cut from it
    """

    part: Part
    style: str
    held: bool
    books: tuple[str, ...]
    tokens: int
    characters: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of the data, for printing and for `--json`.

    sides: training and held-out side of every style and of the general text
    epoch_windows, epoch_tokens: of one epoch, weights and general text included (tokens to within a window)
    general_share: share of an epoch's tokens that are general
    leak: part -> share (0..1) of the held-out runs of 24 tokens that stand in the training text too
    reports: of every input file; warnings: sentences for the user
    """

    sides: tuple[Side, ...]
    epoch_windows: int
    epoch_tokens: int
    general_share: float
    leak: dict[str, float]
    reports: tuple[FileReport, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it."""
        return {**asdict(self), "reports": [report_row(report) for report in self.reports]}


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One style or the general text: its store, its runs, and its windows [N, 3] on either side: start, end, run."""

    part: Part
    style: str
    where: str
    weight: float
    store: TokenStore
    runs: list[Run]
    train: np.ndarray
    held: np.ndarray

    def side(self, held: bool) -> Side:
        runs = [run for run in self.runs if run.held == held]
        return Side(
            part=self.part, style=self.style, held=held, books=tuple(dict.fromkeys(run.source for run in runs)),
            tokens=sum(run.end - run.start for run in runs), characters=sum(run.characters for run in runs),
            windows=len(self.held if held else self.train),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Group:
    """How often an epoch takes the windows of one source: all of them `whole` times, and `extra` of one more copy."""

    first: int
    windows: int
    whole: int
    extra: int

    @property
    def copies(self) -> int:
        return self.whole + (self.extra > 0)


class TextData:
    """The training windows of a text corpus, by index, and its validation windows.

    Indices 0..N-1 are training windows; a window that an epoch may take several times has an index for each time.
    lengths: int64 [N], tokens
    validation: part -> ids of the held-out windows (int32 arrays), cut without overlap
    validation_characters: part -> characters of what is predicted in each of them: its tokens but the first, times its run's characters
        per token. The denominator of nats per character
    summary: what became of the data
    pieces: every chapter or document of the corpus, on either side of the split
    """

    def __init__(self, sources: list[_Source], groups: list[_Group], seed: int, summary: Summary) -> None:
        self._sources, self._groups, self._seed, self.summary = sources, groups, seed, summary
        tables = [_numbered(s.train, number, g.copies) for number, (s, g) in enumerate(zip(sources, groups, strict=True))]
        self.pieces: list[Piece] = [piece for source in sources for piece in source.store.pieces]
        self._table = np.concatenate(tables)  # [N, 6]: start, end, run, number in its run, copy, source
        self.lengths = self._table[:, 1] - self._table[:, 0]
        self.validation: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
        self.validation_characters: dict[str, list[float]] = {part: [] for part in PARTS}
        for source in sources:
            for start, end, number in source.held.tolist():
                run = source.runs[number]
                self.validation[source.part].append(source.store.ids[start:end])
                per_token = run.characters / (run.end - run.start)
                self.validation_characters[source.part].append((end - start - 1) * per_token)

    def __len__(self) -> int:
        return len(self._table)

    def epoch(self, epoch: int) -> np.ndarray:
        """int64 [epoch_windows]: indices of the training windows of this epoch (0..) in training order, no index twice."""
        rng = np.random.default_rng((self._seed, epoch))
        chosen = []
        for group in self._groups:
            border = group.first + group.whole * group.windows
            chosen.append(np.arange(group.first, border))
            if group.extra:
                chosen.append(border + draw_evenly(self.lengths[border : border + group.windows], group.extra, rng))
        return rng.permutation(np.concatenate(chosen))

    def ids(self, index: int) -> np.ndarray:
        """int32 [T]: the tokens of a training window."""
        start, end = self._table[index, :2]
        return np.array(self._source(index).store.ids[start:end])

    def word_starts(self, index: int) -> np.ndarray | None:
        """bool [T]: where words begin; None where they were not asked for."""
        start, end = self._table[index, :2]
        words = self._source(index).store.words
        return None if words is None else words[start:end].astype(bool)

    def texts(self, part: Part, *, held: bool) -> list[np.ndarray]:
        """int32 ids (views) of every stretch of the part's text on one side of the split, each once and whole: no window cuts it."""
        sources = [source for source in self._sources if source.part == part]
        return [source.store.ids[run.start : run.end] for source in sources for run in source.runs if run.held == held]

    @property
    def validation_samples(self) -> dict[str, list[Sample]]:
        """Part -> its held-out windows, each with all its tokens but the first to predict."""
        return {part: [clm(ids) for ids in windows] for part, windows in self.validation.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of every window, on either side, and of how epochs are drawn: equal for equal training, whatever the files' names."""
        digest = blake2b(repr((self._seed, self._groups)).encode(), digest_size=16)
        for source in self._sources:
            digest.update(repr([(run.fingerprint, run.offset, run.held) for run in source.runs]).encode())
            digest.update(source.train.tobytes() + source.held.tobytes())
        return digest.hexdigest()

    def part(self, index: int) -> Part:
        """Is this window of the style or of the general text?"""
        return self._source(index).part

    def source(self, index: int) -> str:
        """The name of the book, or the source of the row."""
        return self._run(index).source

    def sample_id(self, index: int) -> tuple[int, int]:
        """What randomness may depend on, the same whatever else is in the corpus: (a hash >= 0 that fits int64, window number).

        The hash is of the document's fingerprint, the run's place in the document and, where a window is taken several times, which
        time it is.
        """
        run = self._run(index)
        number, copy = self._table[index, 3:5].tolist()
        digest = blake2b(f"{run.fingerprint} {run.offset} {copy}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1, number

    def _source(self, index: int) -> _Source:
        return self._sources[self._table[index, 5]]

    def _run(self, index: int) -> Run:
        return self._source(index).runs[self._table[index, 2]]


def prepare_text(
    data: Data, *, tokenizer: Tokenizer, tokenizer_hash: str, words: bool, context: int, cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> TextData:  # fmt: skip
    """Read (or open from the cache), split, cut and mix the text of a `data` section.

    words: mark word starts; context: longest input of the base, tokens; progress: as for `open_store`, input after input
    Raises UserError: a window longer than the context, unknown names in validation, no training text left, and whatever reading raises.
    """
    if data.window > context:
        expected = f"at most {context} tokens, the context of the base"
        raise UserError("data.window", got=f"{data.window} tokens", expected=expected, do="lower data.window")
    wanted: list[tuple[Part, str, str, list[str], float]] = [
        ("style", name, "data.train", paths, weight) for name, paths, weight in data.styles()
    ]
    if data.general is not None:
        wanted.append(("general", "general", "data.general", as_list(data.general), 1.0))
    stores = [
        open_store(
            paths, cleaning=data.cleaning, tokenizer=tokenizer, tokenizer_hash=tokenizer_hash,
            chapters=part == "style" and data.format == "novels", words=words, lines=part == "general" and data.general_lines, cache=cache,
            progress=progress,
        )
        for part, _, _, paths, _ in wanted
    ]  # fmt: skip
    for part, validation in (("style", data.validation), ("general", data.general_validation)):
        if isinstance(validation, tuple):
            where = "data.validation" if part == "style" else "data.general_validation"
            refuse_unknown(where, validation, [store for store, (p, *_) in zip(stores, wanted, strict=True) if p == part])
    table = sentence_end_table(tokenizer)
    sources = [
        _cut(data, table, store, part, name, where, weight)
        for store, (part, name, where, _, weight) in zip(stores, wanted, strict=True)
    ]
    for source in sources:
        if not len(source.train) and (source.part == "style" or data.general_ratio):
            setting = "data.validation" if source.part == "style" else "data.general_validation"
            raise UserError(source.where, got="no training text left", expected="text that is not held out", do=f"change {setting}")
    groups, mix_warnings = _groups(sources, data.general_ratio or 0.0, data.general_repeat)
    return TextData(sources, groups, data.seed, _summary(data, sources, groups, mix_warnings))


def draw_evenly(lengths: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [count]: distinct indices, each with probability count / N, whose lengths sum to their share of the whole.

    Systematic sampling: every (N / count)-th in order of length, from a random place on. The sum differs from count times the mean
    length by less than the longest minus the shortest.
    """
    assert 0 < count <= len(lengths)
    order = np.lexsort((rng.random(len(lengths)), lengths))
    # Integer arithmetic: rounding must not let two places fall together.
    offset = int(rng.integers(len(lengths)))
    return order[(np.arange(count) * len(lengths) + offset) // count]


def shortest_window(data: Data) -> int:
    """`data.min_window`, or what it is where nobody chose it."""
    return data.min_window or max(1, min(64, data.window // 8))


def _cut(
    data: Data, table: np.ndarray, store: TokenStore, part: Part, name: str, where: str, weight: float
) -> _Source:
    """Split a store by book, then cut windows over every run; validation windows do not overlap."""
    validation: float | Collection[str] = data.validation if part == "style" else data.general_validation
    chapters = part == "style" and data.format == "novels"
    runs = split_runs(store, validation, chapters=chapters, seed=data.seed, sentence_end=table)
    sides: dict[bool, list[np.ndarray]] = {False: [np.empty((0, 3), np.int64)], True: [np.empty((0, 3), np.int64)]}
    for number, run in enumerate(runs):
        overlap = 0 if run.held else data.overlap
        cuts = run.start + cut_windows(store.ids[run.start : run.end], table, data.window, overlap, shortest_window(data))
        sides[run.held].append(np.column_stack([cuts, np.full(len(cuts), number)]))
    return _Source(
        part=part, style=name, where=where, weight=weight, store=store, runs=runs,
        train=np.concatenate(sides[False]), held=np.concatenate(sides[True]),
    )  # fmt: skip


def _numbered(windows: np.ndarray, source: int, copies: int) -> np.ndarray:
    """[copies * N, 6]: start, end, run, number in its run, copy, source."""
    runs = windows[:, 2]
    first = np.searchsorted(runs, runs)  # of the windows of the same run; runs are sorted
    number = np.arange(len(windows)) - first
    return np.concatenate([
        np.empty((0, 6), np.int64),
        *(np.column_stack([windows, number, np.full(len(runs), copy), np.full(len(runs), source)]) for copy in range(copies)),
    ])  # fmt: skip


def _groups(sources: list[_Source], ratio: float, repeat: bool) -> tuple[list[_Group], list[str]]:
    """How many windows of every source make an epoch; the general ones so that they are `ratio` of its tokens."""
    groups: list[_Group] = []
    warnings: list[str] = []
    first, style_tokens = 0, 0.0
    for source in sources:
        windows = len(source.train)
        tokens = int((source.train[:, 1] - source.train[:, 0]).sum())
        if source.part == "style":
            count = max(1, round(source.weight * windows))
            style_tokens += tokens * count / windows
        else:
            count = round(ratio / (1 - ratio) * style_tokens * windows / max(1, tokens))
            if count > windows and not repeat:
                count = windows
                reached = tokens / (tokens + style_tokens)
                warnings.append(
                    f"general text is short: all of it is {reached:.2%} of an epoch's tokens instead of {ratio:.2%}; add general text, "
                    "lower data.general_ratio, or set data.general_repeat: true"
                )
        group = _Group(first=first, windows=windows, whole=count // max(1, windows), extra=count % max(1, windows))
        groups.append(group)
        first += group.copies * windows
    return groups, warnings


def _summary(data: Data, sources: list[_Source], groups: list[_Group], warnings: list[str]) -> Summary:
    sides = tuple(source.side(held) for source in sources for held in (False, True))
    tokens = {part: 0.0 for part in PARTS}
    for source, group in zip(sources, groups, strict=True):
        lengths = source.train[:, 1] - source.train[:, 0]
        tokens[source.part] += float(lengths.sum()) * (group.whole + group.extra / max(1, group.windows))
    leak: dict[str, float] = {part: _leak(sources, part) for part in PARTS if any(len(s.held) for s in sources if s.part == part)}
    for part, share in leak.items():
        if share > LEAK_WARNING:
            warnings.append(
                f"{share:.1%} of the held-out {part} text (runs of {LEAK_RUN} tokens) also stands in the training text: the loss measured "
                "on it will look too good; the same book may be there under two names"
            )
    return Summary(
        sides=sides,
        epoch_windows=sum(group.whole * group.windows + group.extra for group in groups),
        epoch_tokens=round(sum(tokens.values())),
        general_share=tokens["general"] / sum(tokens.values()),
        leak=leak,
        reports=tuple(report for source in sources for report in source.store.reports),
        warnings=(*warnings, *_far_from_share(data, sides)),
    )


def _leak(sources: list[_Source], part: str) -> float:
    """The share of the part's held-out runs of tokens that any training text contains."""
    train = (source.store.ids[run.start : run.end] for source in sources for run in source.runs if not run.held)
    held = [source.store.ids[run.start : run.end] for source in sources for run in source.runs if run.held and source.part == part]
    return leaked_share(train, np.concatenate(held), run=LEAK_RUN)


def _far_from_share(data: Data, sides: tuple[Side, ...]) -> list[str]:
    """Whole books can be far from a small share; the user should know how much is not learned from."""
    warnings = []
    for train, held in zip(sides[::2], sides[1::2], strict=True):
        asked = data.validation if held.part == "style" else data.general_validation
        share = held.tokens / (train.tokens + held.tokens)
        if isinstance(asked, float) and asked > 0 and share > FAR_FROM_SHARE * asked:
            names = ", ".join(held.books[:5]) + (f" and {len(held.books) - 5} more" if len(held.books) > 5 else "")
            warnings.append(
                f"{names}: held out for validation, {share:.0%} of the {held.style} text instead of {asked:.0%}, because "
                "only whole books are held out; more books, or names in the list of held-out books, change that"
            )
    return warnings
