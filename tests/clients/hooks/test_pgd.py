"""Adversarial training: the attack stays in its box, raises the loss, and is exact where that can be known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.hooks import Draws
from clients.hooks.pgd import Pgd
from fedsim import seeds
from fedsim.models import Outputs
from tests.clients.hooks.small import gradient_of, model, plain_loss, shard, start, step, trained


def attacked(hook: Pgd, x: Tensor, y: Tensor, draws: Draws | None = None, theta: Tensor | None = None) -> Tensor:
    network = model()
    network.theta.copy_(start() if theta is None else theta)
    return hook.inputs(step({}, len(x), draws=draws), x, y, network.outputs)


def loss_of(x: Tensor, y: Tensor) -> Tensor:
    network = model()
    network.theta.copy_(start())
    with torch.no_grad():
        return cross_entropy(network.outputs(x).logits, y, reduction="none")


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
@pytest.mark.parametrize("random_start", [True, False])
def test_it_stays_in_its_box_and_raises_every_loss(epsilon: float, random_start: bool) -> None:
    hook, data = Pgd(epsilon=epsilon, step_size=epsilon / 4, random_start=random_start), shard()
    draws = hook.draw(seeds.generator(1), tuple(data.x.shape))
    found = attacked(hook, data.x, data.y, draws)
    assert float((found - data.x).abs().max()) <= epsilon * (1 + 1e-12)
    assert (loss_of(found, data.y) > loss_of(data.x, data.y)).all()
    assert not found.requires_grad


def test_it_is_the_loop_of_signed_gradients() -> None:
    """delta <- clip(delta + a sign(grad)), from the start drawn, each example by itself."""
    hook, data = Pgd(epsilon=0.2, step_size=0.07, steps=4), shard()
    draws = hook.draw(seeds.generator(2), tuple(data.x.shape))
    assert draws.example is not None
    found = attacked(hook, data.x, data.y, draws)
    network = model()
    network.theta.copy_(start())
    for i in range(len(data)):
        delta = 0.2 * draws.example[i].double()
        for _ in range(4):
            x = (data.x[i] + delta).requires_grad_()
            value = cross_entropy(network.outputs(x.unsqueeze(0)).logits, data.y[i : i + 1])
            (grad,) = torch.autograd.grad(value, x)
            delta = (delta + 0.07 * grad.sign()).clamp(-0.2, 0.2)
        torch.testing.assert_close(found[i], data.x[i] + delta, rtol=1e-11, atol=1e-13)


def test_on_a_linear_model_one_signed_step_is_the_exact_maximiser() -> None:
    """Two classes: the loss rises with (w_other - w_y) x, so the best corner of the box is the sign of that."""
    w = torch.randn(2, 5, generator=seeds.generator(4), dtype=torch.float64)

    def predict(x: Tensor) -> Outputs:
        return Outputs(x @ w.T, x)

    data = shard()
    y = data.y % 2
    hook = Pgd(epsilon=0.3, step_size=0.3, steps=1, random_start=False)
    found = hook.inputs(step({}, len(y)), data.x, y, predict)
    corners = torch.cartesian_prod(*[torch.tensor([-0.3, 0.3], dtype=torch.float64)] * 5)
    for i in range(len(y)):
        every = cross_entropy(predict(data.x[i] + corners).logits, y[i].expand(len(corners)), reduction="none")
        ours = cross_entropy(predict(found[i : i + 1]).logits, y[i : i + 1])
        torch.testing.assert_close(ours, every.max(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            found[i] - data.x[i], 0.3 * (w[1 - y[i]] - w[y[i]]).sign(), rtol=1e-9, atol=1e-12
        )


def test_no_radius_is_plain_training() -> None:
    found = trained(Pgd(epsilon=0.0), local_epochs=2)
    torch.testing.assert_close(found.update, trained(local_epochs=2).update, rtol=1e-12, atol=1e-14)


def test_bounds_hold_where_the_input_is_inside_them() -> None:
    data = shard()
    x = data.x.clamp(-0.5, 0.8)
    hook = Pgd(epsilon=0.4, low=-0.5, high=0.8)
    found = attacked(hook, x, data.y, hook.draw(seeds.generator(1), tuple(x.shape)))
    assert float(found.min()) >= -0.5 - 1e-12
    assert float(found.max()) <= 0.8 + 1e-12
    assert float((found - x).abs().max()) <= 0.4 + 1e-12
    assert (found != x).any()
    free = attacked(Pgd(epsilon=0.4), x, data.y, hook.draw(seeds.generator(1), tuple(x.shape)))
    assert float(free.max()) > 0.8


@pytest.mark.parametrize(("low", "high"), [(-0.2, None), (None, 0.2)])
def test_one_bound_alone(low: float | None, high: float | None) -> None:
    data = shard()
    x = data.x.clamp(low, high)
    found = attacked(Pgd(epsilon=1.0, low=low, high=high, random_start=False), x, data.y)
    assert low is None or float(found.min()) >= low - 1e-12
    assert high is None or float(found.max()) <= high + 1e-12
    assert float(found.abs().max()) > 0.2


def test_bounds_must_be_in_order() -> None:
    with pytest.raises(ValidationError, match="low must be below high = -1, got 1"):
        Pgd(low=1.0, high=-1.0)


def test_starts_are_uniform_in_the_box_and_none_without_a_random_start() -> None:
    drawn = Pgd().draw(seeds.generator(1), (1000, 5)).example
    assert drawn is not None
    assert drawn.shape == (1000, 5)
    assert -1 <= float(drawn.min()) < -0.99
    assert 0.99 < float(drawn.max()) <= 1
    assert float(drawn.std()) == pytest.approx((1 / 3) ** 0.5, rel=0.05)
    assert Pgd(random_start=False).draw(seeds.generator(1), (1000, 5)).example is None


def test_the_start_is_the_one_drawn() -> None:
    data = shard()
    corner = torch.ones_like(data.x)
    hook = Pgd(epsilon=0.2, step_size=1e-9, steps=1)
    found = attacked(hook, data.x, data.y, Draws(example=corner))
    torch.testing.assert_close(found, data.x + 0.2, rtol=0, atol=1e-8)


def test_the_gradient_is_that_of_the_attacked_inputs_held_fixed() -> None:
    data, theta = shard(), start()
    hook = Pgd(epsilon=0.2, random_start=False)
    found = trained(hook, theta, batch_size=len(data)).update / 0.1
    order = torch.randperm(len(data), generator=seeds.generator(1, "batches", 2, 3))
    moved = data[order]
    moved.x[:] = attacked(hook, data.x[order], data.y[order])
    torch.testing.assert_close(found, gradient_of(theta, moved, plain_loss), rtol=1e-9, atol=1e-12)


def test_texts_are_refused() -> None:
    codes: Any = torch.zeros(3, 5, dtype=torch.uint8)
    with pytest.raises(
        TypeError, match=r"pgd needs inputs that are numbers, got torch.uint8 codes; leave the hook"
    ):
        attacked(Pgd(), codes, torch.zeros(3, dtype=torch.int64))


def test_a_model_trained_so_resists_better() -> None:
    """On its own train shard, under the attack it was trained against."""
    found: list[float] = []
    for hook in (None, Pgd(epsilon=0.3)):
        theta = start() - trained(hook, local_epochs=60, lr=0.2).update
        network, data = model(), shard()
        network.theta.copy_(theta)
        x = Pgd(epsilon=0.3, random_start=False).inputs(step({}, 23), data.x, data.y, network.outputs)
        found.append(float(cross_entropy(network.outputs(x).logits, data.y).detach()))
    assert found[1] < found[0]
