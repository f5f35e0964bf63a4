"""What a direction promises each client, computed from inner products alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def certificate(gram: Tensor, weights: Tensor, rates: Tensor | None = None) -> dict[str, float]:
    """Describe d = weights @ G to first order.

    Args:
        gram: M = G G^T, [K, K] float64.
        weights: [K] float64.
        rates: c_k that <d, g_k> should be proportional to, [K], or None.

    Returns:
        descent_min: min_k <d, g_k>; positive means that every client's loss falls to first order.
        rate_spread: (max - min) / mean of <d, g_k> / c_k over clients with c_k > 0; 0 when the rates are met.
        weight_min: The smallest weight; negative weights push away from a client's own descent.
        cos_mean: Cosine between d and the plain mean of the updates.
        norm_ratio: ||d|| / ||mean update||.
    """
    matrix, alpha = gram.cpu(), weights.cpu().double()
    slopes = matrix @ alpha
    mean = torch.full_like(alpha, 1.0 / len(alpha))
    norm = math.sqrt(max(float(alpha @ slopes), 0.0))
    mean_norm = math.sqrt(max(float(mean @ matrix @ mean), 0.0))
    product = norm * mean_norm
    facts = {
        "descent_min": float(slopes.min()),
        "weight_min": float(alpha.min()),
        "cos_mean": float(mean @ slopes) / product if product > 0 else math.nan,
        "norm_ratio": norm / mean_norm if mean_norm > 0 else math.nan,
        "rate_spread": math.nan,
    }
    if rates is not None and bool((rates > 0).any()):
        wanted = rates.cpu().double()
        met = slopes[wanted > 0] / wanted[wanted > 0]
        if float(met.mean()) != 0.0:
            facts["rate_spread"] = float((met.max() - met.min()) / met.mean().abs())
    return facts
