"""Boards in shared memory: nothing on them is overwritten while somebody has it, and without room there is none."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedsim.engine import board as boards_module
from fedsim.engine.board import Boards, Reader
from fedsim.errors import EngineError
from fedsim.wire import Block

FOLDER = next(folder for folder in boards_module.FOLDERS if folder.is_dir())

REQUEST = pickle.dumps(RecordDict({"config": ConfigRecord({"round": 3})}))


@pytest.fixture
def boards() -> Iterator[Boards]:
    found = Boards()
    yield found
    found.close()


def answered(boards: Boards, value: float, shape: tuple[int, int] = (3, 5)) -> tuple[str, Any]:
    """Let a worker write `value` into every row of a board; return the board's file and the rows."""
    board = boards.take(len(REQUEST), shape)
    note = board.post(REQUEST, shape)
    reader = Reader()
    assert reader.request(note)["config"] == ConfigRecord({"round": 3})
    reader.rows(note)[:] = value
    rows = board.rows(note)
    boards.give_back(board, rows)
    return note.path, rows


def test_rows_come_back_where_they_were_meant_to_be(boards: Boards) -> None:
    board = boards.take(len(REQUEST), (4, 2))
    note = board.post(REQUEST, (4, 2))
    for places in ([2, 0], [3, 1]):
        Reader().rows(note)[places] = [[place, -place] for place in places]
    np.testing.assert_array_equal(board.rows(note), [[k, -k] for k in range(4)])


def test_a_board_is_used_again_once_nobody_has_its_rows(boards: Boards) -> None:
    first, rows = answered(boards, 1.0)
    second, others = answered(boards, 2.0)
    assert first != second
    assert (rows == 1.0).all()
    del rows
    gc.collect()
    third, _ = answered(boards, 3.0)
    assert third == first
    assert (others == 2.0).all()


@pytest.mark.parametrize(
    "view", [lambda rows: rows[1], lambda rows: torch.from_numpy(rows)[2:], lambda rows: Block((0, 1, 2), {}, rows)]
)
def test_whatever_is_made_of_rows_keeps_them(boards: Boards, view: Any) -> None:
    _, rows = answered(boards, 1.0)
    kept = view(rows)
    del rows
    gc.collect()
    for value in (2.0, 3.0):
        answered(boards, value)
    values = kept.updates if isinstance(kept, Block) else kept
    assert (np.asarray(values) == 1.0).all()


def test_a_larger_request_gets_a_larger_board_and_the_files_are_removed(boards: Boards) -> None:
    before = {file.name for file in FOLDER.glob("fedsim-file-*")}
    small, rows = answered(boards, 1.0)
    del rows
    gc.collect()
    large, rows = answered(boards, 1.0, (300, 700))
    assert not Path(small).exists()
    assert Path(large).exists()
    boards.close()
    assert {file.name for file in FOLDER.glob("fedsim-file-*")} <= before
    assert (rows == 1.0).all()  # what is mapped stays


def test_without_room_anywhere_there_is_no_board(boards: Boards) -> None:
    with pytest.raises(
        EngineError, match=r"no room for a request of \d+ bytes and 1099511627776 .* let fewer clients"
    ):
        boards.take(100, (2**40, 2**10))


def test_where_shared_memory_is_full_a_board_lies_on_disk(
    boards: Boards, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(boards_module, "FOLDERS", (tmp_path / "missing", tmp_path))
    path, rows = answered(boards, 4.0)
    assert Path(path).parent == tmp_path
    assert (rows == 4.0).all()


def test_a_request_is_read_once_and_the_next_one_on_the_same_board_again(boards: Boards) -> None:
    reader, board = Reader(), boards.take(1000, (1, 1))
    for value in (1, 2):
        note = board.post(pickle.dumps(RecordDict({"config": ConfigRecord({"round": value})})), (1, 1))
        first = reader.request(note)
        assert reader.request(note) is first
        assert first["config"] == ConfigRecord({"round": value})


def test_many_boards_in_turn_are_read_by_one_worker(boards: Boards) -> None:
    reader = Reader()
    several = [boards.take(100, (2, 3)) for _ in range(2 * boards_module.MAPS)]
    for _ in range(2):
        for value, board in enumerate(several):
            note = board.post(REQUEST, (2, 3))
            reader.rows(note)[:] = value
            assert (board.rows(note) == value).all()


def test_a_worker_that_reads_another_file_of_that_name_is_elsewhere(tmp_path: Path) -> None:
    probe = boards_module.Probe([tmp_path])
    assert len(probe.paths) == 1 + sum(folder.is_dir() for folder in boards_module.FOLDERS)
    assert boards_module.readable(probe.paths, probe.token)
    assert not boards_module.readable(probe.paths, "another")
    assert not boards_module.readable([*probe.paths, str(tmp_path / "missing")], probe.token)
    assert not boards_module.readable([], probe.token)
    probe.close()
    assert not any(Path(path).exists() for path in probe.paths)
