"""CMI: how concentrated and how separated the classes' outputs are (Yang et al., TNNLS 2025).

https://arxiv.org/abs/2309.09123
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class Cmi(Metric):
    """Concentration I(X; Yhat | Y), separation Gamma, and their ratio NCMI, with P = softmax(logits).

    With Q_y the mean of P over the examples of class y, n_y their number and n = sum n_y:

        CMI      = E[KL(P || Q_Y)]               = sum_y n_y/n H(Q_y) - E[H(P)]
        Gamma    = E[1{Y != V} H(P, P')]         = -1/n^2 sum_y <S_y, T - T_y>
        Gamma_KL = E[1{Y != V} KL(P || P')]      = Gamma - 1/n^2 sum_y (n - n_y) H_y
        NCMI     = CMI / Gamma

    (P', V) is an independent copy of (P, Y), H(p, q) = -sum p log q, S_y = sum P and T_y = sum log P over class y,
    T = sum_y T_y, and H_y = sum H(P) over class y. So n_y, S_y, T_y and H_y of the clients, added up, give the
    values of all examples together exactly. They are never below the clients' own CMIs on average, because
    entropy is concave. Classes without examples do not appear in any sum. Values are clipped at 0, below which
    only rounding can take them.
    """

    gives: ClassVar[Mapping[str, Value]] = {
        "cmi": Value(
            "Concentration: mean KL divergence from the output distribution of an example to the mean one of its "
            "class, in nats; 0 when all outputs of a class are equal.",
            "lower",
        ),
        "gamma": Value(
            "Separation: cross entropy between the output distributions of two random examples, counted when their "
            "classes differ, in nats.",
            "higher",
        ),
        "gamma_kl": Value(
            "Separation by KL divergence in place of cross entropy: Gamma less the entropy of the first output.",
            "higher",
        ),
        "ncmi": Value("Normalised CMI: CMI over Gamma.", "lower"),
    }

    def sums(self, predictions: Predictions) -> Floats:
        """Return n_y, H_y, S_y and T_y of each class, [K, C (2 + 2 C)]."""
        log_p = predictions.log_probabilities
        p = np.exp(log_p)
        entropy = -(p * log_p).sum(axis=1, keepdims=True)
        rows = np.concatenate([np.ones_like(entropy), entropy, p, log_p], axis=1)
        found = predictions.by_client_and(predictions.labels, log_p.shape[1], rows)
        return found.reshape(len(found), -1)

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return CMI, Gamma, Gamma by KL and NCMI."""
        by_class = sums.reshape(len(sums), task.num_classes, 2 + 2 * task.num_classes)
        n_y, h_y = by_class[:, :, 0], by_class[:, :, 1]
        s_y, t_y = np.split(by_class[:, :, 2:], 2, axis=2)
        n = n_y.sum(axis=1)
        cmi = ratio((n_y * _entropy(ratio(s_y, n_y[:, :, None]))).sum(axis=1) - h_y.sum(axis=1), n)
        # T - T_y before the product: a single class then gives exactly 0, and close sums lose no digits.
        gamma = ratio(-(s_y * (t_y.sum(axis=1, keepdims=True) - t_y)).sum(axis=(1, 2)), n * n)
        gamma_kl = gamma - ratio(((n[:, None] - n_y) * h_y).sum(axis=1), n * n)
        cmi, gamma, gamma_kl = (np.maximum(found, 0.0) for found in (cmi, gamma, gamma_kl))
        return {"cmi": cmi, "gamma": gamma, "gamma_kl": gamma_kl, "ncmi": ratio(cmi, gamma)}


def _entropy(q: Floats) -> Floats:
    """Return the entropy over the last axis in nats, 0 for the unknown distribution of a class without examples."""
    held = np.where(q > 0, q, 1.0)  # 0 log 0 = 0
    return np.asarray(-(held * np.log(held)).sum(axis=-1), np.float64)
