"""Pieces of a token store -> runs of tokens, each wholly for training or wholly held out, before any window is cut.

    several sources                     whole sources (books), by seed
    one source of chapters              the chapters at its end
    one source of rows                  whole rows, by seed
    one text, or units far too coarse   the tokens at its end, from a sentence end on
    names                               those books, or the files they came from

Knows no windows and no weights. What a share chooses is decided in `stylora.corpus.split`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath

import numpy as np

from stylora.corpus.split import choose_validation, contiguous_validation
from stylora.errors import UserError, did_you_mean

from .store import Piece, TokenStore
from .windows import nearest_border, sentence_borders

_PART_OR_ROW = re.compile(r"[#:]\d+$")  # `book.txt#2`, `rows.jsonl:17`
COARSE = 2.0  # units are too coarse where they would hold out more than twice the share asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring tokens of one document on one side of the split.

    source, fingerprint: of its document; offset: tokens of the document before it
    start, end: half-open range in the store's ids
    characters: length of its text; to scale where a piece was cut in two
    """

    source: str
    fingerprint: str
    held: bool
    offset: int
    start: int
    end: int
    characters: int


def split_runs(
    store: TokenStore, validation: float | Collection[str], *, chapters: bool, seed: int, sentence_end: np.ndarray
) -> list[Run]:
    """Every token of the store in exactly one run.

    validation: a share of the tokens, or names of sources and files; names that are not in this store are passed over
    chapters: pieces are chapters of books, not rows
    """
    tokens = [piece.end - piece.start for piece in store.pieces]
    if not isinstance(validation, float | int):
        held = [any(is_called(piece, name) for name in validation) for piece in store.pieces]
        return _joined(store.pieces, held)
    if validation == 0:
        return _joined(store.pieces, [False] * len(tokens))
    held = _held_units(store.pieces, validation, chapters, seed)
    several_sources = len({piece.source for piece in store.pieces}) > 1
    share = sum(n for n, is_held in zip(tokens, held, strict=True) if is_held) / sum(tokens)
    if share in (0, 1) or (share > COARSE * validation and not several_sources):
        return _joined(*_cut_tail(store, validation, sentence_end))
    return _joined(store.pieces, held)


def is_called(piece: Piece, name: str) -> bool:
    """Is this the name of the piece's source, or a path (or file name) of the file it came from?"""
    file = _PART_OR_ROW.sub("", piece.origin)
    return name == piece.source or PurePath(name) == PurePath(file) or name == PurePath(file).name


def refuse_unknown(where: str, names: Collection[str], stores: Sequence[TokenStore]) -> None:
    """Raises UserError for a name that no piece of any store goes by."""
    for name in names:
        if not any(is_called(piece, name) for store in stores for piece in store.pieces):
            sources = {piece.source for store in stores for piece in store.pieces}
            raise UserError(where, got=f"'{name}'", expected="the name or the file of a book", do=did_you_mean(name, sources))


def _held_units(pieces: list[Piece], share: float, chapters: bool, seed: int) -> list[bool]:
    """Sources where there are several, else chapters at the end, else rows; nothing where there is one unit only."""
    if len({piece.source for piece in pieces}) > 1:
        names = [piece.source for piece in pieces]
    elif chapters and len(pieces) > 1:
        last = contiguous_validation([piece.end - piece.start for piece in pieces], share)
        return [number in last for number in range(len(pieces))]
    else:
        names = [piece.origin for piece in pieces]
    sizes: Counter[str] = Counter()
    for name, piece in zip(names, pieces, strict=True):
        sizes[name] += piece.end - piece.start
    chosen = choose_validation(sizes, share, seed)
    return [name in chosen for name in names]


def _cut_tail(store: TokenStore, share: float, sentence_end: np.ndarray) -> tuple[list[Piece], list[bool]]:
    """Pieces cut in two where the last `share` of the tokens begins, at the sentence end next to it."""
    total = len(store.ids)
    wanted = min(max(1, round(total * (1 - share))), total - 1)
    pieces: list[Piece] = []
    for piece in store.pieces:
        if piece.start < wanted < piece.end:
            borders = sentence_borders(store.ids[piece.start : piece.end], sentence_end)
            inside = nearest_border(borders, wanted - piece.start, 1, piece.end - piece.start - 1)
            wanted = wanted if inside is None else piece.start + inside
            pieces += _cut_piece(piece, wanted)
        else:
            pieces.append(piece)
    return pieces, [piece.start >= wanted for piece in pieces]


def _cut_piece(piece: Piece, at: int) -> list[Piece]:
    characters = round(piece.characters * (at - piece.start) / (piece.end - piece.start))
    common = dict(source=piece.source, origin=piece.origin, fingerprint=piece.fingerprint, chapter=piece.chapter)
    return [
        Piece(**common, start=piece.start, end=at, characters=characters),
        Piece(**common, start=at, end=piece.end, characters=piece.characters - characters),
    ]


def _joined(pieces: list[Piece], held: list[bool]) -> list[Run]:
    runs = []
    for _, document in groupby(zip(pieces, held, strict=True), key=lambda item: item[0].origin):
        offset = 0
        for is_held, group in groupby(document, key=lambda item: item[1]):
            members = [piece for piece, _ in group]
            first, last = members[0], members[-1]
            runs.append(Run(
                source=first.source, fingerprint=first.fingerprint, held=is_held, offset=offset, start=first.start, end=last.end,
                characters=sum(piece.characters for piece in members),
            ))  # fmt: skip
            offset += last.end - first.start
    return [run for run in runs if run.end > run.start]
