"""Settings and paths. Environment variables are read here and nowhere else, once, by `settings()`."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from salescast.errors import UserError
from salescast.schema import QUANTILES, SEASON, TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL

REPORTED: Final = (0.1, 0.5, 0.9)  # quantiles that backtest, report and server need


@dataclass(frozen=True)
class Rule:
    """Which values a training setting may have, in words and as a test."""

    allowed: str
    holds: Callable[[Any], bool]


def _is_whole(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(low: int) -> Rule:
    return Rule(f"a whole number, at least {low}", lambda value: _is_whole(value, low))


def _are_quantiles(value: object) -> bool:
    if not isinstance(value, tuple) or not all(_is_real(level) and 0 < level < 1 for level in value):
        return False
    return list(value) == sorted(set(value)) and set(REPORTED) <= set(value)


_SWITCH: Final = Rule("true or false", lambda value: isinstance(value, bool))
_POSITIVE: Final = Rule("a number above 0", lambda value: _is_real(value) and value > 0)
_SHARE: Final = Rule("a number from 0 to below 1", lambda value: _is_real(value) and 0 <= value < 1)
RULES: Final[dict[str, Rule]] = {
    "feature_service": Rule(
        f"{TRAINING_SERVICE_SEASONAL} or {TRAINING_SERVICE}",
        lambda value: value in (TRAINING_SERVICE_SEASONAL, TRAINING_SERVICE),
    ),
    "horizon": Rule(f"a whole number of weeks, 1 to {SEASON}", lambda value: _is_whole(value, 1, SEASON)),
    "quantiles": Rule("increasing numbers between 0 and 1, 0.1, 0.5 and 0.9 among them", _are_quantiles),
    "hidden": Rule(
        "whole numbers, at least 1 each, one for every hidden layer",
        lambda value: isinstance(value, tuple) and bool(value) and all(_is_whole(size, 1) for size in value),
    ),
    "dropout": _SHARE,
    "members": _at_least(1),
    "linear": _SWITCH,
    "epochs": _at_least(1),
    "batch_size": _at_least(2),
    "learning_rate": _POSITIVE,
    "weight_decay": Rule("a number, at least 0", lambda value: _is_real(value) and value >= 0),
    "clip_norm": _POSITIVE,
    "ema": _SHARE,
    "patience": _at_least(0),
    "holdout_weeks": _at_least(1),
    "min_history": _at_least(0),
    "seed": Rule("a whole number, 0 to 4294967295", lambda value: _is_whole(value, 0, 2**32 - 1)),
    "device": Rule("auto, cpu or cuda", lambda value: value in ("auto", "cpu", "cuda")),
    "bf16": _SWITCH,
    "compile": _SWITCH,
}


@dataclass(frozen=True)
class TrainConfig:
    """What a fit depends on besides its data and the code; part of the bundle and of every digest.

    Units: `horizon`, `holdout_weeks`, `min_history` in weeks; `batch_size` in samples per rank. `bf16` and `compile`
    allow what only GPUs use. Raises UserError for a value that a fit cannot have.
    """

    feature_service: str = TRAINING_SERVICE_SEASONAL
    horizon: int = 8
    quantiles: tuple[float, ...] = QUANTILES
    hidden: tuple[int, ...] = (256, 128, 64)
    dropout: float = 0.2
    members: int = 1
    linear: bool = True
    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema: float = 0.99
    patience: int = 0
    holdout_weeks: int = 13
    min_history: int = 4
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bf16: bool = True
    compile: bool = True

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                raise UserError(f"training setting {name} must be {rule.allowed}, got {value!r}; correct it")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict` (lists from JSON become tuples). Raises UserError on an unknown name or value."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"unknown training settings {unknown}; this version knows {[f.name for f in fields(cls)]}")
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**known)


class Settings(BaseSettings):
    """What the environment decides. Every variable a manifest sets is a field of this class."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True)

    workdir: Path = Field(default=Path("shared"), validation_alias="SALESCAST_WORKDIR")
    feature_repo: Path = Field(
        default=Path(__file__).parents[2] / "feature_repo", validation_alias="SALESCAST_FEATURE_REPO"
    )
    feature_store_yaml: str = Field(default="feature_store.yaml", validation_alias="SALESCAST_FEATURE_STORE_YAML")
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    # MLflow's own variable: the authority of a server whose certificate no public one signed.
    mlflow_certificate: Path | None = Field(default=None, validation_alias="MLFLOW_TRACKING_SERVER_CERT_PATH")
    # The git revision an image was built from: there is no repository in it to ask.
    revision: str | None = Field(default=None, validation_alias="SALESCAST_REVISION")
    # Set by build systems: what a person would watch, a line for every epoch, is left out.
    ci: str = Field(default="", validation_alias="CI")
    # The training settings, by the names that TrainConfig has for them. NUM_EPOCHS and BATCH_SIZE are published names.
    epochs: int = Field(default=TrainConfig.epochs, validation_alias="NUM_EPOCHS")
    batch_size: int = Field(default=TrainConfig.batch_size, validation_alias="BATCH_SIZE")
    feature_service: str = Field(default=TrainConfig.feature_service, validation_alias="SALESCAST_FEATURE_SERVICE")
    horizon: int = Field(default=TrainConfig.horizon, validation_alias="SALESCAST_HORIZON")
    quantiles: Annotated[tuple[float, ...], NoDecode] = Field(
        default=TrainConfig.quantiles, validation_alias="SALESCAST_QUANTILES"
    )
    hidden: Annotated[tuple[int, ...], NoDecode] = Field(
        default=TrainConfig.hidden, validation_alias="SALESCAST_HIDDEN"
    )
    dropout: float = Field(default=TrainConfig.dropout, validation_alias="SALESCAST_DROPOUT")
    members: int = Field(default=TrainConfig.members, validation_alias="SALESCAST_MEMBERS")
    linear: bool = Field(default=TrainConfig.linear, validation_alias="SALESCAST_LINEAR")
    learning_rate: float = Field(default=TrainConfig.learning_rate, validation_alias="SALESCAST_LEARNING_RATE")
    weight_decay: float = Field(default=TrainConfig.weight_decay, validation_alias="SALESCAST_WEIGHT_DECAY")
    clip_norm: float = Field(default=TrainConfig.clip_norm, validation_alias="SALESCAST_CLIP_NORM")
    ema: float = Field(default=TrainConfig.ema, validation_alias="SALESCAST_EMA")
    # Epochs without a better WMAPE in the held-out weeks after which training stops; 0: never (docs/LOG.md says why).
    patience: int = Field(default=TrainConfig.patience, validation_alias="SALESCAST_PATIENCE")
    holdout_weeks: int = Field(default=TrainConfig.holdout_weeks, validation_alias="SALESCAST_HOLDOUT_WEEKS")
    min_history: int = Field(default=TrainConfig.min_history, validation_alias="SALESCAST_MIN_HISTORY")
    seed: int = Field(default=TrainConfig.seed, validation_alias="SALESCAST_SEED")
    device: Literal["auto", "cpu", "cuda"] = Field(default=TrainConfig.device, validation_alias="SALESCAST_DEVICE")
    bf16: bool = Field(default=TrainConfig.bf16, validation_alias="SALESCAST_BF16")
    compile: bool = Field(default=TrainConfig.compile, validation_alias="SALESCAST_COMPILE")
    nproc_per_node: int = Field(default=2, ge=1, validation_alias="SALESCAST_NPROC")
    http_port: int = Field(default=8080, ge=1, le=65535, validation_alias="SALESCAST_HTTP_PORT")
    grpc_port: int = Field(default=8081, ge=1, le=65535, validation_alias="SALESCAST_GRPC_PORT")
    # The bundle folder that is served, asked for by name; by default the champion of the registry.
    model_dir: Path | None = Field(default=None, validation_alias="SALESCAST_MODEL_DIR")
    # The model of the registry that is served, whatever version it is; by default models:/sales-forecast@champion.
    model: str | None = Field(default=None, validation_alias="SALESCAST_MODEL")
    # Server processes, which share the ports.
    serve_workers: int = Field(default=1, ge=1, validation_alias="SALESCAST_SERVE_WORKERS")
    # Seconds that the online store has for a read, connecting and retries included.
    online_timeout: float = Field(default=2.0, gt=0, validation_alias="SALESCAST_ONLINE_TIMEOUT")
    # Series in one request, and bytes of its body; more is answered 413.
    max_instances: int = Field(default=5000, ge=1, validation_alias="SALESCAST_MAX_INSTANCES")
    max_body_bytes: int = Field(default=1 << 20, ge=1, validation_alias="SALESCAST_MAX_BODY_BYTES")
    # Series that may wait for their forecasts, and requests a second, in one server process; more is answered 429.
    max_waiting: int = Field(default=50_000, ge=1, validation_alias="SALESCAST_MAX_WAITING")
    max_requests_per_second: float | None = Field(
        default=None, gt=0, validation_alias="SALESCAST_MAX_REQUESTS_PER_SECOND"
    )
    # Seconds between two looks at the bundle folder, or at the registry, for a new model.
    model_poll_seconds: float = Field(default=5.0, gt=0, validation_alias="SALESCAST_MODEL_POLL_SECONDS")
    # Seconds that a server which was told to stop gives to the requests under way.
    shutdown_seconds: int = Field(default=30, ge=1, validation_alias="SALESCAST_SHUTDOWN_SECONDS")
    # Days since the end of the upcoming week after which its features are not served. They are replaced when its sales
    # arrive, a week after the last ones; twice that, so that one late delivery is no outage. `inf` serves history.
    max_feature_age_days: float = Field(default=14.0, gt=0, validation_alias="SALESCAST_MAX_FEATURE_AGE_DAYS")

    @field_validator("quantiles", "hidden", mode="before")
    @classmethod
    def _separated(cls, value: object) -> object:
        """In the environment numbers are separated by commas."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator(*RULES)
    @classmethod
    def _allowed(cls, value: object, info: ValidationInfo) -> object:
        rule = RULES[str(info.field_name)]
        if not rule.holds(value):
            raise ValueError(f"must be {rule.allowed}")
        return value

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        """An address is logged, shown and kept in files."""
        if uri and urlsplit(uri).password:
            raise ValueError("no password may stand in it; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return uri


@cache
def settings() -> Settings:
    """The process's settings. Raises UserError naming the variable that cannot be used."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable, reason = first["loc"][0], first["msg"].removeprefix("Value error, ")
        if variable == "MLFLOW_TRACKING_URI":  # its value is not repeated: there is a password in it
            raise UserError(f"{variable}: {reason}") from None
        raise UserError(f"{variable}: {reason}, got {first['input']!r}; correct or unset the variable") from None


