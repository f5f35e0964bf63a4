"""Records on the wire: what is packed is what is read, through Flower's own serialisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsim import wire
from fedsim.engine.flower import LazyReply, error_reply, give_id, set_identity
from fedsim.parameters import Layout
from fedsim.wire import Answer, Block

LAYOUT = Layout(("body.weight", "body.bias"), ((2, 3), (2,)))
THETA = np.linspace(-1.0, 1.0, 8, dtype=np.float32)


@pytest.fixture(autouse=True, scope="module")
def _identity() -> None:
    set_identity()


def travelled(content: RecordDict) -> RecordDict:
    """The records as they arrive: through the bytes Flower itself sends."""
    records = {child.object_id: _travelled_record(child) for child in (content.children or {}).values()}
    return RecordDict.inflate(content.deflate(), records)


def _travelled_record(record: Any) -> Any:
    arrays = {
        array.object_id: Array.inflate(array.deflate(), _chunks(array))
        for array in (record.children or {}).values()
    }
    return type(record).inflate(record.deflate(), arrays or None)


def _chunks(array: Array) -> dict[str, Any]:
    return {chunk.object_id: type(chunk).inflate(chunk.deflate()) for chunk in (array.children or {}).values()}


def request(node: int = 3, *, wants_update: bool = True, server_round: int = 4) -> Message:
    arrays = wire.pack_arrays(LAYOUT.split(THETA))
    content = wire.pack_request(arrays, ConfigRecord(), server_round, wants_update=wants_update)
    message = Message(content, dst_node_id=node, message_type="train")
    give_id(message)
    return message


def block(*, weights: bool = False, clients: tuple[int, ...] = (2, 0, 5)) -> Block:
    generator = np.random.default_rng(0)
    count = len(clients)
    return Block(
        clients=clients,
        numbers={
            "client": np.array(clients, dtype=np.float64),
            "num-examples": np.arange(10.0, 10.0 + count),
            "loss": generator.random(count),
        },
        updates=generator.standard_normal((count, LAYOUT.size)).astype(np.float32),
        theta=THETA if weights else None,
        layout=LAYOUT if weights else None,
    )


def lazy(answer: Block, row: int) -> LazyReply:
    message = request(answer.clients[row] + 1)
    return LazyReply(answer.content, reply_to=message, block=answer, row=row)


def eager(answer: Block, row: int) -> Message:
    return Message(travelled(answer.content(row)), reply_to=request(answer.clients[row] + 1))


class TestRequests:
    @pytest.mark.parametrize("wants_update", [True, False])
    def test_a_request_arrives_as_it_was_sent(self, wants_update: bool) -> None:
        found = wire.unpack_request(travelled(request(wants_update=wants_update).content))
        assert found.server_round == 4
        assert found.wants_update is wants_update
        assert found.layout == LAYOUT
        assert found.theta.dtype == np.float32
        np.testing.assert_array_equal(found.theta, THETA)

    def test_the_callers_config_is_left_alone_and_its_keys_travel(self) -> None:
        config = ConfigRecord({"lr": 0.5})
        content = wire.pack_request(wire.pack_arrays({"w": THETA}), config, 2, wants_update=True)
        assert dict(config) == {"lr": 0.5}
        assert dict(next(iter(content.config_records.values()))) == {
            "lr": 0.5,
            "server-round": 2,
            "reply": "update",
        }

    def test_a_request_of_another_strategy_can_be_read(self) -> None:
        """Flower's strategies send one array record of any name, and a config that need not hold our keys."""
        content = RecordDict(
            {"model": wire.pack_arrays({"w": THETA}), "settings": ConfigRecord({"server-round": 7})}
        )
        found = wire.unpack_request(content)
        assert (found.server_round, found.wants_update, found.layout.names) == (7, False, ("w",))
        assert wire.unpack_request(RecordDict({"model": wire.pack_arrays({"w": THETA})})).server_round == 0

    @pytest.mark.parametrize("count", [0, 2])
    def test_a_request_holds_one_array_record(self, count: int) -> None:
        records = {f"arrays{i}": wire.pack_arrays({"w": THETA}) for i in range(count)}
        with pytest.raises(ValueError, match=f"one array record, got {count}"):
            wire.unpack_request(RecordDict(records))  # type: ignore[arg-type]


class TestLists:
    """What is one number per class, and the sums of a metric, travel as lists of numbers."""

    def block(self) -> Block:
        generator = np.random.default_rng(1)
        lists = {"test_class_accuracy": generator.random((3, 4)), "sums.cmi": generator.random((3, 40))}
        lists["test_class_accuracy"][:, 2] = np.nan
        return Block((2, 0, 5), {**block().numbers, **lists})

    def test_records_and_rows_of_a_block_are_read_alike(self) -> None:
        for row in range(3):
            by_row, by_record = wire.read(lazy(self.block(), row)), wire.read(eager(self.block(), row))
            assert by_row.client == by_record.client
            assert by_row.numbers == by_record.numbers
            assert list(by_row.vectors) == list(by_record.vectors) == ["test_class_accuracy", "sums.cmi"]
            for name, vector in by_row.vectors.items():
                assert by_record.vectors[name].dtype == vector.dtype == np.float64
                np.testing.assert_array_equal(by_record.vectors[name], vector)
                np.testing.assert_array_equal(vector, self.block().numbers[name][row])

    def test_they_are_ordinary_lists_of_a_record(self) -> None:
        record = self.block().content(1).metric_records["metrics"]
        assert isinstance(record["sums.cmi"], list)
        assert isinstance(record["loss"], float)
        assert record["client"] == 0


