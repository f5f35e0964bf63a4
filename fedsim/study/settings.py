"""The tables [study] and [expect] of a scenario: what is compared, and what is known to come out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, RootModel, field_validator, model_validator

from fedsim import plugins
from fedsim.fairness import CONVENTIONS
from fedsim.plugins import Options

TESTED = ("mean", "worst_10", "std")
"""Measures tested unless a study says otherwise: level, tail and spread."""

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Number = bool | int | float | str


class Method(Options):
    """One side of a comparison: a strategy, and what else it changes in the scenario.

    Attributes:
        strategy: Its name in a scenario.
        label: What it is called in tables; made from strategy and changes unless given.
        changes: "key=value" changes of the scenario.
    """

    strategy: str
    label: str = ""
    changes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return parse_method(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _named(self) -> Method:
        if "," in self.label.partition("[")[0]:
            raise ValueError(f'label: must have no comma, they stand between labels in lists, got "{self.label}"')
        if not self.label:
            inside = "; ".join(change.removeprefix("strategy.") for change in self.changes)
            object.__setattr__(self, "label", f"{self.strategy}[{inside}]" if inside else self.strategy)
        return self


class TuneSettings(Options):
    """Tuning on validation shards, the same number of trials for every method.

    Attributes:
        budget: Trials of each method and scenario; None takes as many as the smallest grid has points.
        metric: Measure of validation accuracy that is made best.
        fraction: Share of each client's train shard that is held out to validate on.
        seeds: Seeds of the trials, the score is the mean over them; as a count, the first so many of the study's.
        rounds: Rounds of a trial; None takes the scenario's.
        grid: Key of the scenario -> values that every method tries; "x0.5" is half of what the method would have.
        own: Name of a strategy -> the same for its own options, also those that its method sets; strategies not
            named take the grid that their rule declares.
    """

    budget: PositiveInt | None = None
    metric: str = "mean"
    fraction: Share = 0.2
    seeds: PositiveInt | tuple[int, ...] = 1
    rounds: PositiveInt | None = None
    grid: Mapping[str, tuple[Number, ...]] = {
        "client.lr": ("x0.3", "x1", "x3"),
        "server.lr": ("x0.5", "x1", "x2"),
    }
    own: Mapping[str, Mapping[str, tuple[Number, ...]]] = {}

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        return _measure(metric)

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(seeds, tuple):
            if not seeds or min(seeds) < 0:
                raise ValueError(f"must be a count, or whole numbers from 0, got {list(seeds)}")
            _once("seeds", seeds)
        return seeds

    @field_validator("grid", "own")
    @classmethod
    def _not_empty(cls, grids: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, values in grids.items():
            for key, tried in values.items() if isinstance(values, Mapping) else ((name, values),):
                if not tried:
                    raise ValueError(f"{key} has no values; give some, or leave it out")
                if len(set(tried)) < len(tried):
                    raise ValueError(f"{key} has a value twice, got {list(tried)}")
        return grids


class StudySettings(Options):
    """What a study compares.

    Attributes:
        scenarios: Scenarios by name or file; () takes the one this table stands in.
        methods: What is compared: "fedavg", "adafed[scale=min; server.average=all]", or tables of strategy, label
            and changes.
        baseline: Label of the method the others are compared with; "" takes fedavg if it is there, else the first.
        seeds: Seeds of the runs, or how many, from 0.
        partitions: Seeds of partitions, or how many, crossed with the seeds; None draws each run's partition from
            its seed, which makes pairs independent.
        metrics: Measures of test accuracy over clients that are tested, see fedsim/fairness.py.
        changes: "key=value" changes of every scenario.
        level: Of intervals.
        alpha: Rate of studies in which any difference may be called significant that is none.
        min_pairs: Fewest pairs for a claim.
        tune: How every method is tuned first; None tunes none.
    """

    scenarios: tuple[str, ...] = ()
    methods: tuple[Method, ...] = ()
    baseline: str = ""
    seeds: int | tuple[int, ...] = (0, 1, 2, 3, 4)
    partitions: int | tuple[int, ...] | None = None
    metrics: tuple[str, ...] = TESTED
    changes: tuple[str, ...] = ()
    level: Share = 0.95
    alpha: Share = 0.05
    min_pairs: Annotated[int, Field(ge=2)] = 5
    tune: TuneSettings | None = None

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        if not metrics:
            raise ValueError("must name a measure")
        return _once("metrics", tuple(_measure(metric) for metric in metrics))

    @field_validator("seeds", "partitions")
    @classmethod
    def _spelled_out(cls, seeds: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is None:
            return None
        numbers = tuple(range(seeds)) if isinstance(seeds, int) else seeds
        if not numbers or min(numbers) < 0:
            raise ValueError(f"must be a count, or whole numbers from 0, got {list(numbers)}")
        return _once("seeds", numbers)

    @field_validator("scenarios")
    @classmethod
    def _different(cls, scenarios: tuple[str, ...]) -> tuple[str, ...]:
        return _once("scenarios", scenarios)

    @model_validator(mode="after")
    def _labelled(self) -> StudySettings:
        _once("methods", tuple(method.label for method in self.methods))
        labels = [method.label for method in self.methods]
        if self.baseline and labels and self.baseline not in labels:
            raise ValueError(
                f'baseline: no method is called "{self.baseline}"{plugins.nearest(self.baseline, labels)} there '
                f"are {', '.join(labels)}"
            )
        return self

    @property
    def reference(self) -> str:
        """Label of the baseline."""
        labels = [method.label for method in self.methods]
        return self.baseline or ("fedavg" if "fedavg" in labels else labels[0])


class Expectation(Options):
    """A range in which a measure is expected, with where that is from.

    Attributes:
        value, within: The middle and half the width of the range; or
        low, high: its ends.
        source: Where the value is from, and whose choice the width is.
    """

    value: float | None = None
    within: PositiveFloat | None = None
    low: float | None = None
    high: float | None = None
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _one_range(self) -> Expectation:
        middle, ends = (self.value, self.within), (self.low, self.high)
        whole = [pair for pair in (middle, ends) if None not in pair]
        if len(whole) != 1 or any(
            part is not None for pair in (middle, ends) if pair not in whole for part in pair
        ):
            raise ValueError("must have value and within, or low and high")
        if self.range[0] > self.range[1]:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value expected."""
        if self.value is not None and self.within is not None:
            return self.value - self.within, self.value + self.within
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def holds(self, value: float) -> bool:
        """Say whether a value is in the range; NaN is not."""
        low, high = self.range
        return not math.isnan(value) and low <= value <= high


