"""Partial work: which share of its local steps a client takes in a round. One model per file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from fedsim.plugins import Plugin
from fedsim.system.crowd import Floats, Moment


@dataclass(frozen=True)
class Job:
    """What one client is asked to do in a round.

    Attributes:
        client: Its number.
        steps: Local steps of all its work, S.
        seconds: Number of steps taken -> seconds from the beginning of the round until its answer is there;
            increasing.
        luck: The client's number of this round from [0, 1).
        deadline_s: The round's deadline, infinite without one.
    """

    client: int
    steps: int
    seconds: Callable[[int], float]
    luck: float
    deadline_s: float


class PartialWork(Plugin, ABC):
    """Says how many of its local steps a client takes."""

    noun: ClassVar[str] = "model of partial work"

    @property
    def needs_deadline(self) -> bool:
        """Whether it means nothing without system.deadline_s."""
        return False

    def luck(self, moment: Moment) -> Floats:
        """Return a number from [0, 1) for each client and round, [K]."""
        return moment.crowd.uniform("work", moment.server_round)

    @abstractmethod
    def steps(self, job: Job) -> int:
        """Return the steps the client takes, from 1 to S."""
