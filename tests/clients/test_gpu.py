"""What only a GPU can show; without one, these tests say that they were skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clients import cohort
from clients.objective import Objective
from clients.training import fit_each, fit_stacked, shapes_of
from fedsim.parameters import FlatNetwork
from tests.clients.block import NETWORKS, Block, assert_same
from tests.clients.test_stacked import HOOKS, hook_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, there is none here"),
]


def on_gpu(block: Block) -> Block:
    """Move a block's network and data."""
    device = torch.device("cuda")
    block.model = FlatNetwork(block.model.network, device, half=block.model.half)
    block.pool = block.pool.to(device)
    block.theta = block.model.theta.clone()
    shapes = shapes_of(block.model, block.pool.x[:1], block.client_settings.batch_size)
    block.objective = Objective(block.hooks, shapes)
    return block


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [None, *HOOKS])
def test_a_block_is_trained_as_one_client_is(name: str | None, network: str) -> None:
    if name == "ncmi" and network == "logistic":
        pytest.skip("ncmi needs features that are learned")
    hooks = {} if name is None else {name: hook_of(name)}
    block = on_gpu(Block(network, hooks=hooks, settings={"momentum": 0.5, "augment": "crop_flip"}))
    assert_same(block.both(), 1e-9)


def test_the_numbers_are_those_of_a_cpu() -> None:
    here = Block("convolutions", settings={"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.5})
    there = on_gpu(Block("convolutions", settings={"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.5}))
    for one, other in zip(here.fits(fit_stacked), there.fits(fit_stacked), strict=True):
        torch.testing.assert_close(other.update.cpu(), one.update, atol=1e-9, rtol=1e-9)
        assert dict(other.report) == pytest.approx(dict(one.report), rel=1e-7)


@pytest.mark.parametrize("how", [fit_each, fit_stacked])
def test_bfloat16_trains(how: Any) -> None:
    exact = on_gpu(Block("mlp", dtype=torch.float32))
    rough = on_gpu(Block("mlp", dtype=torch.float32))
    rough.model.half = True
    for one, other in zip(exact.fits(how), rough.fits(how), strict=True):
        apart = float((one.update - other.update).norm() / one.update.norm())
        assert 0 < apart < 0.1
        assert other.update.dtype == torch.float32


def test_the_block_size_follows_the_memory() -> None:
    small, large = (on_gpu(Block(name)) for name in ("logistic", "convolutions"))
    sizes = [cohort.block_size(block.model, block.pool.x[:4], 10**6) for block in (small, large)]
    assert sizes[0] >= sizes[1] >= 1
    many = small.pool.x[:4].repeat(4096, 1, 1, 1)
    loads = (
        cohort.Load(),
        cohort.Load(share=0.01),
        cohort.Load(per_example=4096),
        cohort.Load(pass_examples=65536),
    )
    free, *tight = [cohort.block_size(small.model, many, 10**6, load) for load in loads]
    assert all(size < free for size in tight)
    assert cohort.block_size(small.model, many, 3) <= 3
    settings = small.client_settings.model_copy(update={"block_size": None, "cohort": "auto"})
    chosen, _, reason = cohort.choose(small.model, settings, small.pool.x[:4], small.pool.y[:4], 10)
    assert (chosen, reason) == ("stacked", None)
