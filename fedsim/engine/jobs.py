"""What a driver and its workers say to each other, and what the driver knows of whom it gave what."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedsim.engine.board import Board, Note
from fedsim.engine.states import State
from fedsim.engine.task import Answers, Task
from fedsim.engine.usage import Worked


@dataclass(frozen=True)
class Job:
    """What a worker is sent.

    Attributes:
        number: Comes back with the answer.
        task: Number of the task it is part of.
        kind: Type of the message.
        request: Where its content is; None where the crew brings it in another way.
        units: Clients that are answered together.
        places: The row of each client among those of the task.
        states: Where what each client kept is, or that itself; empty where it does not matter.
        file: File for what they keep now; None where they keep nothing.
    """

    number: int
    task: int
    kind: str
    request: Note | None
    units: Sequence[Sequence[int]]
    places: Sequence[int]
    states: Sequence[str] | Sequence[State]
    file: str | None


@dataclass(frozen=True)
class Done:
    """What comes back.

    Attributes:
        number: The job's.
        block: The answers.
        kept: Where what each client keeps now is, or that itself.
        error: What went wrong with the whole job.
        busy_s: Seconds the clients took.
        transfer_s: Seconds that reading and writing took.
    """

    number: int
    block: Answers | None
    kept: Sequence[str] | Sequence[State] = ()
    error: str | None = None
    busy_s: float = 0.0
    transfer_s: float = 0.0


@dataclass(eq=False)
class Piece:
    """A part of a task, for one worker.

    Attributes:
        live: The task it is part of.
        units: Clients that are answered together.
        cost: How long they take, in the application's unit.
        deaths: Workers that died of it, or of another piece it was cut from.
        number: That of the job that was made of it last.
    """

    live: Live
    units: list[list[int]]
    cost: float
    deaths: int = 0
    number: int = -1

    @property
    def members(self) -> list[int]:
        """Its clients."""
        return [client for unit in self.units for client in unit]


@dataclass(eq=False)
class Live:
    """A task that is not done.

    Attributes:
        task: The task.
        number: Its number.
        slips: Where what each client kept is.
        left: Pieces that are not answered.
        parts: Answers: the rows they belong in, and a block.
        deadline: When patience ends.
        extended: Whether its clients were given as long again.
        late: Whether somebody may still write to its board.
    """

    task: Task
    number: int
    slips: Sequence[str] = ()
    left: int = 0
    parts: list[tuple[list[int], Answers]] = field(default_factory=list)
    deadline: float | None = None
    extended: bool = False
    late: bool = False
    board: Board | None = None
    note: Note | None = None


@dataclass(eq=False)
class Member:
    """One place for a worker, whoever has it now.

    Attributes:
        number: From 0.
        up: Whether somebody is there to work.
        pieces: What it has, the first in hand.
        worked: What was done there.
    """

    number: int
    up: bool = False
    pieces: deque[Piece] = field(default_factory=deque)
    worked: Worked = field(default_factory=lambda: Worked(""))


@dataclass(frozen=True)
class Answered:
    """A worker has done a job."""

    member: Member
    done: Done


@dataclass(frozen=True)
class Died:
    """A worker is gone; the crew has started another in its place."""

    member: Member
    cause: str


class Crew(Protocol):
    """Starts workers, talks to them and says what happened."""

    members: list[Member]

    def send(self, member: Member, job: Job, task: Task) -> None:
        """Send a job on its way."""
        ...

    def events(self, timeout: float | None) -> list[Answered | Died]:
        """Return what happened, after at most `timeout` seconds if nothing does.

        Raises:
            EngineError: Workers cannot be started any more.
        """
        ...

    def restart(self, member: Member) -> None:
        """End whoever has a place, however busy, and start another."""
        ...

    def marker(self, member: Member) -> tuple[int, int]:
        """Return (first, count): the rows of its job that a worker is busy with; (-1, 0) if that is not known."""
        ...
