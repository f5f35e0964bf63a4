"""Sinks that tests name by their import path."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Literal, final

from fedsim.sinks import Session, Sink, Status, Told, Tracked

HOLD = threading.Event()
"""What a sink that hangs waits for."""


@final
class Lines(Sink):
    """A line of JSON for everything it is told.

    Attributes:
        file: Name of the file in the run folder.
    """

    file: str = "lines.jsonl"

    def start(self, run: Tracked) -> Session:
        return _Lines(run, self.file)


class _Lines(Session):
    def __init__(self, run: Tracked, file: str) -> None:
        super().__init__(run)
        self._path = run.folder / file
        about = {"name": run.name, "tags": dict(run.tags), "resumed": run.id, "reached": run.reached}
        self.id = run.id or "first"
        self._write({"start": about, "scenario": dict(run.scenario)})

    def _write(self, line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def round(self, told: Told) -> None:
        clients = {name: values.tolist() for name, values in told.clients.items()}
        self._write({"round": told.number, "numbers": dict(told.numbers), "clients": clients})

    def finish(self, status: Status, summary: Mapping[str, float]) -> None:
        self._write({"status": status, "summary": dict(summary)})


@final
class Trouble(Sink):
    """A tracker that fails, or hangs until HOLD is set, at one place.

    Attributes:
        at: The place.
        how: What happens there.
    """

    at: Literal["start", "round", "finish"] = "round"
    how: Literal["raise", "exit", "hang"] = "raise"

    def start(self, run: Tracked) -> Session:
        self.act("start")
        return _Trouble(run, self)

    def act(self, place: str) -> None:
        if place != self.at:
            return
        if self.how == "hang":
            HOLD.wait(120)
        elif self.how == "exit":
            raise SystemExit(3)
        else:
            raise OSError(f"no tracker at {place}")


class _Trouble(Session):
    def __init__(self, run: Tracked, sink: Trouble) -> None:
        super().__init__(run)
        self._sink = sink

    def round(self, told: Told) -> None:
        if told.number == 2:
            self._sink.act("round")

    def finish(self, status: Status, summary: Mapping[str, float]) -> None:
        del status, summary
        self._sink.act("finish")
