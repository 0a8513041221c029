"""Repeat a run from its record in a temporary folder, and compare the results."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from salescast.data import dataset
from salescast.errors import UserError
from salescast.feature_store import repo, retrieval
from salescast.model.metadata import METADATA, read_metadata
from salescast.pipeline import stages
from salescast.tracking import run_record
from salescast.tracking.mlflow import OFF, require_tracking, run_artifacts, tracking_uri
from salescast.tracking.run_record import Record
from salescast.training import launch
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

LOCAL: Final = "feature_store.yaml"  # embedded stores, so that no shared store is changed
BUNDLE: Final = "bundle digest"


@dataclass(frozen=True)
class Comparison:
    """One property of the run, as recorded and now."""

    what: str
    recorded: str
    now: str

    @property
    def same(self) -> bool:
        return self.recorded == self.now


def compare(recorded: Record, now: Record, digests: tuple[str, str]) -> list[Comparison]:
    """Compare two records property by property, and last the digests of their bundles."""
    names = (
        "dataset_digest", "data_digest", "code_digest", "git_revision", "constraints_digest", "python", "processes",
    )  # fmt: skip
    pairs = [(name.replace("_", " "), getattr(recorded, name), getattr(now, name)) for name in names]
    pairs += [
        (f"hardware: {name}", recorded.hardware.get(name), now.hardware.get(name))
        for name in sorted({*recorded.hardware, *now.hardware})
    ]
    return [Comparison(what, str(old), str(new)) for what, old, new in [*pairs, (BUNDLE, *digests)]]


def reproduce(work: Workdir, run_id: str, raw: Path) -> list[Comparison]:
    """Make features, training set and bundle of an MLflow run again from the dataset folder `raw`, and compare.

    Everything is made in a temporary folder of the workdir. Raises UserError when the run, its record or its dataset
    is missing.
    """
    recorded, digest = read_run(work, run_id)
    present = dataset.Dataset.read(raw).digest
    if present != recorded.dataset_digest:
        raise UserError(
            f"run {run_id} was made from dataset {recorded.dataset_digest}, {raw} holds {present}; "
            "name the folder of that dataset with --data"
        )
    with tempfile.TemporaryDirectory(prefix=".reproduce.", suffix=".partial", dir=work.root) as folder:
        scratch = Workdir(Path(folder))
        stages.features_stage(scratch, raw, recorded.config.horizon)
        repo.apply(scratch, LOCAL)
        training = retrieval.retrieve(scratch, recorded.config.feature_service, LOCAL)
        plan = Plan(
            training=training,
            data_digest=training.name,
            country=recorded.country,
            config=recorded.config,
            fits=(Fit(stages.FINAL_FIT, recorded.cutoff, scratch.models),),
            checkpoints=scratch.fits / "checkpoints",
            dataset_digest=present,
        )
        launch.train(plan, scratch.plan, recorded.processes)
        made = read_metadata(scratch.models).digest
    return compare(recorded, plan.record(recorded.processes), (digest, made))


def read_run(work: Workdir, run_id: str) -> tuple[Record, str]:
    """The record of a run and the digest of its bundle, from MLflow. Raises UserError."""
    require_tracking()
    uri = tracking_uri(work)
    if uri == OFF:
        raise UserError("tracking is switched off: there are no runs to reproduce; set MLFLOW_TRACKING_URI")
    names = (f"{run_record.FOLDER}/{run_record.NAME}", f"bundle/{METADATA}")
    with run_artifacts(uri, run_id, names) as (record, metadata):
        return Record.read(record), read_metadata(metadata.parent).digest
