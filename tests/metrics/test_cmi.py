"""Concentration and separation against double sums, and the inequalities they obey."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim.metrics.cmi import Cmi
from tests.metrics.samples import one, predictions, rows, said, value

Vector = NDArray[np.float64]


def outputs_of(logits: torch.Tensor) -> tuple[Vector, Vector]:
    log_p = torch.log_softmax(logits.double(), 1).numpy()
    return np.exp(log_p), log_p


def slow_cmi(logits: torch.Tensor, labels: Vector) -> float:
    """E[KL(P || Q_Y)], example by example."""
    p, log_p = outputs_of(logits)
    total = 0.0
    for x, y in enumerate(labels):
        q = p[labels == y].mean(axis=0)
        total += float((p[x] * (log_p[x] - np.log(q))).sum())
    return total / len(labels)


def slow_separation(
    logits: torch.Tensor, labels: Vector, divergence: Callable[[Vector, Vector, Vector], float]
) -> float:
    """E[1{Y != V} divergence(P, P')], pair by pair."""
    p, log_p = outputs_of(logits)
    n = len(labels)
    pairs = ((x, u) for x in range(n) for u in range(n) if labels[x] != labels[u])
    return sum(divergence(p[x], log_p[x], log_p[u]) for x, u in pairs) / n**2


def cross_entropy(p: Vector, log_p: Vector, log_other: Vector) -> float:
    return -float((p * log_other).sum())


def kl(p: Vector, log_p: Vector, log_other: Vector) -> float:
    return float((p * (log_p - log_other)).sum())


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("size", [6, 40])
def test_sums_give_what_the_definitions_give(num_classes: int, size: int) -> None:
    sample = predictions((size,), num_classes)
    found = {name: float(value(Cmi(), sample, name)) for name in Cmi.gives}
    assert found["cmi"] == pytest.approx(slow_cmi(sample.logits, sample.labels), rel=1e-10)
    gamma = slow_separation(sample.logits, sample.labels, cross_entropy)
    assert found["gamma"] == pytest.approx(gamma, rel=1e-10)
    assert found["gamma_kl"] == pytest.approx(slow_separation(sample.logits, sample.labels, kl), rel=1e-10)
    assert found["ncmi"] == pytest.approx(found["cmi"] / gamma, rel=1e-10)


def test_the_pooled_values_are_those_of_the_concatenated_predictions() -> None:
    many = predictions((7, 0, 30, 1, 64))
    pooled = Cmi().values(Cmi().sums(many).sum(axis=0, keepdims=True), many.task)
    assert pooled["cmi"][0] == pytest.approx(slow_cmi(many.logits, many.labels), rel=1e-10)
    assert pooled["gamma"][0] == pytest.approx(slow_separation(many.logits, many.labels, cross_entropy), rel=1e-10)


def test_outputs_collapsed_to_the_centroids_have_no_cmi() -> None:
    sample = one(said([0, 1, 2, 2, 0, 1, 0], 3), [0, 1, 2, 2, 0, 1, 0])
    assert value(Cmi(), sample, "cmi") < 1e-15
    assert value(Cmi(), sample, "ncmi") < 1e-15
    assert value(Cmi(), sample, "gamma") > 1


def test_one_hot_outputs_have_the_entropy_of_the_prediction_given_the_class() -> None:
    """H(Yhat | Y): class 0 is called 0, 0, 1, 2 and class 1 is called 1, 1."""
    sample = one(1e4 * said([0, 0, 1, 2, 1, 1], 3), [0, 0, 0, 0, 1, 1])
    of_class_0 = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert value(Cmi(), sample, "cmi") == pytest.approx(4 / 6 * of_class_0, rel=1e-12)


def test_one_class_alone_has_a_cmi_and_no_separation() -> None:
    sample = predictions((20,))
    kept = rows(sample, sample.labels == 2, merge=True)
    assert value(Cmi(), kept, "gamma") == value(Cmi(), kept, "gamma_kl") == 0.0
    assert value(Cmi(), kept, "cmi") > 0
    assert math.isnan(value(Cmi(), kept, "ncmi"))


def test_probabilities_that_underflow_in_float32_still_count() -> None:
    sample = one(np.array([[300.0, 0.0], [0.0, 300.0]]), [0, 1])
    # Each example meets the other class: half of the pairs, each at a cross entropy of 300 nats.
    assert value(Cmi(), sample, "gamma") == pytest.approx(150.0, rel=1e-12)


shapes = st.tuples(
    st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    st.integers(2, 6),
    st.integers(0, 2**16),
    st.floats(0.0, 30.0),
)


@settings(max_examples=150, deadline=None)
@given(shapes)
def test_pooling_never_lowers_the_cmi_and_it_stays_in_its_bounds(shape: tuple[list[int], int, int, float]) -> None:
    sizes, num_classes, seed, scale = shape
    many = predictions(sizes, num_classes, seed, scale)
    sums = Cmi().sums(many)
    local = Cmi().values(sums, many.task)["cmi"]
    pooled = float(Cmi().values(sums.sum(axis=0, keepdims=True), many.task)["cmi"][0])
    weights = np.array(sizes) / sum(sizes)
    assert pooled >= float(np.nansum(weights * local)) - 1e-12
    for each in (pooled, *local[~np.isnan(local)]):
        assert 0 <= each <= math.log(num_classes) + 1e-12
