"""FedDyn: linear terms make local and global optima agree (Acar et al., ICLR 2021, arXiv 2111.04263)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

from pydantic import PositiveFloat

from clients.methods.feddyn import DynamicRegularizer
from strategies.rules import (
    Cohort,
    Direction,
    Facts,
    LocalTraining,
    MemoryRule,
    too_strong_a_pull,
    without_local_steps,
)


@final
class FedDyn(MemoryRule):
    """Clients minimise f_k(w) - <h_k, w> + alpha / 2 ||w - theta||^2; theta+ = mean_S w - h / alpha (Algorithm 1).

    h <- h + (alpha / N) sum_S u_k over all N clients. At a fixed point h_k = grad f_k(theta) and sum_k h_k = 0.

    A client that fails keeps its old h_k. Where a reply is lost after its client has kept the new one, h stays
    apart from the clients' and the fixed point moves; such a round is logged.

    Attributes:
        alpha: Weight of the regulariser; the paper uses 0.1, 0.01 and 0.001.
    """

    needs: ClassVar[tuple[str, ...]] = ("linear-norm",)
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"alpha": (0.01, 0.1, 1.0)}
    facts: ClassVar[Facts] = Facts(
        memory="D", cost="K D", secure=True, clients="a linear term each, D numbers kept, and a proximal term"
    )

    alpha: PositiveFloat = 0.1

    def conflicts(self, training: LocalTraining) -> list[str]:
        """Without local steps nothing moves away from the received weights."""
        return [
            *without_local_steps("alpha", training),
            *too_strong_a_pull("alpha", self.alpha, training),
        ]

    def local(self) -> DynamicRegularizer:
        """Return the client half."""
        return DynamicRegularizer(self.alpha)

    def initial_memory(self) -> dict[str, Any]:
        """Return no linear term, which means zero."""
        return {}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return mean_S u_k + h+ / alpha, and h+ / alpha, which is all that is needed of h."""
        count = len(cohort.clients)
        mean = cohort.combine(cohort.even)
        drift = mean * (count / cohort.population)
        if "drift" in memory:
            drift = memory["drift"] + drift
        return Direction(mean + drift, info={"drift_norm": float(drift.norm())}), {"drift": drift}
