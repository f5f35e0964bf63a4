"""NCMI on features against the formula in loops (arXiv 2601.02543)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.app import LocalApp
from clients.hooks.ncmi import Ncmi, log_sigmax
from clients.resident import flat_network
from fedsim.datasets import Split
from fedsim.federation import Federation
from fedsim.models import Outputs
from tests.clients.hooks.small import (
    NUM_CLASSES,
    NUM_FEATURES,
    Recorder,
    full_batch,
    gradient_of,
    kl,
    outputs_at,
    said,
    shapes,
    shard,
    start,
    step,
    trained,
)
from tests.clients.hooks.test_cohort import answer
from tests.test_determinism import scenario_of

CENTRE = torch.linspace(-0.3, 0.4, NUM_FEATURES, dtype=torch.float64)


def sigmax(h: Tensor) -> Tensor:
    return h.sigmoid() / h.sigmoid().sum()


def place(z: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """P = sigmax(h), h = (z - mu) / ||z - mu||_2 / T."""
    return sigmax((z - centre) / (z - centre).square().sum().sqrt() / temperature)


def ratio(p: Tensor, free: Tensor, y: int) -> Tensor:
    """KL(P || Q_y) / ((1 / C) sum over c != y of KL(Q_c || P))."""
    q = [sigmax(row) for row in free]
    away = sum((kl(q[c], p) for c in range(NUM_CLASSES) if c != y), p.new_zeros(()))
    return kl(p, q[y]) / (away / NUM_CLASSES)


def memory_of(hook: Ncmi, **changes: Tensor) -> dict[str, Tensor]:
    return {**hook.init(shapes(), torch.tensor([0])), "centre": CENTRE, **changes}


def spread(seed: int = 3) -> Tensor:
    """Free centroids that are nowhere special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_CLASSES, NUM_FEATURES, generator=generator, dtype=torch.float64)


def test_rows_of_sigmax_sum_to_1_and_it_is_no_softmax() -> None:
    h = 5 * said(9)[0].features
    found = log_sigmax(h).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(9, dtype=torch.float64), rtol=1e-13, atol=0)
    for i in range(9):
        torch.testing.assert_close(found[i], sigmax(h[i]), rtol=1e-12, atol=1e-15)
    assert torch.isfinite(log_sigmax(torch.tensor([[-500.0, 500.0, -1000.0]]))).all()


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_of_each_example(temperature: float) -> None:
    hook = Ncmi(temperature=temperature)
    outputs, targets = said(9)
    free = spread()
    found = hook.loss(step(memory_of(hook, free=free), 9), outputs, targets)
    for i in range(9):
        expected = ratio(place(outputs.features[i], CENTRE, temperature), free, int(targets[i]))
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-14)
    assert float(found.min()) > 0


def test_it_is_0_when_every_example_is_at_its_centroid() -> None:
    """Q_c can be any sigmax(h) of a normalised h: choose the centroids where the examples are."""
    hook = Ncmi(temperature=1.0)
    outputs, _ = said(NUM_CLASSES)
    apart = outputs.features - CENTRE
    free = apart / apart.norm(dim=1, keepdim=True)
    targets = torch.arange(NUM_CLASSES)
    found = hook.loss(step(memory_of(hook, free=free), NUM_CLASSES), outputs, targets)
    assert float(found.abs().max()) < 1e-13
    moved = hook.loss(step(memory_of(hook, free=free), NUM_CLASSES), outputs, targets.roll(1))
    assert float(moved.min()) > 1e-3


def test_the_free_centroids_start_as_published() -> None:
    """10 I padded with zeros, plus 1e-6."""
    free = Ncmi().init(shapes(), torch.tensor([0]))["free"]
    for c in range(NUM_CLASSES):
        for f in range(NUM_FEATURES):
            assert float(free[c, f]) == pytest.approx((10.0 if c == f else 0.0) + 1e-6)


