"""One scenario of a study, as the figures and tables want it: nothing is pooled over scenarios."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fedsim.frames import KEYS, Record, Study, planned_pairs
from fedsim.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION

MOST_COLOURS = 8
"""Methods up to which each has a colour of its own."""

OTHERS = "#BDBDBD"
"""The colour of methods that have none of their own."""

_PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)


@dataclass(frozen=True)
class Scene:
    """One scenario's part of a study.

    Attributes:
        study: The whole.
        name: The scenario's name.
        slug: The same, fit for file names and anchors, unique in the study.
    """

    study: Study
    name: str
    slug: str

    @cached_property
    def record(self) -> Record:
        """What the design says of the scenario."""
        return next(s for s in self.study.info["design"]["scenarios"] if s["name"] == self.name)

    @cached_property
    def methods(self) -> list[str]:
        """All labels, the baseline first, then as in the design."""
        labels = [str(method["label"]) for method in self.study.info["design"]["methods"]]
        return sorted(labels, key=lambda label: label != self.baseline)

    @property
    def baseline(self) -> str:
        """The method that all others are compared with."""
        return str(self.study.info["design"]["baseline"])

    @property
    def tested(self) -> list[str]:
        """The measures that tests are about."""
        return list(self.study.info["design"]["metrics"])

    @property
    def level(self) -> str:
        """The level of intervals, in percent."""
        return f"{100 * self.study.info['design'].get('level', 0.95):g}\u00a0%"

    @cached_property
    def metrics(self) -> list[str]:
        """Every measure with a result, in the order of study.json."""
        found = (result["metric"] for result in self._mine("results"))
        return list(dict.fromkeys([*self.tested, *found]))

    @cached_property
    def pairs(self) -> list[Record]:
        """The scenario's pairs, in the order of `values`."""
        return planned_pairs(self.study.info, self.name)

    @property
    def crossed(self) -> bool:
        """Whether every seed was run on the same partitions: tests are then of each seed's mean over them."""
        return self.study.info["design"].get("partitions") is not None

    @property
    def units(self) -> str:
        """What deviations, intervals and tests are over: "pairs", or "seeds" where partitions are crossed."""
        return units_of(self.study)

    @cached_property
    def runs(self) -> list[Record]:
        """The scenario's runs."""
        return self._mine("runs")

    @cached_property
    def front(self) -> list[tuple[str, str, list[str]]]:
        """(x, y, the methods that no other beats in both), as far as study.json says."""
        return [(front["x"], front["y"], front["methods"]) for front in self._mine("pareto")]

    def result(self, method: str, metric: str) -> Record:
        """Return a line of study.json's results, {} if there is none."""
        return self._results.get((method, metric), {})

    def interval(self, method: str, metric: str, *, of: str = "level") -> list[float] | None:
        """Return the interval of a method's level, or of its "difference"; None where it is unknown."""
        result = self.result(method, metric)
        record = result if of == "level" else result.get("difference") or {}
        return known_interval(record.get("interval"))

    def win(self, method: str) -> Record:
        """Return the shares of clients better, equal and worse than with the baseline; {} if there are none."""
        return next((win for win in self._mine("wins") if win["method"] == method), {})

    def values(self, method: str, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the values in order of `pairs`, NaN where there is none, [pairs]."""
        found = self.result(method, metric).get("values") or [None] * len(self.pairs)
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)

    def gaps(self, method: str, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the differences to the baseline that the tests see, one for each of `units`, [n].

        Where partitions are crossed, a seed's is the mean over its partitions; one that lacks a partition has none.
        """
        found = self.values(method, metric) - self.values(self.baseline, metric)
        if self.crossed:
            seeds = np.array([pair["seed"] for pair in self.pairs])
            found = np.array([found[seeds == seed].mean() for seed in dict.fromkeys(seeds.tolist())])
        return found[np.isfinite(found)]

    def count(self, method: str) -> int:
        """Return how many pairs a method has a value of."""
        return int(np.isfinite(self.values(method, self.tested[0])).sum())

    @cached_property
    def incomplete(self) -> list[str]:
        """Methods with fewer pairs (seeds, where crossed) than another one: they are in no front and no ranks."""
        there = {m: int(self.result(m, self.tested[0]).get("n") or 0) for m in self.measured}
        return [m for m, n in there.items() if n < max(there.values())]

    @cached_property
    def final(self) -> pd.DataFrame:
        """The last evaluation of every client of the scenario's finished runs."""
        return _of(self.study.final, self.name)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The rounds of the scenario's finished runs."""
        rows = _of(self.study.rounds, self.name)
        if not len(rows):
            return rows
        finished = {tuple(run[k] for k in KEYS) for run in self.runs if run["status"] == "finished"}
        keys = rows[KEYS].astype(object).where(rows[KEYS].notna(), None)
        return rows[[tuple(key) in finished for key in keys.itertuples(index=False)]]

    @cached_property
    def evaluated(self) -> list[str]:
        """Methods with at least one finished run whose folder could be read."""
        there = set(self.final["method"]) if len(self.final) else set()
        return [method for method in self.methods if method in there]

    @cached_property
    def measured(self) -> list[str]:
        """Methods with a result."""
        return [m for m in self.methods if self.result(m, self.tested[0]).get("mean") is not None]

    @cached_property
    def prominent(self) -> list[str]:
        """Methods that have a colour of their own: all, or the baseline and those with the best worst tenth."""
        if len(self.methods) <= MOST_COLOURS:
            return self.methods
        worst = {m: w for m in self.evaluated if m != self.baseline and (w := self.worst_tenth(m)) is not None}
        best = sorted(worst, key=lambda m: -worst[m])[: MOST_COLOURS - 2]
        return [self.baseline, *(m for m in self.methods if m in best)]

    def worst_tenth(self, method: str) -> float | None:
        """Return a method's mean of the worst 10 % of clients, a fraction; None without a result."""
        value: float | None = self.result(method, "worst_10").get("mean")
        return value

    def colour(self, method: str) -> str:
        """Return a method's colour, the same in all figures of the scenario."""
        if method not in self.prominent:
            return OTHERS
        if method == self.baseline:
            return INK
        return _PALETTE[[m for m in self.prominent if m != self.baseline].index(method) % len(_PALETTE)]

    def _mine(self, part: str) -> list[Record]:
        return [record for record in self.study.info.get(part) or [] if record["scenario"] == self.name]

    @cached_property
    def _results(self) -> dict[tuple[str, str], Record]:
        return {(result["method"], result["metric"]): result for result in self._mine("results")}


def known_interval(interval: list[float | None] | None) -> list[float] | None:
    """Return the ends of an interval; None where one is unknown or infinite."""
    known = [end for end in interval or [] if end is not None]
    return known if len(known) == 2 else None


def units_of(study: Study) -> str:
    """Return what deviations, intervals and tests of a study are over."""
    return "pairs" if study.info["design"].get("partitions") is None else "seeds"


def scenes(study: Study) -> list[Scene]:
    """Return the scenarios of a study in the order of the design."""
    names = [str(scenario["name"]) for scenario in study.info["design"]["scenarios"]]
    return [Scene(study, name, slug) for name, slug in zip(names, _slugs(names), strict=True)]


def _of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["scenario"] == name] if len(table) else table


def _slugs(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "scenario"
        same = [other for other in found if other == slug or re.fullmatch(rf"{slug}-\d+", other)]
        found.append(f"{slug}-{len(same) + 1}" if same else slug)
    return found
