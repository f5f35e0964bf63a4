"""Every sink: one file, options with defaults, an extra that installs it; nothing is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedsim import plugins
from fedsim.catalogue import lines
from fedsim.sinks import Sink

HOME = Path(__file__).resolve().parents[2]
SINKS = plugins.names("fedsim.sinks")
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", SINKS)
def test_it_can_be_named_without_options(name: str) -> None:
    found = plugins.find("fedsim.sinks", name, Sink)  # type: ignore[type-abstract]
    assert found().plugin_name == name
    assert f"{name} (sink, of sinks)" in lines(name)


@pytest.mark.parametrize("name", SINKS)
def test_its_extra_installs_it_and_tests_have_it(name: str) -> None:
    found = plugins.find("fedsim.sinks", name, Sink)  # type: ignore[type-abstract]
    installed = " ".join(PROJECT[found.extra])
    assert all(package in installed for package in found.packages)
    [everything] = [line for line in PROJECT["dev"] if line.startswith("fedsim[")]
    assert found.extra in everything.removeprefix("fedsim[").removesuffix("]").split(",")
    for package in found.packages:
        assert __import__("importlib.util").util.find_spec(package) is not None


def test_no_tracker_is_loaded_before_a_run_needs_it() -> None:
    code = (
        "import sys, fedsim.server_app\n"
        "from fedsim import plugins\n"
        "from fedsim.sinks import Sink\n"
        "packages = {p for n in sys.argv[1:] for p in plugins.find('fedsim.sinks', n, Sink).packages}\n"
        "print(sorted(packages & set(sys.modules) - {'sqlalchemy', 'alembic'}))\n"  # Flower may load these
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *SINKS], cwd=HOME, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", SINKS)
def test_the_docs_name_it_and_its_options(name: str) -> None:
    text = (HOME / "docs" / "tracking.md").read_text(encoding="utf-8")
    found = plugins.find("fedsim.sinks", name, Sink)  # type: ignore[type-abstract]
    assert f'"{name}"' in text
    assert f"fedsim[{found.extra}]" in text
    for option in found.model_fields:
        assert f"`{option}" in text, f"{name}.{option}"
