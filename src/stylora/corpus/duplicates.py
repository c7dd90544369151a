"""Finds paragraphs that came before, exactly or nearly, in a corpus too large to keep.

MinHash (Broder 1997) over character 6-grams of the letters and digits of a paragraph: the share of equal minima of two
paragraphs estimates the Jaccard similarity of their 6-grams. 32 minima per paragraph; 4 bands of 4 of them are the keys
by which candidates are found (a pair at similarity 0.9 shares a band with probability 0.986), and the low 4 bits of all
32 (Li and Koenig 2010) are kept to judge them: equal in at least 29. One edit costs six 6-grams, so this means about
one edit in a hundred characters.

All paragraphs of a document are hashed at once. What is kept of a corpus is 48 bytes a paragraph, in flat arrays.
Knows nothing of files and cleaning.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

SHORTEST = 30  # characters: refrains, formulas and titles are shorter, and may return
GRAM = 6
MINIMA, BANDS, ROWS = 32, 4, 4
EQUAL = 29  # of MINIMA
_LARGEST_MERGE = 1 << 22  # entries: above this, levels stay apart, so that merging never doubles the memory
_RANDOM = np.random.default_rng(0x5EED)
_MASKS = _RANDOM.integers(0, 1 << 32, MINIMA, dtype=np.uint32)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SQUARE = np.uint64(0x9E3779B97F4A7C15**2 % 2**64)


@functools.cache
def _spoken() -> NDArray[np.bool_]:
    """`[65536]`: whether a code point is a letter or a digit (what lies above the table counts as one)."""
    return np.frompyfunc(lambda code: chr(code).isalnum(), 1, 1)(np.arange(1 << 16)).astype(bool)


@functools.cache
def _zero_nibbles() -> NDArray[np.uint8]:
    """`[256]`: how many of a byte's two halves are zero."""
    byte = np.arange(256)
    return ((byte & 15) == 0).astype(np.uint8) + ((byte >> 4) == 0).astype(np.uint8)


def signatures_of(paragraphs: list[str]) -> NDArray[np.uint32]:
    """MinHash signatures `[P, MINIMA]` of paragraphs of at least `SHORTEST` characters, all at once.

    A paragraph with fewer than 6 letters and digits (a line of dots) is hashed with its marks.
    """
    if not paragraphs:
        return np.empty((0, MINIMA), np.uint32)
    assert min(map(len, paragraphs)) >= SHORTEST
    codes = np.frombuffer("".join(paragraphs).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(paragraph) for paragraph in paragraphs])
    keep = _spoken()[np.minimum(codes, 0xFFFF)] | (codes > 0xFFFF)
    spoken = np.add.reduceat(keep, ends - [len(p) for p in paragraphs], dtype=np.int64)
    if (spoken < GRAM).any():
        keep |= np.repeat(spoken < GRAM, [len(p) for p in paragraphs])
    ends = np.cumsum(keep)[ends - 1]
    starts = np.concatenate(([0], ends[:-1]))
    hashes = _gram_hashes(codes[keep])
    # Segments [start, end - GRAM + 1) and, between them, the grams that cross a border: every second one is ours.
    borders = np.stack([starts, ends - GRAM + 1], axis=1).ravel()[:-1]
    signatures = np.empty((MINIMA, len(paragraphs)), np.uint32)
    flipped = np.empty_like(hashes)
    for row, mask in enumerate(_MASKS):  # flipping bits of a good hash reorders it: one more permutation for one XOR
        np.bitwise_xor(hashes, mask, out=flipped)
        signatures[row] = np.minimum.reduceat(flipped, borders)[::2]
    return np.ascontiguousarray(signatures.T)


