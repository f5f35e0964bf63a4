"""The Ray actor of a block: resident model and data, one call per block of clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import RecordDict

from fedsim.engine import flower
from fedsim.engine.base import BlockApp, State


class Worker:
    """Lives in one process and answers for the clients it is given.

    Args:
        app: Answers for the clients; its arrays lie in Ray's shared memory.
        threads: Threads of linear algebra.
    """

    def __init__(self, app: BlockApp, threads: int) -> None:
        torch.set_num_threads(threads)
        flower.set_identity()
        self._app = app

    def ready(self) -> None:
        """Answer once the process is up."""

    def run(self, kind: str, content: RecordDict, units: Sequence[Sequence[int]], *states: State) -> Any:
        """Return the block, and after it one state per client when states came with the request."""
        nothing: list[State] = [{} for unit in units for _ in unit]
        block, kept = self._app.run(kind, content, units, states or nothing)
        return (block, *kept) if states else block

    def read(self, kind: str, content: RecordDict, units: Sequence[Sequence[int]], *states: State) -> Any:
        """Return the block of a request that leaves what clients keep as it is."""
        return self._app.run(kind, content, units, states)[0]
