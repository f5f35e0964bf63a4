"""Ctrl-C that got lost on its way is heeded at the end of the round."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fedsim import interrupt
from fedsim.rounds import Round
from fedsim.wire import pack_arrays


@pytest.fixture
def installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt.install()
    yield
    interrupt.install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_nobody_noticed_is_raised_again(number: int) -> None:
    finished = Round(1, pack_arrays({}), pack_arrays({}))
    interrupt.heed(finished)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        interrupt.heed(finished)
    interrupt.install()
    interrupt.heed(finished)
