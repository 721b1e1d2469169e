"""Processes that train one model together, as `torchrun` starts them; one alone is the simplest case."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

# A process may wait for another that reads the whole data set.
PATIENCE = datetime.timedelta(hours=4)


@dataclass(frozen=True, slots=True)
class Processes:
    """How many there are, and which of them this is."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, summed over the processes in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, part: Any) -> list[Any]:
        """What each process gave, in the order of their ranks."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, part)
        return parts

    def wait(self) -> None:
        """For all the others to come here."""
        if self.world > 1:
            distributed.barrier()


def launched() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_device(device: str) -> str:
    """The device of this process: among several on one machine, each takes a GPU of its own where any will do."""
    if launched() and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


@contextlib.contextmanager
def training_processes(device: torch.device) -> Iterator[Processes]:
    """The processes that train together, connected while it is entered: by nccl on GPUs, by gloo on CPUs.

    Where they are connected already, they stay so.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
        return
    if not launched():
        yield Processes()
        return
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        # The launcher gives each process one thread; together they are to have all cores.
        on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, _cores() // on_this_machine))
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
