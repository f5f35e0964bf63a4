"""Flower apps for tests: written to a folder from a few lines of code, or those of tests/apps."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

APPS = Path(__file__).resolve().parents[1] / "apps"

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
    """Leave sys.path, sys.modules and the working directory as they were."""
    path, modules, here = list(sys.path), dict(sys.modules), Path.cwd()
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and not any(file.startswith(place) for place in (sys.prefix, sys.base_prefix)):
                del sys.modules[name]
        for name in ("clients", "strategies"):
            if name in modules and sys.modules.get(name) is not modules[name]:
                sys.modules.update({known: kept for known, kept in modules.items() if known.split(".")[0] == name})
