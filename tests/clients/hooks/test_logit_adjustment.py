"""Logit adjustment: cross-entropy of logits + tau log pi, pi of the client's own train shard."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clients.hooks.logit_adjustment import LogitAdjustment
from fedsim.models import Outputs
from tests.clients.hooks.small import (
    NUM_CLASSES,
    full_batch,
    gradient_of,
    plain_loss,
    said,
    shapes,
    shard,
    start,
    step,
    trained,
)


def shares(targets: Tensor, pseudo_count: float) -> list[float]:
    counts = [pseudo_count + sum(int(y) == c for y in targets) for c in range(NUM_CLASSES)]
    return [count / sum(counts) for count in counts]


@pytest.mark.parametrize(("tau", "pseudo_count"), [(1.0, 1.0), (0.5, 1e-3), (2.0, 10.0)])
def test_the_loss_of_each_example(tau: float, pseudo_count: float) -> None:
    hook = LogitAdjustment(tau=tau, pseudo_count=pseudo_count)
    outputs, targets = said(9)
    owned = torch.tensor([0, 0, 0, 0, 1, 3])  # no example of class 2
    found = hook.loss(step(hook.init(shapes(), owned), 9), outputs, targets)
    pi = shares(owned, pseudo_count)
    for i, y in enumerate(targets.tolist()):
        scores = [float(outputs.logits[i, c]) + tau * math.log(pi[c]) for c in range(NUM_CLASSES)]
        expected = math.log(sum(math.exp(s) for s in scores)) - scores[y]
        assert float(found[i]) == pytest.approx(expected, rel=1e-11)


def test_the_counts_are_those_of_the_client_and_not_of_the_batch() -> None:
    theta, data = start(), shard()
    data.y[:15] = 0
    pi = torch.tensor(shares(data.y, 1.0), dtype=torch.float64)

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        return plain_loss(Outputs(outputs.logits + pi.log(), outputs.features), targets)

    found = full_batch(LogitAdjustment(), data=data)
    torch.testing.assert_close(found, gradient_of(theta, data, loss), rtol=1e-10, atol=1e-12)


def test_tau_of_0_is_plain_training() -> None:
    found = trained(LogitAdjustment(tau=0.0), local_epochs=3)
    torch.testing.assert_close(found.update, trained(local_epochs=3).update, rtol=1e-12, atol=1e-14)


def test_a_balanced_shard_changes_nothing() -> None:
    """Equal shares shift all logits alike, which softmax does not see."""
    data = shard()
    even = data[:20]
    even.y[:] = torch.arange(20) % NUM_CLASSES
    found = trained(LogitAdjustment(), data=even)
    torch.testing.assert_close(found.update, trained(data=even).update, rtol=1e-10, atol=1e-13)
