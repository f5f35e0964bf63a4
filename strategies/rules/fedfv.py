"""FedFV: projects conflicts out of the updates before averaging (Wang et al., IJCAI 2021, arXiv 2104.14937)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from strategies.rules import Cohort, Direction, Facts, MemoryRule
from strategies.rules._fairness import promises
from strategies.rules._remembered import absent, nothing, remember
from strategies.solvers import STATIONARY

ROUNDING = 1e-12
"""Cosine that is taken for a right angle; what a projection leaves behind is no conflict."""


@final
class FedFV(MemoryRule):
    """Averages updates after removing the parts that point against others.

    Internal conflicts: for each client i but the ones with the largest losses, and for each other client j by
    ascending loss, v_i <- v_i - <g_j, v_i> / ||g_j||^2 g_j where <g_j, v_i> < 0; g_j is the update as it was sent.
    d is the mean of the v_i. External conflicts: from the oldest round looked back at to the newest, the updates of
    that round's clients with <d, g_j> < 0 are summed, and d is projected off the sum. Finally d gets the length of
    the mean update. Without conflicts d is the mean. Clients with equal losses are taken by number.

    Attributes:
        alpha: Share of the clients, those with the largest losses, whose updates stay as they are: all but the
            first ceil((K - 1)(1 - alpha)), hence at least one unless alpha is 0. The paper goes up to 2/3.
        tau: Rounds that external conflicts look back at, from round tau on; 0 leaves them alone. The paper goes
            up to 10.
        external: "recent": the last tau rounds with this one among them, every client in the round of its last
            participation, as the authors' code does; tau = 1 is this round alone and needs no memory. "absent":
            the tau rounds before this one, and only clients who are not in it.
        weighting: "uniform": the mean is sum_k u_k / K, as published. "examples": it is sum_k n_k u_k / n, in d and
            in its length.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"alpha": (0.1, 1 / 3, 2 / 3)}
    facts: ClassVar[Facts] = Facts(
        memory="updates of the clients of the tau - 1 rounds before, none by default",
        cost="(K + remembered)^2 D + K^3",
        secure=False,
    )

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    tau: NonNegativeInt = 1
    external: Literal["recent", "absent"] = "recent"
    weighting: Literal["uniform", "examples"] = "uniform"

    def initial_memory(self) -> dict[str, Any]:
        """Return no updates."""
        return nothing()

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return d, and the memory with this round's updates."""
        longest = self.tau - 1 if self.external == "recent" else self.tau
        others = absent(memory, cohort, longest)
        gram, count = cohort.gram(*others.rows), len(cohort.clients)
        shares = cohort.weights if self.weighting == "examples" else cohort.even
        inside = gram[:count, :count]
        projected, num_internal = self._without_internal_conflicts(inside, cohort)
        factors = torch.zeros(len(gram), dtype=torch.float64)
        factors[:count] = shares @ projected
        if cohort.server_round >= self.tau:
            ages = torch.tensor([0 if self.external == "recent" else -1] * count + list(others.ages))
            newest = 0 if self.external == "recent" else 1
            for age in range(longest, newest - 1, -1):
                factors = _without_sum_of_conflicts(factors, gram, ages == age)
        square, target = factors @ gram @ factors, (shares @ inside @ shares).clamp(min=0.0)
        # What cancels to rounding has no direction that could be given a length.
        noise = square <= STATIONARY * inside.diagonal().max()
        factors = torch.zeros_like(factors) if noise else factors * (target / square).sqrt()
        vector = cohort.combine(factors, *others.rows)
        info = {
            **promises(gram.unsqueeze(0), factors.unsqueeze(0), count),
            "num_conflicts": float(num_internal),
            "num_remembered": float(len(others.rows)),
        }
        own = None if bool(factors[count:].any()) else factors[:count]
        return Direction(vector, own, info), remember(memory, cohort, longest)

    def _without_internal_conflicts(self, gram: Tensor, cohort: Cohort) -> tuple[Tensor, int]:
        """Return each v_i as a combination of the updates, [K, K], and how many conflicts were removed."""
        count = len(gram)
        order = sorted(range(count), key=lambda row: (float(cohort.losses[row]), cohort.clients[row]))
        changing = torch.ones(count, dtype=torch.bool)
        if self.alpha > 0:
            # (1 - 0.7) * 10 is a little more than 3 in floating point, and would keep one client fewer.
            changing[order[math.ceil((count - 1) * (1 - self.alpha) - 1e-9) :]] = False
        projected, conflicts = torch.eye(count, dtype=torch.float64), 0
        for j in order:
            products = projected @ gram[j]
            against = changing & (products < 0)
            against[j] = False
            projected[against, j] -= products[against] / gram[j, j]
            conflicts += int(against.sum())
        return projected, conflicts


def _without_sum_of_conflicts(factors: Tensor, gram: Tensor, candidates: Tensor) -> Tensor:
    """Project d = factors @ G off the sum of those candidates that point against it."""
    products = gram @ factors
    lengths = (gram.diagonal() * (factors @ products).clamp(min=0.0)).sqrt()
    against = (candidates & (products < -ROUNDING * lengths)).double()
    square = against @ gram @ against
    return factors - (against @ products / square) * against if square > 0 else factors
