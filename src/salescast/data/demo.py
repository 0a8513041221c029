"""Demo data: simulated weekly sales with a known lowest possible forecast error.

The expected sales of a series are a product of factors: the level of store and department, steady growth, the
department's season, the run-up to holidays (the uplift differs by department and store), and a little weather and
unemployment. Each week is multiplied by exp(NOISE_SIGMA z) with independent standard normal z, so the noise is
proportional to the level.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from statistics import NormalDist
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast import retail_calendar
from salescast.errors import UserError

Floats = NDArray[np.float64]

# For y = m exp(s z) the forecast with the least expected |y - f| / y is f = m exp(-s^2): the median of y under weights
# 1/y. Its error is P(|z| < s) = 2 Phi(s) - 1, which is solved here for s: the error of a forecaster who knows
# everything except the noise, even the weather of the coming week.
NOISE_FLOOR_MAPE: Final = 0.03
NOISE_SIGMA: Final = NormalDist().inv_cdf((1 + NOISE_FLOOR_MAPE) / 2)

FIRST_WEEK: Final = date(2023, 2, 3)  # a Friday; 104 weeks end after the second Christmas
CHUNK_ROWS: Final = 1_000_000
_MAX_STORE_ROWS: Final = 20_000_000

# Event, days of its run-up, mean and spread over departments of the log uplift of a full week of run-up.
_EVENTS: Final = (
    ("Super Bowl", 7, 0.05, 0.10),
    ("Valentine's Day", 7, 0.04, 0.08),
    ("Easter", 10, 0.08, 0.12),
    ("Independence Day", 7, 0.05, 0.08),
    ("Labor Day", 7, 0.04, 0.06),
    ("Halloween", 10, 0.04, 0.10),
    ("Thanksgiving Day", 7, 0.15, 0.15),
    ("Black Friday", 2, 0.60, 0.60),
    ("Christmas Day", 18, 0.25, 0.25),
)
_HARMONICS: Final = (0.12, 0.06, 0.03)  # spread over departments of the yearly, half-yearly ... waves
_TYPES: Final = ("A", "B", "C")
_TYPE_SHARE: Final = (0.45, 0.35, 0.20)
_TYPE_SIZE: Final = (180_000, 110_000, 45_000)  # sqft
_REGIONS: Final = ("East", "North", "South", "West")
_CLIMATE: Final = (56.0, 46.0, 70.0, 62.0)  # mean degrees Fahrenheit


@dataclass(frozen=True)
class Chunk:
    """The raw tables of some stores, in key order (schema: RAW_SALES, RAW_STORE_WEEKS, RAW_STORES)."""

    sales: pl.DataFrame
    store_weeks: pl.DataFrame
    stores: pl.DataFrame


def _rng(seed: int, stream: int) -> np.random.Generator:
    """Stream 0 is for what all stores share, stream n for store n, so no store depends on the number of stores."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(stream,))))


def _run_up(weeks: NDArray[np.datetime64], days: NDArray[np.datetime64], length: int) -> Floats:
    """Share of each week's seven days among the `length` days that end on an event."""
    end = np.minimum(weeks[:, None], days)
    start = np.maximum(weeks[:, None] - np.timedelta64(6), days - np.timedelta64(length - 1))
    return np.asarray(np.clip((end - start).astype(np.int64) + 1, 0, 7).sum(axis=1) / 7)


