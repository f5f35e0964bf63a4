"""benchmarks/out/latest.json: the rows of every benchmark's last run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "out" / "latest.json"


def write(rows: Sequence[dict[str, Any]], path: Path = OUT) -> None:
    """Put rows in place of those with the same names; what other benchmarks wrote stays.

    Args:
        rows: At least "name", "seconds", "baseline" and "ratio": how many times as fast as the baseline.
        path: The file.
    """
    names = {row["name"] for row in rows}
    kept = [row for row in _read(path) if row.get("name") not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps([*kept, *rows], indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return []  # there is none yet, or it was cut short: it is only a copy of what was printed
    return content if isinstance(content, list) else []
