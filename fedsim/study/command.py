"""The command line of a study: its options as entries of [study], and the line that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.errors import ScenarioError
from fedsim.study.settings import split_methods

FLAGS = {"methods": "strategies"}
"""Key of [study] -> option, where they are not the same word."""


def options(**given: str | bool | None) -> dict[str, Any]:
    """Return what was asked for on the command line as entries of [study].

    Args:
        given: Name of an option -> its text; None where it was not given.

    Raises:
        ScenarioError: A number is none.
    """
    asked: dict[str, Any] = {}
    for name, text in given.items():
        if not isinstance(text, str):
            if text:
                asked[name] = True
        elif name == "strategies":
            asked["methods"] = split_methods(text)
        elif name == "metrics":
            asked[name] = [part.strip() for part in text.split(",") if part.strip()]
        elif name in ("seeds", "partitions"):
            asked[name] = numbers(name, text)
        else:
            asked[name] = text
    return asked


def numbers(name: str, text: str) -> int | list[int]:
    """Return a count, or with commas a list of seeds; "7," is the list of one.

    Raises:
        ScenarioError: It is neither.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError as error:
        raise ScenarioError(f"--{name}", [f'must be a count or seeds with commas between, got "{text}"']) from error


def line(
    scenario: str, asked: Mapping[str, Any], changes: Sequence[str], out: Path | None, *, verb: str = "compare"
) -> str:
    """Return the one line that makes a study again.

    Args:
        scenario: As it was named.
        asked: What `options` returned.
        changes: "key=value" changes.
        out: The folder, if one was named.
        verb: The command.
    """
    words = ["python", "run_sim.py", verb, scenario]
    for key, value in asked.items():
        words.append(f"--{FLAGS.get(key, key)}")
        if value is not True:
            words.append(_text(key, value))
    words += [word for change in changes for word in ("--set", change)]
    return shlex.join([*words, *(["--out", str(out)] if out is not None else [])])


def _text(key: str, value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    alone = key in ("seeds", "partitions") and len(value) == 1
    return ",".join(map(str, value)) + ("," if alone else "")
