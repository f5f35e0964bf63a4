"""A tiny application for virtual clients, with faults on request; Ray workers import it from here."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedsim import wire
from fedsim.engine.task import Desk
from fedsim.wire import Block

State = dict[str, Any]


class FakeApp:
    """Client k answers an update of k plus the weights' sum; `order` in the request asks for trouble.

    Args:
        num_clients: Number of clients K.
        stateful: Count in the client's state how often it trained.
        group: Clients that must be answered together.
    """

    def __init__(self, num_clients: int = 7, *, stateful: bool = False, group: int = 1) -> None:
        self.num_clients = num_clients
        self.stateful = stateful
        self._group = group

    def reads_state(self, kind: str) -> bool:
        return self.stateful and kind == "train"

    def keeps_state(self, kind: str) -> bool:
        return self.stateful and kind == "train"

    def width(self, kind: str, content: RecordDict) -> int:
        return wire.num_weights(content) if kind == "train" else 0

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        groups: dict[int, list[int]] = {}
        for client in clients:
            groups.setdefault(client // self._group, []).append(client)
        return list(groups.values())

    def cost(self, kind: str, client: int) -> float:  # noqa: ARG002
        return 1.0 + client % 3

    def run(
        self,
        kind: str,
        content: RecordDict,
        units: Sequence[Sequence[int]],
        states: Sequence[State],
        desk: Desk,
    ) -> tuple[Block, list[State]]:
        clients = [client for unit in units for client in unit]
        request = wire.unpack_request(content)
        errors = {}
        settings = content["config"]
        assert isinstance(settings, ConfigRecord)
        order, victim = str(settings.get("order", "")), int(str(settings.get("victim", -1)))
        if order == "sleep-all":
            time.sleep(float(str(settings["seconds"])))
        if victim in clients:
            if order == "kill-when-told":  # say who we are, then wait for the end
                Path(str(settings["file"])).write_text(str(os.getpid()))
                time.sleep(60)
            elif order == "sleep":
                time.sleep(float(str(settings["seconds"])))
            elif order == "crash":
                raise ValueError("the whole block failed")
            elif order == "fail":
                errors[list(clients).index(victim)] = "RuntimeError: no luck"
        counts = [int(state["count"][0]) + 1 if "count" in state else 1 for state in states]
        kept = (
            [{"count": np.array([count])} for count in counts]
            if self.stateful and kind == "train"
            else [{}] * len(clients)
        )
        if kind == "train":
            for row, client in zip(desk.rows(2), clients, strict=True):
                row[:] = client + request.theta.sum()
        numbers = {
            "client": np.asarray(clients, dtype=np.float64),
            "num-examples": np.ones(len(clients)),
            "count": np.asarray(counts, dtype=np.float64),
            "pid": np.full(len(clients), float(os.getpid())),
            "block": np.full(len(clients), float(len(clients))),
        }
        return Block(tuple(clients), numbers, errors=errors, posted=kind == "train"), kept


def content(value: float = 0.0, **settings: Any) -> RecordDict:
    """A request whose weights sum to `value`."""
    arrays: ArrayRecord = wire.pack_arrays({"w": np.array([value, 0.0], np.float32)})
    return wire.pack_request(arrays, ConfigRecord(settings), 1, wants_update=True)
