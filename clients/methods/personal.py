"""Ditto's client half: a model of the client's own near the server's (Li et al., ICML 2021, arXiv 2012.04221)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clients.methods import Beside, LocalMethod, LocalRound, State, Terms

OWN = "personal"
"""Name under which a client keeps its model."""


@dataclass(frozen=True)
class Personal(LocalMethod):
    """Trains v_k on f_k(v) + lam / 2 ||v - theta||^2 beside the local model (Algorithm 1).

    A client starts from the weights it receives at its first participation.

    Attributes:
        lam: Weight of the pull towards the received weights: 0 is purely local training.
        epochs: Passes over the shard for v_k; None takes as many as for the local model.
    """

    lam: float
    epochs: int | None = None
    stateful: bool = True
    personal: bool = True

    def beside(self, this: LocalRound) -> Beside:
        """Train the client's own model, from where it was."""
        return Beside(self.own_weights(this.theta, this.state), Terms(proximal=self.lam), self.epochs)

    def beside_epochs(self, local_epochs: int) -> int:
        """Return the passes for the client's own model."""
        return local_epochs if self.epochs is None else self.epochs

    def keep(self, this: LocalRound, update: Tensor, steps: int, beside: Tensor | None) -> State:
        """Return the client's own model after this round."""
        del this, update, steps
        assert beside is not None, "asked for"
        return {OWN: beside}

    def report(self, this: LocalRound, update: Tensor, kept: State) -> Mapping[str, float]:
        """Return ||v_k - theta||."""
        del update
        return {"personal-distance": float((kept[OWN] - this.theta).norm())}

    def own_weights(self, theta: Tensor, state: State) -> Tensor:
        """Return v_k, or theta before the first participation."""
        return state.get(OWN, theta)
