"""Traces: CSV files with a header, read whole and checked line by line."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fedsim.errors import DataError


def read(path: Path, columns: Sequence[str]) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """Return the line number and the numbers of each line.

    Args:
        path: A CSV file with a header; further columns are left alone. The first of `columns` holds whole numbers.
        columns: Which columns to read, in this order.

    Raises:
        DataError: The file cannot be read, a column is missing, or something in it is no finite number; names the
            line.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; paths are relative to the data root") from error
    return _read(path, tuple(columns), about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=16)  # read in every round, and the same as long as the file is
def _read(path: Path, columns: tuple[str, ...], *_: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        raise DataError(f"{path}: its first line must name {', '.join(columns)}, got {found}")
    places = [header.index(name) for name in columns]
    rows = []
    for fields in reader:
        where = f"{path}, line {reader.line_num}"
        if not fields:
            continue
        if len(fields) != len(header):
            raise DataError(f"{where}: must have {len(header)} fields as the first line has, got {len(fields)}")
        numbers = tuple(_number(fields[place], name, where) for place, name in zip(places, columns, strict=True))
        if numbers[0] < 0 or numbers[0] != int(numbers[0]):
            raise DataError(f"{where}: {columns[0]} must be a whole number from 0, got {fields[places[0]]}")
        rows.append((reader.line_num, numbers))
    if not rows:
        raise DataError(f"{path}: holds no line beside its header")
    return tuple(rows)


def _number(field: str, name: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f'{where}: {name} must be a finite number, got "{field}"')
    return value
