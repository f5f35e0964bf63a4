"""Applications that misbehave for one client, a limited number of times; Ray workers import them from here."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from flwr.app import RecordDict

from clients.app import LocalApp
from clients.training import fit_each, fit_stacked
from fedsim import wire
from fedsim.engine.task import Desk
from fedsim.wire import Block


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: One of the keys of `ENDS`, `ANSWERS` or `FITS`.
        folder: Files here count how often it happened, whichever process it happened in.
        client: Whom it befalls; -1 for everyone.
        round: In which round; 0 for every one.
        times: How often at most.
        room: Clients that memory suffices for, for "memory".
    """

    kind: str
    folder: Path
    client: int = 0
    round: int = 0
    times: int = 1_000_000
    room: int = 0

    def happens(self) -> bool:
        """Count one more, unless it has happened often enough."""
        return len(list(self.folder.glob("fault-*"))) < self.times and mark(self.folder, "fault")


def mark(folder: Path, what: str) -> bool:
    """Leave a file that says by its name that something happened, and in which process."""
    (folder / f"{what}-{os.getpid()}-{time.monotonic_ns()}").touch()
    return True


def _segfault() -> None:
    ctypes.string_at(0)


ENDS: Mapping[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda: os._exit(3),
    "segfault": _segfault,
    "hang": lambda: time.sleep(3600),
}
"""What happens to the process while it trains the client."""


def _changed(block: Block, row: int, name: str, value: float) -> Block:
    column = block.numbers[name].copy()
    column[row] = value
    return replace(block, numbers={**block.numbers, name: column})


ANSWERS: Mapping[str, Callable[[Block, int], Block]] = {
    "negative": lambda block, row: _changed(block, row, "num-examples", -5.0),
    "missing": lambda block, row: _changed(block, row, "num-examples", np.nan),
    "no-examples": lambda block, _: replace(
        block, numbers={name: column for name, column in block.numbers.items() if name != "num-examples"}
    ),
    "shape": lambda block, _: replace(block, updates=np.zeros((len(block.clients), 3), np.float32), posted=False),
}
"""What becomes of an answer with the client in it."""


class Watching:
    """A desk that tells whose turn it is before anybody is trained."""

    def __init__(self, desk: Desk, told: Callable[[int, int], None]) -> None:
        self._desk, self._told = desk, told

    def rows(self, width: int) -> Sequence[Any]:
        return self._desk.rows(width)

    def turn_to(self, first: int, count: int = 1) -> None:
        self._desk.turn_to(first, count)
        self._told(first, count)


class Faulty:
    """A federation whose clients train as ever, but for one fault.

    Args:
        app: Answers.
        fault: What goes wrong in training.
    """

    def __init__(self, app: LocalApp, fault: Fault) -> None:
        self._app, self._fault = app, fault
        self.num_clients = app.num_clients
        self.units, self.cost, self.width = app.units, app.cost, app.width
        self.reads_state, self.keeps_state = app.reads_state, app.keeps_state

    def run(
        self,
        kind: str,
        content: RecordDict,
        units: Sequence[Sequence[int]],
        states: Sequence[Any],
        desk: Desk,
    ) -> tuple[Block, list[Any]]:
        clients = [client for unit in units for client in unit]
        fault = self._fault
        if kind != "train" or fault.round not in (0, wire.unpack_request(content).server_round):
            return self._app.run(kind, content, units, states, desk)
        whose: list[int] = []

        def turn(first: int, count: int) -> None:
            whose[:] = clients[first : first + count]
            for client in whose:
                mark(fault.folder, f"turn-{client}")
            if fault.client in whose and fault.kind in ENDS and fault.happens():
                ENDS[fault.kind]()

        def spoilt(train: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
            def fits(model: Any, theta: torch.Tensor, pool: Any, block: Sequence[Any], work: Any) -> list[Any]:
                concerned = fault.client in whose or fault.client < 0
                if fault.kind == "memory" and concerned and len(block) > fault.room and fault.happens():
                    raise torch.OutOfMemoryError("CUDA out of memory")
                met = fault.client in whose and len(whose) == len(block)
                if fault.kind == "raise" and met and fault.happens():
                    raise ValueError("its data are damaged")
                found = train(model, theta, pool, block, work)
                value = {"nan": np.nan, "inf": np.inf}.get(fault.kind)
                if met and value is not None and fault.happens():
                    row = whose.index(fault.client)
                    update = found[row].update.clone()
                    update[7] = value
                    found[row] = replace(found[row], update=update)
                return found

            return fits

        with mock.patch.multiple("clients.app", fit_each=spoilt(fit_each), fit_stacked=spoilt(fit_stacked)):
            block, kept = self._app.run(kind, content, units, states, Watching(desk, turn))
        if fault.kind in ANSWERS and fault.client in clients and fault.happens():
            block = ANSWERS[fault.kind](block, clients.index(fault.client))
        return block, kept


class Unreadable:
    """Pickles, but cannot be read back."""

    num_clients = 3

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return _unreadable, ()


def _unreadable() -> object:
    raise ImportError("no module named 'left_at_home'")


class Heavy:
    """Brings an array that may not fit where it has to go."""

    def __init__(self, megabytes: int) -> None:
        self.num_clients = 2
        self.data = np.ones(megabytes * 2**20, np.uint8)

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        return [[client] for client in clients]

    def cost(self, kind: str, client: int) -> float:  # noqa: ARG002
        return 1.0

    def width(self, kind: str, content: RecordDict) -> int:  # noqa: ARG002
        return 0

    def reads_state(self, kind: str) -> bool:  # noqa: ARG002
        return False

    def keeps_state(self, kind: str) -> bool:  # noqa: ARG002
        return False

    def run(
        self, kind: str, content: RecordDict, units: Sequence[Sequence[int]], states: Sequence[Any], desk: Desk
    ) -> tuple[Block, list[Any]]:
        del kind, content, desk
        clients = [client for unit in units for client in unit]
        numbers = {"client": np.array(clients, float), "sum": np.full(len(clients), float(self.data.sum()))}
        return Block(tuple(clients), numbers), list(states)


class Wide:
    """Clients that count their turns in what they keep, and write that into every number of a long row."""

    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        return [[client] for client in clients]

    def cost(self, kind: str, client: int) -> float:  # noqa: ARG002
        return 1.0

    def width(self, kind: str, content: RecordDict) -> int:  # noqa: ARG002
        return wire.num_weights(content)

    def reads_state(self, kind: str) -> bool:  # noqa: ARG002
        return True

    def keeps_state(self, kind: str) -> bool:  # noqa: ARG002
        return True

    def run(
        self, kind: str, content: RecordDict, units: Sequence[Sequence[int]], states: Sequence[Any], desk: Desk
    ) -> tuple[Block, list[Any]]:
        del kind
        clients = [client for unit in units for client in unit]
        turns = [int(state["turns"][0]) + 1 if state else 1 for state in states]
        width = wire.num_weights(content)
        for place, (row, client, turn) in enumerate(zip(desk.rows(width), clients, turns, strict=True)):
            desk.turn_to(place)
            row[: width // 2] = 1000 * client + turn
            time.sleep(0.001)
            row[width // 2 :] = 1000 * client + turn
        numbers = {"client": np.array(clients, float), "turns": np.array(turns, float)}
        return Block(tuple(clients), numbers, posted=True), [{"turns": np.array([turn])} for turn in turns]
