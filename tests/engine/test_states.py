"""Clients' states in files: the same arrays come back, and no file stays that nobody names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.engine.states import NOTHING, State, States, read_states, write_states
from fedsim.errors import DataError

ODD: list[State] = [
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)},
    {},
    {"w": np.array([np.nan, -0.0, np.inf], np.float64), "flags": np.array([True, False])},
    {"bytes/with slash": np.frombuffer(b"abc", np.uint8), "empty": np.zeros((0, 4), np.int64)},
]


def write(states: States, clients: list[int], value: float = 0.0) -> dict[int, str]:
    made: list[State] = [{"v": np.array([value + client])} for client in clients]
    return dict(zip(clients, write_states(states.folder, states.new_file(), made), strict=True))


def files(states: States) -> set[str]:
    return {path.name for path in states.folder.iterdir()}


def value(states: States, client: int) -> float:
    (state,) = read_states(states.folder, [states.slip(client)])
    return float(state["v"][0])


def test_what_is_written_comes_back_bit_by_bit(tmp_path: Path) -> None:
    slips = write_states(tmp_path, "a.states", ODD)
    assert slips[1] == NOTHING
    order = [3, 0, 1, 2, 0]
    for found, place in zip(read_states(tmp_path, [slips[i] for i in order]), order, strict=True):
        assert found.keys() == ODD[place].keys()
        for name, array in ODD[place].items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()


def test_states_from_several_files_are_read_together(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.update(write(states, [1, 2, 3], 10))
    states.update(write(states, [2], 20))
    found = read_states(tmp_path, [states.slip(client) for client in (3, 2, 7, 1)])
    assert [float(state["v"][0]) if state else None for state in found] == [13, 22, None, 11]


def test_a_file_goes_with_the_last_client_that_needs_it(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.update(write(states, [1, 2]))
    states.update(write(states, [1]))
    assert len(files(states)) == 2
    states.update(write(states, [2]))
    assert len(files(states)) == 2
    states.update(dict.fromkeys((1, 2), NOTHING))
    assert files(states) == set()
    assert states.index() == {}


def test_what_a_checkpoint_names_survives_until_the_next_one(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.update(write(states, [1, 2], 10))
    first = states.index()
    states.keep(first)
    states.update(write(states, [1, 2], 20))
    states.update(write(states, [1, 2], 30))
    assert len(files(states)) == 2  # the checkpoint's and the present one

    again = States(tmp_path)
    again.restore(first)
    assert [value(again, 1), value(again, 2)] == [11, 12]
    assert len(files(again)) == 1  # what came after it is gone
    again.update(write(again, [1], 40))
    assert len(files(again)) == 2
    again.keep(again.index())
    again.update(write(again, [2], 40))
    again.keep(again.index())
    assert files(again) == {slip.partition("#")[0] for slip in again.index().values()}


def test_files_stay_few_under_random_participation(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    states, last = States(tmp_path), {}
    for turn in range(200):
        clients = sorted(random.choice(40, 8, replace=False).tolist())
        states.update(write(states, clients, 100 * turn))
        last |= {client: 100 * turn + client for client in clients}
        if turn % 3 == 0:
            states.keep(states.index())
    assert {client: value(states, client) for client in last} == last
    assert len(files(states)) <= 40 + 2 * 8


@pytest.mark.parametrize("damage", ["gone", "cut", "other place"])
def test_a_checkpoint_whose_states_are_lost_is_refused(tmp_path: Path, damage: str) -> None:
    states = States(tmp_path)
    states.update(write(states, [1, 2]))
    index = states.index()
    (file,) = files(states)
    if damage == "gone":
        (tmp_path / file).unlink()
    elif damage == "cut":
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:20])
    else:
        index[3] = f"{file}#9"
    with pytest.raises(DataError, match=file):
        States(tmp_path).restore(index)


def test_a_folder_of_its_own_goes_at_the_end() -> None:
    states = States()
    states.update(write(states, [1]))
    assert states.folder.is_dir()
    states.close()
    assert not states.folder.exists()
