"""Every Flower internal the platform touches, and nothing else anywhere.

Flower makes messages of a run only inside a process that knows its task (`TaskIdentity`), and gives a message
its id on the way through a SuperLink. A grid of our own has to do both.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from click import ClickException
from flwr.app import Error, Message, Metadata, RecordDict, UserConfig
from flwr.common.config import flatten_dict, get_project_config, parse_config_args
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.date import now
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "NUM_PARTITIONS_KEY",
    "PARTITION_ID_KEY",
    "LazyReply",
    "Run",
    "check",
    "empty_run",
    "envelopes",
    "error_reply",
    "give_id",
    "give_ids",
    "set_identity",
    "to_nodes",
]

RUN_ID = 1
SERVER_NODE = 1
CLIENT_FAILED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
LOAD_FAILED = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
UNKNOWN = ErrorCode.UNKNOWN
NO_ANSWER = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
"""Of clients that took too long."""


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
        known = message.__dict__["_metadata"].__dict__
        if not known["_message_id"]:
            known["_message_id"] = f"{_PROCESS}{next(_numbers):016x}"


def to_nodes(content: RecordDict, nodes: Sequence[int], kind: str) -> list[Message]:
    """Return one message to each node; they share their content, so that it travels once.

    What the constructor makes, which is derived and checked once and not for each of many.
    """
    if not nodes:
        return []
    first = Message(content, dst_node_id=nodes[0], message_type=kind)
    sent, metadata = [first], first.metadata
    for node in nodes[1:]:
        other = Message.__new__(Message)
        other.__dict__.update(first.__dict__, _metadata=_with(metadata, _dst_node_id=node))
        sent.append(other)
    return sent


def envelopes(messages: Sequence[Message]) -> list[tuple[str, int, int]]:
    """Return for each message its type, the node it is for, and what identifies its content."""
    found = []
    for message in messages:
        inside = message.__dict__  # the properties look everything up again, for each of many
        known = inside["_metadata"].__dict__
        content = inside["_content"] if type(message) is Message else message.content
        found.append((known["_message_type"], known["_dst_node_id"], id(content)))
    return found


def _with(metadata: Metadata, **changes: object) -> Metadata:
    other = Metadata.__new__(Metadata)
    other.__dict__.update(metadata.__dict__, **changes)
    return other


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
        other = LazyReply.__new__(LazyReply)
        other.__dict__.update(self.__dict__, _metadata=None, _beside=self.metadata, _reply_to=reply_to, row=row)
        return other

    @property
    def metadata(self) -> Metadata:
        """Whose reply it is, and to what."""
        made = self.__dict__["_metadata"]
        if made is None:
            asked, shared = self.__dict__["_reply_to"].metadata.__dict__, self.__dict__["_beside"]
            made = self.__dict__["_metadata"] = _with(
                shared,
                _src_node_id=asked["_dst_node_id"],
                _reply_to_message_id=asked["_message_id"],
                _group_id=asked["_group_id"],
                _ttl=asked["_created_at"] + asked["_ttl"] - shared.created_at,
            )
        return cast(Metadata, made)

    @property
    def node(self) -> int:
        """The node that answered: `metadata.src_node_id`, without a detour."""
        if self.__dict__["_metadata"] is None:
            asked: Message = self.__dict__["_reply_to"]
            node: int = asked.__dict__["_metadata"].__dict__["_dst_node_id"]
            return node
        return self.metadata.src_node_id

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


class Fault(str):
    """What went wrong at a client, with Flower's error code for it.

    Args:
        reason: In words.
        code: Flower's.
    """

    __slots__ = ("code",)
    code: int

    def __new__(cls, reason: str, code: int = CLIENT_FAILED) -> Fault:
        made = super().__new__(cls, reason)
        made.code = code
        return made

    def __reduce__(self) -> tuple[type[Fault], tuple[str, int]]:
        return type(self), (str(self), self.code)


def error_reply(reason: str, *, reply_to: Message) -> Message:
    """Return a reply that says a client failed, with the code of a `Fault`."""
    code = reason.code if isinstance(reason, Fault) else UNKNOWN
    return Message(Error(code=code, reason=str(reason)), reply_to=reply_to)


def check() -> None:
    """Use everything above once, to see that this Flower still has it.

    Raises:
        Exception: Whatever comes of a Flower that is made otherwise.
    """
    set_identity()
    empty_run()
    content = RecordDict()
    sent = to_nodes(content, [3, 4], "train")
    if envelopes(sent) != [("train", 3, id(content)), ("train", 4, id(content))]:
        raise RuntimeError("messages to several nodes do not say what they are")
    message = sent[1]
    asked = give_id(message)
    first = LazyReply(lambda _: RecordDict(), reply_to=message, block=None, row=0)
    other = first.beside(reply_to=message, row=1)
    for reply in (first, other, error_reply("as asked", reply_to=message)):
        if reply.metadata.reply_to_message_id != asked:
            raise RuntimeError("a reply does not name the message it answers")
    if list(other.content.items()) or other.untouched:
        raise RuntimeError("the records of a reply are not made at the first look")


def config_changed(run_id: int) -> str:
    """Return what Flower's simulation says to a ClientApp that changed its run configuration."""
    reason = f"The `run_config` field of the `Context` object cannot be modified (run_id: {run_id})."
    return f"{ValueError}:<'{reason}'>"


def described_run(fab_id: str, fab_version: str, overrides: UserConfig) -> Run:
    """Return the description of a run of a Flower app that no SuperLink knows."""
    run = Run.create_empty(TaskIdentity.run_id)
    return replace(run, fab_id=fab_id, fab_version=fab_version, override_config=dict(overrides))


def copy_of_run(run: Run) -> Run:
    """Return a copy, so that who asks for a grid's run cannot change it."""
    return replace(run)


def new_id(message: Message) -> str:
    """Give a message an id, another one each time it is sent, as a SuperLink does."""
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    return message.metadata.message_id


def same_envelope(message: Message, content: RecordDict) -> Message:
    """Return a message of the same metadata with another content."""
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def delivered(metadata: Metadata, content: RecordDict) -> Message:
    """Return a message as a node receives it."""
    message: Message = Message(content, metadata=metadata)  # type: ignore[call-overload]
    message.metadata.delivered_at = now().isoformat()
    return message


def to_bytes(records: RecordDict) -> bytes:
    """Return records in Flower's own serialisation.

    Raises:
        ValueError: They hold what Flower cannot send.
    """
    packed: bytes = recorddict_to_proto(records).SerializeToString()
    return packed


def from_bytes(packed: bytes) -> RecordDict:
    """Return the records of `to_bytes`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(packed))


def project_of(folder: Path) -> dict[str, Any]:
    """Read and check the pyproject.toml of a Flower app.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no TOML, or a field of Flower's is missing or of the wrong type.
    """
    return get_project_config(folder)


def overrides_of(words: Sequence[str]) -> UserConfig:
    """Read changes of a run configuration the way `flwr run --run-config` does.

    Args:
        words: Strings of "key=value" pairs, or one path of a TOML file.

    Raises:
        ValueError: They cannot be read, or a value is no bool, int, float or string.
    """
    try:
        return cast(UserConfig, parse_config_args(list(words)))
    except ClickException as error:
        raise ValueError(error.message) from error


def flat(config: Mapping[str, Any]) -> UserConfig:
    """Join nested keys with dots.

    Raises:
        ValueError: A value is no bool, int, float or string.
    """
    return flatten_dict(dict(config))
