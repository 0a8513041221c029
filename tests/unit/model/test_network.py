from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast.model.inputs import Inputs
from salescast.model.network import QuantileMLP, Scaler, pinball

LEVELS = (0.1, 0.3, 0.5, 0.8, 0.9)


def scaler(names: int = 3, missing: Sequence[bool] = (False, True, False)) -> Scaler:
    vocabulary = {
        "store_id": (1, 7),
        "dept_id": (3,),
        "store_type": ("A", "B"),
        "region": ("N",),
        "horizon": (0, 1),
    }
    return Scaler(
        tuple("abc"[:names]), (1.0, 2.0, 0.0)[:names], (1.0, 0.5, 0.0)[:names], tuple(missing[:names]), vocabulary
    )


def network(dropout: float = 0.2) -> QuantileMLP:
    torch.manual_seed(0)
    return QuantileMLP(scaler(), (16, 8), LEVELS, dropout=dropout, linear=True)


def randomized() -> QuantileMLP:
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    net.table.data[0] = 0
    return net.eval()


def samples(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=random) * 100, torch.randint(0, 9, (n, 5), generator=random)


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_quantiles_never_cross_whatever_the_weights_and_inputs(seed: int) -> None:
    torch.manual_seed(seed)
    numeric, codes = samples(50, seed)
    numeric[torch.rand(50, 3) < 0.2] = torch.nan
    numeric[torch.rand(50, 3) < 0.1] = torch.inf
    quantiles = randomized()(numeric, codes)
    assert quantiles.shape == (50, 2, 5)
    assert torch.isfinite(quantiles).all()
    assert (quantiles.diff(dim=2) >= 0).all()


def test_an_untrained_network_forecasts_the_anchor() -> None:
    quantiles = network().eval()(*samples(20))
    assert (quantiles[:, :, 2] == 0).all()
    assert torch.allclose(quantiles.diff(dim=2), torch.full((20, 2, 4), 0.0486), atol=1e-4)


def test_quantiles_are_the_median_and_cumulative_steps() -> None:
    net = network().eval()
    net.biases[0].data[:] = torch.tensor([0.3, -0.2, 5.0, 0.1, 1.0])
    below, above = np.log1p(np.exp([0.3, -0.2])), np.log1p(np.exp([0.1, 1.0]))
    expected = [5 - below.sum(), 5 - below[1], 5, 5 + above[0], 5 + above.sum()]
    assert np.allclose(net(*samples(1))[0, 0].detach().numpy(), expected, atol=1e-5)


def test_a_constant_input_has_no_effect_and_a_missing_one_has() -> None:
    net = randomized()
    numeric, codes = samples(10)
    constant, missing = numeric.clone(), numeric.clone()
    constant[:, 2] = 1e9
    missing[:, 1] = torch.nan
    mean = numeric.clone()
    mean[:, 1] = 2.0
    assert torch.equal(net(constant, codes), net(numeric, codes))
    assert not torch.equal(net(missing, codes), net(mean, codes)), "missing is not the same as average"


def test_the_linear_head_is_linear_and_optional() -> None:
    """Standardized inputs and embeddings times one matrix; the network's head is the same without it."""
    net = randomized()
    numeric, codes = samples(12)
    with torch.no_grad():
        heads = net(numeric, codes)
        x = ((numeric - net.mean) * net.scale).clamp(-5, 5)
        indicated = numeric[:, net.indicated].isnan().float()
        row = torch.cat([x, indicated, net.table[codes].flatten(1)], dim=1)
        median = row @ net.heads[1][:, net.median] + net.biases[1][net.median]
        assert torch.allclose(heads[:, 1, net.median], median, atol=1e-4)
        alone = QuantileMLP(scaler(), (16, 8), LEVELS, dropout=0.2, linear=False).eval()
        missing, unexpected = alone.load_state_dict(net.state_dict(), strict=False)
        assert missing == []
        assert unexpected == ["heads.1", "biases.1"]
        assert torch.equal(alone(numeric, codes), heads[:, :1])


