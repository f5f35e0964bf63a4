"""The client: trains and evaluates logistic regression."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from numpy_app.task import load_data, loss_and_scores, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train on the node's own images."""
    (images, labels), _ = _data(context)
    weights = message.content["arrays"].to_numpy_ndarrays()
    loss, _ = loss_and_scores(weights, images, labels)
    steps, lr = context.run_config["local-steps"], message.content["config"]["lr"]
    weights = train(weights, images, labels, steps, lr)
    metrics = {
        "num-examples": len(labels),
        "loss": loss,
        "partition-id": context.node_config["partition-id"],
    }
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Evaluate on the node's own test images."""
    _, (images, labels) = _data(context)
    weights = message.content["arrays"].to_numpy_ndarrays()
    loss, scores = loss_and_scores(weights, images, labels)
    metrics = {
        "num-examples": len(labels),
        "loss": loss,
        "accuracy": float((scores.argmax(axis=1) == labels).mean()),
        "partition-id": context.node_config["partition-id"],
    }
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _data(context):
    return load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
