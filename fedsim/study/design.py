"""What a study runs: scenarios x methods x pairs, each run named by its content."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import ValidationError

from fedsim.errors import DataError, ScenarioError
from fedsim.scenario import Scenario, changed, layered, locate
from fedsim.sentences import sentences
from fedsim.settings import EngineSettings
from fedsim.study.settings import Method, StudySettings

DESIGN = "study.toml"

OWN_SAY = ("strategy", "client", "server")
"""Tables that a method may change; in the others lies what methods are compared on."""

SHARED = ("server.clients_per_round", "server.initial")
"""Keys of those tables that every method has alike all the same: the samples and the initial weights."""

Table = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Pair:
    """What a run shares with one run of every other method.

    Attributes:
        partition: Seed of the partition; None where it follows the run's.
        seed: Seed of the run.
    """

    partition: int | None
    seed: int

    @property
    def text(self) -> str:
        """As part of a run's name."""
        return f"s{self.seed}" if self.partition is None else f"p{self.partition}-s{self.seed}"

    @property
    def changes(self) -> list[str]:
        """What it changes in a scenario."""
        drawn = [] if self.partition is None else [f"partition.seed={self.partition}"]
        return [f"seed={self.seed}", *drawn]


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        scenario: Name of the scenario.
        method: Label of the method.
        pair: Partition and seed.
        resolved: The scenario as it is run.
    """

    scenario: str
    method: str
    pair: Pair
    resolved: Scenario

    @cached_property
    def digest(self) -> str:
        """Hash of what determines the results."""
        return self.resolved.digest()

    @property
    def id(self) -> str:
        """Name of its folder: for the eye, and for its content; methods that are the same run share it."""
        return f"{slug(self.scenario)}-{slug(self.resolved.method)}-{self.pair.text}-{self.digest[:12]}"


@dataclass(frozen=True)
class Base:
    """A scenario in which methods are compared.

    Attributes:
        name: What it is called.
        table: Its keys as written, whatever methods resolve in their own way still open.
    """

    name: str
    table: Table

    def with_method(self, method: Method, pair: Pair, more: Sequence[str] = ()) -> Scenario:
        """Return the scenario as one method runs it.

        Raises:
            ScenarioError: It cannot be run.
        """
        changes = [f"strategy.name={method.strategy}", *method.changes, *pair.changes, *more]
        where = f"{self.name}, {method.label}"
        return Scenario.of(changed(self.table, changes, where), where)


@dataclass(frozen=True)
class Design:
    """A study as it is asked for.

    Attributes:
        name: What it is called.
        description: What it is for.
        tier: Of its scenarios, which have all the same.
        settings: What is compared.
        bases: The scenarios.
        command: The line that makes the study again.
    """

    name: str
    description: str
    tier: str
    settings: StudySettings
    bases: tuple[Base, ...]
    command: str = ""

    LAYOUT: ClassVar[int] = 1

    @staticmethod
    def load(
        path: str | Path, overrides: Sequence[str] = (), options: Table | None = None, *, fewest: int = 2
    ) -> Design:
        """Read a study: a scenario, with a table [study] or not, or a file with nothing but that.

        Args:
            path: A file, or the name of a bundled scenario.
            overrides: "key=value" changes: of the study where the key begins with "study.", else of all scenarios.
            options: Entries that replace those of [study]; "tune": true keeps what there is, or takes the default.
            fewest: Methods that make sense.

        Raises:
            ScenarioError: Lists what cannot be run, or not be compared.
        """
        of_study = [change for change in overrides if change.strip().startswith("study.")]
        of_all = [change for change in overrides if change not in of_study]
        if any(change.partition("=")[0].strip() == "seed" for change in of_all):
            raise ScenarioError(str(path), ["--set seed: a study has several seeds; name them with --seeds 3,4,5"])
        table = layered(path, of_study)
        given = _with_options(study_table(table, path), options or {})
        settings = _settings(given, str(path))
        if settings.scenarios:
            extra = sorted(set(table) - {"name", "description", "tier", "study"})
            own = locate(path).resolve()
            if extra and all(locate(beside(path, name)).resolve() != own for name in settings.scenarios):
                where = "has no place in a study of other scenarios; write it in them, or in study.changes"
                raise ScenarioError(str(path), [f"{key}: {where}" for key in extra])
            tables = [(name, layered(beside(path, name))) for name in settings.scenarios]
        else:
            tables = [(str(path), table)]
        bases = [_base(where, one, [*settings.changes, *of_all]) for where, one in tables]
        tier = _one_tier(str(path), table, bases)
        made = _changes_made(tables, bases, [*settings.changes, *of_all]) if tier == "paper" else []
        description = str(table.get("description", ""))
        design = Design(
            name=str(table["name"]),
            # Other settings than a publication's are no publication's.
            description=f"{description} Changed: {', '.join(made)}." if made else description,
            tier="" if made else tier,
            settings=settings,
            bases=tuple(bases),
        )
        design.check(fewest)
        return design

    @staticmethod
    def read(folder: Path) -> Design:
        """Read the design of a study folder.

        Raises:
            DataError: There is none, or it cannot be read.
        """
        path = folder / DESIGN
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            if table["layout"] != Design.LAYOUT:
                raise DataError(f"{path}: its layout must be {Design.LAYOUT}, got {table['layout']}")
            return Design(
                name=table["name"],
                description=table["description"],
                tier=table["tier"],
                settings=StudySettings(**table["study"]),
                bases=tuple(Base(name, base) for name, base in table["scenarios"].items()),
                command=table["command"],
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}; give a folder that `compare` has made") from error

    def to_toml(self) -> str:
        """Return the whole of it as TOML, which `read` takes back."""
        return tomli_w.dumps(
            {
                "layout": self.LAYOUT,
                "name": self.name,
                "description": self.description,
                "tier": self.tier,
                "command": self.command,
                "study": json.loads(self.settings.model_dump_json(exclude_none=True)),
                "scenarios": {base.name: dict(base.table) for base in self.bases},
            }
        )

    @property
    def methods(self) -> tuple[Method, ...]:
        """What is compared."""
        return self.settings.methods

    @property
    def pairs(self) -> list[Pair]:
        """What every method is run on."""
        seeds, partitions = self.settings.seeds, self.settings.partitions
        assert isinstance(seeds, tuple)
        drawn: tuple[int | None, ...] = partitions if isinstance(partitions, tuple) else (None,)
        return [Pair(partition, seed) for partition in drawn for seed in seeds]

    @property
    def engine(self) -> EngineSettings:
        """Where runs are carried out, by the first scenario."""
        return self.bases[0].with_method(self.methods[0], self.pairs[0]).engine

    def digest(self) -> str:
        """Return a hash of what determines the study's results."""
        digests = [run.digest for run in self.runs({})]
        table = self.settings.model_dump_json(exclude={"scenarios", "changes"})
        return hashlib.sha256("\n".join([table, *digests]).encode()).hexdigest()

    def runs(self, chosen: Mapping[tuple[str, str], Table]) -> list[Run]:
        """Return every run, pair after pair, so that whole pairs are there early.

        Args:
            chosen: (scenario, method) -> key -> value, what tuning chose.
        """
        found = []
        for base in self.bases:
            for pair in self.pairs:
                for method in self.methods:
                    more = assignments(chosen.get((base.name, method.label), {}))
                    found.append(Run(base.name, method.label, pair, base.with_method(method, pair, more)))
        return found

    def check(self, fewest: int = 2) -> None:
        """Find out whether every run can be made, and compared with the others.

        Args:
            fewest: Methods that make sense.

        Raises:
            ScenarioError: Lists what is wrong.
        """
        problems = []
        if not self.methods:
            problems.append("study.methods: names none; write methods = [...], or --strategies fedavg,adafed")
        elif len(self.methods) < fewest:
            problems.append(f"study.methods: a comparison takes {fewest} or more, got {self.methods[0].label}")
        for method in self.methods:
            keys = (change.partition("=")[0].strip() for change in method.changes)
            problems += [f"study.methods: {method.label}: {problem}" for problem in _unfair(keys)]
        if self.settings.tune is not None:
            tune = self.settings.tune
            for where, grid in (("grid", tune.grid), *((f"own.{name}", grid) for name, grid in tune.own.items())):
                problems += [f"study.tune.{where}: {problem}" for problem in _unfair(grid)]
        for base in self.bases if not problems else ():
            for method in self.methods:
                try:
                    base.with_method(method, self.pairs[0])
                except ScenarioError as error:
                    problems += [f"{base.name}, {method.label}: {line}" for line in error.problems]
        if not problems:
            problems = _unlike_engines(self)
        if problems:
            raise ScenarioError(self.name, problems)

    def extends(self, other: Design) -> bool:
        """Say whether every run of another study is one of this, tuned alike, so that this may go on with it."""
        mine, theirs = ({run.id for run in design.runs({})} for design in (self, other))
        return theirs <= mine and self.settings.tune == other.settings.tune

    def default_folder(self) -> Path:
        """Return the folder of this study under runs/, the same whenever it is asked for."""
        return Path("runs") / f"study-{slug(self.name)}-{self.digest()[:8]}"

    def only(self, labels: Sequence[str]) -> Design:
        """Return the same study of some of the methods."""
        kept = tuple(method for method in self.methods if method.label in labels)
        update: dict[str, Any] = {
            "methods": kept,
            "baseline": self.settings.reference if self.settings.reference in labels else "",
        }
        tune = self.settings.tune
        if tune is not None:
            strategies = {method.strategy for method in kept}
            own = {name: grid for name, grid in tune.own.items() if name in strategies}
            update["tune"] = tune.model_copy(update={"own": own})
        return replace(self, settings=self.settings.model_copy(update=update))


