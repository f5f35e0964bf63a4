"""Ctrl-C that is heeded: Python drops an exception that a signal raises while a weak reference is being cleared."""

from __future__ import annotations

import signal
from types import FrameType

from fedsim.rounds import Round

_asked = False


def install() -> None:
    """Let SIGINT and SIGTERM interrupt a run politely: its folder is completed."""
    global _asked
    _asked = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def heed(finished: Round) -> None:
    """End a run that was interrupted and did not notice; a callback.

    Raises:
        KeyboardInterrupt: It was.
    """
    del finished
    if _asked:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    global _asked
    _asked = True
    raise KeyboardInterrupt
