"""The as-of join on integer arrays: composite integer keys, one `searchsorted`, one index array out.

All arrays are int64 without nulls. `encode` makes them from columns, `gather` gathers by the index.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LIMIT = 2**62  # upper bound of composite keys: sums and differences cannot overflow
SLICE = 1 << 20  # entity rows of one search: bounds the memory and gives every core some work


@dataclass(frozen=True)
class Codes:
    """Join keys as integers: `source` in [0, span), `entity` likewise or -1 where the source has no such key."""

    source: Ints
    entity: Ints
    span: int


def threads() -> int:
    """Number of cores that this process may use (Ray sets OMP_NUM_THREADS to the CPUs of its task)."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


def dense(codes: Codes) -> Codes:
    """Renumber the codes that occur in the source as 0, 1, 2, ... in the same order."""
    values, source = np.unique(codes.source, return_inverse=True)
    if len(values) == 0:
        return Codes(codes.source, np.full(len(codes.entity), -1), 1)
    at = np.minimum(np.searchsorted(values, codes.entity), len(values) - 1)
    return Codes(source.astype(np.int64, copy=False), np.where(values[at] == codes.entity, at, -1), len(values))


def combine(columns: list[Codes], rows: int, needles: int) -> Codes:
    """One code per row from the codes of several key columns; without key columns, all rows have the same code."""
    total = Codes(np.zeros(rows, np.int64), np.zeros(needles, np.int64), 1)
    for given in columns:
        fits = total.span * given.span < LIMIT
        total, column = (total, given) if fits else (dense(total), dense(given))
        entity = np.where((total.entity < 0) | (column.entity < 0), -1, total.entity * column.span + column.entity)
        total = Codes(total.source * column.span + column.source, entity, total.span * column.span)
    return total


