"""Plain data to a file and back, bit for bit and without pickle: what strategies and averages remember.

A file is a safetensors file. Its arrays are the leaves; its metadata hold the tree they hang in, as JSON, and a
checksum of both.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from fedsim.errors import DataError

VERSION = 2
"""Of the file: 1 had no checksum."""


def save(path: Path, data: dict[str, Any], *, sync: bool = False) -> None:
    """Write a dict of tensors, numbers, strings, None, lists, and dicts with string or whole-number keys.

    The file is replaced in one step: whoever reads it finds the old one or the new one.

    Args:
        path: The file.
        data: What to write.
        sync: Wait until the file is on the disk before it replaces the old one.

    Raises:
        TypeError: Something else is in it; says where.
    """
    leaves: dict[str, Tensor] = {}
    tree = json.dumps(_fold(data, "", leaves))
    metadata = {"version": str(VERSION), "tree": tree, "crc32": _checksum(tree, leaves)}
    partial = path.with_name(path.name + ".part")
    save_file(leaves, str(partial), metadata)
    partial.chmod(0o644)  # safetensors makes files only the owner can read
    if sync:
        synchronise(partial)
    partial.replace(path)
    if sync:
        synchronise(path.parent)


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        DataError: There is no such file, it is damaged, or another version wrote it.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a checkpoint: {error}") from error
    if metadata.get("version") != str(VERSION):
        raise DataError(
            f"{path}: must be a checkpoint of version {VERSION}, got {metadata.get('version', 'no version')}"
        )
    if metadata.get("crc32") != _checksum(metadata["tree"], leaves):
        raise DataError(f"{path}: is damaged, its checksum is another one")
    data = _unfold(json.loads(metadata["tree"]), leaves)
    assert isinstance(data, dict)
    return data


def to_text(data: dict[str, Any]) -> str:
    """Return data without tensors as one line of text, every bit of its numbers kept.

    Raises:
        TypeError: Something in it is no plain data, or a tensor.
    """
    leaves: dict[str, Tensor] = {}
    tree = _fold(data, "", leaves)
    if leaves:
        raise TypeError(f"{next(iter(leaves))}: a tensor is no text")
    return json.dumps(tree)


def from_text(text: str) -> dict[str, Any]:
    """Read what `to_text` returned."""
    data = _unfold(json.loads(text), {})
    assert isinstance(data, dict)
    return data


def _checksum(tree: str, leaves: Mapping[str, Tensor]) -> str:
    """Return a CRC-32 of the tree and the bytes of every leaf, against files that were cut or changed."""
    value = zlib.crc32(tree.encode())
    for name in sorted(leaves):
        value = zlib.crc32(leaves[name].reshape(-1).view(uint8).numpy().data, value)
    return f"{value:08x}"


def _fold(value: Any, place: str, leaves: dict[str, Tensor]) -> Any:
    """Return JSON-able data in which every container and every array says what it is."""
    if isinstance(value, Tensor):
        leaves[place] = value.detach().cpu().contiguous().clone()
        return {"tensor": place}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{place or 'memory'}: keys must be strings or whole numbers, got {key!r}")
        return {"dict": [[key, _fold(item, f"{place}/{key!r}", leaves)] for key, item in value.items()]}
    if isinstance(value, list):
        return {"list": [_fold(item, f"{place}/{row}", leaves) for row, item in enumerate(value)]}
    if isinstance(value, float):
        return {"float": value.hex()}  # JSON has no infinity, and need not round
    if value is None or isinstance(value, bool | int | str):
        return {"plain": value}
    raise TypeError(f"{place or 'memory'}: {type(value).__name__} is no plain data")


def _unfold(tree: Any, leaves: dict[str, Tensor]) -> Any:
    (kind, value), *_ = tree.items()
    if kind == "tensor":
        return leaves[value]
    if kind == "dict":
        return {key: _unfold(item, leaves) for key, item in value}
    if kind == "list":
        return [_unfold(item, leaves) for item in value]
    return float.fromhex(value) if kind == "float" else value
