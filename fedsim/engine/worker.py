"""The Ray actor of a block: resident model and data, one call per block of clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from flwr.app import RecordDict

from fedsim.engine import flower
from fedsim.engine.base import BlockApp, State
from fedsim.engine.board import Note, Reader, readable
from fedsim.wire import Block


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
        self._reader = Reader()

    def ready(self, path: str, token: str) -> bool:
        """Answer once the process is up: whether it shares memory with whoever wrote a token to a file there."""
        return readable(path, token)

    def run(
        self,
        kind: str,
        request: RecordDict | Note,
        units: Sequence[Sequence[int]],
        places: Sequence[int],
        *states: State,
    ) -> Any:
        """Return the block, and after it one state per client when states came with the request.

        Args:
            kind: Type of the message.
            request: Its content, or where it is.
            units: Clients that are answered together.
            places: Where each client's row goes on the board.
            states: What each client kept.
        """
        nothing: list[State] = [{} for _ in places]
        block, kept = self._answer(kind, request, units, places, states or nothing)
        return (block, *kept) if states else block

    def read(
        self,
        kind: str,
        request: RecordDict | Note,
        units: Sequence[Sequence[int]],
        places: Sequence[int],
        *states: State,
    ) -> Any:
        """Return the block of a request that leaves what clients keep as it is; arguments as for `run`."""
        return self._answer(kind, request, units, places, states)[0]

    def _answer(
        self,
        kind: str,
        request: RecordDict | Note,
        units: Sequence[Sequence[int]],
        places: Sequence[int],
        states: Sequence[State],
    ) -> tuple[Block, list[State]]:
        note = request if isinstance(request, Note) else None
        content = self._reader.request(note) if note is not None else cast(RecordDict, request)
        block, kept = self._app.run(kind, content, units, states)
        if note is not None and block.updates is not None and block.updates.shape[1] == note.shape[1]:
            self._reader.write(note, places, block.updates)
            block = replace(block, updates=None, posted=True)
        return block, kept
