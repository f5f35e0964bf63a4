"""Evaluation against one client at a time, and what it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clients import evaluation
from clients.evaluation import evaluate
from fedsim.datasets import Split
from fedsim.metrics import Metric, Task, given, measured
from fedsim.metrics.cmi import Cmi
from fedsim.metrics.groups import Groups
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork
from tests.clients.test_training import CPU, NUM_CLASSES, NUM_EXAMPLES, Net, plain, shard, start
from tests.metrics.samples import every_metric

SIZES = (4, 0, 7, 1, 0)


def run(data: Split, sizes: tuple[int, ...], theta: Tensor | None = None) -> dict[str, NDArray[np.float64]]:
    model = FlatNetwork(Net(torch.float64), CPU)
    return evaluate(model, start() if theta is None else theta, data, sizes, measured())


@pytest.mark.parametrize("chunk", [2048, 5])
def test_one_stream_equals_one_client_at_a_time(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", chunk)
    theta, data = start(), shard(count=sum(SIZES))
    found = run(data, SIZES, theta)
    assert {name: (column.dtype, column.shape) for name, column in found.items()} == dict.fromkeys(
        ("accuracy", "loss"), (np.float64, (5,))
    )
    network, first = plain(theta), 0
    for client, size in enumerate(SIZES):
        own = data[first : first + size]
        first += size
        if size == 0:
            assert math.isnan(found["accuracy"][client])
            assert math.isnan(found["loss"][client])
            continue
        logits = network(own.x).logits.detach()
        right = sum(int(row.argmax()) == int(target) for row, target in zip(logits, own.y, strict=True))
        assert found["accuracy"][client] == right / size
        assert found["loss"][client] == pytest.approx(float(functional.cross_entropy(logits, own.y)), rel=1e-6)


def test_the_mean_loss_is_the_float64_mean_of_float32_losses_to_the_bit() -> None:
    theta, data = start(), shard(count=sum(SIZES))
    with torch.no_grad():
        logits = plain(theta)(data.x).logits.float()
    losses = functional.cross_entropy(logits, data.y, reduction="none").double().numpy()
    assert run(data, SIZES, theta)["loss"][[0, 2, 3]].tolist() == [
        float(losses[a:b].sum()) / (b - a) for a, b in ((0, 4), (4, 11), (11, 12))
    ]


def test_nobody_has_examples() -> None:
    every = {name: metric for name, metric in every_metric().items() if not metric.needs_groups}
    found = evaluate(FlatNetwork(Net(torch.float64), CPU), start(), shard(count=0), [0, 0], every)
    for name, value in given(every.values()).items():
        assert np.isnan(found[name]).all()
        assert found[name].shape == ((2, NUM_CLASSES) if value.vector else (2,))
    assert not found["sums.cmi"].any()


def test_sums_are_returned_for_metrics_that_are_pooled() -> None:
    metrics: Mapping[str, Metric] = measured([Cmi()])
    found = evaluate(FlatNetwork(Net(torch.float64), CPU), start(), shard(), [NUM_EXAMPLES], metrics)
    assert {name for name in found if name.startswith("sums.")} == {"sums.cmi"}
    assert Cmi().values(found["sums.cmi"], Task(NUM_CLASSES))["cmi"] == found["cmi"]


def test_groups_of_the_examples_arrive() -> None:
    data = shard()
    by_group = Split(data.x, data.y, torch.arange(NUM_EXAMPLES) % 2)
    model = FlatNetwork(Net(torch.float64), CPU)
    found = evaluate(model, start(), by_group, [NUM_EXAMPLES], measured([Groups()]), num_groups=2)
    right = plain(start())(data.x).logits.argmax(1).eq(data.y).double()
    assert found["group_accuracy"][0].tolist() == [float(right[g::2].mean()) for g in (0, 1)]


def test_scores_are_judged_in_place_of_the_logits() -> None:
    data, model = shard(), FlatNetwork(Net(torch.float64), CPU)
    truth = functional.one_hot(data.y, NUM_CLASSES).float()

    def oracle(outputs: Outputs) -> Tensor:
        assert outputs.features.shape == (NUM_EXAMPLES, 6)
        return 100 * truth

    found = evaluate(model, start(), data, [NUM_EXAMPLES], measured(), scores=oracle)
    assert found["accuracy"].tolist() == [1.0]
    assert found["loss"][0] < 1e-6


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = nn.Linear(5, NUM_CLASSES), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Outputs:
        if len(x) == 3:
            raise RuntimeError("three is too few")
        return Outputs(self.layer(self.dropout(x)), x)


def test_dropout_rests_during_evaluation_and_works_after_it() -> None:
    model, data = FlatNetwork(Dropped(), CPU), shard(torch.float32)
    found = evaluate(model, model.theta, data, [NUM_EXAMPLES], measured())
    logits = model.network.layer(data.x)  # type: ignore[operator]
    assert found["loss"][0] == pytest.approx(float(functional.cross_entropy(logits, data.y).detach()), rel=1e-6)
    assert model.network.training
    with pytest.raises(RuntimeError, match="too few"):
        evaluate(model, model.theta, data[:3], [3], measured())
    assert model.network.training


def test_evaluation_leaves_no_gradient() -> None:
    model = FlatNetwork(Net(torch.float64), CPU)
    evaluate(model, start(), shard(), [NUM_EXAMPLES], measured())
    assert not model.grad.any()