def ticks(source: Ints, entity: Ints, keys: int) -> Codes:
    """Timestamps as small integers that compare as the timestamps do.

    Entity ticks are in [-1, span); -1 is before every source row. If `keys * span` overflows, the greatest common
    divisor of the source timestamps becomes the unit; if that is not enough, their ranks are used.
    """
    if len(source) == 0:
        return Codes(source, np.full(len(entity), -1), 1)
    low, high = int(source.min()), int(source.max())
    span = high - low + 1
    if span * keys < LIMIT:
        return Codes(source - low, np.clip(entity, low - 1, high) - low, span)
    step = max(int(np.gcd.reduce(source - low)), 1) if span < LIMIT else 1
    span = (high - low) // step + 1
    if step > 1 and span * keys < LIMIT:
        return Codes((source - low) // step, (np.clip(entity, low - 1, high) - low) // step, span)
    values, rank = np.unique(source, return_inverse=True)
    return Codes(rank.astype(np.int64, copy=False), np.searchsorted(values, entity, side="right") - 1, len(values))


def sort_order(composite: Ints, created: Ints | None) -> Ints | None:
    """Stable order by (key, time, created), or None if the rows are already in that order."""
    if created is not None and np.any(composite[1:] == composite[:-1]):
        return np.lexsort((created, composite))
    steps = composite[1:] >= composite[:-1]
    if steps.all():
        return None
    if created is None:
        return np.argsort(composite, kind="stable")
    order = np.argsort(composite, kind="stable")
    ordered = composite[order]
    return np.lexsort((created, composite)) if np.any(ordered[1:] == ordered[:-1]) else order


def _search(composite: Ints, needles: Ints) -> Ints:
    """Position of the last `composite <= needle`, -1 if none. Sorts the needles for the sake of the CPU cache."""
    if np.all(needles[1:] >= needles[:-1]):
        return np.searchsorted(composite, needles, side="right") - 1
    order = np.argsort(needles)
    position = np.empty(len(needles), np.int64)
    position[order] = np.searchsorted(composite, needles[order], side="right") - 1
    return position


def minimum_tree(values: Ints) -> list[Ints]:
    """A binary tree of minima, from the values up to the root, for `last_at_most`."""
    levels = [values]
    while len(levels[-1]) > 1:
        below = levels[-1]
        even = below[: len(below) // 2 * 2].reshape(-1, 2).min(axis=1)
        levels.append(np.append(even, below[-1]) if len(below) % 2 else even)
    return levels


def last_at_most(levels: list[Ints], start: Ints, limit: Ints) -> Ints:
    """Per row the greatest position <= start whose value is <= limit, or -1; O(log n) vector steps.

    The prefix [0, start] is a sequence of complete subtrees, the smallest on the right. Take the first from the right
    whose minimum is small enough and descend into it, right child first.
    """
    node, level_of, end = np.full(len(start), -1), np.full(len(start), -1), start + 1
    for level, values in enumerate(levels):
        odd = np.flatnonzero((level_of < 0) & (end % 2 == 1))
        hit = odd[values[end[odd] - 1] <= limit[odd]]
        node[hit], level_of[hit] = end[hit] - 1, level
        end //= 2
    for level in range(len(levels) - 1, 0, -1):
        at, below = np.flatnonzero(level_of == level), levels[level - 1]
        right = node[at] * 2 + 1
        fits = (right < len(below)) & (below[np.minimum(right, len(below) - 1)] <= limit[at])
        node[at], level_of[at] = np.where(fits, right, right - 1), level - 1
    return node


@dataclass(frozen=True)
class Side:
    """Rows of the source in file order: timestamps and, if there are any, creation times (int64, all in one unit)."""

    time: Ints
    created: Ints | None = None


def asof(keys: Codes, source: Side, entity_time: Ints, ttl: int, known_at: bool) -> Ints:
    """For each entity row, the source row that was valid at its time.

    Args:
        keys: join key codes of both sides.
        source: timestamps of the source rows; `created` has the smallest int64 where it is null.
        entity_time: timestamps of the entity rows, in the unit of the source's.
        ttl: greatest age of a source row, in that unit; 0 = no limit.
        known_at: only rows created at or before the entity timestamp are valid (null: never).

    Returns:
        Positions in the source, int64 of the length of `entity_time`, -1 where nothing matches.
    """
    if len(source.time) == 0 or len(entity_time) == 0:
        return np.full(len(entity_time), -1)
    time = ticks(source.time, entity_time, keys.span)
    if keys.span * time.span >= LIMIT:
        keys = dense(keys)
        time = ticks(source.time, entity_time, keys.span)
    composite = keys.source * time.span + time.source
    order = sort_order(composite, source.created)
    composite = composite if order is None else composite[order]
    row_times = source.time if order is None else source.time[order]
    levels = None
    if known_at and source.created is not None:
        created = source.created if order is None else source.created[order]
        levels = minimum_tree(np.where(created == np.iinfo(np.int64).min, np.iinfo(np.int64).max, created))
    first = np.where(keys.entity < 0, 0, keys.entity * time.span)
    needles = np.where(keys.entity < 0, -1, first + time.entity)
    del time
    index = np.empty(len(entity_time), np.int64)

    def search(start: int) -> None:
        part = slice(start, start + SLICE)
        at = _search(composite, needles[part])
        if levels is not None:
            at = last_at_most(levels, at, entity_time[part])
        hit = (at >= 0) & (composite[at] >= first[part])  # otherwise the row belongs to the key before
        if ttl:
            hit &= row_times[at] >= entity_time[part] - ttl
        index[part] = np.where(hit, at if order is None else order[at], -1)

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(search, range(0, len(entity_time), SLICE)))
    return index


def latest(keys: Codes, source: Side) -> Ints:
    """Positions of the newest row of every key, in the order of the source (ties: `created`, then the later row)."""
    if len(source.time) == 0:
        return np.empty(0, np.int64)
    time = ticks(source.time, source.time[:0], keys.span)
    if keys.span * time.span >= LIMIT:
        keys = dense(keys)
        time = ticks(source.time, source.time[:0], keys.span)
    composite = keys.source * time.span + time.source
    order = sort_order(composite, source.created)
    code = keys.source if order is None else keys.source[order]
    last = np.flatnonzero(np.append(code[1:] != code[:-1], True))
    return np.sort(last if order is None else order[last])
