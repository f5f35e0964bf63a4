"""The server's quadratic model against dense BFGS in the direct form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strategies.curvature import quadratic_form
from tests.strategies import oracles


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_quadratic_form_is_that_of_dense_bfgs(count: int) -> None:
    random = np.random.default_rng(count)
    root = random.normal(size=(9, 9))
    hessian = root @ root.T / 9 + 0.3 * np.eye(9)
    steps, direction = random.normal(size=(count, 9)), random.normal(size=9)
    changes = steps @ hessian
    start = (changes[-1] @ changes[-1]) / (steps[-1] @ changes[-1]) * np.eye(9)
    dense = oracles.bfgs_hessian(list(zip(steps, changes, strict=True)), start)
    model = quadratic_form(torch.from_numpy(steps), torch.from_numpy(changes), torch.from_numpy(direction))
    assert model == pytest.approx(direction @ dense @ direction, rel=1e-8)


def test_quadratic_form_of_the_newest_step_is_its_own_curvature() -> None:
    """Secant: B s = y, hence s'Bs = s'y."""
    steps = torch.tensor([[1.0, 0.0, 1.0], [0.5, 2.0, -1.0]]).double()
    changes = steps * torch.tensor([1.0, 3.0, 5.0]).double()
    expected = float(steps[1] @ changes[1])
    assert quadratic_form(steps, changes, steps[1]) == pytest.approx(expected, rel=1e-12)
