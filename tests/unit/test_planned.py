"""Inputs planned ahead: what a base week may know of them, and what they are worth."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from salescast import inputs, weeks
from salescast.planned import effects, layers, usual_open_days
from salescast.schema import KEYS, RAW_SALES, TIMESTAMP, TRAINING_SERVICE_SEASONAL
from salescast.seasonal import seasonal_features

FIRST = date(2010, 2, 5)
SERIES = pl.DataFrame({"row": [0, 1, 2], "store_id": [1, 1, 2], "dept_id": [1, 2, 1]}).with_columns(
    pl.col("store_id", "dept_id").cast(pl.Int32)
)


def week(number: int) -> date:
    return FIRST + timedelta(weeks=number)


def plan(rows: list[tuple[int, int | None, int, datetime | None, float | None]]) -> pl.DataFrame:
    schema = {
        "store_id": pl.Int32, "dept_id": pl.Int32, "week": pl.Date, "known_at": pl.Datetime("us", "UTC"),
        "Promo": pl.Float32,
    }  # fmt: skip
    return pl.DataFrame([(s, d, week(w), at, x) for s, d, w, at, x in rows], schema=schema, orient="row")


def known_to(table: pl.DataFrame, row: int, base: int, target: int) -> float | None:
    found = layers(table, ("Promo",), SERIES, np.datetime64(FIRST), 20)
    value = found.at(np.array([row]), np.array([base]), np.array([[target]]))[0, 0, 0]
    return None if np.isnan(value) else float(value)


def test_a_plan_without_a_date_is_always_known_and_counts_for_every_department() -> None:
    table = plan([(1, None, 9, None, 3.0)])
    assert [known_to(table, row, 0, 9) for row in (0, 1, 2)] == [3.0, 3.0, None]
    assert known_to(table, 0, 0, 8) is None
    assert known_to(table, 0, 0, 25) is None
    assert known_to(table, 0, 0, -1) is None


def test_a_department_has_its_own_plan() -> None:
    table = plan([(1, None, 9, None, 3.0), (1, 2, 9, None, 5.0)])
    assert [known_to(table, row, 0, 9) for row in (0, 1)] == [3.0, 5.0]


def test_a_plan_is_known_to_base_weeks_that_start_after_it() -> None:
    """Base week 7 holds the seven days that end on its date; its first day starts six days before that."""
    start = datetime(2010, 2, 5, tzinfo=UTC) + timedelta(weeks=7) - timedelta(days=6)
    for known_at, first in ((start - timedelta(seconds=1), 7), (start, 8), (start + timedelta(days=6), 8)):
        table = plan([(1, 1, 9, known_at, 3.0)])
        assert [base for base in range(12) if known_to(table, 0, base, 9) is not None] == list(range(first, 12))


def test_a_later_version_replaces_an_earlier_one_from_then_on() -> None:
    early, late = (datetime(2010, 2, 5, tzinfo=UTC) + timedelta(weeks=w) for w in (2, 5))
    table = plan([(1, 1, 9, late, 7.0), (1, 1, 9, early, 3.0)])
    assert [known_to(table, 0, base, 9) for base in range(1, 9)] == [None, None, 3.0, 3.0, 3.0, 7.0, 7.0, 7.0]


def test_effects_are_those_that_made_the_sales() -> None:
    random = np.random.default_rng(0)
    n, length = 30, 60
    promo, price = random.integers(0, 2, (n, length)) * 1.0, random.uniform(1, 2, (n, length))
    sales = 100 * np.exp(0.7 * promo - 0.5 * price) * np.exp(0.05 * random.standard_normal((n, length)))
    found = effects(np.stack([promo, price]), sales)
    assert found.shape == (length + 1, 2)
    np.testing.assert_allclose(found[-1], [0.7, -0.5], atol=0.03)
    assert found[0].tolist() == found[1].tolist() == [0.0, 0.0]
    # Nothing later than the base week.
    changed = sales.copy()
    changed[:, 40:] = random.lognormal(5, 2, changed[:, 40:].shape)
    np.testing.assert_array_equal(effects(np.stack([promo, price]), changed)[:41], found[:41])


def test_usual_open_days() -> None:
    given = np.array([[np.nan, 6.0, np.nan, 0.0, np.nan, 5.0]])
    np.testing.assert_array_equal(usual_open_days(given), [[np.nan, 6.0, 6.0, 0.0, 6.0, 5.0]])


def shop(length: int = 70, closed: int = 65, ahead: int = 8) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One series that sells 10 a day on 6 days a week, twice as much in promotions, and is shut in week `closed`."""
    random = np.random.default_rng(1)
    promo = random.integers(0, 2, length + ahead)
    days = np.where(np.arange(length + ahead) % 10 == closed % 10, 0, 6)
    rows = [(1, 0, week(w), 10.0 * days[w] * (1 + promo[w])) for w in range(length)]
    table = pl.DataFrame(
        {
            "store_id": [1] * len(promo), "dept_id": [None] * len(promo),
            "week": [week(w) for w in range(len(promo))], "known_at": [None] * len(promo),
            "Promo": promo.astype(float), "Open": days.astype(float),
        },
        schema_overrides={
            "store_id": pl.Int32, "dept_id": pl.Int32, "known_at": pl.Datetime("us", "UTC"),
            "Promo": pl.Float32, "Open": pl.Float32,
        },
    )  # fmt: skip
    return pl.DataFrame(rows, schema=RAW_SALES, orient="row"), table