class TestReplies:
    @pytest.mark.parametrize("make", [lazy, eager])
    @pytest.mark.parametrize("weights", [False, True])
    def test_an_update_arrives(self, make: object, weights: bool) -> None:
        answer = block(weights=weights)
        for row, client in enumerate(answer.clients):
            reply = make(answer, row)  # type: ignore[operator]
            found = wire.read(reply)
            assert found.client == client
            assert found.error is None
            assert dict(found.numbers) == {name: column[row] for name, column in answer.numbers.items()}
            update = wire.read_update(reply, THETA, LAYOUT)
            assert answer.updates is not None
            np.testing.assert_allclose(update, answer.updates[row], atol=3e-7 if weights else 0, rtol=0)

    def test_local_weights_are_ordinary_named_arrays(self) -> None:
        answer = block(weights=True)
        content = travelled(answer.content(1))
        assert list(content.array_records) == ["arrays"]
        arrays = wire.unpack_arrays(content.array_records["arrays"])
        assert Layout.of(arrays) == LAYOUT
        assert answer.updates is not None
        np.testing.assert_array_equal(LAYOUT.join(arrays), THETA - answer.updates[1])

    def test_counts_are_whole_numbers(self) -> None:
        numbers = block().content(0).metric_records["metrics"]
        assert type(numbers["client"]) is int
        assert type(numbers["num-examples"]) is int
        assert type(numbers["loss"]) is float

    def test_an_evaluation_holds_no_arrays(self) -> None:
        answer = Block(
            (4,), {"client": np.array([4.0]), "num-examples": np.array([3.0]), "test_loss": np.array([0.5])}
        )
        assert not answer.content(0).array_records
        for reply in (lazy(answer, 0), eager(answer, 0)):
            assert wire.read(reply).numbers["test_loss"] == 0.5
            with pytest.raises(ValueError, match=r"no update|array record, got 0"):
                wire.read_update(reply, THETA, LAYOUT)

    def test_a_metric_that_is_nan_stays_nan(self) -> None:
        answer = Block((4,), {"client": np.array([4.0]), "test_loss": np.array([math.nan])})
        assert math.isnan(wire.read(eager(answer, 0)).numbers["test_loss"])

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"update": np.zeros(7)}, r"an update must have shape \[8\], got \[7\]"),
            ({"update": np.zeros(0)}, r"an update must have shape \[8\], got \[0\]"),
        ],
    )
    def test_an_update_of_another_length_is_refused(self, arrays: dict[str, np.ndarray], said: str) -> None:
        reply = Message(RecordDict({"update": wire.pack_arrays(arrays)}), reply_to=request())
        with pytest.raises(ValueError, match=said):
            wire.read_update(reply, THETA, LAYOUT)

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"body.weight": np.zeros((3, 2)), "body.bias": np.zeros(2)}, r"body.weight must have shape \[2, 3\]"),
            ({"body.weight": np.zeros((2, 3))}, r"missing \['body.bias'\]"),
            ({"0": np.zeros((2, 3)), "1": np.zeros(2)}, r"unexpected \['0', '1'\]"),
        ],
    )
    def test_weights_of_another_network_are_refused(self, arrays: dict[str, np.ndarray], said: str) -> None:
        reply = Message(RecordDict({"arrays": wire.pack_arrays(arrays)}), reply_to=request())
        with pytest.raises(ValueError, match=said):
            wire.read_update(reply, THETA, LAYOUT)

    def test_two_array_records_are_refused(self) -> None:
        content = RecordDict({"arrays": wire.pack_arrays({}), "more": wire.pack_arrays({})})
        with pytest.raises(ValueError, match="one array record, got 2"):
            wire.read_update(Message(content, reply_to=request()), THETA, LAYOUT)

    def test_an_error_names_the_node_it_came_from(self) -> None:
        failed = error_reply("out of memory", reply_to=request(node=6))
        assert wire.read(failed) == Answer(5, {}, "out of memory", node=6)
        silent = Message(Error(code=17), reply_to=request(node=6))
        assert wire.read(silent) == Answer(5, {}, "error code 17", node=6)

    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_a_client_number_that_is_none_falls_back_to_the_node(self, number: float) -> None:
        content = RecordDict({"metrics": MetricRecord({"client": number})})
        assert wire.read(Message(content, reply_to=request(node=6))).client == 5

    def test_a_reply_without_metrics_has_no_numbers(self) -> None:
        content = RecordDict({"arrays": ArrayRecord()})
        assert wire.read(Message(content, reply_to=request(node=6))) == Answer(5, {}, node=6)

    def test_a_node_of_another_grid_is_not_taken_for_a_client(self) -> None:
        failed = wire.read(error_reply("out of memory", reply_to=request(node=14847792575361210880)))
        assert failed.client == -1
        assert failed.label == "node 14847792575361210880"


