"""Files that are replaced in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim import files


@pytest.mark.parametrize("content", ["grüße\n", b"\x00\xff\r\n", ""])
def test_a_file_is_new_or_replaced_and_nothing_is_left_beside_it(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.json"
    for before in (None, b"old"):
        if before is not None:
            path.write_bytes(before)
        assert files.replace(path, content) == path
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_whoever_stops_us_half_way_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.json"
    files.replace(path, "old")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, stopped)
        with pytest.raises(KeyboardInterrupt):
            files.replace(path, "new")
    assert path.read_text() == "old"
    files.replace(path, "new")  # what was left half done is in nobody's way
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_who_has_it_open_keeps_the_old_one(tmp_path: Path) -> None:
    path = files.replace(tmp_path / "a.json", "old" * 1000)
    with path.open() as reading:
        first = reading.read(3)
        files.replace(path, "n")
        assert first + reading.read() == "old" * 1000
