"""MCMI: CE - lam KL(P || Q_y) with Q taken once (arXiv 2401.08732)."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.hooks.cmi import Cmi
from clients.hooks.mcmi import Mcmi
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


def test_the_centroids_are_frozen_unless_said_otherwise() -> None:
    assert Mcmi().centroids == "frozen"


def test_lam_of_0_is_plain_training() -> None:
    torch.testing.assert_close(
        trained(Mcmi(lam=0.0), local_epochs=2).update, trained(local_epochs=2).update, rtol=1e-12, atol=1e-14
    )


def test_it_is_the_cmi_term_with_the_other_sign() -> None:
    outputs, targets = said(9)
    memory = {**Cmi().init(shapes(), targets), "centroids": said(NUM_CLASSES, 4)[0].logits.softmax(1)}
    ours = Mcmi(lam=0.4).loss(step(memory, 9), outputs, targets)
    torch.testing.assert_close(ours, -Cmi(lam=0.4).loss(step(memory, 9), outputs, targets))
    assert float(ours.max()) < 0  # a divergence, negated


def test_a_step_is_autograd_of_the_formula() -> None:
    theta, data = start(), shard()
    centroids = means_by_class(outputs_at(theta, data.x).logits.softmax(1), data.y, 1 / NUM_CLASSES)

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        p = outputs.logits.softmax(1)
        near = torch.stack([kl(row, centroids[y]) for row, y in zip(p, targets, strict=True)])
        return plain_loss(outputs, targets) - 0.25 * near.mean()

    torch.testing.assert_close(full_batch(Mcmi(lam=0.25)), gradient_of(theta, data, loss), rtol=1e-9, atol=1e-11)


def test_the_centroids_of_the_first_round_stay(recorder: Recorder) -> None:
    theta, state = start(), None
    for scale in (1.0, 0.3):
        state = trained(Mcmi(), scale * theta, state=state).state
    first = recorder.memories[0]["centroids"]
    assert all(torch.equal(memory["centroids"], first) for memory in recorder.memories)
    assert state is not None
    assert torch.equal(state["mcmi.centroids"], first)
