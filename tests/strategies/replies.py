"""A model of four weights, clients that answer for it well or badly, and a round of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.engine.flower import error_reply, give_id
from fedsim.engine.local import LocalGrid
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from tests.engine.fakes import FakeApp

WEIGHTS = {"w": np.array([1.0, 2.0, 3.0], np.float32), "b": np.array([4.0], np.float32)}


NUM_PARAMETERS = 4


def grid_of(num_clients: int = 5) -> LocalGrid:
    return LocalGrid(FakeApp(num_clients))


def numbers(client: int, **others: float) -> dict[str, float]:
    return {"client": client, "num-examples": 10 * (client + 1), "loss": 1.0 + client, "rate": 0.5, **others}


def answer(message: Message, update: Any = None, metrics: dict[str, float] | None = None) -> Message:
    """What a good client sends, or something else."""
    client = message.metadata.dst_node_id - 1
    vector = np.full(NUM_PARAMETERS, client + 1.0, np.float32) if update is None else np.asarray(update, np.float32)
    found = numbers(client) if metrics is None else metrics
    records = {"update": pack_arrays({"update": vector}), "metrics": MetricRecord(found)}  # type: ignore[arg-type]
    give_id(message)
    return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]


def round_of(
    strategy: RuleStrategy, bad: dict[int, Any] | None = None, server_round: int = 1, num_clients: int = 5
) -> ArrayRecord:
    """One round of training in which the clients in `bad` send what that function makes of the message."""
    messages = list(
        strategy.configure_train(server_round, pack_arrays(WEIGHTS), ConfigRecord(), grid_of(num_clients))
    )
    replies = []
    for message in messages:
        give_id(message)
        make = (bad or {}).get(message.metadata.dst_node_id - 1, answer)
        replies.append(make(message))
    arrays, metrics = strategy.aggregate_train(server_round, replies)
    assert arrays is not None
    assert isinstance(metrics, MetricRecord)
    return arrays


def flat(arrays: ArrayRecord) -> np.ndarray:
    return np.concatenate([array.reshape(-1) for array in unpack_arrays(arrays).values()])


START = flat(pack_arrays(WEIGHTS))


def with_metrics(**changes: float | None) -> Any:
    def make(message: Message) -> Message:
        found = {**numbers(message.metadata.dst_node_id - 1), **changes}
        return answer(message, metrics={name: value for name, value in found.items() if value is not None})

    return make


def with_records(make: Any) -> Any:
    def reply(message: Message) -> Message:
        metrics = MetricRecord(numbers(message.metadata.dst_node_id - 1))  # type: ignore[arg-type]
        return Message(RecordDict({"metrics": metrics, **make()}), reply_to=message)

    return reply


BAD = {
    "an update with NaN": (lambda m: answer(m, [1, math.nan, 1, 1]), "its update is not finite"),
    "an update with inf": (lambda m: answer(m, [1, 1, math.inf, 1]), "its update is not finite"),
    "an update of another length": (lambda m: answer(m, [1, 1, 1]), r"must have shape \[4\], got \[3\]"),
    "weights of another network": (
        with_records(lambda: {"arrays": pack_arrays({"w": np.zeros(3), "c": np.zeros(1)})}),
        r"missing \['b'\], unexpected \['c'\]",
    ),
    "weights of another shape": (
        with_records(lambda: {"arrays": pack_arrays({"w": np.zeros(2), "b": np.zeros(1)})}),
        r"w must have shape \[3\], got \[2\]",
    ),
    "no arrays": (with_records(dict), "one array record, got 0"),
    "no loss": (with_metrics(loss=None), 'it sent no "loss", which .* needs; it sent client, num-examples, rate'),
    "no size": (with_metrics(**{"num-examples": None}), 'it sent no "num-examples"'),
    "a negative loss": (with_metrics(loss=-0.5), "its loss must be finite and not negative, got -0.5"),
    "a loss that is NaN": (with_metrics(loss=math.nan), "its loss must be finite"),
    "a loss that is infinite": (with_metrics(loss=math.inf), "its loss must be finite"),
    "a negative size": (with_metrics(**{"num-examples": -3}), "its num-examples must be finite and not negative"),
    "an error": (lambda m: error_reply("RuntimeError: out of memory", reply_to=m), "RuntimeError: out of memory"),
}
