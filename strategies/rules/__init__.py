"""Aggregation rules: one file each, pure mathematics on what the clients of a round sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.plugins import Plugin
from strategies import kernel


class NonFiniteUpdateError(ValueError):
    """Some clients sent an update that is not finite.

    Attributes:
        rows: Which rows of the cohort.
    """

    def __init__(self, rows: tuple[int, ...], clients: tuple[int, ...]) -> None:
        self.rows = rows
        named = ", ".join(f"client {clients[row]}" for row in rows)
        super().__init__(f"non-finite update from {named}")


@dataclass(frozen=True)
class Cohort:
    """What the clients of one round sent, a row each, in request order.

    Attributes:
        updates: Pseudo-gradients theta_received - theta_local (or gradients), [K, D] float32 or float64.
        losses: Mean training loss at the received weights on the whole shard, [K] float64; zeros where the
            rule needs none and a client sent none.
        weights: Shares of the examples n_k / sum n, [K] float64, sum 1.
        clients: The clients' numbers, K of them.
        reports: Further numbers that a rule asked its clients for, each [K] float64.
        server_lr: Learning rate the server will step with.
    """

    updates: Tensor
    losses: Tensor
    weights: Tensor
    clients: tuple[int, ...]
    reports: Mapping[str, Tensor] = field(default_factory=dict)
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.updates.ndim != 2 or len(self.updates) == 0:
            raise ValueError(f"updates must be [K, D] with K > 0, got {tuple(self.updates.shape)}")
        if len(self.clients) != len(self.updates):
            raise ValueError(f"clients must be {len(self.updates)} numbers, got {len(self.clients)}")
        for name, column in {"losses": self.losses, "weights": self.weights, **self.reports}.items():
            if column.shape != (len(self.updates),):
                raise ValueError(f"{name} must be [{len(self.updates)}], got {tuple(column.shape)}")
            for row in torch.nonzero(~torch.isfinite(column) | (column < 0)).flatten().tolist():
                raise ValueError(
                    f"client {self.clients[row]}: {name} must be finite and not negative, got {float(column[row])}"
                )

    @staticmethod
    def of(updates: Tensor, losses: Tensor, weights: Tensor | None = None, **reports: Tensor) -> Cohort:
        """Build a cohort of clients 0..K-1 with equal weights unless told otherwise."""
        count = len(updates)
        shares = torch.full((count,), 1.0 / max(count, 1), dtype=torch.float64) if weights is None else weights
        return Cohort(updates, losses.double(), shares.double(), tuple(range(count)), reports)

    def gram(self) -> Tensor:
        """Return the inner products of the updates, [K, K] float64 on the CPU.

        Raises:
            NonFiniteUpdateError: Names the clients.
        """
        product = kernel.gram(self.updates).cpu()
        self._refuse(~torch.isfinite(product.diagonal()))
        return product

    def combine(self, weights: Tensor) -> Tensor:
        """Return weights @ updates, [D], accumulated in float64.

        Raises:
            NonFiniteUpdateError: Names the clients.
        """
        vector = kernel.combine(weights, self.updates)
        # Looking at D sums first keeps the common case free of a pass over the K x D updates.
        if not bool(torch.isfinite(vector).all()):
            self._refuse(~torch.isfinite(self.updates).all(dim=1))
            raise ValueError("the weighted sum of finite updates overflows; its weights are too large")
        return vector

    def _refuse(self, bad: Tensor) -> None:
        if bool(bad.any()):
            raise NonFiniteUpdateError(tuple(torch.nonzero(bad).flatten().tolist()), self.clients)


@dataclass(frozen=True)
class Direction:
    """What the server steps along: theta <- theta - server_lr * vector.

    Attributes:
        vector: [D], the dtype of the updates.
        weights: Factor of each client's update in `vector`, [K] float64, or None if it is no weighted sum.
        info: Numbers and words about this round for the run record.
    """

    vector: Tensor
    weights: Tensor | None = None
    info: Mapping[str, float | str] = field(default_factory=dict)


class AnyRule(Plugin, ABC):
    """What every rule has, with memory or without.

    Attributes:
        needs: Reports the clients must send beside their number of examples.
        wants: Reports a rule uses where every client sends them.
        inherits: Options taken from elsewhere in the scenario when not given ("client_lr": "client.lr").
    """

    noun: ClassVar[str] = "rule"
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    wants: ClassVar[tuple[str, ...]] = ()
    inherits: ClassVar[Mapping[str, str]] = {}

    @property
    def default_server_lr(self) -> float:
        """Server learning rate when the scenario names none."""
        return 1.0

    def conflicts(self, local_epochs: int) -> list[str]:  # noqa: ARG002
        """Return what in the options does not go with the clients' training, each "option: problem"."""
        return []


class Rule(AnyRule):
    """A rule whose direction depends on this round alone."""

    @abstractmethod
    def direction(self, cohort: Cohort) -> Direction:
        """Return the direction of this round."""


class MemoryRule(AnyRule):
    """A rule with memory, passed in and handed back; it is plain data that a checkpoint can hold."""

    @abstractmethod
    def initial_memory(self) -> dict[str, Any]:
        """Return the memory before the first round."""

    @abstractmethod
    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return the direction of this round and the memory for the next."""
