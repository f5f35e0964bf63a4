"""What an algorithm changes in its clients' local training, beside the loss; one file each, PyTorch only.

A rule names its client half in `AnyRule.local()`; the plain training loop asks it for the terms that join the
gradient of every local step, and tells it what training gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

State = Mapping[str, Tensor]
"""What a client keeps between rounds, by name."""


@dataclass(frozen=True)
class Terms:
    """What joins the gradient of the training loss in each local step: shift + proximal * (w - theta).

    Attributes:
        shift: A vector that stays the same for the whole round, [D], or None for zero.
        proximal: Weight of the pull towards the received weights theta, that is of ||w - theta||^2 / 2 in the loss.
    """

    shift: Tensor | None = None
    proximal: float = 0.0


@dataclass(frozen=True)
class LocalRound:
    """One client's round of local training, as a method sees it.

    Attributes:
        theta: Received weights, [D].
        lr: Learning rate of the round.
        received: What the rule sent along with the weights, by name, each [D]; empty where it sent nothing.
        state: What this client kept from its last participation; empty at its first.
    """

    theta: Tensor
    lr: float
    received: Mapping[str, Tensor] = field(default_factory=dict)
    state: State = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """A second training on the same shard with the same settings, after the first.

    Attributes:
        start: Weights to start from, [D].
        terms: What joins its gradient; the pull is towards the received weights.
        epochs: Passes over the shard; None takes client.local_epochs.
    """

    start: Tensor
    terms: Terms = Terms()
    epochs: int | None = None


class LocalMethod:
    """The client half of an algorithm; what it does not define changes nothing. Pure.

    Attributes:
        stateful: Whether clients keep something between rounds.
        personal: Whether clients have models of their own, which evaluation is about.
    """

    stateful: bool = False
    personal: bool = False

    def terms(self, this: LocalRound) -> Terms:  # noqa: ARG002
        """Return what joins the gradient of each local step; nothing unless said otherwise."""
        return Terms()

    def beside(self, this: LocalRound) -> Beside | None:  # noqa: ARG002
        """Return what is trained beside the local model, if anything."""
        return None

    def beside_epochs(self, local_epochs: int) -> int:  # noqa: ARG002
        """Return how many passes over its shard a client makes for what is trained beside.

        Args:
            local_epochs: client.local_epochs.
        """
        return 0

    def keep(self, this: LocalRound, update: Tensor, steps: int, beside: Tensor | None) -> State:  # noqa: ARG002
        """Return what the client keeps after its local training.

        Args:
            this: The round.
            update: theta - w after local training, [D].
            steps: Local steps taken.
            beside: Weights reached by the training `beside` asked for, [D], or None without one.
        """
        return this.state

    def report(self, this: LocalRound, update: Tensor, kept: State) -> Mapping[str, float]:  # noqa: ARG002
        """Return numbers for the server after `keep`.

        A rule that names one of them in `needs` refuses clients that do not know its half: they would train as
        FedAvg's do, and nobody would notice.
        """
        return {}

    def own_weights(self, theta: Tensor, state: State) -> Tensor:  # noqa: ARG002
        """Return the weights this client predicts with, [D]: the server's unless it has a model of its own."""
        return theta
