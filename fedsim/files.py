"""Files that are replaced in one step: whoever reads or stops us half way has the old one or the new one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def replace(path: Path, content: str | bytes) -> Path:
    """Write a file in place of what is there; return its path.

    Args:
        path: The file; its folder is there.
        content: Its bytes, or a text to be written in UTF-8.
    """
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return partial.replace(path)


def jsonable(value: Any) -> Any:
    """Return plain data for JSON: numbers that it has no word for become null.

    >>> jsonable({"a": (1.0, float("nan")), "b": float("inf")})
    {'a': [1.0, None], 'b': None}
    """
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
