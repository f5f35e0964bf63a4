"""AdaFed: every loss falls, the larger ones faster (Mohajer Hamidi, Yang, TMLR 2024, arXiv 2401.04993)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from strategies.certificate import certificate
from strategies.rules import Cohort, Direction, Facts, Rule
from strategies.solvers import common_descent

MOST = 10.0
"""Most that scale "norm" lengthens the step of "mean"; ratios seen in training are 1 to 3."""


@final
class AdaFed(Rule):
    """Steps along the common descent direction with <d, g_k> = c_k ||d||^2, c_k = f_k^gamma (eqs. 5, 6, 12-14).

    The published step grows like 1/c as losses fall. `scale` chooses a server step; the direction is the same.

    Attributes:
        gamma: Exponent of the loss; 0 asks for equal rates.
        per_step: Multiply c_k by client k's number of local steps over the mean number, where the clients report
            it: an update of more steps is a longer estimate of the same gradient, and without this a client
            with few examples sets the pace. False takes updates as gradients, as published; with equal numbers
            of steps both are the same.
        scale: "raw": c as published. "min": c / min c, the step of the descent theorem, eta <= (2/L) min c.
            "mean": c / mean c. "norm": d rescaled to the norm of FedAvg's step, so that server_lr keeps its
            FedAvg meaning (the default: the others depend on how many clients there are and how equal their
            shards), but to at most 10 times the step of "mean", which goes to 0 at a Pareto-stationary point.
    """

    wants: ClassVar[tuple[str, ...]] = ("steps",)
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"gamma": (0.5, 1.0, 2.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K^2 D", secure=False)

    gamma: NonNegativeFloat = 1.0
    scale: Literal["raw", "min", "mean", "norm"] = "norm"
    per_step: bool = True

    def direction(self, cohort: Cohort) -> Direction:
        """Return d = x / ||x||^2, x = G^T M^-1 c, in the chosen scale."""
        gram = cohort.gram()
        rates = self._rates(cohort.losses)
        steps = cohort.reports.get("steps")
        if self.per_step and steps is not None and bool((steps > 0).all()):  # 0 steps: gradients, not updates
            rates = rates * steps / steps.mean()
        solution = common_descent(gram, rates)
        weights = solution.weights
        if self.scale == "norm":
            weights = weights * _norm_ratio(gram, weights, cohort.weights)
        facts = certificate(gram, weights, rates)
        info = {
            **facts,
            "cond": solution.cond,
            "mode": solution.mode,
            "num_dropped": float(len(solution.dropped)),
        }
        return Direction(cohort.combine(weights), weights, info)

    def _rates(self, losses: Tensor) -> Tensor:
        rates = losses**self.gamma
        reference = rates.min() if self.scale == "min" else rates.mean()
        # A reference of zero asks for no step at all ("min" stands still when one client is fitted perfectly).
        if self.scale == "raw":
            return rates
        return rates / reference if reference > 0 else torch.zeros_like(rates)


def _norm_ratio(gram: Tensor, weights: Tensor, shares: Tensor) -> float:
    """Return ||sum p_k u_k|| / ||d||."""
    length = weights @ gram @ weights
    if not length > 0:
        return 1.0
    return min(MOST, float((shares @ gram @ shares / length).clamp(min=0.0).sqrt()))
