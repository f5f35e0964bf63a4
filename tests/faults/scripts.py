"""Programs of their own for faults that would take the tests' process along; run as `python -m`."""

from __future__ import annotations

import sys

import ray
from flwr.app import Message

from fedsim import wire
from fedsim.engine.grid import RayGrid
from fedsim.errors import EngineError
from fedsim.settings import EngineSettings
from tests.engine.fakes import content
from tests.faults.apps import Heavy


def crowded() -> None:
    """Data that are larger than Ray's object store: they go to disk, or are refused in words."""
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=75 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        with RayGrid(Heavy(150), EngineSettings(workers=1)) as grid:
            shared = content()
            replies = grid.send_and_receive([Message(shared, node, "evaluate") for node in (1, 2)])
            assert [wire.read(reply).numbers["sum"] for reply in replies] == [150 * 2**20] * 2
            print("answered")
    except EngineError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    {"crowded": crowded}[sys.argv[1]]()
