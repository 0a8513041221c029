"""Settings come from the environment, once, and say what is wrong with them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.config import Settings, TrainConfig, Workdir, settings, workdir_of_repo
from salescast.errors import UserError


@pytest.fixture(autouse=True)
def _fresh_settings():
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_the_published_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUM_EPOCHS", "3")
    monkeypatch.setenv("BATCH_SIZE", "64")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    found = settings()
    assert (found.num_epochs, found.batch_size, found.mlflow_tracking_uri) == (3, 64, "http://mlflow:5000")


@pytest.mark.parametrize(
    ("name", "value"), [("NUM_EPOCHS", "many"), ("NUM_EPOCHS", "0"), ("SALESCAST_HTTP_PORT", "70000")]
)
def test_a_variable_that_cannot_be_used_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: .*got '{value}'; correct or unset the variable$"):
        settings()


def test_every_setting_has_a_name_in_the_environment() -> None:
    assert all(isinstance(field.validation_alias, str) for field in Settings.model_fields.values())


def test_a_repo_serves_the_workdir_it_lies_in_else_the_configured_one(
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
