"""Runs salescast.training.main with a NaN in one batch of rank 1: started by test_train_processes.py under torchrun."""

import dataclasses
import os
import sys
from collections.abc import Iterator

from salescast.training import samples
from salescast.training.main import main

whole = samples.Samples.epoch


def spoiled(self: samples.Samples, *arguments: int) -> Iterator[samples.Batch]:
    for number, batch in enumerate(whole(self, *arguments)):
        nan = os.environ["RANK"] == "1" and number == 1
        yield dataclasses.replace(batch, weight=batch.weight * float("nan")) if nan else batch


samples.Samples.epoch = spoiled  # type: ignore[method-assign]
sys.exit(main())