@dataclass(frozen=True, eq=False)
class World:
    """What all stores share: logs of factors of the expected sales. Shapes: D departments, T weeks."""

    stores: int
    seed: int
    weeks: NDArray[np.datetime64]  # [T]
    level: Floats  # [D]
    growth: Floats  # [D] per year
    season: Floats  # [D, T]
    holiday: Floats  # [D, T]
    weather: Floats  # [D] per degree of unusual temperature
    fuel: Floats  # [T] national price
    warmth: Floats  # [T] -1 in winter, 1 in summer

    @classmethod
    def create(cls, stores: int, depts: int, weeks: int, seed: int) -> "World":
        """Draw a world. Raises UserError when a number is out of range."""
        for name, value in (("stores", stores), ("depts", depts), ("weeks", weeks)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if seed < 0:
            raise UserError(f"seed must not be negative, got {seed}")
        if depts * weeks > _MAX_STORE_ROWS:
            raise UserError(
                f"{depts} departments x {weeks} weeks are too many for one store; at most {_MAX_STORE_ROWS}"
            )
        cal = retail_calendar.calendar("US")
        dates = np.datetime64(FIRST_WEEK) + 7 * np.arange(weeks)
        if dates[-1] > np.datetime64(retail_calendar.LAST_DAY):
            raise UserError(f"{weeks} weeks from {FIRST_WEEK} end after {retail_calendar.LAST_DAY}; ask for fewer")
        rng = _rng(seed, 0)
        angle = 2 * np.pi * (dates - dates.astype("datetime64[Y]")).astype(np.float64) / 365.25
        season = np.zeros((depts, weeks))
        for k, spread in enumerate(_HARMONICS, start=1):
            size, phase = rng.normal(0, spread, (depts, 1)), rng.uniform(0, 2 * np.pi, (depts, 1))
            season += size * np.sin(k * angle - phase)
        days = dict(zip(cal.names, cal.days, strict=True)) | {"Easter": cal.easter}
        holiday = np.zeros((depts, weeks))
        for event, length, mean, spread in _EVENTS:
            holiday += rng.normal(mean, spread, (depts, 1)) * _run_up(dates, days[event], length)
        return cls(
            stores=stores,
            seed=seed,
            weeks=dates,
            level=rng.normal(9.4, 0.8, depts),
            growth=rng.normal(0.03, 0.03, depts),
            season=season,
            holiday=holiday,
            weather=rng.normal(0, 0.001, depts),
            fuel=3.4 + np.cumsum(rng.normal(0, 0.03, weeks)).clip(-1.5, 3),
            warmth=-np.cos(angle - 0.35),
        )

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """The dataset in chunks of about `rows` sales rows; the values do not depend on `rows`."""
        step = max(1, rows // self.season.size)
        for first in range(1, self.stores + 1, step):
            yield self._chunk(np.arange(first, min(first + step, self.stores + 1), dtype=np.int32))

    def _chunk(self, stores: NDArray[np.int32]) -> Chunk:
        depts, weeks = self.season.shape
        sales = np.empty((len(stores), depts, weeks))
        conditions = np.empty((4, len(stores), weeks), np.float32)
        static = []
        for i, store in enumerate(stores):
            static.append(self._store(_rng(self.seed, int(store)), sales[i], conditions[:, i]))
        dept_ids = np.arange(1, depts + 1, dtype=np.int32)
        temperature, fuel, cpi, unemployment = (values.ravel() for values in conditions)
        return Chunk(
            sales=pl.DataFrame(
                {
                    "store_id": np.repeat(stores, depts * weeks),
                    "dept_id": np.tile(np.repeat(dept_ids, weeks), len(stores)),
                    "week": np.tile(self.weeks, len(stores) * depts),
                    "weekly_sales": sales.ravel(),
                }
            ),
            store_weeks=pl.DataFrame(
                {
                    "store_id": np.repeat(stores, weeks),
                    "week": np.tile(self.weeks, len(stores)),
                    "temperature": temperature,
                    "fuel_price": fuel,
                    "cpi": cpi,
                    "unemployment": unemployment,
                }
            ),
            stores=pl.DataFrame(
                {
                    "store_id": stores,
                    "store_type": [kind for kind, _, _ in static],
                    "store_size": np.array([size for _, size, _ in static], np.int64),
                    "region": [region for _, _, region in static],
                }
            ),
        )

    def _store(self, rng: np.random.Generator, sales: Floats, conditions: NDArray[np.float32]) -> tuple[str, int, str]:
        """Fill one store's `sales` [D, T] and `conditions` [4, T]; return its type, size in sqft and region."""
        depts, weeks = sales.shape
        kind, place = rng.choice(3, p=_TYPE_SHARE), rng.integers(4)
        size = int(_TYPE_SIZE[kind] * np.exp(rng.normal(0, 0.2)))
        unusual = 5 * _autoregressive(rng.standard_normal((weeks,)), 0.5)
        jobless = rng.normal(7, 1.2) + np.cumsum(rng.normal(0, 0.03, weeks))
        conditions[0] = _CLIMATE[place] + 20 * self.warmth + unusual
        conditions[1] = self.fuel + rng.normal(0, 0.1) + rng.normal(0, 0.02, weeks)
        conditions[2] = rng.normal(200, 20) + 0.06 * np.arange(weeks) + np.cumsum(rng.normal(0, 0.05, weeks))
        conditions[3] = jobless.clip(1, 20)
        level = self.level + 0.8 * np.log(size / 110_000) + rng.normal(0, 0.15) + rng.normal(0, 0.3, depts)
        growth = self.growth + rng.normal(0, 0.04) + rng.normal(0, 0.04, depts)
        np.multiply(rng.standard_normal((depts, weeks)), NOISE_SIGMA, out=sales)
        sales += level[:, None]
        sales += np.outer(growth, np.arange(weeks) * 7 / 365.25)
        sales += self.season * rng.normal(1, 0.15)
        sales += self.holiday * rng.normal(1, 0.2)
        sales += np.outer(self.weather, unusual)
        sales -= 0.02 * (jobless - jobless[0])
        np.exp(sales, out=sales)
        np.round(sales, 2, out=sales)
        return _TYPES[kind], size, _REGIONS[place]


def _autoregressive(shocks: Floats, memory: float) -> Floats:
    """x(t) = memory x(t-1) + shock(t), truncated to 16 weeks of memory."""
    kernel = memory ** np.arange(16)
    return np.asarray(np.convolve(shocks, kernel)[: len(shocks)])
