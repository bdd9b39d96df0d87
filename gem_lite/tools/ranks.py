"""Several processes under torch's launcher: which part of the work is whose, and adding up counts.

`torchrun --nproc-per-node 2 -m gem_lite ...` sets the variables that are read here. Without them
there is one process, and nothing of `torch.distributed` is touched.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
PATIENCE = 7  # days that a process waits for one whose share takes longer


class Rank(NamedTuple):
    """This process among all of them."""

    rank: int  # 0 to world - 1
    world: int  # number of processes
    local: int  # among those of this machine: the number of its CUDA device


def this_rank() -> Rank:
    """From RANK, WORLD_SIZE and LOCAL_RANK; 0 of 1 when they are not set.

    Raises ValueError when they are not numbers that fit each other.
    """
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", str(rank)))
    except ValueError as error:
        raise ValueError(
            "RANK, WORLD_SIZE or LOCAL_RANK in the environment is not a number; start with"
            " torchrun, or unset them"
        ) from error
    if not 0 <= rank < world:
        raise ValueError(
            f"RANK is {rank} of WORLD_SIZE {world}; start with torchrun, or unset them"
        )
    return Rank(rank, world, local)


def share(items: Sequence[Item], rank: Rank | None = None) -> list[Item]:
    """This process's part of the items: every `world`-th, from its own number on.

    Together the processes have each item once. With one process, all of them.
    """
    rank = this_rank() if rank is None else rank
    return list(items[rank.rank :: rank.world])


def rank_device(device: str, rank: Rank) -> str:
    """`cuda` becomes this process's own device, `auto` that or the CPU; everything else stays."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{rank.local}" if device == "cuda" and rank.world > 1 else device


@contextmanager
def joined(rank: Rank, device: str) -> Iterator[None]:
    """The processes as one group while the block runs: nccl for CUDA, gloo otherwise."""
    if rank.world == 1:
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(torch.device(device))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(days=PATIENCE))
    try:
        yield
    finally:
        dist.destroy_process_group()


def total(counts: Tensor, rank: Rank, device: str) -> Tensor:
    """The sum of an integer tensor over all processes, on the CPU; exact in any order.

    Raises ConnectionError when another process is gone.
    """
    if rank.world == 1:
        return counts
    summed = counts.to(device if device.startswith("cuda") else "cpu", copy=True)
    try:
        dist.all_reduce(summed)
    except RuntimeError as error:
        raise ConnectionError("another process ended before its share was done") from error
    return summed.cpu()


def wait_for_all(rank: Rank, device: str) -> None:
    """Until every process has come here. Raises ConnectionError when one is gone."""
    total(torch.zeros(1, dtype=torch.int64), rank, device)