class Expectations(RootModel[dict[str, dict[str, Expectation]]]):
    """Method label -> measure of test accuracy over clients -> range, for the mean over the study's pairs."""

    @field_validator("root")
    @classmethod
    def _known(cls, root: dict[str, dict[str, Expectation]]) -> dict[str, dict[str, Expectation]]:
        for measures in root.values():
            for measure in measures:
                _measure(measure)
        return root


def parse_method(text: str) -> dict[str, Any]:
    """Return a method from its text.

    Raises:
        ValueError: Brackets are not closed, or a change is none.

    >>> parse_method("Mine=adafed")
    {'strategy': 'adafed', 'changes': (), 'label': 'Mine'}
    >>> parse_method("adafed[scale=min; server.average=all]")
    {'strategy': 'adafed', 'changes': ('strategy.scale=min', 'server.average=all')}
    """
    before, equals, after = text.partition("=")
    label = before.strip() if equals and "[" not in before else ""
    name, bracket, inside = (after if label else text).strip().partition("[")
    if not name or (bracket and not inside.endswith("]")):
        raise ValueError(f'must be a strategy or strategy[key=value; ...], got "{text}"')
    parts = [part.strip() for part in inside.removesuffix("]").split(";") if part.strip()]
    for part in parts:
        if "=" not in part:
            raise ValueError(f'"{part}" must be key=value, in "{text}"')
    changes = tuple(part if "." in part.partition("=")[0] else f"strategy.{part}" for part in parts)
    named = {"label": label} if label else {}
    return {"strategy": name.strip(), "changes": changes, **named}


def split_methods(text: str) -> list[str]:
    """Return the methods in a list with commas between, which may also stand in brackets.

    >>> split_methods("fedavg, adafed[scale=min], x[metrics=[1,2]; b=3]")
    ['fedavg', 'adafed[scale=min]', 'x[metrics=[1,2]; b=3]']
    """
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _measure(name: str) -> str:
    if name not in CONVENTIONS or name == "n":
        known = [known for known in CONVENTIONS if known != "n"]
        raise ValueError(f'no such measure "{name}"{plugins.nearest(name, known)} there are {", ".join(known)}')
    return name


def _once(what: str, items: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ValueError(f"{what}: {', '.join(map(str, twice))} is there more than once; every one has one name")
    return items
