"""DP-SGD: clipping, noise, Poisson batches and the privacy they cost (arXiv 1607.00133, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from torch import Tensor, nn

from clients.hooks.dp_sgd import DpSgd, spent
from clients.objective import Batch, Objective
from clients.steps import Client
from clients.training import Fit, Work, fit_each, fit_stacked, shapes_of
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from tests.clients.hooks.small import gradient_of, plain_loss, shard, start, trained

HUGE = 1e9


def by_loop(theta: Tensor, data: Split, norm: float) -> Tensor:
    """sum_i g_i min(1, norm / ||g_i||), example by example."""
    total = torch.zeros_like(theta)
    for i in range(len(data)):
        g = gradient_of(theta, data[i : i + 1], plain_loss)
        total += g * min(1.0, norm / float(g.norm()))
    return total


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, Tensor, int]]:
    """Every batch that a private gradient is taken of, with the weights and what the sum is divided by."""
    found: list[tuple[Batch, Tensor, int]] = []
    gradient = Objective.gradient

    def record(self: Any, forward: Any, parameters: Mapping[str, Tensor], memories: Any, batch: Any, n: Any) -> Any:
        found.append((batch, torch.cat([p.reshape(-1).clone() for p in parameters.values()]), int(n)))
        return gradient(self, forward, dict(parameters), memories, batch, n)

    monkeypatch.setattr(Objective, "gradient", record)
    return found


class TestClipping:
    @pytest.mark.parametrize("norm", [0.05, 0.8, 1.5, HUGE])
    def test_a_full_batch_gives_the_sum_of_the_clipped_gradients(self, norm: float) -> None:
        """With batch_size = N every example is in every batch."""
        theta, data = start(), shard()
        found = trained(DpSgd(norm=norm, noise=0.0), batch_size=len(data)).update / 0.1
        torch.testing.assert_close(found, by_loop(theta, data, norm) / len(data), rtol=1e-9, atol=1e-12)
        assert float(found.norm()) <= norm * (1 + 1e-12)

    def test_without_clipping_and_noise_a_full_batch_is_plain_training(self) -> None:
        options: dict[str, Any] = {"batch_size": 23, "local_epochs": 4, "momentum": 0.5}
        found = trained(DpSgd(norm=HUGE, noise=0.0), **options).update
        torch.testing.assert_close(found, trained(**options).update, rtol=1e-10, atol=1e-13)

    @pytest.mark.parametrize("norm", [0.3, HUGE])
    def test_a_random_batch_is_divided_by_its_expected_size(self, norm: float, batches: list[Any]) -> None:
        theta = start()
        found = trained(DpSgd(norm=norm, noise=0.0), batch_size=6, local_epochs=3)
        assert found.report["steps"] == len(batches) == 3 * math.ceil(23 / 6)
        assert len({len(batch.y) for batch, _, _ in batches}) > 2  # sizes are random
        for batch, weights, expected in batches:
            torch.testing.assert_close(weights, theta, rtol=1e-10, atol=1e-13)
            assert expected == 6
            real = Split(batch.x, batch.y)[: int(batch.mask.sum())]
            theta = theta - 0.1 * by_loop(theta, real, norm) / 6
        torch.testing.assert_close(start() - found.update, theta, rtol=1e-10, atol=1e-13)

    def test_one_more_example_moves_a_step_by_at_most_the_norm(self) -> None:
        """The sensitivity that the noise is measured against."""
        data = shard()
        far = data[:23]
        far.x[22] *= 100.0
        hook = DpSgd(norm=0.2, noise=0.0)
        update = trained(hook, data=data, batch_size=100).update * 23  # divided by min(batch_size, N) = N
        fewer = trained(hook, data=data[:22], batch_size=100).update * 22
        assert 0 < float((update - fewer).norm()) <= 0.1 * 0.2 * (1 + 1e-9)


class TestBatches:
    def test_examples_join_independently_with_probability_q(self, batches: list[Any]) -> None:
        data = shard()
        trained(DpSgd(noise=0.0), batch_size=4, local_epochs=100)
        assert len(batches) == 600
        sizes = torch.tensor([float(batch.mask.sum()) for batch, _, _ in batches]).double()
        q = 4 / 23
        # The number of examples is binomial: 600 draws of 23 q = 4 with variance 23 q (1 - q).
        variance = 23 * q * (1 - q)
        assert abs(float(sizes.mean()) - 4) < 5 * (variance / 600) ** 0.5
        assert float(sizes.var()) == pytest.approx(variance, rel=0.3)
        joined = torch.zeros(23)
        for batch, _, _ in batches:
            for row in batch.x[: int(batch.mask.sum())]:
                joined += (data.x == row).all(dim=1)
        assert ((joined / 600 - q).abs() < 5 * (q * (1 - q) / 600) ** 0.5).all()

    def test_empty_batches_survive(self, batches: list[Any]) -> None:
        found = trained(DpSgd(norm=0.5, noise=0.0), batch_size=1, local_epochs=3)
        empty = [batch for batch, _, _ in batches if not batch.mask.any()]
        assert len(empty) > 3
        assert torch.isfinite(found.update).all()
        assert found.report["steps"] == len(batches) == 69
        assert found.state["dp_sgd.steps"] == 69  # they count: the noise of each is spent

    def test_a_shard_smaller_than_a_batch_is_whole_in_every_step(self, batches: list[Any]) -> None:
        trained(DpSgd(), batch_size=100, local_epochs=3)
        assert [(len(batch.y), expected) for batch, _, expected in batches] == [(23, 23)] * 3


class Flat(nn.Module):
    """A network whose outputs ignore its 6000 weights: an update is noise and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2000, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Outputs:
        logits = 0.0 * self.head(x)[:, :4]
        return Outputs(logits, x)


