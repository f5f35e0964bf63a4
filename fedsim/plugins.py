"""Plugins: one file, one class, no registration; the file name is the name used in a scenario.

A family is a package whose `__init__` defines the abstract base, and whose modules each define exactly one
final subclass of it. Options are pydantic fields: they are the TOML keys, the validation and the repr.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator


class Options(BaseModel):
    """A table of a scenario: frozen; unknown keys, infinite numbers and booleans for numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _spell_out_booleans(cls, given: Any) -> Any:
        """Hand a boolean on as a word where none belongs; pydantic would take true for 1."""
        if not isinstance(given, dict):
            return given
        wants_bool = {name for name, field in cls.model_fields.items() if field.annotation is bool}
        return {k: str(v).lower() if isinstance(v, bool) and k not in wants_bool else v for k, v in given.items()}


class Plugin(Options):
    """Base of everything a scenario can name."""

    @property
    def plugin_name(self) -> str:
        """The name this plugin has in a scenario."""
        return type(self).__module__.rpartition(".")[2]


PluginT = TypeVar("PluginT", bound=Plugin)


class UnknownPluginError(LookupError):
    """No plugin of that name; the message offers the nearest ones."""


def names(family: str) -> list[str]:
    """Return the names of all plugins in a family, sorted.

    Args:
        family: Dotted name of the package, such as "strategies.rules".
    """
    package = importlib.import_module(family)
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))


def find(family: str, name: str, base: type[PluginT]) -> type[PluginT]:
    """Return the plugin class called `name`.

    Args:
        family: Dotted name of the package, such as "strategies.rules".
        name: A file name in that package without ".py", or "package.module:Class" for one of your own.
        base: The family's abstract base; the class found must derive from it.

    Raises:
        UnknownPluginError: No such plugin, or it is not a `base`.
    """
    if ":" in name:
        return _find_outside(name, base)
    known = names(family)
    if name not in known:
        raise UnknownPluginError(
            f'no such {noun(base)} "{name}"{nearest(name, known)} there are {", ".join(known)}'
        )
    module = importlib.import_module(f"{family}.{name}")
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, base) and item.__module__ == module.__name__
        if not inspect.isabstract(item)
    ]
    if len(found) != 1:
        raise UnknownPluginError(f"{module.__name__} must define exactly one {base.__name__}, it has {len(found)}")
    return found[0]


def spelled(plugin: Plugin, family: str) -> str:
    """Return how a scenario names a plugin: by its file in the family, else by its import path."""
    kind = type(plugin)
    inside = kind.__module__.startswith(f"{family}.")
    return plugin.plugin_name if inside else f"{kind.__module__}:{kind.__qualname__}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return '; did you mean "x"?' for the known name closest to `name`, or ';'.

    >>> nearest("qfedvg", ["fedavg", "qfedavg"])
    '; did you mean "qfedavg"?'
    """
    plain = {_letters(candidate): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(_letters(name), list(plain), n=1)
    close = [plain[close[0]]] if close else difflib.get_close_matches(name, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ";"


def _letters(name: str) -> str:
    """Return a name without what spellings differ in: "FedMGDA+" and "fedmgda_plus" are near."""
    return "".join(letter for letter in name.lower().replace("+", "plus") if letter.isalnum())


def noun(base: type[Plugin]) -> str:
    """Return the family's name in words, for messages ("data set" for Dataset)."""
    return str(getattr(base, "noun", base.__name__.lower()))


def _find_outside(name: str, base: type[PluginT]) -> type[PluginT]:
    module_name, _, class_name = name.partition(":")
    try:
        item = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # importing runs somebody else's code
        raise UnknownPluginError(
            f'cannot import {noun(base)} "{name}": {error}; Python looks on PYTHONPATH, put the folder that holds '
            f"{module_name.split('.')[0]} there"
        ) from error
    if not (inspect.isclass(item) and issubclass(item, base)) or inspect.isabstract(item):
        raise UnknownPluginError(f'"{name}" is not a {base.__module__}.{base.__name__}')
    return item
