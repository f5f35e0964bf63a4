"""What both grids share: messages in, blocks of clients out to whoever trains them, replies in request order."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsim.engine import flower
from fedsim.engine.flower import Run
from fedsim.engine.records import Records
from fedsim.errors import EngineError
from fedsim.wire import Block

State = dict[str, NDArray[np.generic]]

log = logging.getLogger("fedsim")


class BlockApp(Protocol):
    """A client application that answers for many clients at once."""

    num_clients: int
    stateful: bool

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:
        """Split clients into groups that must be answered together for a result that no schedule changes."""
        ...

    def cost(self, kind: str, client: int) -> float:
        """Return how long a client takes, in any unit."""
        ...

    def reads_state(self, kind: str) -> bool:
        """Say whether what clients keep matters to their answers to this kind of request."""
        ...

    def run(
        self, kind: str, content: RecordDict, units: Sequence[Sequence[int]], states: Sequence[State]
    ) -> tuple[Block | Records, list[State]]:
        """Answer one request for the clients of several units, each with what it kept.

        Returns:
            The answers in the order of the units, and what each client keeps now.
        """
        ...


class BlockGrid(Grid):
    """A Flower Grid whose nodes are virtual clients; client i is node i + 1.

    Args:
        app: Answers for the clients.
    """

    def __init__(self, app: BlockApp) -> None:
        flower.set_identity()
        self._app = app
        self._run = flower.empty_run()
        self._ready: dict[str, Message] = {}

    @abstractmethod
    def answer(
        self, kind: str, content: RecordDict, clients: Sequence[int], timeout: float | None
    ) -> Mapping[int, tuple[Block | Records, int] | str]:
        """Return for each client its block and row, or what went wrong."""

    def keeps(self, kind: str) -> bool:
        """Say whether clients keep something from answering a request of this kind."""
        always = getattr(self._app, "keeps_state", None)
        return self._app.stateful and (kind.partition(".")[0] == "train" or bool(always and always(kind)))

    @abstractmethod
    def client_states(self) -> dict[int, State]:
        """Return what every client keeps between rounds."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

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
        """Answer the messages and keep the replies for `pull_messages`."""
        sent = list(messages)
        ids = [flower.give_id(message) for message in sent]
        for reply in self.send_and_receive(sent):
            self._ready[reply.metadata.reply_to_message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out the replies to these messages, each once."""
        return [self._ready.pop(id_) for id_ in message_ids if id_ in self._ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Answer every message; replies come in the order of the requests.

        A client that fails, or has no answer after `timeout` seconds, gives an error reply.

        Raises:
            EngineError: A message is for no client, or the workers are gone.
        """
        sent = list(messages)
        replies: dict[int, Message] = {}
        for group in _by_content(sent).values():
            self._answer_group([(place, sent[place]) for place in group], timeout, replies)
        return [replies[place] for place in range(len(sent))]

    def _answer_group(
        self, group: list[tuple[int, Message]], timeout: float | None, replies: dict[int, Message]
    ) -> None:
        first = group[0][1]
        clients = [self._client_of(message) for _, message in group]
        for _, message in group:
            flower.give_id(message)
        results = self.answer(first.metadata.message_type, first.content, clients, timeout)
        made: dict[int, flower.LazyReply] = {}
        for (place, message), client in zip(group, clients, strict=True):
            result = results[client]
            if isinstance(result, str):
                replies[place] = flower.error_reply(result, reply_to=message)
            else:
                block, row = result
                replies[place] = _reply(message, block, row, made)

    def _client_of(self, message: Message) -> int:
        node = message.metadata.dst_node_id
        if not 1 <= node <= self._app.num_clients:
            raise EngineError(f"message to node {node}: there are nodes 1 to {self._app.num_clients}")
        return node - 1


def _reply(message: Message, block: Block | Records, row: int, made: dict[int, flower.LazyReply]) -> Message:
    if row in block.errors:
        return flower.error_reply(block.errors[row], reply_to=message)
    make: Callable[[], RecordDict] = lambda: block.content(row)  # noqa: E731
    first = made.get(id(block))
    if first is None or not first.untouched:
        made[id(block)] = reply = flower.LazyReply(make, reply_to=message, block=block, row=row)
        return reply
    return first.beside(make, reply_to=message, row=row)


def _by_content(messages: Sequence[Message]) -> dict[tuple[int, str, int], list[int]]:
    """Group messages that share their content object, type and turn, so that content travels once."""
    groups: dict[tuple[int, str, int], list[int]] = {}
    turns: dict[tuple[int, str, int], int] = {}
    for place, message in enumerate(messages):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        # Several messages to one node are answered one after the other.
        turn = turns[id(message.content), kind, node] = turns.get((id(message.content), kind, node), -1) + 1
        groups.setdefault((id(message.content), kind, turn), []).append(place)
    return groups
