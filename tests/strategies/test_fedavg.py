"""FedAvg is the mean weighted by examples."""

from __future__ import annotations

import torch

from fedsim import plugins
from strategies.rules import AnyRule, Cohort
from tests.strategies import oracles

FedAvg = plugins.find("strategies.rules", "fedavg", AnyRule)


def test_direction_is_the_mean_weighted_by_examples() -> None:
    updates = [[1.0, -2.0, 4.0], [0.5, 0.0, -1.0], [3.0, 3.0, 3.0]]
    examples = torch.tensor([10.0, 30.0, 60.0], dtype=torch.float64)
    cohort = Cohort.of(torch.tensor(updates), torch.tensor([9.0, 1.0, 4.0]), examples / examples.sum())
    direction = FedAvg().direction(cohort)
    expected = torch.tensor(oracles.weighted_mean(updates, examples.tolist()))
    torch.testing.assert_close(direction.vector, expected)
    torch.testing.assert_close(direction.weights, torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64))


def test_full_step_lands_on_the_mean_of_the_client_models() -> None:
    """With update = old - new, old - mean(update) = mean(new)."""
    old, new = torch.tensor([1.0, 1.0]), torch.tensor([[2.0, 0.0], [4.0, 6.0]])
    cohort = Cohort.of(old - new, torch.ones(2), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(old - FedAvg().direction(cohort).vector, torch.tensor([3.5, 4.5]))


def test_one_full_batch_gradient_each_is_gradient_descent_on_the_weighted_loss() -> None:
    """f_k = a_k (theta - b_k)^2 / 2: the pseudo-gradients of one step lr average to lr * grad sum p_k f_k."""
    theta, lr = torch.tensor(2.0, dtype=torch.float64, requires_grad=True), 0.1
    a, b = torch.tensor([1.0, 4.0]).double(), torch.tensor([0.0, 5.0]).double()
    shares = torch.tensor([0.2, 0.8]).double()
    losses = a * (theta - b) ** 2 / 2
    (gradient,) = torch.autograd.grad(shares @ losses, theta)
    updates = (lr * a * (theta - b)).detach()[:, None]
    vector = FedAvg().direction(Cohort.of(updates, losses.detach(), shares)).vector
    torch.testing.assert_close(vector, lr * gradient[None])
