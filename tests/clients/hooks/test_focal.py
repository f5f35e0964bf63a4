"""Focal loss: -(1 - p_y)^gamma log p_y."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clients.hooks.focal import Focal
from fedsim.models import Outputs
from tests.clients.hooks.small import full_batch, gradient_of, said, shard, start, step, trained


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_loss_of_each_example(gamma: float) -> None:
    outputs, targets = said(9)
    found = Focal(gamma=gamma).loss(step({}, 9), outputs, targets)
    for i, p in enumerate(outputs.logits.softmax(1)[torch.arange(9), targets].tolist()):
        assert float(found[i]) == pytest.approx(-((1 - p) ** gamma) * math.log(p), rel=1e-11)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_step_is_autograd_of_the_formula(gamma: float) -> None:
    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        p = outputs.logits.softmax(1)[torch.arange(len(targets)), targets]
        return (-((1 - p) ** gamma) * p.log()).mean()

    expected = gradient_of(start(), shard(), loss)
    torch.testing.assert_close(full_batch(Focal(gamma=gamma)), expected, rtol=1e-9, atol=1e-12)


def test_gamma_of_0_is_plain_training() -> None:
    found = trained(Focal(gamma=0.0), local_epochs=3)
    torch.testing.assert_close(found.update, trained(local_epochs=3).update, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_finite_where_an_example_is_fitted_perfectly(gamma: float, dtype: torch.dtype) -> None:
    """The slope of (1 - p)^gamma is infinite at p = 1 for gamma < 1; the loss tends to 0 all the same."""
    for margin in (1.0, 20.0, 50.0, 1e4):
        logits = torch.tensor([[margin, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        target = torch.tensor([0])
        (value,) = Focal(gamma=gamma).loss(step({}, 1), Outputs(logits, logits), target)
        (grad,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(grad).all()
        assert 0 <= float(value.detach()) < 2.0
        if margin > 20:
            assert float(grad.abs().max()) < 1e-3


def test_a_fitted_example_counts_less_than_in_cross_entropy() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)  # right by far, wrong by far
    targets = torch.tensor([0, 0])
    entropy = Focal(gamma=0.0).loss(step({}, 2), Outputs(logits, logits), targets)
    focal = Focal(gamma=2.0).loss(step({}, 2), Outputs(logits, logits), targets)
    assert float(focal[0] / entropy[0]) < 0.01
    assert float(focal[1] / entropy[1]) > 0.9
