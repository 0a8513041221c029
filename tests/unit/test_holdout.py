import numpy as np
import pytest
import torch

from salescast import holdout
from salescast.dataset import Batch, Samples
from salescast.distributed import Group, choose
from salescast.model import QuantileMLP

LEVELS = (0.1, 0.5, 0.9)
ALONE = Group(0, 1, choose("cpu", 0, False, 0, 1))


class Answers(QuantileMLP):
    """A network that always answers the same quantiles."""

    def __init__(self, quantiles: list[float]) -> None:
        torch.nn.Module.__init__(self)
        self.quantiles, self.median = torch.tensor(quantiles, dtype=torch.float32), 1

    def forward(self, numeric: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self.quantiles.expand(len(numeric), 2, 3)


class Fixed(Samples):
    def __init__(self, target: np.ndarray, unit: float = 1.0, anchor: float = 0.0) -> None:
        values = torch.tensor(target, dtype=torch.float32)
        units = torch.full_like(values, unit)
        self.__dict__.update(
            size=len(target), batch=Batch(values[:, None], values, values, units, anchor + unit * values)
        )

    def pairs(self, batch: int):  # type: ignore[no-untyped-def]
        yield self.__dict__["batch"]


def test_wmape_is_in_sales_not_in_units() -> None:
    samples = Fixed(np.array([1.0, -2.0, 3.0]), unit=10, anchor=100)
    assert holdout.wmape(Answers([-1, 0.5, 1]), samples, ALONE) == pytest.approx((5 + 25 + 25) / (110 + 80 + 130))


def test_factors_make_each_side_hold_its_share() -> None:
    """Errors drawn from a known law: the factor is the law's quantile over the half-width, within the bounds."""
    random = np.random.default_rng(0)
    target = np.where(random.random(200_000) < 0.5, -0.75, 1.2) * random.uniform(0, 1, 200_000)
    lower, upper = holdout.interval_factors(Answers([-0.5, 0.0, 1.0]), Fixed(target), LEVELS, ALONE)
    assert lower == pytest.approx(0.8 * 0.75 / 0.5, abs=0.01)
    assert upper == pytest.approx(0.8 * 1.2 / 1.0, abs=0.01)


def test_factors_are_bounded_and_1_without_samples() -> None:
    wild = Fixed(np.array([-100.0] * 50 + [0.001] * 50))
    assert holdout.interval_factors(Answers([-1, 0, 1]), wild, LEVELS, ALONE).tolist() == [1.6, 0.8]
    one_sided = Fixed(np.full(10, 0.9))
    assert holdout.interval_factors(Answers([-1, 0, 1]), one_sided, LEVELS, ALONE)[0] == 1.0


def test_few_samples_widen_rather_than_narrow() -> None:
    """With 3 scores no finite factor holds 80 % for sure: ceil(4 * 0.8) = 4 > 3, so the bound is used."""
    assert holdout.interval_factors(Answers([-1, 0, 1]), Fixed(np.array([0.5, 0.6, 0.7])), LEVELS, ALONE)[1] == 1.6


@pytest.mark.parametrize(("better", "expected"), [(1.0, 1.0), (0.55, 0.5), (0.8, 0.8), (-1.0, 0.5)])
def test_the_network_is_trusted_as_far_as_it_was_right(better: float, expected: float) -> None:
    """The labels lie at `better` times its median: nearer to the anchor when that is as good, at most half."""
    samples = Fixed(np.full(20, better))
    assert holdout.trust(Answers([0.5, 1.0, 1.5]), samples, ALONE) == expected


def test_a_median_that_does_not_matter_is_halved() -> None:
    random = np.random.default_rng(0)
    noise = Fixed(random.normal(0, 1000, 4000))
    assert holdout.trust(Answers([0.5, 1.0, 1.5]), noise, ALONE) == 0.5


def test_calibration_of_a_network_that_is_half_right() -> None:
    center, lower, upper = holdout.calibration(Answers([0, 1, 2]), Fixed(np.full(9, 0.5)), LEVELS, ALONE)
    assert (center, lower) == (0.5, 0.8), "no error at all: the narrowest interval"
    assert 0.8 <= upper <= 1.6
