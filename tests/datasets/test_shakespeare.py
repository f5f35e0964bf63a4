from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.datasets.shakespeare import VOCABULARY, Shakespeare
from fedsim.errors import DataError
from tests.datasets import samples

ROMEO = "But soft, what light\nthrough yonder window\nShall I hear more?"


def decode(codes: torch.Tensor) -> str:
    return "".join(VOCABULARY[code] for code in codes.tolist())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    samples.write_shakespeare(tmp_path, monkeypatch)
    return tmp_path


def test_examples_are_windows_of_a_role_s_joined_speeches(root: Path) -> None:
    raw = Shakespeare(length=8, stride=3, min_examples=1).load(root)
    assert raw.owners is not None
    rows = np.flatnonzero(raw.owners == "ROMEO")
    expected = [(ROMEO[i : i + 8], ROMEO[i + 8]) for i in range(0, len(ROMEO) - 8, 3)]
    got = [(decode(raw.train.x[row]), VOCABULARY[raw.train.y[row]]) for row in rows]
    assert got == expected


def test_small_roles_are_left_out(root: Path) -> None:
    raw = Shakespeare(length=8, stride=1, min_examples=30).load(root)
    assert raw.owners is not None
    # 34 characters of Juliet make 26 windows, the nurse none.
    assert set(raw.owners) == {"ROMEO"}


def test_the_vocabulary_is_fixed(root: Path) -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 81
    (root / "shakespeare.txt").write_text("A:\nx§$x€\U0001f600yyyyy\n", encoding="utf-8")
    raw = Shakespeare(length=6, stride=1, min_examples=1).load(root)
    assert raw.num_classes == 81
    assert decode(raw.train.x[0]) == "x\ufffd\ufffdx\ufffd\ufffd"
    assert VOCABULARY[raw.train.y[0]] == "y"


@pytest.mark.parametrize("text", ["", "no speaker at all", "A:\nshort\n"])
def test_a_text_without_roles_is_refused(root: Path, text: str) -> None:
    (root / "shakespeare.txt").write_text(text)
    with pytest.raises(DataError, match=r"no role has 10 examples of 80 \+ 1 characters.*min_examples"):
        Shakespeare().load(root)


def test_a_file_that_is_no_text_is_refused(root: Path) -> None:
    (root / "shakespeare.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        Shakespeare().load(root)


def test_the_real_plays(data_root: Path) -> None:
    raw = Shakespeare().load(data_root)
    assert raw.owners is not None
    assert raw.train.x.shape[1:] == (80,)
    assert len(set(raw.owners)) > 200
    assert {"ROMEO", "JULIET", "First Citizen"} <= set(raw.owners)
    assert "But, soft! what light through yonder window breaks?" in (data_root / "shakespeare.txt").read_text()
    first = raw.train.x[int(np.flatnonzero(raw.owners == "First Citizen")[0])]
    assert decode(first).startswith("Before we proceed any further, hear me speak.\nYou are all resolved")
    # Only "$" is unknown to the vocabulary: "other" is next to never the target.
    assert (raw.train.y == 0).float().mean() < 1e-4
