"""Forests, edges and anchors: build them, pack them to a budget, draw them. NumPy only; no tokenizers, models or torch."""

from .forest import MASK, NO_ANCHORS, Anchors, Edges, Forest, Sample, chain, edges, join, parents, visible
from .pack import MicroBatch, alike, pack, stack, whole_row
from .trie import build_trie, merge

__all__ = [
    "MASK", "NO_ANCHORS", "Anchors", "Edges", "Forest", "MicroBatch", "Sample", "alike", "build_trie", "chain", "edges", "join", "merge",
    "pack", "parents", "stack", "visible", "whole_row",
]  # fmt: skip
