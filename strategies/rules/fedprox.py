"""FedProx: FedAvg with local training held near the received weights (Li et al., MLSys 2020, arXiv 1812.06127)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import NonNegativeFloat

from clients.methods.proximal import Proximal
from strategies.rules import Cohort, Direction, Facts, LocalTraining, Rule, too_strong_a_pull, without_local_steps


@final
class FedProx(Rule):
    """Clients minimise f_k(w) + mu / 2 ||w - theta||^2 (eq. 2); the server averages as FedAvg does.

    The paper samples clients in proportion to n_k and averages them evenly; here they are sampled evenly and
    weighted by n_k, which has the same mean. The loss clients report is f_k, without the term.

    Attributes:
        mu: Weight of the proximal term; 0 is FedAvg. The paper tunes it over 0.001, 0.01, 0.1 and 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("proximal",)
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"mu": (0.001, 0.01, 0.1, 1.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True, clients="a proximal term")

    mu: NonNegativeFloat = 0.01

    def conflicts(self, training: LocalTraining) -> list[str]:
        """Without local steps nothing moves away from the received weights."""
        return [*without_local_steps("mu", training), *too_strong_a_pull("mu", self.mu, training)]

    def local(self) -> Proximal:
        """Return the proximal term."""
        return Proximal(self.mu)

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k p_k u_k."""
        return Direction(cohort.combine(cohort.weights), cohort.weights)
