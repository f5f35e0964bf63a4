"""One client after the other, or a block at once: what is possible for a network, what is faster, how many fit.

Decided before a run from the network, the settings and the kind of device alone, never from a stopwatch: the two
ways agree to rounding but not to the bit, and a choice that depended on what else the machine was doing would make
results depend on it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from fedsim.parameters import FlatNetwork

if TYPE_CHECKING:
    from fedsim.settings import ClientSettings

Cohort = Literal["each", "stacked"]

CACHED = 2**21
"""Bytes of a block's weights on a CPU, about what stays in a core's cache from step to step."""

MOST_ON_CPU = 64
MOST_ON_GPU = 1024

WORTH_BLOCKS = 32
"""Fewest clients a round for which a CPU trains in blocks: fewer would leave other workers nothing to do."""

LEAST_BLOCKS = 2
"""Blocks that a CPU's clients are cut into at least, for the same reason."""

SHARE_OF_GPU = 0.5
"""Of a worker's share of a GPU's memory that a block may take; the rest is data, evaluation and fragmentation."""

AGREEMENT = 1e-3
"""Largest relative difference of the two ways' gradients in the trial, in float32."""


@dataclass(frozen=True)
class Load:
    """What a client of a block takes memory for, beside its weights and one step on a batch.

    Attributes:
        share: Of the device that the worker has.
        pass_examples: Examples in a pass with gradient over the shard, 0 without one.
        per_example: Examples whose gradients exist at once, one by one (DP-SGD).
        hooked: Whether hooks add to the graph of a step.
    """

    share: float = 1.0
    pass_examples: int = 0
    per_example: int = 0
    hooked: bool = False


def misfit(model: FlatNetwork, x: Tensor, y: Tensor) -> str | None:
    """Return why clients with this network cannot be trained in a block with the same result, or None.

    Known layers are looked up; what a network really does is tried, on two clients with different weights.

    Args:
        model: The network.
        x: A few examples, [B, ...].
        y: Their classes, [B].
    """
    for path, layer in model.network.named_modules():
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            return f"layer {path} ({type(layer).__name__}) draws random numbers, which a block cannot do per client"
        if isinstance(layer, nn.RNNBase):
            return f"layer {path} ({type(layer).__name__}) runs in code that torch.func cannot map over clients"
    for name, buffer in model.network.named_buffers():
        if buffer.is_floating_point():
            return f"buffer {name} is part of the network but no parameter; a block would share it among clients"
    theta = torch.stack([model.theta, 0.9 * model.theta])

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return cross_entropy(model.outputs_at(parameters, x).logits, y)

    model.network.train()
    with _entered(model.network) as inside:
        try:
            stacked = vmap(grad(loss), randomness="error")(model.named(theta))
            together = torch.cat([stacked[name].flatten(1) for name in model.layout.names], dim=1)
        except Exception as error:  # a network may do anything, and torch.func raises many kinds
            where = inside[-1] if inside else "it"
            return f"torch.func cannot map {where} over clients: {first_sentence(error)}"
    for row in range(2):
        found = grad(loss)(model.named(theta[row]))
        alone = torch.cat([found[name].flatten() for name in model.layout.names])
        apart = float((together[row] - alone).norm() / alone.norm().clamp(min=1e-12))
        if not apart <= (AGREEMENT if not model.half else 0.1):
            return f"its gradient in a block differs from that of a client alone by {apart:.1e} of its length"
    return None


def first_sentence(error: Exception) -> str:
    """Return what an error begins with; PyTorch's go on about its issue tracker."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if "data-dependent control flow" in said:
        return "it calls .item() or branches on data"
    return said.partition(". ")[0]


@contextmanager
def _entered(network: nn.Module) -> Iterator[list[str]]:
    """Follow which layers a forward pass is in, outermost first; after an error, where it was raised."""
    inside: list[str] = []

    def entering(label: str) -> Callable[[nn.Module, Any], None]:
        return lambda *_: inside.append(label)

    def leaving(*_: object) -> None:
        inside.pop()

    handles = []
    for path, layer in network.named_modules():
        label = f"layer {path} ({type(layer).__name__})" if path else "the network"
        handles += [layer.register_forward_pre_hook(entering(label)), layer.register_forward_hook(leaving)]
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def choose(
    model: FlatNetwork, settings: ClientSettings, x: Tensor, y: Tensor, num_clients: int, load: Load = Load()
) -> tuple[Cohort, int, str | None]:
    """Return how to train, the block size, and why not in a block where that is impossible.

    Args:
        model: The network, on the device that trains.
        settings: What the scenario asks for.
        x: A batch of examples on the same device.
        y: Their classes.
        num_clients: Clients that train in a round.
        load: What else takes memory.
    """
    size = settings.block_size or block_size(model, x, num_clients, load)
    if settings.cohort == "each":
        return "each", size, None
    reason = misfit(model, x[:4], y[:4])
    if reason is not None:
        return "each", size, reason
    if settings.cohort == "stacked":
        return "stacked", size, None
    return ("stacked" if pays(model, size, num_clients) else "each"), size, None


def pays(model: FlatNetwork, size: int, num_clients: int) -> bool:
    """Say whether blocks are faster than a loop.

    On a GPU a loop is bound by the launching of kernels, and a block always pays. On a CPU it saves the overhead of
    PyTorch's calls, which matters for small dense networks only: convolutions of a block become grouped ones, which
    are slower, and weights that do not fit into the cache are read twice (benchmarks/gpu.py measures both). Workers
    share blocks rather than clients, so there have to be clients enough for several blocks: how many workers there
    are must not decide, because results would depend on it.
    """
    if model.theta.device.type != "cpu":
        return size > 1
    convolves = any(isinstance(layer, _ConvNd) for layer in model.network.modules())
    return not convolves and size >= 8 and num_clients >= WORTH_BLOCKS


def block_size(model: FlatNetwork, x: Tensor, num_clients: int, load: Load = Load()) -> int:
    """Return how many clients to train at once.

    Args:
        model: The network, on the device that trains.
        x: A batch of inputs, [B, ...].
        num_clients: Clients that train in a round.
        load: What else takes memory.
    """
    weights = model.theta.numel() * model.theta.element_size()
    if model.theta.device.type == "cpu":
        return max(1, min(MOST_ON_CPU, CACHED // max(weights, 1), -(-num_clients // LEAST_BLOCKS)))
    _, total = torch.cuda.mem_get_info(model.theta.device)
    # Weights, their gradient twice (as it comes and flat), momentum and a shift; a batch and what backward needs.
    batch: float = (saved_bytes(model, x) + x.numel() * x.element_size()) * (2 if load.hooked else 1)
    batch *= max(1.0, load.pass_examples / len(x))
    each = (5 + load.per_example) * weights + batch
    return max(1, min(MOST_ON_GPU, num_clients, math.floor(load.share * SHARE_OF_GPU * total / each)))


def saved_bytes(model: FlatNetwork, x: Tensor) -> int:
    """Return the bytes that a forward pass over a batch keeps for the backward pass."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.outputs(x)
    return sum(seen.values())