def _gram_hashes(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """`[n - GRAM + 1]`: 32 well-mixed bits per 6-gram (polynomial modulo 2**64, then a multiply-shift finaliser)."""
    wide = codes.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    wide ^= wide >> np.uint64(29)
    pairs = wide[:-1] * _BASE + wide[1:]
    count = len(codes) - GRAM + 1
    hashes = (pairs[:count] * _SQUARE + pairs[2 : 2 + count]) * _SQUARE + pairs[4 : 4 + count]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0x94D049BB133111EB)
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _keys(signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """`[P, BANDS]`: a 32-bit key per band, its two low bits the band's number."""
    rows = signatures[:, : BANDS * ROWS].reshape(-1, BANDS, ROWS).astype(np.uint64)
    key = np.zeros(rows.shape[:2], np.uint64)
    for r in range(ROWS):
        key = (key ^ rows[:, :, r]) * _BASE
        key ^= key >> np.uint64(31)
    return ((key >> np.uint64(32)) & np.uint64(0xFFFFFFFC)) | np.arange(BANDS, dtype=np.uint64)


def _nibbles(signatures: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """`[P, MINIMA / 2]`: the low 4 bits of every minimum, two to a byte."""
    low = (signatures & 15).astype(np.uint8)
    return low[:, ::2] | (low[:, 1::2] << np.uint8(4))


def _alike(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return _zero_nibbles()[a ^ b].sum(axis=1) >= EQUAL


class SeenParagraphs:
    """What a corpus has said so far: near-duplicate state, 48 bytes per paragraph kept.

    Entries `key << 32 | row` lie in sorted uint64 arrays that are merged as they grow; `row` points to the paragraph's
    32 half-bytes. Looking is apart from adding: `repeated` changes nothing, `add` takes in what was kept.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[np.uint64]] = []
        self._nibbles = np.empty((0, MINIMA // 2), np.uint8)
        self._rows = 0

    @property
    def nbytes(self) -> int:
        return self._nibbles.nbytes + sum(level.nbytes for level in self._levels)

    def repeated(self, signatures: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """`[P]`: which paragraphs were seen before, in the corpus or earlier among themselves (the first is not)."""
        keys, nibbles = _keys(signatures), _nibbles(signatures)
        found = _repeated_within(keys, nibbles)
        order = np.argsort(keys, axis=None, kind="stable")
        sorted_keys, owner = keys.ravel()[order], order // BANDS
        for level in self._levels:
            at = np.searchsorted(level, sorted_keys << np.uint64(32))
            for _ in range(4):  # a key may stand for a few different paragraphs: the first four are tried
                at_entry = np.minimum(at, len(level) - 1)
                same = np.flatnonzero((at < len(level)) & (level[at_entry] >> np.uint64(32) == sorted_keys))
                if not len(same):
                    break
                rows = (level[at_entry[same]] & np.uint64(0xFFFFFFFF)).astype(np.intp)
                found[owner[same[_alike(self._nibbles[rows], nibbles[owner[same]])]]] = True
                at = at + 1
        return found

    def add(self, signatures: NDArray[np.uint32]) -> None:
        """Takes in the paragraphs that were kept."""
        if not len(signatures):
            return
        rows = np.arange(self._rows, self._rows + len(signatures), dtype=np.uint64)
        if self._rows + len(rows) > len(self._nibbles):
            self._nibbles.resize((int((self._rows + len(rows)) * 1.2) + 64, MINIMA // 2), refcheck=False)
        self._nibbles[self._rows : self._rows + len(rows)] = _nibbles(signatures)
        self._rows += len(rows)
        self._levels.append(np.sort(((_keys(signatures) << np.uint64(32)) | rows[:, None]).ravel()))
        while len(self._levels) > 1 and self._levels[-2].size < min(2 * self._levels[-1].size, _LARGEST_MERGE):
            pair = np.concatenate([self._levels.pop(), self._levels.pop()])
            pair.sort(kind="stable")  # two sorted runs: one merge
            self._levels.append(pair)


def _repeated_within(keys: NDArray[np.uint64], nibbles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Repeats inside one document: every paragraph against the first of its band and the one before it there."""
    found = np.zeros(len(keys), bool)
    order = np.argsort(keys, axis=None, kind="stable")
    sorted_keys, owner = keys.ravel()[order], order // BANDS
    later = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1]) + 1
    first = np.searchsorted(sorted_keys, sorted_keys[later])
    for earlier in (first, later - 1):
        found[owner[later[_alike(nibbles[owner[later]], nibbles[owner[earlier]])]]] = True
    return found
