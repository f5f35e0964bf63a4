"""CMIM, our reading: CE + lam KL(P^[a] || Q^[a]_y) with a drawn from (0, highest] and centroids by bucket of a."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clients.hooks import Draws
from clients.hooks.cmi import Cmi
from clients.hooks.cmim import Cmim
from fedsim import seeds
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


def share(value: float) -> Draws:
    return Draws(step=torch.tensor(value, dtype=torch.float64))


def powered(p: Tensor, a: float) -> Tensor:
    """P^a / sum P^a."""
    return p**a / (p**a).sum(-1, keepdim=True)


def centroids(buckets: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(buckets, NUM_CLASSES, NUM_CLASSES, generator=generator, dtype=torch.float64).softmax(2)


@pytest.mark.parametrize("drawn", [0.01, 0.25, 0.4, 0.5, 0.75, 1.0])
def test_the_loss_is_that_of_the_powered_outputs_and_the_bucket_of_a(drawn: float) -> None:
    """Bucket b of 4 holds a in (b / 4 highest, (b + 1) / 4 highest]."""
    hook, (outputs, targets) = Cmim(lam=0.8, highest=3.0, buckets=4), said(9)
    memory = {"centroids": centroids(4)}
    found = hook.loss(step(memory, 9, draws=share(drawn)), outputs, targets)
    bucket = next(b for b in range(4) if b / 4 < drawn <= (b + 1) / 4)
    for i in range(9):
        p = powered(outputs.logits[i].softmax(0), 3.0 * drawn)
        expected = 0.8 * kl(p, memory["centroids"][bucket, targets[i]])
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-13)


def test_at_a_power_of_1_it_is_the_cmi_term() -> None:
    outputs, targets = said(9)
    memory = {"centroids": centroids(4)}
    ours = Cmim(lam=0.7, highest=2.0, buckets=4).loss(step(memory, 9, draws=share(0.5)), outputs, targets)
    theirs = Cmi(lam=0.7).loss(step({"centroids": memory["centroids"][1]}, 9), outputs, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_it_vanishes_with_the_power() -> None:
    """At a -> 0 every output is uniform, and so are the centroids that are means of them."""
    hook, (outputs, targets) = Cmim(lam=1.0, highest=1e-4, buckets=1), said(20)
    memory = hook.init(shapes(), targets)
    memory = hook.refit(memory, hook.collect(memory, outputs, targets, torch.ones(20).double()))
    assert float(hook.loss(step(memory, 20, draws=share(1.0)), outputs, targets).abs().max()) < 1e-7


def test_a_large_power_gives_the_entropy_of_the_decision() -> None:
    """a -> inf: the CMI of one-hot outputs, here two of four examples of a class are called otherwise."""
    logits = torch.eye(NUM_CLASSES, dtype=torch.float64)[[0, 0, 1, 1]]
    targets = torch.zeros(4, dtype=torch.int64)
    hook = Cmim(lam=1.0, highest=1e3, buckets=1)
    memory = hook.init(shapes(), targets)
    outputs = Outputs(logits, logits)
    memory = hook.refit(memory, hook.collect(memory, outputs, targets, torch.ones(4).double()))
    found = hook.loss(step(memory, 4, draws=share(1.0)), outputs, targets).mean()
    torch.testing.assert_close(found, torch.tensor(2.0).double().log(), rtol=1e-9, atol=0)


def test_powers_are_drawn_from_above_0_to_the_highest() -> None:
    generator = seeds.generator(1)
    drawn = torch.stack([d for _ in range(4000) if (d := Cmim().draw(generator, (3, 5)).step) is not None])
    assert len(drawn) == 4000
    assert drawn.dtype == torch.float64
    assert 0 < float(drawn.min()) < 0.01
    assert 0.99 < float(drawn.max()) <= 1
    assert abs(float(drawn.mean()) - 0.5) < 0.03
    assert Cmim().draw(generator, (3, 5)).example is None


def test_a_power_of_0_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch draws from [0, 1): 0 may come up."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(*size, dtype=torch.float64))
    drawn = Cmim().draw(seeds.generator(1), (3, 5)).step
    assert drawn is not None
    assert float(drawn) == 1.0


@pytest.mark.parametrize("drawn", [0.1, 0.6, 1.0])
def test_only_the_bucket_of_a_moves(drawn: float) -> None:
    hook, (outputs, targets) = Cmim(decay=0.7, highest=3.0, buckets=5), said(9, classes=(0, 2))
    before = centroids(5)
    with torch.no_grad():
        after = hook.update(step({"centroids": before}, 9, draws=share(drawn)), outputs, targets)["centroids"]
    bucket = next(b for b in range(5) if b / 5 < drawn <= (b + 1) / 5)
    for b in range(5):
        if b != bucket:
            assert torch.equal(after[b], before[b])
    p = powered(outputs.logits.softmax(1), 3.0 * drawn)
    for c in range(NUM_CLASSES):
        mean = p[targets == c].mean(0) if c in (0, 2) else before[bucket, c]
        torch.testing.assert_close(after[bucket, c], 0.7 * before[bucket, c] + 0.3 * mean, rtol=1e-10, atol=1e-13)


def test_centroids_start_as_class_means_at_the_middle_of_each_bucket(recorder: Recorder) -> None:
    theta, data = start(), shard()
    trained(Cmim(highest=2.0, buckets=4), theta)
    p = outputs_at(theta, data.x).logits.softmax(1)
    for b, middle in enumerate((0.25, 0.75, 1.25, 1.75)):
        expected = means_by_class(powered(p, middle), data.y, 1 / NUM_CLASSES)
        torch.testing.assert_close(recorder.memories[0]["centroids"][b], expected, rtol=1e-11, atol=1e-13)


def test_a_step_is_autograd_of_the_formula_at_the_power_drawn(recorder: Recorder) -> None:
    theta, data, hook = start(), shard(), Cmim(lam=0.5, buckets=3)
    found = full_batch(hook)
    drawn = recorder.batches[0].drawn["cmim"]["step"]
    held = recorder.memories[0]["centroids"]
    bucket = next(b for b in range(3) if b / 3 < float(drawn) <= (b + 1) / 3)

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        p = powered(outputs.logits.softmax(1), 2.0 * float(drawn))
        near = torch.stack([kl(row, held[bucket, y]) for row, y in zip(p, targets, strict=True)])
        return plain_loss(outputs, targets) + 0.5 * near.mean()

    torch.testing.assert_close(found, gradient_of(theta, data, loss), rtol=1e-8, atol=1e-11)


def test_the_averages_go_on_in_the_next_round(recorder: Recorder) -> None:
    first = trained(Cmim(), start())
    recorder.clear()
    trained(Cmim(), 0.5 * start(), state=first.state)
    assert torch.equal(recorder.memories[0]["centroids"], first.state["cmim.centroids"])


def test_lam_of_0_is_plain_training() -> None:
    found = trained(Cmim(lam=0.0), local_epochs=2)
    torch.testing.assert_close(found.update, trained(local_epochs=2).update, rtol=1e-12, atol=1e-14)
