"""Files that are replaced in one step: whoever reads or stops us half way has the old one or the new one."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, content: str | bytes) -> Path:
    """Write a file in place of what is there; return its path.

    Args:
        path: The file; its folder is there.
        content: Its bytes, or a text to be written in UTF-8.
    """
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return partial.replace(path)
