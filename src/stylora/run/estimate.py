"""How long a run will take, from one micro-batch computed for nothing: it also finds out whether the memory suffices, before training."""

from __future__ import annotations

import time

import torch

from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.recipe.recipe import Stage
from stylora.samples.branch_limits import most_branches
from stylora.samples.settings import Data
from stylora.train.steps import Steps
from stylora.train.symptoms import out_of_memory_advice


def dry_step(model: ForestModel, steps: Steps, device: Device, stage: Stage) -> float:
    """Seconds an optimizer step will take about: forward and backward of the first step's largest micro-batch, nothing learned.

    Raises UserError where it does not fit the memory.
    """
    step = steps[0]
    batch = max(step.batches, key=lambda batch: batch.ids.size)
    model.train()
    started = time.perf_counter()
    try:
        with precision_context(device.device, device.dtype):
            loss = model(to_tensors(batch, device.device, divisor=step.weight or 1.0))
        loss.backward()
        if device.device.type == "cuda":
            torch.cuda.synchronize()
    except torch.OutOfMemoryError as error:
        train = stage.train
        longest, shorter = halved(stage.data, batch.ids.shape[1])
        advice = out_of_memory_advice(train.tokens_per_microbatch, longest, train.gradient_checkpointing, shorter)
        got = f"{train.tokens_per_microbatch} tokens, which do not fit the memory"
        raise UserError("train.tokens_per_microbatch", got=got, expected="a micro-batch that fits", do=advice) from error
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    model.eval()
    return seconds * sum(batch.ids.size for batch in step.batches) / batch.ids.size


def halved(data: Data, width: int) -> tuple[int, str]:
    """(tokens of the longest sample, the setting that makes it about half as long). width: of the micro-batch at hand, in tokens"""
    if data.format == "chat":
        return width, f"data.max_length={width // 2}"
    if data.format == "branches":
        name = "branches_per_sample" if data.max_branches_per_sample is None else "max_branches_per_sample"
        return width, f"data.{name}={max(1, most_branches(data) // 2)}"
    return data.window, f"data.window={data.window // 2}"


def told_time(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
