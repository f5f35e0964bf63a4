"""A share of the local steps that is uniform between a bound and all of them, drawn anew in each round."""

from __future__ import annotations

from typing import Annotated, final

from pydantic import Field

from fedsim.system.work import Job, PartialWork


@final
class Uniform(PartialWork):
    """A client takes round(s S) of its S steps, at least one; s uniform on [min_share, 1].

    What FedProx calls systems heterogeneity: devices that do as much as they manage
    (Li et al., MLSys 2020, section 5.2, https://arxiv.org/abs/1812.06127).

    Attributes:
        min_share: The least share.
    """

    min_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2

    def steps(self, job: Job) -> int:
        """Return the steps the client takes; see `PartialWork.steps`."""
        share = self.min_share + (1.0 - self.min_share) * job.luck
        return max(1, round(share * job.steps))
