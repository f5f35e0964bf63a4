"""LocalGrid: every client in this process, no Ray. The reference that other engines must equal bit by bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import RecordDict

from fedsim.engine.base import BlockApp, BlockGrid, State
from fedsim.engine.states import States, read_states, write_states
from fedsim.errors import EngineError, FedSimError
from fedsim.wire import Block

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings


def check_device(settings: EngineSettings) -> int:
    """Return the number of GPUs, 0 when none was asked for.

    Raises:
        EngineError: One was asked for and there is none.
    """
    if settings.gpus_per_worker == 0:
        return 0
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        raise EngineError(
            f"engine.gpus_per_worker: no CUDA device was found, got {settings.gpus_per_worker:g}; "
            "set it to 0 to train on the CPU"
        )
    return found


class LocalGrid(BlockGrid):
    """Answers in this process.

    Args:
        app: Answers for the clients.
        threads: Threads of linear algebra while clients train, as many as a Ray worker has.
    """

    def __init__(self, app: BlockApp, threads: int = 1, states_folder: Path | None = None) -> None:
        super().__init__(app)
        self._threads = threads
        self.states = None if states_folder is None else States(states_folder)
        self._states: dict[int, State] = {}

    def answer(
        self, kind: str, content: RecordDict, clients: Sequence[int], timeout: float | None
    ) -> Mapping[int, tuple[Block, int] | str]:
        """Run one block; a timeout cannot interrupt this process and is not looked at."""
        del timeout
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        keeps = self.keeps(kind)
        try:
            reads = keeps or self._app.reads_state(kind)
            units = self._app.units(kind, clients)
            members = [client for unit in units for client in unit]
            states = [self._states.get(client, {}) if reads else {} for client in members]
            if self.states is not None and reads:
                slips = [self.states.slip(client) for client in members]
                states = read_states(self.states.folder, slips)
            block, kept = self._app.run(kind, content, units, states)
        except FedSimError:
            raise
        except Exception as error:
            raise EngineError(f"engine: answering failed: {type(error).__name__}: {error}") from error
        finally:
            torch.set_num_threads(before)
        if keeps:
            self._states.update(zip(members, kept, strict=True))
        if keeps and self.states is not None:
            slips = write_states(self.states.folder, self.states.new_file(), kept)
            self.states.update(dict(zip(members, slips, strict=True)))
        return {client: (block, row) for row, client in enumerate(members)}

    def client_states(self) -> dict[int, State]:
        """Return what every client keeps between rounds."""
        return dict(self._states)

    def close(self) -> None:
        """Nothing to end."""
