"""LocalGrid: every client in this process, no Ray. The reference that other engines must equal bit by bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import RecordDict

from fedsim.engine.base import BlockApp, BlockGrid, State
from fedsim.wire import Block


class LocalGrid(BlockGrid):
    """Answers in this process.

    Args:
        app: Answers for the clients.
        threads: Threads of linear algebra while clients train, as many as a Ray worker has.
    """

    def __init__(self, app: BlockApp, threads: int = 1) -> None:
        super().__init__(app)
        self._threads = threads
        self._states: dict[int, State] = {}

    def answer(
        self, kind: str, content: RecordDict, clients: Sequence[int], timeout: float | None
    ) -> Mapping[int, tuple[Block, int] | str]:
        """Run one block; a timeout cannot interrupt this process and is not looked at."""
        del timeout
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            block, kept = self._app.run(kind, content, clients, [self._states.get(c, {}) for c in clients])
        finally:
            torch.set_num_threads(before)
        if self._app.stateful:
            self._states.update({c: state for c, state in zip(clients, kept, strict=True) if state})
        return {client: (block, row) for row, client in enumerate(clients)}

    def client_states(self) -> dict[int, State]:
        """Return what every client keeps between rounds."""
        return dict(self._states)

    def close(self) -> None:
        """Nothing to end."""
