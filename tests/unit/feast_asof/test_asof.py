"""The join on arrays against plain loops, also with composite keys that overflow."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_asof import asof
from feast_asof.asof import Codes, Side

SMALL = st.integers(-3, 3)


@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=40), asked=st.data())
def test_last_at_most_equals_a_loop(values: list[int], asked: st.DataObject) -> None:
    starts = asked.draw(st.lists(st.integers(-1, len(values) - 1), max_size=20))
    limits = asked.draw(st.lists(st.integers(-1, 10), min_size=len(starts), max_size=len(starts)))
    got = asof.last_at_most(asof.minimum_tree(np.array(values)), np.array(starts, int), np.array(limits, int))
    want = [
        max((i for i in range(s + 1) if values[i] <= limit), default=-1)
        for s, limit in zip(starts, limits, strict=True)
    ]
    assert got.tolist() == want


@pytest.fixture(scope="module", params=[2**62, 40, 4])
def limit(request: pytest.FixtureRequest) -> Iterator[int]:
    """Low limits force keys and timestamps to be renumbered, as happens when they would overflow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asof, "LIMIT", request.param)
        yield request.param


@settings(max_examples=200, deadline=None)
@given(
    source=st.lists(st.tuples(SMALL, SMALL, st.integers(-90, 90), SMALL), max_size=20),
    entity=st.lists(st.tuples(SMALL, SMALL, st.integers(-120, 120)), max_size=20),
    ttl=st.sampled_from([0, 1, 10, 60]),
    step=st.sampled_from([1, 10]),
    known_at=st.booleans(),
)
def test_asof_and_latest_equal_a_loop(
    limit: int, source: list[tuple[int, ...]], entity: list[tuple[int, ...]], ttl: int, step: int, known_at: bool
) -> None:
    left = np.array(source, np.int64).reshape(-1, 4) * [1, 1, step, 40 * step]
    right = np.array(entity, np.int64).reshape(-1, 3) * [1, 1, step]
    codes = [asof.dense(Codes(left[:, i].copy(), right[:, i].copy(), 7)) for i in range(2)]
    keys = asof.combine(codes, len(left), len(right))
    side = Side(left[:, 2].copy(), left[:, 3].copy())
    got = asof.asof(keys, side, right[:, 2].copy(), ttl * step, known_at)
    for (a, b, now), chosen in zip(right.tolist(), got.tolist(), strict=True):
        valid = [
            (time, created, i)
            for i, (x, y, time, created) in enumerate(left.tolist())
            if (x, y) == (a, b)
            and time <= now
            and (not ttl or time >= now - ttl * step)
            and (not known_at or created <= now)
        ]
        assert chosen == max(valid, default=(0, 0, -1))[2]
    newest = {(x, y): i for _, _, i, x, y in sorted((t, c, i, x, y) for i, (x, y, t, c) in enumerate(left.tolist()))}
    assert asof.latest(keys, side).tolist() == sorted(newest.values())


def test_extreme_instants_do_not_overflow() -> None:
    far = np.array([-(2**62), 0, 2**62], np.int64)
    keys = Codes(np.zeros(3, np.int64), np.zeros(3, np.int64), 1)
    assert asof.asof(keys, Side(far), far, 0, False).tolist() == [0, 1, 2]
