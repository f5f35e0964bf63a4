"""Slow and obviously right ways to the numbers of the aggregation rules: the oracles of the fast ones.

Everything here works on the rows themselves in numpy float64 (or with more digits), never on a Gram matrix,
so that it shares no arithmetic with what it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pairs = Sequence[tuple[Array, Array]]


def gram_schmidt_direction(gradients: Array, rates: Array) -> Array:
    """The published recursion, line by line: (5), (6), then (13), (12), (14) of AdaFed.

    Args:
        gradients: One row per client, [K, D], linearly independent.
        rates: |f_k|^gamma, [K]; no denominator of (6) may vanish.
    """
    orthogonal = [gradients[0] / rates[0]]  # (5)
    for gradient, rate in zip(gradients[1:], rates[1:], strict=True):
        shares = [gradient @ earlier / (earlier @ earlier) for earlier in orthogonal]
        rest = gradient - sum(p * earlier for p, earlier in zip(shares, orthogonal, strict=True))
        orthogonal.append(rest / (rate - sum(shares)))  # (6)
    a = 2.0 / sum(1.0 / (vector @ vector) for vector in orthogonal)  # (13)
    lambdas = [a / 2.0 / (vector @ vector) for vector in orthogonal]  # (12)
    return np.array(lambdas) @ np.array(orthogonal)  # (14)


def affine_direction(gradients: Array, rates: Array) -> Array:
    """d = x / ||x||^2 with x the shortest solution of G x = c, by singular values of G itself."""
    x = np.linalg.lstsq(gradients, rates, rcond=None)[0]
    return x / (x @ x)


def exact_direction(gradients: Array, rates: Array, digits: int = 80) -> Array:
    """The same d, d = G^T M^-1 c / (c^T M^-1 c), with `digits` decimal digits and rounded once at the end."""
    with mpmath.workdps(digits):
        rows = [[mpmath.mpf(float(value)) for value in row] for row in gradients]
        products = mpmath.matrix([[mpmath.fdot(a, b) for b in rows] for a in rows])
        target = mpmath.matrix([mpmath.mpf(float(rate)) for rate in rates])
        solution = mpmath.lu_solve(products, target)
        length = mpmath.fdot(solution, target)
        return np.array([float(mpmath.fdot(solution, column) / length) for column in zip(*rows, strict=True)])


def min_norm_by_enumeration(points: Array) -> Array:
    """Weights of the shortest point of conv{points}, by trying every face (Caratheodory); K <= 8, please."""
    count = len(points)
    best, best_norm = np.eye(count)[0], np.inf
    for size in range(1, count + 1):
        for face in combinations(range(count), size):
            weights = _shortest_of_affine_hull(points[list(face)])
            if weights is None or weights.min() < -1e-12:
                continue
            candidate = np.zeros(count)
            candidate[list(face)] = weights
            norm = np.linalg.norm(candidate @ points)
            if norm < best_norm:
                best, best_norm = candidate, norm
    return best


def _shortest_of_affine_hull(points: Array) -> Array | None:
    """Weights (sum 1, any sign) of the shortest point, or None if the points are affinely dependent."""
    base, edges = points[0], points[1:] - points[0]
    if not len(edges):
        return np.ones(1)
    rest, _, rank, _ = np.linalg.lstsq(edges.T, -base, rcond=1e-12)
    return np.concatenate([[1.0 - rest.sum()], rest]) if rank == len(edges) else None


def min_norm_by_projection(points: Array, steps: int = 2_000) -> Array:
    """The same weights by accelerated projected gradient descent on the simplex."""
    curvature = np.linalg.norm(points, 2) ** 2
    weights = momentum = np.full(len(points), 1.0 / len(points))
    for step in range(steps):
        ahead = onto_simplex(momentum - points @ (points.T @ momentum) / curvature)
        momentum = ahead + step / (step + 3.0) * (ahead - weights)
        weights = ahead
    return weights


def onto_simplex(vector: Array) -> Array:
    """The nearest point with non-negative coordinates and sum 1."""
    descending = np.sort(vector)[::-1]
    thresholds = (np.cumsum(descending) - 1.0) / np.arange(1, len(vector) + 1)
    support = np.nonzero(descending > thresholds)[0][-1]
    return np.maximum(vector - thresholds[support], 0.0)


def bfgs_hessian(pairs: Pairs, start: Array) -> Array:
    """Dense BFGS in the direct form: B+ = B - B s s'B / s'B s + y y' / s'y, oldest pair first."""
    hessian = start.copy()
    for s, y in pairs:
        moved = hessian @ s
        hessian = hessian - np.outer(moved, moved) / (s @ moved) + np.outer(y, y) / (s @ y)
    return hessian


def bfgs_inverse(pairs: Pairs, start: Array) -> Array:
    """Dense BFGS in the inverse form: H+ = (I - r s y') H (I - r y s') + r s s' with r = 1 / s'y."""
    inverse, identity = start.copy(), np.eye(len(start))
    for s, y in pairs:
        r = 1.0 / (s @ y)
        left = identity - r * np.outer(s, y)
        inverse = left @ inverse @ left.T + r * np.outer(s, s)
    return inverse


def qfedavg_step(
    updates: Sequence[Sequence[float]], losses: Sequence[float], q: float, client_lr: float
) -> list[float]:
    """Algorithm 2 of q-FedAvg in plain Python, one number at a time."""
    lipschitz = 1.0 / client_lr
    total, curvature = [0.0] * len(updates[0]), 0.0
    for update, loss in zip(updates, losses, strict=True):
        shifted = loss + 1e-10
        gradient = [lipschitz * value for value in update]
        squared_norm = sum(value * value for value in gradient)
        total = [t + shifted**q * value for t, value in zip(total, gradient, strict=True)]
        curvature += q * shifted ** (q - 1.0) * squared_norm + lipschitz * shifted**q
    return [value / curvature for value in total]


def weighted_mean(updates: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """sum_k w_k u_k / sum_k w_k in plain Python."""
    columns = zip(*updates, strict=True)
    return [sum(w * u for w, u in zip(weights, column, strict=True)) / sum(weights) for column in columns]
