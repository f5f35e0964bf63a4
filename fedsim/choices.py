"""Plugins inside a table of a scenario: lists of names or of tables, and tables with a name and options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsim import plugins
from fedsim.plugins import Plugin, UnknownPluginError
from fedsim.sentences import sentences


def with_plugins(
    key: str, section: type[BaseModel], given: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Return a table with plugins in place of the names in its lists.

    Args:
        key: Where the table is, such as "evaluation".
        section: The table's class; its `lists` says which options are lists of plugins, and its `plugged` which are
            one plugin: option -> (package, base).
        given: The table as read from TOML.
        problems: What is wrong is added here, a line each.
    """
    lists: Mapping[str, tuple[str, type[Plugin]]] = getattr(section, "lists", {})
    read = {
        option: _chosen(f"{key}.{option}", given[option], family, base, problems)
        for option, (family, base) in lists.items()
        if option in given
    }
    plugged: Mapping[str, tuple[str, type[Plugin]]] = getattr(section, "plugged", {})
    single = {
        option: _table(f"{key}.{option}", given[option], family, base, problems)
        for option, (family, base) in plugged.items()
        if option in given
    }
    # What was not found has been said; the option's default keeps pydantic from saying it again.
    return {**{k: v for k, v in given.items() if k not in plugged}, **read, **_found(single)}


def spelled_out(section: BaseModel) -> dict[str, Any]:
    """Return the plugins of a table as plain data that `with_plugins` takes back.

    Empty lists are left out, so that a scenario without any keeps its digest.
    """
    lists: Mapping[str, tuple[str, type[Plugin]]] = getattr(section, "lists", {})
    plugged: Mapping[str, tuple[str, type[Plugin]]] = getattr(section, "plugged", {})
    single = {
        option: {"name": plugins.spelled(plugin, family), **_options_of(plugin)}
        for option, (family, _) in plugged.items()
        if (plugin := getattr(section, option)) is not None
    }
    return single | {
        option: [_entry_of(plugin, family) for plugin in getattr(section, option)]
        for option, (family, _) in lists.items()
        if getattr(section, option)
    }


def merge_named(below: Sequence[Any], layer: Mapping[str, Any]) -> list[Any]:
    """Change entries of a list of plugins by name ("client.hooks.cmi.lam=0.5"); a new name adds an entry."""
    merged = [dict(entry) if isinstance(entry, Mapping) else {"name": entry} for entry in below]
    for name, options in layer.items():
        entry = next((entry for entry in merged if entry.get("name") == name), None)
        if entry is None:
            entry = {"name": name}
            merged.append(entry)
        entry.update(options if isinstance(options, Mapping) else {"options": options})
    return merged


def _entry_of(plugin: Plugin, family: str) -> str | dict[str, Any]:
    """Return a name, or a table where there are options."""
    name, options = plugins.spelled(plugin, family), _options_of(plugin)
    return {"name": name, **options} if options else name


def _options_of(plugin: Plugin) -> dict[str, Any]:
    return dict(json.loads(plugin.model_dump_json(exclude_none=True)))


def _found(single: Mapping[str, Plugin | None]) -> dict[str, Plugin]:
    return {option: plugin for option, plugin in single.items() if plugin is not None}


def _table(key: str, given: object, family: str, base: type[Plugin], problems: list[str]) -> Plugin | None:
    """Return the plugin that a table names."""
    if isinstance(given, base):
        return given
    known = ", ".join(plugins.names(family))
    if isinstance(given, str):
        problems.append(f'{key}: must be a table, got "{given}"; did you mean {key}.name = "{given}"?')
        return None
    if not isinstance(given, dict):
        problems.append(f"{key}: must be a table with a name, got {given!r}; there are {known}")
        return None
    if not isinstance(given.get("name"), str):
        problems.append(f"{key}.name: missing; there are {known}")
        return None
    return _entry(key, given, family, base, problems)


def _chosen(key: str, given: object, family: str, base: type[Plugin], problems: list[str]) -> tuple[Plugin, ...]:
    word = plugins.noun(base)
    if isinstance(given, dict):  # by name, as "--set client.hooks.cmi.lam=0.5" gives where there was no list
        given = merge_named([], given)
    if not isinstance(given, list | tuple):
        names = f'["{given}"]' if isinstance(given, str) and given.isidentifier() else f'["{word}", ...]'
        problems.append(f"{key}: must be a list of {word}s, got {given!r}; write {key} = {names}")
        return ()
    found = (_entry(f"{key}.{place}", item, family, base, problems) for place, item in enumerate(given))
    return tuple(plugin for plugin in found if plugin is not None)


def _entry(where: str, item: object, family: str, base: type[Plugin], problems: list[str]) -> Plugin | None:
    table = {"name": item} if isinstance(item, str) else item
    if isinstance(table, base):
        return table
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        known = ", ".join(plugins.names(family))
        problems.append(f"{where}: must be a name or a table with a name, got {item!r}; there are {known}")
        return None
    name = table["name"]
    try:
        found = plugins.find(family, name, base)
    except UnknownPluginError as error:
        problems.append(f"{where}: {error}")
        return None
    try:
        return found(**{option: value for option, value in table.items() if option != "name"})
    except ValidationError as error:
        problems.extend(sentences(f"{where}.", error, found, name))
        return None
