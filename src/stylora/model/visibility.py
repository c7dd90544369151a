"""A forest's visibility, in the form the attention of the model at hand reads.

Query q sees key k iff `k <= q < end[k]`; where branches see each other's columns, iff k is of the same tree and `time[k] < time[q]`, or q
itself; in sliding-window layers also `time[q] - time[k] < window`. The decoder takes a ready mask: bool
[B, 1, T, T] for sdpa, additive float for eager, a `BlockMask` for flex_attention (transformers.masking_utils accepts each as it is). Models
whose layers differ want a dict by layer type; models with one window everywhere want the windowed mask. That the form is right
is proved at start (model/proofs.py), not assumed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

Mask = Tensor | object
MaskArgument = Mask | dict[str, Mask] | None


def attention_mask(
    end: Tensor, time: Tensor, config: PretrainedConfig, implementation: str, dtype: torch.dtype, *, columnar: bool = False
) -> MaskArgument:
    """What `attention_mask=` of the decoder must be for rows of a forest.

    end, time: int [B, T]; config: of the text model; implementation: "sdpa", "eager" or "flex_attention"; dtype: of the activations
    columnar: branches of a tree see each other's earlier columns
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    types = set(getattr(text, "layer_types", None) or ())
    if len(types) > 1:
        windows = {"full_attention": None, "sliding_attention": window}
        # other kinds (recurrent, chunked) read no such mask: they get none and leak, which the proof at start sees
        return {
            kind: _mask(end, time, windows[kind], implementation, dtype, columnar) if kind in windows else None for kind in sorted(types)
        }
    windowed = types == {"sliding_attention"} or (not types and window is not None)
    return _mask(end, time, window if windowed else None, implementation, dtype, columnar)


def _mask(end: Tensor, time: Tensor, window: int | None, implementation: str, dtype: torch.dtype, columnar: bool) -> Mask:
    if implementation == "flex_attention":
        return _block_mask(end, time, window, columnar)
    visible = dense(end, time, window, columnar=columnar)
    if implementation == "sdpa":
        return visible
    return torch.zeros(visible.shape, dtype=dtype, device=end.device).masked_fill_(~visible, torch.finfo(dtype).min)


def dense(end: Tensor, time: Tensor, window: int | None = None, *, columnar: bool = False) -> Tensor:
    """bool [B, 1, T, T] (query, key) from end, time: int [B, T].

    packed a b | x y z (end 2 2 5 5 5):   #....
                                          ##...
                                          ..#..
                                          ..##.
                                          ..###
    columnar a b, c d, e (time 0 1 2 3 2):    #....
                                          ##...
                                          ###..
                                          #####
                                          ##..#
    """
    index = torch.arange(end.shape[1], device=end.device)
    if columnar:
        tree = trees(time)
        earlier = (tree[:, None, :] == tree[:, :, None]) & (time[:, None, :] < time[:, :, None])
        visible = earlier | (index[None, :] == index[:, None])
    else:
        visible = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < end[:, None, :])
    if window is not None:
        visible = visible & (time[:, :, None] - time[:, None, :] < window)
    return visible[:, None]


def trees(time: Tensor) -> Tensor:
    """int64 [B, T]: the number of the tree a token belongs to, from 1. Only its root has time 0; a token of padding is a tree by itself."""
    return (time == 0).cumsum(dim=-1)


def _block_mask(end: Tensor, time: Tensor, window: int | None, columnar: bool) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    tree = trees(time)

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if columnar:
            visible = ((tree[row, key] == tree[row, query]) & (time[row, key] < time[row, query])) | (key == query)
        else:
            visible = (key <= query) & (query < end[row, key])
        return visible if window is None else visible & (time[row, query] - time[row, key] < window)

    rows, tokens = end.shape
    return create_block_mask(sees, rows, None, tokens, tokens, device=str(end.device))
