"""Errors survive the way between processes and know the exit code of the command line."""

from __future__ import annotations

import copy
import pickle

import pytest

from fedsim.errors import (
    AppError,
    AppRunError,
    ClientError,
    DataError,
    EngineError,
    FedSimError,
    RoundError,
    ScenarioError,
)

EVERY = [
    (ScenarioError("a.toml", ["rounds: must be greater than 0, got 0", "seed: missing"]), 2),
    (DataError("data: gone"), 2),
    (EngineError("engine: gone"), 2),
    (ClientError(3, 7, "its update is not finite"), 1),
    (RoundError("round 2: no model"), 1),
    (FedSimError("something"), 1),
    (AppError("pyproject.toml: no such file"), 2),
    (AppRunError("serverapp: ValueError: no"), 1),
]
IDS = [type(error).__name__ for error, _ in EVERY]


@pytest.mark.parametrize(("error", "code"), EVERY, ids=IDS)
def test_exit_codes(error: FedSimError, code: int) -> None:
    assert error.exit_code == code


def test_the_table_above_is_complete() -> None:
    def below(kind: type[FedSimError]) -> set[type[FedSimError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    ours = {kind for kind in below(FedSimError) if kind.__module__.startswith(("fedsim", "clients", "strategies"))}
    assert ours == {type(error) for error, _ in EVERY}


@pytest.mark.parametrize(("error", "code"), EVERY, ids=IDS)
def test_an_error_survives_pickling_and_copying(error: FedSimError, code: int) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
    assert str(copy.copy(error)) == str(error)


def test_messages() -> None:
    assert str(EVERY[0][0]) == "a.toml: 2 problems\n  rounds: must be greater than 0, got 0\n  seed: missing"
    assert str(ScenarioError("x", ["one: wrong"])) == "x: 1 problem\n  one: wrong"
    assert str(EVERY[3][0]) == "client 3, round 7: its update is not finite"
