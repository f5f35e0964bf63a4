"""DQN-Fed: losses fall at quasi-Newton rates (Mohajer Hamidi, Ye, TMLR 2025, arXiv 2501.10877).

The server's part is AdaFed's with c_k = f_k^gamma replaced by c_k = g_k^T H_k g_k, the decrease that client k's
own quasi-Newton step predicts. H_k is the L-BFGS inverse Hessian the client keeps (clients/quasi_newton.py), so
one scalar more than FedAvg travels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from strategies.certificate import certificate
from strategies.curvature import quadratic_form
from strategies.kernel import common_descent
from strategies.rules import Cohort, Direction, MemoryRule

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
            epochs, no state (needs client.local_epochs >= 2).
        row: What g_k is. "update": the update every rule uses. "final_gradient": the full gradient at the last
            local iterate, as published (the same for client.local_epochs = 0).
        safeguard: "curvature" bounds the step by `damping` times the minimiser along x of a quadratic model of
            the mean loss that the server builds from rounds in which the same clients took part; the first
            step is no longer than server_lr times the mean update. "none" bounds nothing, as published.
        damping: Share of the way to the model's minimiser that the safeguard allows.
    """

    needs: ClassVar[tuple[str, ...]] = ("rate",)

    step: Literal["aligned", "paper"] = "aligned"
    pairs: PositiveInt = 10
    pairs_from: Literal["rounds", "local"] = "rounds"
    row: Literal["update", "final_gradient"] = "update"
    safeguard: Literal["none", "curvature"] = "none"
    damping: PositiveFloat = 0.7

    @property
    def default_server_lr(self) -> float:
        """0.2 for the aligned step, which diverges at 1; 1 for the published one."""
        return 0.2 if self.step == "aligned" else 1.0

    def conflicts(self, local_epochs: int) -> list[str]:
        """Local pairs need two ends of epochs at least."""
        if self.pairs_from == "local" and local_epochs < 2:
            return [f'pairs_from: "local" needs client.local_epochs >= 2, got {local_epochs}; use "rounds"']
        return []

    def initial_memory(self) -> dict[str, Any]:
        """Return the safeguard's empty model of the mean loss."""
        return {}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return x or d, and the safeguard's model."""
        rates = cohort.reports["rate"]
        gram = cohort.gram()
        solution = common_descent(gram, rates)
        weights = solution.weights
        length = float(weights @ gram @ weights)
        if self.step == "aligned" and length > 0:
            weights = weights / length
        vector = cohort.combine(weights)
        info: dict[str, float | str] = {**certificate(gram, weights, rates), "cond": solution.cond}
        info |= {"mode": solution.mode, "num_dropped": float(len(solution.dropped))}
        if self.safeguard == "none" or length == 0:
            return Direction(vector, weights, info), memory
        return self._guarded(cohort, vector, weights, info, memory)

    def _guarded(
        self,
        cohort: Cohort,
        vector: Tensor,
        weights: Tensor,
        info: dict[str, float | str],
        memory: dict[str, Any],
    ) -> tuple[Direction, dict[str, Any]]:
        mean = cohort.combine(torch.full_like(weights, 1.0 / len(weights)))
        model = _with_newest_pair(memory, cohort.clients, mean)
        share = self._allowed_share(model, mean, vector, cohort.server_lr)
        memory = {
            **model,
            "clients": list(cohort.clients),
            "mean": mean,
            "step": -cohort.server_lr * share * vector,
        }
        return Direction(share * vector, share * weights, {**info, "step_share": share}), memory

    def _allowed_share(self, model: dict[str, Any], mean: Tensor, vector: Tensor, server_lr: float) -> float:
        if "steps" not in model:
            return min(1.0, float(mean.norm() / vector.norm()))
        curvature = quadratic_form(model["steps"], model["changes"], vector)
        slope = float(mean.double() @ vector.double())
        if curvature <= 0 or slope <= 0:
            return 1.0
        return min(1.0, self.damping * slope / curvature / server_lr)


def _with_newest_pair(memory: dict[str, Any], clients: tuple[int, ...], mean: Tensor) -> dict[str, Any]:
    """Return the pairs, with the last step's added if the same clients took part and its curvature is positive."""
    pairs: dict[str, Any] = {name: memory[name] for name in ("steps", "changes") if name in memory}
    if memory.get("clients") != list(clients):
        return pairs
    step, change = memory["step"], mean - memory["mean"]
    if float(step.double() @ change.double()) <= 1e-10 * float(step.norm() * change.norm()):
        return pairs
    newest: dict[str, Any] = {"steps": step.unsqueeze(0), "changes": change.unsqueeze(0)}
    if not pairs:
        return newest
    return {name: torch.cat([pairs[name], newest[name]])[-PAIRS_KEPT:] for name in newest}
