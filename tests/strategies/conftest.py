"""Whoever makes a Flower message is somebody."""

import pytest

from fedsim.engine.flower import set_identity


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_identity()
