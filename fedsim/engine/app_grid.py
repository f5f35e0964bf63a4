"""What a Flower app's ServerApp is given as its Grid: any of ours, with messages kept as Flower keeps them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engine import flower
from fedsim.engine.base import BlockGrid
from fedsim.engine.flower import Run
from fedsim.engine.records import heard, sealed
from fedsim.sentences import some

POLL_S = 0.002
"""Seconds between two looks of a thread that waits for replies."""

SHOWN = 3
"""Failing nodes that a summary names with their reason."""


@dataclass
class Tally:
    """What became of an app's messages.

    Attributes:
        answered: Message type -> number of replies with content.
        failed: Node, message type and reason in a line -> number of messages that failed, or had no answer in time.
        first: Of the first error reply the node, the message type and the whole reason.
        open: Id -> node of what has no answer yet, or one that was not pulled.
        took_s: Seconds that the run took.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    first: tuple[int, str, str] | None = None
    open: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def fruitless(self) -> bool:
        """Whether messages failed and no client answered any."""
        return bool(self.failed) and not self.answered

    def failure(self, node: int, kind: str, reason: str) -> None:
        """Take down that a message failed."""
        self.failed[node, kind, last_line(reason)] += 1
        if self.first is None:
            self.first = node, kind, reason

    def lines(self) -> list[str]:
        """Return the summary for a terminal."""
        if not (self.answered or self.failed or self.open):
            return ["no messages were sent"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.answered.items()))
        total = f"{sum(self.answered.values())} messages answered in {self.took_s:.1f} s"
        lines = [f"{total}: {kinds}" if kinds else total]
        if self.open:
            lines.append(f"{len(self.open)} not answered yet or not pulled, of {_nodes(self.open.values())}")
        nodes = sorted({node for node, _, _ in self.failed})
        if nodes:
            lines.append(f"{sum(self.failed.values())} messages failed, of {_nodes(nodes)}")
        shown = [key for key in sorted(self.failed) if key[0] in nodes[:SHOWN]]
        for node, kind, reason in shown:
            lines.append(
                f"  node {node} (partition {node - 1}), {self.failed[node, kind, reason]} x {kind}: {reason}"
            )
        if len(nodes) > SHOWN:
            lines.append(f"  ... and {len(nodes) - SHOWN} more nodes")
        return lines


class AppGrid(Grid):
    """A grid for a ServerApp that expects Flower's own.

    Beside what the grid below does: every sending gives a message a new id, nodes get all of a message's metadata,
    records changed after sending are not changed for the nodes, what has no answer in time is left out rather than
    answered with an error, what clients in other processes printed is printed, and several threads may ask.

    Args:
        inner: Answers; made for `FlowerClients`.
        run: What the ServerApp is told of its run.
    """

    def __init__(self, inner: BlockGrid, run: Run) -> None:
        self._inner = inner
        self._lock = threading.RLock()
        self.tally = Tally()
        inner.set_run(run)

    def set_run(self, run: Run) -> None:
        """Set the run this grid belongs to."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """A copy of the description of the run."""
        return flower.copy_of_run(self._inner.run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message (Flower's older way; `Message(...)` does the same)."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """Return 1..K, always the same; node i + 1 is partition i."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids.

        Raises:
            ValueError: One cannot be sent.
            EngineError: One is for no node.
        """
        sent = _prepared(list(messages), together=False)
        with self._lock:
            ids = self._inner.push_messages(sent)
            self._sent(sent)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, each once.

        Raises:
            EngineError: The workers are gone.
        """
        with self._lock:
            return self._taken(self._inner.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order of the messages, none of nodes that took too long.

        Raises:
            ValueError: One cannot be sent.
            EngineError: One is for no node, or the workers are gone.
        """
        sent = _prepared(list(messages), together=True)
        with self._lock:
            submitted = self._inner.submit(sent, timeout=timeout)
            self._sent(sent)
            if threading.current_thread() is threading.main_thread():
                return self._taken(submitted.replies())
        # Other threads may want to ask at the same time, as those of Flower's older Server do.
        tasks = list(dict.fromkeys(task for task, _ in submitted.entries))
        while True:
            with self._lock:
                self._inner.finish(tasks, wait=False)
                if all(task.done for task in tasks):
                    return self._taken(submitted.replies())
            time.sleep(POLL_S)

    def _sent(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.tally.open[message.metadata.message_id] = message.metadata.dst_node_id

    def _taken(self, replies: Sequence[Message]) -> list[Message]:
        """Count replies, print what clients printed, and leave out those that came too late."""
        kept = []
        for reply in replies:
            node, kind = reply.metadata.src_node_id, reply.metadata.message_type
            self.tally.open.pop(reply.metadata.reply_to_message_id, None)
            if reply.has_error():
                self.tally.failure(node, kind, reply.error.reason or f"error code {reply.error.code}")
                if reply.error.code == flower.NO_ANSWER:
                    continue
            else:
                self.tally.answered[kind] += 1
                for line in heard(reply.content):
                    print(f"[node {node}] {line}")
            kept.append(reply)
        return kept


def last_line(reason: str) -> str:
    """Return the line of a traceback that says what happened."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _prepared(messages: Sequence[Message], *, together: bool) -> list[Message]:
    """Return messages as they travel.

    Args:
        messages: As the ServerApp made them.
        together: Those that share their content share a request, and are answered when all are; else each is for
            itself, and its reply there as soon as its node is done.
    """
    for message in messages:
        letter = message.metadata
        if letter.reply_to_message_id or letter.ttl <= 0 or not message.has_content():
            raise ValueError(f"Invalid message: {message}")
        flower.new_id(message)
    groups: dict[tuple[object, ...], list[int]] = {}
    turns: Counter[tuple[int, str, int]] = Counter()
    for place, message in enumerate(messages):
        letter = message.metadata
        key = (id(message.content), letter.message_type, letter.dst_node_id)
        groups.setdefault((*key[:2], turns[key]) if together else (place,), []).append(place)
        turns[key] += 1
    found: dict[int, Message] = {}
    for places in groups.values():
        request = sealed(messages[places[0]].content, [messages[place] for place in places])
        found |= {place: flower.same_envelope(messages[place], request) for place in places}
    return [found[place] for place in range(len(messages))]


def _nodes(nodes: Iterable[int]) -> str:
    distinct = sorted(set(nodes))
    return f"node {distinct[0]}" if len(distinct) == 1 else f"nodes {some(distinct)}"
