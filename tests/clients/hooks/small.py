"""Small batches, slow formulas and a recording of local training, for the tests of hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clients.hooks import Draws, Hook, Memory, Shapes, Step
from clients.objective import Batch, Objective
from clients.training import Fit, shapes_of
from fedsim import plugins
from fedsim.datasets import Split
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from tests.clients.one import fit_one
from tests.clients.test_training import CPU, NUM_CLASSES, Net, shard, start, stream

NUM_FEATURES = 6
"""Width of the hidden layer of `Net`."""


def hook_of(name: str, **options: Any) -> Hook:
    return plugins.find("clients.hooks", name, Hook)(**options)  # type: ignore[type-abstract]


def shapes(**changes: Any) -> Shapes:
    return Shapes(**{"num_classes": NUM_CLASSES, "num_features": NUM_FEATURES, "dtype": torch.float64, **changes})


def said(
    count: int = 9, seed: int = 0, scale: float = 2.0, classes: Sequence[int] | None = None
) -> tuple[Outputs, Tensor]:
    """Outputs and targets of a batch; every class occurs unless `classes` says which do."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, NUM_CLASSES, generator=generator, dtype=torch.float64)
    features = torch.randn(count, NUM_FEATURES, generator=generator, dtype=torch.float64)
    known = torch.tensor(range(NUM_CLASSES) if classes is None else classes)
    return Outputs(logits, features), known[torch.arange(count) % len(known)]


def step(
    memory: Memory,
    count: int,
    mask: Tensor | None = None,
    draws: Draws | None = None,
    teacher: Outputs | None = None,
) -> Step:
    full = torch.ones(count, dtype=torch.float64) if mask is None else mask
    return Step(memory, full, draws or Draws(), teacher)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two distributions, term by term."""
    total = p.new_zeros(())
    for j in range(len(p)):
        total = total + p[j] * (p[j].log() - q[j].log())
    return total


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """H(p, q), term by term."""
    total = p.new_zeros(())
    for j in range(len(p)):
        total = total - p[j] * q[j].log()
    return total


def means_by_class(rows: Tensor, targets: Tensor, otherwise: float) -> Tensor:
    """The mean row of each class, example by example; a constant for classes without examples."""
    found = torch.full((NUM_CLASSES, rows.shape[1]), otherwise, dtype=rows.dtype)
    for c in range(NUM_CLASSES):
        mine = [rows[i] for i in range(len(targets)) if int(targets[i]) == c]
        if mine:
            found[c] = sum(mine[1:], mine[0]) / len(mine)
    return found


def model() -> FlatNetwork:
    return FlatNetwork(Net(torch.float64), CPU)


def outputs_at(theta: Tensor, x: Tensor) -> Outputs:
    network = model()
    network.theta.copy_(theta)
    with torch.no_grad():
        return network.outputs(x)


def gradient_of(theta: Tensor, data: Split, loss: Callable[[Outputs, Tensor], Tensor]) -> Tensor:
    """The gradient of any loss of a batch, by autograd."""
    network = Net(theta.dtype)
    torch.nn.utils.vector_to_parameters(theta.clone(), network.parameters())
    value = loss(network(data.x), data.y)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(network.parameters()))])


def plain_loss(outputs: Outputs, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits, targets)


def trained(
    hooks: Mapping[str, Hook] | Hook | None = None,
    theta: Tensor | None = None,
    data: Split | None = None,
    state: Mapping[str, Tensor] | None = None,
    lr: float = 0.1,
    files: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Fit:
    """Train one client on 23 examples (or on `data`) in float64."""
    hooks = {hooks.plugin_name: hooks} if isinstance(hooks, Hook) else dict(hooks or {})
    data = shard() if data is None else data
    network = model()
    options = ClientSettings(**{"batch_size": 4, **settings})
    objective = Objective(hooks, shapes_of(network, data.x[:1], options.batch_size))
    objective.files = dict(files or {})
    theta = start() if theta is None else theta
    return fit_one(network, theta, data, options, lr, stream(), state=state, objective=objective)


def full_batch(hook: Hook, **options: Any) -> Tensor:
    """The gradient of one step over the whole shard, from the update it gives."""
    return trained(hook, batch_size=len(shard()), **options).update / 0.1


@dataclass
class Recorder:
    """What a hook's memory was before each step, and the batch of the step."""

    memories: list[dict[str, Tensor]] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    def clear(self) -> None:
        for kept in (self.memories, self.outputs, self.batches):
            kept.clear()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records every step of training with a single hook."""
    found, update = Recorder(), Objective.update

    def record(self: Objective, memories: Any, outputs: Outputs, batch: Batch) -> Any:
        (memory,) = memories.values()
        found.memories.append({key: value.clone() for key, value in memory.items()})
        found.outputs.append(Outputs(outputs.logits.detach().clone(), outputs.features.detach().clone()))
        found.batches.append(batch)
        return update(self, memories, outputs, batch)

    monkeypatch.setattr(Objective, "update", record)
    return found


STEPS_AN_EPOCH = math.ceil(23 / 4)
"""Of `trained` with the usual batch size."""
