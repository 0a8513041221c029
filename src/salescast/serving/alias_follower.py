"""Keeps the bundle folder of a server up to date with an alias of the MLflow registry.

`python -m salescast.serving.alias_follower MODEL FOLDER WORKDIR PLACE` is a process of its own, so that the server
neither imports MLflow nor waits for it: the server watches FOLDER/bundle like any other bundle. PLACE is the folder of
`processes.ready_file`; with `--once` instead the bundle is fetched once.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from salescast.config import settings
from salescast.errors import UserError
from salescast.runtime import processes
from salescast.tracking.champion import Follower
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)

ONCE: Final = "--once"


def follow(follower: Follower, ready: Path) -> None:
    """Fetch every `SALESCAST_MODEL_POLL_SECONDS`, and on SIGHUP, until SIGTERM or the end of the parent process."""
    reported = ""
    processes.end_with_parent()
    with processes.flagged(signal.SIGHUP) as look_now:
        ready.touch()
        while True:
            look_now.wait(settings().model_poll_seconds)
            look_now.received = False
            try:
                follower.fetch()
                reported = ""
            except UserError as error:
                if str(error) != reported:
                    logger.error("keeping the current model: %s", error)
                reported = str(error)


def main(arguments: list[str]) -> int:
    processes.end_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("salescast").setLevel(logging.INFO)
    model, folder, root, place = arguments
    try:
        follower = Follower(model, Path(folder), Workdir(Path(root)))
        if place == ONCE:
            follower.fetch_or_copy()
            return 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    follow(follower, processes.ready_file(Path(place), os.getpid()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
