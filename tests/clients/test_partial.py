"""Clients that take a share of their local steps: alone and in a block, and what they report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from clients.batches import Batches, num_steps, num_visits
from clients.hooks import Privacy
from clients.methods.personal import Personal
from clients.methods.scaffold import ControlVariate
from clients.training import QuasiNewton, fit_each, fit_stacked
from fedsim import seeds
from fedsim.settings import ClientSettings
from tests.clients.block import NETWORKS, SIZES, Block, assert_same
from tests.clients.test_stacked import CASES, hook_of

SHARES = (0.2, 1.0, 0.7, 0.5, 0.9)
"""Of shards of 13, 4, 9, 1 and 8: the largest shard is not the longest training."""


def expected(epochs: int = 2, size: int = 4) -> list[float]:
    return [
        float(max(1, round(share * epochs * -(-n // size))) if share < 1 else epochs * -(-n // size))
        for n, share in zip(SIZES, SHARES, strict=True)
    ]


def test_the_steps_of_a_share_and_the_examples_of_steps_are_what_counting_gives() -> None:
    for size in (1, 7, 20, 33):
        for batch in (1, 5, 20, 40):
            batches = [min(batch, size - start) for start in range(0, size, batch)]
            for epochs in (1, 2, 3):
                assert num_steps(size, batch, epochs) == epochs * len(batches)
                for steps in range(1, epochs * len(batches) + 1):
                    assert num_visits(size, batch, steps) == sum((batches * epochs)[:steps])
                    # What a server says as a share is what a client makes of it.
                    assert num_steps(size, batch, epochs, steps / (epochs * len(batches))) == steps
    assert num_steps(100, 10, 1, 1e-9) == 1


@pytest.mark.parametrize("privacy", [None, Privacy(1.0, 1.0)], ids=["shuffled", "random"])
def test_a_pass_cut_off_is_the_beginning_of_the_pass(privacy: Privacy | None) -> None:
    settings = ClientSettings(batch_size=4, augment="crop_flip")

    def epoch() -> Any:
        return Batches(13, settings, lambda purpose: seeds.generator(0, purpose), privacy).epoch()

    whole = epoch()
    assert whole.first(4) is whole
    for count in range(4):
        cut = epoch().first(count)
        assert cut.sizes == whole.sizes[:count]
        assert torch.equal(cut.rows, whole.rows[: sum(cut.sizes)])
        assert torch.equal(cut.shifts, whole.shifts[: sum(cut.sizes)])


def test_the_update_is_that_of_the_first_steps_of_plain_sgd() -> None:
    block = Block("mlp", shares=SHARES)
    fits = block.fits(fit_each)
    for row, (client, fit) in enumerate(zip(block.clients(1), fits, strict=True)):
        block.model.theta.copy_(block.theta)
        shard, left = client.shard(block.pool), int(expected()[row])
        batches = Batches(len(shard), block.client_settings, client.stream)
        for epoch in (batches.epoch(), batches.epoch()):
            end = 0
            for size in epoch.sizes:
                rows, end = epoch.rows[end : end + size], end + size
                if left > 0:
                    left -= 1
                    block.model.grad.zero_()
                    cross_entropy(block.model.outputs(shard.x[rows]).logits, shard.y[rows]).backward()
                    with torch.no_grad():
                        block.model.theta.sub_(0.1 * block.model.grad)
        assert left == 0
        assert fit.report["steps"] == expected()[row]
        torch.testing.assert_close(fit.update, block.theta - block.model.theta.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.3, "clip_norm": 0.05, "local_epochs": 5},
        {"batch_size": 1, "local_epochs": 1},
        {"augment": "crop_flip", "momentum": 0.5, "local_epochs": 3},
    ],
    ids=str,
)
def test_a_block_trains_as_one_client_after_the_other(settings: dict[str, Any], network: str) -> None:
    block = Block(network, settings=settings, shares=SHARES)
    pairs = block.both(rounds=1)
    assert_same(pairs, 1e-10)
    steps = expected(settings.get("local_epochs", 2), settings.get("batch_size", 4))
    assert [one.report["steps"] for one, _ in pairs] == steps
    whole = Block(network, settings=settings).both(rounds=1)
    changed = [not torch.equal(a.update, b.update) for (a, _), (b, _) in zip(pairs, whole, strict=True)]
    fewer = [a.report["steps"] < b.report["steps"] for (a, _), (b, _) in zip(pairs, whole, strict=True)]
    assert changed[0]
    assert all(fewer[row] for row in range(len(fewer)) if changed[row])  # a shard of one example may be fitted soon


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_hooks_see_only_the_steps_that_are_taken(name: str, options: dict[str, Any]) -> None:
    block = Block(
        hooks={name: hook_of(name, **options)}, settings={"momentum": 0.5, "local_epochs": 4}, shares=SHARES
    )
    pairs = block.both()
    assert_same(pairs, 1e-10)
    assert [one.report["steps"] for one, _ in pairs] == expected(4)


def test_privacy_is_spent_by_the_steps_that_are_taken() -> None:
    block = Block(hooks={"dp_sgd": hook_of("dp_sgd", noise=0.8)}, shares=SHARES)
    for fit, steps in zip(block.fits(fit_stacked), expected(), strict=True):
        assert float(fit.state["dp_sgd.steps"]) == steps


@pytest.mark.parametrize("epochs", [None, 1, 3])
def test_a_second_training_takes_the_same_share(epochs: int | None) -> None:
    block = Block(method=Personal(lam=0.5, epochs=epochs), settings={"momentum": 0.5}, shares=SHARES)
    pairs = block.both()
    assert_same(pairs, 1e-10)
    whole = Block(method=Personal(lam=0.5, epochs=epochs), settings={"momentum": 0.5}).both()
    own = [
        not torch.equal(a.state["personal"], b.state["personal"])
        for (a, _), (b, _) in zip(pairs, whole, strict=True)
    ]
    assert own[0]
    assert not own[1]


def test_a_control_variate_is_of_the_steps_that_were_taken() -> None:
    zero = torch.zeros_like(Block().theta)
    block = Block(method=ControlVariate(), shares=SHARES, received={"control": zero})
    for each in block.fits(fit_stacked):
        # Option II with both variates zero: c_k = update / (steps lr).
        torch.testing.assert_close(each.state["control"], each.update / (each.report["steps"] * 0.1))


@pytest.mark.parametrize("from_rounds", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_curvature_is_followed_as_far_as_a_client_trains(from_rounds: bool, final: bool) -> None:
    newton = QuasiNewton(4, from_rounds, final, within_reach=True)
    block = Block(newton=newton, settings={"local_epochs": 4}, shares=(0.25, *SHARES[1:]))
    pairs = block.both()
    assert_same(pairs, 1e-8)
    if not from_rounds and not final:
        # One of four epochs: all later points are the same, and make no pair.
        assert pairs[0][0].report["pairs"] == 1.0
        assert pairs[1][0].report["pairs"] > 1.0


def test_all_steps_are_the_bits_of_no_share_at_all() -> None:
    for how in (fit_each, fit_stacked):
        block = Block(dtype=torch.float32, settings={"momentum": 0.5})
        plain = block.fits(how)
        clients = [replace(client, share=1.0) for client in block.clients(1)]
        again = how(block.model, block.theta, block.pool, clients, block.work())
        assert all(torch.equal(a.update, b.update) for a, b in zip(plain, again, strict=True))
