"""What became of a round: the clients asked, what each took and cost, and what the virtual clock says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

REASONS = DROPPED, LEFT, LATE, TOO_FEW = "dropped", "left", "late", "too few"
"""Why an answer does not count: the client was lost, its time of availability ended, the round was over, or so few
answers came that the strategy cannot use them."""


@dataclass(frozen=True)
class Part:
    """What one client that was asked did.

    Attributes:
        client: Its number.
        seconds: From the beginning of the round to its answer, or to the moment it stopped.
        bytes_down: What it received.
        bytes_up: What it sent.
        work: Share of its local steps that it was to take.
        lost: Why its answer does not count; None where it does.
    """

    client: int
    seconds: float
    bytes_down: int
    bytes_up: int
    work: float = 1.0
    lost: str | None = None


@dataclass(frozen=True)
class Plan:
    """A round on the virtual clock.

    Attributes:
        start_s: When it began, in seconds since the run began.
        seconds: How long it lasted.
        num_available: Clients that were there.
        parts: The clients that were asked, ascending.
    """

    start_s: float = 0.0
    seconds: float = 0.0
    num_available: int = 0
    parts: tuple[Part, ...] = ()

    @cached_property
    def counted(self) -> list[int]:
        """The clients whose answers count, ascending."""
        return [part.client for part in self.parts if part.lost is None]

    @cached_property
    def shares(self) -> dict[int, float]:
        """The clients whose answers count and that take fewer than all their steps, with the share they take."""
        return {part.client: part.work for part in self.parts if part.lost is None and part.work < 1.0}

    @property
    def end_s(self) -> float:
        """When it was over."""
        return self.start_s + self.seconds

    def lost(self, *reasons: str) -> int:
        """Return how many answers did not count for one of these reasons."""
        return sum(part.lost in reasons for part in self.parts)

    def abandoned(self) -> Plan:
        """Return the same round where even the answers that came are of no use."""
        parts = tuple(replace(part, lost=TOO_FEW) if part.lost is None else part for part in self.parts)
        return Plan(self.start_s, self.seconds, self.num_available, parts)

    def with_query(self, seconds: float, traffic: Mapping[int, tuple[int, int]]) -> Plan:
        """Return the same round with one more question to some of its clients.

        Args:
            seconds: How long it took.
            traffic: Client -> bytes down and up.
        """
        parts = []
        for part in self.parts:
            down, up = traffic.get(part.client, (0, 0))
            parts.append(replace(part, bytes_down=part.bytes_down + down, bytes_up=part.bytes_up + up))
        return Plan(self.start_s, self.seconds + seconds, self.num_available, tuple(parts))

    def row(self) -> dict[str, float]:
        """Return the columns of rounds.parquet."""
        return {
            "simulated_seconds": self.seconds,
            "simulated_time": self.end_s,
            "bytes_down": sum(part.bytes_down for part in self.parts),
            "bytes_up": sum(part.bytes_up for part in self.parts),
            "num_available": self.num_available,
            "num_selected": len(self.parts),
            "num_dropped": self.lost(DROPPED, LEFT),
            "num_late": self.lost(LATE),
        }

    def columns(self, place: Mapping[int, int]) -> dict[str, NDArray[Any]]:
        """Return the columns of clients.parquet: NaN or "" for clients that were not asked.

        Args:
            place: Client -> its row; every client asked has one.
        """
        names = ("seconds", "bytes_down", "bytes_up", "work")
        columns: dict[str, NDArray[Any]] = {name: np.full(len(place), np.nan) for name in names}
        lost = np.full(len(place), "", dtype=f"<U{max(map(len, REASONS))}")
        for part in self.parts:
            row = place[part.client]
            for name in names:
                columns[name][row] = getattr(part, name)
            lost[row] = part.lost or ""
        return {"system_seconds": columns.pop("seconds"), **columns, "lost": lost}


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what a run cost, from the rows of rounds.parquet."""
    trained = [row for row in rows if row["round"] > 0]
    summed = ("bytes_down", "bytes_up", "num_selected", "num_dropped", "num_late")
    return {
        "simulated_time": float(rows[-1]["simulated_time"]) if rows else 0.0,
        **{name: int(sum(row[name] for row in trained)) for name in summed},
        "rounds_without_answers": sum(row["num_sampled"] == 0 for row in trained),
    }
