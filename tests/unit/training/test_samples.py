from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast import schema
from salescast.errors import UserError
from salescast.features.training_set import (
    scan,  # fmt: skip
    write_training_set,
)
from salescast.model.arrays import LEVEL, SEASONAL
from salescast.model.config import TrainConfig
from salescast.retail_calendar import calendar
from salescast.training.distributed import Group, choose
from salescast.training.samples import (
    Shard,
    build_samples,
    day_number,
    learned,
    load_shard,
    series_start,
    shard_bounds,
    window_mask,
)
from salescast.training.standardization import fit_scaler

CONFIG = TrainConfig(feature_service=schema.TRAINING_SERVICE, horizon=4)
ALONE = Group(0, 1, choose("cpu", 0, False, 0, 1))


def keys_frame(lengths: list[int]) -> pl.LazyFrame:
    series = [number for number, length in enumerate(lengths) for _ in range(length)]
    return pl.LazyFrame({"store_id": [s // 3 for s in series], "dept_id": [s % 3 for s in series]})


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 7), st.integers(2, 5))
@settings(deadline=None)
def test_shards_are_whole_series_and_all_rows(lengths: list[int], world: int, look: int) -> None:
    frame = keys_frame(lengths)
    rows, starts = sum(lengths), {0, *np.cumsum(lengths).tolist()}
    for row in range(rows + 1):
        assert series_start(frame, row, rows, look) == min(start for start in starts if start >= row)
    bounds = [shard_bounds(frame, rank, world) for rank in range(world)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))
    assert {edge for bound in bounds for edge in bound} <= starts
    assert max(stop - start for start, stop in bounds) <= rows // world + max(lengths)


@pytest.fixture(scope="module")
def shard(training_set: Path) -> Shard:
    return load_shard(training_set, CONFIG, calendar("US"), 0, 1)


def test_two_ranks_hold_what_one_holds(training_set: Path, shard: Shard) -> None:
    parts = [load_shard(training_set, CONFIG, calendar("US"), rank, 2) for rank in range(2)]
    for name in ("base", "step", "label", "target", "unit"):
        both = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(both.nan_to_num(-1), getattr(shard, name).nan_to_num(-1)), name
    assert abs(len(parts[0].base) - len(parts[1].base)) <= 66


def test_labels_are_matched_on_the_date(training_frame: pl.DataFrame, tmp_path: Path) -> None:
    """Against a dictionary of sales, with weeks missing from the table altogether."""
    holes = training_frame.filter(pl.int_range(pl.len()) % 7 != 3)
    write_training_set(holes.to_arrow(), tmp_path / "part-00000.parquet")
    shard = load_shard(tmp_path, CONFIG, calendar("US"), 0, 1)
    sales = {tuple(row[:3]): row[3] for row in holes.select(*schema.KEYS, schema.TIMESTAMP, schema.LABEL).rows()}
    for i, (store, dept, week) in enumerate(holes.select(*schema.KEYS, schema.TIMESTAMP).rows()):
        for h in range(4):
            expected = sales.get((store, dept, week + timedelta(weeks=h)))
            got = shard.label[i, h].item()
            assert got == expected or (expected is None and np.isnan(got))


