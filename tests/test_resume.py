"""A run that is stopped anywhere and taken up again leaves what a run without an interruption leaves, bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fedsim import simulation
from fedsim.errors import ClientError, DataError, FedSimError, ScenarioError
from fedsim.lock import RunLock
from fedsim.resume import state_file
from fedsim.rounds import Round
from fedsim.simulation import resume, simulate

NUM_ROUNDS = 5
BASE = """
rounds = 5
seed = 3
[data]
name = "digits"
limit = 400
[partition]
name = "dirichlet"
num_clients = 6
alpha = 0.5
[model]
name = "mlp"
hidden = [12]
[client]
batch_size = 16
lr = 0.05
[strategy]
name = "fedavg"
[server]
clients_per_round = 4
[engine]
backend = "local"
[evaluation]
every = 2
"""
METHODS: dict[str, list[str]] = {
    "fedavg": [],
    "adafed": ["strategy.name=adafed"],
    "dqnfed": ["strategy.name=dqnfed"],
    "dqnfed, exact": ["strategy.name=dqnfed", "client.local_epochs=0", "server.clients_per_round=6"],
    "dqnfed, pairs of rounds": ["strategy.name=dqnfed", "strategy.pairs_from=rounds"],
    "scaffold": ["strategy.name=scaffold"],
    "feddyn": ["strategy.name=feddyn"],
    "ditto": ["strategy.name=ditto"],
    "fedmdfg": ["strategy.name=fedmdfg"],
    "afl": ["strategy.name=afl", "server.average=all"],
    "fedadam, recent average": ["strategy.name=fedadam", "server.average=recent"],
    "flwr:FedAdam": ["strategy.name=flwr:FedAdam"],
    "flwr: adaptive clipping": [
        "strategy.name=flwr:DifferentialPrivacyServerSideAdaptiveClipping",
        "strategy.noise_multiplier=0.1",
        "strategy.num_sampled_clients=4",
        "strategy.strategy.name=fedadam",
    ],
    "hooks with a memory": ["client.hooks.fed_it.decay=0.9", 'evaluation.metrics=["class_accuracy", "cmi"]'],
    "decays": ["client.lr_decay=0.9", "server.lr_decay=0.9", "strategy.name=fedyogi"],
}


class Killed(BaseException):
    """Nothing in the platform catches this."""


class Runner:
    """Runs and resumes, stopped where a test wants it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self._conduct = simulation.conduct
        self.file = folder / "small.toml"
        self.file.write_text(BASE)

    def whole(self, *changes: str, out: str = "whole") -> Path:
        return simulate(self.file, changes, self.folder / out)

    def stopped(
        self, number: int, *changes: str, during: str = "callbacks", error: BaseException | None = None
    ) -> Path:
        """A run, or one that is taken up, stopped in a round: at its callbacks, or while its clients train."""
        path = self.folder / "stopped"
        stop = error or Killed()
        with self._monkeypatch.context() as patched:
            patched.setattr(simulation, "conduct", self._until(number, stop, during))
            with pytest.raises(type(stop)):
                if path.exists():
                    resume(path, changes)
                else:
                    simulate(self.file, changes, path)
        return path

    def _until(self, number: int, stop: BaseException, during: str) -> Callable[..., Any]:
        def conduct(scenario: Any, federation: Any, grid: Any, folder: Path, **options: Any) -> Any:
            if during == "callbacks":

                def callback(finished: Round) -> None:
                    if finished.number == number:
                        raise stop

                options["callbacks"] = [*options["callbacks"], callback]
            else:
                answer = grid.answer

                def answers(kind: str, content: Any, *others: Any) -> Any:
                    answered = answer(kind, content, *others)
                    if kind == during and content["config"]["server-round"] == number:
                        raise stop  # what the clients keep has been written
                    return answered

                grid.answer = answers
            return self._conduct(scenario, federation, grid, folder, **options)

        return conduct


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(tmp_path, monkeypatch)


def clockless(folder: Path) -> dict[str, Any]:
    """What is in a folder, without what a clock says."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("seconds")["total"] > 0
    rounds = pd.read_parquet(folder / "rounds.parquet")
    clocks = [column for column in rounds.columns if column.startswith("seconds")]
    return {
        "summary": summary,
        "rounds": rounds.drop(columns=clocks).to_json(double_precision=15),
        "exact": {name: values.map(repr).tolist() for name, values in rounds.drop(columns=clocks).items()},
        "clients": (folder / "clients.parquet").read_bytes(),
        "model": (folder / "model.safetensors").read_bytes(),
        "manifest": (folder / "manifest.json").read_text(),
        "scenario": (folder / "scenario.toml").read_text(),
        "files": sorted(file.name for file in folder.iterdir()),
    }


def assert_same(found: Path, expected: Path) -> None:
    one, other = clockless(found), clockless(expected)
    for name in one:
        assert one[name] == other[name], name


class TestBits:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_session_a_round_gives_the_bits_of_one_session(self, method: str, runner: Runner) -> None:
        """Stopped in every round, by turns at its callbacks and while its clients train."""
        changes = METHODS[method]
        whole = runner.whole(*changes)
        for number in range(NUM_ROUNDS + 1):
            during = "callbacks" if number % 2 == 0 else "train"
            stopped = runner.stopped(number, *(changes if number == 0 else ()), during=during)
        assert_same(resume(stopped), whole)
        sessions = json.loads((stopped / "environment.json").read_text())["sessions"]
        assert [session["first_round"] for session in sessions] == [0, 0, 1, 2, 3, 4][: len(sessions)] or sessions
