"""AFL: the worst mixture of clients, learned along with the model (Mohri et al., ICML 2019, arXiv 1902.00146)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import NonNegativeFloat

from strategies.rules import Cohort, Direction, Facts, MemoryRule
from strategies.solvers import project_to_simplex


@final
class AFL(MemoryRule):
    """Solves min_theta max_lambda sum_k lambda_k f_k by simultaneous gradient steps (Stochastic-AFL).

    theta <- theta - server_lr * sum_k lambda_k u_k,   lambda <- Proj(lambda + lambda_lr * f),

    both from the lambda before the round; Proj is onto the simplex over all N clients. The paper returns the mean
    of the models of all rounds, which is server.average = "all". It allows any lambda_0; here it is 1 / N, since
    nobody knows the shards of clients that were never sampled.

    lambda belongs to clients, not to places in a round. All clients never seen have one value. One that joins
    starts from it (from 1 / N where everyone was seen) and lambda is rescaled to sum 1. One that leaves keeps its
    value: it looks like one that is not sampled.

    Attributes:
        lambda_lr: Step of lambda. 0.1 and 0.01 are in use. Where K < N clients are sampled, the others' lambda
            falls by about K lambda_lr f / N a round: steps beyond 1 / (K f) leave it to the last round's clients,
            so 0.1 is for few clients that all take part.
        partial: What a round without all clients does; with all of them both are as published.
            "renormalise": lambda is rescaled to sum 1 over the round's clients, so that server_lr keeps its FedAvg
            meaning (where all of theirs are 0, they count alike), and their lambda move by lambda_lr f_k.
            "unbiased": sampled coordinates of both gradients are multiplied by N / K, so that their means are the
            published gradients; a step can then be N / K times longer, or zero.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"lambda_lr": (0.001, 0.01, 0.1)}
    facts: ClassVar[Facts] = Facts(memory="a number per client", cost="K D", secure=True)

    lambda_lr: NonNegativeFloat = 0.01
    partial: Literal["renormalise", "unbiased"] = "renormalise"

    def initial_memory(self) -> dict[str, Any]:
        """Return equal values for all clients; the first round learns how many there are."""
        return {"lambda": {}, "unseen": 1.0}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        """Return sum_k lambda_k u_k, and the next lambda."""
        known, unseen = memory["lambda"], memory["unseen"]
        seen = sorted({*known, *cohort.clients})
        num_unseen = max(0, cohort.population - len(seen))
        values = [known.get(client, unseen) for client in seen] + [unseen] * num_unseen
        mixture = torch.tensor(values, dtype=torch.float64)
        mixture /= mixture.sum()
        places = {client: place for place, client in enumerate(seen)}
        rows = torch.tensor([places[client] for client in cohort.clients])
        sampled = mixture[rows]
        factor = len(mixture) / len(rows) if self.partial == "unbiased" else 1.0
        weights = sampled * factor if self.partial == "unbiased" else _to_sum_one(sampled)
        moved = mixture.clone()
        moved[rows] += self.lambda_lr * factor * cohort.losses
        moved = project_to_simplex(moved)
        info = {
            "lambda_max": float(moved.max()),
            "lambda_nonzero": float((moved > 0).sum()),
            "lambda_sampled": float(sampled.sum()),
        }
        kept = {
            "lambda": dict(zip(seen, moved[: len(seen)].tolist(), strict=True)),
            "unseen": float(moved[-1]) if num_unseen else 1.0 / len(mixture),
        }
        return Direction(cohort.combine(weights), weights, info), kept


def _to_sum_one(values: torch.Tensor) -> torch.Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, 1.0 / len(values))
