"""One experiment, declared in one TOML file; every mistake in it is reported at once.

    scenario = Scenario.load("scenarios/quickstart.toml", ["strategy.name=fedavg", "seed=1"])

A file may extend one other file, and `--set key=value` changes single keys. Where a layer names another plugin
(`strategy.name`), the options that belonged to the former one go with it; options every plugin of the family
takes stay.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from clients.hooks import misfits
from fedsim import plugins
from fedsim.choices import merge_named, spelled_out, with_plugins
from fedsim.datasets import Dataset
from fedsim.errors import ScenarioError
from fedsim.evaluation import EvaluationSettings
from fedsim.models import Model
from fedsim.partitions import Partition
from fedsim.plugins import Options, Plugin, UnknownPluginError
from fedsim.sentences import sentences
from fedsim.settings import ClientSettings, EngineSettings, Section, ServerSettings, TrackingSettings
from fedsim.study.settings import Expectations, StudySettings
from fedsim.system.settings import SystemSettings
from strategies import stock_options
from strategies.rules import AnyRule
from strategies.stock_options import StockOptions

FAMILIES: Mapping[str, tuple[str, type[Plugin]]] = {
    "data": ("fedsim.datasets", Dataset),
    "partition": ("fedsim.partitions", Partition),
    "model": ("fedsim.models", Model),
    "strategy": ("strategies.rules", AnyRule),
}
"""Sections that name a plugin: package and base class of each."""

NAMING: Mapping[str, tuple[str, type[Plugin]]] = {**FAMILIES, **SystemSettings.plugged}
"""Tables whose options go with a name: another name in a later layer begins them anew."""


Tier = Literal["paper", "smoke", ""]

APART = ("name", "description", "tier", "tracking", "study", "expect")
"""Keys that change no result."""


class Scenario(BaseModel):
    """One experiment, complete and checked.

    Attributes:
        name: Name of the scenario, the file's unless set.
        description: What it is for, in a sentence.
        tier: "paper" has the settings of a publication, "smoke" takes minutes; results of two tiers are not
            compared.
        seed: Seed of everything but a partition with a seed of its own.
        rounds: Number of rounds T.
        study: What `compare` compares.
        expect: What is known to come out, for `verify`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    description: str = ""
    tier: Tier = ""
    seed: NonNegativeInt = 0
    rounds: PositiveInt = 10
    data: Dataset
    partition: Partition
    model: Model
    client: ClientSettings = ClientSettings()
    strategy: AnyRule
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    system: SystemSettings | None = None
    tracking: TrackingSettings | None = None
    study: StudySettings | None = None
    expect: Expectations | None = None

    @staticmethod
    def load(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
        """Read, merge and check a scenario.

        Args:
            path: A file, or the name of one of the scenarios that come with fedsim.
            overrides: "key=value" strings, keys with dots, values as in TOML (a bare word is a string); names of
                plugins (strategy.name) are set before the others, in any order.

        Raises:
            ScenarioError: Lists every problem.
        """
        return Scenario.of(layered(path, overrides), str(path))

    @staticmethod
    def of(table: Mapping[str, Any], where: str = "scenario") -> Scenario:
        """Check a table as read from TOML.

        Raises:
            ScenarioError: Lists every problem.
        """
        others = _others(table)
        if others:
            raise ScenarioError(where, [f"is a study of {', '.join(others)}, no scenario; run it with `compare`"])
        problems: list[str] = []
        parts = _parts(dict(table), problems)
        if problems:
            raise ScenarioError(where, problems)
        return Scenario(**parts)

    def table(self) -> dict[str, Any]:
        """Return everything, defaults included, as plain data that `Scenario.of` takes back."""
        sections: dict[str, Any] = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            if value is None:
                continue
            sections[key] = _plain(value) if isinstance(value, BaseModel) else value
        return sections

    def to_toml(self) -> str:
        """Return the resolved scenario as TOML; loading it gives an equal scenario."""
        return tomli_w.dumps(self.table())

    def digest(self) -> str:
        """Return a hash of what determines the results: all but names, studies, trackers, workplaces, checkpoints.

        Files that it names (initial weights, a teacher's) enter by their path, not by what is in them.
        """
        table = {k: v for k, v in self.table().items() if k not in APART}
        bitless = ("backend", "address", "workers", "memory_per_worker_mb", "checkpoint_every")
        table["engine"] = {k: v for k, v in table["engine"].items() if k not in bitless}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()

    @property
    def method(self) -> str:
        """What the strategy is called: its name, with the one inside a wrapper in brackets."""
        inner = [_name_of(getattr(self.strategy, option)) for option in getattr(self.strategy, "nested", ())]
        return _name_of(self.strategy) + (f"({', '.join(inner)})" if inner else "")

    def notes(self) -> list[str]:
        """Return what a reader of the results must know about them, in sentences."""
        average = {
            "none": [],
            "all": ["The model served, evaluated and kept is the mean of the models of all rounds."],
            "recent": ["The model served, evaluated and kept is a mean of the models of the last rounds."],
        }
        full = self.server.average == "recent" and self.server.clients_per_round is None
        idle = ["All clients take part in every round, so the recent average is the last model."] if full else []
        hooks = [note for hook in self.client.hooks for note in hook.notes()]
        return [*self.strategy.notes(), *hooks, *(idle or average[self.server.average])]

    def client_lr(self, server_round: int) -> float:
        """Return the clients' learning rate in a round, counted from 1."""
        return self.client.lr * self.client.lr_decay ** (server_round - 1)


def layered(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a scenario's table with what it extends below it and changes on top, unchecked.

    Args:
        path: A file, or the name of one of the scenarios that come with fedsim.
        overrides: See `Scenario.load`.

    Raises:
        ScenarioError: A file cannot be read, or a change is none.
    """
    found = locate(path)
    table = _read(found)
    parent = table.pop("extends", None)
    if parent is not None:
        base = _read(_parent(found, parent))
        if "extends" in base:
            raise ScenarioError(str(path), [f"extends: {parent} itself extends {base['extends']}; extend that"])
        base.pop("expect", None)  # what comes out of one setting says nothing about another
        table = _merge(base, table)
    table.setdefault("name", found.stem)
    return changed(table, overrides, str(path))


def changed(table: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    """Return a table as read from TOML with "key=value" changes made.

    Raises:
        ScenarioError: A change is none.
    """
    done = dict(table)
    # Names first: another plugin's name resets its table, whatever the order of the changes.
    for override in sorted(overrides, key=_turn):
        done = _merge(done, _parse_override(where, override))
    return done


def is_of_others(path: str | Path) -> bool:
    """Say whether a file is a study of other scenarios, and none itself."""
    return bool(_others(layered(path)))


def _others(table: Mapping[str, Any]) -> list[str]:
    study = table.get("study")
    named = study.get("scenarios") if isinstance(study, Mapping) and "data" not in table else None
    return [str(name) for name in named] if isinstance(named, list) else []


def overrides_of(text: str) -> list[str]:
    """Return the overrides in a run-config value: "key=value" strings with semicolons between.

    >>> overrides_of("seed=1; strategy.name=fedavg")
    ['seed=1', 'strategy.name=fedavg']
    """
    return [part.strip() for part in text.split(";") if part.strip()]


def locate(path: str | Path) -> Path:
    """Return the file meant: as given, beside the fedsim package, or a bundled scenario by its bare name.

    Raises:
        ScenarioError: There is no such file.
    """
    home = Path(__file__).resolve().parent.parent
    given = Path(path)
    for candidate in (given, home / given, home / "scenarios" / f"{given}.toml"):
        if candidate.is_file():
            return candidate
    bundled = sorted(file.stem for file in (home / "scenarios").glob("*.toml"))
    hint = plugins.nearest(given.stem, bundled)
    raise ScenarioError(str(path), [f"no such file{hint} bundled scenarios are {', '.join(bundled)}"])


def _parent(child: Path, parent: object) -> Path:
    beside = child.parent / str(parent)
    return beside if beside.is_file() else locate(str(parent))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ScenarioError(str(path), [f"cannot be read as TOML: {error}"]) from error


def _turn(override: str) -> tuple[bool, int]:
    key = override.partition("=")[0].strip()
    return not key.endswith(".name"), key.count(".") if key.endswith(".name") else 0


def _parse_override(where: str, override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ScenarioError(where, [f'--set: must be key=value, got "{override}"'])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table: Any = value
    for part in reversed(key.split(".")):
        table = {part: table}
    return dict(table)


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, list):
            merged[key] = merge_named(below, value)
            continue
        if not (isinstance(value, dict) and isinstance(below, dict)):
            merged[key] = value
            continue
        if key in NAMING and value.get("name", below.get("name")) != below.get("name"):
            shared = NAMING[key][1].model_fields
            below = {option: setting for option, setting in below.items() if option in shared}
        merged[key] = _merge(below, value)
    return merged


def _parts(table: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Check every key and section, adding what is wrong to `problems`."""
    fields = Scenario.model_fields
    for key in sorted(set(table) - set(fields)):
        problems.append(f"{key}: unknown key{plugins.nearest(key, list(fields))} there are {', '.join(fields)}")
    parts: dict[str, Any] = {}
    scalars = {k: v for k, v in table.items() if k in _Scalars.model_fields}
    parts |= _scalars(scalars, problems)
    for key, section in TABLES.items():
        absent = key not in table and fields[key].default is None
        parts[key] = None if absent else _section(key, section, table.get(key, {}), problems)
    parts["expect"] = _expectations(table.get("expect"), problems)
    for key, (family, base) in FAMILIES.items():
        parts[key] = _plugin(key, family, base, table.get(key), parts, problems)
    if not problems:
        _resolve(parts, problems)
    return parts


TABLES: Mapping[str, type[Options]] = {
    "client": ClientSettings,
    "server": ServerSettings,
    "engine": EngineSettings,
    "evaluation": EvaluationSettings,
    "system": SystemSettings,
    "tracking": TrackingSettings,
    "study": StudySettings,
}
"""Plain tables, which name no plugin themselves."""


class _Scalars(Section):
    name: str
    description: str = ""
    tier: Tier = ""
    seed: NonNegativeInt = 0
    rounds: PositiveInt = 10


def _scalars(given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    try:
        return dict(_Scalars(**given))
    except ValidationError as error:
        problems.extend(sentences("", error, _Scalars, ""))
        return given


def _section(key: str, section: type[Options], given: object, problems: list[str]) -> Options | None:
    if not isinstance(given, dict):
        problems.append(f"{key}: must be a table, got {given!r}")
        return None
    try:
        return section(**with_plugins(key, section, given, problems))
    except ValidationError as error:
        problems.extend(sentences(f"{key}.", error, section, key))
        return None


def _expectations(given: object, problems: list[str]) -> Expectations | None:
    if given is None:
        return None
    try:
        return Expectations.model_validate(given)
    except ValidationError as error:
        problems.extend(sentences("expect.", error, Expectations, "an expectation"))
        return None


def _plugin(
    key: str, family: str, base: type[Plugin], given: object, parts: Mapping[str, Any], problems: list[str]
) -> Plugin | None:
    if isinstance(given, str):
        problems.append(f'{key}: must be a table, got "{given}"; did you mean {key}.name = "{given}"?')
        return None
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        problems.append(f"{key}.name: missing; there are {', '.join(plugins.names(family))}")
        return None
    name = given["name"]
    try:
        found = _find(family, name, base)
    except UnknownPluginError as error:
        problems.append(f"{key}.name: {error}")
        return None
    options = {option: value for option, value in given.items() if option != "name"}
    for option, source in getattr(found, "inherits", {}).items():
        value = _inherited(source, parts)
        if option not in options and value is not None:
            options[option] = value
    for option in getattr(found, "nested", ()):
        options[option] = _plugin(f"{key}.{option}", family, base, options.get(option), parts, problems)
    try:
        return found(**options)
    except ValidationError as error:
        problems.extend(sentences(f"{key}.", error, found, name))
        return None


def _find(family: str, name: str, base: type[Plugin]) -> type[Plugin]:
    if base is AnyRule and name.startswith(stock_options.PREFIX):
        return stock_options.find(name)
    try:
        return plugins.find(family, name, base)
    except UnknownPluginError as error:
        also = f"; one of Flower's goes by {stock_options.PREFIX}FedAvg" if base is AnyRule else ""
        raise UnknownPluginError(f"{error}{also}") from error


def _inherited(source: str, parts: Mapping[str, Any]) -> Any:
    """Return the first setting there is of those named, as in "client.lr" or "server.lr or client.lr"."""
    for place in source.split(" or "):
        section, _, field = place.partition(".")
        value = getattr(parts.get(section), field, None)
        if value is not None:
            return value
    return None


def _resolve(parts: dict[str, Any], problems: list[str]) -> None:
    """Fill in what depends on several sections and check what they promise each other."""
    server, rule, client = parts["server"], parts["strategy"], parts["client"]
    stock = isinstance(rule, StockOptions)
    if stock:
        problems.extend(rule.misfits(parts))
    if server.lr is None and not (stock and rule.rule is None):
        parts["server"] = server.model_copy(update={"lr": rule.default_server_lr})
    num_clients = getattr(parts["partition"], "num_clients", None)
    if num_clients is not None and server.clients_per_round is not None and server.clients_per_round > num_clients:
        problems.append(
            f"server.clients_per_round: must be at most partition.num_clients = {num_clients}, "
            f"got {server.clients_per_round}"
        )
    problems.extend(f"strategy.{problem}" for problem in rule.conflicts(client))
    problems.extend(f"client.hooks: {problem}" for problem in misfits(client.named_hooks, client.local_epochs))
    system = parts["system"]
    if system is not None:
        problems.extend(f"system.{problem}" for problem in system.misfits(client, server))


def _plain(model: BaseModel) -> dict[str, Any]:
    nested = getattr(model, "nested", ())
    named = {"name": _name_of(model)} if isinstance(model, Plugin) else {}
    dumped = json.loads(model.model_dump_json(exclude_none=True, exclude={*nested, *getattr(model, "lists", ())}))
    return {
        **named,
        **dumped,
        **spelled_out(model),
        **{option: _plain(getattr(model, option)) for option in nested},
    }


def _name_of(plugin: Plugin) -> str:
    kind = type(plugin)
    inside = any(kind.__module__.startswith(f"{family}.") for family, _ in FAMILIES.values())
    named = inside or isinstance(plugin, StockOptions)
    return plugin.plugin_name if named else f"{kind.__module__}:{kind.__qualname__}"
