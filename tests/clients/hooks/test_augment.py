"""Crops and flips against a loop over images, and draws that depend on the client alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import crop, hflip

from clients import stacked, steps
from clients.app import LocalApp
from clients.batches import CROP, Batches, augment
from clients.training import fit_each, fit_stacked
from fedsim import seeds
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.partitions.iid import Iid
from fedsim.scenario import Scenario
from fedsim.settings import ClientSettings
from tests.clients.block import SIZES, Block
from tests.test_determinism import scenario_of
from tests.test_federation import Numbered, build


def images(*lead: int, shape: tuple[int, int, int] = (3, 7, 10)) -> Tensor:
    return torch.randn(*lead, *shape, generator=seeds.generator(1))


def slow(x: Tensor, shifts: Tensor) -> Tensor:
    """Image by image, with torchvision."""
    found = []
    for image, (down, right, mirror) in zip(x, shifts.tolist(), strict=True):
        cut = crop(pad(image, (CROP, CROP, CROP, CROP)), down, right, *x.shape[-2:])
        found.append(hflip(cut) if mirror else cut)
    return torch.stack(found)


def drawn(count: int, seed: int = 2) -> Tensor:
    generator = seeds.generator(seed)
    moves = torch.randint(0, 2 * CROP + 1, (count, 2), generator=generator)
    return torch.cat([moves, torch.randint(0, 2, (count, 1), generator=generator)], dim=1)


class TestImages:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 10), (2, 1, 5)])
    def test_they_are_those_of_a_loop(self, shape: tuple[int, int, int]) -> None:
        x, shifts = images(40, shape=shape), drawn(40)
        assert torch.equal(augment(x, shifts), slow(x, shifts))

    def test_a_block_of_clients_is_its_clients(self) -> None:
        x, shifts = images(3, 5), drawn(15).view(3, 5, 3)
        together = augment(x, shifts)
        assert together.shape == x.shape
        for client in range(3):
            assert torch.equal(together[client], slow(x[client], shifts[client]))

    def test_the_middle_is_the_image_and_two_flips_are_none(self) -> None:
        x = images(4)
        middle = torch.tensor([[CROP, CROP, 0]] * 4)
        mirror = torch.tensor([[CROP, CROP, 1]] * 4)
        assert torch.equal(augment(x, middle), x)
        assert torch.equal(augment(x, mirror), x.flip(-1))
        assert torch.equal(augment(augment(x, mirror), mirror), x)

    def test_the_corners_are_as_far_as_it_goes(self) -> None:
        x = images(1) + 10.0  # nothing in the image is 0
        up = augment(x, torch.tensor([[0, 0, 0]]))
        assert not up[..., :CROP, :].any()
        assert not up[..., :CROP].any()
        assert torch.equal(up[..., CROP:, CROP:], x[..., :-CROP, :-CROP])

    def test_the_images_given_are_left_alone(self) -> None:
        x = images(4)
        before = x.clone()
        augment(x, drawn(4))
        assert torch.equal(x, before)


def epochs(kind: Any, count: int = 500, number: int = 2) -> list[Any]:
    batches = Batches(count, ClientSettings(augment=kind), lambda purpose: seeds.generator(7, purpose))
    return [batches.epoch() for _ in range(number)]


class TestDraws:
    def test_off_draws_nothing(self) -> None:
        asked: list[str] = []

        def stream(purpose: str) -> torch.Generator:
            asked.append(purpose)
            return seeds.generator(7, purpose)

        assert Batches(9, ClientSettings(), stream).epoch().shifts is None
        assert asked == ["batches"]

    @pytest.mark.parametrize("kind", ["flip", "crop_flip"])
    def test_the_order_of_the_examples_does_not_depend_on_it(self, kind: str) -> None:
        for with_, without in zip(epochs(kind), epochs("none"), strict=True):
            assert torch.equal(with_.rows, without.rows)
            assert with_.sizes == without.sizes

    def test_every_place_and_both_sides_are_equally_likely(self) -> None:
        shifts = epochs("crop_flip", 9000, 1)[0].shifts
        assert shifts is not None
        for axis in (0, 1):
            counts = torch.bincount(shifts[:, axis], minlength=2 * CROP + 1)
            assert len(counts) == 2 * CROP + 1
            assert ((counts - 1000).abs() < 5 * (1000 * 8 / 9) ** 0.5).all()
        assert abs(int(shifts[:, 2].sum()) - 4500) < 5 * (9000 / 4) ** 0.5
        assert shifts[:, 2].unique().tolist() == [0, 1]

    def test_flip_alone_does_not_move(self) -> None:
        shifts = epochs("flip", 500, 1)[0].shifts
        assert shifts is not None
        assert (shifts[:, :2] == CROP).all()
        assert 150 < int(shifts[:, 2].sum()) < 350

    def test_epochs_differ(self) -> None:
        first, second = (epoch.shifts for epoch in epochs("crop_flip"))
        assert first is not None
        assert second is not None
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("kind", ["flip", "crop_flip"])
    def test_both_cohorts_see_the_same_images(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every image that a step saw, by client; the rows that fill up a block's batch are the rest."""
        seen: dict[str, list[Tensor]] = {"steps": [], "stacked": []}
        for name, module in (("steps", steps), ("stacked", stacked)):

            def record(x: Tensor, shifts: Tensor, name: str = name) -> Tensor:
                moved = augment(x, shifts)
                seen[name] += list(moved.reshape(-1, *x.shape[-3:]))
                return moved

            monkeypatch.setattr(module, "augment", record)
        block = Block(settings={"augment": kind, "local_epochs": 1})
        block.fits(fit_each)
        block.fits(fit_stacked)
        one, other = ({tuple(image.flatten().tolist()) for image in images} for images in seen.values())
        assert len(seen["steps"]) == len(one) == sum(SIZES)
        assert one <= other

    def test_training_sees_the_moved_images(self) -> None:
        plain, moved = (Block(settings={"augment": kind}).fits(fit_each) for kind in ("none", "crop_flip"))
        for one, other in zip(plain, moved, strict=True):
            assert float((one.update - other.update).norm()) > 1e-3
            assert one.report["loss"] == other.report["loss"]  # losses are those of the examples as they are


def test_it_is_refused_for_data_that_are_no_images() -> None:
    federation: Federation = build(Numbered(), Iid(num_clients=4))
    client = {"augment": "flip", "batch_size": 8}
    scenario = scenario_of("fedavg", client=client, model={"name": "logistic"}, server={})
    with pytest.raises(ScenarioError) as caught:
        LocalApp(scenario, federation).check()
    assert caught.value.problems == ('client.augment: moves images, the data set gives (1,); set it to "none"',)


@pytest.mark.parametrize("kind", ["flip", "crop_flip"])
def test_it_is_let_through_for_images(kind: str) -> None:
    scenario: Scenario = scenario_of("fedavg", client={"augment": kind})
    federation = Federation.build(scenario.data, scenario.partition, scenario.seed, Path())
    LocalApp(scenario, federation).check()
