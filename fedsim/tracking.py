"""Tracking: the numbers of a run, passed on to sinks while it goes on (fedsim/sinks, docs/tracking.md).

Each sink has a thread. A tracker that fails, or that falls silent, is dropped with a warning in the log; the run
neither stops nor waits for it, save for a while at the end. tracking.json in the run folder holds what each tracker
calls the run and the last round it was told, so that a run that is taken up again goes on there, no round twice and
none left out.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np

from fedsim import plugins
from fedsim.errors import FedSimError
from fedsim.journal import Journal, column_of
from fedsim.rounds import Round
from fedsim.run_folder import CHECKPOINT, JOURNAL, RunFolder
from fedsim.scenario import Scenario
from fedsim.settings import SINKS, TrackingSettings
from fedsim.sinks import Session, Sink, Status, Told, Tracked, flat

MEMORY = "tracking.json"
"""File of a run folder that is tracked."""

CLIENTS = ("test_accuracy", "test_loss")
"""What sinks are told of every client."""

SUMMED_UP = ("fairness", "central", "pooled", "system")
"""What of summary.json sinks are told at the end."""

STALLED_S = 300.0
"""Seconds that a tracker may take over one round before it is dropped."""

FAREWELL_S = 60.0
"""Seconds that it may take over one round when the run is over and everybody waits for it."""

OPENING_S = 60.0
"""Seconds that a tracker may take to open before the next one is opened beside it."""

AT_ONCE = 50
"""Most rounds that a sink which is behind is told at once."""

_OPENING = Lock()

log = logging.getLogger("fedsim")


def changes_of(names: Sequence[str]) -> list[str]:
    """Return the overrides of a scenario that add sinks by name.

    >>> changes_of(["mlflow"])
    ['tracking.sinks={"mlflow" = {}}']
    """
    return [f"tracking.sinks={{{json.dumps(name)} = {{}}}}" for name in names]


class _End(NamedTuple):
    status: Status
    summary: Mapping[str, float]


class Tracking:
    """Tells sinks what happens in a run; a callback of the round loop, after the run folder.

    Args:
        run: The run folder; it has taken down a round before this is told of it.
        scenario: The resolved scenario.
        position: Where the run folder stood when the run is taken up again, see `RunFolder.position`; None for
            one that begins with round 0.
    """

    def __init__(self, run: RunFolder, scenario: Scenario, position: Mapping[str, Any] | None = None) -> None:
        settings = scenario.tracking or TrackingSettings()
        self._run, self._last = run, -1
        memory = _Memory(run.path / MEMORY)
        table = {key: value for key, value in scenario.table().items() if key != "tracking"}
        tags = {
            "scenario": scenario.name,
            "method": scenario.method,
            "partition": plugins.spelled(scenario.partition, "fedsim.partitions"),
            "seed": str(scenario.seed),
            **settings.tags,
        }
        self._feeds = []
        for sink in settings.sinks:
            name = plugins.spelled(sink, SINKS)
            _import(sink)
            tracked = Tracked(run.path.resolve(), table, tags, *memory.of(name))
            past = partial(_past, run.path, position) if position is not None else _nothing
            self._feeds.append(_Feed(name, sink, tracked, memory, past))

    def __call__(self, finished: Round) -> None:
        """Pass on a round."""
        if self._feeds and self._run.latest is not None:
            row, table = self._run.latest
            self._tell(_told(finished.number, row, table if finished.evaluated else {}))

    def finish(self, status: Status) -> None:
        """Pass on the end and wait for the sinks; once. The run folder is closed before, and cleared later.

        Args:
            status: How the run ended.
        """
        if not self._feeds:
            return
        if status != "finished":  # it may have been stopped between taking a round down and telling of it
            try:
                for told in _past(self._run.path, self._run.position(), self._last):
                    self._tell(told)
            except FedSimError as error:  # why the run ended is what matters now
                log.warning("tracking: the last round cannot be told: %s", error)
        summary: dict[str, float] = {}
        if status == "finished":
            summary = _numbers({key: self._run.summary[key] for key in SUMMED_UP if self._run.summary.get(key)})
        feeds, self._feeds = self._feeds, []
        for feed in feeds:
            feed.put(_End(status, summary))
        for feed in feeds:
            feed.wait()

    def _tell(self, told: Told) -> None:
        self._last = told.number
        for feed in self._feeds:
            feed.put(told)


class _Feed:
    """One sink, in a thread of its own."""

    def __init__(
        self, name: str, sink: Sink, run: Tracked, memory: _Memory, past: Callable[[int], Iterable[Told]]
    ) -> None:
        self._name, self._sink, self._run, self._memory, self._past = name, sink, run, memory, past
        self._waiting: SimpleQueue[Told | _End] = SimpleQueue()
        self._moved = time.monotonic()
        self._dropped = False
        self._thread = Thread(target=self._work, name=f"tracking {name}", daemon=True)
        self._thread.start()

    def put(self, what: Told | _End) -> None:
        """Hand something over, without waiting."""
        if self._dropped:
            return
        if self._waiting.empty():
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > STALLED_S:
            self._drop(f"has not answered for {STALLED_S:.0f} s")
            return
        self._waiting.put(what)

    def wait(self) -> None:
        """Wait for the end, as long as something moves."""
        began = time.monotonic()
        while self._thread.is_alive() and not self._dropped:
            self._thread.join(timeout=1.0)
            if self._thread.is_alive() and time.monotonic() - max(began, self._moved) > FAREWELL_S:
                self._drop(f"has not answered for {FAREWELL_S:.0f} s")

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            log.warning("tracking: %s %s; it is told no more, the run goes on", self._name, why)

    def _work(self) -> None:
        try:
            session = self._opened()
            self._memory.note(self._name, session)
            past = iter(self._past(session.reached))
            while several := list(islice(past, AT_ONCE)):
                self._pass_on(session, several)
            end: _End | None = None
            while end is None and not self._dropped:
                several, end = self._next()
                self._pass_on(session, several)
            if end is not None and not self._dropped:
                session.finish(end.status, end.summary)
        except (Exception, SystemExit) as error:  # whatever a tracker does is no reason to end a run
            self._drop(f"failed: {type(error).__name__}: {error}")

    def _opened(self) -> Session:
        """Open the tracker, one at a time: what they import on the way does not bear company in Python 3.11."""
        alone = _OPENING.acquire(timeout=OPENING_S)
        try:
            return self._sink.start(self._run)
        finally:
            if alone:
                _OPENING.release()

    def _next(self) -> tuple[list[Told], _End | None]:
        """Wait for something; return all that is there, up to the end of the run."""
        self._moved = time.monotonic()
        several: list[Told] = []
        while not several or not (self._waiting.empty() or len(several) == AT_ONCE):
            what = self._waiting.get()
            if isinstance(what, _End):
                return several, what
            several.append(what)
        return several, None

    def _pass_on(self, session: Session, several: Sequence[Told]) -> None:
        self._moved = time.monotonic()
        fresh = [told for told in several if told.number > session.reached]
        if fresh and not self._dropped:
            session.rounds(fresh)
            session.reached = fresh[-1].number
            self._memory.note(self._name, session)


class _Memory:
    """What tracking.json holds: for each sink, what it calls the run and the last round it was told."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._held: dict[str, tuple[str, int]] = {}
        if path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8")).items()
                self._held = {name: (str(entry["id"]), int(entry["reached"])) for name, entry in held}
            except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
                log.warning("tracking: %s cannot be read, trackers begin new runs: %s", path, error)

    def of(self, name: str) -> tuple[str, int]:
        return self._held.get(name, ("", -1))

    def note(self, name: str, session: Session) -> None:
        with self._lock:
            self._held[name] = session.id, session.reached
            held = {sink: {"id": id_, "reached": reached} for sink, (id_, reached) in self._held.items()}
            unfinished = self._path.with_name(self._path.name + ".part")
            unfinished.write_text(json.dumps(held, indent=2), encoding="utf-8")
            unfinished.replace(self._path)


