"""Rates as they were measured: a CSV file with a line for each client."""

from __future__ import annotations

from typing import final

import numpy as np

from fedsim.errors import DataError
from fedsim.system import csv_table
from fedsim.system.crowd import Crowd, Floats
from fedsim.system.rates import Rates


@final
class Trace(Rates):
    """rate_k is what the line of client k says.

    The file has a header with the column client, whole numbers from 0, and the column named here. Lines of clients
    that the federation does not have are not used.

    Attributes:
        path: The CSV file, relative to the data root.
        column: Which column holds the rates; None takes the one called speed, bandwidth_up or bandwidth_down.
    """

    path: str
    column: str | None = None

    def draw(self, crowd: Crowd, label: str) -> Floats:
        """Return the rates; see `Rates.draw`."""
        path, column = crowd.root / self.path, self.column or label
        found = np.full(crowd.num_clients, np.nan)
        for line, (client, rate) in csv_table.read(path, ("client", column)):
            if rate <= 0:
                raise DataError(f"{path}, line {line}: {column} must be greater than 0, got {rate:g}")
            if client < crowd.num_clients:
                if not np.isnan(found[int(client)]):
                    raise DataError(f"{path}, line {line}: client {client:g} has a line already; leave one of them")
                found[int(client)] = rate
        missing = np.flatnonzero(np.isnan(found)).tolist()
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{path}: has no line for client {missing[0]}{more}; every client needs a {column}")
        return found
