"""What the tokens of one column may see among the cached keys, in the form the attention of the model at hand reads.

Everything that lives stands in one row of keys: trunks, and behind them what each of their branches read and wrote, in the order in which
it came. A query sees a key of its own tree if that stands in the trunk or in its own branch, not later than itself; where branches are
columnar also what other branches of its trunk said at earlier times. In sliding-window layers also `time[q] - time[k] < window`.

    keys        a b  c d  x y        trunk a b, the first branch c d, the second x y        time 0 1  2 3  2 3
    isolated  e # #  # #  . .        the next token of the first branch, time 4
              z # #  . .  # #        of the second
    columnar  e # #  # #  # #
              z # #  # #  # #        but not e and z each other, which stand in the same column

model/visibility.py is the same for whole rows, as training reads them. The mask is additive, in the dtype of the activations: of a bool one
sdpa would make that in every layer anew. Knows positions, no tokens and no model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

TRUNK = -1
"""The number of the branch that a trunk's own tokens have"""


class Places(NamedTuple):
    """Where tokens stand, int64 [T] each. tree: number of the trunk; branch: another for every branch of any tree, or TRUNK
    time: as in a row of trunk and branch alone"""

    tree: Tensor
    branch: Tensor
    time: Tensor


def column_mask(
    query: Places, key: Places, config: PretrainedConfig, dtype: torch.dtype, *, columnar: bool = False
) -> Tensor | dict[str, Tensor | None]:
    """What `attention_mask=` of a model must be with N queries in one row over K keys, the queries' own included: [1, 1, N, K].

    config: of the model; where its layers differ, a dict by their type; dtype: of the activations
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    types = set(getattr(text, "layer_types", None) or ())
    visible = sees(query, key, columnar=columnar)
    if len(types) > 1:
        windows = {"full_attention": None, "sliding_attention": window}
        # other kinds (recurrent, chunked) read no such mask; models that have them are decoded branch by branch
        return {kind: _additive(visible, query, key, windows[kind], dtype) if kind in windows else None for kind in sorted(types)}
    windowed = types == {"sliding_attention"} or (not types and window is not None)
    return _additive(visible, query, key, window if windowed else None, dtype)


def sees(query: Places, key: Places, *, columnar: bool = False) -> Tensor:
    """bool [N, K]: may the query see the key, windows aside?"""
    own = key.branch == query.branch[:, None]
    if columnar:  # the trunk's times are all earlier than a branch's
        before = (key.time < query.time[:, None]) | (own & (key.time == query.time[:, None]))
        return before & (key.tree == query.tree[:, None])
    near = own | ((key.branch == TRUNK) & (key.tree == query.tree[:, None]))
    return near & (key.time <= query.time[:, None])


def _additive(visible: Tensor, query: Places, key: Places, window: int | None, dtype: torch.dtype) -> Tensor:
    if window is not None:
        visible = visible & (query.time[:, None] - key.time < window)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
