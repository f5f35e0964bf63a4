"""The server: asks who is there, then pushes and pulls messages itself, each node another content."""

import hashlib
import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from torch_app.task import network

app = ServerApp()


@app.lifespan()
def lifespan(context: Context):
    """Leave a note in the state."""
    context.state["note"] = ConfigRecord({"open": True})
    yield
    print("closed")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a few rounds and leave what came out."""
    assert context.state["note"]["open"]
    found = {"replies": []}
    while len(nodes := list(grid.get_node_ids())) < context.run_config["num-nodes"]:
        time.sleep(0.1)
    who = {}
    for word in ("one", "two"):  # not both at once: a node that is asked twice at a time may count only once
        for reply in _ask(grid, [_message(node, MessageType.QUERY, word=word) for node in nodes], found):
            who[reply.metadata.src_node_id] = reply.content["answer"]["partition-id"]
    nodes.sort(key=who.get)

    weights = network(context.run_config["model.hidden"]).state_dict()
    for number in range(1, context.run_config["num-server-rounds"] + 1):
        arrays = ArrayRecord(weights)
        chosen = nodes if number % 2 else nodes[::2]
        messages = [
            _message(node, MessageType.TRAIN, arrays, number, round=number, epochs=1 + who[node] % 2)
            for node in chosen
        ]
        replies = _ask(grid, messages, found)
        total = sum(reply.content["metrics"]["num-examples"] for reply in replies)
        parts = [
            (reply.content["metrics"]["num-examples"] / total, reply.content["arrays"].to_torch_state_dict())
            for reply in replies
        ]
        weights = {name: sum(share * part[name] for share, part in parts) for name in weights}
        shared = RecordDict({"arrays": ArrayRecord(weights)})
        evaluations = [
            Message(content=shared, dst_node_id=node, message_type="evaluate.personal", group_id=str(number))
            for node in nodes
        ]
        replies = _ask(grid, evaluations, found)
        accuracies = [reply.content["metrics"]["with"] for reply in replies]
        print(f"round {number}: accuracy {sum(accuracies) / len(accuracies):.4f}")

    found["weights"] = hashlib.sha256(b"".join(part.numpy().tobytes() for part in weights.values())).hexdigest()
    Path(context.run_config["output"]).write_text(json.dumps(found, indent=2))


def _message(node, kind, arrays=None, number=0, **config):
    content = RecordDict({"config": ConfigRecord(config)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content=content, dst_node_id=node, message_type=kind, group_id=str(number), ttl=600.0)


def _ask(grid, messages, found):
    """Push messages, pull until all are answered, and return the replies by partition."""
    left = set(grid.push_messages(messages))
    replies = []
    while left:
        came = list(grid.pull_messages(left))
        left -= {reply.metadata.reply_to_message_id for reply in came}
        replies += came
        if left:
            time.sleep(0.02)
    failed = [reply.error.reason for reply in replies if reply.has_error()]
    if failed:
        raise RuntimeError(failed[0])
    replies.sort(key=lambda reply: reply.content["metrics"]["partition-id"])
    for reply in replies:
        metrics, answer = reply.content["metrics"], reply.content.get("answer")
        trail = reply.content["trail"]
        found["replies"].append(
            {
                "type": reply.metadata.message_type,
                "group": reply.metadata.group_id,
                "metrics": dict(metrics),
                "answer": None if answer is None else dict(answer),
                "mods": list(trail["mods"]),
                "messages": trail["messages"],
            }
        )
    return replies
