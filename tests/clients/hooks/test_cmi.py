"""CMI-constrained training against double loops and autograd of the formula (arXiv 2309.09123)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clients.hooks.cmi import Cmi
from clients.objective import Objective
from clients.steps import Client
from clients.training import Work, fit_each, shapes_of
from fedsim import seeds
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from tests.clients.hooks.networks import Headed, dense
from tests.clients.hooks.small import (
    NUM_CLASSES,
    STEPS_AN_EPOCH,
    Recorder,
    cross_entropy,
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

UNIFORM = 1.0 / NUM_CLASSES


def memory_of(hook: Cmi, outputs: Outputs, targets: Tensor) -> dict[str, Tensor]:
    """The memory after a pass over a shard that is this batch."""
    fresh = hook.init(shapes(), targets)
    mask = torch.ones(len(targets), dtype=torch.float64)
    return dict(hook.refit(fresh, hook.collect(fresh, outputs, targets, mask)))


def class_means_at(theta: Tensor) -> Tensor:
    data = shard()
    return means_by_class(outputs_at(theta, data.x).logits.softmax(1), data.y, UNIFORM)


class TestFormula:
    @pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
    def test_the_loss_is_that_of_the_double_loop(self, kind: str) -> None:
        hook = Cmi(lam=0.7, beta=0.4, separation=kind)  # type: ignore[arg-type]
        outputs, targets = said(11)
        memory = hook.init(shapes(), targets) | {"centroids": said(NUM_CLASSES, 5)[0].logits.softmax(1)}
        found = hook.loss(step(memory, 11), outputs, targets).mean()
        p = outputs.logits.softmax(1)
        concentration = sum(kl(p[i], memory["centroids"][targets[i]]) for i in range(11)) / 11
        separation: Tensor | float = 0.0
        for i in range(11):
            for j in range(11):
                if targets[i] != targets[j]:
                    separation = separation + (cross_entropy if kind == "cross_entropy" else kl)(p[i], p[j])
        torch.testing.assert_close(found, 0.7 * concentration - 0.4 * separation / 11**2, rtol=1e-12, atol=1e-13)

    def test_outputs_at_their_centroids_have_no_cmi(self) -> None:
        targets = torch.tensor([0, 1, 2, 3, 3, 0, 1])
        centroids = torch.randn(NUM_CLASSES, NUM_CLASSES, generator=torch.Generator().manual_seed(1)).double()
        outputs = Outputs(centroids[targets], torch.zeros(7, 6, dtype=torch.float64))
        hook = Cmi(lam=1.0)
        losses = hook.loss(step(memory_of(hook, outputs, targets), 7), outputs, targets)
        assert float(losses.abs().max()) < 1e-14

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 40), st.integers(0, 2**16), st.floats(0.0, 50.0))
    def test_it_is_between_0_and_the_logarithm_of_the_classes(self, count: int, seed: int, scale: float) -> None:
        hook = Cmi(lam=1.0)
        outputs, targets = said(count, seed, scale)
        value = float(hook.loss(step(memory_of(hook, outputs, targets), count), outputs, targets).mean())
        assert -1e-12 <= value <= math.log(NUM_CLASSES) + 1e-12

    def test_one_hot_outputs_reach_the_upper_bound(self) -> None:
        """Class 0 is called each class equally often: H(Yhat | Y) = log C; P underflows to 0 exactly."""
        logits = 1e4 * torch.eye(NUM_CLASSES, dtype=torch.float64)
        outputs, targets = Outputs(logits, logits), torch.zeros(NUM_CLASSES, dtype=torch.int64)
        hook = Cmi(lam=1.0)
        value = hook.loss(step(memory_of(hook, outputs, targets), NUM_CLASSES), outputs, targets).mean()
        assert float(value) == pytest.approx(math.log(NUM_CLASSES), rel=1e-12)

    def test_outputs_that_underflow_in_float32_have_a_finite_loss_and_gradient(self) -> None:
        logits = torch.tensor([[200.0, 0, 0, 0], [0, 200.0, 0, 0]], requires_grad=True)
        hook = Cmi(lam=1.0, beta=0.3)
        memory = hook.init(shapes(dtype=torch.float32), torch.tensor([0, 1]))
        wrong = {**memory, "centroids": torch.eye(NUM_CLASSES)[[1, 0, 2, 3]]}  # all mass where P has none
        ones = torch.ones(2)
        losses = hook.loss(step(wrong, 2, ones), Outputs(logits, logits), torch.tensor([0, 1]))
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()

    def test_one_class_alone_is_not_separated(self) -> None:
        outputs, targets = said(6, classes=[2])
        losses = [
            Cmi(lam=0.0, beta=b).loss(step(Cmi().init(shapes(), targets), 6), outputs, targets) for b in (0, 3)
        ]
        assert not losses[0].any()
        assert not losses[1].any()

    def test_class_means_minimise_the_divergence(self) -> None:
        """For fixed outputs I = min over Q of E KL(P || Q_Y): any other Q is worse."""
        outputs, targets = said(23, 3)
        hook = Cmi(lam=1.0)
        memory = memory_of(hook, outputs, targets)
        best = float(hook.loss(step(memory, 23), outputs, targets).mean())
        generator = torch.Generator().manual_seed(0)
        for size in (1e-3, 1e-2, 0.3):
            for _ in range(20):
                noise = torch.randn(NUM_CLASSES, NUM_CLASSES, generator=generator, dtype=torch.float64)
                other = (memory["centroids"] * (size * noise).exp()).clone()
                other = other / other.sum(1, keepdim=True)
                worse = hook.loss(step({**memory, "centroids": other}, 23), outputs, targets).mean()
                assert float(worse) > best


class TestTraining:
    def test_weights_of_0_are_plain_training(self) -> None:
        options: dict[str, Any] = {"local_epochs": 3, "momentum": 0.9}
        found = trained(Cmi(lam=0.0, beta=0.0), **options)
        torch.testing.assert_close(found.update, trained(**options).update, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
    def test_a_step_is_autograd_of_the_formula(self, kind: str) -> None:
        """J_B = CE + lam KL(P || Q_y) - beta / B^2 sum 1{y != v} H(P, P'), with Q held fixed."""
        theta, data = start(), shard()
        centroids = class_means_at(theta)

        def loss(outputs: Outputs, targets: Tensor) -> Tensor:
            p, size = outputs.logits.softmax(1), len(targets)
            total = plain_loss(outputs, targets)
            for i in range(size):
                total = total + 0.6 * kl(p[i], centroids[targets[i]]) / size
                for j in range(size):
                    if targets[i] != targets[j]:
                        apart = cross_entropy(p[i], p[j]) if kind == "cross_entropy" else kl(p[i], p[j])
                        total = total - 0.3 * apart / size**2
            return total

        found = full_batch(Cmi(lam=0.6, beta=0.3, separation=kind))  # type: ignore[arg-type]
        torch.testing.assert_close(found, gradient_of(theta, data, loss), rtol=1e-9, atol=1e-11)

    def test_what_is_reported_is_the_mean_divergence_over_the_steps(self, recorder: Recorder) -> None:
        found = trained(Cmi(), local_epochs=2)
        total = 0.0
        for memory, outputs, batch in zip(recorder.memories, recorder.outputs, recorder.batches, strict=True):
            p = outputs.logits.softmax(1)
            every = [float(kl(p[i], memory["centroids"][batch.y[i]])) for i in range(len(batch.y))]
            total += sum(every) / len(every)
        assert len(recorder.memories) == 2 * STEPS_AN_EPOCH
        assert found.report["cmi-concentration"] == pytest.approx(total / len(recorder.memories), rel=1e-10)


class TestCentroids:
    def test_alternating_takes_class_means_at_the_start_of_each_epoch(self, recorder: Recorder) -> None:
        theta = start()
        trained(Cmi(centroids="alternate"), local_epochs=3)
        memories = [memory["centroids"] for memory in recorder.memories]
        assert len(memories) == 3 * STEPS_AN_EPOCH
        for epoch in range(3):
            here = theta
            if epoch:
                here = theta - trained(Cmi(centroids="alternate"), local_epochs=epoch).update
            expected = class_means_at(here)
            for seen in memories[epoch * STEPS_AN_EPOCH : (epoch + 1) * STEPS_AN_EPOCH]:
                torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(memories[0], memories[-1])

    @pytest.mark.parametrize("schedule", ["alternate", "round"])
    def test_schedules_of_a_round_keep_nothing(self, schedule: Any) -> None:
        hook = Cmi(centroids=schedule)
        assert not hook.stateful
        assert trained(hook).state == {}

    def test_by_round_they_stay_until_the_next_one(self, recorder: Recorder) -> None:
        hook = Cmi(centroids="round")
        for theta in (start(), 0.5 * start()):
            recorder.clear()
            trained(hook, theta, local_epochs=2)
            expected = class_means_at(theta)
            for memory in recorder.memories:
                torch.testing.assert_close(memory["centroids"], expected, rtol=1e-12, atol=1e-14)

    def test_frozen_they_are_those_of_the_first_participation(self, recorder: Recorder) -> None:
        hook, theta = Cmi(centroids="frozen"), start()
        expected, state = class_means_at(theta), None
        for scale in (1.0, 0.5, 0.2):
            state = trained(hook, scale * theta, state=state, local_epochs=2).state
        assert len(recorder.memories) == 6 * STEPS_AN_EPOCH
        for memory in recorder.memories:
            torch.testing.assert_close(memory["centroids"], expected, rtol=1e-12, atol=1e-14)

    def test_a_moving_average_follows_every_batch_into_the_next_round(self, recorder: Recorder) -> None:
        """Q_c <- kappa Q_c + (1 - kappa) mean of P over the batch's examples of class c, where there are any."""
        hook, theta = Cmi(centroids="ema", decay=0.7), start()
        first = trained(hook, theta, local_epochs=2)
        trained(hook, 0.5 * theta, state=first.state, local_epochs=1)
        expected = class_means_at(theta)
        assert len(recorder.memories) == 3 * STEPS_AN_EPOCH
        for place, memory in enumerate(recorder.memories):
            torch.testing.assert_close(memory["centroids"], expected, rtol=1e-10, atol=1e-13)
            if place == 2 * STEPS_AN_EPOCH:
                torch.testing.assert_close(first.state["cmi.centroids"], expected, rtol=1e-10, atol=1e-13)
            p, targets = recorder.outputs[place].logits.softmax(1), recorder.batches[place].y
            for c in range(NUM_CLASSES):
                mine = p[targets == c]
                if len(mine):
                    moved = 0.7 * expected[c] + 0.3 * mine.mean(0)
                    expected[c] = moved / moved.sum()

    def test_nothing_is_dropped_out_in_the_pass_over_the_shard(self, recorder: Recorder) -> None:
        """Fed-IT's public code takes its centroids in training mode."""
        with seeds.global_stream(3):
            network = FlatNetwork(Headed(nn.Sequential(dense(), nn.Dropout(0.5))).double(), torch.device("cpu"))
        data, received = shard(), network.theta.clone()
        objective = Objective({"cmi": Cmi()}, shapes_of(network, data.x[:1], 4))
        client = Client(range(len(data)), lambda purpose: seeds.generator(1, purpose))
        here = received  # the weights at the start of the last epoch
        for epochs in (1, 2):
            recorder.clear()
            work = Work(ClientSettings(batch_size=4, local_epochs=epochs), 0.1, objective)
            (fit,) = fit_each(network, received, data, [client], work)
            network.network.eval()
            p = network.outputs_at(network.named(here), data.x).logits.detach().softmax(1)
            expected = means_by_class(p, data.y, UNIFORM)
            torch.testing.assert_close(recorder.memories[-1]["centroids"], expected, rtol=1e-11, atol=1e-13)
            here = received - fit.update

    def test_a_class_without_examples_keeps_a_uniform_centroid(self, recorder: Recorder) -> None:
        data = shard()
        some = data[:23]
        some.y[some.y == 2] = 1
        trained(Cmi(centroids="alternate"), data=some)
        for memory in recorder.memories:
            assert memory["centroids"][2].tolist() == [UNIFORM] * NUM_CLASSES
            assert not torch.allclose(memory["centroids"][1], memory["centroids"][2])
