"""The Flower internals the platform touches exist in the installed Flower and do what we rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.engine import flower


@pytest.fixture(autouse=True)
def _identity() -> None:
    flower.set_identity()


def test_what_we_touch_is_there() -> None:
    assert callable(Run.create_empty)
    for name in ("task_id", "run_id", "node_id"):
        assert hasattr(TaskIdentity, name)


def test_an_empty_run_has_our_id() -> None:
    assert flower.empty_run().run_id == flower.RUN_ID


def test_identity_makes_messages_possible_and_a_known_one_is_kept() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fedsim.engine import flower
try:
    Message(RecordDict(), dst_node_id=1, message_type="train")
    print("made")
except Exception as error:
    print("refused")
TaskIdentity.run_id = 77
flower.set_identity()
flower.set_identity()
message = Message(RecordDict(), dst_node_id=1, message_type="train")
print(message.metadata.run_id, TaskIdentity.node_id == flower.SERVER_NODE)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "77", "True"]


def test_a_message_gets_one_id() -> None:
    first = Message(RecordDict(), dst_node_id=1, message_type="train")
    second = Message(RecordDict(), dst_node_id=1, message_type="train")
    assert not first.metadata.message_id
    assert flower.give_id(first) == flower.give_id(first) == first.metadata.message_id
    assert flower.give_id(second) != first.metadata.message_id


def test_replies_answer_their_message() -> None:
    message = Message(RecordDict(), dst_node_id=4, message_type="train")
    flower.give_id(message)
    failed = flower.error_reply("no memory", reply_to=message)
    lazy = flower.LazyReply(lambda _: RecordDict(), reply_to=message, block=None, row=0)
    for reply in (failed, lazy):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.src_node_id == 4
        assert reply.metadata.message_type == "train"
    assert failed.has_error()
    assert failed.error.reason == "no memory"
    assert not lazy.has_error()


def test_a_reply_made_beside_another_is_what_the_constructor_makes() -> None:
    flower.set_identity()
    messages = [
        Message(RecordDict(), dst_node_id=node, message_type="train", ttl=ttl, group_id=str(node))
        for node, ttl in ((3, 100.0), (7, 50.0))
    ]
    ids = [flower.give_id(message) for message in messages]
    make = lambda row: RecordDict({"a": MetricRecord({"row": row})})  # noqa: E731
    first = flower.LazyReply(make, reply_to=messages[0], block="b", row=0)
    second = first.beside(reply_to=messages[1], row=1)
    anew = flower.LazyReply(make, reply_to=messages[1], block="b", row=1)
    found, expected = (dict(reply.metadata.__dict__) for reply in (second, anew))
    for name in ("_created_at", "_ttl"):
        assert found.pop(name) == pytest.approx(expected.pop(name), abs=1.0)
    assert found == expected
    assert found["_reply_to_message_id"] == ids[1]
    assert (second.block, second.row, second.untouched) == ("b", 1, True)
    assert second.content["a"] == MetricRecord({"row": 1})
    assert first.untouched
    assert first.content["a"] == MetricRecord({"row": 0})
    assert first.metadata.src_node_id == 3
    assert not second.has_error()
