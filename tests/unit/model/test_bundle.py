"""Bundles: files, forecasts, damage, and earlier formats."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from salescast import schema
from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.bundle import Bundle
from salescast.model.inputs import Inputs, build
from salescast.model.metadata import METADATA
from salescast.retail_calendar import calendar
from salescast.runtime.checksums import sha256
from salescast.training.main import run_plan
from salescast.training.plan import Plan


@pytest.fixture(scope="module")
def folder(module_plan_of: Callable[..., Plan]) -> Path:
    plan = module_plan_of(epochs=3)
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
    np.testing.assert_allclose(
        forecast.mean, 0.3 * forecast.at(0.1) + 0.4 * forecast.at(0.5) + 0.3 * forecast.at(0.9), rtol=1e-9
    )


def test_a_forecast_is_the_calibrated_network_output(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    """Row by row with plain arithmetic, independent of the other rows of the call."""
    lower, upper = 0.9, 1.4
    model = replace(loaded, metadata=replace(loaded.metadata, factors=(lower, upper), shrinkage=0.75))
    together = model.predict(upcoming).quantiles
    for i in range(0, 18, 5):
        row = upcoming[i]
        inputs = build(row, schema.TRAINING_SERVICE, 4, calendar("US"))
        for h in range(4):
            numeric = torch.from_numpy(np.concatenate([inputs.base[0], inputs.step[0, h]]))[None]
            codes = torch.cat([model.scaler.encode(inputs)[0], model.scaler.horizons(4)[h : h + 1]])[None]
            with torch.no_grad():
                raw = model.network(numeric, codes).double().mean(dim=1)[0].numpy()
            wide = 0.75 * raw[4] + (raw - raw[4]) * np.where(np.arange(9) < 4, lower, upper)
            expected = inputs.anchor[0, h] + inputs.unit[0, h] * wide
            assert np.allclose(together[i, h], expected, rtol=1e-6)
    assert np.allclose(model.predict(upcoming[3:4]).quantiles, together[3:4], rtol=1e-6)
    many = pl.concat([upcoming] * 200)  # several forward passes
    assert np.allclose(model.predict(many).quantiles[-18:], together, rtol=1e-6)


def test_no_forecast_is_below_the_floor_of_its_series(
    loaded: Bundle, upcoming: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = np.where(np.arange(upcoming.height) % 2, 0.0, -np.inf)
    level = loaded.predict(upcoming).at(0.5).mean()

    def lowered(*arguments: Any) -> Inputs:
        inputs = build(*arguments)
        return replace(inputs, anchor=inputs.anchor - level, floor=floor)

    plain = loaded.predict(upcoming).quantiles - level
    monkeypatch.setattr(bundle, "build", lowered)
    found = loaded.predict(upcoming).quantiles
    assert (plain[1::2] < 0).any() and (plain[::2] < 0).any()
    assert np.allclose(found[::2], plain[::2])
    assert np.allclose(found[1::2], np.maximum(plain[1::2], 0))


def test_a_shorter_horizon_gives_the_first_weeks(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    two, four = loaded.predict(upcoming, 2), loaded.predict(upcoming)
    assert np.allclose(two.quantiles, four.quantiles[:, :2], rtol=1e-6)
    assert np.array_equal(two.weeks, four.weeks[:, :2])


@pytest.mark.parametrize("horizon", [0, 5, -1])
def test_a_horizon_beyond_that_of_training_is_refused(loaded: Bundle, upcoming: pl.DataFrame, horizon: int) -> None:
    with pytest.raises(UserError, match=f"horizon must be 1 to 4 weeks for this model, got {horizon}"):
        loaded.predict(upcoming, horizon)


def test_unknown_stores_get_a_finite_forecast(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    changed = upcoming.with_columns(
        pl.lit(999, pl.Int32).alias("store_id"),
        pl.lit(None, pl.String).alias("region"),
        pl.lit(None, pl.Int64).alias("store_size"),
    )
    assert np.isfinite(loaded.predict(changed).quantiles).all()


def test_no_rows_give_no_forecasts(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    assert loaded.predict(upcoming.head(0)).quantiles.shape == (0, 4, 9)


def test_missing_features_are_named(loaded: Bundle, upcoming: pl.DataFrame) -> None:
    with pytest.raises(UserError, match="lag_4"):
        loaded.predict(upcoming.drop("lag_4"))


def test_both_parts_load(folder: Path, upcoming: pl.DataFrame) -> None:
    best, final = bundle.load(folder, bundle.BEST), bundle.load(folder)
    assert best.digest == final.digest
    assert not np.allclose(best.predict(upcoming).quantiles, final.predict(upcoming).quantiles)


def test_missing_damaged_and_mixed_files_are_refused(folder: Path, tmp_path: Path) -> None:
    def refused(change: Callable[[Path], object], reason: str) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(copy)
        with pytest.raises(UserError, match=reason):
            bundle.load(copy)

    refused(
        lambda f: (f / "model_final.pt").unlink(), r"not complete: \['model_final.pt'\] missing or of another model"
    )
    refused(
        lambda f: shutil.copy(f / "model_best.pt", f / "model_final.pt"), r"\['model_final.pt'\] missing or of another"
    )
    refused(lambda f: (f / "scalers.json").write_text("{}"), r"\['scalers.json'\] missing or of another")
    refused(
        lambda f: (f / "model_metadata.json").unlink(),
        r"model_metadata.json cannot be read .*; run `salescast train` first",
    )
    refused(lambda f: (f / "model_metadata.json").write_text("{"), "cannot be read")
    refused(lambda f: (f / "model_metadata.json").write_text("[]"), "cannot be read")
    metadata = (folder / "model_metadata.json").read_text().replace('"cutoff": "2024-04-26"', '"cutoff": "2024-04-27"')
    refused(lambda f: (f / "model_metadata.json").write_text(metadata), "is damaged: model_metadata.json was changed")
    refused(
        lambda f: (f / "model_metadata.json").write_text('{"format": 9}'),
        "has format 9, this version reads 1 and 2; run `salescast train`",
    )
    refused(lambda f: (f / "model_metadata.json").write_text('{"format": 2}'), "is damaged: .*; run `salescast train`")


def format_1(folder: Path, target: Path, members: int = 1) -> Path:
    """A copy of the bundle as version 0.1 wrote it: `trust` and `seal`, `members`, weights with a leading dimension."""
    shutil.copytree(folder, target)
    values = json.loads((folder / METADATA).read_text())
    del values["checksum"]
    values |= {"format": 1, "trust": values.pop("shrinkage")}
    values["config"]["members"] = members
    for name in (bundle.FINAL, bundle.BEST):
        weights = torch.load(folder / name, weights_only=True)
        for key, value in weights.items():
            if key.startswith(("weights", "heads", "biases")):
                weights[key] = value.reshape(1, -1, value.shape[-1])
        torch.save(weights, target / name)
        values["files"][name] = sha256(target / name)
    seal = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (target / METADATA).write_text(json.dumps(values | {"seal": seal}, indent=1))
    return target


def test_a_bundle_of_format_1_loads(folder: Path, loaded: Bundle, upcoming: pl.DataFrame, tmp_path: Path) -> None:
    old = format_1(folder, tmp_path / "old")
    found = bundle.load(old)
    assert (found.metadata, found.digest) == (loaded.metadata, loaded.digest)
    assert np.array_equal(found.predict(upcoming).quantiles, loaded.predict(upcoming).quantiles)
    changed = (old / METADATA).read_text().replace('"trust": ', '"trust": -')
    (old / METADATA).write_text(changed)
    with pytest.raises(UserError, match=r"is damaged: model_metadata.json was changed"):
        bundle.load(old)


def test_an_ensemble_of_format_1_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it is an ensemble of 3 networks, .*; run `salescast train`"):
        bundle.load(format_1(folder, tmp_path / "old", members=3))


def test_finished_means_complete_and_of_this_fit(folder: Path, loaded: Bundle, tmp_path: Path) -> None:
    assert bundle.is_finished(folder, loaded.metadata.fit_digest)
    assert not bundle.is_finished(folder, "another")
    assert not bundle.is_finished(tmp_path, loaded.metadata.fit_digest)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model_final.pt").write_bytes(b"")
    assert not bundle.is_finished(tmp_path / "copy", loaded.metadata.fit_digest)
    for broken in ("", "{", "[]", '{"format": 1}', '{"format": 2}'):
        (tmp_path / "copy" / "model_metadata.json").write_text(broken)
        assert not bundle.is_finished(tmp_path / "copy", loaded.metadata.fit_digest), "training replaces it"


def test_a_failed_save_leaves_the_earlier_bundle(folder: Path, loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that JSON cannot hold raises before the folder is replaced."""
    weights = (loaded.network.state_dict(), loaded.scaler)
    spoiled = replace(loaded.metadata, metrics={"bad": object()})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        bundle.save(folder, spoiled, final=weights, best=weights)
    assert bundle.load(folder).digest == loaded.digest