def train_config(
    *, feature_service: str | None = None, horizon: int | None = None, members: int | None = None
) -> TrainConfig:
    """How the command line, the cluster's job and the notebook train: by the settings, and what is given here instead.

    Raises UserError naming the variable or the value that cannot be used.
    """
    given = {"feature_service": feature_service, "horizon": horizon, "members": members}
    values = {name: getattr(settings(), name) for name in RULES}
    return TrainConfig(**values | {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Workdir:
    """Where each stage reads and writes under one root (DESIGN: `/shared` on a cluster, `./shared` on a laptop)."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self.data / "raw"

    @property
    def training(self) -> Path:
        return self.data / "training"

    @property
    def feature_repo(self) -> Path:
        return self.root / "feature_repo"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def champion(self) -> Path:
        """The champion's bundle as it was last fetched from the registry, and which version that is."""
        return self.root / "champion"

    @property
    def fits(self) -> Path:
        """Bundles of the backtest, one folder a cutoff, and checkpoints of fits under way."""
        return self.root / "fits"

    @property
    def plan(self) -> Path:
        """The training plan of the last launch."""
        return self.fits / "plan.json"

    @property
    def backtest(self) -> Path:
        return self.root / "backtest.parquet"

    @property
    def evaluation(self) -> Path:
        """Which data, settings and bundles the backtest was made from."""
        return self.root / "evaluation.json"

    @property
    def forecasts(self) -> Path:
        return self.root / "forecasts.parquet"

    @property
    def drift(self) -> Path:
        """How far the newest weeks' features are from those the model was trained on."""
        return self.data / "drift.parquet"

    @property
    def kept_forecasts(self) -> Path:
        """The forecasts of every upcoming week there was, named by it, to be compared with the sales that followed."""
        return self.root / "forecasts"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def tracking_uri(self) -> str:
        """The embedded MLflow store, used when MLFLOW_TRACKING_URI is not set."""
        return f"sqlite:///{(self.root / 'mlflow.db').resolve()}"

    @property
    def artifacts(self) -> Path:
        return self.root / "mlartifacts"


def workdir_of_repo(repo: Path) -> Workdir:
    """The workdir that a feature repo serves.

    `<workdir>/feature_repo` serves the folder it lies in; the repository's own `feature_repo/` serves
    SALESCAST_WORKDIR (default `shared`, relative to the repository).
    """
    root = repo.resolve().parent
    return Workdir(root if (root / "data").is_dir() else root / settings().workdir)
