"""Settings and paths. Environment variables are read here and nowhere else, once, by `settings()`."""

from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from salescast.errors import UserError
from salescast.schema import QUANTILES, TRAINING_SERVICE_SEASONAL


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
    num_epochs: int = Field(default=20, ge=1, validation_alias="NUM_EPOCHS")
    batch_size: int = Field(default=512, ge=2, validation_alias="BATCH_SIZE")
    # Epochs without a better WMAPE in the held-out weeks after which training stops; 0: never (docs/LOG.md says why).
    patience: int = Field(default=0, ge=0, validation_alias="SALESCAST_PATIENCE")
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
    # Not checked unless set: history that is served for a demonstration may be years old.
    max_feature_age_days: float | None = Field(default=None, gt=0, validation_alias="SALESCAST_MAX_FEATURE_AGE_DAYS")

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
        if first["loc"][0] == "MLFLOW_TRACKING_URI":
            raise UserError(f"MLFLOW_TRACKING_URI: {first['msg'].removeprefix('Value error, ')}") from None
        variable = first["loc"][0]
        raise UserError(f"{variable}: {first['msg']}, got {first['input']!r}; correct or unset the variable") from None


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


@dataclass(frozen=True)
class TrainConfig:
    """What a fit depends on besides its data; part of the bundle and of every digest.

    Units: `horizon`, `holdout_weeks`, `min_history` in weeks; `batch_size` in samples per rank.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict` (lists from JSON become tuples). Raises UserError on an unknown name."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"unknown training settings {unknown}; this version knows {[f.name for f in fields(cls)]}")
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**known)
