"""Recorded steps of a block against the steps they were recorded from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clients import traced
from clients.traced import Recorder, recorder_of
from clients.training import Fit, fit_stacked
from tests.clients.block import NETWORKS, Block

DOUBLE = (2, 3, torch.float64)


def fits(block: Block, rounds: int) -> list[Fit]:
    return [fit for number in range(rounds) for fit in block.fits(fit_stacked, number)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "clip_norm": 0.1}], ids=str)
def test_recorded_steps_change_no_bit(
    network: str, dtype: torch.dtype, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fits(Block(network, dtype, settings=settings), 3)
    monkeypatch.setattr(traced, "PAYS_AFTER", 2)
    block = Block(network, dtype, settings=settings)
    recorded = fits(block, 3)
    # Blocks of five and of three clients, as those with few examples are done: each was recorded.
    assert len(recorder_of(block.model)._recorded) >= 2
    for one, other in zip(plain, recorded, strict=True):
        assert torch.equal(one.update, other.update)
        assert one.report == other.report


def test_a_recording_that_gives_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "PAYS_AFTER", 1)
    wrong = lambda *given: {"w": given[0]["w"] + 1e-7}  # noqa: E731
    monkeypatch.setattr(Recorder, "_record", staticmethod(lambda *_: wrong))
    recorder, calls = Recorder(), []

    def step(weights: Any, *given: Any) -> Any:
        calls.append(1)
        return {"w": 2.0 * weights["w"]}

    x = torch.ones(2, 3)
    for count in (1, 2, 3):
        found = recorder.run(step, {"w": torch.ones(2, 1)}, x, x, x, x)
        assert torch.equal(found["w"], torch.full((2, 1), 2.0))
        assert len(calls) == count


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "PAYS_AFTER", 1)
    recorder, x = Recorder(), torch.ones(2, 3)

    def step(weights: Any, *given: Any) -> Any:
        if weights["w"].sum().item() > 1e9:  # a branch on data
            raise AssertionError
        return {"w": 2.0 * weights["w"]}

    for _ in range(3):
        assert torch.equal(recorder.run(step, {"w": torch.ones(2, 1)}, x, x, x, x)["w"], torch.full((2, 1), 2.0))
    assert not recorder._recorded


def test_other_shapes_and_types_are_other_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "PAYS_AFTER", 1)
    recorder = Recorder()

    def step(weights: Any, x: Any, *given: Any) -> Any:
        return {"w": weights["w"] * x.sum(dim=1, keepdim=True)}

    for _ in range(2):
        for rows, width, dtype in (
            (2, 3, torch.float32),
            (3, 3, torch.float32),
            (2, 4, torch.float32),
            (2, 3, torch.float64),
        ):
            x = torch.ones(rows, width, dtype=dtype)
            found = recorder.run(step, {"w": torch.ones(rows, 1, dtype=dtype)}, x, x, x, x)["w"]
            assert torch.equal(found, torch.full((rows, 1), float(width), dtype=dtype))
    assert len(recorder._recorded) == 4
