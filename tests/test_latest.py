"""Each benchmark replaces its own rows of the common file."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.latest import write


def row(name: str, ratio: float) -> dict[str, object]:
    return {"name": name, "seconds": 1.0, "baseline": "flower", "ratio": ratio}


def test_rows_of_other_benchmarks_stay(tmp_path: Path) -> None:
    path = tmp_path / "out" / "latest.json"
    write([row("W1", 1.0), row("W1", 2.0), row("W3", 3.0)], path)
    write([row("registered-1000", 4.0)], path)
    write([row("W1", 5.0)], path)
    found = [(one["name"], one["ratio"]) for one in json.loads(path.read_text())]
    assert found == [("W3", 3.0), ("registered-1000", 4.0), ("W1", 5.0)]


def test_a_file_cut_short_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    path.write_text('[{"name": "W1"')
    write([row("W2", 1.0)], path)
    assert json.loads(path.read_text()) == [row("W2", 1.0)]
