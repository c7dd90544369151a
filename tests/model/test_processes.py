"""Who is who by the environment, what nccl needs on GeForce cards, and two real processes that add up, agree and wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from stylora.model.device import Device
from stylora.model.processes import agreed, join_processes, leave_processes, lost_peer, quiet_nccl, rank, ranks, summed, wait_for_all

BOTH = ["NCCL_P2P_DISABLE=1", "NCCL_IB_DISABLE=1"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of a launcher in it, and what is set is taken back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it, whatever the code under test does
        monkeypatch.delenv(name)
    return monkeypatch


def test_without_a_launcher_there_is_one_process():
    assert (rank(), ranks()) == (0, 1)


def test_a_launcher_says_who_is_who(environment):
    environment.setenv("RANK", "3")
    environment.setenv("WORLD_SIZE", "8")
    assert (rank(), ranks()) == (3, 8)


def test_one_process_gives_back_what_it_got():
    values, anything = np.array([1.0, 2.0]), object()
    assert join_processes(Device(device=torch.device("cpu"), dtype=torch.float32, why="test")) is None
    assert not torch.distributed.is_initialized()
    assert summed(values) is values and agreed(anything) is anything
    wait_for_all()
    leave_processes()
    assert not lost_peer(RuntimeError("[gloo] Connection closed by peer")), "there is no peer"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["NVIDIA GeForce RTX 4090"] * 2, BOTH), (["NVIDIA GeForce RTX 5080"], BOTH), (["NVIDIA GeForce RTX 4060 Ti"], BOTH),
        (["NVIDIA GeForce RTX 4090 D", "NVIDIA H200"], BOTH), (["NVIDIA GeForce RTX 5090 Laptop GPU"], BOTH),
        (["NVIDIA H200"] * 8, []), (["NVIDIA GeForce RTX 3090"] * 2, []), (["NVIDIA RTX 4000 Ada Generation"], []),
        (["NVIDIA RTX 5000 Ada Generation"], []), (["NVIDIA A40", "NVIDIA L40S"], []), (["NVIDIA GeForce GTX 1050"], []), ([], []),
    ],
)  # fmt: skip
def test_cards_without_peer_to_peer_copies(names, expected):
    before = dict(os.environ)
    assert quiet_nccl(names) == expected
    assert dict(os.environ) == before | dict(each.split("=") for each in expected)


def test_what_the_user_set_stays(environment):
    environment.setenv("NCCL_P2P_DISABLE", "0")
    assert quiet_nccl(["NVIDIA GeForce RTX 4090"]) == ["NCCL_IB_DISABLE=1"]
    assert os.environ["NCCL_P2P_DISABLE"] == "0" and os.environ["NCCL_IB_DISABLE"] == "1"


TOGETHER = """
import os, sys, time
from pathlib import Path
import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from stylora.evaluate.held_out import measure
from stylora.forest import build_trie
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel
from stylora.model.processes import agreed, join_processes, leave_processes, lost_peer, rank, ranks, summed, wait_for_all
from stylora.samples.clm import clm

torch.set_num_threads(1)
said = join_processes(Device(device=torch.device("cpu"), dtype=torch.float32, why="test"))
assert said == "2 processes, gloo", said
me = rank()

values = np.array([1 + me * 1e-12, me, 10.0])
total = summed(values)
assert total.dtype == np.float64 and total.tolist() == [2 + 1e-12, 1, 20], total
assert values.tolist() == [1 + me * 1e-12, me, 10.0], "what was handed in changed"
assert summed(np.array([1, me])).tolist() == [2, 1]
assert summed(np.zeros(0)).tolist() == []

box = agreed({"path": Path("剑"), "found": [me, None]})
assert box == {"path": Path("剑"), "found": [0, None]}, box
assert agreed(None if me == 0 else 5) is None

late = Path(sys.argv[1]) / "late"
if me == 1:
    time.sleep(0.5)
    late.write_text("there", encoding="utf-8")
wait_for_all()
assert late.exists(), "went on alone"

torch.manual_seed(0)
config = Qwen3Config(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                     head_dim=8, max_position_embeddings=64, use_cache=False)
model = ForestModel(Qwen3ForCausalLM(config).eval(), words=50)
draw = np.random.default_rng(0)
samples = [clm(draw.integers(3, 50, size=2 + 5 * n % 17, dtype=np.int32)) for n in range(7)]
samples += [build_trie([clm(np.array([5, 6, *draw.integers(3, 50, size=n)], np.int32)) for _ in range(3)]) for n in (2, 4)]
measured = [measure(model, some, [1.0] * len(some), tokens_at_once=30) for some in (samples, samples[:1])]

if me == 1:
    os._exit(0)  # without a word
try:
    for _ in range(100):
        wait_for_all()
        time.sleep(0.1)
    raise AssertionError("nobody noticed")
except RuntimeError as error:
    assert lost_peer(error), error
assert not lost_peer(RuntimeError("CUDA out of memory")) and not lost_peer(ValueError("x"))
leave_processes()
assert not torch.distributed.is_initialized()
leave_processes()

os.environ.update(RANK="0", WORLD_SIZE="1")
for some, found in zip((samples, samples[:1]), measured):
    alone = measure(model, some, [1.0] * len(some), tokens_at_once=30)
    assert np.abs(found.nats - alone.nats).max() < 1e-4 and (found.nats > 0).all(), (found.nats, alone.nats)
    assert found.tokens.tolist() == alone.tokens.tolist() and found.characters.tolist() == alone.characters.tolist()
print("all of it holds")
"""


def test_two_processes_add_up_agree_wait_and_measure_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            env={**os.environ, "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONUTF8": "1"},
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    assert "all of it holds" in said[0]