def _import(sink: Sink) -> None:
    """Import a tracker's packages in this thread: two that compile code at once can fail each other."""
    for package in sink.packages:
        try:
            import_module(package)
        except Exception as error:  # the sink will say so itself when it starts
            log.info("tracking: %s cannot be imported: %s", package, error)


def _nothing(after: int) -> Iterable[Told]:
    del after
    return ()


def _past(folder: Path, position: Mapping[str, Any], after: int) -> Iterator[Told]:
    """Yield the rounds after one that the journal holds."""
    journal = Journal.opened(folder / CHECKPOINT / JOURNAL, position["journal"], cut=False)
    for note, table in journal.rounds():
        number = int(note["row"]["round"])
        if number > after:
            columns = {name: column_of(table, name) for name in CLIENTS if note["evaluated"]}
            yield _told(number, note["row"], columns)


def _told(number: int, row: Mapping[str, Any], table: Mapping[str, Any]) -> Told:
    clients = {name: table[name] for name in CLIENTS if name in table}
    known = {name: values[~np.isnan(values)] for name, values in clients.items()}
    return Told(number, _numbers({k: v for k, v in row.items() if k != "round"}), known)


def _numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a table by their flat names; NaN is no number here."""
    kinds = (int, float, np.integer, np.floating)
    found = {name: float(value) for name, value in flat(table).items() if isinstance(value, kinds)}
    return {name: value for name, value in found.items() if not math.isnan(value)}
