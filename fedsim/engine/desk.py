"""Where answers are written: on a board that the driver reads, or into an array that travels with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsim.engine.board import Board, Boards, Floats, Note, Reader
from fedsim.engine.task import Answers
from fedsim.wire import Block

AnyAnswers = TypeVar("AnyAnswers", bound=Answers)

IDLE = (-1, 0)
"""What a worker's marker says when it answers for nobody."""


class ArrayDesk:
    """An array that travels with the answer.

    Args:
        count: Number of clients asked.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: Floats | None = None

    def rows(self, width: int) -> Sequence[Floats]:
        """Return where the clients' updates go, [width] each."""
        self._rows = np.empty((self._count, width), np.float32)
        return list(self._rows)

    def turn_to(self, first: int, count: int = 1) -> None:
        """Nobody watches."""

    def signed(self, block: AnyAnswers) -> AnyAnswers:
        """Return the answers with the updates that were written here."""
        if self._rows is None or not isinstance(block, Block):
            return block
        return replace(block, updates=self._rows, posted=False)


class WorkerDesk:
    """Of a worker in a process of its own.

    Args:
        reader: Maps boards.
        note: The board of this request, or None where there is none.
        places: Where each client's row goes on the board.
        marker: [2] of whole numbers that the driver can see, or None.
    """

    def __init__(
        self, reader: Reader, note: Note | None, places: Sequence[int], marker: NDArray[np.int32] | None
    ) -> None:
        self._reader, self._note, self._places, self._marker = reader, note, places, marker
        self._array = ArrayDesk(len(places))

    def rows(self, width: int) -> Sequence[Floats]:
        """Return where the clients' updates go, [width] each."""
        if self._note is None or self._note.shape[1] != width:
            return self._array.rows(width)
        everything = self._reader.rows(self._note)
        return [everything[place] for place in self._places]

    def turn_to(self, first: int, count: int = 1) -> None:
        """Say which of the clients asked, by row, are answered from now on."""
        if self._marker is not None:
            self._marker[:] = first, count

    def signed(self, block: AnyAnswers) -> AnyAnswers:
        """Return the answers with the updates that did not go on a board."""
        return self._array.signed(block)


class LocalDesk:
    """Of a grid that answers in its own process: the rows lie where the strategy will read them.

    Args:
        boards: Memory that is used again and again: fresh pages cost more than the copy.
        places: Where each client's row goes.
    """

    def __init__(self, boards: Boards, places: Sequence[int]) -> None:
        self._boards, self._places = boards, places
        self._board: Board | None = None
        self.updates: Floats | None = None

    def rows(self, width: int) -> Sequence[Floats]:
        """Return where the clients' updates go, [width] each."""
        shape = (len(self._places), width)
        self._board = self._boards.take(0, shape)
        self.updates = self._board.rows(self._board.post(b"", shape))
        return [self.updates[place] for place in self._places]

    def turn_to(self, first: int, count: int = 1) -> None:
        """Nobody watches."""

    def leave(self, block: Any) -> None:
        """Give the memory back, to be used again when nobody holds a row of it any more.

        Args:
            block: What was made of the rows, or None.
        """
        if self._board is not None:
            used = isinstance(block, Block) and block.updates is self.updates
            self._boards.give_back(self._board, self.updates if used else None)
        self.updates = None
