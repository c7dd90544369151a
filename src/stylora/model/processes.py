"""Several processes of one run: which of them this is, and sums over all of them. With one process each function gives back what it got.

`stylora train --nproc`, torchrun and accelerate launch all say who is who through RANK, LOCAL_RANK and WORLD_SIZE; the communication is
torch.distributed's (nccl on GPUs, gloo on the CPU). Knows nothing of what is trained.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from stylora.errors import UserError

if TYPE_CHECKING:
    from .device import Device

T = TypeVar("T")
NO_PEER = re.compile(r"GeForce RTX (40|50)\d\d")
"""Cards whose driver offers peer-to-peer copies that hang or arrive as zeros (NVIDIA/nccl-tests#117)."""
NCCL_OFF = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
PATIENCE = timedelta(minutes=30)  # for a rank that measures or writes alone


def rank() -> int:
    """The number of this process, from 0; rank 0 prints and writes."""
    return int(os.environ.get("RANK", 0))


def ranks() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join_processes(device: Device) -> str | None:
    """Meet the other processes; each takes the GPU of its LOCAL_RANK. Returns a line for the start-up print, None if there is no choice.

    Raises UserError for more processes than GPUs.
    """
    import torch
    import torch.distributed as dist

    if ranks() == 1:
        unused = torch.cuda.device_count() - 1
        return f"1, and {unused} of {unused + 1} GPUs idle; --nproc {unused + 1} uses them all" if unused > 0 else None
    if dist.is_initialized():  # by the stage before; nobody may write before all have looked at what is there
        wait_for_all()
        return None
    if device.device.type != "cuda":
        backend, off = "gloo", []
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", ranks()))
        if here > gpus:
            raise UserError("--nproc", got=f"{here} processes", expected=f"at most {gpus}, one for each GPU of this machine")
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        backend, off = "nccl", quiet_nccl([torch.cuda.get_device_name(number) for number in range(gpus)])
        dist.init_process_group(backend, timeout=PATIENCE, device_id=own)
    return f"{ranks()} processes, {backend}" + (f"; GeForce 40/50 cards: set {' '.join(off)}" if off else "")


def quiet_nccl(names: list[str]) -> list[str]:
    """Switch peer-to-peer and InfiniBand off where a card needs it, unless the user decided; what was set, as NAME=VALUE."""
    if not any(NO_PEER.search(name) for name in names):
        return []
    chosen = {name: value for name, value in NCCL_OFF.items() if name not in os.environ}
    os.environ.update(chosen)
    return [f"{name}={value}" for name, value in chosen.items()]


def leave_processes() -> None:
    """Close the group; torch warns of one left open."""
    if ranks() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def lost_peer(error: BaseException) -> bool:
    """Whether the error is another process's end, seen from here."""
    import torch.distributed as dist

    text = str(error)
    return ranks() > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "Connection closed by peer" in text)


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if ranks() > 1:
        import torch.distributed as dist

        dist.barrier()


def summed(values: np.ndarray) -> np.ndarray:
    """float64, as `values`: the sum over all processes."""
    if ranks() == 1:
        return values
    import torch
    import torch.distributed as dist

    on = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.from_numpy(np.array(values, np.float64)).to(on)  # a copy: it is summed in place
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def agreed(value: T) -> T:
    """Rank 0's value, for everyone. Any object that can be pickled."""
    if ranks() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
