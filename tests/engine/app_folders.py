"""Flower apps for tests: written to a folder from a few lines of code, or those of tests/apps."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.engine.apps import OURS

HOME = Path(__file__).resolve().parents[2]
APPS = HOME / "tests" / "apps"

CLIENT = """
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
"""

SERVER = """
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    pass
"""


def write_app(
    folder: Path, *, client: str = "", server: str = SERVER, config: str = "", name: str = "little"
) -> Path:
    """Write an app of one package with client.py and server.py; `client` goes below CLIENT."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "client.py").write_text(CLIENT + textwrap.dedent(client))
    (package / "server.py").write_text(textwrap.dedent(server))
    (folder / "pyproject.toml").write_text(
        f"""
[project]
name = "{name}"
version = "0.1.0"

[tool.flwr.app]
publisher = "me"

[tool.flwr.app.components]
serverapp = "{name}.server:app"
clientapp = "{name}.client:app"

[tool.flwr.app.config]
{config}
"""
    )
    return folder


@contextmanager
def own_imports() -> Iterator[None]:
    """Forget the modules of apps afterwards; leave sys.path and the working directory as they were."""
    path, modules, here = list(sys.path), dict(sys.modules), Path.cwd()
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            if _of_an_app(sys.modules[name]):
                del sys.modules[name]
        sys.modules.update({name: kept for name, kept in modules.items() if name.split(".")[0] in OURS})


def _of_an_app(module: object) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    places = Path(file).parents
    return APPS in places or not any(Path(place) in places for place in (sys.prefix, sys.base_prefix, HOME))
