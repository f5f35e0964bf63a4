"""FedDyn's client half: a dynamic regulariser (Acar et al., ICLR 2021, arXiv 2111.04263, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clients.methods import LocalMethod, LocalRound, State, Terms


@dataclass(frozen=True)
class DynamicRegularizer(LocalMethod):
    """Minimises f_k(w) - <h_k, w> + alpha / 2 ||w - theta||^2, and keeps h_k+ = h_k - alpha (w - theta).

    Attributes:
        alpha: Weight of the regulariser.
    """

    alpha: float
    stateful: bool = True

    def terms(self, this: LocalRound) -> Terms:
        """Return -h_k and the pull towards theta."""
        kept = this.state.get("linear")
        return Terms(shift=None if kept is None else -kept, proximal=self.alpha)

    def keep(self, this: LocalRound, update: Tensor, steps: int, beside: Tensor | None) -> State:
        """Return the client's new linear term."""
        del steps, beside
        kept = this.state.get("linear")
        step = self.alpha * update
        return {"linear": step if kept is None else kept + step}

    def report(self, this: LocalRound, update: Tensor, kept: State) -> Mapping[str, float]:
        """Return ||h_k||."""
        del this, update
        return {"linear-norm": float(kept["linear"].norm())}
