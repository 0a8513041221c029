"""Gradients averaged in memory that the ranks of one machine share.

Gloo sends them over the loopback, which for a network of this size takes half as long again as the step itself
(docs/LOG.md). Here a rank writes its gradients into a place of its own and takes the mean of all places once everybody
has: in rank order, so all ranks get the same bits. Memory and sockets have no name: a killed process leaves nothing.
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

LOOKS = 500  # for the others, before going to sleep: about half a millisecond
LARGEST = 1 << 20  # parameters; larger networks spend their time elsewhere


@dataclass
class SharedMemory:
    """What the ranks of one machine share.

    `places` float32 [2, world, LARGEST] is the memory, of which pages are taken as they are used; `links` leads from
    rank 0 to every other rank, and from each of those to rank 0.
    """

    rank: int
    places: Tensor
    links: list[socket.socket]
    calls: int = 0

    def average_(self, values: Tensor) -> None:
        """Replace float32 [n <= LARGEST] by its mean over the ranks, in place.

        Raises ConnectionError when another rank has ended, TimeoutError when one keeps silent.
        """
        # Two halves in turn: whoever is still reading one has not yet said that the next one is written.
        places = self.places[self.calls % 2, :, : values.numel()]
        self.calls += 1
        places[self.rank].copy_(values)
        self._all_written()
        torch.mean(places, dim=0, out=values)

    def _all_written(self) -> None:
        """Return when every rank has called this as often as this one. The kernel orders the writes before it."""
        if self.rank:
            self.links[0].sendall(b".")
        for link in self.links:
            if not _heard(link):
                raise ConnectionError("another rank of this training has ended")
        if not self.rank:
            for link in self.links:
                link.sendall(b".")


def _heard(link: socket.socket) -> bytes:
    """One byte, or b"" from a rank that has ended. Who sleeps wakes up late, so it looks for a while before."""
    for _ in range(LOOKS):
        with suppress(BlockingIOError):
            return os.read(link.fileno(), 1)
    return link.recv(1)


def average(memory: SharedMemory, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The communication hook of DistributedDataParallel."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    memory.average_(bucket.buffer())
    done.set_result(bucket.buffer())
    return done


@contextmanager
def share(rank: int, world: int, patience: timedelta) -> Iterator[SharedMemory | None]:
    """Set it up among the ranks of the default process group; None, on all of them, where the machine has no room.

    `patience`: how long a rank waits for another, here and in every exchange.
    """
    joined = _join(rank, world, patience.total_seconds())
    if joined is None:
        yield None
        return
    memory, links = joined
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link).settimeout(patience.total_seconds())
        places = torch.frombuffer(mmap(memory, _size(world)), dtype=torch.float32)
        os.close(memory)
        yield SharedMemory(rank, places.view(2, world, LARGEST), links)


def _join(rank: int, world: int, patience: float) -> tuple[int, list[socket.socket]] | None:
    """The memory, and this rank's links."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as folder:
        address, memory = _offer(listener, folder, world) if rank == 0 else (None, -1)
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


def _offer(listener: socket.socket, folder: ExitStack, world: int) -> tuple[str | None, int]:
    """Where the other ranks find rank 0, in a folder of this user's own, and the memory they get there."""
    try:
        address = f"{folder.enter_context(tempfile.TemporaryDirectory())}/ranks"
        listener.bind(address)
        listener.listen(world)
        memory = os.memfd_create("gradients")
        os.ftruncate(memory, _size(world))
    except OSError as error:
        logger.warning("gradients go over this machine's network, which is slower than its memory: %s", error)
        return None, -1
    return address, memory


def _size(world: int) -> int:
    return 2 * world * LARGEST * 4
