"""Plain data through a file: every bit comes back, and nothing that is not plain goes in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fedsim import checkpoint
from fedsim.errors import DataError


def memory() -> dict[str, Any]:
    return {
        "by client": {7: {"round": 3, "update": torch.randn(5)}, 0: {"round": 1, "update": torch.randn(5)}},
        "0": "a string key that looks like a number",
        "numbers": [0.1 + 0.2, math.inf, -0.0, 2**70, True, None],
        "double": torch.tensor([0.1, math.nan], dtype=torch.float64),
        "whole": torch.arange(3),
        "view": torch.randn(4, 6)[:, 2],
        "empty": {},
        "none": [],
    }


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    data = memory()
    checkpoint.save(tmp_path / "m.safetensors", data)
    back = checkpoint.load(tmp_path / "m.safetensors")
    assert list(back) == list(data)
    assert list(back["by client"]) == [7, 0]
    assert back["by client"][7]["round"] == 3
    assert torch.equal(back["by client"][0]["update"], data["by client"][0]["update"])
    assert back["numbers"] == data["numbers"]
    assert math.copysign(1.0, back["numbers"][2]) == -1.0
    assert torch.equal(back["double"].view(torch.int64), data["double"].view(torch.int64))
    assert back["whole"].dtype == torch.int64
    assert torch.equal(back["view"], data["view"])
    assert back["empty"] == {}
    assert back["none"] == []
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_two_names_of_one_tensor_are_kept(tmp_path: Path) -> None:
    """Safetensors refuses tensors that share memory; a memory may well hold one twice."""
    shared = torch.randn(3)
    checkpoint.save(tmp_path / "m", {"a": shared, "b": shared})
    back = checkpoint.load(tmp_path / "m")
    assert torch.equal(back["a"], shared)
    assert torch.equal(back["b"], shared)


@pytest.mark.parametrize("value", [{1.5: "key"}, {"x": (1, 2)}, {"x": object()}, {"x": [b"bytes"]}])
def test_what_is_not_plain_is_refused_with_its_place(tmp_path: Path, value: dict[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"1\.5|x"):
        checkpoint.save(tmp_path / "m", value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing here"):
        checkpoint.load(tmp_path / "nothing here")
    (tmp_path / "garbage").write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match="garbage"):
        checkpoint.load(tmp_path / "garbage")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other"))
    with pytest.raises(DataError, match="no version"):
        checkpoint.load(tmp_path / "other")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "newer"), {"version": "99"})
    with pytest.raises(DataError, match="99"):
        checkpoint.load(tmp_path / "newer")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m", memory())
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load(tmp_path / "m")


def test_every_changed_byte_of_an_array_and_of_the_tree_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m", memory(), sync=True)
    whole = (tmp_path / "m").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    tree = whole.index(b"round")
    for place in (tree, *range(8 + size, len(whole))):
        (tmp_path / "m").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match="checksum"):
            checkpoint.load(tmp_path / "m")
    (tmp_path / "m").write_bytes(whole)
    checkpoint.load(tmp_path / "m")


def test_text_keeps_every_bit_and_holds_no_tensor() -> None:
    data = {"a": [0.1 + 0.2, -0.0, math.inf], 3: None, "b": "two\nlines"}
    text = checkpoint.to_text(data)
    assert "\n" not in text
    assert repr(checkpoint.from_text(text)) == repr(data)
    assert math.isnan(checkpoint.from_text(checkpoint.to_text({"x": math.nan}))["x"])
    with pytest.raises(TypeError, match="a tensor is no text"):
        checkpoint.to_text({"x": torch.zeros(2)})
