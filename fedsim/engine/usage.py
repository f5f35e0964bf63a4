"""Where a grid's time went."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Worked:
    """What one worker did.

    Attributes:
        name: Which worker.
        node: The machine it is on.
        pid: Its process; of its last life if it was started again.
        busy_s: Seconds in which it answered for clients.
        transfer_s: Seconds in which it read requests and wrote answers.
        answered: Answers of clients, train and evaluate alike.
        restarts: Times it was started again.
    """

    name: str
    node: str = ""
    pid: int = 0
    busy_s: float = 0.0
    transfer_s: float = 0.0
    answered: int = 0
    restarts: int = 0


@dataclass
class Usage:
    """What a grid did since it was opened.

    Attributes:
        dispatch_s: Seconds in which requests were divided, packed and sent.
        wait_s: Seconds in which the driver waited for workers.
        transfer_s: Seconds in which answers were read and put together.
        workers: Each worker.
    """

    dispatch_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    workers: list[Worked] = field(default_factory=list)
