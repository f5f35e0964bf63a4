"""The federation: data and a partition become each client's shard, and a manifest of who has what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim import manifest, seeds
from fedsim.datasets import Dataset, RawData, Shard, Split
from fedsim.errors import DataError
from fedsim.partitions import Lists, Partition

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Federation:
    """What K clients own: slices of two pools, or where clients overlap, lists of examples in one.

    A slice needs no copy, so clients that share nothing have their examples side by side. Where they do share,
    copies would cost an example for each owner, and indices cost four bytes.

    Attributes:
        train: Pool of the train examples: those of all clients, each client's contiguous, if train_rows is None.
        test: Pool of the test examples, likewise; the same object as `train` where clients overlap.
        train_offsets: Client i owns train[train_offsets[i]:train_offsets[i + 1]]; [K + 1] int64.
        test_offsets: The same of test.
        common_test: The data set's official test set, or None.
        num_classes: Number of classes C.
        class_names: C names.
        input_shape: Shape of one example.
        client_names: K names (hospitals, speakers), or None.
        manifest: Who has how many examples of which class, and a hash of who owns which; JSON-able.
        group_names: Names of the groups that train.groups and test.groups count, or () without groups.
        train_rows: Where clients overlap, the offsets are those of this list, [sum of sizes] int32: client i owns
            train[train_rows[train_offsets[i]:train_offsets[i + 1]]].
        test_rows: The same of test.
    """

    train: Split
    test: Split
    train_offsets: Rows
    test_offsets: Rows
    common_test: Split | None
    num_classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    client_names: tuple[str, ...] | None
    manifest: dict[str, Any]
    group_names: tuple[str, ...] = ()
    train_rows: NDArray[np.int32] | None = None
    test_rows: NDArray[np.int32] | None = None

    @classmethod
    def build(
        cls, dataset: Dataset, partition: Partition, seed: int, root: Path, *, validation: float | None = None
    ) -> Federation:
        """Read a data set and divide it.

        Args:
            dataset: What to read.
            partition: How to divide it; its own seed, if it has one, goes before `seed`.
            seed: Seed of the division and of each client's train and test examples.
            root: The data root.
            validation: Share of each client's train shard that takes the place of its test shard, for choices that
                must not see test examples; then there is no common test set either.

        Raises:
            DataError: The data cannot be read, or not be divided as asked.
        """
        if partition.seed is not None:
            seed = partition.seed
        raw = dataset.read(root)
        labels: Rows = raw.train.y.numpy()
        kept = _limit(labels, dataset.limit, seed)
        owners = None if raw.owners is None else raw.owners[kept]
        sides, names = partition.sides(labels[kept], seed), None
        if sides is None:
            parts, names = partition.assign(labels[kept], owners, seed)
            splits = [
                _train_and_test(labels, kept[part], partition.test_fraction, seed, client)
                for client, part in enumerate(parts)
            ]
            train_lists = Lists.of([np.sort(train) for train, _ in splits])
            test_lists = Lists.of([np.sort(test) for _, test in splits])
        else:
            train_lists, test_lists = (Lists(_of(kept, side.rows), side.offsets) for side in sides)
        if validation is not None:
            train_lists, test_lists = _held_out(labels, train_lists, validation, seed)
        shared = partition.overlaps and raw.prepare is None
        train, test = (raw.train, raw.train) if shared else _pools(raw, train_lists, test_lists)
        return cls(
            train=train,
            test=test,
            train_offsets=train_lists.offsets,
            test_offsets=test_lists.offsets,
            common_test=raw.test if validation is None else None,
            num_classes=raw.num_classes,
            class_names=raw.class_names,
            input_shape=tuple(train.x.shape[1:]),
            client_names=names,
            manifest={
                **_manifest(dataset, partition, seed, raw, names, train_lists, test_lists),
                **({} if validation is None else {"validation": validation}),
            },
            group_names=raw.group_names,
            train_rows=train_lists.rows.astype(np.int32, copy=False) if shared else None,
            test_rows=test_lists.rows.astype(np.int32, copy=False) if shared else None,
        )

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return len(self.train_offsets) - 1

    # Asked for a client at a time, so not made anew each time.
    @cached_property
    def train_sizes(self) -> Rows:
        """Number of train examples of each client, [K], not to be written to."""
        return _fixed(np.diff(self.train_offsets))

    @cached_property
    def test_sizes(self) -> Rows:
        """Number of test examples of each client, [K], not to be written to."""
        return _fixed(np.diff(self.test_offsets))

    def client(self, i: int) -> Shard:
        """Return what client `i` owns, without copying it where clients do not overlap.

        Raises:
            IndexError: There is no such client.
        """
        if not 0 <= i < self.num_clients:
            raise IndexError(f"clients are 0 to {self.num_clients - 1}, got {i}")
        train = slice(int(self.train_offsets[i]), int(self.train_offsets[i + 1]))
        test = slice(int(self.test_offsets[i]), int(self.test_offsets[i + 1]))
        if self.train_rows is None or self.test_rows is None:
            return Shard(self.train[train], self.test[test])
        return Shard(self.train[_indices(self.train_rows[train])], self.test[_indices(self.test_rows[test])])

    def evaluation_groups(self, max_examples: int) -> list[range]:
        """Pack consecutive clients so that a group has at most `max_examples` test examples.

        A client with more is a group of its own. The groups depend on the clients' sizes alone, so that sums
        over a group have the same order on every machine.
        """
        groups: list[range] = []
        start, size = 0, 0
        for client, num_examples in enumerate(self.test_sizes.tolist()):
            if client > start and size + num_examples > max_examples:
                groups.append(range(start, client))
                start, size = client, 0
            size += num_examples
        groups.append(range(start, self.num_clients))
        return groups


def _limit(labels: Rows, limit: int | None, seed: int) -> Rows:
    """Return the example numbers to use, ascending: the same number of each class as far as it goes."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    generator = seeds.generator(seed, "limit")
    order = torch.randperm(len(labels), generator=generator).numpy()
    shuffled = labels[order]
    rank = np.empty(len(labels), dtype=np.int64)  # of each example among those of its class
    for label in np.unique(labels):
        rows = np.flatnonzero(shuffled == label)
        rank[rows] = np.arange(len(rows))
    # The first of every class, then the second of every class, and so on.
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])


