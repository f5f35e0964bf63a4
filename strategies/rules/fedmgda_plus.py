"""FedMGDA+: shortest mix of unit updates near FedAvg's weights (Hu et al., IEEE TNSE 2022, arXiv 2006.11489)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import Field

from strategies.certificate import certificate
from strategies.rules import Cohort, Direction, Facts, Rule
from strategies.solvers import ZERO_GRADIENT, box_min_norm_weights


@final
class FedMGDAPlus(Rule):
    """Steps along d = sum_k lambda_k u_k / ||u_k|| with lambda near FedAvg's weights.

    lambda = argmin ||d||^2 over the simplex with ||lambda - lambda_0||_inf <= epsilon. epsilon = 0 is FedAvg on
    unit updates; epsilon = 1 is MGDA on unit updates, and promises that every loss falls to first order. Clients
    whose update is zero have no direction and are left out; lambda_0 is shared among the others.

    The updates being unit vectors, ||d|| <= 1 whatever their lengths, and server_lr is the length of the step: the
    paper lets it decay, which is server.lr_decay of a scenario.

    Attributes:
        epsilon: How far a weight may move from lambda_0; the paper tries 0, 0.1, 0.5 and 1.
        prior: lambda_0. "examples": n_k / sum n, as published. "uniform": 1 / K.
        normalise: Scale updates to length 1, as published. False takes them as they are.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"epsilon": (0.0, 0.1, 0.5, 1.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K^2 D", secure=False)

    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.1
    prior: Literal["examples", "uniform"] = "examples"
    normalise: bool = True

    def direction(self, cohort: Cohort) -> Direction:
        """Return d = sum_k lambda_k u_k / ||u_k||."""
        gram = cohort.gram()
        norms = gram.diagonal().sqrt()
        moving = norms > ZERO_GRADIENT * norms.max()
        weights = torch.zeros_like(norms)
        prior = cohort.weights if self.prior == "examples" else torch.ones_like(norms)
        if bool(prior[moving].any()):
            centre = prior[moving] / prior[moving].sum()
            rows = 1.0 / norms[moving] if self.normalise else torch.ones_like(centre)
            hull = gram[moving][:, moving] * torch.outer(rows, rows)
            weights[moving] = rows * box_min_norm_weights(hull, centre - self.epsilon, centre + self.epsilon)
        return Direction(cohort.combine(weights), weights, certificate(gram, weights))
