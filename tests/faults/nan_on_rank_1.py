"""Runs salescast.train with a NaN in one batch of rank 1: started by test_train_processes.py under torchrun."""

import dataclasses
import os
import sys
from collections.abc import Iterator

from salescast import dataset, train

whole = dataset.Samples.epoch


def spoiled(self: dataset.Samples, *arguments: int) -> Iterator[dataset.Batch]:
    for number, batch in enumerate(whole(self, *arguments)):
        nan = os.environ["RANK"] == "1" and number == 1
        yield dataclasses.replace(batch, unit=batch.unit * float("nan")) if nan else batch


dataset.Samples.epoch = spoiled  # type: ignore[method-assign]
sys.exit(train.main())
