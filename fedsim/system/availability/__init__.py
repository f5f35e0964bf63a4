"""Availability: which clients are there when a round begins, and for how long. One model per file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fedsim.plugins import Plugin
from fedsim.system.crowd import Floats, Moment


class Availability(Plugin, ABC):
    """Says who is there; a pure function of the moment, so that it needs no memory and resumes by itself."""

    noun: ClassVar[str] = "availability model"

    @property
    def certain(self) -> bool:
        """Whether every client is there in every round."""
        return False

    @abstractmethod
    def remaining(self, moment: Moment) -> Floats:
        """Return the seconds each client stays from now on, [K]: 0 for those that are away, infinite without end.

        Raises:
            DataError: A trace cannot be used; says why.
        """

    @abstractmethod
    def wait(self, moment: Moment) -> float:
        """Return the seconds until somebody may be there; asked only where nobody is. Positive and finite."""
