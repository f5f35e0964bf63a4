"""GIFAIR: a penalty on the spread of groups' losses (Yue et al., INFORMS J. Data Sci. 2023, arXiv 2108.02741)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, field_validator, model_validator

from strategies.rules import Cohort, Direction, Facts, Rule

Groups = tuple[Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)], ...]


@final
class GIFAIR(Rule):
    """Descends sum_k p_k f_k + lam sum_{i<j} |F_i - F_j|, F_i the mean loss of group i (GIFAIR-FL, global model).

    Its gradient multiplies client k's by 1 + lam r_k / (p_k |A_k|), with |A_k| the size of its group, and r_k the
    number of groups with a smaller loss less that of groups with a larger one. The weights sum to 1.

    No client is pushed up its loss while lam < min_k p_k |A_k| / (d - 1), d the number of groups. That bound
    depends on who takes part: groups, their sizes and p_k are those of the round. The authors' code ranks all
    clients by the losses they reported last, and multiplies a client's learning rate instead of its weight; for one
    local step that is the same.

    Attributes:
        strength: lam as a share of the round's bound; 0 is FedAvg. 0.5 in the authors' code.
        lam: lam itself, as published, in place of strength; a round whose bound it does not stay below is refused.
        groups: Lists of client numbers, each a group: [[0, 1], [2, 5, 6]]. A client in none is a group of its own,
            and by default all are: individual fairness.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"strength": (0.25, 0.5, 0.75)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)

    strength: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    lam: NonNegativeFloat | None = None
    groups: Groups = ()

    @field_validator("groups", mode="before")
    @classmethod
    def _lists_of_numbers(cls, given: Any) -> Any:
        lists = isinstance(given, list | tuple) and all(
            isinstance(group, list | tuple) and group for group in given
        )
        if not (lists and all(type(client) is int and client >= 0 for group in given for client in group)):
            raise ValueError("must be lists of client numbers, such as [[0, 1], [2, 5, 6]]")
        return given

    @model_validator(mode="after")
    def _one_of_each(self) -> GIFAIR:
        if self.lam is not None and self.strength != type(self).model_fields["strength"].default:
            raise ValueError(f"give strength or lam, got strength = {self.strength} and lam = {self.lam}")
        places = Counter(client for group in self.groups for client in group)
        for client, count in places.items():
            if count > 1:
                raise ValueError(f"groups must not share clients, got client {client} {count} times")
        return self

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k (p_k + lam r_k / |A_k|) u_k.

        Raises:
            ValueError: `lam` does not stay below the round's bound.
        """
        named = {client for group in self.groups for client in group}
        if cohort.num_clients and max(cohort.clients) < cohort.num_clients <= max(named, default=0):
            raise ValueError(
                f"groups: there are clients 0 to {cohort.num_clients - 1}, got client {max(named)} in a group"
            )
        of_client = self._groups_of(cohort.clients)
        sizes = Counter(of_client.values())
        ranks = _ranks(of_client, dict(zip(cohort.clients, cohort.losses.tolist(), strict=True)))
        spread = [ranks[of_client[client]] / sizes[of_client[client]] for client in cohort.clients]
        size = torch.tensor([sizes[of_client[client]] for client in cohort.clients], dtype=torch.float64)
        bound = float((cohort.weights * size).min()) / max(1, len(sizes) - 1)
        lam = self.strength * bound if self.lam is None else self.lam
        if lam >= bound and lam > 0 and len(sizes) > 1:
            raise ValueError(
                f"lam must be below min p_k |A_k| / (d - 1) = {bound:.4g} in this round of {len(sizes)} groups, "
                f"got {lam:g}; lower lam, or give strength, which follows the bound"
            )
        weights = cohort.weights + lam * torch.tensor(spread, dtype=torch.float64)
        return Direction(cohort.combine(weights), weights, {"lam": lam, "num_groups": float(len(sizes))})

    def _groups_of(self, clients: tuple[int, ...]) -> dict[int, int]:
        """Return client -> group; a group of one has a negative number."""
        named = {client: number for number, group in enumerate(self.groups) for client in group}
        return {client: named.get(client, -1 - client) for client in clients}


def _ranks(of_client: Mapping[int, int], losses: Mapping[int, float]) -> dict[int, int]:
    """Return group -> number of groups with a smaller mean loss less number with a larger one."""
    members: dict[int, list[Fraction]] = {}
    for client, group in of_client.items():
        members.setdefault(group, []).append(Fraction(losses[client]))
    # Exact means: a rank must not hang on the rounding of a sum, that is on the order of the clients.
    means = {group: sum(values, Fraction()) / len(values) for group, values in members.items()}
    ordered = sorted(means.values())
    return {
        group: bisect_left(ordered, mean) - (len(ordered) - bisect_right(ordered, mean))
        for group, mean in means.items()
    }