class TestLazyReply:
    def test_it_is_an_ordinary_message(self) -> None:
        answer = block()
        reply = lazy(answer, 1)
        assert isinstance(reply, Message)
        assert reply.has_content()
        assert not reply.has_error()
        ordinary = Message(answer.content(1), reply_to=request(answer.clients[1] + 1))
        for name in ("src_node_id", "dst_node_id", "message_type", "run_id", "group_id"):
            assert getattr(reply.metadata, name) == getattr(ordinary.metadata, name), name
        assert reply.metadata.reply_to_message_id

    @pytest.mark.parametrize("weights", [False, True])
    def test_its_records_equal_the_ones_made_at_once(self, weights: bool) -> None:
        answer = block(weights=weights)
        content, expected = lazy(answer, 2).content, answer.content(2)
        assert content == expected
        assert content.object_id == expected.object_id

    def test_they_are_made_once_and_only_when_looked_at(self) -> None:
        made = []

        def make(row: int) -> RecordDict:
            made.append(1)
            return block().content(row)

        reply = LazyReply(make, reply_to=request(), block=block(), row=0)
        wire.read(reply)
        wire.stack_updates([reply], THETA, LAYOUT)
        assert made == []
        assert reply.content is reply.content
        assert made == [1]

    def test_content_that_was_set_is_kept(self) -> None:
        reply, other = lazy(block(), 0), RecordDict({"metrics": MetricRecord({"loss": 9.0})})
        reply.content = other
        assert reply.content is other

    def test_what_someone_put_in_its_content_is_what_is_read(self) -> None:
        """A wrapper that clips or adds noise to replies changes their content, and must be heeded."""
        other = block()
        assert other.updates is not None
        replaced = lazy(block(), 0)
        replaced.content = RecordDict(
            {
                "update": wire.pack_arrays({"update": 0.5 * other.updates[0]}),
                "metrics": MetricRecord({"loss": 9.0, "client": 2}),
            }
        )
        edited = lazy(block(), 0)
        edited.content["update"] = wire.pack_arrays({"update": 0.5 * other.updates[0]})
        for reply in (replaced, edited):
            np.testing.assert_array_equal(wire.read_update(reply, THETA, LAYOUT), 0.5 * other.updates[0])
            np.testing.assert_array_equal(wire.stack_updates([reply], THETA, LAYOUT)[0], 0.5 * other.updates[0])
        assert wire.read(replaced).numbers["loss"] == 9.0


class TestStackUpdates:
    @pytest.mark.parametrize("rows", [[0, 1, 2], [2, 1, 0], [0, 1], [1], [0, 0, 1]])
    @pytest.mark.parametrize("weights", [False, True])
    def test_the_rows_are_those_of_the_replies(self, rows: list[int], weights: bool) -> None:
        answer = block(weights=weights)
        for make in (lazy, eager):
            replies = [make(answer, row) for row in rows]
            expected = np.stack([wire.read_update(reply, THETA, LAYOUT) for reply in replies])
            np.testing.assert_array_equal(wire.stack_updates(replies, THETA, LAYOUT), expected)

    def test_a_whole_block_in_order_is_not_copied(self) -> None:
        answer = block()
        stacked = wire.stack_updates([lazy(answer, row) for row in range(3)], THETA, LAYOUT)
        assert stacked is answer.updates

    def test_blocks_and_ordinary_replies_mix(self) -> None:
        first, second = block(clients=(0, 1)), block(clients=(2, 3))
        replies = [lazy(second, 0), eager(first, 1), lazy(first, 0)]
        assert first.updates is not None
        assert second.updates is not None
        stacked = wire.stack_updates(replies, THETA, LAYOUT)
        np.testing.assert_array_equal(stacked, np.stack([second.updates[0], first.updates[1], first.updates[0]]))

    def test_two_blocks_of_the_same_clients_are_not_taken_for_one(self) -> None:
        first, second = block(clients=(0, 1)), block(clients=(0, 1))
        assert second.updates is not None
        second.updates[:] = 7.0
        stacked = wire.stack_updates([lazy(first, 0), lazy(second, 1)], THETA, LAYOUT)
        assert first.updates is not None
        np.testing.assert_array_equal(stacked, np.stack([first.updates[0], second.updates[1]]))


def test_what_a_client_keeps_comes_back() -> None:
    state = {"theta": THETA, "pairs": np.ones((2, 2, 8), np.float32)}
    found = wire.unpack_state(travelled(wire.pack_state(state)))
    assert set(found) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
    assert wire.unpack_state(wire.pack_state({})) == {}
    assert wire.unpack_state(RecordDict()) == {}


def test_a_parameter_that_is_a_single_number_keeps_its_shape() -> None:
    arrays = {"temperature": np.array(1.5, np.float32), "bias": np.zeros(2, np.float32)}
    assert Layout.of(wire.unpack_arrays(wire.pack_arrays(arrays))) == Layout.of(arrays)
