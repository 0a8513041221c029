"""The model that an alias of the MLflow registry names, kept as a bundle folder beside the server.

`python -m salescast.champion MODEL FOLDER WORKDIR` runs as a process of its own, which spares the server MLflow's
import and its outages: the server looks at FOLDER/bundle as at any other bundle.
"""

import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path

from salescast.config import Workdir, settings
from salescast.errors import UserError

logger = logging.getLogger(__name__)

MODEL = re.compile(r"models:/([^/@]+)@([^/@]+)")
BUNDLE = "bundle"  # as a training logs it in its run


def split(model: str) -> tuple[str, str]:
    """Name and alias of `models:/NAME@ALIAS`. Raises UserError for anything else."""
    found = MODEL.fullmatch(model)
    if found is None:
        raise UserError(f"a model is named like models:/sales-forecast@champion, got {model!r}")
    return found[1], found[2]


class Follower:
    """Keeps in `folder` the bundle that the alias of `model` names."""

    def __init__(self, model: str, folder: Path, workdir: Workdir) -> None:
        """Raises UserError for a model that is not named as `split` has it, and without a registry."""
        from salescast.registry import mlflow_client, tracking_uri

        self.name, self.alias = split(model)
        self.folder, self.uri = folder, tracking_uri(workdir)
        if self.uri == "off":
            raise UserError(f"{model} is in a registry and MLFLOW_TRACKING_URI is off; set it, or give --model-dir")
        self.client, self.seen = mlflow_client(self.uri), ""

    def fetch(self) -> None:
        """Bring the bundle into the folder if it is another one than before.

        Raises UserError when MLflow does not answer, has no such alias or a broken bundle; each bundle is tried once.
        """
        from mlflow.exceptions import MlflowException

        from salescast import bundle
        from salescast.files import replace_dir

        try:
            version = self.client.get_model_version_by_alias(self.name, self.alias)
            if version.version == self.seen:
                return
            with replace_dir(self.folder) as temporary:
                self.client.download_artifacts(version.run_id, BUNDLE, str(temporary))
                self.seen = version.version
                bundle.load(temporary / BUNDLE)
        except (MlflowException, OSError) as error:
            raise UserError(f"MLflow at {self.uri} has no {self.name}@{self.alias} to give: {error}") from None
        logger.warning("%s@%s is version %s", self.name, self.alias, version.version)

    def follow(self) -> None:
        """Look every `SALESCAST_MODEL_POLL_SECONDS`, and on SIGHUP, until the parent process is gone."""
        parent, told, wake = os.getppid(), "", threading.Event()
        signal.signal(signal.SIGHUP, lambda *_: wake.set())
        while os.getppid() == parent:
            wake.wait(settings().model_poll_seconds)
            wake.clear()
            try:
                self.fetch()
                told = ""
            except UserError as error:
                if str(error) != told:
                    logger.error("the model in place goes on serving: %s", error)
                told = str(error)


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    model, folder, root = arguments
    try:
        follower = Follower(model, Path(folder), Workdir(Path(root)))
        if not follower.folder.exists():  # it does after a restart
            follower.fetch()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    follower.follow()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
