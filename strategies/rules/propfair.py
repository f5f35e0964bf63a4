"""PropFair: proportional fairness, the Nash bargain over M - f_k (Zhang et al., TMLR 2023, arXiv 2202.01666)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, final

from pydantic import PositiveFloat

from strategies.rules import Cohort, Direction, Facts, Rule


@final
class PropFair(Rule):
    """Descends -sum_k p_k log(M - f_k), so that client k counts in proportion to p_k / (M - f_k).

    Where M - f_k < eps the logarithm goes on as its tangent, with slope 1 / eps, so that a loss beyond M keeps the
    largest weight there is. (The authors' code has a slope of 1 / M there unless its option huber is set, which
    gives the worst clients the least.)

    The paper applies the logarithm to the mini-batch losses inside local training and averages as FedAvg does. Here
    it is applied once a round, to the loss at the received weights; with client.local_epochs = 0 both are the same.

    Attributes:
        baseline: M, the loss from which improvement counts. 2 to 5 are in use; the larger, the nearer to FedAvg.
        eps: Distance below M at which the tangent takes over; 0.2 in the authors' code.
        scale: "sum": weights with sum 1, so that server_lr keeps its FedAvg meaning. "baseline": M times the
            gradient of the objective, which also becomes FedAvg as M grows. "none": the gradient itself.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"baseline": (2.0, 3.0, 5.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)

    baseline: PositiveFloat = 5.0
    eps: PositiveFloat = 0.2
    scale: Literal["sum", "baseline", "none"] = "sum"

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k w_k u_k, w_k proportional to p_k / max(M - f_k, eps)."""
        rest = self.baseline - cohort.losses
        weights = cohort.weights / rest.clamp(min=self.eps)
        if self.scale == "sum":
            weights = weights / weights.sum()
        elif self.scale == "baseline":
            weights = weights * self.baseline
        return Direction(cohort.combine(weights), weights, {"num_beyond": float((rest < self.eps).sum())})
