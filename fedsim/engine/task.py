"""What a grid is asked in one go: one content for some clients, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from itertools import count
from typing import Protocol, Self

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedsim.engine.states import State
from fedsim.errors import FedSimError

Floats = NDArray[np.float32]


class Answers(Protocol):
    """What several clients answer: `fedsim.wire.Block`, or any other application's records.

    Attributes:
        clients: Their numbers; what belongs to the row-th of them is found under `row`.
    """

    @property
    def clients(self) -> Sequence[int]:
        """Number of the client of each row."""
        ...

    @property
    def errors(self) -> Mapping[int, str]:
        """Row -> what went wrong there; that row means nothing else."""
        ...

    def content(self, row: int) -> RecordDict:
        """Return one client's answer as Flower records."""
        ...

    @classmethod
    def merged(cls, parts: Sequence[tuple[Sequence[int], Self]], num_rows: int, updates: Floats | None) -> Self:
        """Return one block for the answers of several workers; see `fedsim.wire.Block.merged`."""
        ...


class Desk(Protocol):
    """Where a worker leaves what it makes while it answers."""

    def rows(self, width: int) -> Sequence[Floats]:
        """Return an array [width] for each client asked, to write its update into; what it holds is anything."""
        ...

    def turn_to(self, first: int, count: int = 1) -> None:
        """Say which of the clients asked, by row, are answered from now on: should they hang, they are named."""
        ...


class BlockApp(Protocol):
    """A client application that answers for many clients at once."""

    num_clients: int

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:
        """Split clients into groups that must be answered together for a result that no schedule changes."""
        ...

    def cost(self, kind: str, client: int) -> float:
        """Return how long a client takes, in any unit."""
        ...

    def width(self, kind: str, content: RecordDict) -> int:
        """Return how many numbers each client will write into a row of the desk, D; 0 for none."""
        ...

    def reads_state(self, kind: str) -> bool:
        """Say whether what clients keep matters to their answers to this kind of request."""
        ...

    def keeps_state(self, kind: str) -> bool:
        """Say whether clients keep something from answering this kind of request."""
        ...

    def run(
        self,
        kind: str,
        content: RecordDict,
        units: Sequence[Sequence[int]],
        states: Sequence[State],
        desk: Desk,
    ) -> tuple[Answers, list[State]]:
        """Answer one request for the clients of several units, each with what it kept.

        Returns:
            The answers in the order of the units, and what each client keeps now. Updates that were written to the
            desk's rows are not in the answers.
        """
        ...


class Patience(Enum):
    """What a timeout means.

    Attributes:
        STRICT: Time runs at once, and who has no answer when it is over has none.
        FAIR: When it is over, clients that workers are busy with have none; the others have as long again, once.
        BEHIND: As FAIR, but time runs from when nothing that was asked before is left to do.
    """

    STRICT = auto()
    FAIR = auto()
    BEHIND = auto()


@dataclass(eq=False)
class Task:
    """One content for some clients.

    Attributes:
        kind: Type of the messages.
        content: Their content.
        clients: Whom they are for, each once.
        keeps: Whether clients keep something from answering.
        reads: Whether what they kept matters to the answer.
        timeout: Seconds the clients have; None for as many as they like.
        patience: What that means.
        after: Tasks whose states this one needs.
        merged: The answers of all, once there.
        failed: Client -> why it has no answer.
        kept: Client -> where what it keeps now is.
        error: What ended the task as a whole.
        done: Whether every client has its answer or a reason.
        collected: Whether somebody has looked at the answers: only then do clients keep what they keep.
        serial: Its turn among all tasks.
    """

    kind: str
    content: RecordDict
    clients: tuple[int, ...]
    keeps: bool
    reads: bool
    timeout: float | None = None
    patience: Patience = Patience.STRICT
    after: tuple[Task, ...] = ()
    merged: Answers | None = None
    failed: dict[int, str] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)
    error: FedSimError | None = None
    done: bool = False
    collected: bool = False
    serial: int = field(default_factory=count().__next__)

    @cached_property
    def place_of(self) -> dict[int, int]:
        """Client -> its row in the merged answers."""
        return {client: place for place, client in enumerate(self.clients)}
