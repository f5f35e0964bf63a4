"""Label smoothing: cross-entropy to (1 - epsilon) [y] + epsilon / C."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clients.hooks.label_smoothing import LabelSmoothing
from fedsim.models import Outputs
from tests.clients.hooks.small import NUM_CLASSES, full_batch, gradient_of, said, shard, start, step, trained


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_the_loss_is_the_cross_entropy_to_the_smoothed_label(epsilon: float) -> None:
    outputs, targets = said(9)
    found = LabelSmoothing(epsilon=epsilon).loss(step({}, 9), outputs, targets)
    log_p = outputs.logits.log_softmax(1)
    for i in range(9):
        label = torch.full((NUM_CLASSES,), epsilon / NUM_CLASSES, dtype=torch.float64)
        label[targets[i]] += 1.0 - epsilon
        torch.testing.assert_close(found[i], -(label * log_p[i]).sum(), rtol=1e-12, atol=1e-14)


def test_no_smoothing_is_plain_training() -> None:
    found = trained(LabelSmoothing(epsilon=0.0), local_epochs=3)
    torch.testing.assert_close(found.update, trained(local_epochs=3).update, rtol=1e-12, atol=1e-14)


def test_it_stands_in_place_of_cross_entropy() -> None:
    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.logits, targets, label_smoothing=0.2)

    expected = gradient_of(start(), shard(), loss)
    torch.testing.assert_close(full_batch(LabelSmoothing(epsilon=0.2)), expected, rtol=1e-10, atol=1e-12)


def test_the_reported_loss_stays_the_cross_entropy() -> None:
    """f_k is what rules weigh by; it means the same whatever the client minimises."""
    found, other = trained(LabelSmoothing(epsilon=0.5)), trained()
    assert found.report["loss"] == other.report["loss"]
