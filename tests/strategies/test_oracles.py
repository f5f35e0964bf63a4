"""The oracles are worth something only if independent ones agree."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies import oracles


@pytest.mark.parametrize("seed", range(5))
def test_recursion_agrees_with_the_shortest_solution_and_with_eighty_digits(seed: int) -> None:
    random = np.random.default_rng(seed)
    gradients, rates = random.normal(size=(5, 30)), random.uniform(0.5, 2.0, 5)
    literal = oracles.gram_schmidt_direction(gradients, rates)
    np.testing.assert_allclose(literal, oracles.affine_direction(gradients, rates), rtol=0, atol=1e-13)
    np.testing.assert_allclose(literal, oracles.exact_direction(gradients, rates), rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_enumeration_agrees_with_projected_gradients(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(5, 7)) + 0.5
    np.testing.assert_allclose(
        oracles.min_norm_by_enumeration(points), oracles.min_norm_by_projection(points), rtol=0, atol=1e-7
    )


def test_enumeration_finds_the_origin_inside_a_triangle() -> None:
    points = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(oracles.min_norm_by_enumeration(points), [0.5, 0.25, 0.25], atol=1e-15)


def test_simplex_projection_of_a_known_point() -> None:
    np.testing.assert_allclose(oracles.onto_simplex(np.array([1.6, 0.4])), [1.0, 0.0], atol=1e-15)


def test_direct_and_inverse_bfgs_are_inverse_to_each_other() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(6, 6))
    curvature = root @ root.T + np.eye(6)
    pairs = [(s, curvature @ s) for s in random.normal(size=(4, 6))]
    start = np.diag(random.uniform(0.5, 2.0, 6))
    product = oracles.bfgs_hessian(pairs, np.linalg.inv(start)) @ oracles.bfgs_inverse(pairs, start)
    np.testing.assert_allclose(product, np.eye(6), atol=1e-9)
