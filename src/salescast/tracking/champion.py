"""The champion: the model version behind an alias of the MLflow registry, downloaded as a bundle folder.

It is what serves and forecasts by default.
"""

import json
import logging
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from salescast.config import settings
from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_dir
from salescast.schema import MODEL_NAME
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


logger = logging.getLogger(__name__)

MODEL = re.compile(r"models:/([^/@]+)@([^/@]+)")
CHAMPION: Final = f"models:/{MODEL_NAME}@champion"
BUNDLE: Final = "bundle"
NOTE: Final = "version.json"  # which model and version the bundle beside it is
UNKNOWN: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow: no such model, no such alias


class NoChampionError(UserError):
    """There is no registry, or it has no such model, so there is nothing to serve by default."""


def split(model: str) -> tuple[str, str]:
    """Name and alias of `models:/NAME@ALIAS`. Raises UserError for anything else."""
    found = MODEL.fullmatch(model)
    if found is None:
        raise UserError(f"a model is named like models:/sales-forecast@champion, got {model!r}")
    return found[1], found[2]


def chosen(model: str | None = None, model_dir: Path | None = None) -> str | Path:
    """The model to serve and forecast with: the arguments, else the environment, else the champion.

    A string names a model of the registry, a path a bundle folder.
    """
    return model or model_dir or settings().model or settings().model_dir or CHAMPION


def bundle_folder(workdir: Workdir, model_dir: Path | None = None) -> Path:
    """The bundle folder of the `chosen` model; one of the registry is downloaded to `workdir.champion` first.

    Raises NoChampionError without such a model, UserError when MLflow does not answer and no copy is kept.
    """
    what = chosen(model_dir=model_dir)
    return what if isinstance(what, Path) else keep(workdir, what)


def keep(workdir: Workdir, model: str = CHAMPION) -> Path:
    """Download the bundle of `model` to `workdir.champion`, unless it is there; returns its folder."""
    follower = Follower(model, workdir.champion, workdir)
    follower.fetch_or_copy()
    return follower.bundle


class Follower:
    """Keeps `folder` up to date with the bundle that the alias of `model` names."""

    def __init__(self, model: str, folder: Path, workdir: Workdir) -> None:
        """Raises UserError for a model that is not named as `split` has it, NoChampionError without a registry."""
        from salescast.tracking.mlflow import OFF, tracking_uri, why_off

        self.model, self.folder, self.kept, self.uri = model, folder, workdir.champion, tracking_uri(workdir)
        self.name, self.alias = split(model)
        self.by_name = f"or ask for a bundle by name: --model-dir {workdir.models}, SALESCAST_MODEL_DIR"
        if self.uri == OFF:
            raise NoChampionError(f"{model} is in a registry and {why_off()}, {self.by_name}")
        self._seen: dict[str, str] = {}

    @property
    def bundle(self) -> Path:
        return self.folder / BUNDLE

    @property
    def _source(self) -> dict[str, str]:
        """What a kept copy must be of: a version of another alias may never have won."""
        return {"uri": self.uri, "model": self.model}

    @cached_property
    def _client(self) -> "MlflowClient":
        from salescast.tracking.mlflow import mlflow_client

        return mlflow_client(self.uri)

    def fetch(self) -> None:
        """Download the bundle into the folder, unless it is there.

        Raises NoChampionError when MLflow has no such alias, UserError when it does not answer or has a broken bundle,
        and when the folder cannot be written. The next call repeats a download that did not complete.
        """
        version = self._version()
        wanted = {**self._source, "version": str(version.version), "run_id": str(version.run_id)}
        if self._seen == wanted:
            return
        if not self._seen and _holds(self.folder, wanted):
            self._seen = wanted
            return
        self._bring(version, wanted)
        self._seen = wanted
        logger.info("%s@%s is version %s", self.name, self.alias, version.version)

    def _version(self) -> "ModelVersion":
        none = NoChampionError(
            f"MLflow at {self.uri} has no {self.name}@{self.alias}: no model was better than all others yet; see the "
            f"verdict of `salescast register`, {self.by_name}"
        )
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).exists():
            raise none  # MLflow would make the file
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self._client.get_model_version_by_alias(self.name, self.alias)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if isinstance(error, MlflowException) and error.error_code in UNKNOWN:
                raise none from None
            raise self._refusal(error) from None

    def _bring(self, version: "ModelVersion", wanted: dict[str, str]) -> None:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        from salescast.model import bundle

        try:
            with replace_dir(self.folder) as temporary:
                source = self._client.get_model_version_download_uri(self.name, version.version)
                arrived = download_artifacts(artifact_uri=source, dst_path=str(temporary), tracking_uri=self.uri)
                Path(arrived).replace(temporary / BUNDLE)
                digest = bundle.load(temporary / BUNDLE).digest
                registered = version.tags.get("digest", digest)  # a version that was made by hand has none
                if digest != registered:
                    raise UserError(
                        f"bundle {digest[:12]} of version {version.version} in MLflow at {self.uri} is not the one "
                        f"that was registered ({registered[:12]}); run `salescast register` with that one"
                    )
                (temporary / NOTE).write_text(json.dumps(wanted))
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(f"MLflow at {self.uri} does not give {self.model}: {reason[:300]}; {self.by_name}")

    def fetch_or_copy(self) -> None:
        """`fetch`; if that fails, log it and use the copy that the workdir keeps, if it is of the same model."""
        from salescast.tracking.mlflow import check

        try:
            if self.uri.startswith("http"):
                check(self.uri, attempts=1)  # MLflow's own client waits for minutes
            self.fetch()
        except NoChampionError:
            raise
        except UserError as error:
            known = _note(self.kept)
            if not self._source.items() <= known.items() or not _holds(self.kept, known):
                raise
            if self.kept != self.folder:
                with replace_dir(self.folder) as temporary:
                    shutil.copytree(self.kept, temporary, dirs_exist_ok=True)
            logger.warning("version %s, kept in %s, goes on: %s", known["version"], self.kept, error)


def _note(folder: Path) -> dict[str, str]:
    """The version in `folder`; {} if unknown."""
    try:
        found = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _holds(folder: Path, wanted: dict[str, str]) -> bool:
    """Whether the folder has the complete bundle of this version."""
    from salescast.model import bundle

    return bool(wanted) and _note(folder) == wanted and bundle.is_complete(folder / BUNDLE)
