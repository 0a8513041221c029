"""The seasonal view and the inputs computed from it against slow loops; no leaks."""

import math
import statistics
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast import retail_calendar
from salescast.errors import UserError
from salescast.features import seasonal
from salescast.features.seasonal import seasonal_features
from salescast.model import inputs
from salescast.model.arrays import LEVEL, PROFILE, SEASONAL
from salescast.model.date_shift import date_shift
from salescast.schema import (
    INFERENCE_SERVICE_SEASONAL,
    KEYS,
    RAW_SALES,
    SEASONAL_FEATURES,
    TIMESTAMP,
    TRAINING_SERVICE_SEASONAL,
    WINDOWS,
)

CALENDAR = retail_calendar.calendar("US")
H = 5
FIRST = date(2010, 2, 5)
History = dict[tuple[int, int], list[float | None]]


def sales_of(history: History) -> pl.DataFrame:
    rows = [
        (store, dept, FIRST + timedelta(weeks=week), value)
        for (store, dept), values in sorted(history.items())
        for week, value in enumerate(values)
        if value is not None
    ]
    return pl.DataFrame(rows, schema=RAW_SALES, orient="row")


def some_history(seed: int, stores: int = 3, depts: int = 2, weeks: int = 75) -> History:
    """Series with gaps, late starts, early ends, returns; the last week of the first series is observed."""
    random = np.random.default_rng(seed)
    history: History = {}
    for store in range(1, stores + 1):
        for dept in range(1, depts + 1):
            values: list[float | None] = [round(float(x), 2) for x in random.lognormal(4, 1, weeks)]
            begin, end = sorted(random.integers(0, weeks, 2).tolist())
            for week in range(weeks):
                outside = random.random() < 0.4 and not begin <= week <= end
                if outside or random.random() < 0.1:
                    values[week] = None
                elif random.random() < 0.05:
                    values[week] = -5.0
            history[store, dept] = values
    history[1, 1][0] = history[1, 1][-1] = 10.0
    return history