def noise_of(how: Callable[..., list[Fit]], hook: DpSgd, epochs: int = 1, batch_size: int = 8) -> list[Tensor]:
    """What two clients of 8 examples sent, for a learning rate of 1."""
    network = FlatNetwork(Flat(), torch.device("cpu"))
    pool = Split(torch.zeros(16, 3, dtype=torch.float64), torch.zeros(16, dtype=torch.int64))
    objective = Objective({"dp_sgd": hook}, shapes_of(network, pool.x[:1], batch_size))

    def stream_of(client: int) -> Callable[[str], torch.Generator]:
        return lambda purpose: seeds.generator(11, purpose, client)

    clients = [Client(range(8 * k, 8 * k + 8), stream_of(k)) for k in range(2)]
    settings = ClientSettings(batch_size=batch_size, local_epochs=epochs)
    return [
        fit.update for fit in how(network, network.theta.clone(), pool, clients, Work(settings, 1.0, objective))
    ]


class TestNoise:
    @pytest.mark.parametrize("how", [fit_each, fit_stacked])
    @pytest.mark.parametrize(("norm", "noise", "epochs"), [(1.0, 1.0, 1), (0.5, 3.0, 1), (2.0, 0.7, 4)])
    def test_it_has_the_standard_deviation_that_is_accounted_for(
        self, how: Any, norm: float, noise: float, epochs: int
    ) -> None:
        """norm * noise / B in each coordinate of each step; steps are independent; one sigma is 0.9 %."""
        for update in noise_of(how, DpSgd(norm=norm, noise=noise), epochs):
            expected = norm * noise / 8 * epochs**0.5
            assert float(update.std()) == pytest.approx(expected, rel=0.05)
            assert abs(float(update.mean())) < 5 * expected / 6000**0.5
            inside = float((update.abs() < expected).double().mean())
            assert inside == pytest.approx(0.6827, abs=0.03)  # of a normal

    def test_clients_have_noise_of_their_own(self) -> None:
        one, other = noise_of(fit_each, DpSgd())
        correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert abs(correlation) < 5 / 6000**0.5

    def test_smaller_batches_have_more_of_it(self) -> None:
        (one, _), (other, _) = (noise_of(fit_each, DpSgd(), batch_size=size) for size in (8, 4))
        # Half the batch: twice the noise in a step, and twice the steps.
        assert float(other.std() / one.std()) == pytest.approx(2 * 2**0.5, rel=0.1)

    def test_none_is_none(self) -> None:
        assert not noise_of(fit_each, DpSgd(noise=0.0))[0].any()


def by_opacus(noise: float, q: float, steps: int, delta: float) -> float:
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=q)
    return float(accountant.get_epsilon(delta))


class TestPrivacy:
    @pytest.mark.parametrize(("noise", "q", "steps"), [(1.0, 4 / 23, 18), (0.6, 0.01, 200), (2.0, 1.0, 7)])
    def test_epsilon_is_what_opacus_says(self, noise: float, q: float, steps: int) -> None:
        assert spent(noise, q, steps, 1e-5) == pytest.approx(by_opacus(noise, q, steps, 1e-5), rel=1e-12)

    def test_more_steps_less_noise_and_larger_batches_cost_more(self) -> None:
        for cheaper, dearer in (
            ((1.0, 0.1, 10), (1.0, 0.1, 11)),
            ((1.1, 0.1, 10), (1.0, 0.1, 10)),
            ((1.0, 0.1, 10), (1.0, 0.11, 10)),
        ):
            assert spent(*cheaper, 1e-5) < spent(*dearer, 1e-5)
        assert spent(1.0, 0.1, 10, 1e-6) > spent(1.0, 0.1, 10, 1e-5)

    def test_no_step_costs_nothing_and_no_noise_costs_everything(self) -> None:
        assert spent(1.0, 0.1, 0, 1e-5) == 0.0
        assert spent(0.0, 0.1, 1, 1e-5) == math.inf

    @pytest.mark.parametrize("noise", [0.05, 1e6])
    def test_extremes_warn_of_nothing(self, noise: float) -> None:
        """Opacus warns that its grid of orders is too short for a tight bound; the bound holds all the same."""
        assert 0 < spent(noise, 0.1, 10, 1e-5) < math.inf

    def test_it_is_reported_and_grows_over_rounds(self) -> None:
        state, found = None, []
        for number in range(1, 4):
            fit = trained(DpSgd(delta=1e-4), state=state, batch_size=4, local_epochs=2)
            state = fit.state
            steps = 12 * number
            assert state["dp_sgd.steps"] == steps
            assert fit.report["dp_sgd-epsilon"] == pytest.approx(by_opacus(1.0, 4 / 23, steps, 1e-4), rel=1e-12)
            found.append(fit.report["dp_sgd-epsilon"])
        assert found == sorted(set(found))

    def test_the_reader_is_told_what_it_covers(self) -> None:
        (note,) = DpSgd(delta=1e-6).notes()
        assert "delta 1e-06" in note
        assert "not covered" in note
