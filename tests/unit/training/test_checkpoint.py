from pathlib import Path

import torch

from salescast.training.checkpoint import Best, Checkpoint, Checkpoints, TrainerState


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "digest")
    for number in range(1, 6):
        best = Best(number, 0.1, 0.2, {"weight": torch.tensor(number)})
        checkpoints.save(number, Checkpoint("holdout", number, best, None, TrainerState({}, {}, 0, {}, {})))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00004.pt", "checkpoint-00005.pt"]
    assert checkpoints.latest() == 5
    assert checkpoints.load(5).best.weights["weight"] == 5
