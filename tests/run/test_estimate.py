"""What is tried before training: where memory runs out, the advice is a setting that the data at hand read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stylora.errors import UserError
from stylora.forest import Sample, chain, edges
from stylora.model.device import choose_device
from stylora.recipe.recipe import parse_recipe
from stylora.run.estimate import dry_step, halved, told_time
from stylora.train.steps import Steps


@pytest.mark.parametrize("data, longest, shorter", [
    ({"train": "novels", "window": 512}, 512, "data.window=256"),
    ({"format": "chat", "train": "c.jsonl"}, 300, "data.max_length=150"),
    ({"format": "branches", "train": "b.jsonl"}, 300, "data.branches_per_sample=4"),
    ({"format": "branches", "train": "b.jsonl", "max_branches_per_sample": 6}, 300, "data.max_branches_per_sample=3"),
])  # fmt: skip
def test_the_setting_for_shorter_samples_is_one_that_is_read(data, longest, shorter):
    values = {"stages": [{"name": "s", "data": data}]}
    (stage,) = parse_recipe(values, [], name="r").stages
    assert halved(stage.data, 300) == (longest, shorter)
    (changed,) = parse_recipe(values, [shorter], name="r").stages
    assert changed.data != stage.data


class Full(torch.nn.Module):
    """Its memory is full."""

    def forward(self, batch):
        raise torch.OutOfMemoryError("full")


def test_memory_that_does_not_suffice_is_told_with_the_next_setting():
    sample = Sample(forest=chain(range(3, 40)), edges=edges([0], [5]))
    steps = Steps(
        lambda epoch: np.zeros(1, np.int64), lambda index, epoch: sample, samples_per_step=1, tokens_per_microbatch=64, row_tokens=None,
        num_train_epochs=1, max_steps=-1, packs=True,
    )  # fmt: skip
    values = {"data": {"format": "branches", "train": "b.jsonl"}, "train": {"tokens_per_microbatch": 37, "gradient_checkpointing": True}}
    (stage,) = parse_recipe({"stages": [{"name": "s", **values}]}, [], name="r").stages
    with pytest.raises(UserError, match=r"train\.tokens_per_microbatch: got 37 tokens.*next: data\.branches_per_sample=4"):
        dry_step(Full(), steps, choose_device("fp32"), stage)


def test_times_are_told_in_units_of_their_size():
    assert [told_time(seconds) for seconds in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