def beside(path: str | Path, name: str) -> str | Path:
    """Return a scenario that a study names: a file beside the study's, or what `locate` finds."""
    file = locate(path).parent / name
    return file if file.is_file() else name


def slug(text: str) -> str:
    """Return a text as part of a file's name.

    >>> slug("adafed[scale=min]")
    'adafed-scale-min'
    """
    letters = "".join(letter if letter.isalnum() or letter in "_." else "-" for letter in text)
    return "-".join(part for part in letters.split("-") if part)[:60]


def assignments(values: Table) -> list[str]:
    """Return values as "key=value" changes."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def is_study(folder: Path) -> bool:
    """Say whether a folder holds a study."""
    return (folder / DESIGN).is_file()


def study_table(table: Table, path: str | Path) -> Table:
    """Return the table [study] of a file, {} where it has none.

    Raises:
        ScenarioError: It is no table.
    """
    study = table.get("study") or {}
    if not isinstance(study, dict):
        raise ScenarioError(str(path), [f"study: must be a table, got {study!r}"])
    return study


def _with_options(study: Table, options: Table) -> Table:
    merged = {**study, **options}
    if options.get("tune") is True:
        merged["tune"] = study.get("tune") or {}
    return merged


def _settings(given: Table, where: str) -> StudySettings:
    try:
        return StudySettings(**given)
    except ValidationError as error:
        raise ScenarioError(where, list(sentences("study.", error, StudySettings, "study"))) from error


def _base(where: str, table: dict[str, Any], changes: Sequence[str]) -> Base:
    kept = {key: value for key, value in changed(table, changes, where).items() if key not in ("study", "expect")}
    if "data" not in kept:
        more = "go on with it by `resume FOLDER`" if "layout" in kept else "name scenarios in study.scenarios"
        raise ScenarioError(where, [f"is no scenario: it has no table [data]; {more}"])
    return Base(str(kept["name"]), kept)


def _one_tier(where: str, table: Table, bases: Sequence[Base]) -> str:
    named: dict[str, list[str]] = {}
    for base in bases:
        named.setdefault(str(base.table.get("tier", "")), []).append(base.name)
    if len(named) > 1:
        listed = "; ".join(f"{', '.join(names)}: {tier or 'none'}" for tier, names in named.items())
        raise ScenarioError(where, [f"study.scenarios: are of several tiers, which never share a table: {listed}"])
    names = [base.name for base in bases]
    if len(set(names)) < len(names):
        raise ScenarioError(where, [f"study.scenarios: two have one name, got {', '.join(names)}"])
    tier = next(iter(named))
    if table.get("tier", tier) != tier:
        raise ScenarioError(where, [f'tier: is "{table["tier"]}", that of its scenarios "{tier}"'])
    return tier


def _changes_made(
    tables: Sequence[tuple[str | Path, Table]], bases: Sequence[Base], changes: Sequence[str]
) -> list[str]:
    """Return the changes that make other runs of a scenario than its file does."""
    for (where, table), base in zip(tables, bases, strict=True):
        plain = {key: value for key, value in table.items() if key not in ("study", "expect")}
        try:
            same = Scenario.of(plain, str(where)).digest() == Scenario.of(base.table, str(where)).digest()
        except ScenarioError:  # what is wrong is said where methods are put in
            same = False
        if not same:
            return list(changes)
    return []


def _unlike_engines(design: Design) -> list[str]:
    """Return a problem if the scenarios are to be carried out in different ways: they share their workers."""
    shared = ("backend", "address", "workers", "gpus_per_worker", "memory_per_worker_mb", "threads_per_worker")
    wanted = {}
    for base in design.bases:
        engine = base.with_method(design.methods[0], design.pairs[0]).engine
        wanted[base.name] = {name: getattr(engine, name) for name in shared}
    first = next(iter(wanted.values()))
    others = sorted({name for each in wanted.values() for name in shared if each[name] != first[name]})
    return [
        f"engine.{name}: must be the same in all scenarios of a study, which share their workers, got "
        f"{', '.join(f'{each[name]} in {base}' for base, each in wanted.items())}; --set engine.{name}=... sets all"
        for name in others
    ]


def _unfair(keys: Iterable[str]) -> list[str]:
    """Return what is wrong with keys that differ between methods."""
    problems = []
    for key in keys:
        if key.partition(".")[0] not in OWN_SAY or key in SHARED:
            problems.append(
                f"{key} would let a method be measured on something else than the others; put it into study.changes"
            )
        elif key in OWN_SAY:  # a whole table may hold any of them
            problems.append(f"{key} is a table; name the keys in it, such as {key}.lr")
        elif key == "strategy.name":
            problems.append("strategy.name is what a method is; name another strategy in study.methods")
    return problems


def value_at(scenario: Scenario, key: str) -> Any:
    """Return what a scenario has at a key such as "client.lr"; None where it has nothing."""
    value: Any = scenario.table()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def number_at(scenario: Scenario, key: str) -> float:
    """Return the number a scenario has at a key; NaN where it has none."""
    value = value_at(scenario, key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
