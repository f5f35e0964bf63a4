"""Sinks: one file each. A sink passes a run's numbers on to a tracker, such as TensorBoard, MLflow or W&B.

A sink is a table of options in a scenario; `start` opens a session, which is told of every round and of the end.
It works in a thread of its own (fedsim/tracking.py): it may take its time and it may raise, the run goes on anyway.
docs/tracking.md has a whole sink as an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.plugins import Plugin

Floats = NDArray[np.float64]
Status = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Tracked:
    """The run that a sink is told about.

    Attributes:
        folder: The run folder, absolute.
        scenario: The resolved scenario as plain data, without its table [tracking].
        tags: What tells runs apart: scenario, method, partition, seed; in a study also its name, as "study".
        id: What the session called itself before the run was taken up again; "" for a new one.
        reached: The last round that the sink was told before the run was taken up again; -1 for none.
    """

    folder: Path
    scenario: Mapping[str, Any]
    tags: Mapping[str, str]
    id: str = ""
    reached: int = -1

    @property
    def name(self) -> str:
        """The run's name, its folder's."""
        return self.folder.name

    @property
    def study(self) -> str:
        """The study that the run belongs to; "" for none."""
        return self.tags.get("study", "")


@dataclass(frozen=True)
class Told:
    """One round, as a sink is told of it.

    Attributes:
        number: From 1; 0 is the evaluation of the initial model.
        numbers: Column of rounds.parquet -> its value; a vector's entries are name/0, name/1, ... What is not known
            (NaN) is left out, and so are words.
        clients: "test_accuracy" and "test_loss" -> a value for each client that has one, [K]; empty in a round
            without an evaluation.
    """

    number: int
    numbers: Mapping[str, float]
    clients: Mapping[str, Floats] = field(default_factory=dict)


class Session(ABC):
    """A tracker that is open for one run.

    Attributes:
        id: What the tracker calls the run, if that is needed to find it again: handed back as `Tracked.id` when
            the run is taken up again.
        reached: The last round told, kept by whoever tells. A tracker that knows better when a run is taken up
            again sets it in `__init__`; the rounds after it are told again, those up to it are not.
    """

    def __init__(self, run: Tracked) -> None:
        self.id, self.reached = run.id, run.reached

    @abstractmethod
    def round(self, told: Told) -> None:
        """Pass on a round; when this returns, the round outlives the process."""

    def rounds(self, several: Sequence[Told]) -> None:
        """Pass on the rounds that have come up meanwhile; for trackers that have a quicker way than one by one."""
        for told in several:
            self.round(told)
            self.reached = told.number

    @abstractmethod
    def finish(self, status: Status, summary: Mapping[str, float]) -> None:
        """Pass on the end of the run, or of this part of it, and let go of everything.

        Args:
            status: How it ended.
            summary: Numbers of summary.json, such as "fairness/test_accuracy/worst_10"; empty unless the run is
                finished.
        """


class Sink(Plugin, ABC):
    """Passes a run's numbers on to a tracker.

    Attributes:
        packages: What has to be installed, by the names they are imported by.
        extra: The extra of fedsim that installs them; "" for none.
    """

    noun: ClassVar[str] = "sink"
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    @abstractmethod
    def start(self, run: Tracked) -> Session:
        """Open the tracker for a run, or again for one that is taken up.

        The tracker's package is imported here, so that a scenario can name a sink that nobody has installed.
        """


def flat(table: Mapping[str, Any], prefix: str = "", separator: str = "/") -> dict[str, Any]:
    """Return a nested table, lists too, as name -> value with what leads to it in front.

    >>> flat({"a": {"b": 1, "c": [2.0, "x"]}, "d": {}})
    {'a/b': 1, 'a/c/0': 2.0, 'a/c/1': 'x'}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = dict(enumerate(value)) if isinstance(value, list | tuple | np.ndarray) else value
        if isinstance(inner, Mapping):
            found |= flat({str(k): v for k, v in inner.items()}, f"{prefix}{key}{separator}", separator)
        else:
            found[f"{prefix}{key}"] = value
    return found
