"""Metrics: one file each. Clients send sums, and what a metric says is a function of sums.

So a metric of everybody's test examples is exact without a single example leaving a client: add the clients' sums
and ask for the values. docs/metrics.md defines every one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedsim import plugins
from fedsim.plugins import Plugin

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

ALWAYS = ("accuracy", "loss")
"""Metrics of every evaluation, whatever a scenario asks for."""


SUMS = "sums."
"""Begins the name under which the sums of a metric travel; the server pools them and keeps no client's."""


class Task(NamedTuple):
    """What the numbers in a metric's sums count.

    Attributes:
        num_classes: Number of classes C.
        num_groups: Number of groups of examples G; 0 where the data set names none.
    """

    num_classes: int
    num_groups: int = 0


class Value(NamedTuple):
    """One thing a metric says.

    Attributes:
        definition: What it is, in one sentence.
        better: Which way is better.
        vector: Whether it is one number per class or group rather than one number.
    """

    definition: str
    better: Literal["higher", "lower", "neither"]
    vector: bool = False


@dataclass(frozen=True)
class Predictions:
    """What a model says about the test examples of several clients.

    Attributes:
        logits: [N, C] float32, on the CPU.
        targets: [N] int64.
        owners: [N] int64, ascending: the client of each example, as its row in the results.
        num_clients: Number of clients K; some may have no example.
        groups: [N] int64, the group of each example, -1 where it is not known; None without groups.
        num_groups: Number of groups G.
    """

    logits: Tensor
    targets: Tensor
    owners: Whole
    num_clients: int
    groups: Whole | None = None
    num_groups: int = 0

    @property
    def task(self) -> Task:
        """Return the numbers of classes and groups."""
        return Task(self.logits.shape[1], self.num_groups)

    @cached_property
    def log_probabilities(self) -> Floats:
        """Return log softmax of the logits in float64, [N, C]: float32 probabilities underflow to 0."""
        return np.asarray(functional.log_softmax(self.logits.double(), dim=1).numpy(), np.float64)

    @cached_property
    def predicted(self) -> Whole:
        """Return the class with the largest logit, the lowest on a tie, [N]."""
        return np.asarray(self.logits.argmax(dim=1).numpy(), np.int64)

    @cached_property
    def labels(self) -> Whole:
        """Return the targets as an array, [N]."""
        return np.asarray(self.targets.numpy(), np.int64)

    def by_client(self, values: NDArray[Any]) -> Floats:
        """Add up one value (or row of values) per example, [N, ...], by client, [K, ...]."""
        return sums_by(self.owners, values, self.num_clients)

    def by_client_and(self, keys: Whole, num_keys: int, values: NDArray[Any] | None = None) -> Floats:
        """Add up values by client and a second key.

        Args:
            keys: [N], each from 0 to num_keys - 1.
            num_keys: Number of keys M.
            values: [N, ...]; None counts the examples.

        Returns:
            [K, M, ...].
        """
        both = self.owners * num_keys + keys
        if values is None:
            counts = np.bincount(both, minlength=self.num_clients * num_keys).astype(np.float64)
            return counts.reshape(self.num_clients, num_keys)
        sums = sums_by(both, values, self.num_clients * num_keys)
        return sums.reshape(self.num_clients, num_keys, *values.shape[1:])


class Metric(Plugin, ABC):
    """Additive statistics of a client's test examples, and what is made of them.

    Attributes:
        gives: Name -> what `values` says under that name; the names are columns of the tables, `test_<name>`.
        needs_groups: Whether it can be had only where the data set names groups.
        pooled: Whether its sums travel, so that its value on all clients' examples together is on record.
    """

    noun: ClassVar[str] = "metric"
    gives: ClassVar[Mapping[str, Value]]
    needs_groups: ClassVar[bool] = False
    pooled: ClassVar[bool] = True

    @abstractmethod
    def sums(self, predictions: Predictions) -> Floats:
        """Return what is added up over examples, and over clients.

        Args:
            predictions: Of K clients.

        Returns:
            [K, S] float64; a client's row depends on its own examples alone, bit for bit, and is 0 without any.
        """

    @abstractmethod
    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return what the sums say.

        Args:
            sums: [K, S]: of single clients, or of many added up.
            task: Numbers of classes and groups.

        Returns:
            Every name of `gives` -> [K], or [K, V] for a vector; NaN where it is undefined.
        """


def measured(asked: Iterable[Metric] = ()) -> dict[str, Metric]:
    """Return the metrics of an evaluation by name: those of every evaluation, then those a scenario asks for."""
    always = [plugins.find(__name__, name, Metric)() for name in ALWAYS]  # type: ignore[type-abstract]
    return {plugins.spelled(metric, __name__): metric for metric in (*always, *asked)}


def given(metrics: Iterable[Metric]) -> dict[str, Value]:
    """Return everything metrics say, by name."""
    return {name: value for metric in metrics for name, value in metric.gives.items()}


def clashes(asked: Sequence[Metric]) -> Iterator[str]:
    """Yield a problem for each metric that would write into another one's columns."""
    taken = {name: f"{name}, which is always measured" for name in ALWAYS}
    for metric in asked:
        title = plugins.spelled(metric, __name__)
        again = next((name for name in metric.gives if name in taken), None)
        if title in ALWAYS:
            yield f"{title} is always measured, leave it out"
        elif again is not None and taken[again] == title:
            yield f"{title} is there twice, keep one of them"
        elif again is not None:
            yield f'{title} gives "{again}" as does {taken[again]}, keep one of them'
        taken |= {name: title for name in metric.gives if name not in taken}


def sums_by(keys: Whole, values: NDArray[Any], count: int) -> Floats:
    """Add up rows that have the same key, in their order; the bits of a sum depend on its own rows alone.

    Args:
        keys: [N], each from 0 to count - 1.
        values: [N, ...].
        count: Number of keys.

    Returns:
        [count, ...] float64, 0 for a key without rows.

    >>> sums_by(np.array([2, 0, 2]), np.array([1.0, 5.0, 2.0]), 3).tolist()
    [5.0, 0.0, 3.0]
    """
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], np.arange(count))
    # A zero before every segment: a key without rows has a sum too, and a segment adds up exactly as sum() does.
    padded = np.insert(np.asarray(values, np.float64)[order], first, 0.0, axis=0)
    return np.asarray(np.add.reduceat(padded, first + np.arange(count), axis=0), np.float64)


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Return part / whole, NaN where whole is 0; shapes are broadcast."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
    return found
