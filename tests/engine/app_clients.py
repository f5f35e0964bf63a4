"""A Flower app that writes down what it sees, and messages to its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.engine import flower, open_grid
from fedsim.engine.app_grid import AppGrid
from fedsim.engine.apps import FlowerApp, FlowerClients, find_app
from fedsim.engine.base import BlockGrid
from fedsim.settings import EngineSettings
from tests.engine.app_folders import write_app

BACKENDS = ["local", pytest.param("ray", marks=pytest.mark.slow)]


CLIENT = """
import os, time

def outer(message, context, call_next):
    message.content["config"]["trail"] = message.content["config"].get("trail", "") + "outer "
    reply = call_next(message, context)
    reply.content["answer"]["trail"] = reply.content["answer"]["trail"] + " outer"
    return reply

def inner(message, context, call_next):
    message.content["config"]["trail"] = message.content["config"].get("trail", "") + "inner "
    reply = call_next(message, context)
    reply.content["answer"]["trail"] = reply.content["answer"]["trail"] + " inner"
    return reply

def own(message, context, call_next):
    message.content["config"]["trail"] += "own "
    return call_next(message, context)

app = ClientApp(mods=[outer, inner])

@app.lifespan()
def lifespan(context):
    log = context.state.get("lifespan", ConfigRecord({"log": ""}))
    log["log"] = log["log"] + "("
    context.state["lifespan"] = log
    yield
    context.state["lifespan"]["log"] = context.state["lifespan"]["log"] + ")"

def answer(name, message, context):
    count = context.state.get("count", MetricRecord({"asked": 0}))
    count["asked"] += 1
    context.state["count"] = count
    config = message.content["config"]
    if config.get("say"):
        print(config["say"])
    if config.get("sleep"):
        time.sleep(config["sleep"])
    if config.get("victim") == context.node_id:
        raise LookupError("nobody home")
    m = message.metadata
    return Message(RecordDict({"answer": ConfigRecord({
        "function": name, "trail": config["trail"], "asked": count["asked"], "word": config["word"],
        "lifespan": context.state["lifespan"]["log"], "pid": os.getpid(), "cwd": os.getcwd(),
        "run": m.run_id, "id": m.message_id, "src": m.src_node_id, "dst": m.dst_node_id, "group": m.group_id,
        "ttl": m.ttl, "created": m.created_at, "type": m.message_type, "reply": m.reply_to_message_id,
        "delivered": m.delivered_at, "node": context.node_id, "context-run": context.run_id,
        "node-config": [f"{k}={v}" for k, v in context.node_config.items()],
        "run-config": [f"{k}={v!r}" for k, v in context.run_config.items()],
        "keys": list(message.content)})}), reply_to=message)

@app.train(mods=[own])
def train(message, context):
    return answer("train", message, context)

@app.train("foo")
def train_foo(message, context):
    return answer("train.foo", message, context)

@app.evaluate()
def evaluate(message, context):
    return answer("evaluate", message, context)

@app.query("bar")
def query_bar(message, context):
    return answer("query.bar", message, context)
"""


Open = Callable[..., AppGrid]


def opened(folder: Path, backend: str, num_nodes: int = 5, client: str = CLIENT) -> tuple[BlockGrid, FlowerApp]:
    app = find_app(write_app(folder, client=client, config="lr = 0.1\nname = 'x'"), ["lr=0.5"])
    return open_grid(
        FlowerClients(app, num_nodes), EngineSettings.model_validate({"backend": backend, "workers": 2})
    ), app


def told(inner: BlockGrid, app: FlowerApp) -> AppGrid:
    return AppGrid(inner, flower.described_run(app.name, app.version, app.overrides))


def content(word: str = "", **settings: Any) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"word": word, **settings})})


def messages(nodes: Sequence[int], kind: str = "train", word: str = "", **settings: Any) -> list[Message]:
    shared = content(word, **settings)
    return [Message(shared, dst_node_id=node, message_type=kind) for node in nodes]


def answers(replies: Sequence[Message]) -> list[dict[str, Any]]:
    return [dict(reply.content["answer"]) for reply in replies]


def asked(grid: AppGrid, nodes: Sequence[int], kind: str = "train") -> list[int]:
    return [answer["asked"] for answer in answers(grid.send_and_receive(messages(nodes, kind)))]
