"""Paths of everything that a pipeline writes."""

from dataclasses import dataclass
from pathlib import Path

from salescast.config import settings


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