def test_a_shift_of_all_features_along_with_the_centre_changes_nothing() -> None:
    hook, (outputs, targets) = Ncmi(centroid_lr=0.5), said(9)
    shift = 3.0 * torch.arange(NUM_FEATURES, dtype=torch.float64)
    moved = Outputs(outputs.logits, outputs.features + shift)
    near, far = memory_of(hook), memory_of(hook, centre=CENTRE + shift)
    torch.testing.assert_close(
        hook.loss(step(far, 9), moved, targets), hook.loss(step(near, 9), outputs, targets), rtol=1e-9, atol=1e-12
    )
    with torch.no_grad():
        a, b = hook.update(step(near, 9), outputs, targets), hook.update(step(far, 9), moved, targets)
    torch.testing.assert_close(b["free"], a["free"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(b["centre"], a["centre"] + shift, rtol=1e-9, atol=1e-12)


def test_an_example_at_the_centre_has_a_finite_loss_and_gradient() -> None:
    hook = Ncmi()
    features = CENTRE.unsqueeze(0).clone().requires_grad_()
    value = hook.loss(step(memory_of(hook), 1), Outputs(features, features), torch.tensor([0])).sum()
    (grad,) = torch.autograd.grad(value, features)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


def test_a_step_is_autograd_of_the_formula_and_leaves_the_last_layer_alone() -> None:
    theta, data = start(), shard()
    centre = outputs_at(theta, data.x).features.mean(0)
    free = memory_of(Ncmi())["free"]

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        rows = [ratio(place(z, centre, 0.2), free, int(y)) for z, y in zip(outputs.features, targets, strict=True)]
        # Autograd wants every parameter to be used.
        return torch.stack(rows).mean() + 0.0 * outputs.logits.sum()

    found = full_batch(Ncmi())
    torch.testing.assert_close(found, gradient_of(theta, data, loss), rtol=1e-8, atol=1e-11)
    head = NUM_FEATURES * NUM_CLASSES + NUM_CLASSES
    assert not found[-head:].any()
    assert found[:-head].any()


def test_the_centre_follows_every_batch_and_is_kept(recorder: Recorder) -> None:
    theta, hook = start(), Ncmi(decay=0.6)
    first = trained(hook, theta)
    last = trained(hook, 0.9 * theta, state=first.state)
    centre = outputs_at(theta, shard().x).features.mean(0)
    for memory, outputs in zip(recorder.memories, recorder.outputs, strict=True):
        torch.testing.assert_close(memory["centre"], centre, rtol=1e-10, atol=1e-13)
        assert torch.equal(memory["free"], recorder.memories[0]["free"])  # their learning rate is 0
        centre = 0.6 * centre + 0.4 * outputs.features.mean(0)
    torch.testing.assert_close(last.state["ncmi.centre"], centre, rtol=1e-10, atol=1e-13)


def test_the_centroids_descend_their_own_gradient() -> None:
    hook, (outputs, targets) = Ncmi(centroid_lr=0.7, temperature=0.5), said(9)
    free = spread().requires_grad_()
    rows = [ratio(place(z, CENTRE, 0.5), free, int(y)) for z, y in zip(outputs.features, targets, strict=True)]
    (gradient,) = torch.autograd.grad(torch.stack(rows).mean(), free)
    with torch.no_grad():
        after = hook.update(step(memory_of(hook, free=free.detach()), 9), outputs, targets)
    assert float(gradient.norm()) > 1e-3
    torch.testing.assert_close(after["free"], free.detach() - 0.7 * gradient, rtol=1e-9, atol=1e-12)


class TestPrediction:
    def means(self, outputs: Outputs, targets: Tensor, centre: Tensor) -> dict[int, Tensor]:
        """Q_c: the mean of P over the train examples of class c."""
        p = torch.stack([place(z, centre, 0.2) for z in outputs.features])
        return {c: p[targets == c].mean(0) for c in targets.unique().tolist()}

    def after_two_passes(self, outputs: Outputs, targets: Tensor) -> dict[str, Tensor]:
        """The first pass finds the centre, the second the means around it."""
        memory: Any = Ncmi().init(shapes(), targets)
        for _ in range(2):
            sums = Ncmi().collect(memory, outputs, targets, torch.ones(len(targets)).double())
            memory = Ncmi().refit(memory, sums)
        return dict(memory)

    @pytest.mark.parametrize("classes", [(0, 1, 2, 3), (0, 3), (2,)])
    def test_the_nearest_class_mean_is_predicted_and_an_absent_class_never(self, classes: Any) -> None:
        train, targets = said(30, 5, classes=classes)
        memory = self.after_two_passes(train, targets)
        means = self.means(train, targets, train.features.mean(0))
        test, _ = said(200, 6)
        scores = Ncmi().scores(memory, test)
        assert scores.shape == (200, NUM_CLASSES)
        for i, z in enumerate(test.features):
            p = place(z, train.features.mean(0), 0.2)
            distances = {c: float(kl(p, q)) for c, q in means.items()}
            nearest = min(distances, key=distances.__getitem__)
            assert int(scores[i].argmax()) == nearest
            assert float(scores[i, nearest]) == pytest.approx(-distances[nearest], rel=1e-9)
        assert set(scores.argmax(1).tolist()) == set(classes)

    def test_scores_stay_apart_in_float32(self) -> None:
        train, targets = said(30, 5, classes=(1, 2))
        memory = {key: value.float() for key, value in self.after_two_passes(train, targets).items()}
        test = Outputs(*(part.float() for part in said(100, 7)[0]))
        scores = Ncmi().scores(memory, test)
        assert torch.isfinite(scores).all()
        assert set(scores.argmax(1).tolist()) == {1, 2}


def test_clients_are_judged_by_what_they_predict() -> None:
    """The accuracy of a run is that of the nearest class mean of the client's own train shard."""
    made = scenario_of("fedavg", client={"hooks": ["ncmi"]}, evaluation={"metrics": ["class_accuracy"]})
    federation = Federation.build(made.data, made.partition, made.seed, Path())
    block = answer(LocalApp(made, federation), federation, [[client] for client in range(4)], "evaluate")
    network = flat_network(made, federation, torch.device("cpu"))
    with torch.no_grad():
        for client, accuracy in zip(block.clients, block.numbers["test_accuracy"].tolist(), strict=True):
            shard_ = federation.client(client)
            train, test = (network.outputs(part.x).features.double() for part in (shard_.train, shard_.test))
            centre = train.mean(0)
            p = torch.stack([place(z, centre, 0.2) for z in train])
            means = {c: p[shard_.train.y == c].mean(0) for c in shard_.train.y.unique().tolist()}
            right = 0
            for z, y in zip(test, shard_.test.y.tolist(), strict=True):
                distances = {c: float(kl(place(z, centre, 0.2), q)) for c, q in means.items()}
                right += min(distances, key=distances.__getitem__) == y
            assert accuracy == pytest.approx(right / len(test))


class TestRefused:
    def test_fewer_features_than_classes(self) -> None:
        with pytest.raises(ValueError, match="ncmi needs at least 4 features, one for each class, got 3; widen"):
            Ncmi().init(shapes(num_features=3), torch.tensor([0]))

    def test_features_that_are_the_input(self) -> None:
        with pytest.raises(ValueError, match="this model's are its input; use one with hidden layers"):
            Ncmi().init(shapes(learned_features=False), torch.tensor([0]))

    def test_as_many_features_as_classes_are_enough(self) -> None:
        memory = Ncmi().init(shapes(num_features=NUM_CLASSES), torch.tensor([0]))
        assert memory["free"].shape == (NUM_CLASSES, NUM_CLASSES)


def test_it_learns_to_tell_classes_apart() -> None:
    """Three clouds far apart: the nearest class mean is nearly always right, where chance is right in a third."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) + 5.0 * torch.eye(5).double()[y]
    found = trained(Ncmi(), data=Split(x, y), local_epochs=20, lr=0.5, batch_size=10)
    theta = start() - found.update
    outputs = outputs_at(theta, x)
    scores = Ncmi().scores(TestPrediction().after_two_passes(outputs, y), outputs)
    assert float((scores.argmax(1) == y).double().mean()) > 0.9