def test_planned_columns() -> None:
    sales, table = shop()
    frame = seasonal_features(sales, table, 8, "Open")
    row = frame.row(-1, named=True)
    promo, days = table["Promo"].to_list(), table["Open"].to_list()
    assert row["planned_Promo"] == promo[70:78]
    assert row["planned_Promo_last_year"] == promo[18:26]
    assert row["planned_Promo_recent"] == pytest.approx(sum(promo[57:70]) / 13)
    assert row["planned__open_days"] == days[70:78]
    # Sales are per open day: a closed week is no observation.
    assert row["last_year"] == [None if days[w] == 0 else 10.0 * (1 + promo[w]) for w in range(17, 27)]
    assert max(x for x in row["recent"] if x is not None) <= 20.0


def test_anchor_follows_the_plan_and_the_opening_days() -> None:
    sales, table = shop()
    frame = seasonal_features(sales, table, 8, "Open").with_columns(
        store_type=pl.lit(None, pl.String), store_size=pl.lit(None, pl.Int64), region=pl.lit(None, pl.String)
    )
    built = inputs.build(frame.tail(1), TRAINING_SERVICE_SEASONAL, 8, weeks.calendar("US"))
    promo, days = (table[name].to_numpy()[70:78] for name in ("Promo", "Open"))
    usual = table["Open"].to_numpy()[18:26] > 0  # last year's week has sales to go by
    np.testing.assert_allclose(built.anchor[0][usual], (10.0 * days * (1 + promo))[usual], rtol=0.2)
    assert (built.anchor[0][days == 0] == 0).all()
    assert (built.unit[0][days == 0] < 1e-20).all()
    assert (built.unit > 0).all()
    groups = {inputs.group_of(name) for name in built.step_names}
    assert "planned" in groups


def test_changed_plans_change_nothing_before_they_are_known() -> None:
    sales, table = shop()
    at = datetime(2010, 2, 5, tzinfo=UTC) + timedelta(weeks=40)
    dated = table.with_columns(known_at=pl.when(pl.col("week") > week(40)).then(pl.lit(at)))
    other = dated.with_columns(Promo=pl.when(pl.col("week") > week(40)).then(9.0).otherwise(pl.col("Promo")))
    one, two = (
        seasonal_features(sales, frame, 8, "Open").filter(pl.col(TIMESTAMP).dt.date() <= week(40))
        for frame in (dated, other)
    )
    assert one.equals(two)
    assert one.height == 41
    assert one.select(KEYS).n_unique() == 1
