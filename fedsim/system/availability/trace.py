"""Availability as it was recorded: a CSV file of clients and the times they were there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from fedsim.errors import DataError
from fedsim.system import csv_table
from fedsim.system.availability import Availability
from fedsim.system.crowd import TICK_S, Crowd, Floats, Moment, Whole

COLUMNS = ("client", "start_s", "end_s")

Line = tuple[int, tuple[float, ...]]


@final
class Trace(Availability):
    """Client k is there from start_s to end_s of each of its lines, and again every period.

    The file has a header with the columns client, start_s and end_s: whole numbers from 0, and seconds. Times of
    one client that touch or overlap are one. Clients without a line never come; lines of clients that the
    federation does not have are not used. A client whose time ends before its answer is lost.

    Attributes:
        path: The CSV file, relative to the data root.
        period_s: Seconds after which the trace begins again; None takes its latest end.
    """

    path: str
    period_s: PositiveFloat | None = None

    def remaining(self, moment: Moment) -> Floats:
        """Return how long each client's recorded time still lasts; see `Availability.remaining`."""
        clients, starts, ends, period = self._times(moment.crowd)
        since = np.mod(moment.time_s + TICK_S - starts, period)
        found = np.zeros(moment.crowd.num_clients)
        np.maximum.at(found, clients, ends - starts - since)
        # What ends with the trace and begins with it goes on.
        found[_endless(clients, starts, ends, period)] = np.inf
        return found

    def wait(self, moment: Moment) -> float:
        """Return the seconds until the first recorded time begins."""
        _, starts, _, period = self._times(moment.crowd)
        return float(np.mod(starts - moment.time_s, period).min())

    def _times(self, crowd: Crowd) -> tuple[Whole, Floats, Floats, float]:
        path = crowd.root / self.path
        return _times(path, csv_table.read(path, COLUMNS), crowd.num_clients, self.period_s)


@lru_cache(maxsize=8)
def _times(
    path: Path, lines: tuple[Line, ...], num_clients: int, period_s: float | None
) -> tuple[Whole, Floats, Floats, float]:
    """Return the clients, starts and ends of what was recorded, one element per stay, and the period.

    Raises:
        DataError: A time ends before it begins or after the period, or no line is about a client there is.
    """
    period = period_s or max(numbers[2] for _, numbers in lines)
    stays: dict[int, list[list[float]]] = {}
    for line, (client, start, end) in lines:
        if not 0 <= start < end <= period:
            raise DataError(
                f"{path}, line {line}: must have 0 <= start_s < end_s <= {period:g}, the period, got {start:g} and "
                f"{end:g}"
            )
        if client < num_clients:
            stays.setdefault(int(client), []).append([start, end])
    if not stays:
        raise DataError(f"{path}: names none of the clients 0 to {num_clients - 1}")
    rows = [(client, *stay) for client, known in sorted(stays.items()) for stay in _joined(known, period)]
    table = np.array(rows, dtype=np.float64)
    return table[:, 0].astype(np.int64), table[:, 1], table[:, 2], float(period)


def _joined(stays: list[list[float]], period: float) -> list[list[float]]:
    """Return one client's stays in order, those that touch as one, across the end of the period too."""
    joined: list[list[float]] = []
    for start, end in sorted(stays):
        if joined and start <= joined[-1][1] + TICK_S:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    first, last = joined[0], joined[-1]
    if len(joined) > 1 and first[0] <= TICK_S and last[1] >= period - TICK_S:
        joined = [*joined[1:-1], [last[0], period + first[1]]]
    return joined


def _endless(clients: Whole, starts: Floats, ends: Floats, period: float) -> NDArray[np.int64]:
    return clients[ends - starts >= period - TICK_S]
