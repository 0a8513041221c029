"""Processes that train together: their device and backend, and the collectives among them.

Every choice is a function of plain values, so it can be tested without the hardware. Control traffic (sums, counts,
decisions) goes over gloo on CPU arrays; gradients go over nccl on GPUs, through shared memory if all ranks are on one
machine (`allreduce`), and over gloo otherwise.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from salescast.errors import UserError
from salescast.runtime.processes import Parent
from salescast.training import allreduce

logger = logging.getLogger(__name__)

# How long a rank waits for the others: at the start, when rank 0 may still retrieve the training set, and in a
# collective, where all ranks have equal work and only a lost node makes them wait that long.
START_TIMEOUT, COLLECTIVE_TIMEOUT = timedelta(minutes=30), timedelta(minutes=5)


@dataclass(frozen=True)
class Placement:
    """Device of a process, the `backend` of its gradients, its autocast type `amp` (None = off), and `compile`."""

    device: str
    backend: str
    amp: torch.dtype | None
    compile: bool


def choose(want: str, gpus: int, bf16: bool, local_rank: int, local_world: int) -> Placement:
    """The placement of one process, given the GPUs of its machine.

    Use GPUs if each process of the machine can have its own; use bf16 only where the hardware supports it (fp16 would
    need loss scaling), and `torch.compile` only on GPUs: on a CPU it needs a compiler and many seconds.
    Raises UserError when `want` is "cuda" and there are too few GPUs.
    """
    if want == "cuda" and gpus < local_world:
        raise UserError(
            f"device 'cuda' needs a GPU for each of {local_world} processes, found {gpus}; "
            "start fewer processes or set device to 'auto'"
        )
    if want == "cpu" or gpus < local_world:
        return Placement("cpu", "gloo", None, compile=False)
    return Placement(f"cuda:{local_rank}", "nccl", torch.bfloat16 if bf16 else None, compile=True)


@dataclass(frozen=True)
class Group:
    """This process among `world` ranks. With one process every collective is the identity."""

    rank: int
    world: int
    place: Placement
    gradients: dist.ProcessGroup | None = None
    memory: allreduce.SharedMemory | None = None
    parent: Parent = field(default_factory=Parent)

    def check_parent(self) -> None:
        """Raise UserError when the launcher was killed: the same plan may already run again."""
        if self.parent.gone():
            raise UserError("the process that started this training is gone; start the same plan again to continue")

    def limited(self, *, bf16: bool, compile: bool) -> "Group":
        """This process without bf16 or compilation where the training settings switch them off."""
        place = replace(self.place, amp=self.place.amp if bf16 else None, compile=self.place.compile and compile)
        return replace(self, place=place)

    @property
    def device(self) -> torch.device:
        return torch.device(self.place.device)

    @property
    def first(self) -> bool:
        """True on the rank that writes files."""
        return self.rank == 0

    def sum(self, values: NDArray[np.float64] | Sequence[float]) -> NDArray[np.float64]:
        """Element-wise sum over the ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: NDArray[np.float64] | Sequence[float]) -> NDArray[np.float64]:
        """Element-wise maximum over the ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: NDArray[np.float64] | Sequence[float], op: Any) -> NDArray[np.float64]:
        array = np.array(values, dtype=np.float64)
        if self.world > 1:
            dist.all_reduce(torch.from_numpy(array), op=op)
        return array

    def gather(self, value: Any) -> list[Any]:
        """The small plain value of every rank, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's small plain value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def average_(self, tensors: Sequence[torch.Tensor], weight: float) -> None:
        """Replace each tensor by its weighted mean over the ranks, in place; the sum of weights must not be 0."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).double().cpu() for tensor in tensors]) * weight
        total = self.sum([*flat.numpy(), weight])
        mean = torch.from_numpy(total[:-1] / total[-1])
        start = 0
        for tensor in tensors:
            tensor.copy_(mean[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network to train with: gradients averaged over the ranks, and compiled where `place` says so."""
        size = sum(parameter.numel() for parameter in network.parameters())
        if self.world > 1:
            network = nn.parallel.DistributedDataParallel(
                network,
                process_group=self.gradients,
                forward_sync_buffers=False,  # BatchNorm statistics are averaged once an epoch instead of every step
                gradient_as_bucket_view=True,
                static_graph=True,
            )
            if self.memory and size <= allreduce.LARGEST:
                network.register_comm_hook(self.memory, allreduce.average)
        return torch.compile(network, dynamic=False) if self.place.compile else network  # type: ignore[return-value]


@contextmanager
def connect(want: str = "auto") -> Iterator[Group]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE, ...); without torchrun a group of one.

    All ranks use GPUs or none does. Raises UserError when the ranks do not find each other in time.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    place = choose(want, gpus, gpus > 0 and torch.cuda.is_bf16_supported(), local_rank, local_world)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
    if world == 1:
        yield Group(rank, world, place)
        return
    try:
        shared, *_ = next(rendezvous("env://", timeout=START_TIMEOUT))
        store = PrefixStore(rendezvous_key(shared, rank, world), shared)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
    except dist.DistError as error:
        raise UserError(
            f"rank {rank} of {world} did not reach the others in {START_TIMEOUT}: {error}; look at the log of rank 0"
        ) from error
    try:
        if not all(Group(rank, world, place).gather(place.backend == "nccl")):
            place = choose("cpu", 0, False, local_rank, local_world)
        if place.backend == "nccl":
            torch.cuda.set_device(local_rank)
        gradients = dist.new_group(backend="nccl") if place.backend == "nccl" else None
        together = place.backend == "gloo" and local_world == world
        with allreduce.share(rank, world, COLLECTIVE_TIMEOUT) if together else nullcontext() as memory:
            yield Group(rank, world, place, gradients, memory)
    finally:
        dist.destroy_process_group()


def rendezvous_key(store: Store, rank: int, world: int) -> str:
    """A key that the ranks of this start share, and no earlier start had.

    torchrun keeps its store over restarts, and with it the addresses of dead processes
    (https://github.com/pytorch/pytorch/issues/135712). So every start needs its own part of the store, and the restart
    count cannot name it: it differs between nodes. Rank 0 draws a key and sends it to each rank that asks under a new
    name of its own, until all have confirmed it.
    Raises UserError when a rank does not come within START_TIMEOUT.
    """
    key = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", key)
        store.wait([f"welcome/{key}"], START_TIMEOUT)
        shared = str(store.get(f"welcome/{key}").decode())
        store.set(f"here/{shared}/{rank}", "")
        return shared
    end = time.monotonic() + START_TIMEOUT.total_seconds()
    while missing := [r for r in range(1, world) if not store.check([f"here/{key}/{r}"])]:
        if time.monotonic() > end:
            raise UserError(
                f"ranks {missing} of {world} did not come in {START_TIMEOUT}; look at the logs of their nodes"
            )
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", key)
        time.sleep(0.02)
    return key
