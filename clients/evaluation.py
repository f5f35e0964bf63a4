"""Evaluation: one model on the test shards of many clients; PyTorch only, like the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.datasets import Split
from fedsim.metrics import SUMS, Metric, Predictions
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork

CHUNK = 2048
"""Examples per forward pass; fixed, because the last bits of a matrix product depend on its number of rows."""

Scores = Callable[[Outputs], Tensor]
"""Turns what a model returns into the scores, [B, C], that are judged in place of its logits."""


def evaluate(
    model: FlatNetwork,
    theta: Tensor,
    test: Split,
    sizes: Sequence[int],
    metrics: Mapping[str, Metric],
    scores: Scores | None = None,
    num_groups: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Evaluate one model on the test shards of several clients in one stream.

    The network runs in evaluation mode (no dropout) and is left in training mode. Metrics are computed on the CPU,
    so that their sums have one order on every device.

    Args:
        model: Resident network; its parameters are overwritten.
        theta: Weights, [D].
        test: The clients' test shards one after the other, on the model's device.
        sizes: Examples of each client, K of them, summing to len(test).
        metrics: Name -> metric.
        scores: What to judge in place of the logits, which are what None judges.
        num_groups: Groups that test.groups counts, 0 without.

    Returns:
        Everything the metrics give, name -> [K] or [K, V], NaN for a client without examples; and under
        "sums.<name>" the sums [K, S] of those that are pooled.
    """
    predictions = Predictions(
        logits=_logits(model, theta, test, scores),
        targets=test.y.cpu(),
        owners=np.repeat(np.arange(len(sizes)), np.asarray(sizes, np.int64)),
        num_clients=len(sizes),
        groups=None if test.groups is None else test.groups.cpu().numpy(),
        num_groups=num_groups,
    )
    found: dict[str, NDArray[np.float64]] = {}
    for name, metric in metrics.items():
        sums = metric.sums(predictions)
        found |= metric.values(sums, predictions.task)
        if metric.pooled:
            found[f"{SUMS}{name}"] = sums
    return found


def _logits(model: FlatNetwork, theta: Tensor, test: Split, scores: Scores | None) -> Tensor:
    """Return the logits of all examples, [N, C] float32 on the CPU."""
    if theta is not model.theta:
        model.theta.copy_(theta)
    parts: list[Tensor] = []
    model.network.eval()
    try:
        with torch.inference_mode():
            # At least one pass: without examples, an empty one says how many classes there are.
            for start in range(0, max(1, len(test)), CHUNK):
                outputs = model.outputs(test.x[start : start + CHUNK])
                parts.append((outputs.logits if scores is None else scores(outputs)).float())
            return torch.cat(parts).cpu()
    finally:
        model.network.train()