def test_the_digest_depends_on_the_content_and_not_on_the_time(folder: Path, loaded: Bundle, tmp_path: Path) -> None:
    best = bundle.load(folder, bundle.BEST)
    parts = {"final": (loaded.network.state_dict(), loaded.scaler), "best": (best.network.state_dict(), best.scaler)}
    assert bundle.save(tmp_path / "again", loaded.metadata, **parts) == loaded.digest
    other = replace(loaded.metadata, factors=(1.0, 1.5))
    assert bundle.save(tmp_path / "other", other, **parts) != loaded.digest


def test_training_rows_are_inside_the_training_range_and_others_are_counted(
    loaded: Bundle, training_frame: pl.DataFrame, upcoming: pl.DataFrame
) -> None:
    """Rows with every horizon among the training samples; then the same with values outside the range."""
    last = pl.lit(loaded.metadata.cutoff) - pl.duration(weeks=4)
    week = pl.col(schema.TIMESTAMP).dt.date()
    first = pl.col(schema.TIMESTAMP).min().over("store_id", "dept_id").dt.date()
    rows = training_frame.filter((week <= last) & (week >= first + pl.duration(weeks=6)))
    assert rows.height > 100
    assert loaded.predict(rows).outside == {}
    changed = rows.with_columns(pl.col("temperature") + 1000, pl.lit(999, pl.Int32).alias("store_id"))
    outside = loaded.predict(changed).outside
    assert outside["economics:temperature"] == outside["store_id"] == rows.height
    assert set(outside) == {"economics:temperature", "store_id"}
