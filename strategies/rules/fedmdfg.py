"""FedMDFG: common descent with fair guidance (Pan et al., AAAI 2023, doi 10.1609/aaai.v37i8.26122)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from strategies.rules import Cohort, Direction, Facts, MemoryRule, Search
from strategies.rules._fairness import fair_slope, fairness_weights, loss_angle, promises, shortest
from strategies.rules._remembered import absent, nothing, remember
from strategies.solvers import STATIONARY, ZERO_GRADIENT

ARMIJO = 1e-4
"""Share of the decrease promised to first order that a step has to reach; beta in the paper."""


@final
class FedMDFG(MemoryRule):
    """Steps along the shortest vector of the updates' hull, a fairness row in it while losses are unequal.

    The rows are the updates scaled to their mean norm; the clients of the last round who are absent now, as they
    were scaled then; and, where the angle between the losses F and 1 is above theta, sum_k h_k g_k over the scaled
    updates, h the unit vector along (p.F) F / ||F||^2 - p, p = 1 / ||1||. Over the updates as they are that is the
    gradient of P = -cos(1, F), whose descent makes the losses more equal; over the scaled ones, as in the authors'
    code, it is where updates have one length (info fair_slope = <d, grad P> says what became of it). d gets the
    length of the mean scaled update. Clients whose update is zero are left out, of F too. d = 0 where no direction
    descends along all rows.

    The step is the first of 2^s server_lr, half of it, and so on for which every loss falls by 1e-4 of what its
    slope promises and, with a fairness row, cos(F, 1) grows. It starts from server_lr when a client of the last
    round is absent, and ends at 2^-s server_lr over the factor that gave d its length. If none is accepted it is
    the first for which the sum of the losses falls, or else the one with the smallest sum, as in the authors' code:
    a second pass over the same rates, since a search sees one rate at a time.

    Where that code strays from Armijo's condition this rule does not follow: it has the sign of the slope wrong, so
    that losses may rise a little, and takes the old cosine too small, so that losses may become less equal. Slopes
    are those of the updates; they are the losses' own with local_epochs = 0, as in the authors' code.

    Attributes:
        theta_deg: Tolerable angle theta between F and 1, in degrees: 11.25 is pi / 16, and 5.625 is pi / 32.
        rising: Add the fairness row also where some of the round's clients, not all, have a loss above what is
            expected of them: a running mean over their earlier rounds in which losses above it count as itself. The
            authors' code does, and also where all of the round's clients have, if there are others.
        line_search: Search for the step, as published. False steps with server_lr.
        halvings: s of the search; the paper tries 5, 3 and 1.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"theta_deg": (5.625, 11.25, 22.5)}
    facts: ClassVar[Facts] = Facts(
        memory="updates of the clients of the last round",
        cost="(K + remembered)^2 D, and the losses at each step tried",
        secure=False,
        clients="answers to `query.losses`, the training loss at the weights of a trial",
    )

    theta_deg: Annotated[float, Field(gt=0, lt=90)] = 11.25
    rising: bool = False
    line_search: bool = True
    halvings: NonNegativeInt = 5

    def initial_memory(self) -> dict[str, Any]:
        """Return no updates and no expectations."""
        return {**nothing(), "norm": 0.0, "expected": {}}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return d and the search for its step, and the memory with this round's updates."""
        others = absent(memory, cohort, 1)
        gram, count = cohort.gram(*others.rows), len(cohort.clients)
        norms = gram.diagonal().sqrt()
        moving = torch.nonzero(norms[:count] > ZERO_GRADIENT * norms[:count].max()).flatten()
        norm = float(norms[moving].mean()) if len(moving) else 0.0
        surprised, expected = _expectations(cohort, memory["expected"]) if self.rising else (False, {})
        following = {**remember(memory, cohort, 1, moving.tolist()), "norm": norm, "expected": expected}
        losses = cohort.losses[moving] if len(moving) else cohort.losses
        angle = loss_angle(losses)
        unequal = angle > math.radians(self.theta_deg) or surprised
        guide = fairness_weights(losses) if unequal else None
        weights, stretch = torch.zeros(len(gram), dtype=torch.float64), 0.0
        if len(moving):
            scale = torch.cat([norm / norms[:count], memory["norm"] / norms[count:]])
            weights, stretch = _descent(gram, scale, moving, count, guide)
        info = {
            **promises(gram.unsqueeze(0), weights.unsqueeze(0), count),
            "loss_angle_deg": math.degrees(angle),
            "fair_guidance": float(guide is not None),
            "fair_slope": fair_slope(cohort.losses, (gram @ weights)[:count]),
            "num_remembered": float(len(others.rows)),
        }
        search = None
        if self.line_search and stretch > 0:
            promise = (gram @ weights)[moving]
            judge = _Judge(moving, losses, promise, fairer=guide is not None)
            search = self._search(cohort.server_lr, stretch, judge, longer=not others.rows)
        own = None if bool(weights[count:].any()) else weights[:count]
        return Direction(cohort.combine(weights, *others.rows), own, info, search), following

    def _search(self, server_lr: float, stretch: float, judge: _Judge, *, longer: bool) -> Search:
        largest, smallest = self.halvings if longer else 0, self.halvings + math.log2(max(stretch, 1.0))
        rates = tuple(server_lr * 2.0**-power for power in range(-largest, math.floor(smallest) + 1))
        return Search(rates, judge.accepts, lambda trials: judge.least_bad(trials, rates[-1]))


