"""Tuning: the same number of trials for every method, scored on validation shards, test shards unseen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsim import seeds
from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario
from fedsim.study.design import Base, Design, Pair, Run, assignments, number_at, value_at
from fedsim.study.folder import score_of, status_of
from fedsim.study.settings import Method, TuneSettings

Values = Mapping[str, Any]
Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Trial:
    """One point of a method's grid in one scenario.

    Attributes:
        scenario: Name of the scenario.
        method: Label of the method.
        values: Key -> value.
        axes: Key -> the whole grid's values, as this method has them.
        runs: One for each seed of the tuning.
    """

    scenario: str
    method: str
    values: Values
    axes: Mapping[str, Sequence[Any]]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Plan:
    """All trials of a study.

    Attributes:
        settings: How methods are tuned.
        budget: Trials of each method and scenario.
        grids: Method -> key -> values as they were declared.
        trials: All of them, scenario after scenario and method after method.
    """

    settings: TuneSettings
    budget: int
    grids: Mapping[str, Mapping[str, tuple[Any, ...]]]
    trials: tuple[Trial, ...]

    @property
    def runs(self) -> list[Run]:
        """Every run of every trial."""
        return [run for trial in self.trials for run in trial.runs]


def plan(design: Design) -> Plan | None:
    """Return the trials of a study, or None if it tunes nothing.

    Raises:
        ScenarioError: A grid is too small for the budget, or a point of it cannot be run.
    """
    settings = design.settings.tune
    if settings is None:
        return None
    unknown = sorted(set(settings.own) - {method.strategy for method in design.methods})
    problems = [f"study.tune.own: no method has the strategy {name}" for name in unknown]
    grids = {method.label: grid_of(settings, design, method) for method in design.methods}
    sizes = {label: math.prod(map(len, grid.values())) for label, grid in grids.items()}
    budget = settings.budget or min(sizes.values())
    problems += [
        f"study.tune: the grid of {label} has {size} points, the budget is {budget}; give it more values, or lower "
        "study.tune.budget: every method has the same"
        for label, size in sizes.items()
        if size < budget
    ]
    if problems:
        raise ScenarioError(design.name, problems)
    for base in design.bases:
        for method in design.methods:
            problems += _twice(base, method, grids[method.label], design.pairs[0])
    if problems:
        raise ScenarioError(design.name, problems)
    trials = []
    for base in design.bases:
        for method in design.methods:
            scenario, grid = base.with_method(method, design.pairs[0]), grids[method.label]
            axes = {key: [_absolute(scenario, key, value) for value in values] for key, values in grid.items()}
            corner = {key: values[0] for key, values in axes.items()}
            base.with_method(method, design.pairs[0], assignments(corner))  # a mistake in a key that no trial sets
            shared = [
                key for key in settings.grid if key in axes and key not in settings.own.get(method.strategy, {})
            ]
            for values in _points(base.name, method, scenario, axes, shared, budget):
                runs = [_run(base, method, pair, values, settings) for pair in _pairs(design, settings)]
                trials.append(Trial(base.name, method.label, values, axes, tuple(runs)))
    return Plan(settings, budget, grids, tuple(trials))


def grid_of(settings: TuneSettings, design: Design, method: Method) -> dict[str, tuple[Any, ...]]:
    """Return the values a method is tuned over: the common ones, and those of its own options.

    What a method sets itself is tuned only where `own` names it, and a number that it does not have is not.
    """
    scenario = design.bases[0].with_method(method, design.pairs[0])
    declared = {f"strategy.{name}": values for name, values in getattr(scenario.strategy, "tunes", {}).items()}
    asked = settings.own.get(method.strategy)
    fixed = {change.partition("=")[0].strip() for change in method.changes} - set(asked or {})
    grid = {**settings.grid, **(declared if asked is None else asked)}
    return {
        key: tuple(values)
        for key, values in grid.items()
        if key not in fixed and not (_relative(values) and math.isnan(number_at(scenario, key)))
    }


def chosen(plan_: Plan, folder: Path) -> list[dict[str, Any]]:
    """Return the best trial of every method in every scenario, as study.json has it.

    Raises:
        ScenarioError: A method has no trial that went through.
    """
    best: dict[tuple[str, str], tuple[float, Trial]] = {}
    for trial in plan_.trials:
        score, _ = outcome(plan_, trial, folder)
        key = trial.scenario, trial.method
        if not math.isnan(score) and (key not in best or score > best[key][0]):  # the first of equals
            best[key] = score, trial
    lost = [pair for pair in dict.fromkeys((t.scenario, t.method) for t in plan_.trials) if pair not in best]
    if lost:
        problems = [f"{scenario}, {method}: every trial of its tuning failed" for scenario, method in lost]
        raise ScenarioError("study.tune", [*problems, "give it smaller learning rates in study.tune.grid"])
    return [
        {
            "scenario": scenario,
            "method": method,
            "values": dict(trial.values),
            "score": abs(score),
            "at_edge": _edges(trial),
        }
        for (scenario, method), (score, trial) in best.items()
    ]


def is_complete(plan_: Plan, folder: Path) -> bool:
    """Say whether every trial has ended, well or not: before that, the best so far is no choice."""
    return all(status_of(folder / run.id) in ("finished", "failed") for run in plan_.runs)


def chosen_values(plan_: Plan, folder: Path) -> dict[tuple[str, str], Values]:
    """Return (scenario, method) -> the values of its best trial; see `chosen`."""
    return {(choice["scenario"], choice["method"]): choice["values"] for choice in chosen(plan_, folder)}


def outcome(plan_: Plan, trial: Trial, folder: Path) -> tuple[float, str | None]:
    """Return (score, error) of a trial: the mean over its seeds, higher is better; NaN if a run failed."""
    scores, errors = zip(*(score_of(folder / run.id, plan_.settings.metric) for run in trial.runs), strict=True)
    said = [error for error in errors if error is not None]
    return (math.nan, said[0]) if said else (sum(scores) / len(scores), None)


def _points(
    base: str, method: Method, scenario: Scenario, axes: Grid, shared: Sequence[str], budget: int
) -> list[Values]:
    """Return the points of a grid that are tried: all, or what the method does untuned and a seeded draw.

    The draw goes through the values of the keys that methods share in one order for all of them, so that none is
    luckier with them than another.
    """
    size = math.prod(map(len, axes.values()))
    if size == budget:
        return _product(axes)
    # An option that is off by default has no value that could be written.
    plain = {key: value for key in axes if (value := value_at(scenario, key)) is not None}
    common = {key: values for key, values in axes.items() if key in shared}
    own = {key: values for key, values in axes.items() if key not in shared}
    # Places rather than values decide the order: factors of other defaults are the same places.
    along = _shuffled(_product(common), "tuning", base, *common)
    across = _shuffled(_product(own), "tuning", base, method.strategy, *method.changes)
    drawn: list[Values] = [plain]
    for turn in range(size):
        place, round_ = turn % len(along), turn // len(along)
        point = {**along[place], **across[(place + round_) % len(across)]}
        if len(drawn) < budget and not all(_same(plain.get(key), value) for key, value in point.items()):
            drawn.append({key: point[key] for key in axes})
    return drawn


def _product(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _shuffled(points: Sequence[Values], *labels: str) -> list[Values]:
    order: list[int] = torch.randperm(len(points), generator=seeds.generator(0, *labels)).tolist()
    return [points[place] for place in order]


def _twice(base: Base, method: Method, grid: Mapping[str, Sequence[Any]], pair: Pair) -> list[str]:
    """Return which keys have a value twice once factors are numbers: there would be fewer points than trials."""
    scenario = base.with_method(method, pair)
    problems = []
    for key, values in grid.items():
        tried = [_absolute(scenario, key, value) for value in values]
        if len(set(tried)) < len(tried):
            problems.append(
                f"study.tune: {key} of {method.label} in {base.name} has a value twice, {list(values)} are "
                f"{tried}; give it others in study.tune.own"
            )
    return problems


def _run(base: Base, method: Method, pair: Pair, values: Values, settings: TuneSettings) -> Run:
    last = [] if settings.rounds is None else [f"rounds={settings.rounds}"]
    more = [*assignments(values), f"evaluation.validation={settings.fraction}", *last]
    scenario = base.with_method(method, pair, more)
    once = scenario.evaluation.model_copy(update={"every": scenario.rounds})  # the final model is what is scored
    return Run(base.name, method.label, pair, scenario.model_copy(update={"evaluation": once}))


def _pairs(design: Design, settings: TuneSettings) -> list[Pair]:
    pairs = design.pairs
    if isinstance(settings.seeds, int):
        if settings.seeds > len(pairs):
            raise ScenarioError(
                design.name, [f"study.tune.seeds: must be at most {len(pairs)}, the pairs of the study, as a count"]
            )
        return pairs[: settings.seeds]
    return [Pair(pairs[0].partition, seed) for seed in settings.seeds]


def _absolute(scenario: Scenario, key: str, value: Any) -> Any:
    if not _is_factor(value):
        return value
    # As people write numbers: 0.3 * 0.1 is 0.03.
    return float(f"{float(value[1:]) * number_at(scenario, key):.12g}")


def _is_factor(value: Any) -> bool:
    if not isinstance(value, str) or not value.startswith("x"):
        return False
    try:
        float(value[1:])
    except ValueError:
        return False
    return True


def _relative(values: Sequence[Any]) -> bool:
    return any(_is_factor(value) for value in values)


def _same(one: Any, other: Any) -> bool:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
    return math.isclose(one, other) if numbers else bool(one == other)


def _edges(trial: Trial) -> list[str]:
    """Return the keys whose chosen number has none beyond it in the grid: a wider one may have a better."""
    found = []
    for key, values in trial.axes.items():
        numbers = [value for value in values if isinstance(value, int | float)]
        chosen = trial.values.get(key)
        if len(numbers) > 2 and isinstance(chosen, int | float) and not min(numbers) < chosen < max(numbers):
            found.append(key)
    return found
