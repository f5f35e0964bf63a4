"""Every Flower internal the platform touches, and nothing else anywhere.

Flower makes messages of a run only inside a process that knows its task (`TaskIdentity`), and gives a message
its id on the way through a SuperLink. A grid of our own has to do both.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["LazyReply", "Run", "empty_run", "error_reply", "give_id", "give_ids", "set_identity"]

RUN_ID = 1
SERVER_NODE = 1
CLIENT_FAILED = 1
"""Flower's error code for an exception in a ClientApp is not public; ours only has to be a number."""


def set_identity() -> None:
    """Tell Flower that this process is the server of a run, unless it knows better."""
    for name, value in (("task_id", 1), ("run_id", RUN_ID), ("node_id", SERVER_NODE)):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, value)


def empty_run() -> Run:
    """Return the description of a run that no SuperLink knows."""
    return Run.create_empty(RUN_ID)


def give_ids(messages: Iterable[Message]) -> None:
    """Give messages ids, as a SuperLink would; one that has an id keeps it."""
    for message in messages:
        known = message.metadata.__dict__
        if not known["_message_id"]:
            known["_message_id"] = f"{_PROCESS}{next(_numbers):016x}"


def give_id(message: Message) -> str:
    """Give a message an id, as a SuperLink would, and return it."""
    give_ids([message])
    return message.metadata.message_id


_numbers = itertools.count()
_PROCESS = os.urandom(16).hex()


class LazyReply(Message):
    """A reply whose records are made when someone looks.

    Clients of a block come back as one stacked array. Strategies of ours read the array; any other strategy
    sees ordinary records.

    Args:
        make: Row -> the content.
        reply_to: The message answered.
        block: What `make` takes its content from.
        row: Which row of it.
    """

    def __init__(self, make: Callable[[int], RecordDict], *, reply_to: Message, block: object, row: int) -> None:
        super().__init__(RecordDict(), reply_to=reply_to)
        self.block = block
        self.row = row
        self.__dict__["_make"] = make

    def beside(self, *, reply_to: Message, row: int) -> LazyReply:
        """Return the reply of another row, to a message of the same sender and type.

        What the constructor makes, without checking and deriving for each of many replies what all share.
        """
        asked = reply_to.metadata.__dict__
        mine = self.metadata
        metadata = type(mine).__new__(type(mine))
        metadata.__dict__.update(
            mine.__dict__,
            _src_node_id=asked["_dst_node_id"],
            _reply_to_message_id=asked["_message_id"],
            _group_id=asked["_group_id"],
            _ttl=asked["_created_at"] + asked["_ttl"] - mine.created_at,
        )
        other = LazyReply.__new__(LazyReply)
        other.__dict__.update(self.__dict__, _metadata=metadata, row=row)
        return other

    @property
    def untouched(self) -> bool:
        """Whether the block still says what the records would: nobody has looked at them or set them."""
        return "_make" in self.__dict__

    @property
    def content(self) -> RecordDict:
        """The records, made at the first look."""
        make = self.__dict__.pop("_make", None)
        if make is not None:
            self.__dict__["_content"] = make(self.row)
        return cast(RecordDict, self.__dict__["_content"])

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__.pop("_make", None)
        self.__dict__["_content"] = value


def error_reply(reason: str, *, reply_to: Message) -> Message:
    """Return a reply that says a client failed."""
    return Message(Error(code=CLIENT_FAILED, reason=reason), reply_to=reply_to)
