"""Planned inputs: what a base week may know of them, and their effects."""

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from salescast import retail_calendar
from salescast.features.plan_effects import effects, terms
from salescast.features.planned import plan_versions, prices, usual_open_days, usual_prices
from salescast.features.seasonal import seasonal_features
from salescast.model import inputs
from salescast.schema import KEYS, RAW_SALES, TIMESTAMP, TRAINING_SERVICE_SEASONAL

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
    found = plan_versions(table, ("Promo",), SERIES, np.datetime64(FIRST), 20)
    value = found.at(np.array([row]), np.array([base]), np.array([[target]]))[0, 0, 0]
    return None if np.isnan(value) else float(value)


def test_a_plan_without_a_date_is_always_known_to_every_department() -> None:
    table = plan([(1, None, 9, None, 3.0)])
    assert [known_to(table, row, 0, 9) for row in (0, 1, 2)] == [3.0, 3.0, None]
    assert known_to(table, 0, 0, 8) is None
    assert known_to(table, 0, 0, 25) is None
    assert known_to(table, 0, 0, -1) is None


def test_a_department_has_its_own_plan() -> None:
    table = plan([(1, None, 9, None, 3.0), (1, 2, 9, None, 5.0)])
    assert [known_to(table, row, 0, 9) for row in (0, 1)] == [3.0, 5.0]


def test_a_row_without_a_value_keeps_that_of_an_earlier_row() -> None:
    """Promotions by department in one file, opening days by store in another: one row each, with one value each."""
    at = datetime(2010, 2, 5, tzinfo=UTC) + timedelta(weeks=3)
    table = plan([(1, None, 9, None, 3.0), (1, 2, 9, None, None), (1, 1, 9, at, None)])
    assert [known_to(table, row, 8, 9) for row in (0, 1)] == [3.0, 3.0]
    found = plan_versions(table, ("Promo",), SERIES, np.datetime64(FIRST), 20)
    assert found.history(20)[0, :2, 9].tolist() == [3.0, 3.0]


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


def effects_of(inputs: list[np.ndarray], sales: np.ndarray, dept: np.ndarray) -> np.ndarray:
    return effects(terms(np.stack(inputs)), sales, dept)


def test_effects_are_those_of_the_simulated_sales() -> None:
    """A promotion and a price ratio in two departments that answer differently; levels differ by series."""
    random = np.random.default_rng(0)
    n, length = 60, 80
    dept = np.arange(n) % 2
    promo, price = random.integers(0, 2, (n, length)) * 1.0, random.uniform(-0.4, 0.2, (n, length))
    true = np.array([[0.7, -2.0], [0.2, -0.5]])[dept]
    level = random.uniform(1, 1000, (n, 1))
    sales = level * np.exp(true[:, :1] * promo + true[:, 1:] * price + 0.05 * random.standard_normal((n, length)))
    found = effects_of([promo, price], sales, dept)
    assert found.shape == (2, length + 1, 3)
    np.testing.assert_allclose(found[:, -1, :2], [[0.7, -2.0], [0.2, -0.5]], atol=0.05)
    assert not found[:, :2].any()
    # Nothing later than the base week.
    changed = sales.copy()
    changed[:, 40:] = random.lognormal(5, 2, changed[:, 40:].shape)
    np.testing.assert_allclose(effects_of([promo, price], changed, dept)[:, :41], found[:, :41], atol=1e-9)


def test_a_department_with_few_weeks_has_the_pooled_effects() -> None:
    random = np.random.default_rng(0)
    promo = random.integers(0, 2, (41, 60)) * 1.0
    sales = 100 * np.exp(0.5 * promo + 0.05 * random.standard_normal((41, 60)))
    sales[40, :56] = np.nan
    found = effects_of([promo], sales, (np.arange(41) == 40).astype(int))
    np.testing.assert_allclose(found[1, -1], 0.5, atol=0.05)


def test_together_promotions_may_do_less_than_each_alone() -> None:
    random = np.random.default_rng(0)
    deal, feature = (random.integers(0, 2, (50, 80)) * 1.0 for _ in range(2))
    sales = 10 * np.exp(0.6 * deal + 0.8 * feature - 0.5 * deal * feature)
    np.testing.assert_allclose(
        effects_of([deal, feature], sales, np.zeros(50, int))[0, -1], [0.6, 0.8, -0.5], atol=0.03
    )


