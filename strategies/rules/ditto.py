"""Ditto: FedAvg, and a model of its own for every client near it (Li et al., ICML 2021, arXiv 2012.04221)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import NonNegativeFloat, PositiveInt

from clients.methods.personal import Personal
from strategies.rules import Cohort, Direction, Facts, LocalTraining, Rule, too_strong_a_pull, without_local_steps


@final
class Ditto(Rule):
    """Clients also train v_k on f_k(v) + lam / 2 ||v - theta||^2 (eq. 1, Algorithm 1); theta comes from FedAvg.

    v_k stays with the client and is what evaluation is about: `test_accuracy` is v_k's on client k's test shard,
    `server_accuracy` the shared model's. A client that has not taken part yet predicts with the shared model, and
    starts v_k from it. The paper lets clients choose lam on validation data; here it is the same for all.

    Attributes:
        lam: Pull towards the shared model: 0 is purely local training, a large one the shared model. The paper's
            default is 1; with SGD lam times client.lr must stay below 2 or v_k diverges.
        personal_epochs: Passes over the shard for v_k in a round; None takes client.local_epochs.
    """

    needs: ClassVar[tuple[str, ...]] = ("personal-distance",)
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"lam": (0.1, 1.0, 2.0)}
    facts: ClassVar[Facts] = Facts(
        memory="none",
        cost="K D",
        secure=True,
        clients="a model of their own each, D numbers kept, trained beside the other",
    )

    lam: NonNegativeFloat = 1.0
    personal_epochs: PositiveInt | None = None

    def conflicts(self, training: LocalTraining) -> list[str]:
        """A client's own model is trained by local steps."""
        return [*without_local_steps("lam", training), *too_strong_a_pull("lam", self.lam, training)]

    def notes(self) -> list[str]:
        """Say whose accuracies are reported."""
        return [
            "Test accuracies and losses are those of each client's own model, and of the shared one for clients "
            "that have not taken part yet; the shared model's on the same data are server_accuracy and "
            "server_loss. The common test set and model.safetensors are about the shared model."
        ]

    def local(self) -> Personal:
        """Return the client half."""
        return Personal(self.lam, self.personal_epochs)

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k p_k u_k."""
        return Direction(cohort.combine(cohort.weights), cohort.weights)
