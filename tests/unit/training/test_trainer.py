import numpy as np
import torch

from salescast.model.network import QuantileMLP, Scaler
from salescast.training.trainer import MovingAverage, derive_seed


def test_the_moving_average_is_the_recursion_over_weights_and_batchnorm() -> None:
    scaler = Scaler(("a",), (0.0,), (1.0,), (True,), {"horizon": (0, 1)})
    network = QuantileMLP(scaler, (4,), (0.1, 0.5, 0.9), dropout=0.0, linear=True)
    average = MovingAverage(network, decay=0.5)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(8):
        with torch.no_grad():
            for value in network.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn_like(value))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    averaged = average.network.state_dict()
    assert all(torch.allclose(averaged[name], value, atol=1e-5) for name, value in expected.items())


def test_derived_seeds_are_distinct_and_spread() -> None:
    seeds = [derive_seed(a, b) for a in range(30) for b in range(30)]
    assert len(set(seeds)) == len(seeds)
    assert abs(np.mean(seeds) / 2**31 - 1) < 0.1
