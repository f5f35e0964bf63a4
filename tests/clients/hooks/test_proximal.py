"""FedProx's term as a hook: mu / 2 ||w - theta||^2 beside any rule."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from clients.hooks.proximal import Proximal
from clients.methods.proximal import Proximal as ClientHalf
from clients.objective import Objective
from fedsim.settings import ClientSettings
from tests.clients.hooks.small import model, shapes, shard, start, trained
from tests.clients.one import fit_one
from tests.clients.test_training import plain, stream


def test_it_is_the_client_half_of_fedprox_to_the_bit() -> None:
    settings = ClientSettings(batch_size=4, local_epochs=3, momentum=0.5)
    theirs = fit_one(model(), start(), shard(), settings, 0.1, stream(), method=ClientHalf(0.7))
    ours = trained(Proximal(mu=0.7), local_epochs=3, momentum=0.5)
    assert torch.equal(ours.update, theirs.update)
    assert not torch.allclose(ours.update, trained(local_epochs=3, momentum=0.5).update)


def test_with_fedprox_the_weights_add_up() -> None:
    settings = ClientSettings(batch_size=4, local_epochs=2)
    theirs = fit_one(model(), start(), shard(), settings, 0.1, stream(), method=ClientHalf(0.7))
    both = Objective({"proximal": Proximal(mu=0.3)}, shapes())
    ours = fit_one(model(), start(), shard(), settings, 0.1, stream(), method=ClientHalf(0.4), objective=both)
    torch.testing.assert_close(ours.update, theirs.update, rtol=1e-12, atol=1e-14)


def test_no_weight_is_plain_training() -> None:
    torch.testing.assert_close(trained(Proximal(mu=0.0)).update, trained().update, rtol=1e-12, atol=1e-14)


def test_it_is_torch_optim_on_the_formula() -> None:
    """Every batch of every epoch is pulled, not the first alone."""
    theta, data, generator = start(), shard(), stream()
    network = plain(theta)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        for rows in torch.randperm(len(data), generator=generator).split(4):
            optimiser.zero_grad()
            away = parameters_to_vector(network.parameters()) - theta
            loss = cross_entropy(network(data.x[rows]).logits, data.y[rows]) + 0.5 * 2.0 * away.square().sum()
            loss.backward()
            optimiser.step()
    expected = theta - parameters_to_vector(network.parameters()).detach()
    found = trained(Proximal(mu=2.0), local_epochs=3)
    torch.testing.assert_close(found.update, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mu", [1.0, 5.0])
def test_a_stronger_pull_ends_nearer(mu: float) -> None:
    plain_norm = float(trained(local_epochs=10).update.norm())
    assert float(trained(Proximal(mu=mu), local_epochs=10).update.norm()) < 0.9 * plain_norm
