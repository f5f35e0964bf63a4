"""The Flower ClientApp: every client is a process of its own, which answers one message."""

from __future__ import annotations

from functools import lru_cache

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import LocalApp, alone
from fedsim.datasets import data_root
from fedsim.engine.desk import ArrayDesk
from fedsim.federation import Federation
from fedsim.scenario import Scenario, overrides_of
from fedsim.wire import LOSSES, pack_state, unpack_state

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client this node stands for."""
    return _answer("train", message, context)


@app.query(LOSSES.partition(".")[2])
def losses(message: Message, context: Context) -> Message:
    """Answer with the training loss of the client this node stands for."""
    return _answer(LOSSES, message, context)


@app.evaluate()
def evaluate_client(message: Message, context: Context) -> Message:
    """Evaluate on the client this node stands for."""
    return _answer("evaluate", message, context)


def _answer(kind: str, message: Message, context: Context) -> Message:
    local = _app_of(str(context.run_config["scenario"]), str(context.run_config["overrides"]))
    client = int(context.node_config["partition-id"])
    desk = ArrayDesk(1)
    block, kept = local.run(kind, message.content, [[client]], [unpack_state(context.state)], desk)
    block = desk.signed(block)
    if block.errors:
        raise RuntimeError(block.errors[0])
    if local.stateful and kind == "train":
        context.state = pack_state(kept[0])
    return Message(block.content(0), reply_to=message)


@lru_cache(maxsize=1)
def _app_of(path: str, overrides: str) -> LocalApp:
    """Return the application of a scenario, one per process."""
    scenario = Scenario.load(path, overrides_of(overrides))
    held_out = scenario.evaluation.validation
    federation = Federation.build(
        scenario.data, scenario.partition, scenario.seed, data_root(), validation=held_out
    )
    torch.set_num_threads(scenario.engine.threads_per_worker)
    return alone(scenario, federation)