def test_the_embedding_of_unknown_categories_stays_zero() -> None:
    net = network().train()
    net.renew_noise(8)
    numeric, _ = samples(8)
    net(numeric, torch.zeros(8, 5, dtype=torch.int64)).sum().backward()
    assert net.table.grad is not None
    assert (net.table.grad[0] == 0).all()
    assert (net.table[0] == 0).all()


def test_categories_are_encoded_with_unknown_and_missing_as_zero() -> None:
    values = {
        "store_id": pa.array([7, 1, 9, 1], pa.int32()),
        "dept_id": pa.array([3, 3, 3, 4], pa.int32()),
        "store_type": pa.array(["B", None, "A", "Z"], pa.large_string()),
        "region": pa.array(["N", "N", None, "S"], pa.large_string()),
    }
    none = np.empty((4, 0), dtype=np.float32)
    inputs = Inputs(none, none, (), (), none, none, values, none, none, none, none)
    assert scaler().encode(inputs).tolist() == [[2, 3, 5, 6], [1, 3, 0, 6], [0, 3, 4, 0], [1, 0, 0, 0]]
    assert scaler().horizons(2).tolist() == [7, 8]


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    net = network(dropout=0.25).train()
    torch.manual_seed(3)
    net.renew_noise(4096)
    dropped = net._dropped(torch.ones(4096, 16))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(net.eval()._dropped(torch.ones(2, 2)), torch.ones(2, 2))


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_pinball_is_the_textbook_sum(seed: int) -> None:
    random = np.random.default_rng(seed)
    quantiles, target, weight = random.normal(size=(6, 2, 5)), random.normal(size=6), random.uniform(0, 2, 6)
    expected = 0.0
    for b in range(6):
        for s in range(2):
            for q, level in enumerate(LEVELS):
                e = target[b] - quantiles[b, s, q]
                expected += weight[b] * (level * e if e >= 0 else (level - 1) * e) / 10
    arrays = (torch.from_numpy(array) for array in (quantiles, target, weight))
    assert pinball(*arrays, torch.tensor(LEVELS, dtype=torch.float64)).item() == pytest.approx(expected)


def test_a_scaler_survives_json() -> None:
    import json

    assert Scaler.from_dict(json.loads(json.dumps(scaler().to_dict()))) == scaler()


def test_values_outside_their_training_range_are_counted_by_input() -> None:
    import dataclasses

    bounded = dataclasses.replace(scaler(), low=(-1.0, 0.0, 5.0), high=(1.0, 0.0, 9.0))
    base = np.array([[-1.0], [1.5], [np.nan]], np.float32)  # input a
    step = np.array([[[0.0, 5.0], [0.1, 9.0]], [[np.nan, 4.9], [0.0, 9.1]], [[0, 5], [0, 5]]], np.float32)  # b, c
    codes = torch.tensor([[1, 3, 4, 6], [0, 3, 4, 6], [0, 0, 4, 6]])
    assert bounded.outside(base, step, codes) == {"a": 1, "b": 1, "c": 2, "store_id": 2, "dept_id": 1}
    assert scaler().outside(base, step, codes) == {}, "a bundle without bounds"
    always_missing = dataclasses.replace(bounded, vocabulary=dict.fromkeys(scaler().vocabulary, ()))
    assert set(always_missing.outside(base, step, codes)) == {"a", "b", "c"}, (
        "a category that was always missing in training is not counted"
    )


def test_quantiles_are_summed_in_full_precision_under_autocast() -> None:
    """The quantiles differ by less than 1 % of the median, which bf16 would round away."""
    net = randomized()
    with torch.no_grad():
        for head, bias in zip(net.heads, net.biases, strict=True):
            head.zero_()
            bias.fill_(-7.0)  # softplus: 0.0009
            bias[..., net.median] = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        quantiles = net(*samples(4))
    assert quantiles.dtype == torch.float32
    assert (quantiles.diff(dim=2) > 0).all()
