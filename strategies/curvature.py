"""The server's own quadratic model of the mean loss, from the mean updates of successive rounds.

Rates say how fast each loss should fall, not how far one may go. With full participation the mean updates g_t,
g_{t+1} at both ends of the server's last step s are at hand for nothing, so (s, g_{t+1} - g_t) are BFGS pairs of
the mean loss, and p^T B p tells how far along p the model keeps falling.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quadratic_form(steps: Tensor, changes: Tensor, direction: Tensor) -> float:
    """Return p^T B p, B the L-BFGS Hessian approximation of the pairs.

    The compact form of the direct update (Nocedal and Wright, eq. 7.29), B_0 = (y^T y / s^T y) I with the
    newest pair.

    Args:
        steps: s, [m, D] oldest first, all with s^T y > 0.
        changes: y, [m, D].
        direction: p, [D].
    """
    s, y, p = steps.double(), changes.double(), direction.double()
    initial = (y[-1] @ y[-1]) / (s[-1] @ y[-1])
    inner = s @ y.T
    lower = torch.tril(inner, -1)
    middle = torch.cat(
        [
            torch.cat([initial * s @ s.T, lower], dim=1),
            torch.cat([lower.T, -torch.diag(inner.diagonal())], dim=1),
        ]
    )
    projected = torch.cat([initial * (s @ p), y @ p])
    return float(initial * (p @ p) - projected @ torch.linalg.solve(middle, projected))
