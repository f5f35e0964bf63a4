"""Local training against an independent loop with torch.optim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients import steps
from clients.quasi_newton import quasi_newton_rate
from clients.training import Fit, QuasiNewton
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from tests.clients.one import fit_one

CPU = torch.device("cpu")
NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES = 23, 5, 4


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(NUM_FEATURES, 6), nn.Tanh())
        self.head = nn.Linear(6, NUM_CLASSES)
        self.to(dtype)

    def forward(self, x: Tensor) -> Outputs:
        features = self.body(x)
        return Outputs(self.head(features), features)


def shard(dtype: torch.dtype = torch.float64, count: int = NUM_EXAMPLES, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, NUM_FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return Split(x, torch.randint(0, NUM_CLASSES, (count,), generator=generator))


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.5 * torch.randn(FlatNetwork(Net(dtype), CPU).theta.shape, dtype=dtype, generator=stream())


def stream() -> torch.Generator:
    return seeds.generator(1, "batches", 2, 3)


def plain(theta: Tensor) -> Net:
    network = Net(theta.dtype)
    nn.utils.vector_to_parameters(theta.clone(), network.parameters())  # makes views, hence the copy
    return network


def objective(network: Net, data: Split, weight_decay: float) -> Tensor:
    penalty = sum(p.square().sum() for p in network.parameters())
    return functional.cross_entropy(network(data.x).logits, data.y) + 0.5 * weight_decay * penalty


def gradient_at(theta: Tensor, data: Split, weight_decay: float = 0.0) -> Tensor:
    network = plain(theta)
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(objective(network, data, weight_decay), network.parameters())]
    )


def loss_at(theta: Tensor, data: Split, weight_decay: float = 0.0) -> float:
    return float(objective(plain(theta), data, weight_decay).detach())


def slow_fit(theta: Tensor, data: Split, settings: ClientSettings, lr: float) -> Tensor:
    """Train as anybody would: torch.optim.SGD, the same batches; return the local weights."""
    network, generator = plain(theta), stream()
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=settings.momentum)
    for _ in range(settings.local_epochs):
        order = torch.randperm(len(data), generator=generator)
        for rows in order.split(settings.batch_size):
            optimiser.zero_grad()
            # The L2 term is part of the loss, so it is clipped with it.
            objective(network, data[rows], settings.weight_decay).backward()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimiser.step()
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def fit(theta: Tensor, data: Split, settings: ClientSettings, lr: float = 0.1, **others: object) -> Fit:
    return fit_one(FlatNetwork(Net(theta.dtype), CPU), theta, data, settings, lr, stream(), **others)  # type: ignore[arg-type]


CASES = {
    "plain": {},
    "several epochs": {"local_epochs": 3},
    "one batch": {"batch_size": 100, "local_epochs": 2},
    "single examples": {"batch_size": 1},
    "momentum": {"momentum": 0.9, "local_epochs": 2},
    "weight decay": {"weight_decay": 0.3, "local_epochs": 2},
    "clipped": {"clip_norm": 0.2, "local_epochs": 2},
    "never clipped": {"clip_norm": 1e6, "local_epochs": 2},
    "all": {"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.4, "local_epochs": 3},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
def test_training_equals_torch_optim(options: dict[str, float], dtype: torch.dtype) -> None:
    settings = ClientSettings(**{"batch_size": 4, **options})  # type: ignore[arg-type]
    theta, data = start(dtype), shard(dtype)
    found = fit(theta, data, settings)
    expected = theta - slow_fit(theta, data, settings, 0.1)
    # torch's clipping divides by norm + 1e-6.
    tolerance = (
        {"atol": 3e-6, "rtol": 3e-5}
        if "clip_norm" in options or dtype == torch.float32
        else {"atol": 1e-13, "rtol": 1e-11}
    )
    torch.testing.assert_close(found.update, expected, **tolerance)
    local = theta - expected
    assert found.report["loss"] == pytest.approx(loss_at(theta, data, settings.weight_decay), rel=1e-5)
    assert found.report["loss-after"] == pytest.approx(loss_at(local, data, settings.weight_decay), rel=1e-4)
    assert found.report["steps"] == settings.local_epochs * math.ceil(NUM_EXAMPLES / settings.batch_size)
    assert found.report["num-examples"] == NUM_EXAMPLES
    assert found.report["update-norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


def test_clipping_bounds_a_step() -> None:
    settings = ClientSettings(batch_size=100, clip_norm=0.01)
    found = fit(start(), shard(), settings, lr=2.0)
    assert float(found.update.norm()) == pytest.approx(0.02, rel=1e-9)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_no_epochs_send_the_gradient_of_the_whole_shard(weight_decay: float) -> None:
    settings = ClientSettings(local_epochs=0, batch_size=4, weight_decay=weight_decay, clip_norm=1e-3)
    theta, data = start(), shard()
    found = fit(theta, data, settings)
    torch.testing.assert_close(found.update, gradient_at(theta, data, weight_decay), atol=1e-14, rtol=1e-11)
    assert found.report["steps"] == 0
    assert found.report["loss"] == found.report["loss-after"] == pytest.approx(loss_at(theta, data, weight_decay))


@pytest.mark.parametrize("local_epochs", [0, 1])
def test_shards_longer_than_a_chunk_are_summed_over_chunks(
    monkeypatch: pytest.MonkeyPatch, local_epochs: int
) -> None:
    settings = ClientSettings(local_epochs=local_epochs, weight_decay=0.1)
    theta, data = start(), shard()
    whole = fit(theta, data, settings)
    monkeypatch.setattr(steps, "CHUNK", 5)
    chunks = fit(theta, data, settings)
    torch.testing.assert_close(chunks.update, whole.update)
    assert chunks.report == pytest.approx(whole.report)


def test_the_loss_is_that_of_the_received_weights_whatever_follows() -> None:
    theta, data = start(), shard()
    losses = {fit(theta, data, ClientSettings(local_epochs=epochs), lr=0.5).report["loss"] for epochs in (0, 1, 5)}
    assert max(losses) - min(losses) < 1e-12
    assert losses.pop() == pytest.approx(loss_at(theta, data), rel=1e-12)


def test_training_depends_on_the_generator_alone() -> None:
    theta, data, settings = start(torch.float32), shard(torch.float32), ClientSettings(batch_size=4, momentum=0.9)
    model = FlatNetwork(Net(torch.float32), CPU)
    first = fit_one(model, theta, data, settings, 0.1, stream())
    torch.rand(10)
    fit_one(model, theta + 1, shard(torch.float32, 9, seed=5), settings, 0.3, seeds.generator(9))
    again = fit_one(model, theta, data, settings, 0.1, stream())
    assert torch.equal(first.update, again.update)
    assert first.report == again.report
    other = fit_one(model, theta, data, settings, 0.1, seeds.generator(1, "batches", 2, 4))
    assert not torch.equal(first.update, other.update)


def test_received_weights_and_data_are_left_alone() -> None:
    theta, data = start(), shard()
    before = theta.clone(), data.x.clone()
    fit(theta, data, ClientSettings(local_epochs=2, momentum=0.5, weight_decay=0.1))
    assert torch.equal(theta, before[0])
    assert torch.equal(data.x, before[1])


class TestQuasiNewton:
    def test_the_first_participation_has_no_pairs(self) -> None:
        theta, data = start(), shard()
        found = fit(theta, data, ClientSettings(), newton=QuasiNewton(5, True, False))
        assert found.report["pairs"] == 0
        reach = found.report["lr"] * found.report["steps"]  # <x, u> = reach <x, g> for an update u of g
        assert found.report["rate"] == pytest.approx(reach * float(gradient_at(theta, data).square().sum()))
        assert found.report["rate-identity"] == found.report["rate"]
        torch.testing.assert_close(found.state["theta"], theta)
        torch.testing.assert_close(found.state["gradient"], gradient_at(theta, data))

    def test_pairs_over_rounds_are_differences_of_received_weights_and_full_gradients(self) -> None:
        data, settings, newton = shard(), ClientSettings(), QuasiNewton(2, True, False)
        points = [start() * scale for scale in (1.0, 0.8, 0.5, 0.3)]
        state: dict[str, Tensor] = {}
        for point in points:
            found = fit(point, data, settings, newton=newton, state=state)
            state = dict(found.state)
        gradients = [gradient_at(point, data) for point in points]
        pairs = [(points[i + 1] - points[i], gradients[i + 1] - gradients[i]) for i in range(3)]
        pairs = [(s, y) for s, y in pairs if s @ y > 1e-10 * s.norm() * y.norm()][-2:]
        assert found.report["pairs"] == len(pairs) > 0
        reach = found.report["lr"] * found.report["steps"]
        assert found.report["rate"] == pytest.approx(reach * quasi_newton_rate(pairs, gradients[-1]), rel=1e-8)

    def test_local_pairs_come_from_the_ends_of_epochs_and_leave_no_state(self) -> None:
        theta, data, settings = start(), shard(), ClientSettings(local_epochs=4, batch_size=4)
        found = fit(theta, data, settings, newton=QuasiNewton(10, False, False))
        ends = [slow_fit(theta, data, settings.model_copy(update={"local_epochs": n}), 0.1) for n in (1, 2, 3, 4)]
        points = [theta, *ends]
        gradients = [gradient_at(point, data) for point in points]
        pairs = [(points[i + 1] - points[i], gradients[i + 1] - gradients[i]) for i in range(4)]
        pairs = [(s, y) for s, y in pairs if s @ y > 1e-10 * s.norm() * y.norm()]
        reach = found.report["lr"] * found.report["steps"]
        assert found.state == {}
        assert found.report["pairs"] == len(pairs) > 0
        assert found.report["rate"] == pytest.approx(reach * quasi_newton_rate(pairs, gradients[0]), rel=1e-7)

    @pytest.mark.parametrize("local_epochs", [1, 4])
    def test_within_reach_the_rate_is_at_most_that_of_the_local_steps(self, local_epochs: int) -> None:
        """H <= lr * steps * I, so g^T H g <= lr * steps * ||g||^2, whatever the pairs."""
        theta, data = start(), shard()
        settings = ClientSettings(local_epochs=local_epochs, batch_size=4)
        newton = QuasiNewton(10, False, False, within_reach=True)
        found = fit(theta, data, settings, lr=0.01, newton=newton)
        assert found.report["pairs"] > 0
        assert 0 < found.report["rate"] <= found.report["rate-identity"] * (1 + 1e-9)

    @pytest.mark.parametrize("from_rounds", [True, False])
    def test_the_final_gradient_is_the_one_at_the_last_local_iterate(self, from_rounds: bool) -> None:
        theta, data, settings = start(), shard(), ClientSettings(local_epochs=2, batch_size=4, weight_decay=0.1)
        found = fit(theta, data, settings, newton=QuasiNewton(5, from_rounds, True))
        end = slow_fit(theta, data, settings, 0.1)
        torch.testing.assert_close(found.update, gradient_at(end, data, 0.1), atol=1e-12, rtol=1e-9)
        if from_rounds:  # what is kept for the next pair is the gradient at the received weights
            torch.testing.assert_close(found.state["gradient"], gradient_at(theta, data, 0.1))
