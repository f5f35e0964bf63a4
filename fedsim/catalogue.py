"""What a scenario can name, a line each, from the code's own docstrings."""

from __future__ import annotations

import inspect
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clients.hooks import Hook
from fedsim import plugins
from fedsim.errors import ScenarioError
from fedsim.metrics import Metric
from fedsim.plugins import Plugin, UnknownPluginError
from fedsim.scenario import FAMILIES, TABLES
from fedsim.sinks import Sink
from fedsim.system.settings import SystemSettings
from strategies import stock_options
from strategies.rules import AnyRule

_SHELVES: Mapping[str, tuple[str, type[Plugin]]] = {
    "strategies": FAMILIES["strategy"],
    "datasets": FAMILIES["data"],
    "partitions": FAMILIES["partition"],
    "models": FAMILIES["model"],
    "hooks": ("clients.hooks", Hook),
    "metrics": ("fedsim.metrics", Metric),
    "sinks": ("fedsim.sinks", Sink),
    "availability": SystemSettings.plugged["availability"],
    "rates": SystemSettings.plugged["speed"],
    "partial_work": SystemSettings.plugged["partial_work"],
}


WIDEST = 20
"""Characters after which a name pushes its own text aside rather than everybody's."""


def lines(family: str | None = None) -> list[str]:
    """Return "name  what it is" of one family, or of all with headings; or what one plugin is, with its options.

    Raises:
        ScenarioError: There is no such family or plugin.
    """
    known = [*_SHELVES, "scenarios"]
    if family is not None and family in TABLES:
        return _options(TABLES[family], family)
    if family is None:
        return [line for each in known for line in (f"{each}:", *(f"  {entry}" for entry in lines(each)))]
    if family == "scenarios":
        return _aligned(_scenarios())
    if family not in _SHELVES:
        return _plugin(family, known)
    package, base = _SHELVES[family]
    entries = {}
    for name in plugins.names(package):
        module = sys.modules[plugins.find(package, name, base).__module__]
        entries[name] = (inspect.getdoc(module) or "").splitlines()[0]
    if base is AnyRule:
        entries |= {name: f"Flower's own: {stock_options.describe(name)}" for name in stock_options.names()}
    return _aligned(entries)


def _options(kind: type[BaseModel], name: str) -> list[str]:
    """Return what a plain table of a scenario is, and its options with their defaults."""
    fields = kind.model_fields.items()
    plugged: Mapping[str, tuple[str, type[Plugin]]] = getattr(kind, "plugged", {})
    return [
        f"[{name}]",
        *(inspect.getdoc(kind) or "").splitlines(),
        "",
        *(f"  {option} = {_default(field)}" for option, field in fields if option not in plugged),
        *(f"  {option}.name: {', '.join(plugins.names(family))}" for option, (family, _) in plugged.items()),
    ]


def _plugin(name: str, families: Sequence[str]) -> list[str]:
    """Return what every plugin of a name is, and its options with their defaults."""
    found: list[str] = []
    names = list(families)
    for shelf, (package, base) in _SHELVES.items():
        names += plugins.names(package)
        if name not in plugins.names(package):
            continue
        kind = plugins.find(package, name, base)
        found += [f"{name} ({plugins.noun(base)}, of {shelf})", *_described(kind, base), ""]
        options = kind.model_fields
        found += [f"  {option} = {_default(field)}" for option, field in options.items()] or ["  no options"]
    if not found and ":" in name:
        return _outside(name)
    if not found:
        names += TABLES
        problem = f'no family or plugin "{name}"{plugins.nearest(name, names)} families are {", ".join(families)}'
        raise ScenarioError("list", [problem])
    return found


def _outside(name: str) -> list[str]:
    """Return what a plugin named by its import path is.

    Raises:
        ScenarioError: It cannot be imported, or is no plugin.
    """
    try:
        kind = plugins.find("", name, Plugin)
    except UnknownPluginError as error:
        raise ScenarioError("list", [str(error)]) from error
    return _options(kind, name)


def _described(kind: type[Plugin], base: type[Plugin]) -> list[str]:
    """Return what a class says of itself, and what those between it and the family's base say of its options."""
    between = [each for each in kind.__mro__[1:] if issubclass(each, base) and each is not base]
    return [
        line
        for each in (kind, *between)
        if each is kind or each.__annotations__
        for line in (*(inspect.getdoc(each) or "").splitlines(), "")
    ][:-1]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(has to be given)"
    value = field.get_default(call_default_factory=True)
    return "(not set)" if value is None else json.dumps(value, default=str)


def _scenarios() -> dict[str, str]:
    home = Path(__file__).resolve().parent.parent / "scenarios"
    files = sorted(home.glob("*.toml"))
    return {file.stem: tomllib.loads(file.read_text(encoding="utf-8")).get("description", "") for file in files}


def _aligned(entries: dict[str, str]) -> list[str]:
    width = min(WIDEST, max((len(name) for name in entries), default=0))
    return [f"{name:<{width}}  {text}" for name, text in sorted(entries.items())]
