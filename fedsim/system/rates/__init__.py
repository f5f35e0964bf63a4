"""Rates: how fast each client computes (examples per second) or transfers (Mbit/s). One distribution per file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fedsim.plugins import Plugin
from fedsim.system.crowd import Crowd, Floats


class Rates(Plugin, ABC):
    """Gives every client a rate that it keeps for the whole run."""

    noun: ClassVar[str] = "distribution of rates"

    @abstractmethod
    def draw(self, crowd: Crowd, label: str) -> Floats:
        """Return the clients' rates, [K], positive.

        Args:
            crowd: The clients.
            label: What the rates are of: "speed", "bandwidth_up" or "bandwidth_down"; each has random numbers of
                its own.

        Raises:
            DataError: A trace cannot be used; says why.
        """
