"""Keeps the bundle folder of a server up to date with an alias of the MLflow registry.

`python -m salescast.serving.alias_follower MODEL FOLDER WORKDIR` is a process of its own, so that the server neither
imports MLflow nor waits for it: the server watches FOLDER/bundle as any other bundle. With `--once` it fetches once.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from salescast.config import settings
from salescast.errors import UserError
from salescast.tracking.champion import Follower
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)

ONCE: Final = "--once"


def follow(follower: Follower) -> None:
    """Look every `SALESCAST_MODEL_POLL_SECONDS`, and on SIGHUP, until the parent process is gone."""
    parent, reported, wake = os.getppid(), "", threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: wake.set())
    while os.getppid() == parent:
        wake.wait(settings().model_poll_seconds)
        wake.clear()
        try:
            follower.fetch()
            reported = ""
        except UserError as error:
            if str(error) != reported:
                logger.error("keeping the current model: %s", error)
            reported = str(error)


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    model, folder, root, *once = arguments
    try:
        follower = Follower(model, Path(folder), Workdir(Path(root)))
        if once:
            follower.fetch_or_copy()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if not once:
        follow(follower)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
