"""Many clients from few examples: each draws its own, and shares them with others."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from fedsim import seeds
from fedsim.errors import DataError
from fedsim.partitions import Lists, Partition

_AT_ONCE = 1024
"""Clients that draw from one stream: always all, so that a client's draw does not depend on how many follow."""


@final
class Resampled(Partition):
    """Draws each client's examples at random from all, without replacement: many clients from a small data set.

    Clients share examples, so they resemble each other more than the members of a real population, and the more of
    them the data have to serve the more so; examples that nobody draws are left out. What anybody is tested on
    nobody trains on: the data are divided into a train and a test part first, the same share of each class, and
    clients draw from both.

    With `alpha` a client has a mix of classes of its own, drawn from Dirichlet(alpha * p) around the mix p of the
    data (Hsu, Qi, Brown 2019, https://arxiv.org/abs/1909.06335, section 3), for its train and its test examples
    alike. A class that has too few examples for a client's mix gives all it has, and others make up for it.

    Attributes:
        num_clients: Number of clients K.
        examples: Examples of each client, train and test together.
        alpha: Concentration of the mix of classes: 1 gives a client few of ten classes, 1000 nearly the mix of the
            data; None has each client draw from all examples alike.
    """

    overlaps: ClassVar[bool] = True

    num_clients: PositiveInt
    examples: int = Field(default=50, ge=2)
    alpha: PositiveFloat | None = None

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Draw the examples; see `Partition.assign`."""
        del owners  # everybody may own everything
        train, test = self.sides(labels, seed)
        both = zip(np.split(train.rows, train.offsets[1:-1]), np.split(test.rows, test.offsets[1:-1]), strict=True)
        return [np.sort(np.concatenate(pair)).astype(np.int64) for pair in both], None

    def sides(self, labels: NDArray[np.int64], seed: int) -> tuple[Lists, Lists]:
        """Draw the examples; see `Partition.sides`."""
        num_test = min(max(round(self.examples * self.test_fraction), 1), self.examples - 1)
        wanted = {"train": self.examples - num_test, "test": num_test}
        parts = dict(zip(wanted, _divided(labels, self.test_fraction, seed), strict=True))
        for side, count in wanted.items():
            if count > len(parts[side]):
                raise DataError(
                    f"partition.examples: a client of {self.examples} takes {count} of the {side} part, which has "
                    f"{len(parts[side])} of {len(labels)} examples; lower it"
                )
        shares = np.bincount(labels) / len(labels)
        groups = {side: _Groups(part, labels, len(shares), self.alpha is None) for side, part in parts.items()}
        rows = {side: np.empty((self.num_clients, count), np.int32) for side, count in wanted.items()}
        for first in range(0, self.num_clients, _AT_ONCE):
            stream = _stream(seed, "clients", first)
            mixes = np.ones((_AT_ONCE, 1))
            if self.alpha is not None:
                mixes = np.zeros((_AT_ONCE, len(shares)))
                mixes[:, shares > 0] = _dirichlet(self.alpha * shares[shares > 0], stream)
            for side, count in wanted.items():
                drawn = groups[side].draw(mixes, count, stream)
                rows[side][first : first + _AT_ONCE] = drawn[: self.num_clients - first]
        return _lists(rows["train"]), _lists(rows["test"])


class _Groups:
    """Examples that are drawn from alike: those of a class, or all.

    Attributes:
        rows: Example numbers, group after group.
        sizes: Examples of each group, [G].
        starts: Where each group begins in `rows`, [G].
    """

    def __init__(
        self, part: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int, together: bool
    ) -> None:
        by_class = part if together else part[np.argsort(labels[part], kind="stable")]
        self.rows = by_class.astype(np.int32)
        self.sizes = np.array([len(part)]) if together else np.bincount(labels[part], minlength=num_classes)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    def draw(self, mixes: NDArray[np.float64], count: int, stream: np.random.Generator) -> NDArray[np.int32]:
        """Return different examples for each of A clients, ascending, [A, count].

        Args:
            mixes: Each client's share of each group, [A, G].
            count: Examples of a client; no more than there are.
            stream: The source of randomness.
        """
        taken = self._fitted(stream.multinomial(count, mixes), mixes, stream)
        group = np.repeat(np.tile(np.arange(len(self.sizes)), len(mixes)), taken.ravel()).reshape(-1, count)
        places = self.starts[group] + stream.integers(0, self.sizes[group])
        dense = (2 * taken > self.sizes).any(axis=1)
        for client in np.flatnonzero(dense):  # nearly all of a group: what is drawn again would mostly be taken
            places[client] = np.concatenate(
                [
                    start + stream.permutation(size)[:number]
                    for start, size, number in zip(self.starts, self.sizes, taken[client], strict=True)
                ]
            )
        while True:
            places.sort(axis=1)
            again = np.zeros(places.shape, dtype=bool)
            again[:, 1:] = places[:, 1:] == places[:, :-1]
            if not again.any():
                return np.sort(self.rows[places], axis=1)
            of = np.searchsorted(self.starts, places[again], side="right") - 1
            # Empty groups begin where the next does, and the search finds the last of those.
            places[again] = self.starts[of] + stream.integers(0, self.sizes[of])

    def _fitted(
        self, taken: NDArray[np.int64], mixes: NDArray[np.float64], stream: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return how many each client takes of each group, nobody more than there are."""
        for client in np.flatnonzero((taken > self.sizes).any(axis=1)):
            mine = taken[client]
            while (missing := int(np.maximum(mine - self.sizes, 0).sum())) > 0:
                np.minimum(mine, self.sizes, out=mine)
                room = mine < self.sizes
                weights = np.where(room, mixes[client], 0.0)
                if weights.sum() <= 0:  # all the classes of the client's mix are used up
                    weights = np.where(room, self.sizes - mine, 0).astype(np.float64)
                mine += stream.multinomial(missing, weights / weights.sum())
        return taken


def _divided(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide all examples into a train and a test part, each class alike; a class with one is trained on."""
    stream = _stream(seed, "sides")
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = stream.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        is_test[rows[:count]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _dirichlet(weights: NDArray[np.float64], stream: np.random.Generator) -> NDArray[np.float64]:
    """Return a mix for each of the clients of a stream, [_AT_ONCE, classes].

    Tiny weights make all gammas of a client underflow: its mix is then the one class whose uniform draw to the
    power 1 / weight is largest, which is the limit of the law.
    """
    mixes = stream.standard_gamma(weights, (_AT_ONCE, len(weights)))
    limit = np.log(stream.random(mixes.shape)) / weights
    lost = ~(mixes.sum(axis=1) > 1e-300)
    mixes[lost] = np.eye(len(weights))[limit[lost].argmax(axis=1)]
    mixes /= mixes.sum(axis=1, keepdims=True)
    return mixes


def _lists(table: NDArray[np.int32]) -> Lists:
    return Lists(table.reshape(-1), np.arange(len(table) + 1, dtype=np.int64) * table.shape[1])


def _stream(seed: int, *labels: object) -> np.random.Generator:
    return np.random.default_rng(seeds.derive(seed, "resampled", *labels))
