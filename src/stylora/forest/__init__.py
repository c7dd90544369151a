"""Forests, edges and anchors: build them, pack them to a budget, draw them. NumPy only; no tokenizers, models or torch."""

from .forest import MASK, NO_ANCHORS, Anchors, Edges, Forest, Sample, chain, edges, join, parents, visible
from .pack import MicroBatch, pack, stack, whole_row
from .trie import build_trie

__all__ = [
    "MASK", "NO_ANCHORS", "Anchors", "Edges", "Forest", "MicroBatch", "Sample", "build_trie", "chain", "edges", "join", "pack",
    "parents", "stack", "visible", "whole_row",
]  # fmt: skip
