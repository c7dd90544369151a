"""Optimizers that can't be had are refused in one sentence; those that can are transformers'. How they learn: test_trainer.py."""

from __future__ import annotations

from typing import get_args

import pytest
from transformers.training_args import OptimizerNames

from stylora.errors import UserError
from stylora.model import quantized
from stylora.train.optimizer import TRANSFORMERS, check_optimizer
from stylora.train.settings import Optim


def test_every_name_is_one_of_transformers():
    assert set(TRANSFORMERS) == set(get_args(Optim))
    assert set(TRANSFORMERS.values()) <= {name.value for name in OptimizerNames}


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_a_missing_library_is_said_in_one_sentence(optim, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="train.optim: got no bitsandbytes, expected .*; pip install bitsandbytes"):
        check_optimizer(optim, "cuda")
    check_optimizer("adamw_torch", "cpu")


def test_there_is_nothing_to_page_out_without_a_gpu(monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="train.optim: got paged_adamw_8bit on cpu, expected a GPU.*; use adamw_8bit"):
        check_optimizer("paged_adamw_8bit", "cpu")
    check_optimizer("paged_adamw_8bit", "cuda")
    check_optimizer("adamw_8bit", "cpu")


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("installed", [None, object()])
def test_eight_bits_are_not_offered_where_nobody_tried_them(optim, installed, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: installed)
    with pytest.raises(UserError, match=f"train.optim: got {optim} on mps, expected adamw_torch.*; use adamw_torch"):
        check_optimizer(optim, "mps")
    check_optimizer("adamw_torch", "mps")
