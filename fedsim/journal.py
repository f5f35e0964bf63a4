"""The rows of a run, round by round, in a file that only grows: what the tables of a run folder are written from.

A frame is a header (length of the payload, CRC-32 of it) and an Arrow stream of one table, whose metadata hold the
row of the round. A process that dies while it writes leaves a frame that is cut short; `cut` takes it away.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedsim import checkpoint
from fedsim.errors import DataError

MAGIC = b"fedsim journal 1\n"
"""Begins the file; the number is the version of the format."""

HEADER = struct.Struct("<QI")

GROUP_ROWS = 1 << 17
"""Least rows of a row group in a Parquet file: what is in memory at once when one is written."""

NOTE = b"note"

Columns = Mapping[str, NDArray[Any]]


class Journal:
    """Rounds in a file; memory holds the names and types of the columns alone.

    Args:
        path: The file; what is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = len(MAGIC)
        self._types: dict[str, Any] = {}
        path.write_bytes(MAGIC)

    @staticmethod
    def opened(path: Path, length: int, *, cut: bool = True) -> Journal:
        """Return the journal as it was when it was `length` bytes long.

        Args:
            path: Its file.
            length: Bytes that count.
            cut: Cut off what came later: rows are to be added.

        Raises:
            DataError: It is shorter, damaged, or no journal of this version.
        """
        journal = Journal.__new__(Journal)
        journal.path, journal.length, journal._types = path, length, {}
        for _, table in journal.rounds():
            journal._learn(table.schema)
        if cut:
            with path.open("r+b") as file:
                file.truncate(length)
        return journal

    def append(self, note: dict[str, Any], columns: Columns) -> None:
        """Write down one round.

        Args:
            note: What is said once a round; plain data.
            columns: Name -> values of the round's rows; lists of numbers, or None, where the dtype is object;
                words, "" for none, where it is one of strings.
        """
        arrays = {name: _array(values) for name, values in columns.items()}
        schema = pa.schema([(name, array.type) for name, array in arrays.items()])
        self._learn(schema)
        schema = schema.with_metadata({NOTE: checkpoint.to_text(note).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            stream.write_table(pa.table(list(arrays.values()), schema=schema))
        payload = memoryview(sink.getvalue())
        with self.path.open("r+b") as file:
            file.seek(self.length)
            file.truncate()  # a frame that could not be finished, as on a full disk
            file.write(HEADER.pack(len(payload), zlib.crc32(payload)))
            file.write(payload)
        self.length += HEADER.size + len(payload)

    def rounds(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Yield the note and the Arrow table of every round, one at a time.

        Raises:
            DataError: The file is shorter than it should be, damaged, or no journal of this version.
        """
        try:
            with self.path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise DataError(f'{self.path}: must begin with "{MAGIC.decode().strip()}"')
                while file.tell() < self.length:
                    yield self._frame(file.read(HEADER.size), file)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

    def write_parquet(self, path: Path) -> None:
        """Write the rows of all rounds as one Parquet file, with the columns in the order they first came up."""
        schema = pa.schema(list(self._types.items()))
        partial = path.with_name(path.name + ".part")
        with pq.ParquetWriter(partial, schema) as writer:
            waiting: list[Any] = []
            for _, table in self.rounds():
                waiting.append(_completed(table, schema))
                if sum(part.num_rows for part in waiting) >= GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        partial.replace(path)

    def synchronise(self) -> None:
        """Wait until everything is on the disk."""
        checkpoint.synchronise(self.path)

    def _learn(self, schema: Any) -> None:
        for field in schema:
            self._types.setdefault(field.name, field.type)

    def _frame(self, head: bytes, file: Any) -> tuple[dict[str, Any], Any]:
        where = f"{self.path}: is damaged before byte {file.tell()}"
        if len(head) < HEADER.size:
            raise DataError(f"{where}, it is shorter than {self.length} bytes")
        size, checksum = HEADER.unpack(head)
        payload = file.read(size) if file.tell() + size <= self.length else b""
        if len(payload) < size or zlib.crc32(payload) != checksum:
            raise DataError(f"{where}, a round is cut short or its checksum is another one")
        table = pa.ipc.open_stream(payload).read_all()
        note = checkpoint.from_text(table.schema.metadata[NOTE].decode())
        return note, table.replace_schema_metadata(None)


def column_of(table: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers of a round's table, NaN where there is none."""
    values: NDArray[Any] = table.column(name).to_numpy()
    return values


def _array(values: NDArray[Any]) -> Any:
    if values.dtype == object:
        return pa.array(values.tolist(), type=pa.list_(pa.float64()))
    if values.dtype.kind == "U":
        return pa.array([word or None for word in values.tolist()], type=pa.string())
    # NaN is "no value" in every table here, as in pandas.
    return pa.array(np.ascontiguousarray(values), from_pandas=True)


def _completed(table: Any, schema: Any) -> Any:
    """Return a table with the columns that came up in other rounds."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
