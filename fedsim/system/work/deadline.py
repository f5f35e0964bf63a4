"""As many of the local steps as the deadline leaves time for."""

from __future__ import annotations

import math
from typing import Annotated, final

from pydantic import Field

from fedsim.system.work import Job, PartialWork


@final
class Deadline(PartialWork):
    """A client takes the most steps after which its answer is there in time, and never fewer than a share of them.

    A client that cannot do even that share in time does that share, and is late.

    Attributes:
        min_share: The least share.
    """

    min_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1

    @property
    def needs_deadline(self) -> bool:
        """Whether it means nothing without system.deadline_s: yes."""
        return True

    def steps(self, job: Job) -> int:
        """Return the steps the client takes; see `PartialWork.steps`."""
        low = min(job.steps, max(1, math.ceil(self.min_share * job.steps - 1e-9)))
        high = job.steps
        while low < high:  # the most that fit, by halving
            middle = (low + high + 1) // 2
            if job.seconds(middle) <= job.deadline_s:
                low = middle
            else:
                high = middle - 1
        return low
