"""The client: raises, hangs or answers nonsense on the first partitions."""

import os
import sys
import time

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Count, then do what the configuration says."""
    count = context.state.get("count", MetricRecord({"trained": 0}))
    count["trained"] += 1
    context.state["count"] = count
    if context.node_config["partition-id"] < context.run_config["victims"]:
        wrong = _wrong(context.run_config["trouble"], message, context)
        if wrong is not None:
            return wrong[0]
    metrics = MetricRecord({"partition-id": context.node_config["partition-id"], "trained": count["trained"]})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def _wrong(trouble, message, context):
    if trouble == "client-raises":
        broken_step(context.run_config["scale"])
    elif trouble == "client-hangs":
        time.sleep(context.run_config["seconds"])
    elif trouble == "client-exits":
        sys.exit(3)
    elif trouble == "client-dies":
        os._exit(3)
    elif trouble == "no-message":
        return ("not a message",)
    elif trouble == "other-message":
        return (Message(RecordDict(), dst_node_id=message.metadata.dst_node_id, message_type="train"),)
    elif trouble == "own-error":
        return (Message(Error(code=6, reason="not today"), reply_to=message),)
    elif trouble == "changes-config":
        context.run_config["scale"] = 2
    elif trouble == "changes-request":
        message.content["config"]["word"] = "changed"
        message.content["more"] = ConfigRecord({"a": 1})
    return None


def broken_step(scale):
    """Divide by nothing."""
    return scale / (scale - scale)
