"""Demo data: the noise floor is as stated, the factors have an effect, chunks do not matter."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast.data import demo
from salescast.errors import UserError
from salescast.schema import RAW_SALES, RAW_STORE_WEEKS, RAW_STORES


def sales_of(world: demo.World) -> np.ndarray:
    """[stores, departments, weeks]"""
    sales = pl.concat([chunk.sales for chunk in world.chunks()])["weekly_sales"].to_numpy()
    return sales.reshape(world.stores, *world.season.shape)


@pytest.fixture(scope="module")
def default() -> np.ndarray:
    return sales_of(demo.World.create(45, 14, 104, 42))


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Expected sales of the default world, without noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NOISE_SIGMA", 0.0)
        return sales_of(demo.World.create(45, 14, 104, 42))


def test_no_factor_on_the_truth_beats_the_noise_floor(default: np.ndarray, expected: np.ndarray) -> None:
    errors = {c: np.mean(np.abs(default - c * expected) / default) for c in np.linspace(0.97, 1.03, 61)}
    assert min(errors.values()) == pytest.approx(demo.NOISE_FLOOR_MAPE, abs=3e-4)
    best = min(errors, key=errors.__getitem__)
    assert best == pytest.approx(np.exp(-(demo.NOISE_SIGMA**2)), abs=3e-3)


def test_the_noise_floor_by_integration() -> None:
    z = np.linspace(-8, 8, 100_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    y = np.exp(demo.NOISE_SIGMA * z)
    mape = [np.trapezoid(np.abs(y - f) / y * density, z) for f in np.linspace(0.998, 1, 41)]
    assert min(mape) == pytest.approx(demo.NOISE_FLOOR_MAPE, abs=1e-7)


def test_noise_grows_with_the_level(default: np.ndarray, expected: np.ndarray) -> None:
    error, level = (default - expected).std(axis=2).ravel(), expected.mean(axis=2).ravel()
    np.testing.assert_allclose(error / level, demo.NOISE_SIGMA, rtol=0.6)
    assert np.corrcoef(np.log(error), np.log(level))[0, 1] > 0.98


def test_seasonal_naive_is_clearly_worse_than_the_floor(default: np.ndarray) -> None:
    now, year_ago = default[..., 52:], default[..., :-52]
    assert 0.06 < np.mean(np.abs(now - year_ago) / now) < 0.09
    # Growth is a property of the series, so it can be learned from its past: removing it helps.
    growth = default[..., 40:92].sum(2) / default[..., :40].sum(2)
    assert growth.std() > 0.02
    ahead, before = default[..., 96:], default[..., 44:52]
    grown = before * (default[..., 88:96].sum(2) / default[..., 36:44].sum(2))[..., None]
    assert np.mean(np.abs(ahead - grown) / ahead) < 0.85 * np.mean(np.abs(ahead - before) / ahead)


def test_holidays_move_sales_differently_by_department(expected: np.ndarray) -> None:
    world = demo.World.create(45, 14, 104, 42)
    black_friday = np.flatnonzero(world.weeks == np.datetime64("2023-11-24"))[0]
    around = np.log(expected[:, :, [black_friday - 3, black_friday + 14]]).mean(axis=2)
    uplift = np.log(expected[:, :, black_friday]) - around
    assert uplift.mean() > 0.15
    assert uplift.mean(axis=0).std() > 0.1  # between departments
    assert uplift.std(axis=0).mean() > 0.02  # between stores


@settings(max_examples=25, deadline=None)
@given(
    stores=st.integers(1, 5),
    depts=st.integers(1, 4),
    weeks=st.integers(1, 60),
    seed=st.integers(0, 2**40),
    rows=st.integers(1, 300),
)
def test_values_do_not_depend_on_chunks_or_on_how_many_stores_follow(
    stores: int, depts: int, weeks: int, seed: int, rows: int
) -> None:
    whole = next(demo.World.create(stores, depts, weeks, seed).chunks())
    more = list(demo.World.create(stores + 2, depts, weeks, seed).chunks(rows))
    for name in ("sales", "store_weeks", "stores"):
        table = getattr(whole, name)
        parts = pl.concat([getattr(chunk, name) for chunk in more])
        assert parts.filter(pl.col("store_id") <= stores).equals(table)
    assert whole.sales.schema == RAW_SALES
    assert whole.store_weeks.schema == RAW_STORE_WEEKS
    assert whole.stores.schema == RAW_STORES
    assert whole.sales.height == stores * depts * weeks
    assert whole.sales.equals(whole.sales.sort("store_id", "dept_id", "week"))
    assert (whole.sales["weekly_sales"] > 0).all()
    assert whole.sales["weekly_sales"].is_finite().all()


def test_seeds_differ() -> None:
    one, two = (next(demo.World.create(2, 2, 10, seed).chunks()).sales for seed in (1, 2))
    assert not (one["weekly_sales"] == two["weekly_sales"]).any()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 1, 1), "stores must be at least 1, got 0"),
        ((1, -3, 1, 1), "depts must be at least 1, got -3"),
        ((1, 1, 0, 1), "weeks must be at least 1, got 0"),
        ((1, 1, 1, -1), "seed must not be negative, got -1"),
        ((1, 1, 10_000, 1), "end after 2074-12-31; ask for fewer"),
        ((1, 10**6, 100, 1), "too many for one store"),
    ],
)
def test_impossible_numbers(numbers: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        demo.World.create(*numbers)
