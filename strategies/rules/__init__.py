"""Aggregation rules: one file each, pure mathematics on what the clients of a round sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from clients.methods import LocalMethod
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
        server_round: Round, from 1.
        num_clients: Clients of the federation N, sampled or not; 0 means as many as the cohort.
        layers: Parameters of each layer, in order, summing to D; () means one layer.
    """

    updates: Tensor
    losses: Tensor
    weights: Tensor
    clients: tuple[int, ...]
    reports: Mapping[str, Tensor] = field(default_factory=dict)
    server_lr: float = 1.0
    server_round: int = 1
    num_clients: int = 0
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.updates.ndim != 2 or len(self.updates) == 0:
            raise ValueError(f"updates must be [K, D] with K > 0, got {tuple(self.updates.shape)}")
        if len(self.clients) != len(self.updates):
            raise ValueError(f"clients must be {len(self.updates)} numbers, got {len(self.clients)}")
        if len(set(self.clients)) != len(self.clients):
            twice = next(client for client in self.clients if self.clients.count(client) > 1)
            raise ValueError(f"clients must be different, got client {twice} twice; what is kept would be mixed up")
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

    @property
    def even(self) -> Tensor:
        """Equal shares 1 / K, [K] float64."""
        return torch.full((len(self.updates),), 1.0 / len(self.updates), dtype=torch.float64)

    @property
    def population(self) -> int:
        """Clients of the federation N, at least those of the cohort."""
        return max(self.num_clients, len(self.updates))

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Parameters of each layer."""
        return self.layers or (self.updates.shape[1],)

    def gram(self, *rows: Tensor) -> Tensor:
        """Return the inner products of the updates, [K, K] float64 on the CPU.

        Args:
            rows: Further rows that a rule remembers, each [R, D]; they come after the updates.

        Raises:
            NonFiniteUpdateError: Names the clients.
        """
        product = kernel.gram(self.updates, *rows).cpu()
        self._refuse(~torch.isfinite(product.diagonal()[: len(self.updates)]))
        return product

    def layer_grams(self, *rows: Tensor) -> Tensor:
        """Return the inner products layer by layer, [L, K, K] float64 on the CPU; arguments as for `gram`.

        Raises:
            NonFiniteUpdateError: Names the clients.
        """
        products = kernel.layer_grams(self.layer_sizes, self.updates, *rows).cpu()
        self._refuse(~torch.isfinite(products.diagonal(dim1=1, dim2=2)[:, : len(self.updates)]).all(dim=0))
        return products

    def combine(self, weights: Tensor, *rows: Tensor) -> Tensor:
        """Return weights @ updates, [D], accumulated in float64.

        Args:
            weights: [K], or one more for each of the further rows.
            rows: Further rows that a rule remembers, each [R, D].

        Raises:
            NonFiniteUpdateError: Names the clients.
        """
        return self._finite(kernel.combine(weights, self.updates, *rows))

    def combine_layers(self, weights: Tensor, *rows: Tensor) -> Tensor:
        """Return the weighted sum with weights of its own for each layer, [L, K], as one vector, [D].

        Raises:
            NonFiniteUpdateError: Names the clients.
        """
        return self._finite(kernel.combine_layers(weights, self.layer_sizes, self.updates, *rows))

    def _finite(self, vector: Tensor) -> Tensor:
        # Looking at D sums first keeps the common case free of a pass over the K x D updates.
        if not bool(torch.isfinite(vector).all()):
            self._refuse(~torch.isfinite(self.updates).all(dim=1))
            raise ValueError("the weighted sum of finite updates overflows; its weights are too large")
        return vector

    def _refuse(self, bad: Tensor) -> None:
        if bool(bad.any()):
            raise NonFiniteUpdateError(tuple(torch.nonzero(bad).flatten().tolist()), self.clients)


@dataclass(frozen=True)
class Search:
    """A search for the server's learning rate; every trial costs the cohort's losses at one point.

    Attributes:
        rates: Server learning rates to try, in order; the first accepted is taken.
        accepts: Says whether to take a rate, from the rate and the losses at theta - rate * vector, [K] float64
            in the cohort's order.
        otherwise: Chooses a rate when none is accepted, from the trials whose losses were finite, in order.
    """

    rates: tuple[float, ...]
    accepts: Callable[[float, Tensor], bool]
    otherwise: Callable[[Sequence[tuple[float, Tensor]]], float]


@dataclass(frozen=True)
class Direction:
    """What the server steps along: theta <- theta - server_lr * vector.

    Attributes:
        vector: [D], the dtype of the updates.
        weights: Factor of each client's update in `vector`, [K] float64, or None if it is no weighted sum.
        info: Numbers and words about this round for the run record.
        search: How to find the learning rate of this round, where the rule does not leave it to the server.
    """

    vector: Tensor
    weights: Tensor | None = None
    info: Mapping[str, float | str] = field(default_factory=dict)
    search: Search | None = None


@dataclass(frozen=True)
class Facts:
    """What a rule asks of those who run it, for docs/rules.md.

    Attributes:
        memory: What the server keeps from round to round, "none" for nothing.
        cost: Arithmetic of one round on the server, in K and D.
        secure: Whether sums over clients are all the server needs to see of their updates, so that the rule works
            under secure aggregation. Rules on inner products of single updates do not.
        clients: What the clients do beside local training and the numbers in `needs`, "" for nothing.
    """

    memory: str
    cost: str
    secure: bool
    clients: str = ""


class LocalTraining(Protocol):
    """The part of a scenario's client settings that a rule may have to refuse."""

    @property
    def local_epochs(self) -> int:
        """Passes over the shard; 0 sends a gradient."""
        ...

    @property
    def momentum(self) -> float:
        """Heavy-ball momentum."""
        ...

    @property
    def private_by(self) -> str | None:
        """Name of the hook that makes updates private, if there is one."""
        ...

    @property
    def lr(self) -> float:
        """Learning rate of the first round."""
        ...


