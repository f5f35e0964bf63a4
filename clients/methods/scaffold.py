"""SCAFFOLD's client half: control variates (Karimireddy et al., ICML 2020, arXiv 1910.06378, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clients.methods import LocalMethod, LocalRound, State, Terms

SERVER = OWN = "control"
"""Name under which the server's control variate travels, and under which a client keeps its own."""


@dataclass(frozen=True)
class ControlVariate(LocalMethod):
    """Steps along grad f_k - c_k + c, and keeps c_k+ = c_k - c + (theta - w) / (steps * lr) (option II)."""

    stateful: bool = True

    def terms(self, this: LocalRound) -> Terms:
        """Return c - c_k."""
        shift = this.received.get(SERVER)
        if OWN in this.state:
            own = this.state[OWN]
            shift = -own if shift is None else shift - own
        return Terms(shift=shift)

    def keep(self, this: LocalRound, update: Tensor, steps: int, beside: Tensor | None) -> State:
        """Return the client's new control variate."""
        del beside
        mean_step = update / (steps * this.lr)
        shift = self.terms(this).shift
        return {OWN: mean_step if shift is None else mean_step - shift}

    def report(self, this: LocalRound, update: Tensor, kept: State) -> Mapping[str, float]:
        """Return ||c_k||."""
        del this, update
        return {"control-norm": float(kept[OWN].norm())}
