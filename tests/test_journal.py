"""Rows in a file that only grows: the tables that pandas would have made, and no damage unnoticed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim import journal
from fedsim.errors import DataError
from fedsim.journal import HEADER, MAGIC, Journal, column_of

NAN = float("nan")


def rounds() -> list[dict[str, np.ndarray]]:
    """Columns that come up late, are missing later, hold lists, nothing, or what is not finite."""
    lists = np.full(3, None)
    lists[1] = [0.5, NAN]
    return [
        {"round": np.zeros(3, np.int64), "sampled": np.array([True, False, True]), "loss": np.full(3, NAN)},
        {"round": np.ones(3, np.int64), "sampled": np.zeros(3, bool), "loss": np.array([0.1 + 0.2, np.inf, -0.0]),
         "late": np.array([1.0, NAN, 2.0]), "list": np.full(3, None)},
        {"round": np.full(3, 2), "sampled": np.ones(3, bool), "loss": np.full(3, 1e-310), "list": lists},
        {"round": np.zeros(0, np.int64), "sampled": np.zeros(0, bool), "loss": np.zeros(0)},
    ]  # fmt: skip


def written(path: Path, tables: list[dict[str, np.ndarray]]) -> Journal:
    made = Journal(path)
    for number, table in enumerate(tables):
        made.append({"row": {"round": number, "x": NAN, "name": "Ünï", "values": [0.1, np.inf]}}, table)
    return made


def as_pandas_would(path: Path, tables: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    pd.concat([pd.DataFrame(table) for table in tables if len(table["round"])], ignore_index=True).to_parquet(path)
    return pd.read_parquet(path)


@pytest.mark.parametrize("group_rows", [1, 4, 1000])
def test_its_parquet_file_is_what_pandas_would_write(
    group_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "GROUP_ROWS", group_rows)
    made = written(tmp_path / "j", rounds())
    made.write_parquet(tmp_path / "ours.parquet")
    found = pd.read_parquet(tmp_path / "ours.parquet")
    expected = as_pandas_would(tmp_path / "theirs.parquet", rounds())
    assert list(found) == ["round", "sampled", "loss", "late", "list"]
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert np.signbit(found["loss"][5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "ours.parquet", "theirs.parquet"]


def test_what_it_says_of_a_round_comes_back(tmp_path: Path) -> None:
    made = written(tmp_path / "j", rounds())
    again = Journal.opened(tmp_path / "j", made.length)
    for (note, table), (other, _), columns in zip(again.rounds(), made.rounds(), rounds(), strict=True):
        assert repr(note) == repr(other)
        assert note["row"]["name"] == "Ünï"
        assert note["row"]["values"] == [0.1, np.inf]
        np.testing.assert_array_equal(column_of(table, "loss"), columns["loss"])


def test_it_goes_on_where_it_was_opened(tmp_path: Path) -> None:
    """What was written after the length that counts is gone, columns that only came up there too."""
    tables = rounds()
    made = written(tmp_path / "j", tables[:1])
    length = made.length
    made.append({}, {**tables[1], "never": np.ones(3)})
    again = Journal.opened(tmp_path / "j", length)
    assert (tmp_path / "j").stat().st_size == length
    for table in tables[1:]:
        again.append({}, table)
    again.write_parquet(tmp_path / "found")
    written(tmp_path / "k", tables).write_parquet(tmp_path / "expected")
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


def test_every_cut_and_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    made = written(tmp_path / "j", rounds()[:2])
    whole = (tmp_path / "j").read_bytes()
    assert len(whole) == made.length
    for place in [*range(0, len(whole), 7), len(whole) - 1]:
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
            (tmp_path / "j").write_bytes(damaged)
            with pytest.raises(DataError, match=str(tmp_path / "j")):
                Journal.opened(tmp_path / "j", len(whole))
            assert (tmp_path / "j").read_bytes() == damaged
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        Journal.opened(tmp_path / "nowhere", 100)


@pytest.mark.parametrize("rest", [b"\x07", HEADER.pack(1000, 0), HEADER.pack(10, 0) + b"short"])
def test_a_frame_cut_short_is_written_over(rest: bytes, tmp_path: Path) -> None:
    """As a full disk, or the end of the process, leaves it."""
    made = written(tmp_path / "j", rounds()[:1])
    with (tmp_path / "j").open("ab") as file:
        file.write(rest)
    made.append({}, rounds()[1])
    assert len(list(Journal.opened(tmp_path / "j", made.length).rounds())) == 2


def test_a_new_one_replaces_what_is_there(tmp_path: Path) -> None:
    written(tmp_path / "j", rounds())
    assert list(Journal(tmp_path / "j").rounds()) == []
    assert (tmp_path / "j").read_bytes() == MAGIC


def test_memory_does_not_grow_with_the_rounds(tmp_path: Path) -> None:
    import pyarrow as pa

    made = Journal(tmp_path / "j")
    draw = np.random.default_rng(0)
    table: dict[str, Any] = {"round": np.zeros(50_000, np.int64)}
    table |= {f"x{number}": draw.random(50_000) for number in range(8)}
    made.append({}, table)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    for _ in range(19):
        made.append({}, table)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6  # twenty rounds are 72 MB
    assert pa.total_allocated_bytes() - before < 20e6
    made.write_parquet(tmp_path / "t.parquet")
    assert pa.total_allocated_bytes() - before < 20e6
    assert len(pd.read_parquet(tmp_path / "t.parquet", columns=["round"])) == 20 * 50_000


def test_words_come_back_and_none_is_none(tmp_path: Path) -> None:
    """The first round with no word at all still says what kind of column it is."""
    tables = [
        {"round": np.zeros(2, np.int64), "why": np.full(2, "", dtype="<U7")},
        {"round": np.ones(2, np.int64), "why": np.array(["", "dröpped"])},
    ]
    made = written(tmp_path / "j", tables)
    made.write_parquet(tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["why"].fillna("-").tolist() == ["-", "-", "-", "dröpped"]
    again = Journal.opened(tmp_path / "j", made.length)
    again.append({"row": {}}, {"round": np.full(2, 2), "why": np.array(["late", ""])})
    again.write_parquet(tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["why"].fillna("-").tolist()[4:] == ["late", "-"]
