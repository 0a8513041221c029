import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from salescast import schema
from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.bundle import Bundle
from salescast.model.inputs import build
from salescast.retail_calendar import calendar
from salescast.training.main import run_plan
from salescast.training.plan import Plan


@pytest.fixture(scope="module")
def folder(module_plan_of: Callable[..., Plan]) -> Path:
    plan = module_plan_of(epochs=3, members=2)
    assert run_plan(plan) == 0
    return plan.fits[0].out


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Bundle:
    return bundle.load(folder)


@pytest.fixture(scope="module")
def upcoming(training_frame: pl.DataFrame) -> pl.DataFrame:
    return training_frame.filter(pl.col(schema.LABEL).is_null()).drop(schema.LABEL)


def test_a_bundle_is_state_dicts_and_json(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "model_best.pt", "model_final.pt", "model_metadata.json", "scalers.json",
    ]  # fmt: skip
    described = json.loads((folder / "model_metadata.json").read_text())
    assert described["cutoff"] == "2024-04-26"
    assert described["config"]["quantiles"] == list(schema.QUANTILES)
    assert described["inputs"] == json.loads((folder / "scalers.json").read_text())["model_final.pt"]["names"]


def test_forecasts_are_increasing_finite_and_of_the_right_weeks(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    forecast = loaded.predict(upcoming)
    assert forecast.quantiles.shape == (18, 4, 9)
    assert forecast.quantiles.dtype == np.float64
    assert np.isfinite(forecast.quantiles).all()
    assert (np.diff(forecast.quantiles, axis=2) > 0).all()
    assert forecast.weeks[0].astype(str).tolist() == ["2024-05-03", "2024-05-10", "2024-05-17", "2024-05-24"]
    assert np.array_equal(forecast.at(0.5), forecast.quantiles[:, :, 4])


def test_a_forecast_is_the_networks_answer_widened_by_side(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    """Row by row with plain arithmetic, and independent of the other rows of the call."""
    import torch

    lower, upper = 0.9, 1.4
    model = replace(loaded, metadata=replace(loaded.metadata, factors=(lower, upper)))
    together = model.predict(upcoming).quantiles
    for i in range(0, 18, 5):
        row = upcoming[i]
        inputs = build(row, schema.TRAINING_SERVICE, 4, calendar("US"))
        for h in range(4):
            numeric = torch.from_numpy(np.concatenate([inputs.base[0], inputs.step[0, h]]))[None]
            codes = torch.cat([model.scaler.encode(inputs)[0], model.scaler.horizons(4)[h : h + 1]])[None]
            with torch.no_grad():
                raw = model.network(numeric, codes).double().mean(dim=1)[0].numpy()
            wide = raw[4] + (raw - raw[4]) * np.where(np.arange(9) < 4, lower, upper)
            expected = inputs.anchor[0, h] + inputs.unit[0, h] * wide
            assert np.allclose(together[i, h], expected, rtol=1e-6)
    assert np.allclose(model.predict(upcoming[3:4]).quantiles, together[3:4], rtol=1e-6)
    many = pl.concat([upcoming] * 200)  # several forward passes
    assert np.allclose(model.predict(many).quantiles[-18:], together, rtol=1e-6)


def test_fewer_weeks_are_the_first_of_all(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    two, four = loaded.predict(upcoming, 2), loaded.predict(upcoming)
    assert np.allclose(two.quantiles, four.quantiles[:, :2], rtol=1e-6)
    assert np.array_equal(two.weeks, four.weeks[:, :2])


@pytest.mark.parametrize("horizon", [0, 5, -1])
def test_weeks_it_was_not_trained_for_are_refused(loaded: Bundle, upcoming: pl.DataFrame, horizon: int) -> None:
    with pytest.raises(UserError, match=f"horizon must be 1 to 4 weeks for this model, got {horizon}"):
        loaded.predict(upcoming, horizon)


def test_unknown_stores_get_a_finite_forecast(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    strange = upcoming.with_columns(
        pl.lit(999, pl.Int32).alias("store_id"),
        pl.lit(None, pl.String).alias("region"),
        pl.lit(None, pl.Int64).alias("store_size"),
    )
    assert np.isfinite(loaded.predict(strange).quantiles).all()


def test_no_rows_no_forecasts(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    assert loaded.predict(upcoming.head(0)).quantiles.shape == (0, 4, 9)


def test_missing_features_are_named(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    with pytest.raises(UserError, match="lag_4"):
        loaded.predict(upcoming.drop("lag_4"))


def test_both_parts_load(folder: Path, upcoming: pl.DataFrame) -> None:
    best, final = bundle.load(folder, bundle.BEST), bundle.load(folder)
    assert best.digest == final.digest
    assert not np.allclose(best.predict(upcoming).quantiles, final.predict(upcoming).quantiles)


def test_parts_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    def refused(change: Callable[[Path], object], reason: str) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(copy)
        with pytest.raises(UserError, match=reason):
            bundle.load(copy)

    refused(lambda f: (f / "model_final.pt").unlink(), r"not whole: \['model_final.pt'\] missing or of another model")
    refused(
        lambda f: shutil.copy(f / "model_best.pt", f / "model_final.pt"), r"\['model_final.pt'\] missing or of another"
    )
    refused(lambda f: (f / "scalers.json").write_text("{}"), r"\['scalers.json'\] missing or of another")
    refused(lambda f: (f / "model_metadata.json").unlink(), r"model_metadata.json cannot be read .*; train first")
    refused(lambda f: (f / "model_metadata.json").write_text("{"), "cannot be read")
    refused(lambda f: (f / "model_metadata.json").write_text("[]"), "cannot be read")
    metadata = (folder / "model_metadata.json").read_text().replace('"cutoff": "2024-04-26"', '"cutoff": "2024-04-27"')
    refused(lambda f: (f / "model_metadata.json").write_text(metadata), "model_metadata.json was changed or damaged")
    refused(lambda f: (f / "model_metadata.json").write_text('{"format": 9}'), "has format 9, this version reads 1")


def test_finished_means_whole_and_of_this_fit(folder: Path, loaded: Bundle, tmp_path: Path) -> None:
    assert bundle.finished(folder, loaded.metadata.fit_digest)
    assert not bundle.finished(folder, "another")
    assert not bundle.finished(tmp_path, loaded.metadata.fit_digest)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model_final.pt").write_bytes(b"")
    assert not bundle.finished(tmp_path / "copy", loaded.metadata.fit_digest)
    for broken in ("", "{", "[]", '{"format": 1}'):
        (tmp_path / "copy" / "model_metadata.json").write_text(broken)
        assert not bundle.finished(tmp_path / "copy", loaded.metadata.fit_digest), "training mends it"


def test_a_failed_save_leaves_the_earlier_bundle(folder: Path, loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value JSON cannot hold stops the writing before the folder is replaced."""
    weights = (loaded.network.state_dict(), loaded.scaler)
    spoiled = replace(loaded.metadata, metrics={"bad": object()})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        bundle.save(folder, spoiled, final=weights, best=weights)
    assert bundle.load(folder).digest == loaded.digest


def test_the_digest_names_the_content_not_the_time(folder: Path, loaded: Bundle, tmp_path: Path) -> None:
    best = bundle.load(folder, bundle.BEST)
    parts = {"final": (loaded.network.state_dict(), loaded.scaler), "best": (best.network.state_dict(), best.scaler)}
    assert bundle.save(tmp_path / "again", loaded.metadata, **parts) == loaded.digest
    other = replace(loaded.metadata, factors=(1.0, 1.5))
    assert bundle.save(tmp_path / "other", other, **parts) != loaded.digest


def test_what_was_trained_on_is_inside_and_what_is_unlike_it_is_counted(
    loaded: Bundle, training_frame: pl.DataFrame, upcoming: pl.DataFrame
) -> None:
    """Rows whose every horizon was a training sample; then the same with one feature out of all bounds."""
    last = pl.lit(loaded.metadata.cutoff) - pl.duration(weeks=4)
    week = pl.col(schema.TIMESTAMP).dt.date()
    first = pl.col(schema.TIMESTAMP).min().over("store_id", "dept_id").dt.date()
    rows = training_frame.filter((week <= last) & (week >= first + pl.duration(weeks=6)))
    assert rows.height > 100
    assert loaded.predict(rows).outside == {}
    strange = rows.with_columns(pl.col("temperature") + 1000, pl.lit(999, pl.Int32).alias("store_id"))
    outside = loaded.predict(strange).outside
    assert outside["economics:temperature"] == outside["store_id"] == rows.height
    assert set(outside) == {"economics:temperature", "store_id"}
