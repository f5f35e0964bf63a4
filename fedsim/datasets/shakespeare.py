"""Plays with speaker names: predict the next character; each speaking role is a natural client.

The task of LEAF (Caldas et al., https://arxiv.org/abs/1812.01097) on the text of char-rnn.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt, field_validator

from fedsim.datasets import Dataset, RawData, Split
from fedsim.errors import DataError

_FILE = "shakespeare.txt"
_ORIGIN = "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)"
_OTHER = "\ufffd"
# LEAF's characters, after one code for every character that is not among them. A list fixed in advance tells
# nobody which characters the clients' texts contain.
VOCABULARY = _OTHER + "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"


@final
class Shakespeare(Dataset):
    """Next-character prediction, 81 classes; owners are the speaking roles; no official test set.

    x is [N, length] uint8 character codes and y the code of the character that follows. A role's speeches
    are joined in the order of the text; roles of the same name are one owner. With `stride` up to `length`,
    windows of one role overlap, so its test contexts share text with its train contexts; `stride = length +
    1` keeps them apart.

    Attributes:
        length: Characters of context.
        stride: Characters between the starts of two examples.
        min_examples: Roles with fewer examples are left out.
    """

    length: PositiveInt = 80
    stride: PositiveInt = 10
    min_examples: PositiveInt = 10

    @field_validator("classes")
    @classmethod
    def _all_characters(cls, classes: tuple[int, ...] | None) -> None:
        if classes is not None:
            raise ValueError("the classes are the characters that the texts are made of, leave it out")

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        path = root / _FILE
        roles = _roles(_read(path))
        x, y, owners = [], [], []
        for name in sorted(roles):
            contexts, targets = _windows(_encode(roles[name]), self.length, self.stride)
            if len(targets) >= self.min_examples:
                x.append(contexts)
                y.append(targets)
                owners += [name] * len(targets)
        if not x:
            raise DataError(
                f"{path}: no role has {self.min_examples} examples of {self.length} + 1 characters, got "
                f'{len(roles)} roles (a role is a line "Name:" after an empty line); '
                "lower data.min_examples, data.length or data.stride, or fetch the file again"
            )
        train = Split(torch.from_numpy(np.concatenate(x)), torch.from_numpy(np.concatenate(y).astype(np.int64)))
        return RawData(train, None, len(VOCABULARY), _class_names(), np.array(owners))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; it comes from {_ORIGIN}: put it there under this name, or point "
            "--data or "
            f"FEDSIM_DATA to the folder that holds {_FILE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); fetch it again from {_ORIGIN}") from error


def _roles(text: str) -> dict[str, str]:
    """Return what each role says, speeches joined by a line break."""
    speeches: dict[str, list[str]] = {}
    for block in text.replace("\r\n", "\n").split("\n\n"):
        name, found, speech = block.strip("\n").partition(":\n")
        if found and "\n" not in name and speech:
            speeches.setdefault(name.strip(), []).append(speech)
    return {name: "\n".join(said) for name, said in speeches.items()}


def _encode(text: str) -> NDArray[np.uint8]:
    """Return the code of each character, [len(text)]."""
    table = np.zeros(128, dtype=np.uint8)  # 0: any other character
    for code, character in enumerate(VOCABULARY[1:], start=1):
        table[ord(character)] = code
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return np.where(points < 128, table[np.minimum(points, 127)], np.uint8(0))


def _windows(codes: NDArray[np.uint8], length: int, stride: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return contexts [N, length] and the character after each, [N]."""
    if len(codes) <= length:
        return np.empty((0, length), dtype=np.uint8), np.empty(0, dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(codes, length + 1)[::stride]
    return windows[:, :-1].copy(), windows[:, -1].copy()


def _class_names() -> tuple[str, ...]:
    names = {"\n": "newline", " ": "space", _OTHER: "other"}
    return tuple(names.get(character, character) for character in VOCABULARY)
