"""What both grids share: messages in, tasks out to whoever answers them, replies in request order."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engine import flower
from fedsim.engine.flower import Run
from fedsim.engine.states import State, States, read_states
from fedsim.engine.task import BlockApp, Patience, Task
from fedsim.engine.usage import Usage
from fedsim.errors import EngineError
from fedsim.wire import Block

__all__ = ["BlockApp", "BlockGrid", "State", "Submitted"]


@dataclass
class Submitted:
    """Messages on their way.

    Attributes:
        entries: For each message its task and the client it is for.
    """

    grid: BlockGrid
    messages: Sequence[Message]
    entries: Sequence[tuple[Task, int]]

    def replies(self) -> list[Message]:
        """Wait for all answers and return them in the order of the messages.

        Raises:
            EngineError: The workers cannot go on.
        """
        return self.grid.collect(self)


class BlockGrid(Grid):
    """A Flower Grid whose nodes are virtual clients; client i is node i + 1.

    Args:
        app: Answers for the clients.
        states: Where clients' states are kept; closed with the grid.
    """

    def __init__(self, app: BlockApp, states: States | None = None) -> None:
        flower.set_identity()
        self._app = app
        self._run = flower.empty_run()
        self._open: dict[str, tuple[Task, Message, int]] = {}
        # Client -> tasks after which it keeps something that nobody has looked at yet, in their order.
        self._keepers: dict[int, list[Task]] = {}
        self.states = States() if states is None else states

    @abstractmethod
    def start(self, task: Task) -> None:
        """Take on a task, without waiting for answers."""

    @abstractmethod
    def finish(self, tasks: Sequence[Task], *, wait: bool) -> None:
        """Bring tasks to their end, or only take note of what has arrived where `wait` is false."""

    @abstractmethod
    def usage(self) -> Usage:
        """Return where the time went since the grid was opened."""

    def close(self) -> None:
        """End the workers and remove what is no checkpoint's."""
        self.states.close()

    def client_states(self) -> dict[int, State]:
        """Return what every client keeps between rounds."""
        index = self.states.index()
        return dict(zip(index, read_states(self.states.folder, list(index.values())), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_run(self, run: Run) -> None:
        """Set the run this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid belongs to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message (Flower's older way; `Message(...)` does the same)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return 1..K, always the same."""
        return list(range(1, self._app.num_clients + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages on their way; `pull_messages` hands out the replies.

        Raises:
            EngineError: A message is for no client.
        """
        sent = list(messages)
        submitted = self.submit(sent)
        for message, (task, client) in zip(sent, submitted.entries, strict=True):
            self._open[message.metadata.message_id] = task, message, client
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out the replies to these messages that are there, each once.

        Raises:
            EngineError: The workers cannot go on.
        """
        asked = [(id_, *self._open[id_]) for id_ in dict.fromkeys(message_ids) if id_ in self._open]
        self.finish(list(dict.fromkeys(task for _, task, _, _ in asked)), wait=False)
        there = [(id_, task, message, client) for id_, task, message, client in asked if task.done]
        for id_, *_ in there:
            del self._open[id_]
        self._take([task for _, task, _, _ in there])
        made: dict[int, flower.LazyReply] = {}
        return [_reply(task, message, client, made) for _, task, message, client in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Answer every message; replies come in the order of the requests.

        A client that fails, or has no answer after `timeout` seconds, gives an error reply.

        Raises:
            EngineError: A message is for no client, or the workers cannot go on.
        """
        return self.submit(messages, timeout=timeout).replies()

    def submit(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        patience: Patience = Patience.STRICT,
    ) -> Submitted:
        """Send messages on their way without waiting for the answers.

        Args:
            messages: To any nodes.
            timeout: Seconds the clients have; None for as many as they like.
            patience: What that means.

        Raises:
            EngineError: A message is for no client.
        """
        sent = list(messages)
        envelopes = flower.envelopes(sent)
        clients = [self._client_of(node) for _, node, _ in envelopes]
        flower.give_ids(sent)
        tasks: dict[int, Task] = {}
        for (kind, _), group in _by_content(envelopes).items():
            members = tuple(clients[place] for place in group)
            content = sent[group[0]].content
            keeps, reads = self._app.keeps_state(kind), self._app.reads_state(kind)
            task = Task(kind, content, members, keeps, keeps or reads, timeout, patience)
            if task.reads:
                before = (other for client in members for other in self._keepers.get(client, ()))
                task.after = tuple(sorted(dict.fromkeys(before), key=lambda other: other.serial))
            if keeps:
                for client in members:
                    self._keepers.setdefault(client, []).append(task)
            tasks.update(dict.fromkeys(group, task))
            self.start(task)
        return Submitted(self, sent, [(tasks[place], client) for place, client in enumerate(clients)])

    def collect(self, submitted: Submitted) -> list[Message]:
        """Wait for messages on their way; see `Submitted.replies`."""
        tasks = list(dict.fromkeys(task for task, _ in submitted.entries))
        self.finish(tasks, wait=True)
        self._take(tasks)
        made: dict[int, flower.LazyReply] = {}
        return [
            _reply(task, message, client, made)
            for message, (task, client) in zip(submitted.messages, submitted.entries, strict=True)
        ]

    def slips_for(self, task: Task) -> list[str]:
        """Return where what a task's clients kept is, what was answered but not looked at yet included."""
        if not task.reads:
            return []
        newer: dict[int, str] = {}
        for other in task.after:
            newer |= other.kept
        task.after = ()  # they hold their answers
        return [newer[c] if c in newer else self.states.slip(c) for c in task.clients]

    def _take(self, tasks: Sequence[Task]) -> None:
        """Let clients keep what they keep, unless one of the tasks came to nothing as a whole."""
        tasks = [task for task in dict.fromkeys(tasks) if not task.collected]
        error = next((task.error for task in tasks if task.error is not None), None)
        for task in sorted(tasks, key=lambda task: task.serial):
            task.collected = True
            if not task.keeps:
                continue
            for client in task.clients:
                waiting = self._keepers[client]
                if error is None and client in task.kept:
                    # What an earlier task left, should somebody look at it yet, is out of date.
                    for earlier in waiting[: waiting.index(task)]:
                        earlier.kept.pop(client, None)
                waiting.remove(task)
                if not waiting:
                    del self._keepers[client]
            if error is None:
                self.states.update(task.kept)
        if error is not None:
            raise error

    def _client_of(self, node: int) -> int:
        if not 1 <= node <= self._app.num_clients:
            raise EngineError(f"message to node {node}: there are nodes 1 to {self._app.num_clients}")
        return node - 1


def _reply(task: Task, message: Message, client: int, made: dict[int, flower.LazyReply]) -> Message:
    if client in task.failed:
        return flower.error_reply(task.failed[client], reply_to=message)
    block, row = task.merged, task.place_of[client]
    assert block is not None
    if row in block.errors:
        return flower.error_reply(block.errors[row], reply_to=message)
    if not isinstance(block, Block):
        return Message(block.content(row), reply_to=message)
    first = made.get(id(block))  # what all replies share is derived once
    if first is None or not first.untouched:
        made[id(block)] = reply = flower.LazyReply(block.content, reply_to=message, block=block, row=row)
        return reply
    return first.beside(reply_to=message, row=row)


def _by_content(envelopes: Sequence[tuple[str, int, int]]) -> Mapping[tuple[str, Any], list[int]]:
    """Group messages that share their content object, type and turn, so that content travels once."""
    groups: dict[tuple[str, Any], list[int]] = {}
    turns: Counter[tuple[str, int, int]] = Counter()
    for place, envelope in enumerate(envelopes):
        kind, _, content = envelope
        # Several messages to one node are answered one after the other.
        turn = turns[envelope]
        turns[envelope] = turn + 1
        groups.setdefault((kind, (content, turn)), []).append(place)
    return groups
