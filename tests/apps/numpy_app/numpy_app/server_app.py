"""The server: Flower's FedAvg, its replies sorted so that sums have one order."""

import hashlib
import json
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from numpy_app.task import initial_weights

app = ServerApp()


class Ordered(FedAvg):
    """FedAvg that adds up in the order of the partitions; Flower hands replies over in the order they come."""

    def aggregate_train(self, server_round, replies):
        """Aggregate sorted replies."""
        return super().aggregate_train(server_round, _sorted(replies))

    def aggregate_evaluate(self, server_round, replies):
        """Aggregate sorted replies."""
        return super().aggregate_evaluate(server_round, _sorted(replies))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a few rounds and leave what came out."""
    # All three: while nodes are still joining, Flower draws the least number that it may.
    result = Ordered(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4).start(
        grid,
        ArrayRecord(initial_weights()),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
    )
    weights = result.arrays.to_numpy_ndarrays()
    found = {
        "weights": hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest(),
        "train": {number: dict(record) for number, record in result.train_metrics_clientapp.items()},
        "evaluate": {number: dict(record) for number, record in result.evaluate_metrics_clientapp.items()},
    }
    Path(context.run_config["output"]).write_text(json.dumps(found, indent=2))
    last = result.evaluate_metrics_clientapp[context.run_config["num-server-rounds"]]
    print(f"accuracy {last['accuracy']:.4f}")


def _sorted(replies):
    kept = [reply for reply in replies if reply.has_content()]
    return sorted(kept, key=lambda reply: reply.content["metrics"]["partition-id"])
