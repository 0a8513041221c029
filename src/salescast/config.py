"""Settings. Environment variables are read once: here, and those of a training in
`model.config`.
"""

from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from salescast.errors import UserError


class Settings(BaseSettings):
    """What the environment decides. Every variable a manifest sets is a field of this class."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True)

    workdir: Path = Field(default=Path("shared"), validation_alias="SALESCAST_WORKDIR")
    feature_repo: Path = Field(
        default=Path(__file__).parent / "feature_store" / "feature_repo", validation_alias="SALESCAST_FEATURE_REPO"
    )
    feature_store_yaml: str = Field(default="feature_store.yaml", validation_alias="SALESCAST_FEATURE_STORE_YAML")
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    # MLflow's own variable: the authority of a server whose certificate no public one signed.
    mlflow_certificate: Path | None = Field(default=None, validation_alias="MLFLOW_TRACKING_SERVER_CERT_PATH")
    # The git revision an image was built from: there is no repository in it to ask.
    revision: str | None = Field(default=None, validation_alias="SALESCAST_REVISION")
    # Set by build systems: what a person would watch, a line for every epoch, is left out.
    ci: str = Field(default="", validation_alias="CI")
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

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        """An address is logged, shown and kept in files."""
        if uri and urlsplit(uri).password:
            raise ValueError("no password may stand in it; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return uri


Kind = TypeVar("Kind", bound=BaseSettings)


@cache
def read(kind: type[Kind]) -> Kind:
    """The process's settings of one kind, read once. Raises UserError naming the variable that cannot be used."""
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        variable, reason = first["loc"][0], first["msg"].removeprefix("Value error, ")
        if variable == "MLFLOW_TRACKING_URI":  # its value is not repeated: there is a password in it
            raise UserError(f"{variable}: {reason}") from None
        raise UserError(f"{variable}: {reason}, got {first['input']!r}; correct or unset the variable") from None


def settings() -> Settings:
    """The process's settings. Raises UserError naming the variable that cannot be used."""
    found: Settings = read(Settings)
    return found
