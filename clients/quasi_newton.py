"""Limited-memory BFGS on one client: the rate that DQN-Fed asks for (arXiv 2501.10877, eqs. 18, 19)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CURVATURE = 1e-10
"""A pair can be kept when s^T y exceeds this share of ||s|| ||y||: then B stays positive definite."""

Pair = tuple[Tensor, Tensor]


def accept(s: Tensor, y: Tensor, curvature: float = CURVATURE) -> bool:
    """Say whether a pair passes the curvature test s^T y > curvature ||s|| ||y||.

    Args:
        s: Difference of two iterates, [D].
        y: Difference of the gradients there on the same examples, [D].
        curvature: The smallest cosine between them; H grows like its inverse.
    """
    wide_s, wide_y = s.double(), y.double()
    return bool(wide_s @ wide_y > curvature * wide_s.norm() * wide_y.norm())


def inverse_hessian_product(pairs: Sequence[Pair], vector: Tensor) -> Tensor:
    """Return H v, H the L-BFGS inverse Hessian of the pairs (two-loop recursion, Nocedal and Wright, alg. 7.4).

    H starts from (s^T y / y^T y) I with the newest pair; without pairs H = I.

    Args:
        pairs: (s, y), each [D], oldest first; all have passed `accept`.
        vector: v, [D].

    Returns:
        [D] float64.
    """
    product = vector.double().clone()
    wide = [(s.double(), y.double()) for s, y in pairs]
    factors = []
    for s, y in reversed(wide):
        factor = (s @ product) / (s @ y)
        product -= factor * y
        factors.append(factor)
    if wide:
        s, y = wide[-1]
        product *= (s @ y) / (y @ y)
    for (s, y), factor in zip(wide, reversed(factors), strict=True):
        product += (factor - (y @ product) / (s @ y)) * s
    return product


def quasi_newton_rate(pairs: Sequence[Pair], gradient: Tensor) -> float:
    """Return c = g^T H g, twice the decrease that the client's own quasi-Newton step predicts.

    Without pairs c = ||g||^2.
    """
    return float(gradient.double() @ inverse_hessian_product(pairs, gradient))


def append(pairs: Tensor | None, s: Tensor, y: Tensor, limit: int, curvature: float = CURVATURE) -> Tensor | None:
    """Return the pairs with (s, y) added if it passes the curvature test, the oldest dropped past `limit`.

    Args:
        pairs: [m, 2, D] oldest first, or None for none.
        s: [D].
        y: [D].
        limit: How many pairs to keep.
        curvature: See `accept`.
    """
    if not accept(s, y, curvature):
        return pairs
    newest = torch.stack([s, y]).unsqueeze(0)
    return newest if pairs is None else torch.cat([pairs, newest])[-limit:]
