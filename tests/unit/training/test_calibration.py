import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salescast.model.network import QuantileMLP
from salescast.training import calibration
from salescast.training.distributed import Group, choose
from salescast.training.samples import Batch, Samples

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
    def __init__(
        self, target: np.ndarray, unit: float = 1.0, anchor: float = 0.0, day: np.ndarray | None = None
    ) -> None:
        values = torch.tensor(target, dtype=torch.float32)
        units = torch.full_like(values, unit)
        days = torch.zeros(len(target), dtype=torch.int64) if day is None else torch.tensor(day)
        self.__dict__.update(
            size=len(target), batch=Batch(values[:, None], values, values, units, units, anchor + unit * values, days)
        )

    def pairs(self, batch: int):  # type: ignore[no-untyped-def]
        yield self.__dict__["batch"]


def test_wmape_is_in_sales_not_in_units() -> None:
    samples = Fixed(np.array([1.0, -2.0, 3.0]), unit=10, anchor=100)
    assert calibration.wmape(Answers([-1, 0.5, 1]), samples, ALONE) == pytest.approx((5 + 25 + 25) / (110 + 80 + 130))


def test_the_factor_makes_the_interval_hold_its_share() -> None:
    """Errors drawn from a known law: the factor is the 80 % quantile of their ratios to the half-width."""
    random = np.random.default_rng(0)
    target = np.where(random.random(200_000) < 0.5, -0.75, 2.0) * random.uniform(0, 1, 200_000)
    ratios = np.where(target < 0, -target / 0.5, target / 1.0)
    factor = calibration.interval_factor(Answers([-0.5, 0.0, 1.0]), Fixed(target), LEVELS, ALONE)
    assert factor == pytest.approx(np.quantile(ratios, 0.8), abs=0.01)


def test_intervals_are_never_narrowed_and_the_factor_is_1_without_samples() -> None:
    easy = Fixed(np.linspace(-0.1, 0.1, 1000))
    assert calibration.interval_factor(Answers([-1, 0, 1]), easy, LEVELS, ALONE) == 1.0
    assert calibration.interval_factor(Answers([-1, 0, 1]), Fixed(np.array([])), LEVELS, ALONE) == 1.0


def test_few_samples_widen_rather_than_narrow() -> None:
    """With 3 scores no finite factor holds 80 % for sure: ceil(4 * 0.8) = 4 > 3, so the widest is used."""
    few = Fixed(np.array([0.5, 0.6, 0.7]))
    assert calibration.interval_factor(Answers([-1, 0, 1]), few, LEVELS, ALONE) == calibration.WIDEST


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20), st.floats(-2, 2, width=32))
def test_shrinkage_is_the_factor_with_the_least_error(targets: list[float], median: float) -> None:
    samples = Fixed(np.array(targets), unit=10)
    found = calibration.shrinkage(Answers([median - 1, median, median + 1]), samples, ALONE)
    errors = {factor: sum(abs(y - factor * median) for y in targets) for factor in calibration.SHRINKAGE}
    assert errors[found] == pytest.approx(min(errors.values()), abs=1e-4)


def test_no_shrinkage_without_samples() -> None:
    assert calibration.shrinkage(Answers([0.0, 1.0, 2.0]), Fixed(np.array([])), ALONE) == 1.0


def test_a_network_worse_than_the_anchor_is_followed_half_as_far() -> None:
    assert calibration.shrinkage(Answers([1.0, 2.0, 3.0]), Fixed(np.array([-0.1, 0.1, 0.0])), ALONE) == 0.5
