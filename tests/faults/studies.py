"""A small study on digits, run over a grid with a fault in it, and what is left of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clients.app import LocalApp
from fedsim.engine.base import BlockGrid
from fedsim.federation import Federation
from fedsim.models._check import build_model
from fedsim.rounds import run_rounds
from fedsim.run_folder import RunFolder
from fedsim.scenario import Scenario
from fedsim.server_app import strategy_of
from fedsim.wire import pack_arrays

ROUNDS = 4
SAMPLED = 5
BASE: dict[str, Any] = {
    "name": "small",
    "rounds": ROUNDS,
    "seed": 3,
    "data": {"name": "digits", "limit": 600},
    "partition": {"name": "dirichlet", "num_clients": 8, "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [24]},
    "client": {"batch_size": 16, "lr": 0.05},
    "server": {"clients_per_round": SAMPLED},
    "strategy": {"name": "scaffold"},  # clients keep a state
}


@dataclass(frozen=True)
class Study:
    """A scenario with its data.

    Attributes:
        scenario: The experiment.
        federation: Its data.
    """

    scenario: Scenario
    federation: Federation

    @staticmethod
    def of(**changes: Any) -> Study:
        """Build the data of a scenario."""
        scenario = Scenario.of({**BASE, **changes})
        return Study(scenario, Federation.build(scenario.data, scenario.partition, scenario.seed, Path()))

    def app(self) -> LocalApp:
        """Return clients without a fault."""
        return LocalApp(self.scenario, self.federation)

    def run(self, grid: BlockGrid, folder: Path, **engine: Any) -> Left:
        """Run to the end or until it fails, and write the folder in either case."""
        settings = self.scenario.engine.model_copy(update=engine)
        scenario = self.scenario.model_copy(update={"engine": settings})
        network = build_model(
            scenario.model, self.federation.input_shape, self.federation.num_classes, scenario.seed
        )
        kept = RunFolder(folder, scenario, self.federation)
        arrays = pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})
        status = "failed"
        try:
            run_rounds(
                strategy_of(scenario),
                grid,
                arrays,
                num_rounds=scenario.rounds,
                callbacks=[kept],
                timeout=settings.timeout_s,
            )
            status = "finished"
        finally:
            kept.close(status)
        return Left.of(folder)


@dataclass(frozen=True)
class Left:
    """What a run leaves, without what a clock says.

    Attributes:
        model: Hash of the last model.
        clients: A row for each client and round.
        rounds: A row for each round.
    """

    model: str
    clients: pd.DataFrame
    rounds: pd.DataFrame

    @staticmethod
    def of(folder: Path) -> Left:
        """Read a run folder."""
        rounds = pd.read_parquet(folder / "rounds.parquet")
        return Left(
            json.loads((folder / "summary.json").read_text())["model_sha256"],
            pd.read_parquet(folder / "clients.parquet"),
            rounds.drop(columns=[column for column in rounds.columns if column.startswith("seconds")]),
        )

    def sampled(self, number: int) -> list[int]:
        """Return who trained in a round."""
        rows = self.clients[(self.clients["round"] == number) & self.clients["sampled"]]
        return [int(client) for client in rows["client"]]

    def failed(self) -> list[tuple[int, int]]:
        """Return round and client of everyone who failed."""
        rows = self.clients[self.clients["failed"]]
        return list(zip(rows["round"].tolist(), rows["client"].tolist(), strict=True))


def same(found: Left, expected: Left) -> None:
    """Compare to the last bit."""
    assert found.model == expected.model
    pd.testing.assert_frame_equal(found.clients, expected.clients, check_exact=True)
    pd.testing.assert_frame_equal(found.rounds, expected.rounds, check_exact=True)


def turns(folder: Path) -> Counter[int]:
    """Return how often each client was trained, whether anybody had the answer or not."""
    return Counter(int(path.name.split("-")[1]) for path in folder.glob("turn-*"))


def culprits(folder: Path) -> list[int]:
    """Return the processes in which the fault happened, in order."""
    marks = sorted(folder.glob("fault-*"), key=lambda path: int(path.name.split("-")[2]))
    return [int(path.name.split("-")[1]) for path in marks]
