"""A step of a block without torch.func's own overhead: its operations are written down once and then replayed.

Mapping and differentiating a function again in every step takes as long as a small network's arithmetic. The
recording is used only where it gave the same bits as the function, so that when it begins to be used changes no
result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedsim.parameters import FlatNetwork

PAYS_AFTER = 50
"""Steps of one shape before they are recorded: recording takes as long as some hundred steps save."""

MOST = 64
"""Recordings kept: one for each number of clients in a block that shards of different sizes lead to."""

Named = dict[str, Tensor]
Step = Callable[[Named, Tensor, Tensor, Tensor, Tensor], Named]


class Recorder:
    """The recordings of one network's steps, by the shape of the step."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], int] = {}
        self._recorded: dict[tuple[Any, ...], Any] = {}

    def run(self, step: Step, weights: Named, x: Tensor, y: Tensor, mask: Tensor, sizes: Tensor) -> Named:
        """Return what the step returns: the gradient by parameter, [K, ...].

        Args:
            step: A pure function of its arguments; the same for every call of one recorder.
            weights: By parameter, [K, ...].
            x: [K, B, ...].
            y: [K, B].
            mask: [K, B].
            sizes: [K].
        """
        if x.device.type != "cpu":
            return step(weights, x, y, mask, sizes)
        shape = (*x.shape, x.dtype, next(iter(weights.values())).dtype)
        recorded = self._recorded.get(shape)
        if recorded is not None:
            found: Named = recorded(weights, x, y, mask, sizes)
            return found
        result = step(weights, x, y, mask, sizes)
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._seen[shape] == PAYS_AFTER and len(self._recorded) < MOST:
            recorded = self._record(step, weights, x, y, mask, sizes)
            if recorded is not None and _same(recorded(weights, x, y, mask, sizes), result):
                self._recorded[shape] = recorded
        return result

    @staticmethod
    def _record(step: Step, *given: Any) -> Any:
        """Return a recording, or None where PyTorch cannot make one."""
        try:
            from torch.fx.experimental.proxy_tensor import make_fx

            def plain(weights: Named, x: Tensor, y: Tensor, mask: Tensor, sizes: Tensor) -> Named:
                return step(weights, x, y, mask, sizes)  # PyTorch asks a function for its number of arguments

            return make_fx(plain)(*given)
        except Exception:  # experimental in PyTorch; a step that is not recorded is only slower
            return None


_RECORDERS: WeakKeyDictionary[FlatNetwork, Recorder] = WeakKeyDictionary()


def recorder_of(model: FlatNetwork) -> Recorder:
    """Return the recorder of a network, which lives as long as it does."""
    return _RECORDERS.setdefault(model, Recorder())


def _same(one: Named, other: Named) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