def _descent(gram: Tensor, scale: Tensor, moving: Tensor, count: int, guide: Tensor | None) -> tuple[Tensor, float]:
    """Return the weights of d, [R], and by how much d was lengthened; zeros where there is no d.

    Args:
        gram: Inner products of the clients of the round, then the remembered ones, [R, R].
        scale: Factor of each in the hull, [R].
        moving: Clients of the round that are in it.
        count: Clients of the round.
        guide: h, one for each of those in it, or None.
    """
    rows = scale.diag()[torch.cat([moving, torch.arange(count, len(gram))])]
    own = rows[: len(moving)]
    mean = own.mean(dim=0)
    if guide is not None:
        row = guide @ own
        # Where the pulls cancel, what is left is rounding, and no direction of anything.
        rows = torch.vstack([rows, row]) if row @ gram @ row > STATIONARY * (own[0] @ gram @ own[0]) else rows
    weights = shortest(rows, gram)
    square = weights @ gram @ weights
    stretch = math.sqrt(max(float(mean @ gram @ mean / square), 0.0)) if square > 0 else 0.0
    return stretch * weights, stretch


@dataclass(frozen=True)
class _Judge:
    """Judges steps by the losses they lead to.

    Attributes:
        moving: Rows of the cohort that count.
        losses: Their losses before the step.
        promise: Their <d, u_k>.
        fairer: Whether the losses must become more equal.
    """

    moving: Tensor
    losses: Tensor
    promise: Tensor
    fairer: bool

    def accepts(self, rate: float, losses: Tensor) -> bool:
        """Say whether every loss falls as far as it should, and the angle too where that is asked for."""
        reached = losses[self.moving]
        lower = bool((self.losses - reached >= ARMIJO * rate * self.promise).all())
        return lower and (not self.fairer or loss_angle(reached) < loss_angle(self.losses))

    def least_bad(self, trials: Sequence[tuple[float, Tensor]], smallest: float) -> float:
        """Return the first rate whose sum of losses falls, else that of the smallest sum."""
        sums = [(rate, float(losses[self.moving].sum())) for rate, losses in trials]
        falling = [rate for rate, total in sums if total < float(self.losses.sum())]
        if falling:
            return falling[0]
        return min(sums, key=lambda trial: trial[1])[0] if sums else smallest


def _expectations(cohort: Cohort, expected: dict[int, list[float]]) -> tuple[bool, dict[int, list[float]]]:
    """Return whether some but not all clients do worse than expected, and what to expect now: loss, rounds."""
    following, worse = dict(expected), 0
    for client, loss in zip(cohort.clients, cohort.losses.tolist(), strict=True):
        usual, rounds = expected.get(client, [loss, 0.0])
        if loss <= usual:
            usual = (usual * rounds + loss) / (rounds + 1)
        else:
            worse += 1
        following[client] = [usual, rounds + 1]
    return 0 < worse < len(cohort.clients), following
