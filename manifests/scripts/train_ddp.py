"""The program of every process of the TrainJob (06-trainjob.yaml), started by torchrun.

All ranks train. Rank 0 also retrieves the training set, evaluates and registers, and sends its plan to the others.
"""

import os
import sys

from salescast.config import settings
from salescast.data import dataset
from salescast.errors import UserError
from salescast.model.config import train_config
from salescast.pipeline import stages
from salescast.training.main import fail, run_plan
from salescast.workdir import Workdir


def main() -> int:
    if os.environ.get("RANK", "0") != "0":
        return run_plan(None)
    work = Workdir(settings().workdir)
    config = train_config()
    last_week = dataset.Dataset.read(work.data).last_week
    trained = stages.train_stage(work, config, stages.default_cutoffs(work, config), final=last_week)
    stages.backtest_stage(work, trained)
    stages.register_stage(work)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(fail(str(error), 1))
