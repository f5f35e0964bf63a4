"""One flat vector for a network's parameters: what rules, steps and the wire work on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.models import Outputs


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the arrays that make up a flat vector, in order.

    Attributes:
        names: Parameter names.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(arrays: Mapping[str, NDArray[np.generic]]) -> Layout:
        """Return the layout of named arrays."""
        return Layout(tuple(arrays), tuple(tuple(array.shape) for array in arrays.values()))

    @property
    def size(self) -> int:
        """Number of parameters D."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def layers(self) -> tuple[int, ...]:
        """Number of parameters of each layer: the arrays of one module (a weight and its bias), in order."""
        modules = [name.rpartition(".")[0] or name for name in self.names]
        sizes = [prod(shape) for shape in self.shapes]
        pairs = groupby(zip(modules, sizes, strict=True), key=lambda pair: pair[0])
        return tuple(sum(size for _, size in group) for _, group in pairs)

    def join(self, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Return the arrays as one vector, [D] float32.

        Raises:
            ValueError: Names or shapes differ from the layout; says which.
        """
        found = Layout.of(arrays)
        if found != self:
            raise ValueError(self.difference(found))
        if not arrays:
            return np.zeros(0, np.float32)
        return np.concatenate([np.asarray(array, dtype=np.float32).reshape(-1) for array in arrays.values()])

    def split(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return views of the vector, one per array."""
        ends = np.cumsum([prod(shape) for shape in self.shapes])
        pieces = np.split(vector, ends[:-1])
        return {
            name: piece.reshape(shape) for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }

    def difference(self, other: Layout) -> str:
        """Return the first thing in which another layout differs, in words."""
        if other.names != self.names:
            missing = [name for name in self.names if name not in other.names]
            extra = [name for name in other.names if name not in self.names]
            return (
                f"arrays must be {', '.join(self.names)}; missing {missing or 'none'}, unexpected {extra or 'none'}"
            )
        pairs = zip(self.names, self.shapes, other.shapes, strict=True)
        name, wanted, got = next((n, w, g) for n, w, g in pairs if w != g)
        return f"{name} must have shape {list(wanted)}, got {list(got)}"


def tensor_of(array: NDArray[np.float32]) -> Tensor:
    """Return a tensor on an array's memory, which may be read-only: Ray shares its objects that way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


class FlatNetwork:
    """A network whose parameters and gradients are views of two flat vectors.

    An SGD step is then three operations on one vector, and an update is one subtraction.

    Attributes:
        network: The module.
        theta: Parameters, [D].
        grad: Gradients, [D], where backward() accumulates.
        layout: Names and shapes.
        half: Whether forward passes run in bfloat16 where PyTorch deems it safe; weights and outputs stay float32.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, half: bool = False) -> None:
        self.network = network.to(device)
        self.half = half
        named = dict(network.named_parameters())
        self.layout = Layout(tuple(named), tuple(tuple(p.shape) for p in named.values()))
        self.theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
        self.grad = torch.zeros_like(self.theta)
        sizes = [p.numel() for p in named.values()]
        slots = zip(named.values(), torch.split(self.theta, sizes), torch.split(self.grad, sizes), strict=True)
        for parameter, values, gradients in slots:
            parameter.data = values.view(parameter.shape)
            parameter.grad = gradients.view(parameter.shape)

    def outputs(self, x: Tensor) -> Outputs:
        """Return what the network says of inputs at its own weights."""
        return self._run(lambda: self.network(x))

    def outputs_at(self, parameters: Mapping[str, Tensor], x: Tensor) -> Outputs:
        """Return what the network says of inputs at other weights; pure, so that it may run under torch.func.

        Args:
            parameters: Name -> tensor, see `named`.
            x: Inputs, [B, ...].
        """
        return self._run(lambda: functional_call(self.network, dict(parameters), (x,)))

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of flat weights by parameter.

        Args:
            theta: [..., D]; leading dimensions stay in front of each parameter's own.
        """
        pieces = torch.split(theta, [prod(shape) for shape in self.layout.shapes], dim=-1)
        slots = zip(self.layout.names, self.layout.shapes, pieces, strict=True)
        return {name: piece.view(*theta.shape[:-1], *shape) for name, shape, piece in slots}

    def _run(self, forward: Callable[[], Outputs]) -> Outputs:
        if not self.half:
            return forward()
        with torch.autocast(self.theta.device.type, dtype=torch.bfloat16):
            outputs = forward()
        return Outputs(outputs.logits.float(), outputs.features.float())


def weights_file(path: str, model: FlatNetwork) -> Tensor:
    """Read a network's weights, [D].

    Args:
        path: A safetensors file, such as a run folder's model.safetensors.
        model: The network it must fit.

    Raises:
        ValueError: The file cannot be read or holds another network.
    """
    from safetensors.torch import load_file

    where = Path(path).expanduser().resolve()
    try:
        found = load_file(where)
    except Exception as error:
        raise ValueError(
            f"{where}: cannot be read ({error}); name a safetensors file, such as a run's model"
        ) from error
    known = [name for name in model.layout.names if name in found]
    names = (*known, *(name for name in found if name not in known))
    layout = Layout(names, tuple(tuple(found[name].shape) for name in names))
    if layout != model.layout:
        raise ValueError(f"{where}: is not of the scenario's model: {model.layout.difference(layout)}")
    return torch.cat([found[name].reshape(-1).to(model.theta) for name in model.layout.names])