def test_usual_prices_are_medians_of_known_prices_before_the_week() -> None:
    history = np.array([[np.nan, 2.0, 2.0, 1.0, np.nan, 3.0, 3.0, 3.0]])
    np.testing.assert_array_equal(usual_prices(history), [[np.nan, np.nan, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]])
    assert prices(np.stack([history, history * 0, history - 1])) == [0]


def test_usual_open_days() -> None:
    history = np.array([[np.nan, 6.0, np.nan, 0.0, np.nan, 5.0]])
    np.testing.assert_array_equal(usual_open_days(history), [[6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]])
    np.testing.assert_array_equal(usual_open_days(np.full((1, 2), np.nan)), [[7.0] * 3])
    np.testing.assert_array_equal(usual_open_days(np.zeros((1, 2))), [[7.0] * 3])


days_or_nothing = st.sampled_from([math.nan, math.nan, 0.0, 3.0, 5.0, 6.0, 7.0])


@given(st.integers(1, 40).flatmap(lambda t: st.lists(st.lists(days_or_nothing, min_size=t, max_size=t), max_size=3)))
def test_usual_open_days_are_the_median_of_the_last_known_ones(histories: list[list[float]]) -> None:
    def median(known: list[float]) -> float:
        return sorted(known)[len(known) // 2] if known else 7.0

    length = len(histories[0]) if histories else 1
    expected = []
    for history in histories:
        known = [x for x in history if x > 0]
        before = [[x for x in history[:base] if x > 0] for base in range(length + 1)]
        expected.append([median(seen[-13:] or known[:13]) for seen in before])
    found = usual_open_days(np.array(histories).reshape(len(histories), length))
    np.testing.assert_array_equal(found, np.array(expected).reshape(len(histories), length + 1))


def shop(length: int = 70, closed: int = 65, ahead: int = 8) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One series that sells 10 a day on 6 days a week, twice as much in promotions, and is closed in week `closed`."""
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
    # Sales are per open day, without the promotions' effect: a closed week is no observation.
    assert row["planned__lift"] == pytest.approx([math.log(2) * x for x in promo[70:78]], abs=0.1)
    assert [x is None for x in row["last_year"]] == [days[w] == 0 for w in range(17, 27)]
    assert row["recent"] == pytest.approx([10.0] * 4, rel=0.1)


@pytest.mark.parametrize("known", [range(40, 78), range(30), range(0, 78, 2), range(0)], ids=str)
def test_unknown_opening_days_are_the_usual_ones(known: range) -> None:
    """Opening days known for some weeks, or in no week at all, change nothing when every week has the usual number."""
    sales, table = shop()
    table = table.with_columns(Open=pl.lit(6.0, pl.Float32))
    rows = table.with_row_index().with_columns(Open=pl.when(pl.col("index").is_in(list(known))).then("Open"))
    some = seasonal_features(sales, rows.drop("index"), 8, "Open")
    usual = table if len(known) else table.with_columns(Open=pl.lit(7.0, pl.Float32))
    assert_frame_equal(some, seasonal_features(sales, usual, 8, "Open"))
    assert some["recent"].list.first().null_count() == 1  # the first row has no week before it
    assert some["planned__open_days"].list.eval(pl.element().is_null().sum()).list.first().sum() == 0


def test_a_store_that_was_closed_in_all_known_weeks_stays_closed() -> None:
    sales, table = shop()
    closed = table.with_columns(
        Open=pl.when(pl.col("week") < week(40)).then("Open").when(pl.col("week") < week(70)).then(0.0)
    )
    row = seasonal_features(sales, closed, 8, "Open").row(-1, named=True)
    assert row["planned__open_days"] == [0.0] * 8


def test_anchor_follows_the_plan_and_the_opening_days() -> None:
    sales, table = shop()
    frame = seasonal_features(sales, table, 8, "Open").with_columns(
        store_type=pl.lit(None, pl.String), store_size=pl.lit(None, pl.Int64), region=pl.lit(None, pl.String)
    )
    built = inputs.build(frame.tail(1), TRAINING_SERVICE_SEASONAL, 8, retail_calendar.calendar("US"))
    promo, days = (table[name].to_numpy()[70:78] for name in ("Promo", "Open"))
    usual = table["Open"].to_numpy()[18:26] > 0  # last year's week has sales to go by
    np.testing.assert_allclose(built.anchor[0][usual], (10.0 * days * (1 + promo))[usual], rtol=0.2)
    assert (built.anchor[0][days == 0] == 0).all()
    assert (built.unit[0][days == 0] < 1e-20).all()
    assert (built.unit > 0).all()
    assert any(name.startswith("planned:") for name in built.step_names)


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
