"""Settings from environment variables, read once per process. Training settings are in `model.config`."""

from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from salescast.errors import UserError


class Settings(BaseSettings):
    """Settings of a process. Every variable that a manifest sets is a field of this class."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True)

    workdir: Path = Field(default=Path("shared"), validation_alias="SALESCAST_WORKDIR")
    feature_repo: Path = Field(
        default=Path(__file__).parent / "feature_store" / "feature_repo", validation_alias="SALESCAST_FEATURE_REPO"
    )
    feature_store_yaml: str = Field(default="feature_store.yaml", validation_alias="SALESCAST_FEATURE_STORE_YAML")
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    # MLflow's own variable: the CA certificate of a server whose certificate is not signed by a public CA.
    mlflow_certificate: Path | None = Field(default=None, validation_alias="MLFLOW_TRACKING_SERVER_CERT_PATH")
    # The git revision an image was built from; the image has no repository.
    revision: str | None = Field(default=None, validation_alias="SALESCAST_REVISION")
    # Log every epoch of training where there is no terminal; `salescast -v` sets it.
    verbose: bool = Field(default=False, validation_alias="SALESCAST_VERBOSE")
    nproc_per_node: int = Field(default=2, ge=1, validation_alias="SALESCAST_NPROC")
    http_port: int = Field(default=8080, ge=1, le=65535, validation_alias="SALESCAST_HTTP_PORT")
    grpc_port: int = Field(default=8081, ge=1, le=65535, validation_alias="SALESCAST_GRPC_PORT")
    # A bundle folder to serve instead of the champion.
    model_dir: Path | None = Field(default=None, validation_alias="SALESCAST_MODEL_DIR")
    # The registry alias to serve; by default models:/sales-forecast@champion.
    model: str | None = Field(default=None, validation_alias="SALESCAST_MODEL")
    # Names and addresses of the pages beside the server, for its start page; `salescast up` sets it, and the server
    # then shows the workdir's report too.
    pages: dict[str, str] = Field(default={}, validation_alias="SALESCAST_PAGES")
    # Number of server processes; they share the ports.
    serve_workers: int = Field(default=1, ge=1, validation_alias="SALESCAST_SERVE_WORKERS")
    # Timeout of a read from the online store in seconds, including connecting and retries.
    online_timeout: float = Field(default=2.0, gt=0, validation_alias="SALESCAST_ONLINE_TIMEOUT")
    # Most series and bytes of one request; larger requests get 413.
    max_instances: int = Field(default=5000, ge=1, validation_alias="SALESCAST_MAX_INSTANCES")
    max_body_bytes: int = Field(default=1 << 20, ge=1, validation_alias="SALESCAST_MAX_BODY_BYTES")
    # Most waiting series, and requests per second, of one server process; more requests get 429.
    max_waiting: int = Field(default=50_000, ge=1, validation_alias="SALESCAST_MAX_WAITING")
    max_requests_per_second: float | None = Field(
        default=None, gt=0, validation_alias="SALESCAST_MAX_REQUESTS_PER_SECOND"
    )
    # Seconds between two checks of the bundle folder or the registry for a new model.
    model_poll_seconds: float = Field(default=5.0, gt=0, validation_alias="SALESCAST_MODEL_POLL_SECONDS")
    # Seconds that a stopping server gives to pending requests.
    shutdown_seconds: int = Field(default=30, ge=1, validation_alias="SALESCAST_SHUTDOWN_SECONDS")
    # Features are not served more than this many days after the end of their week. New ones come every 7 days; 14
    # tolerates one late delivery. `inf` also serves old data.
    max_feature_age_days: float = Field(default=14.0, gt=0, validation_alias="SALESCAST_MAX_FEATURE_AGE_DAYS")

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        """Refuse a password: the address is logged, displayed and stored."""
        if uri and urlsplit(uri).password:
            raise ValueError("it must not contain a password; use MLFLOW_TRACKING_USERNAME and _PASSWORD instead")
        return uri


Kind = TypeVar("Kind", bound=BaseSettings)


@cache
def read(kind: type[Kind]) -> Kind:
    """The settings of one kind, read once per process. Raises UserError naming an invalid variable."""
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        variable, reason = first["loc"][0], first["msg"].removeprefix("Value error, ")
        if variable == "MLFLOW_TRACKING_URI":  # do not repeat its value: it contains a password
            raise UserError(f"{variable}: {reason}") from None
        raise UserError(f"{variable}: {reason}, got {first['input']!r}; correct or unset the variable") from None


def settings() -> Settings:
    """The settings of the process. Raises UserError naming an invalid variable."""
    values: Settings = read(Settings)
    return values
