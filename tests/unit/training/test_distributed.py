import os
import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from salescast.errors import UserError
from salescast.training import distributed
from salescast.training.distributed import Group, Placement, choose, connect, rendezvous_key


@given(st.integers(0, 8), st.booleans(), st.integers(1, 8), st.data())
def test_a_gpu_is_used_exactly_when_every_process_can_have_its_own(
    gpus: int, bf16: bool, local_world: int, data: st.DataObject
) -> None:
    local_rank = data.draw(st.integers(0, local_world - 1))
    place = choose("auto", gpus, bf16, local_rank, local_world)
    if gpus >= local_world:
        assert place == Placement(f"cuda:{local_rank}", "nccl", torch.bfloat16 if bf16 else None, compile=True)
    else:
        assert place == Placement("cpu", "gloo", None, compile=False)
    assert choose("cpu", gpus, bf16, local_rank, local_world).device == "cpu"


def test_settings_switch_off_what_gpus_use() -> None:
    group = Group(0, 1, choose("auto", 1, True, 0, 1))
    off = group.limited(bf16=False, compile=False)
    assert (off.place.amp, off.place.compile, off.place.device) == (None, False, "cuda:0")
    assert off.wrap(net := torch.nn.Linear(1, 1)) is net
    assert group.limited(bf16=True, compile=True) == group
    alone = Group(0, 1, choose("cpu", 0, False, 0, 1))
    assert alone.limited(bf16=True, compile=True) == alone, "never on where it was off"


def test_cuda_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="needs a GPU for each of 2 processes, found 1; start fewer processes"):
        choose("cuda", 1, True, 0, 2)


def test_faked_gpus_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with connect() as group:
        assert group.place == Placement("cuda:0", "nccl", torch.bfloat16, compile=True)
        assert group.device == torch.device("cuda", 0)


def test_alone_every_collective_is_the_identity() -> None:
    with connect("cpu") as group:
        assert (group.rank, group.world, group.first) == (0, 1, True)
        assert np.array_equal(group.sum([1.5, 2]), [1.5, 2])
        assert np.array_equal(group.max([1.5, 2]), [1.5, 2])
        assert group.gather("a") == ["a"]
        assert group.from_first("a") == "a"


def test_a_process_whose_launcher_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(0, 1, choose("cpu", 0, False, 0, 1))
    group.check_parent()
    monkeypatch.setattr(os, "getppid", lambda: -1)
    with pytest.raises(UserError, match="is gone; start the same plan again"):
        group.check_parent()


def start(store: dist.Store, world: int) -> list[str]:
    """The keys that `world` ranks of one start agree on, each in its own thread."""
    keys = [""] * world

    def rank(number: int) -> None:
        keys[number] = rendezvous_key(store, number, world)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return keys


def test_every_start_over_the_same_store_gets_its_own_key() -> None:
    """torchrun's store outlives its processes; this start must ignore what an earlier one left there."""
    store = dist.HashStore()
    store.set("hello/1", "a rank that was killed before anyone answered")
    starts = [start(store, 3) for _ in range(3)]
    assert all(len(set(keys)) == 1 for keys in starts)
    assert len({keys[0] for keys in starts}) == 3


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "START_TIMEOUT", distributed.START_TIMEOUT * 0)
    with pytest.raises(UserError, match=r"ranks \[1, 2\] of 3 did not come"):
        rendezvous_key(dist.HashStore(), 0, 3)
