"""Fed-IT's loss: CE + 0.9 KL(P || Q_y) + 0.07 KL(P || S_y), Q following by a moving average, local and kept."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.hooks.fed_it import FedIt
from fedsim.models import Outputs
from tests.clients.hooks.small import (
    NUM_CLASSES,
    Recorder,
    full_batch,
    gradient_of,
    kl,
    means_by_class,
    outputs_at,
    plain_loss,
    said,
    shapes,
    shard,
    start,
    step,
    trained,
)


def smooth(label: int) -> Tensor:
    """S_y: 0.7 on the label, 0.3 / (C - 1) elsewhere."""
    row = torch.full((NUM_CLASSES,), 0.3 / (NUM_CLASSES - 1), dtype=torch.float64)
    row[label] = 0.7
    return row


def test_the_published_weights_are_the_defaults() -> None:
    hook = FedIt()
    assert (hook.lam, hook.smooth_weight, hook.smoothing, hook.decay) == (0.9, 0.07, 0.3, 0.9999)
    assert hook.centroids == "ema"


def test_the_loss_of_each_example() -> None:
    outputs, targets = said(9)
    memory = {**FedIt().init(shapes(), targets), "centroids": said(NUM_CLASSES, 8)[0].logits.softmax(1)}
    found = FedIt().loss(step(memory, 9), outputs, targets)
    for i, p in enumerate(outputs.logits.softmax(1)):
        label = int(targets[i])
        expected = 0.9 * kl(p, memory["centroids"][label]) + 0.07 * kl(p, smooth(label))
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-14)


def test_a_step_is_autograd_of_the_formula() -> None:
    theta, data = start(), shard()
    centroids = means_by_class(outputs_at(theta, data.x).logits.softmax(1), data.y, 1 / NUM_CLASSES)

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        p = outputs.logits.softmax(1)
        joined = [
            0.9 * kl(row, centroids[y]) + 0.07 * kl(row, smooth(int(y))) for row, y in zip(p, targets, strict=True)
        ]
        return plain_loss(outputs, targets) + torch.stack(joined).mean()

    torch.testing.assert_close(full_batch(FedIt()), gradient_of(theta, data, loss), rtol=1e-9, atol=1e-11)


def test_no_weights_are_plain_training() -> None:
    found = trained(FedIt(lam=0.0, smooth_weight=0.0), local_epochs=2)
    torch.testing.assert_close(found.update, trained(local_epochs=2).update, rtol=1e-12, atol=1e-14)


def test_centroids_follow_every_step_and_are_kept_between_rounds(recorder: Recorder) -> None:
    theta, state, hook = start(), None, FedIt(decay=0.9)
    for _ in range(2):
        state = trained(hook, theta, state=state).state
        theta = 0.8 * theta
    expected = recorder.memories[0]["centroids"]
    for memory, outputs, batch in zip(recorder.memories, recorder.outputs, recorder.batches, strict=True):
        torch.testing.assert_close(memory["centroids"], expected, rtol=1e-10, atol=1e-13)
        p = outputs.logits.softmax(1)
        for c in batch.y.unique().tolist():
            expected[c] = 0.9 * expected[c] + 0.1 * p[batch.y == c].mean(0)
    assert state is not None
    torch.testing.assert_close(state["fed_it.centroids"], expected, rtol=1e-10, atol=1e-13)