def _held_out(labels: Rows, train: Lists, fraction: float, seed: int) -> tuple[Lists, Lists]:
    """Divide each client's train examples once more; return what it trains and what it is validated on."""
    parts = [
        _train_and_test(labels, np.asarray(train[client], np.int64), fraction, seed, client, "validation")
        for client in range(len(train))
    ]
    return Lists.of([np.sort(kept) for kept, _ in parts]), Lists.of([np.sort(held) for _, held in parts])


def _train_and_test(
    labels: Rows, rows: Rows, fraction: float, seed: int, client: int, stream: str = "split"
) -> tuple[Rows, Rows]:
    """Divide one client's examples into train and test, the same share of each class.

    The number of test examples is round(n * fraction), but leaves at least one on each side. Classes get the
    whole part of their share and then one more in the order of what was cut off; equals are drawn.
    """
    if len(rows) < 2:
        raise DataError(
            f"partition: client {client} needs at least 2 examples, one to train and one to test on, got "
            f"{len(rows)}; "
            "lower partition.num_clients, or leave small clients out with min_size or min_examples"
        )
    total = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    order = torch.randperm(len(rows), generator=seeds.generator(seed, stream, client)).numpy()
    rows = rows[order]
    classes, first_seen, codes, counts = np.unique(
        labels[rows], return_index=True, return_inverse=True, return_counts=True
    )
    quotas = counts * fraction
    taken = np.floor(quotas).astype(np.int64)
    # The rows are shuffled, so the order in which classes are first seen is a fair draw among equals.
    by_remainder = np.lexsort((first_seen, taken - quotas))
    taken[by_remainder[: total - taken.sum()]] += 1
    is_test = np.zeros(len(rows), dtype=bool)
    for code in range(len(classes)):
        is_test[np.flatnonzero(codes == code)[: taken[code]]] = True
    return rows[~is_test], rows[is_test]


def _pools(raw: RawData, train: Lists, test: Lists) -> tuple[Split, Split]:
    """Return all clients' train and test examples, client after client."""
    if raw.prepare is None:
        return raw.train[_indices(train.rows)], raw.train[_indices(test.rows)]
    shards = [
        _prepared(raw.prepare, Shard(raw.train[_indices(train[i])], raw.train[_indices(test[i])]))
        for i in range(len(train))
    ]
    return _joined([shard.train for shard in shards]), _joined([shard.test for shard in shards])


def _of(kept: Rows, places: NDArray[Any]) -> NDArray[Any]:
    """Return the examples at places of those that are kept, without a copy where all are."""
    return places if kept[-1] == len(kept) - 1 else kept.astype(np.int32)[places]


def _indices(rows: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.int64))


def _fixed(array: Rows) -> Rows:
    array.setflags(write=False)
    return array


def _prepared(prepare: Callable[[Shard], Shard], shard: Shard) -> Shard:
    done = prepare(shard)
    assert len(done.train) == len(shard.train), "prepare must keep every example"
    assert len(done.test) == len(shard.test), "prepare must keep every example"
    # What an example's group is has nothing to do with how its inputs are scaled.
    return Shard(
        replace(done.train, groups=shard.train.groups),
        replace(done.test, groups=shard.test.groups),
    )


def _joined(splits: list[Split]) -> Split:
    groups = [split.groups for split in splits if split.groups is not None]
    return Split(
        torch.cat([split.x for split in splits]),
        torch.cat([split.y for split in splits]),
        torch.cat(groups) if groups else None,
    )


def _name(dataset: Dataset) -> str:
    """Return what the examples' numbers are numbers of: two choices of classes can have the same labels."""
    chosen = "" if dataset.classes is None else f" of classes {', '.join(map(str, dataset.classes))}"
    return f"{dataset.plugin_name}{chosen}"


def _manifest(
    dataset: Dataset,
    partition: Partition,
    seed: int,
    raw: RawData,
    names: tuple[str, ...] | None,
    train: Lists,
    test: Lists,
) -> dict[str, Any]:
    labels = raw.train.y.numpy()
    return {
        "dataset": dataset.plugin_name,
        "dataset_options": dataset.model_dump(mode="json"),
        "partition": partition.plugin_name,
        "partition_options": partition.model_dump(mode="json"),
        "seed": seed,
        "num_clients": len(train),
        "num_classes": raw.num_classes,
        "class_names": list(raw.class_names),
        **({"group_names": list(raw.group_names)} if raw.group_names else {}),
        "sha256": manifest.digest(_name(dataset), labels, train, test),
        **manifest.shares(labels, raw.num_classes, names, train, test),
    }
