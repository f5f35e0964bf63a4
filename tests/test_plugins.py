"""Plugins are found by walking a folder; the file name is the registry."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from fedsim import plugins, seeds
from fedsim.plugins import Plugin, UnknownPluginError
from fedsim.scenario import FAMILIES

BASE = """
from abc import ABC, abstractmethod
from typing import ClassVar
from fedsim.plugins import Plugin

class Shape(Plugin, ABC):
    noun: ClassVar[str] = "shape"
    @abstractmethod
    def sides(self): ...
"""
SQUARE = """
from {family} import Shape

class _Helper:
    pass

class Square(Shape):
    width: float = 1.0
    def sides(self):
        return 4
"""


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A family with one good plugin, one file with none, one with two, and a private file."""
    name = f"shapes_{seeds.derive(0, request.node.nodeid)}"  # no module is imported twice
    folder = tmp_path / name
    folder.mkdir()
    files = {
        "__init__": BASE.replace(
            'noun = "shape"', 'from typing import ClassVar\n    noun: ClassVar[str] = "shape"'
        ),
        "square": SQUARE.format(family=name),
        "none": f"from {name} import Shape\n",
        "two": SQUARE.format(family=name) + "class Other(Square):\n    pass\n",
        "_private": SQUARE.format(family=name),
    }
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def base_of(family: str) -> type[Plugin]:
    return __import__(family).Shape  # type: ignore[no-any-return]


def test_a_plugin_is_spelled_as_a_scenario_names_it() -> None:
    from fedsim.metrics import Metric
    from fedsim.metrics.cmi import Cmi
    from tests.metrics.outside import Brier

    for plugin, name in ((Cmi(), "cmi"), (Brier(), "tests.metrics.outside:Brier")):
        assert plugins.spelled(plugin, "fedsim.metrics") == name
        assert plugins.find("fedsim.metrics", name, Metric) is type(plugin)  # type: ignore[type-abstract]


def test_names_are_the_files_sorted_without_private_ones(family: str) -> None:
    assert plugins.names(family) == ["none", "square", "two"]


def test_find_returns_the_one_class_and_its_name_is_the_file(family: str) -> None:
    found = plugins.find(family, "square", base_of(family))
    assert found.__name__ == "Square"
    assert found().plugin_name == "square"


@pytest.mark.parametrize(("name", "count"), [("none", 0), ("two", 2)])
def test_a_file_must_define_exactly_one(family: str, name: str, count: int) -> None:
    with pytest.raises(UnknownPluginError, match=rf"{name} must define exactly one Shape, it has {count}"):
        plugins.find(family, name, base_of(family))


@pytest.mark.parametrize("name", ["sqare", "Square", "_private", "square.", "", "../square"])
def test_an_unknown_name_is_refused_with_what_there_is(family: str, name: str) -> None:
    with pytest.raises(UnknownPluginError, match=r"no such shape .* there are none, square, two"):
        plugins.find(family, name, base_of(family))


def test_the_nearest_name_is_offered(family: str) -> None:
    with pytest.raises(UnknownPluginError, match='did you mean "square"'):
        plugins.find(family, "sqare", base_of(family))
    assert plugins.nearest("zzz", ["square"]) == ";"
    assert plugins.nearest("anything", []) == ";"


def test_an_import_path_is_found(family: str) -> None:
    assert plugins.find(family, f"{family}.square:Square", base_of(family)).__name__ == "Square"


def test_an_import_path_to_something_else_is_refused(family: str) -> None:
    for name in (f"{family}.square:_Helper", f"{family}:Shape", "pathlib:Path", "math:pi"):
        with pytest.raises(UnknownPluginError, match="is not a"):
            plugins.find(family, name, base_of(family))


def test_plugins_are_frozen_and_refuse_unknown_options(family: str) -> None:
    square = plugins.find(family, "square", base_of(family))
    with pytest.raises(ValidationError, match="frozen"):
        square().width = 2.0  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="extra"):
        square(height=1.0)
    assert square(width=2.0) == square(width=2.0) != square()


@pytest.mark.parametrize(("package", "base"), FAMILIES.values(), ids=list(FAMILIES))
def test_every_plugin_of_every_family_can_be_found(package: str, base: type[Plugin]) -> None:
    found = plugins.names(package)
    assert found
    for name in found:
        assert issubclass(plugins.find(package, name, base), base)


def test_the_noun_of_a_family_without_one_is_its_class() -> None:
    class Cloud(Plugin):
        pass

    class Named(Plugin):
        noun: ClassVar[str] = "data set"

    assert plugins.noun(Cloud) == "cloud"
    assert plugins.noun(Named) == "data set"
