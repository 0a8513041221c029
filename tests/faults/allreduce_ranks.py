"""A rank of test_allreduce.py, under torchrun: `allreduce_ranks.py RESULTS {works,refused,dies}`."""

import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from salescast.training.allreduce import share

if __name__ == "__main__":
    results, what = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if what == "refused" and rank == 0:
        tempfile.tempdir = "/proc/nowhere"
    with share(rank, world, timedelta(seconds=60)) as memory:
        assert (memory is None) == (what == "refused")
        if memory:
            mine = [torch.randn(size) for size in (5, 70_000, 1, 300)]
            for _ in range(100):  # a fast rank must not overwrite what another still reads
                averaged = [value.clone() for value in mine]
                for value in averaged:
                    memory.average_(value)
            torch.save((mine, averaged), results / f"{rank}.pt")
            if what == "dies":
                if rank == world - 1:
                    os._exit(0)
                try:
                    memory.average_(mine[0])
                except ConnectionError as error:
                    (results / f"{rank}.txt").write_text(str(error))
    os._exit(0)
