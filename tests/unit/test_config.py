"""Settings are read from the environment once, and invalid ones are named."""

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from salescast.cli import app
from salescast.config import Settings, read, settings
from salescast.data import dataset
from salescast.errors import UserError
from salescast.model.config import TrainConfig, TrainingSettings, train_config
from salescast.pipeline import stages
from salescast.workdir import Workdir, workdir_of_repo

# A value of every training setting other than its default: as a variable, and parsed.
CHOSEN: dict[str, tuple[str, Any]] = {
    "feature_service": ("training_features", "training_features"),
    "horizon": ("13", 13),
    "quantiles": ("0.1, 0.5, 0.9", (0.1, 0.5, 0.9)),
    "hidden": ("32,16", (32, 16)),
    "dropout": ("0.1", 0.1),
    "linear": ("false", False),
    "epochs": ("7", 7),
    "batch_size": ("64", 64),
    "learning_rate": ("1e-3", 1e-3),
    "weight_decay": ("0", 0.0),
    "clip_norm": ("2", 2.0),
    "ema": ("0.5", 0.5),
    "patience": ("4", 4),
    "holdout_weeks": ("6", 6),
    "min_history": ("8", 8),
    "seed": ("1", 1),
    "device": ("cpu", "cpu"),
    "bf16": ("1", True),
    "compile": ("1", True),
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fresh_settings():
    read.cache_clear()
    yield
    read.cache_clear()


def test_the_published_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUM_EPOCHS", "3")
    monkeypatch.setenv("BATCH_SIZE", "64")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    config = train_config()
    assert (config.epochs, config.batch_size, settings().mlflow_tracking_uri) == (3, 64, "http://mlflow:5000")


def variable(setting: str) -> str:
    return str(TrainingSettings.model_fields[setting].validation_alias)


@pytest.fixture
def everything_chosen(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    for name, (text, _) in CHOSEN.items():
        monkeypatch.setenv(variable(name), text)
    return TrainConfig(**{name: value for name, (_, value) in CHOSEN.items()})


def test_every_training_setting_can_be_given_by_environment(everything_chosen: TrainConfig) -> None:
    defaults = TrainConfig()
    assert all(getattr(everything_chosen, field.name) != getattr(defaults, field.name) for field in fields(TrainConfig))
    assert train_config() == everything_chosen
    named = train_config(horizon=2, feature_service="training_features_seasonal")
    assert (named.horizon, named.feature_service) == (2, "training_features_seasonal")


def test_without_variables_the_defaults_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOSEN:
        monkeypatch.delenv(variable(name), raising=False)
    assert train_config() == TrainConfig()


def test_commands_and_the_clusters_job_use_the_settings(
    everything_chosen: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record the configuration that each of them passes to the pipeline."""
    configurations: list[Any] = []
    monkeypatch.setattr(stages, "features_stage", lambda work, raw, horizon: configurations.append(horizon))
    monkeypatch.setattr(stages, "train_stage", lambda work, config, *rest, **more: configurations.append(config))
    monkeypatch.setattr(stages, "backtest_stage", lambda *rest: None)
    monkeypatch.setattr(stages, "register_stage", lambda *rest: None)
    dataset.generate(tmp_path / "data", 1, 1, 120, 1)
    monkeypatch.setenv("SALESCAST_WORKDIR", str(tmp_path))
    for command in ("features", "train"):
        CliRunner().invoke(app.app, [command])  # fails when it displays the missing result
    script = ROOT / "manifests" / "scripts" / "train_ddp.py"
    spec = importlib.util.spec_from_file_location("train_ddp", script)
    assert spec and spec.loader
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    assert job.main() == 0
    assert configurations == [everything_chosen.horizon, everything_chosen, everything_chosen]


@pytest.mark.parametrize("notebook", ["01-feast-features", "02-training"])
def test_notebooks_use_the_settings(notebook: str) -> None:
    text = (ROOT / "notebooks" / f"{notebook}.ipynb").read_text()
    assert "TrainConfig(" not in text and "horizon=" not in text
    assert "train_config()" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("feature_service", "inference_features"),
        ("horizon", 0),
        ("horizon", 53),
        ("horizon", "8"),
        ("quantiles", (0.1, 0.9)),
        ("quantiles", (0.1, 0.5, 0.9, 0.8)),
        ("quantiles", (0.0, 0.1, 0.5, 0.9)),
        ("quantiles", (0.1, 0.5, 0.9, 1.0)),
        ("quantiles", (0.1, 0.5, 0.5, 0.9)),
        ("quantiles", 0.5),
        ("hidden", ()),
        ("hidden", (16, 0)),
        ("dropout", 1.0),
        ("linear", "no"),
        ("epochs", 0),
        ("batch_size", 1),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1),
        ("clip_norm", 0.0),
        ("ema", 1.5),
        ("patience", -1),
        ("holdout_weeks", 0),
        ("min_history", -1),
        ("seed", -1),
        ("device", "gpu"),
        ("bf16", 1),
        ("compile", None),
    ],
)
def test_an_invalid_training_setting_is_refused_when_given(name: str, value: Any) -> None:
    with pytest.raises(UserError) as refused:
        TrainConfig.from_dict({name: value})
    assert str(refused.value).startswith(f"training setting {name} must be ")
    assert f", got {value!r}; " in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUM_EPOCHS", "many"),
        ("NUM_EPOCHS", "0"),
        ("SALESCAST_HTTP_PORT", "70000"),
        ("SALESCAST_QUANTILES", "0.1,0.9"),
        ("SALESCAST_HORIZON", "53"),
        ("SALESCAST_DEVICE", "gpu"),
    ],
)
def test_an_invalid_variable_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: .*got '{value}'; correct or unset the variable$"):
        settings()
        train_config()


def test_every_setting_has_an_environment_variable() -> None:
    assert all(
        isinstance(field.validation_alias, str)
        for kind in (Settings, TrainingSettings)
        for field in kind.model_fields.values()
    )


def test_a_feature_repo_belongs_to_its_parent_or_to_the_configured_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SALESCAST_WORKDIR", raising=False)
    assert workdir_of_repo(tmp_path / "feature_repo") == Workdir(tmp_path / "shared")
    (tmp_path / "data").mkdir()
    assert workdir_of_repo(tmp_path / "feature_repo") == Workdir(tmp_path)


@given(st.integers(1, 52), st.lists(st.integers(1, 512), min_size=1).map(tuple), st.floats(0, 0.9))
def test_a_training_configuration_survives_json(horizon: int, hidden: tuple[int, ...], dropout: float) -> None:
    import json

    config = TrainConfig(horizon=horizon, hidden=hidden, dropout=dropout)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_training_setting_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown training settings \['epoch'\]; this version knows \["):
        TrainConfig.from_dict({"epoch": 3})
