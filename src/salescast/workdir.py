"""Paths of the files that a pipeline writes."""

from dataclasses import dataclass
from pathlib import Path

from salescast.config import settings


@dataclass(frozen=True)
class Workdir:
    """Paths of every stage under one root: `/shared` on a cluster, `./shared` on one machine by default."""

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
        """The champion's bundle as last fetched from the registry, and its version."""
        return self.root / "champion"

    @property
    def fits(self) -> Path:
        """Bundles of the backtest, one folder per cutoff, and checkpoints of unfinished fits."""
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
        """The manifest of the backtest: the data, settings and bundles it was made from."""
        return self.root / "evaluation.json"

    @property
    def forecasts(self) -> Path:
        return self.root / "forecasts.parquet"

    @property
    def drift(self) -> Path:
        """The drift of the newest weeks' features from those of the training set."""
        return self.data / "drift.parquet"

    @property
    def kept_forecasts(self) -> Path:
        """Forecasts named by their first week, to be compared with the sales that follow."""
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
    """The workdir of a feature repo.

    `<workdir>/feature_repo` belongs to its parent folder; the repository's own `feature_repo/` belongs to
    SALESCAST_WORKDIR (default `shared`, relative to the repository).
    """
    root = repo.resolve().parent
    return Workdir(root if (root / "data").is_dir() else root / settings().workdir)