def table(history: History, **options: int) -> dict[tuple[int, int, int], dict]:
    """Rows by (store, dept, week number)."""
    frame = seasonal_features(sales_of(history), **options)
    start = datetime(FIRST.year, FIRST.month, FIRST.day)
    return {
        (row["store_id"], row["dept_id"], (row[TIMESTAMP].replace(tzinfo=None) - start).days // 7): row
        for row in frame.to_dicts()
    }


def average(values: list[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if known else None


def median(values: list[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return statistics.median(known) if known else None


def at(values: list[float | None], week: int) -> float | None:
    return values[week] if 0 <= week < len(values) else None


def before(values: list[float | None], week: int, count: int) -> list[float | None]:
    return values[max(week - count, 0) : max(week, 0)]


def pool(rows: list[list[float | None]]) -> list[float | None]:
    """Sum per week of what is known, None where nothing is."""
    columns = [[x for x in week if x is not None] for week in zip(*rows, strict=True)]
    return [sum(week) if week else None for week in columns]


def both_years(values: list[float | None]) -> tuple[list[float | None], list[float | None]]:
    pairs = [(x, at(values, week - 52)) for week, x in enumerate(values)]
    kept = [pair if None not in pair else (None, None) for pair in pairs]
    return [now for now, _ in kept], [ago for _, ago in kept]


def plausible(history: History) -> History:
    """Values above five times the largest of the year before become twice that, unless it is a season.

    The definition of `outliers.without_mistakes`.
    """

    def over(values: list[float | None], week: int) -> float | None:
        year = [x for x in before(values, week, 52) if x is not None]
        x = values[week]
        return None if x is None or len(year) < 13 or statistics.median(year) <= 0 else x / max(year)

    ratios = {key: [over(values, week) for week in range(len(values))] for key, values in history.items()}

    def season(keys: list[tuple[int, int]], week: int) -> bool:
        known = [ratio for key in keys if (ratio := ratios[key][week]) is not None]
        high = sum(ratio > 2 for ratio in known)
        return high >= 3 and high >= 0.25 * len(known)

    out = {key: list(values) for key, values in history.items()}
    for (store, dept), row in ratios.items():
        same_dept = [key for key in history if key[1] == dept]
        for week, ratio in enumerate(row):
            if ratio is not None and ratio > 5 and not season(same_dept, week) and not season(list(history), week):
                out[store, dept][week] = 2 * max(x for x in before(history[store, dept], week, 52) if x is not None)
    return out


def shifted(values: list[float | None], b: int) -> float:
    span = [at(values, b - k) for k in range(1, 27)]
    for weeks in (4, 8, 13):
        last, earlier = span[:weeks], [x for x in span[weeks:] if x is not None]
        if None not in last and len(earlier) >= 8 and (min(last) > max(earlier) or max(last) < min(earlier)):
            return weeks
    return 0.0


Pairs = Sequence[list[float | None]]  # this year's and last year's sales


def slope_terms(pairs: Pairs, b: int) -> tuple[int, float, float] | None:
    """Number of pairs, spread (at most 4) of last year's relative deviations, their common part with this year's."""
    now, ago = ([x for x in before(year, b, 52) if x is not None] for year in pairs)
    if not now or sum(ago) <= 0:
        return None
    mean_now, mean_ago = sum(now) / len(now), sum(ago) / len(ago)
    spread = sum((x / mean_ago - 1) ** 2 for x in ago) / len(ago)
    if spread < 1e-12 or mean_now <= 0:
        return None
    common = sum((x / mean_ago - 1) * (y / mean_now - 1) for x, y in zip(ago, now, strict=True)) / len(ago)
    return len(now), min(spread, 4.0), common * min(spread, 4.0) / spread


def in_twos(values: list[float | None]) -> list[float | None]:
    return [average(before(values, week + 1, 2)) for week in range(len(values))]


def persistence(everyone: Sequence[Pairs], own: Pairs, b: int) -> float:
    everyone, own = [[in_twos(year) for year in pairs] for pairs in everyone], [in_twos(year) for year in own]
    found = [terms for pairs in everyone if (terms := slope_terms(pairs, b))]
    weight = sum(n * spread for n, spread, _ in found)
    prior = 26 * (weight / sum(n for n, _, _ in found) if found else 1.0)
    pooled = (sum(n * common for n, _, common in found) + 0.5 * prior) / (weight + prior)
    mine = slope_terms(own, b)
    n, spread, common = mine or (0, 1.0, 0.0)
    slope = bounded((n * common + 26 * spread * pooled) / (n * spread + 26 * spread), 0, 1)
    return slope / (slope + 1.5 * (1 - slope))


def without_giants(history: History) -> list[float | None]:
    """Sums of all series by week; what is larger than 100 times the median series is brought down to that."""
    total: list[float | None] = []
    for week in range(len(next(iter(history.values())))):
        scales = {
            key: average([None if x is None else abs(x) for x in before(v, week + 1, 52)]) for key, v in history.items()
        }
        known = [scale for scale in scales.values() if scale]
        largest = 100 * statistics.median(known) if known else math.inf
        values = [
            x * min(1.0, largest / scale if (scale := scales[key]) else 1.0)
            for key, v in history.items()
            if (x := v[week]) is not None
        ]
        total.append(sum(values) if values else None)
    return total


def expected(history: History, store: int, dept: int, b: int, horizon: int) -> dict:
    """Definitions of schema.SEASONAL_FEATURES, except the reconstruction and what depends on it."""
    values = history[store, dept]
    year = before(values, b, 52)
    level = average(year)
    known = [x for x in year if x is not None]
    groups = {
        "": [values],
        "dept_": [v for (_, d), v in history.items() if d == dept],
        "store_": [v for (s, _), v in history.items() if s == store],
        "total_": list(history.values()),
    }
    out = {
        "scale": average([None if x is None else abs(x) for x in year]),
        "deviation": None if not known else (sum((x - level) ** 2 for x in known) / len(known)) ** 0.5,
        "market_level": average([abs(x) for v in history.values() for x in before(v, b, 52) if x is not None]),
        "lowest": min((x for x in values[:b] if x is not None), default=None),
        "recent": [at(values, b - k) for k in (1, 2, 3, 4)],
        "level": [average(before(values, b, k)) for k in WINDOWS],
        "shifted": shifted(values[:b], b),
        "level_median": [median(before(values, b, k)) for k in WINDOWS],
        "last_year": [at(values[:b], b - 53 + i) for i in range(horizon + 2)],
    }
    for name, rows in groups.items():
        pairs = [both_years(row) for row in rows]
        for year_name, index in (("now", 0), ("ago", 1)):
            pooled = pool([pair[index] for pair in pairs])
            out[f"{name}growth_{year_name}"] = [average(before(pooled, b, k)) for k in WINDOWS]
            # A year ago, if there were 13 weeks with a year before them.
            out[f"{name}growth_before_{year_name}"] = average(before(pooled, b - 52, 13)) if b >= 117 else None
    depts: dict[int, list[list[float | None]]] = {}
    for (_, d), v in history.items():
        depts.setdefault(d, []).append(v)
    out["persistence"] = persistence([both_years(v) for v in history.values()], both_years(values), b)
    summed = {d: [pool(list(year)) for year in zip(*map(both_years, v), strict=True)] for d, v in depts.items()}
    out["dept_persistence"] = persistence(list(summed.values()), summed[dept], b)
    total = without_giants(history)
    out["total_persistence"] = persistence([both_years(total)], both_years(total), b)
    for name in ("dept_", "store_", "total_"):
        pooled = total if name == "total_" else pool(groups[name])
        out[f"{name}last_year"] = [at(pooled[:b], b - 53 + i) for i in range(horizon + 2)]
        out[f"{name}year_before"] = [at(pooled[:b], b - 105 + i) for i in range(horizon + 2)]
        out[f"{name}before"] = [average(before(pooled, b - 52, k)) for k in WINDOWS]
    if b < 56:  # too little of last year
        this_year = (
            "scale", "deviation", "market_level", "lowest", "recent", "level", "level_median", "shifted",
            "persistence", "dept_persistence", "total_persistence",
        )  # fmt: skip
        out = {name: x if name in this_year or x is None else [None] * len(x) for name, x in out.items()}
    return out


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    if found is None or wanted is None:
        return found is wanted
    return bool(np.isclose(found, wanted, rtol=1e-4, atol=1e-3))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 52]))
def test_every_cell_equals_its_definition(seed: int, horizon: int) -> None:
    length = 125
    history = some_history(seed, weeks=length)
    rows = table(history, horizon=horizon)
    history = plausible(history)
    for (store, dept), values in history.items():
        begin = next((week for week, x in enumerate(values) if x is not None), None)
        present = [b for (s, d, b) in rows if (s, d) == (store, dept)]
        assert present == ([] if begin is None else list(range(begin, length + 1)))
        for b in present[seed % 13 :: 13]:
            for name, wanted in expected(history, store, dept, b, horizon).items():
                found = rows[store, dept, b][name]
                assert same(found, wanted), (name, store, dept, b, found, wanted)


def slow_reconstruction(matrix: np.ndarray, b: int) -> np.ndarray:
    """Truncated SVD of the weeks before b, by definition."""
    left, values, right = np.linalg.svd(matrix[:, :b], full_matrices=False)
    return left[:, :8] * values[:8] @ right[:8]


@pytest.mark.parametrize("stores", [9, 130])  # fewer and more series than weeks
def test_reconstruction_is_the_truncated_svd(stores: int) -> None:
    random = np.random.default_rng(3)
    weeks, horizon = 110, 4
    matrix = 100 + 10 * random.standard_normal((stores, weeks))
    history: History = {(i + 1, 7): matrix[i].tolist() for i in range(stores)}
    rows = table(history, horizon=horizon)
    for b in (20, 56, 60, 64, 69, 70, 104, 110):
        smooth = slow_reconstruction(matrix, b)
        a_year_ago = slow_reconstruction(matrix, b - 52) if b > 56 else None
        growth = {}
        for i in range(stores):
            row = rows[i + 1, 7, b]
            wanted = [smooth[i, b - 53 + k] if b >= 56 else None for k in range(horizon + 2)]
            assert same(row["denoised_last_year"], wanted)
            weeks_before = [b - 105 + k for k in range(horizon + 2)]
            wanted = [a_year_ago[i, week] if week >= 0 and a_year_ago is not None else None for week in weeks_before]
            assert same(row["denoised_year_before"], wanted)
            error = np.abs(matrix[i, :b] - smooth[i])[max(b - 52, 0) :].mean()
            np.testing.assert_allclose(row["denoise_error"], error, rtol=1e-3)
            now, ago = matrix[i, max(b - 13, 52) : b].sum(), matrix[i, max(b - 65, 0) : max(b - 52, 0)].sum()
            growth[i] = min(max(now / ago, 0.3), 3.0) if b > 52 else 1.0
            errors = [matrix[i, w] - smooth[i, w - 52] * growth[i] for w in range(max(b - 8, 52), b) if b >= 56]
            assert same(row["naive_error"], float(np.abs(errors).mean()) if errors else None)
            assert same(row["naive_bias"], float(np.mean(errors[-4:])) if errors else None)


def test_department_of_few_stores_keeps_its_sales() -> None:
    history = some_history(5, stores=8, depts=1)
    rows = table(history, horizon=3)
    for store in range(1, 9):
        row = rows.get((store, 1, 75))
        assert row is not None
        for smooth, raw in zip(row["denoised_last_year"], row["last_year"], strict=True):
            if raw is not None:
                assert smooth == raw


def test_gaps_are_filled_with_level_times_the_index_of_the_department() -> None:
    """Three series of one shape; the gap of the third gets its own level times the week of the others."""
    shape = [1.0] * 60
    shape[40] = 3.0
    history: History = {(i, 1): [x * i * 10 for x in shape] for i in (1, 2, 3)}
    history[3, 1][40] = None
    longer = {key: values + [values[0]] * 30 for key, values in history.items()}
    row = table(longer, horizon=8)[3, 1, 90]
    place = 40 - (90 - 53)
    assert row["last_year"][place] is None
    assert row["denoised_last_year"][place] == pytest.approx(90.0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 124), st.booleans())
def test_nothing_leaks(seed: int, week: int, many: bool) -> None:
    """Changing any sales at week t or later changes no cell of any row up to and including t."""
    history = some_history(seed, stores=12 if many else 3, depts=1 if many else 2, weeks=125)
    random = np.random.default_rng(seed + 1)
    changed = {
        key: [
            x if w < week else (None if random.random() < 0.3 else float(random.normal(0, 1e4)))
            for w, x in enumerate(values)
        ]
        for key, values in history.items()
    }
    changed[1, 1][-1] = 5.0
    limit = pl.col(TIMESTAMP).dt.date() <= FIRST + timedelta(weeks=week)
    one, two = (seasonal_features(sales_of(h), horizon=52).filter(limit) for h in (history, changed))
    begun = one.group_by(KEYS).agg(pl.col(TIMESTAMP).min().alias("begun"))
    # A series whose first sales came at t or later may begin elsewhere.
    old = begun.filter(pl.col("begun").dt.date() < FIRST + timedelta(weeks=week)).select(KEYS)
    one, two = (frame.join(old, on=KEYS, how="semi", maintain_order="left") for frame in (one, two))
    assert one.equals(two)


def test_rows_of_some_series_are_those_of_all() -> None:
    """A large dataset is written in parts."""
    panel = seasonal.prepare(sales_of(some_history(3, stores=6, weeks=125)), None, 8)
    whole, part = (seasonal.rows(panel, np.array(chosen)) for chosen in (range(12), (2, 7, 8)))
    assert part.equals(whole.join(part.select(*KEYS, TIMESTAMP), on=[*KEYS, TIMESTAMP], maintain_order="right"))


def test_types_order_and_no_nan() -> None:
    frame = seasonal_features(sales_of(some_history(1)))
    assert dict(frame.schema) == {
        "store_id": pl.Int32(),
        "dept_id": pl.Int32(),
        TIMESTAMP: pl.Datetime("us", "UTC"),
        **SEASONAL_FEATURES,
    }
    assert frame.equals(frame.sort(*KEYS, TIMESTAMP))
    for name, dtype in SEASONAL_FEATURES.items():
        values = frame[name].explode() if isinstance(dtype, pl.List) else frame[name]
        assert not values.is_nan().any(), name


def test_constant_series_has_no_deviation() -> None:
    row = table({(1, 1): [1234.56] * 60})[1, 1, 60]
    assert row["deviation"] == 0.0
    assert row["denoise_error"] == 0.0


def test_seasonal_errors() -> None:
    sales = sales_of({(1, 1): [1.0, 2.0]})
    with pytest.raises(UserError, match="horizon must be 1 to 52 weeks, got 53"):
        seasonal_features(sales, horizon=53)
    with pytest.raises(UserError, match="no sales to make features of"):
        seasonal_features(sales.clear())


def with_store(features: pl.DataFrame) -> pl.DataFrame:
    return features.with_columns(
        store_type=pl.lit("A"), store_size=pl.lit(1000, pl.Int64), region=pl.lit(None, pl.String)
    )


def built(frame: pl.DataFrame, horizon: int = H) -> inputs.Inputs:
    return inputs.build(frame, TRAINING_SERVICE_SEASONAL, horizon, CALENDAR)


def bounded(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def growth(row: dict[str, Any], weeks_back: int, prefix: str = "") -> float:
    place = WINDOWS.index(weeks_back)
    now, ago = row[f"{prefix}growth_now"][place], row[f"{prefix}growth_ago"][place]
    if now is None or ago is None or now <= 0 or ago <= 0:
        return 1.0
    return bounded(now / ago, 0.3, 3.0)


def relative(value: float | None, anchor_value: float, unit: float) -> float:
    return math.nan if value is None else bounded((value - anchor_value) / unit, -3, 3)


def on_dates(values: list[float | None], h: int, shift: float) -> float | None:
    """Values of a year's weeks beside the target's (places h, h + 1, h + 2), by the days that belong to the target."""
    same, other = values[h + 1], values[h + 2] if shift < 0 else values[h]
    if same is None:
        return None
    return same if other is None else (1 - abs(shift)) * same + abs(shift) * other


def both(last: float | None, before: float | None, catch_up: float | None) -> float | None:
    """The mean of last year's sales and those of the year before at last year's level."""
    return last if None in (last, before, catch_up) else (last + before * catch_up) / 2


def catch_up(row: dict[str, Any], prefix: str = "") -> float | None:
    now, ago = row[f"{prefix}growth_before_now"], row[f"{prefix}growth_before_ago"]
    if now is not None and ago is not None and now > 0 and ago > 0:
        return bounded(now / ago, 0.3, 3.0)
    return None


Shifts = tuple[float, float]  # of last year's dates and of the year before


def shifts_of(week: date) -> Shifts:
    last = shift_of(week)
    before = shift_of(week - timedelta(weeks=52 + int(last)))
    return last, min(max(last + before, -1.0), 1.0)


def profile(row: dict[str, Any], h: int, shifts: Shifts, weeks_back: int) -> float | None:
    found = {}
    for group in ("dept", "store", "total"):
        before_it = on_dates(row[f"{group}_year_before"], h, shifts[1])
        year = both(on_dates(row[f"{group}_last_year"], h, shifts[0]), before_it, catch_up(row, f"{group}_"))
        before = row[f"{group}_before"][WINDOWS.index(weeks_back)]
        if year is not None and before is not None and before > 0:
            found[group] = bounded(year / before, 0.0, 20.0)
    if "dept" in found and "total" in found:
        total = 1 + row["total_persistence"] * (found["total"] - 1)
        return total + row["dept_persistence"] * (found["dept"] - total)
    return found.get("store")


def anchor(row: dict[str, Any], h: int, shifts: Shifts) -> tuple[float, int]:
    """The definition in docs/LOG.md."""
    levels = [row["level_median"][WINDOWS.index(k)] for k in (13, 26, 52)]
    level = next((x for x in levels if x is not None), None)
    if level is None:
        return 0.0, LEVEL
    weeks_since = int(row["shifted"])
    if weeks_since:
        level = row["level_median"][WINDOWS.index(weeks_since)]
    windows = (weeks_since,) if weeks_since else (4, 8, 13, 26)
    before_it = on_dates(row["denoised_year_before"], h, shifts[1])
    smooth = both(on_dates(row["denoised_last_year"], h, shifts[0]), before_it, catch_up(row))
    products = []
    for k in windows:
        mine, pro = row["level_median"][WINDOWS.index(k)], profile(row, h, shifts, k)
        if mine is not None and pro is not None:
            products.append(mine * pro)
    year, pro = row["level_median"][WINDOWS.index(52)], profile(row, h, shifts, 52)
    profiled = sum(products) / len(products) if products else None if pro is None else year * pro
    if smooth is not None:
        mean_growth = math.exp(sum(math.log(growth(row, k)) for k in windows) / len(windows))
        pattern = smooth * (1 + 0.8 * (mean_growth - 1))
        share = row["persistence"]
        return share * pattern + (1 - share) * (pattern if profiled is None else profiled), SEASONAL
    if profiled is not None:
        return profiled, PROFILE
    return level, LEVEL


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_anchor_unit_and_candidates(seed: int) -> None:
    """Some rows of every series, over two years and a half."""
    frame = with_store(seasonal_features(sales_of(some_history(seed, weeks=130)), horizon=H))
    found = built(frame)
    assert (frame["denoised_year_before"].list.drop_nulls().list.len() > 0).any()
    step = {name: found.step[:, :, i] for i, name in enumerate(found.step_names)}
    base = {name: found.base[:, i] for i, name in enumerate(found.base_names)}
    for i in range(seed % 9, frame.height, 9):
        row = frame.row(i, named=True)
        scale = row["scale"] or 1e-12 * (row["market_level"] or 0.0) or 1.0
        assert base["growth:own_13"][i] == pytest.approx(math.log(growth(row, 13)), abs=1e-4)
        assert base["pooled:dept_growth_8"][i] == pytest.approx(math.log(growth(row, 8, "dept_")), abs=1e-4)
        for h in range(H):
            week = row[TIMESTAMP].date() + timedelta(weeks=h)
            shifts = shifts_of(week)
            expected, kind = anchor(row, h, shifts)
            unit = (abs(expected) + scale) / 2
            assert found.anchor_kind[i, h] == kind
            assert found.anchor[i, h] == pytest.approx(expected, rel=1e-4, abs=1e-3)
            assert found.unit[i, h] == pytest.approx(unit, rel=1e-4)
            before_it = on_dates(row["denoised_year_before"], h, shifts[1])
            year = both(on_dates(row["last_year"], h, shifts[0]), before_it, catch_up(row))
            pro = profile(row, h, shifts, 8)
            level, middle = row["level"][WINDOWS.index(8)], row["level_median"][WINDOWS.index(8)]
            for name, value in (
                ("last_year:same_dates", year),
                ("last_year:grown", None if year is None else year * (1 + 0.8 * (growth(row, 13) - 1))),
                ("level:lag_2", row["recent"][1]),
                ("level:mean_8", level),
                ("level:median_8", middle),
                ("pooled:level_profile_8", None if pro is None or middle is None else middle * pro),
            ):
                assert step[name][i, h] == pytest.approx(
                    relative(value, expected, unit), rel=1e-3, abs=2e-3, nan_ok=True
                ), name


def test_inputs_are_finite_or_missing_and_the_same_for_any_currency() -> None:
    history = some_history(4, weeks=80)
    larger = {key: [None if x is None else 1000 * x for x in values] for key, values in history.items()}
    one, thousand = (built(with_store(seasonal_features(sales_of(h), horizon=H))) for h in (history, larger))
    for name in ("base", "step"):
        values = getattr(one, name)
        assert not np.isinf(values).any()
        np.testing.assert_allclose(getattr(thousand, name), values, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(thousand.anchor, 1000 * one.anchor, rtol=1e-4, atol=1e-2)
    before_all_sales = one.unit == 0.5  # the first week of all has no scale to go by
    assert before_all_sales.mean() < 0.02
    np.testing.assert_allclose(thousand.unit, np.where(before_all_sales, 0.5, 1000 * one.unit), rtol=1e-4)
    assert np.isfinite(one.anchor).all()
    assert (one.unit > 0).all()


def test_rows_do_not_depend_on_each_other_and_both_services_agree() -> None:
    frame = with_store(seasonal_features(sales_of(some_history(9, weeks=80)), horizon=H))
    whole = built(frame)
    part = inputs.build(frame[30:33], INFERENCE_SERVICE_SEASONAL, H, CALENDAR)
    np.testing.assert_array_equal(part.step, whole.step[30:33])
    np.testing.assert_array_equal(part.base, whole.base[30:33])
    shorter = built(frame, 2)
    keep = [whole.step_names.index(name) for name in shorter.step_names]
    np.testing.assert_array_equal(shorter.step, whole.step[:, :2, keep])


def test_a_series_without_sales_for_a_year_has_no_forecast() -> None:
    history = {(1, 1): [10.0] * 5 + [None] * 70, (2, 1): [5.0] * 75}
    frame = with_store(seasonal_features(sales_of(history), horizon=H)).filter(pl.col("store_id") == 1).tail(1)
    found = built(frame)
    assert (found.anchor == 0).all()
    assert (found.unit > 0).all()


def test_a_new_store_uses_its_department() -> None:
    """No last year of its own: the median of its weeks times the season of the other stores.

    Part of it: no week of last year's season has come back yet, so little says how much of it does.
    """
    season = [100.0 if week % 52 != 30 else 300.0 for week in range(110)]
    history = {(store, 1): list(season) for store in range(1, 4)} | {(9, 1): [None] * 70 + [50.0] * 10}
    cut = {key: values[:80] for key, values in history.items()}
    frame = with_store(seasonal_features(sales_of(cut), horizon=H)).filter(pl.col("store_id") == 9).tail(1)
    found = built(frame)  # weeks 80..84; week 82 is the peak of the year before
    assert found.anchor_kind.tolist() == [[PROFILE] * H]
    base = date(2010, 2, 5) + timedelta(weeks=80)
    shift = date_shift(np.array([base + timedelta(weeks=h) for h in range(H)], "datetime64[D]"), CALENDAR)
    expected = [50.0, 50.0, 150 - 100 * shift[2], 50 + 100 * shift[3], 50.0]
    back = 0.4 + 0.6 * 0.4  # 0.4 of the season of all, and of what the department adds to that
    np.testing.assert_allclose(found.anchor[0] - 50, back * (np.array(expected) - 50), rtol=1e-4)


def test_a_series_that_never_changes_is_forecast_as_it_is() -> None:
    """Whatever its department does."""
    random = np.random.default_rng(0)
    history = {(store, 1): random.uniform(50, 150, 80).tolist() for store in range(1, 4)} | {(9, 1): [123.45] * 80}
    found = built(with_store(seasonal_features(sales_of(history), horizon=H)).filter(pl.col("store_id") == 9).tail(1))
    assert (found.anchor + 5 * found.unit == np.float32(123.45)).all()


def test_a_mistyped_value_hardly_moves_the_anchor_and_a_season_of_all_is_none() -> None:
    random = np.random.default_rng(0)
    usual = {(store, 1): random.uniform(90, 110, 80).tolist() for store in range(1, 6)}

    def anchors(history: History) -> np.ndarray:
        frame = with_store(seasonal_features(sales_of(history), horizon=H))
        return built(frame.filter(pl.col(TIMESTAMP) == pl.col(TIMESTAMP).max())).anchor

    before_it = anchors(usual)
    mistyped = {key: [*values[:-1], 100 * values[-1] if key == (1, 1) else values[-1]] for key, values in usual.items()}
    np.testing.assert_allclose(anchors(mistyped), before_it, rtol=0.1)
    season = {key: [*values[:30], 10 * values[30], *values[31:]] for key, values in usual.items()}
    frame = seasonal_features(sales_of(season), horizon=H)
    assert max(frame["last_year"].explode().drop_nulls()) > 900


def test_a_shift_of_the_level_is_followed_after_four_weeks() -> None:
    random = np.random.default_rng(0)
    history = {(store, 1): random.uniform(90, 110, 80).tolist() for store in range(1, 4)}
    history[1, 1] = [x if week < 76 else 3 * x for week, x in enumerate(history[1, 1])]
    found = built(with_store(seasonal_features(sales_of(history), horizon=H)).filter(pl.col("store_id") == 1).tail(1))
    np.testing.assert_allclose(found.anchor, 300, rtol=0.2)


def test_without_a_year_of_history_the_level_is_used() -> None:
    frame = with_store(seasonal_features(sales_of({(1, 0): [10.0, 20.0, 30.0]}), horizon=H)).tail(1)
    found = built(frame)
    assert found.anchor_kind.tolist() == [[LEVEL] * H]
    assert found.anchor.tolist() == [[20.0] * H]


def test_another_country_has_its_own_holidays_and_follows_them() -> None:
    """The same rows for Germany: its holidays are inputs, and its moving ones are aligned with last year's."""
    frame = with_store(seasonal_features(sales_of(some_history(2, weeks=80)), horizon=52)).tail(1)
    germany = retail_calendar.calendar("DE")
    found = inputs.build(frame, TRAINING_SERVICE_SEASONAL, 52, germany)
    assert "holiday:Thanksgiving Day" in built(frame, 52).step_names
    assert "holiday:Thanksgiving Day" not in found.step_names
    held = found.step[0, :, found.step_names.index("holiday:German Unity Day")]
    first = frame[TIMESTAMP].dt.date().item()
    ends = [first + timedelta(weeks=h) for h in range(52)]
    assert [bool(x) for x in held] == [end - timedelta(7) < date(end.year, 10, 3) <= end for end in ends]
    # Easter Monday was on 2024-04-01 and 51 weeks earlier on 2023-04-10: a holiday there, none in the US.
    week = np.array([date(2024, 4, 5)], "datetime64[D]")
    assert date_shift(week, germany)[0] == -1.0
    assert date_shift(week, CALENDAR)[0] == pytest.approx(2 / 7)


def test_lists_too_short_for_the_horizon() -> None:
    frame = with_store(seasonal_features(sales_of({(1, 0): [10.0, 20.0, 30.0]}), horizon=2))
    with pytest.raises(UserError, match="run `salescast features` with a longer --horizon"):
        built(frame, 4)


def shift_of(day: date) -> float:
    return float(date_shift(np.array([day], "datetime64[D]"), CALENDAR)[0])


@given(st.dates(date(2000, 1, 1), date(2050, 1, 1)))
def test_date_shift_is_the_days_a_year_is_longer_than_52_weeks(day: date) -> None:
    """Where no holiday moves it by whole weeks: as many days as the same date a year ago lies before 364 days ago."""
    found = shift_of(day)
    try:
        year_ago = day.replace(year=day.year - 1)
    except ValueError:  # 29 February
        year_ago = date(day.year - 1, 3, 1)
    assert found in (-1.0, 0.0, 1.0, pytest.approx(((day - timedelta(364)) - year_ago).days / 7))


def test_weeks_of_holidays_bound_to_a_weekday_are_not_shifted() -> None:
    assert shift_of(date(2011, 11, 25)) == 0.0  # Thanksgiving, as on 2010-11-25
    assert shift_of(date(2011, 12, 2)) == 0.0  # the week after it must not see it
    assert shift_of(date(2011, 12, 9)) == pytest.approx(1 / 7)
    assert shift_of(date(2011, 12, 30)) == pytest.approx(1 / 7)  # Christmas goes by the date
    assert shift_of(date(2012, 5, 4)) == pytest.approx(2 / 7)  # 29 February lies between
    assert shift_of(date(2012, 9, 7)) == 0.0  # Labor Day


def test_weeks_of_a_holiday_that_moved_by_a_week_follow_it() -> None:
    assert shift_of(date(2024, 11, 29)) == 1.0  # Thanksgiving on the 28th, in 2023 on the 23rd: 53 weeks earlier
    assert shift_of(date(2024, 11, 22)) == 1.0  # 52 weeks earlier was Thanksgiving, which this week is not
    assert shift_of(date(2024, 11, 15)) == pytest.approx(2 / 7)
    assert shift_of(date(2022, 2, 18)) == 1.0  # Super Bowl on 2022-02-13, in 2021 on 02-07: 371 days


def test_a_week_shifted_by_whole_weeks_holds_the_holidays_of_the_week_it_is_read_from() -> None:
    """Every day of 60 years: Thanksgiving is never paired with a week without it, nor such a week with Thanksgiving."""
    days = np.arange("1991-02-01", "2051-01-01", dtype="datetime64[D]")
    shift = date_shift(days, CALENDAR)
    whole = np.isin(shift, (-1.0, 0.0, 1.0))
    source = days - (7 * (52 + np.trunc(shift).astype(int))).astype("timedelta64[D]")
    for name in ("Super Bowl", "Labor Day", "Thanksgiving Day"):
        here, there = ([holds(name, day) for day in some] for some in (days, source))
        differ = np.array(here) != np.array(there)
        assert not differ[whole].any(), (name, days[whole & differ])
        assert not np.array(here)[~whole].any(), f"every week of {name} follows it"
    assert set(np.unique(shift[whole])) == {-1.0, 0.0, 1.0}


def holds(name: str, week: np.datetime64) -> bool:
    held = CALENDAR.days[CALENDAR.names.index(name)]
    return bool(((held > week - np.timedelta64(7, "D")) & (held <= week)).any())


def weekly(*series: list[float]) -> inputs.Inputs:
    """Inputs of the upcoming week of series that were sold in the same weeks."""
    history: History = {(store, 1): list(values) for store, values in enumerate(series, 1)}
    frame = with_store(seasonal_features(sales_of(history), horizon=H))
    last = frame.filter(pl.col(TIMESTAMP) == pl.col(TIMESTAMP).max()).sort("store_id")
    return built(last)


def test_a_series_without_sales_for_longer_than_last_year_explains_has_ended() -> None:
    usual = [100.0 + week % 7 for week in range(130)]
    ended = usual[:-13] + [0.0] * 13
    lately = usual[:-12] + [0.0] * 12
    seasonal = [0.0 if week % 52 in range(65 - 13, 65) or week % 52 in range(13) else 50.0 for week in range(130)]
    found = weekly(usual, ended, lately, seasonal)
    assert (found.unit < 1e-20).any(axis=1).tolist() == [False, True, False, False]
    assert (found.anchor[1] == 0).all()


def test_only_series_with_returns_may_be_forecast_below_zero() -> None:
    usual = [100.0 + week % 7 for week in range(130)]
    returned = [*usual[:3], -1.0, *usual[4:]]
    assert weekly(usual, returned, [0.0] * 130).floor.tolist() == [0.0, -np.inf, 0.0]


def test_a_huge_series_leaves_unit_and_anchor_of_the_others_alone() -> None:
    """The smallest series has a scale of its own, whatever else is sold."""
    small = [0.003 + 0.001 * (week % 5) for week in range(130)]
    usual = [100.0 + week % 7 for week in range(130)]
    alone, beside = weekly(usual, small), weekly(usual, small, [9e11 + week for week in range(130)])
    np.testing.assert_allclose(beside.unit[:2], alone.unit, rtol=0.02)


def test_the_mean_of_a_slow_mover_is_that_of_its_history() -> None:
    """One sale of 8 every fifth week: the median is 0, 1.6 a week are to be expected."""
    slow = [8.0 if week % 5 == 0 else 0.0 for week in range(104)]
    history = {(1, 1): slow, (1, 2): [10.0 + week % 7 for week in range(104)]}
    found = built(
        with_store(seasonal_features(sales_of(history), horizon=H)).filter(pl.col(TIMESTAMP) == pl.col(TIMESTAMP).max())
    )
    np.testing.assert_allclose(found.slow_mean[0], 1.6, rtol=0.1)
    assert np.isnan(found.slow_mean[1]).all()
