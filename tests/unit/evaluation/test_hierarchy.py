"""Sums agree with their parts, and their intervals have the nominal coverage."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast.errors import UserError
from salescast.evaluation import hierarchy

FIRST = date(2011, 1, 7)
STORES = pl.DataFrame(
    {"store_id": [1, 2, 3, 4], "region": ["north", "north", "south", None]},
    schema={"store_id": pl.Int32, "region": pl.String},
)


def frame(seed: int, cutoffs: int, depts: int = 3, horizons: int = 2, common: float = 0.0) -> pl.DataFrame:
    """Forecasts with actuals: errors of standard deviation 0.1 of the level, a share of them common to all series."""
    random = np.random.default_rng(seed)
    rows = []
    for c in range(cutoffs):
        cutoff = FIRST + timedelta(weeks=c)
        for h in range(1, horizons + 1):
            shared = random.standard_normal()
            for store in (1, 2, 3, 4):
                for dept in range(depts):
                    level = 100.0 * (1 + dept) * store
                    noise = common * shared + np.sqrt(1 - common**2) * random.standard_normal()
                    y = level * (1 + 0.1 * noise)
                    rows.append((store, dept, cutoff, h, cutoff + timedelta(weeks=h), y, level * 0.8, level))
    names = ("store_id", "dept_id", "cutoff", "horizon", "week", "y", "yhat", "mean")
    return pl.DataFrame(rows, schema=list(names), orient="row").with_columns(
        pl.col("store_id", "dept_id", "horizon").cast(pl.Int32)
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_levels_add_up(seed: int) -> None:
    forecasts = frame(seed, 2)
    sums = hierarchy.aggregate(forecasts, frame(seed + 1, 6), STORES)
    for (cutoff, horizon), part in sums.partition_by("cutoff", "horizon", as_dict=True).items():
        held = forecasts.filter((pl.col("cutoff") == cutoff) & (pl.col("horizon") == horizon))
        by = {(row["level"], row["group"]): row for row in part.to_dicts()}
        assert set(by) == {("total", "total"), ("region", "north"), ("region", "south")} | {
            ("store", str(i)) for i in (1, 2, 3, 4)
        }
        for name, of in (("yhat", "mean"), ("y", "y")):
            stores = {i: held.filter(pl.col("store_id") == i)[of].sum() for i in (1, 2, 3, 4)}
            for i, value in stores.items():
                assert by["store", str(i)][name] == pytest.approx(value)
            assert by["region", "north"][name] == pytest.approx(stores[1] + stores[2])
            assert by["region", "south"][name] == pytest.approx(stores[3])
            assert by["total", "total"][name] == pytest.approx(sum(stores.values()))
    assert (sums["p10"] <= sums["p90"]).all()


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_intervals_depend_on_the_correlation_of_errors(common: float) -> None:
    """The interval of the total is relatively narrower than that of its parts for independent errors only."""
    sums = hierarchy.aggregate(frame(1, 1, common=common), frame(2, 600, common=common), STORES)
    total = sums.filter(pl.col("level") == "total")
    width = ((total["p90"] - total["p10"]) / total["yhat"]).mean()
    levels = np.array([100.0 * (1 + dept) * store for store in (1, 2, 3, 4) for dept in range(3)])
    share = 1.0 if common else np.sqrt((levels**2).sum()) / levels.sum()
    assert width == pytest.approx(2 * 1.2816 * 0.1 * share, rel=0.15)


def test_coverage_of_new_sums() -> None:
    sums = hierarchy.aggregate(frame(3, 600, common=0.5), frame(4, 600, common=0.5), STORES)
    inside = sums.select(((pl.col("y") >= pl.col("p10")) & (pl.col("y") <= pl.col("p90"))).mean()).item()
    assert inside == pytest.approx(0.8, abs=0.05)


def test_the_order_of_rows_does_not_matter() -> None:
    forecasts, errors = frame(5, 2), frame(6, 8)
    one = hierarchy.aggregate(forecasts, errors, STORES)
    two = hierarchy.aggregate(forecasts.sample(fraction=1.0, shuffle=True, seed=1), errors.reverse(), STORES)
    key = ["level", "group", "cutoff", "horizon"]
    for name in ("yhat", "p10", "p90"):
        np.testing.assert_allclose(one.sort(key)[name], two.sort(key)[name])


def test_the_sales_of_a_group_are_null_if_one_is_unknown() -> None:
    forecasts = frame(5, 1).with_columns(y=pl.when(pl.col("store_id") == 1).then(None).otherwise(pl.col("y")))
    sums = hierarchy.aggregate(forecasts, frame(6, 8), STORES)
    known = {(row["level"], row["group"]): row["y"] is not None for row in sums.to_dicts()}
    assert not known["store", "1"]
    assert not known["region", "north"]
    assert not known["total", "total"]
    assert known["store", "2"]
    without = hierarchy.aggregate(forecasts.drop("y"), frame(6, 8), STORES)
    assert without["y"].null_count() == without.height
    assert without["p90"].equals(sums["p90"])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.sampled_from([0.5, 0.8, 0.9]))
def test_conformal_quantile(errors: list[float], share: float) -> None:
    """By definition: the smallest error that at least (n + 1) * share of the errors do not exceed."""
    found = hierarchy.conformal(np.array(errors), share)
    enough = [e for e in errors if sum(other <= e for other in errors) >= (len(errors) + 1) * share]
    assert found == min(enough, default=max(errors))


def test_a_past_bias_widens_both_sides() -> None:
    """All earlier sums were 5 % too low; the next ones may be too high."""
    errors = frame(1, 8).with_columns(y=pl.col("mean") * 1.05)
    sums = hierarchy.aggregate(frame(2, 1), errors, STORES)
    for name, factor in (("p10", 0.95), ("p90", 1.05)):
        np.testing.assert_allclose(sums[name], sums["yhat"] * factor)


def test_errors_of_zero_forecasts_are_not_used() -> None:
    silent = frame(1, 4).with_columns(mean=pl.lit(0.0))
    sums = hierarchy.aggregate(frame(2, 1), silent, STORES)
    assert sums["p10"].equals(sums["p90"])


def test_horizons_without_errors_use_the_errors_of_all_horizons() -> None:
    far = frame(1, 1).with_columns(pl.col("horizon") + 30)
    sums = hierarchy.aggregate(far, frame(2, 20), STORES)
    assert (sums["p90"] > sums["p10"]).all()


def test_forecasts_without_known_errors_are_refused() -> None:
    errors = frame(1, 1).with_columns(y=pl.lit(None, pl.Float64))
    with pytest.raises(UserError, match="no errors of earlier forecasts"):
        hierarchy.aggregate(frame(1, 1), errors, STORES)
