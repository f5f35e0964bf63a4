"""The manifest: who has how many examples of which class, and a hash of who owns which; plain JSON.

Up to `MOST_LISTED` clients it has a line for each, {"clients": [{"client": 0, "name": ..., "train": [counts],
"test": [counts]}, ...]}. A line takes most of a kilobyte of the driver's memory, so that of a larger federation has
its counts as two compressed arrays, {"counts": {"train": ..., "test": ...}}: zlib of little-endian int32 [K, C], in
base64. `counts` reads both.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.partitions import Lists

MOST_LISTED = 10_000
"""Clients up to which the manifest has a line for each."""

_AT_ONCE = 4096
"""Clients whose rows are copied at once, to be hashed or counted."""


def shares(
    labels: NDArray[np.int64], num_classes: int, names: tuple[str, ...] | None, train: Lists, test: Lists
) -> dict[str, Any]:
    """Return the part of a manifest that grows with the number of clients.

    Args:
        labels: Class of each example of the data set, [N].
        num_classes: C.
        names: The clients' names, or None.
        train: Train examples of each client.
        test: Test examples of each client.
    """
    of_train, of_test = (_counts(labels, num_classes, side) for side in (train, test))
    if len(train) > MOST_LISTED:
        packed = {"train": _packed(of_train), "test": _packed(of_test)}
        return {"counts": packed, **({"client_names": list(names)} if names else {})}
    pairs = zip(of_train.tolist(), of_test.tolist(), strict=True)
    return {
        "clients": [
            {"client": client, "name": names[client] if names else None, "train": mine, "test": kept}
            for client, (mine, kept) in enumerate(pairs)
        ]
    }


def counts(manifest: Mapping[str, Any], split: str) -> dict[int, list[int]]:
    """Return client -> examples of each class.

    Args:
        manifest: As read from manifest.json.
        split: "train" or "test".

    Raises:
        ValueError: Its arrays are damaged.
    """
    packed = (manifest.get("counts") or {}).get(split)
    if packed is None:
        return {int(row["client"]): list(row.get(split) or []) for row in manifest.get("clients", [])}
    try:
        flat = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype="<i4")
        table: list[list[int]] = flat.reshape(int(manifest["num_clients"]), -1).tolist()
    except zlib.error as error:
        raise ValueError(f"the counts of the {split} examples: {error}") from error
    return dict(enumerate(table))


def names(manifest: Mapping[str, Any]) -> dict[int, str]:
    """Return client -> name, of those that have one."""
    if "client_names" in manifest:
        return {client: str(name) for client, name in enumerate(manifest["client_names"])}
    lines: Sequence[Mapping[str, Any]] = manifest.get("clients", [])
    return {int(row["client"]): str(row["name"]) for row in lines if row.get("name")}


def digest(name: str, labels: NDArray[np.int64], train: Lists, test: Lists) -> str:
    """Hash which example belongs to whom, on which side, and what the examples' classes are.

    Args:
        name: Of the data set.
        labels: Class of each example, [N].
        train: Train examples of each client, ascending.
        test: Test examples of each client, ascending.
    """
    found = hashlib.sha256(f"{name}\n".encode())
    found.update(hashlib.sha256(labels.astype("<i8").tobytes()).digest())
    for first in range(0, len(train), _AT_ONCE):
        clients = range(first, min(first + _AT_ONCE, len(train)))
        found.update(_written(train, test, clients).tobytes())
    return found.hexdigest()


def _written(train: Lists, test: Lists, clients: range) -> NDArray[np.int64]:
    """Return, client after client, the number of train examples, the examples, and the same of its test side."""
    begin, end = clients.start, clients.stop
    sizes = np.stack([side.sizes[begin:end] for side in (train, test)], axis=1).ravel()
    written = np.empty(len(sizes) + int(sizes.sum()), dtype="<i8")
    heads = np.arange(len(sizes)) + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    written[heads] = sizes
    # What is no head is a row; train and test take turns.
    of_train = np.repeat(np.tile([True, False], len(clients)), sizes + 1)
    is_row = np.ones(len(written), dtype=bool)
    is_row[heads] = False
    for side, here in ((train, of_train), (test, ~of_train)):
        written[is_row & here] = side.rows[side.offsets[begin] : side.offsets[end]]
    return written


def _counts(labels: NDArray[np.int64], num_classes: int, side: Lists) -> NDArray[np.int64]:
    """Return the examples of each client and class, [K, C]."""
    found = np.zeros((len(side), num_classes), np.int64)
    for begin in range(0, len(side), _AT_ONCE):
        sizes = side.sizes[begin : begin + _AT_ONCE]
        rows = side.rows[side.offsets[begin] : side.offsets[begin + len(sizes)]]
        places = np.repeat(np.arange(len(sizes)), sizes) * num_classes + labels[rows]
        counted = np.bincount(places, minlength=len(sizes) * num_classes)
        found[begin : begin + len(sizes)] = counted.reshape(len(sizes), num_classes)
    return found


def _packed(table: NDArray[np.int64]) -> str:
    return base64.b64encode(zlib.compress(table.astype("<i4").tobytes())).decode()
