"""The client: keeps a bias of its own and counts what it was asked."""

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from torch_app.task import accuracy, load_data, network, train


def counting(message, context, call_next):
    """Count all messages of this node, whatever their type, and say so in the reply."""
    seen = context.state.get("seen", MetricRecord({"messages": 0}))
    seen["messages"] += 1
    context.state["seen"] = seen
    reply = call_next(message, context)
    reply.content["trail"] = ConfigRecord({"mods": ["counting"], "messages": seen["messages"]})
    return reply


def rounding(message, context, call_next):
    """Round what goes up to half precision, inside of `counting`."""
    reply = call_next(message, context)
    arrays = reply.content["arrays"]
    for name, array in list(arrays.items()):
        arrays[name] = Array(array.numpy().astype("float16").astype("float32"))
    reply.content["metrics"]["rounded"] = 1
    return reply


app = ClientApp(mods=[counting])


@app.lifespan()
def lifespan(context: Context):
    """Note each entry in the state, as an app would open and close a file."""
    entries = context.state.get("lifespan", ConfigRecord({"entered": 0}))
    entries["entered"] += 1
    context.state["lifespan"] = entries
    yield


@app.train(mods=[rounding])
def train_fn(message: Message, context: Context) -> Message:
    """Train the shared weights and this node's bias."""
    bias = _bias(context)
    model = _model(message, context)
    images, labels = _data(context)
    config = message.content["config"]
    seed = 1000 * config["round"] + context.node_config["partition-id"]
    loss = train(model, bias, images, labels, context.run_config["model.lr"], seed, config["epochs"])
    context.state["personal"] = ArrayRecord({"bias": Array(bias.detach().numpy())})
    rounds = context.state.get("rounds", ConfigRecord({"trained": 0}))
    rounds["trained"] += 1
    context.state["rounds"] = rounds
    metrics = MetricRecord(
        {**_who(context), "num-examples": len(labels), "loss": loss, "rounds": rounds["trained"]}
    )
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate("personal")
def evaluate_personal(message: Message, context: Context) -> Message:
    """Evaluate the shared weights with this node's bias, and without one."""
    model = _model(message, context)
    images, labels = _data(context)
    values = {
        "with": accuracy(model, _bias(context), images, labels),
        "without": accuracy(model, torch.zeros(10), images, labels),
    }
    return Message(content=RecordDict({"metrics": MetricRecord({**_who(context), **values})}), reply_to=message)


@app.query()
def query_fn(message: Message, context: Context) -> Message:
    """Say who this node is, and what it received."""
    letter = message.metadata
    answer = ConfigRecord(
        {
            **context.node_config,
            "echo": message.content["config"]["word"],
            "group": letter.group_id,
            "type": letter.message_type,
            "for-me": letter.dst_node_id == context.node_id,
            "has-id": bool(letter.message_id),
            "ttl": round(letter.ttl),
            "entered": context.state["lifespan"]["entered"],
        }
    )
    metrics = MetricRecord({**_who(context), "num-examples": len(_data(context)[1])})
    return Message(content=RecordDict({"answer": answer, "metrics": metrics}), reply_to=message)


def _who(context):
    return {"partition-id": context.node_config["partition-id"]}


def _bias(context):
    bias = torch.zeros(10)
    if "personal" in context.state:
        bias = torch.tensor(context.state["personal"]["bias"].numpy())
    return bias.requires_grad_()


def _model(message, context):
    model = network(context.run_config["model.hidden"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def _data(context):
    return load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