def without_local_steps(option: str, training: LocalTraining) -> list[str]:
    """Return the conflict of an option that changes local steps with a scenario that has none."""
    if training.local_epochs >= 1:
        return []
    return [f"{option}: without local steps it changes nothing; it needs client.local_epochs >= 1, got 0"]


def too_strong_a_pull(option: str, weight: float, training: LocalTraining) -> list[str]:
    """Return the conflict of a proximal term whose own gradient steps diverge: |1 - lr weight| > 1."""
    if weight * training.lr < 2.0:
        return []
    return [
        f"{option}: times client.lr = {training.lr:g} must be below 2, or local steps overshoot the received "
        f"weights further and further; got {weight:g}, lower one of them"
    ]


class AnyRule(Plugin, ABC):
    """What every rule has, with memory or without.

    Attributes:
        needs: Reports the clients must send beside their number of examples.
        wants: Reports a rule uses where every client sends them.
        inherits: Options taken from elsewhere in the scenario when not given ("client_lr": "client.lr").
        facts: What running the rule takes.
        tunes: The options of its own that a study tunes, with the values it tries unless told others.
    """

    noun: ClassVar[str] = "rule"
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    wants: ClassVar[tuple[str, ...]] = ()
    inherits: ClassVar[Mapping[str, str]] = {}
    facts: ClassVar[Facts]
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {}

    @property
    def default_server_lr(self) -> float:
        """Server learning rate when the scenario names none."""
        return 1.0

    def conflicts(self, training: LocalTraining) -> list[str]:  # noqa: ARG002
        """Return what in the options does not go with the clients' training, each "option: problem"."""
        return []

    def notes(self) -> list[str]:
        """Return what a reader of the results must know about them, in sentences."""
        return []

    def local(self) -> LocalMethod | None:
        """Return what the algorithm changes in its clients' local training, if anything."""
        return None


class Rule(AnyRule):
    """A rule whose direction depends on this round alone."""

    @abstractmethod
    def direction(self, cohort: Cohort) -> Direction:
        """Return the direction of this round."""


class MemoryRule(AnyRule):
    """A rule with memory, passed in and handed back; plain data that a checkpoint can hold.

    A memory is a dict of tensors, numbers, strings, lists of these, and dicts of these by name or by client
    number. What belongs to a client is kept under its number, never under its place in a cohort.
    """

    @abstractmethod
    def initial_memory(self) -> dict[str, Any]:
        """Return the memory before the first round."""

    @abstractmethod
    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return the direction of this round and the memory for the next."""

    def broadcast(self, memory: dict[str, Any]) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return arrays that go to the clients with the weights, each [D]."""
        return {}
