"""Records of any kind travel and are kept as they are, and nobody can change somebody else's."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedsim.engine import flower
from fedsim.engine.flower import Fault
from fedsim.engine.records import ENVELOPE, Records, opened, own_copy, pack_state, sealed, unpack_state

WHOLE = st.integers(min_value=-(2**63), max_value=2**63 - 1)
REAL = st.floats(allow_nan=False)
METRIC = st.one_of(WHOLE, REAL, st.lists(WHOLE, min_size=1, max_size=3), st.lists(REAL, min_size=1, max_size=3))
SETTING = st.one_of(
    METRIC,
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.text(max_size=3), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=1, max_size=3),
    st.lists(st.binary(max_size=3), min_size=1, max_size=3),
)
NAMES = st.text(min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def _identity() -> None:
    flower.set_identity()


def every_kind() -> RecordDict:
    arrays = {
        "w": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "b": Array(np.array([1, 2], np.int64)),
        "empty": Array(np.zeros((0, 4))),
        "scalar": Array(np.array(2.5)),
        "other": Array(dtype="f8", shape=(1,), stype="my.own", data=b"anything"),
    }
    return RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "none": ArrayRecord({}),
            "metrics": MetricRecord({"a": 1, "b": 2.5, "c": [1, 2], "d": [0.5]}),
            "config": ConfigRecord({"s": "text", "y": b"\x00\xff", "t": True, "l": ["a", "b"], "f": [True, False]}),
        }
    )


def same(one: RecordDict, other: RecordDict) -> bool:
    return flower.to_bytes(one) == flower.to_bytes(other) and list(one) == list(other)


class TestState:
    def test_every_kind_of_record(self) -> None:
        state = pack_state(every_kind())
        assert [(array.dtype, array.ndim) for array in state.values()] == [(np.dtype(np.uint8), 1)]
        again = unpack_state(state)
        assert again == every_kind()
        assert list(again) == list(every_kind())
        np.testing.assert_array_equal(again["arrays"]["w"].numpy(), every_kind()["arrays"]["w"].numpy())

    def test_nothing_kept_is_nothing(self) -> None:
        assert pack_state(RecordDict()) == {}
        assert len(unpack_state({})) == 0

    @given(
        metrics=st.dictionaries(NAMES, METRIC, max_size=4),
        settings=st.dictionaries(NAMES, SETTING, max_size=4),
        array=st.lists(st.floats(width=32), max_size=5),
    )
    def test_any_values(self, metrics: dict[str, Any], settings: dict[str, Any], array: list[float]) -> None:
        records = RecordDict(
            {
                "m": MetricRecord(metrics),
                "c": ConfigRecord(settings),
                "a": ArrayRecord({"x": Array(np.array(array, np.float32))}),
            }
        )
        again = unpack_state(pack_state(records))
        assert dict(again["m"]) == metrics
        assert dict(again["c"]) == settings
        assert {key: type(value) for key, value in again["c"].items()} == {k: type(v) for k, v in settings.items()}
        assert again["a"]["x"].numpy().tobytes() == np.array(array, np.float32).tobytes()


class TestCopies:
    def test_a_copy_is_equal_and_apart(self) -> None:
        original = every_kind()
        before = flower.to_bytes(original)
        copied = own_copy(original)
        assert same(copied, original)
        copied["metrics"]["c"].append(9)
        copied["metrics"]["a"] = 7
        copied["config"]["l"].clear()
        copied["arrays"]["w"].data = b"gone"
        copied["arrays"]["new"] = Array(np.zeros(1))
        del copied["none"]
        assert flower.to_bytes(original) == before

    def test_the_bytes_of_arrays_are_not_copied(self) -> None:
        original = every_kind()
        assert own_copy(original)["arrays"]["w"].data is original["arrays"]["w"].data

    def test_records_whose_id_flower_has_computed_travel_too(self) -> None:
        """Flower then keeps views of the bytes, which cannot be pickled."""
        original = every_kind()
        assert original.object_id
        assert same(pickle.loads(pickle.dumps(own_copy(original))), original)


class TestEnvelopes:
    def test_messages_come_out_as_they_went_in(self) -> None:
        content = every_kind()
        sent = [
            Message(content, dst_node_id=node, message_type="train.more", ttl=100.0 + node, group_id=f"g{node}")
            for node in (3, 1, 7)
        ]
        for message in sent:
            flower.new_id(message)
        request = pickle.loads(pickle.dumps(sealed(content, sent)))
        received = opened("train.more", request, [7, 3])
        for message, original in zip(received, [sent[2], sent[0]], strict=True):
            here, there = dict(vars(message.metadata)), dict(vars(original.metadata))
            assert here.pop("_delivered_at")
            assert there.pop("_delivered_at") == ""
            assert here == there
            assert same(message.content, content)
            assert message.has_content()
            assert not message.has_error()
        received[0].content["metrics"]["a"] = 77
        assert received[1].content["metrics"]["a"] == 1
        assert request["metrics"]["a"] == 1
        assert ENVELOPE not in content

    def test_a_reply_goes_back(self) -> None:
        sent = Message(RecordDict(), dst_node_id=4, message_type="query")
        flower.new_id(sent)
        (received,) = opened("query", sealed(sent.content, [sent]), [4])
        reply = Message(RecordDict(), reply_to=received)
        assert reply.metadata.reply_to_message_id == sent.metadata.message_id
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (4, sent.metadata.src_node_id)


class TestRecords:
    def test_parts_are_put_together_in_order(self) -> None:
        one, two = RecordDict({"m": MetricRecord({"a": 1})}), RecordDict({"m": MetricRecord({"a": 2})})
        first = Records((5, 9), (one, None), {1: Fault("no luck", 6)})
        second = Records((2,), (two,))
        whole = Records.merged([([2, 0], first), ([3], second)], 4)
        assert whole.clients == (9, -1, 5, 2)
        assert whole.content(2) is one
        assert whole.content(3) is two
        assert whole.errors == {0: "no luck"}

    def test_a_fault_keeps_its_code_on_the_way(self) -> None:
        message = Message(RecordDict(), dst_node_id=4, message_type="query")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            fault = pickle.loads(pickle.dumps(Fault("no luck", 6), protocol))
            reply = flower.error_reply(fault, reply_to=message)
            assert (reply.error.code, reply.error.reason) == (6, "no luck")
        assert flower.error_reply("its worker died", reply_to=message).error.code == 0  # as Flower says of those