def test_history_counts_weeks_from_the_start_of_the_series(shard: Shard, training_frame: pl.DataFrame) -> None:
    first = training_frame.select(
        ((pl.col(schema.TIMESTAMP) - pl.col(schema.TIMESTAMP).min().over(schema.KEYS)).dt.total_days() // 7).alias("w")
    )["w"]
    assert shard.history.tolist() == first.to_list()
    assert shard.day[0] == day_number(training_frame[schema.TIMESTAMP][0].date())


def test_a_target_is_the_distance_from_the_anchor_in_units(shard: Shard) -> None:
    seen = torch.isfinite(shard.target)
    anchor = shard.label - shard.target * shard.unit
    spread = (anchor.nan_to_num().max(dim=1).values - torch.where(seen, anchor, torch.inf).min(dim=1).values)[
        seen.all(1)
    ]
    assert spread.abs().max() < 1, "the published service has one anchor for all horizons"
    assert torch.equal(seen, torch.isfinite(shard.label))


@given(cut=st.integers(-2, 70), history=st.integers(0, 20), weeks=st.integers(0, 15))
@settings(max_examples=30, deadline=None)
def test_known_samples_are_those_a_loop_finds(shard: Shard, cut: int, history: int, weeks: int) -> None:
    start = int(shard.day.min())
    last, first = start + 7 * cut, start + 7 * (cut - weeks)
    mask = window_mask(shard, first, last, history)
    for i in range(0, len(shard.day), 17):
        for h in range(4):
            inside = first < shard.day[i] and shard.day[i] + 7 * h <= last and shard.history[i] >= history
            assert mask[i, h] == (inside and not np.isnan(shard.target[i, h].item()))


def test_no_sample_of_a_fit_reaches_behind_its_cutoff(shard: Shard) -> None:
    cutoff = day_number(date(2024, 1, 26))
    mask = window_mask(shard, -(10**6), cutoff, 4)
    changed = shard.label.clone()
    weeks = torch.from_numpy(shard.day)[:, None] + 7 * torch.arange(4)
    changed[weeks > cutoff] = 1e9
    assert (changed[torch.from_numpy(mask)] < 1e9).all()
    assert mask.any()


def test_the_scaler_is_the_plain_mean_and_deviation_of_the_samples(shard: Shard) -> None:
    mask = window_mask(shard, -(10**6), day_number(date(2024, 1, 26)), 4)
    scaler = fit_scaler(shard, mask, ALONE)
    base = shard.base.numpy()[mask.any(axis=1)].astype(np.float64)
    step = shard.step.numpy()[mask].astype(np.float64)
    mean = np.concatenate([np.nanmean(base, axis=0), np.nanmean(step, axis=0)])
    deviation = np.concatenate([np.nanstd(base, axis=0), np.nanstd(step, axis=0)])
    missing = np.concatenate([np.isnan(base).any(axis=0), np.isnan(step).any(axis=0)])
    scale = np.array(scaler.scale)
    assert np.allclose(scaler.mean, mean, rtol=1e-6, atol=1e-9)
    assert np.allclose(scale[scale > 0], 1 / deviation[scale > 0], rtol=1e-4)
    assert (deviation[scale == 0] < 1e-4).all()
    assert list(scaler.missing) == missing.tolist()
    assert scaler.low == tuple(np.concatenate([np.nanmin(base, axis=0), np.nanmin(step, axis=0)]))
    assert scaler.high == tuple(np.concatenate([np.nanmax(base, axis=0), np.nanmax(step, axis=0)]))
    assert scaler.vocabulary["store_id"] == (1, 2, 3, 4, 5, 6)
    assert scaler.vocabulary["horizon"] == (0, 1, 2, 3)


def test_an_epoch_shows_every_row_once_and_h_epochs_every_sample(shard: Shard) -> None:
    mask = window_mask(shard, -(10**6), day_number(date(2024, 4, 26)), 4)
    samples = build_samples(shard, mask, fit_scaler(shard, mask, ALONE), ALONE)
    rows, labels = int(mask.any(axis=1).sum()), shard.label.numpy()[mask]
    seen: list[float] = []
    steps = -(-rows // 64)
    for epoch in range(4):
        batches = list(samples.epoch(epoch, seed=5, batch=64, steps=steps))
        assert [len(batch.label) for batch in batches] == [64] * steps, "the last batch starts over"
        epoch_labels = torch.cat([batch.label for batch in batches])[:rows]
        assert torch.isfinite(epoch_labels).all()
        seen += epoch_labels.tolist()
    full = mask.all(axis=1)
    # Rows with all horizons are shown with each of them; those near the cutoff repeat the few they have.
    wanted = np.sort(shard.label.numpy()[full].ravel())
    assert np.isin(wanted, np.array(seen, dtype=np.float32)).all()
    assert len(seen) == 4 * rows
    assert sorted(torch.cat([batch.label for batch in samples.pairs(100)]).tolist()) == sorted(labels.tolist())


def test_one_huge_series_does_not_take_all_the_weight(shard: Shard) -> None:
    mask = window_mask(shard, -(10**6), day_number(date(2024, 4, 26)), 4)
    huge = np.flatnonzero((shard.codes["store_id"] == 1) & (shard.codes["dept_id"] == 1))
    unit = shard.unit.clone()
    unit[huge] *= 1e8
    samples = build_samples(replace(shard, unit=unit), mask, fit_scaler(shard, mask, ALONE), ALONE)
    (batch,) = samples.pairs(10**6)
    median = np.median(shard.unit.numpy()[mask & (shard.label.numpy() > 0)])
    assert batch.weight.max() == pytest.approx(100 * median, rel=0.1)
    assert torch.equal(batch.weight, batch.unit.clamp(max=samples.largest))
    assert samples.weight_sum == pytest.approx(float(batch.weight.double().sum()))
    ordinary = build_samples(shard, mask, fit_scaler(shard, mask, ALONE), ALONE)
    assert ordinary.weight_sum == pytest.approx(float(shard.unit.numpy()[mask].sum(dtype=np.float64)))


def test_a_batch_holds_the_inputs_of_its_rows_and_horizons(shard: Shard) -> None:
    mask = window_mask(shard, -(10**6), day_number(date(2024, 4, 26)), 4)
    scaler = fit_scaler(shard, mask, ALONE)
    samples = build_samples(shard, mask, scaler, ALONE)
    rows, horizon = torch.tensor([70, 8, 500]), torch.tensor([3, 0, 1])
    (batch,) = samples.batches(rows, horizon, 10)
    for i, (row, h) in enumerate(zip(rows.tolist(), horizon.tolist(), strict=True)):
        expected = torch.cat([shard.base[row], shard.step[row, h]])
        assert torch.equal(batch.numeric[i].nan_to_num(-1), expected.nan_to_num(-1))
        assert batch.label[i] == shard.label[row, h]
        store = shard.values["store_id"][shard.codes["store_id"][row] - 1]
        assert batch.codes[i, 0] == 1 + scaler.vocabulary["store_id"].index(store)
        assert batch.codes[i, -1] == scaler.codes - 3 + h


def test_values_that_are_no_numbers_are_not_learned_from(
    training_frame: pl.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = training_frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 30).then(float("inf")).otherwise(pl.col(schema.LABEL)).alias(schema.LABEL)
    )
    write_training_set(spoiled.to_arrow(), tmp_path / "part-00000.parquet")
    shard = load_shard(tmp_path, CONFIG, calendar("US"), 0, 1)
    assert not window_mask(shard, -(10**6), 10**6, 0)[30, 0]
    assert torch.isfinite(shard.target[torch.isfinite(shard.label)]).all()


def test_a_set_that_is_not_there_or_not_sorted_is_refused(training_frame: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no part-\*\.parquet in .*; run `salescast retrieve` first"):
        scan(tmp_path)

    def load(rows: pl.DataFrame) -> None:
        rows.write_parquet(tmp_path / "part-00000.parquet")
        load_shard(tmp_path, CONFIG, calendar("US"), 0, 1)

    with pytest.raises(UserError, match="has no rows"):
        load(training_frame.head(0))
    with pytest.raises(UserError, match="is not sorted"):
        load(pl.concat([training_frame.head(80), training_frame.head(10)]))
    with pytest.raises(UserError, match="a week of a series twice or not in order"):
        load(pl.concat([training_frame.head(10), training_frame.slice(9, 10)]))


def test_only_seasonal_samples_are_learned_from_when_there_are_enough(training_set: Path) -> None:
    shard = load_shard(training_set, CONFIG, calendar("US"), 0, 1)
    mask = window_mask(shard, -(10**6), 10**6, 0)
    assert np.array_equal(learned(shard, mask, ALONE), mask), "no sample has a seasonal anchor"
    for share, enough in ((0.1, False), (0.5, True)):
        kinds = np.where(np.random.default_rng(0).random(mask.shape) < share, SEASONAL, LEVEL).astype(np.int8)
        found = learned(replace(shard, fallback=kinds), mask, ALONE)
        assert np.array_equal(found, mask & (kinds == SEASONAL) if enough else mask)
