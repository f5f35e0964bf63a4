"""A block of clients trained at once against the same clients one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clients.hooks import Hook
from clients.methods.feddyn import DynamicRegularizer
from clients.methods.personal import Personal
from clients.methods.proximal import Proximal
from clients.methods.scaffold import ControlVariate
from clients.training import QuasiNewton, fit_each, fit_stacked
from fedsim import plugins
from tests.clients.block import NETWORKS, Block, assert_same

HOOKS = plugins.names("clients.hooks")

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cmi": [
        {"beta": 0.2},
        {"beta": 0.2, "separation": "kl", "centroids": "ema", "decay": 0.6},
        {"centroids": "round"},
    ],
    "fed_it": [{"decay": 0.6}],
    "distill": [{}, {"kind": "ttm", "temperature": 10.0}, {"kind": "wttm"}],
    "focal": [{}, {"gamma": 0.5}, {"gamma": 0.0}],
    "ncmi": [{}, {"centroid_lr": 0.5, "decay": 0.5}],
    "pgd": [{"steps": 2}, {"steps": 2, "random_start": False, "low": -1.0, "high": 1.0}],
    "dp_sgd": [{"noise": 0.3}, {"noise": 0.0, "norm": 0.1}],
    "cmim": [{"decay": 0.5, "buckets": 3}],
    "mcmi": [{}, {"centroids": "ema", "decay": 0.5}],
}
"""Options under which a hook does all it can do; hooks that are not named are taken as they come."""

CASES = [(name, options) for name in HOOKS for options in VARIANTS.get(name, [{}])]


def hook_of(name: str, **options: Any) -> Hook:
    return plugins.find("clients.hooks", name, Hook)(**options)  # type: ignore[type-abstract]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_every_hook_trains_a_block_as_it_trains_one_client(
    name: str, options: dict[str, Any], network: str
) -> None:
    block = Block(network, hooks={name: hook_of(name, **options)}, settings={"momentum": 0.5})
    if name == "ncmi" and network == "logistic":
        for how in (fit_each, fit_stacked):
            with pytest.raises(ValueError, match="this model's are its input; use one with hidden layers"):
                block.fits(how)
        return
    pairs = block.both()
    assert_same(pairs, 1e-10)
    assert all(float(one.update.norm()) > 0 for one, _ in pairs)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.3},
        {"clip_norm": 0.05},
        {"clip_norm": 0.05, "momentum": 0.9, "weight_decay": 0.3, "local_epochs": 3},
        {"batch_size": 100},
        {"batch_size": 1, "local_epochs": 1},
        {"local_epochs": 0, "weight_decay": 0.1},
        {"augment": "flip"},
        {"augment": "crop_flip", "momentum": 0.5},
    ],
    ids=str,
)
def test_every_setting(settings: dict[str, Any], network: str) -> None:
    assert_same(Block(network, settings=settings).both(rounds=1), 1e-10)


@pytest.mark.parametrize(
    "method",
    [Proximal(0.5), ControlVariate(), DynamicRegularizer(0.3), Personal(0.7), Personal(0.2, epochs=3)],
    ids=str,
)
def test_every_client_half_of_a_rule(method: Any) -> None:
    theta = Block().theta
    received = {"control": 0.01 * torch.ones_like(theta)} if isinstance(method, ControlVariate) else {}
    block = Block(method=method, received=received, settings={"momentum": 0.3})
    pairs = block.both(rounds=3)
    assert_same(pairs, 1e-10)
    plain = Block(settings={"momentum": 0.3}).fits(fit_each, 3)
    if not isinstance(method, Personal):
        assert not torch.allclose(pairs[0][0].update, plain[0].update)


@pytest.mark.parametrize("from_rounds", [True, False])
@pytest.mark.parametrize("epochs", [0, 2])
def test_quasi_newton_rates(from_rounds: bool, epochs: int) -> None:
    block = Block(
        newton=QuasiNewton(5, from_rounds, final_gradient=epochs > 0),
        settings={"local_epochs": epochs},
        sizes=(8, 5),
    )
    pairs = block.both(rounds=1)
    assert_same(pairs, 1e-9)


def test_hooks_together() -> None:
    names = ("cmi", "proximal", "logit_adjustment", "pgd", "distill")
    block = Block(hooks={name: hook_of(name) for name in names}, method=Proximal(0.2))
    assert_same(block.both(), 1e-10)


@pytest.mark.parametrize("name", HOOKS)
def test_thirty_steps_in_float32(name: str) -> None:
    """The bound is the issue's; signs of tiny gradients may differ under attack, so that starts from few steps."""
    options = {"steps": 1, "random_start": False} if name == "pgd" else {}
    block = Block(
        dtype=torch.float32,
        hooks={name: hook_of(name, **options)},
        sizes=(40, 23, 31),
        settings={"local_epochs": 3},
        lr=0.05,
    )
    pairs = block.both(rounds=1)
    assert pairs[0][0].report["steps"] == 30
    assert_same(pairs, 1e-4)


def test_order_and_company() -> None:
    """The order of a block changes no bit; who else is in it, rounding at most."""
    whole = Block("mlp", dtype=torch.float32)
    fits, clients = whole.fits(fit_stacked), whole.clients(1)
    for members in ([3, 1, 4, 2, 0], [4, 2, 0], [1]):
        some = fit_stacked(whole.model, whole.theta, whole.pool, [clients[k] for k in members], whole.work())
        for k, fit in zip(members, some, strict=True):
            if len(members) == len(clients):
                assert torch.equal(fit.update, fits[k].update)
                assert fit.report == fits[k].report
            assert_same([(fits[k], fit)], 1e-6)


def test_a_client_with_one_example_and_one_with_many_in_a_block() -> None:
    assert_same(Block(sizes=(1, 57, 1), settings={"batch_size": 16}).both(rounds=1), 1e-10)
