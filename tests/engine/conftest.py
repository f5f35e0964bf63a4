"""Grids on the clients of tests/engine/app_clients.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedsim.engine.app_grid import AppGrid
from fedsim.engine.apps import FlowerApp
from fedsim.engine.base import BlockGrid
from tests.engine.app_clients import BACKENDS, Open, opened, told
from tests.engine.app_folders import own_imports


@pytest.fixture
def own_app_imports() -> Iterator[None]:
    """What an app imports is forgotten after the test."""
    with own_imports():
        yield


@pytest.fixture(scope="module")
def two_workers(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BlockGrid, FlowerApp]]:
    """One Ray grid for all tests: a worker takes seconds to start."""
    inner, app = opened(tmp_path_factory.mktemp("app") / "app", "ray")
    yield inner, app
    inner.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Open]:
    """Open grids in this process on clients of any code."""
    with ExitStack() as stack:

        def made(num_nodes: int, client: str) -> AppGrid:
            inner, app = opened(tmp_path / "app", "local", num_nodes, client)
            stack.enter_context(inner)
            return told(inner, app)

        yield made


@pytest.fixture(params=BACKENDS)
def grid(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AppGrid]:
    """Five nodes of the code of `app_clients` that keep nothing yet, in this process or on Ray."""
    if request.param == "ray":
        inner, app = request.getfixturevalue("two_workers")
        inner.states.restore({})
        yield told(inner, app)
        return
    inner, app = opened(tmp_path / "app", "local")
    with inner:
        yield told(inner, app)
