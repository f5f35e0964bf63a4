"""DQN-Fed: losses fall at quasi-Newton rates (Mohajer Hamidi, Ye, TMLR 2025, arXiv 2501.10877).

The server's part is AdaFed's with c_k = f_k^gamma replaced by c_k = g_k^T H_k g_k, the decrease that client k's
own quasi-Newton step predicts (times lr and local steps where g_k is an update). H_k is the L-BFGS inverse Hessian
the client keeps (clients/quasi_newton.py), so a few scalars more than FedAvg travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from strategies.certificate import certificate
from strategies.curvature import quadratic_form
from strategies.rules import Cohort, Direction, Facts, LocalTraining, MemoryRule
from strategies.solvers import common_descent

PAIRS_KEPT = 10
"""Pairs in the safeguard's model of the mean loss."""


@final
class DQNFed(MemoryRule):
    """Steps along the common descent direction whose rates are the clients' quasi-Newton decreases.

    Attributes:
        step: "aligned": along x with <x, g_k> = c_k, so that server_lr = 1 would match every client's unit
            quasi-Newton step to first order (default server_lr 0.2: at 1 it diverges). "paper": along
            d = x / ||x||^2.
        pairs: L-BFGS pairs each client keeps.
        pairs_from: "rounds": from the weights a client received at its last participation, with full gradients
            at both ends; the pairs live in the client's state. "local": from the ends of this round's local
            epochs, no state (needs client.local_epochs >= 1).
        curvature: Pairs are kept when the cosine between s and y is above this. The papers' condition is > 0; H
            grows like the inverse, and one client with a nearly flat pair would set the direction.
        within_reach: With local epochs, bound H_k by lr * local steps, so that a client's quasi-Newton step is no
            longer than its local training could take it: on a plateau H is as large as the inverse of almost no
            curvature. False bounds nothing, as published; without local epochs nothing is bounded either way.
        newcomers: Rate of a client without pairs. "median": ||g||^2 times the median of c / ||g||^2 over the
            round's clients with pairs, so that both are in one unit. "identity": ||g||^2 (B = I), as published.
        row: What g_k is. "update": the update every rule uses. "final_gradient": the full gradient at the last
            local iterate, as published (the same for client.local_epochs = 0).
        safeguard: "curvature": with gradients (local_epochs = 0, or row = "final_gradient") the step is bounded by
            `damping` times the minimiser along x of a quadratic model of the mean loss, built while the same
            clients take part round after round. Updates of stochastic steps are too noisy for that; with them,
            and without a model, the step is no longer than FedAvg's update, or server_lr times the mean
            gradient. "none" bounds nothing, as published.
        damping: Share of the way to the model's minimiser that the safeguard allows.
    """

    needs: ClassVar[tuple[str, ...]] = ("rate",)
    wants: ClassVar[tuple[str, ...]] = ("pairs", "rate-identity", "steps")
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"curvature": (1e-3, 1e-2, 1e-1)}
    facts: ClassVar[Facts] = Facts(
        memory="20 D with exact gradients", cost="K^2 D", secure=False, clients="L-BFGS pairs, 2 D numbers each"
    )

    step: Literal["aligned", "paper"] = "aligned"
    pairs: PositiveInt = 10
    pairs_from: Literal["rounds", "local"] = "rounds"
    row: Literal["update", "final_gradient"] = "update"
    curvature: PositiveFloat = 1e-2
    within_reach: bool = True
    newcomers: Literal["median", "identity"] = "median"
    safeguard: Literal["curvature", "none"] = "curvature"
    damping: PositiveFloat = 0.7

    @property
    def default_server_lr(self) -> float:
        """0.2 for the aligned step, which diverges at 1; 1 for the published one."""
        return 0.2 if self.step == "aligned" else 1.0

    def conflicts(self, training: LocalTraining) -> list[str]:
        """Local pairs need a local epoch at least, and an exact gradient is not private."""
        problems = []
        epochs = training.local_epochs
        if self.pairs_from == "local" and epochs < 1:
            problems.append(f'pairs_from: "local" needs client.local_epochs >= 1, got {epochs}; use "rounds"')
        if self.row == "final_gradient" and training.private_by is not None:
            problems.append(
                f'row: "final_gradient" sends an exact gradient, which {training.private_by} does not make '
                'private; use "update"'
            )
        return problems

    def initial_memory(self) -> dict[str, Any]:
        """Return the safeguard's empty model of the mean loss."""
        return {}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return x or d, and the safeguard's model."""
        rates = self._rates(cohort)
        gram = cohort.gram()
        solution = common_descent(gram, rates)
        weights = solution.weights
        length = float(weights @ gram @ weights)
        if self.step == "aligned" and length > 0:
            weights = weights / length
        facts: dict[str, float | str] = {"cond": solution.cond, "mode": solution.mode}
        facts["num_dropped"] = float(len(solution.dropped))
        if self.safeguard == "none" or length == 0:
            info = {**certificate(gram, weights, rates), **facts}
            return Direction(cohort.combine(weights), weights, info), memory
        share, model = self._guard(cohort, cohort.combine(weights), memory)
        weights = share * weights
        vector = cohort.combine(weights)
        info = {**certificate(gram, weights, rates), **facts, "step_share": share}
        return Direction(vector, weights, info), {**model, "step": -cohort.server_lr * vector}

    def _rates(self, cohort: Cohort) -> Tensor:
        rates, pairs = cohort.reports["rate"], cohort.reports.get("pairs")
        plain = cohort.reports.get("rate-identity")
        if self.newcomers == "identity" or pairs is None or plain is None:
            return rates
        known = (pairs > 0) & (plain > 0)
        if not bool(known.any()):
            return rates
        scale = (rates[known] / plain[known]).median()
        return torch.where(pairs > 0, rates, plain * scale)

    def _guard(self, cohort: Cohort, vector: Tensor, memory: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """Return the share of the step to take, and the model with what this round taught."""
        steps = cohort.reports.get("steps")
        if self.row == "update" and steps is not None and bool((steps > 0).any()):
            plain = cohort.combine(cohort.weights)
            return min(1.0, float(plain.norm() / vector.norm()) / cohort.server_lr), {}
        mean = cohort.combine(cohort.even)
        model = _with_newest_pair(memory, cohort.clients, mean)
        share = min(1.0, self._allowed(model, mean, vector, cohort.server_lr) / cohort.server_lr)
        return share, {**model, "clients": list(cohort.clients), "mean": mean}

    def _allowed(self, model: dict[str, Any], mean: Tensor, vector: Tensor, server_lr: float) -> float:
        """Return how far along the vector the step may go, as a factor of it."""
        if "steps" in model:
            curvature = quadratic_form(model["steps"], model["changes"], vector)
            slope = float(mean.double() @ vector.double())
            if curvature > 0 and slope > 0:
                return self.damping * slope / curvature
        return server_lr * float(mean.norm() / vector.norm())


def _with_newest_pair(memory: dict[str, Any], clients: tuple[int, ...], mean: Tensor) -> dict[str, Any]:
    """Return the pairs, with the last step's added if the same clients took part and its curvature is positive."""
    if memory.get("clients") != list(clients):
        return {}
    pairs: dict[str, Any] = {name: memory[name] for name in ("steps", "changes") if name in memory}
    step, change = memory["step"], mean - memory["mean"]
    if float(step.double() @ change.double()) <= 1e-10 * float(step.norm() * change.norm()):
        return pairs
    newest: dict[str, Any] = {"steps": step.unsqueeze(0), "changes": change.unsqueeze(0)}
    if not pairs:
        return newest
    return {name: torch.cat([pairs[name], newest[name]])[-PAIRS_KEPT:] for name in newest}
