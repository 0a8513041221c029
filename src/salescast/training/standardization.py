"""Statistics of the inputs over the training samples of all ranks."""

import numpy as np
from numpy.typing import NDArray

from salescast.model.arrays import LARGEST
from salescast.model.network import Scaler
from salescast.training.distributed import Group
from salescast.training.samples import CHUNK, Shard


def fit_scaler(shard: Shard, mask: NDArray[np.bool_], group: Group) -> Scaler:
    """Mean, deviation, bounds and missing counts over the training samples of all ranks, and the categories seen.

    A base input counts once a row, a step input once a sample.
    """
    sums = np.zeros((4, len(shard.names)))  # finite values, their sum, sum of squares, missing values
    bounds = np.full((2, len(shard.names)), -LARGEST)  # the largest value, and the smallest with its sign turned
    width = shard.base.shape[1]
    for at in range(0, len(mask), CHUNK):
        part = slice(at, at + CHUNK)
        used = mask[part]
        for columns, values in (
            (slice(0, width), shard.base[part].numpy()[used.any(axis=1)]),
            (slice(width, None), shard.step[part].numpy()[used]),
        ):
            finite = np.isfinite(values)
            clean = np.where(finite, values, 0.0).astype(np.float64)
            sums[:, columns] += np.stack(
                [finite.sum(axis=0), clean.sum(axis=0), np.einsum("ij,ij->j", clean, clean), (~finite).sum(axis=0)]
            )
            for side, sign in enumerate((1, -1)):
                most = np.max(sign * values, axis=0, where=finite, initial=-LARGEST)
                bounds[side, columns] = np.maximum(bounds[side, columns], most)
    count, total, squares, missing = group.sum(sums)
    high, low = group.max(bounds) * [[1], [-1]]
    mean = total / np.maximum(count, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    constant = deviation <= 1e-5 * np.maximum(np.abs(mean), 1e-3)
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
    rows = mask.any(axis=1)
    seen = {
        name: [shard.values[name][code - 1] for code in np.unique(codes[rows]) if code > 0]
        for name, codes in shard.codes.items()
    }
    ranks = group.gather(seen)
    vocabulary: dict[str, tuple[int | str, ...]] = {
        name: tuple(sorted(set().union(*(rank[name] for rank in ranks)))) for name in seen
    }
    vocabulary["horizon"] = tuple(range(shard.horizon))
    means, scales, holes, lows, highs = (tuple(values.tolist()) for values in (mean, scale, missing > 0, low, high))
    return Scaler(shard.names, means, scales, holes, vocabulary, lows, highs)
