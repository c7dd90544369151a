"""Next-token prediction on a window: a chain whose every step is an edge.

    a b c d      edges  a->b  b->c  c->d
"""

from __future__ import annotations

import numpy as np

from stylora.forest import Sample, chain, edges


def clm(ids: np.ndarray) -> Sample:
    """ids: int32 [T] -> T - 1 edges of weight 1."""
    return Sample(forest=chain(ids), edges=edges(np.arange(len(ids) - 1), ids[1:]))
