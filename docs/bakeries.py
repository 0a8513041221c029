"""Write the example of your-data.md to the current folder: weekly takings of eight German bakeries.

As in real files, there are other column names, weeks that end on Sunday, a branch that opened late and one that closed,
weeks of renovation, a returned delivery, and promotions planned for the coming weeks.
"""

from datetime import date

import numpy as np
import polars as pl

FIRST, LAST, PLANNED = date(2023, 7, 9), date(2025, 12, 28), date(2026, 2, 22)
draws = np.random.default_rng(7)

branches = pl.DataFrame(
    {
        "branch": range(11, 19),
        "kind": ["A", "A", "B", "B", "B", "C", "C", "C"],
        "area": [220, 180, 120, 110, 95, 60, 55, 40],
        "state": ["Bayern", "Bayern", "Hessen", "Hessen", "Sachsen", "Sachsen", "Sachsen", "Hessen"],
    }
)
groups = pl.DataFrame({"group": [1, 2, 3, 4], "level": [60.0, 35.0, 25.0, 12.0]})  # bread, rolls, cakes, coffee
calendar = pl.DataFrame({"week": pl.date_range(FIRST, PLANNED, "7d", eager=True)})

rows = branches.join(groups, how="cross").join(calendar, how="cross")
rows = rows.with_columns(
    promo=pl.Series(draws.random(rows.height) < 0.12).cast(pl.Int8), noise=pl.Series(draws.normal(0, 0.06, rows.height))
)
season = 1 + 0.1 * (2 * np.pi * (pl.col("week").dt.ordinal_day() - 20) / 365.25).cos()
advent = 1 + 0.5 * ((pl.col("week").dt.month() == 12) & (pl.col("group") == 3)).cast(pl.Float64)
takings = pl.col("level") * pl.col("area") * season * advent * (1 + 0.25 * pl.col("promo")) * pl.col("noise").exp()

opened_late = (pl.col("branch") == 18) & (pl.col("week") < date(2025, 3, 2))
closed = (pl.col("branch") == 16) & (pl.col("week") > date(2025, 6, 29))
renovated = (pl.col("branch") == 13) & pl.col("week").is_between(date(2024, 8, 4), date(2024, 8, 25))
returned = (pl.col("branch") == 17) & (pl.col("group") == 4) & (pl.col("week") == date(2025, 9, 7))
rows = rows.filter(~(opened_late | closed | renovated)).with_columns(
    takings=pl.when(pl.col("week") <= LAST).then(pl.when(returned).then(-40.0).otherwise(takings.round(2)))
)

rows.select("branch", "group", pl.col("week").alias("week_ending"), "takings", "promo").write_csv("bakeries.csv")
branches.write_csv("branches.csv")
