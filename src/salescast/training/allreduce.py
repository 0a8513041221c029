"""All-reduce of gradients in memory that the ranks of one machine share.

Gloo sends gradients over the loopback network, which for a network of this size takes half as long again as the step
itself (docs/LOG.md). Here each rank writes its gradients into its own slot; once all have, each takes the mean over the
slots, in rank order, so that all ranks get the same bits. Memory and sockets are anonymous: a killed process leaves
nothing behind.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from mmap import mmap

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

SPINS = 500  # non-blocking reads before a blocking one: about half a millisecond
LARGEST = 1 << 20  # parameters; larger networks spend their time elsewhere


@dataclass
class SharedMemory:
    """Memory and sockets that the ranks of one machine share.

    `slots` float32 [2, world, LARGEST] takes memory pages as they are used; `links` connects rank 0 to every other
    rank, and each of those to rank 0.
    """

    rank: int
    slots: Tensor
    links: list[socket.socket]
    calls: int = 0

    def average_(self, values: Tensor) -> None:
        """Replace float32 [n <= LARGEST] by its mean over the ranks, in place.

        Raises ConnectionError when another rank has ended, TimeoutError when one does not answer.
        """
        # Two halves in turn: a rank that still reads one of them has not passed the barrier of the other.
        slots = self.slots[self.calls % 2, :, : values.numel()]
        self.calls += 1
        slots[self.rank].copy_(values)
        self._barrier()
        torch.mean(slots, dim=0, out=values)

    def _barrier(self) -> None:
        """Return when every rank has called this as often as this one. Earlier writes are visible to all then."""
        if self.rank:
            self.links[0].sendall(b".")
        for link in self.links:
            if not _read_byte(link):
                raise ConnectionError("another rank of this training has ended")
        if not self.rank:
            for link in self.links:
                link.sendall(b".")


def _read_byte(link: socket.socket) -> bytes:
    """One byte, or b"" from a rank that has ended. Spin briefly first: waking from a blocking recv is slow."""
    for _ in range(SPINS):
        with suppress(BlockingIOError):
            return os.read(link.fileno(), 1)
    return link.recv(1)


def average(memory: SharedMemory, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The communication hook of DistributedDataParallel."""
    result: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    memory.average_(bucket.buffer())
    result.set_result(bucket.buffer())
    return result


@contextmanager
def share(rank: int, world: int, patience: timedelta) -> Iterator[SharedMemory | None]:
    """Set it up among the ranks of the default process group; None, on all of them, where that is not possible.

    `patience`: how long a rank waits for another, here and in every all-reduce.
    """
    connected = _connect(rank, world, patience.total_seconds())
    if connected is None:
        yield None
        return
    memory, links = connected
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link).settimeout(patience.total_seconds())
        slots = torch.frombuffer(mmap(memory, _size(world)), dtype=torch.float32)
        os.close(memory)
        yield SharedMemory(rank, slots.view(2, world, LARGEST), links)


def _connect(rank: int, world: int, patience: float) -> tuple[int, list[socket.socket]] | None:
    """The memory's file descriptor and this rank's links; None, on all ranks, where rank 0 cannot create them."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as folder:
        address, memory = _create(listener, folder, world) if rank == 0 else (None, -1)
        box = [address]
        dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            return None
        if rank == 0:
            listener.settimeout(patience)
            links = [listener.accept()[0] for _ in range(world - 1)]
            for link in links:
                socket.send_fds(link, [b"."], [memory])
            return memory, links
        link = socket.socket(socket.AF_UNIX)
        link.connect(box[0])
        return socket.recv_fds(link, 1, 1)[1][0], [link]


def _create(listener: socket.socket, folder: ExitStack, world: int) -> tuple[str | None, int]:
    """On rank 0: the address it listens at, in a private folder, and the file descriptor of the memory."""
    try:
        address = f"{folder.enter_context(tempfile.TemporaryDirectory())}/ranks"
        listener.bind(address)
        listener.listen(world)
        memory = os.memfd_create("gradients")
        os.ftruncate(memory, _size(world))
    except OSError as error:
        logger.warning("no shared memory for gradients; using the loopback network, which is slower: %s", error)
        return None, -1
    return address, memory


def _size(world: int) -> int:
    return 2 * world * LARGEST * 4
