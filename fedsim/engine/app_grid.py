"""What a Flower app's ServerApp is given as its Grid: any of ours, with messages kept as Flower keeps them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engine import flower
from fedsim.engine.base import BlockGrid
from fedsim.engine.flower import Run
from fedsim.engine.records import sealed

SHOWN = 3
"""Failing nodes that a summary names with their reason."""


@dataclass
class Tally:
    """What became of an app's messages.

    Attributes:
        answered: Message type -> number of replies with content.
        failures: Of each error reply the node, the message type and the reason.
        silent: The same of each message without an answer in time.
        open: Id -> node and message type of what was pushed and not pulled yet.
        took_s: Seconds that the run took.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    silent: list[tuple[int, str, str]] = field(default_factory=list)
    open: dict[str, tuple[int, str]] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def fruitless(self) -> bool:
        """Whether messages were sent and no client answered any of them."""
        return bool(self.failures or self.silent) and not self.answered

    def lines(self) -> list[str]:
        """Return the summary for a terminal."""
        total = sum(self.answered.values())
        if not (total or self.failures or self.silent or self.open):
            return ["no messages were sent"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.answered.items()))
        first = f"{total} messages answered in {self.took_s:.1f} s" + (f": {kinds}" if kinds else "")
        if self.open:
            first += f"; {len(self.open)} pushed and never pulled"
        lines = [first]
        by_node: dict[int, list[tuple[str, str]]] = {}
        for node, kind, reason in [*self.failures, *self.silent]:
            by_node.setdefault(node, []).append((kind, last_line(reason)))
        if by_node:
            number = len(self.failures) + len(self.silent)
            lines.append(f"{number} messages failed, of {_nodes(sorted(by_node))}")
        for node, found in sorted(by_node.items())[:SHOWN]:
            for (kind, reason), count in Counter(found).items():
                lines.append(f"  node {node} (partition {node - 1}), {count} x {kind}: {reason}")
        if len(by_node) > SHOWN:
            lines.append(f"  ... and {len(by_node) - SHOWN} more nodes")
        return lines


class AppGrid(Grid):
    """A grid for a ServerApp that expects Flower's own.

    Beside what the grid below does: every sending gives a message a new id, nodes get all of a message's metadata,
    records changed after sending are not changed for the nodes, what has no answer in time is left out rather than
    answered with an error, and one thread at a time is served.

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
        sent = list(messages)
        with self._lock:
            ids = self._inner.push_messages(_prepared(sent, together=False))
            for message in sent:
                letter = message.metadata
                self.tally.open[letter.message_id] = letter.dst_node_id, letter.message_type
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, each once.

        Raises:
            EngineError: The workers are gone.
        """
        with self._lock:
            replies = self._inner.pull_messages(message_ids)
            for reply in replies:
                self.tally.open.pop(reply.metadata.reply_to_message_id, None)
            return self._taken(replies)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order of the messages, none of nodes that took too long.

        Raises:
            ValueError: One cannot be sent.
            EngineError: One is for no node, or the workers are gone.
        """
        with self._lock:
            return self._taken(
                self._inner.send_and_receive(_prepared(list(messages), together=True), timeout=timeout)
            )

    def _taken(self, replies: Sequence[Message]) -> list[Message]:
        kept = []
        for reply in replies:
            node, kind = reply.metadata.src_node_id, reply.metadata.message_type
            if not reply.has_error():
                self.tally.answered[kind] += 1
                kept.append(reply)
                continue
            failure = node, kind, reply.error.reason or f"error code {reply.error.code}"
            if reply.error.code == flower.NO_ANSWER:
                self.tally.silent.append(failure)
            else:
                self.tally.failures.append(failure)
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


def _nodes(nodes: Sequence[int]) -> str:
    shown = ", ".join(str(node) for node in nodes[:8])
    if len(nodes) > 8:
        shown += f", ... ({len(nodes)} in all)"
    return f"node {shown}" if len(nodes) == 1 else f"nodes {shown}"
