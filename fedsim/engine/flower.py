"""Every Flower internal the platform touches, and nothing else anywhere.

Flower makes messages of a run only inside a process that knows its task (`TaskIdentity`), and gives a message
its id on the way through a SuperLink. A grid of our own has to do both.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from typing import cast

from flwr.app import Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["LazyReply", "Run", "empty_run", "error_reply", "give_id", "set_identity"]

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


def give_id(message: Message) -> str:
    """Give a message an id, as a SuperLink would, and return it."""
    if not message.metadata.message_id:
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return message.metadata.message_id


class LazyReply(Message):
    """A reply whose records are made when someone looks.

    Clients of a block come back as one stacked array. Strategies of ours read the array; any other strategy
    sees ordinary records.

    Args:
        make: Returns the content.
        reply_to: The message answered.
        block: What `make` takes its content from.
        row: Which row of it.
    """

    def __init__(self, make: Callable[[], RecordDict], *, reply_to: Message, block: object, row: int) -> None:
        super().__init__(RecordDict(), reply_to=reply_to)
        self.block = block
        self.row = row
        self.__dict__["_make"] = make

    def beside(self, make: Callable[[], RecordDict], *, reply_to: Message, row: int) -> LazyReply:
        """Return the reply of another row, to a message of the same sender and type.

        What the constructor makes, without checking and deriving for each of many replies what all share.
        """
        asked = reply_to.metadata
        metadata = copy.copy(self.metadata)
        metadata.__dict__.update(
            _src_node_id=asked.dst_node_id,
            _reply_to_message_id=asked.message_id,
            _group_id=asked.group_id,
            _ttl=asked.created_at + asked.ttl - metadata.created_at,
        )
        other = LazyReply.__new__(LazyReply)
        other.__dict__.update(self.__dict__, _metadata=metadata, _make=make, row=row)
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
            self.__dict__["_content"] = make()
        return cast(RecordDict, self.__dict__["_content"])

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__.pop("_make", None)
        self.__dict__["_content"] = value


def error_reply(reason: str, *, reply_to: Message) -> Message:
    """Return a reply that says a client failed."""
    return Message(Error(code=CLIENT_FAILED, reason=reason), reply_to=reply_to)
