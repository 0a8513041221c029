"""What torchrun starts in every process of the TrainJob (06-trainjob.yaml).

Rank 0 retrieves the training set, evaluates and registers; all ranks train, of which the others only need the plan.
"""

import os
import sys

from salescast import data, pipeline, train
from salescast.config import Workdir, settings, train_config
from salescast.errors import UserError


def main() -> int:
    if os.environ.get("RANK", "0") != "0":
        return train.run_plan(None)
    work = Workdir(settings().workdir)
    config = train_config()
    last_week = data.Dataset.read(work.data).last_week
    trained = pipeline.train_stage(work, config, pipeline.default_cutoffs(work, config), final=last_week)
    pipeline.backtest_stage(work, trained)
    pipeline.register_stage(work)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(train.tell(str(error), 1))
