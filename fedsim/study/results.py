"""From run folders to study.json: what every run reached, whether runs may be compared, and what that shows.

docs/studies.md describes the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import files, plugins, statistics
from fedsim.environment import versions
from fedsim.errors import ScenarioError
from fedsim.fairness import CONVENTIONS, better
from fedsim.scenario import Scenario
from fedsim.study import tuning
from fedsim.study.design import Base, Design, Run
from fedsim.study.fair_play import unlike
from fedsim.study.folder import TRIALS, num_clients_of
from fedsim.study.gathering import Gathered, gather
from fedsim.study.settings import Method
from fedsim.study.words import warnings, words

LAYOUT = 1

OWN = ("client.", "server.")
"""Tables beside its own that a method may change."""

LOSSES = ("mean", "worst_10")
"""Measures of the clients' test losses that are reported beside those of their accuracies."""

Record = dict[str, Any]
Values = NDArray[np.float64]


def gathered(
    design: Design, folder: Path, runs: Sequence[Run], plan: tuning.Plan | None, *, command: str, status: str
) -> Record:
    """Return the contents of study.json from what is in the study folder.

    Args:
        design: What is compared.
        folder: The study folder.
        runs: The runs of the design.
        plan: How methods were tuned, if they were.
        command: The line that makes the study again.
        status: "finished", "interrupted" or "failed"; a study with a run that failed or is refused has failed.
    """
    ready = plan is None or tuning.is_complete(plan, folder / TRIALS)
    found = [gather(run, folder, ready=ready) for run in runs]
    alike = [(each.run, each.record) for each in found if each.counts]
    for one, reason in unlike(alike, design.settings.reference):
        one["status"], one["error"] = "refused", reason
    if status == "finished" and any(each.record["status"] in ("failed", "refused") for each in found):
        status = "failed"
    results, wins = [], []
    for base in design.bases:
        here = [each for each in found if each.run.scenario == base.name]
        results += _results(design, base, here)
        wins += _wins(design, base, here)
    study: Record = {
        "layout": LAYOUT,
        "name": design.name,
        "description": design.description,
        "tier": design.tier,
        "command": command,
        "status": status,
        "design": _design(design, folder, found),
        "pairs": _pairs(found),
        "runs": [each.record for each in found],
        "tuning": _tuning(plan, folder / TRIALS),
        "results": results,
        "wins": wins,
        "ranks": _ranks(design, results),
        "pareto": _pareto(design, results),
        "environment": versions(),
    }
    study["words"], study["warnings"] = words(study), warnings(study)
    plain: Record = files.jsonable(study)
    return plain


def _design(design: Design, folder: Path, found: Sequence[Gathered]) -> Record:
    settings = design.settings
    return {
        "scenarios": [_scenario(design, base, folder, found) for base in design.bases],
        "methods": [
            {
                "label": method.label,
                "strategy": method.strategy,
                "changes": list(method.changes),
                "settings": {base.name: _settings(design, base, method, found) for base in design.bases},
                "notes": list(
                    dict.fromkeys(
                        note for base in design.bases for note in base.with_method(method, design.pairs[0]).notes()
                    )
                ),
            }
            for method in design.methods
        ],
        "baseline": settings.reference,
        "seeds": list(settings.seeds) if isinstance(settings.seeds, tuple) else settings.seeds,
        "partitions": list(settings.partitions) if isinstance(settings.partitions, tuple) else None,
        "metrics": list(settings.metrics),
        "level": settings.level,
        "alpha": settings.alpha,
        "min_pairs": settings.min_pairs,
    }


def _settings(design: Design, base: Base, method: Method, found: Sequence[Gathered]) -> Record:
    """Return the options a method ran with: its own, its learning rates, and what the baseline has otherwise."""
    of_label = {each.run.method: each.run for each in reversed(found) if each.run.scenario == base.name}
    tables = {label: _flat_table(run.resolved) for label, run in of_label.items()}
    mine = tables.get(method.label, {})
    theirs = tables.get(design.settings.reference, {})
    tuned = design.settings.tune.grid if design.settings.tune is not None else ()
    always = ("client.lr", "server.lr", "server.lr_decay", *tuned)
    return {
        key: value
        for key, value in mine.items()
        if key.startswith("strategy.") or key in always or (key.startswith(OWN) and theirs.get(key) != value)
    }


def _flat_table(scenario: Scenario) -> Record:
    flat: Record = {}
    waiting: list[tuple[str, Any]] = list(scenario.table().items())
    while waiting:
        key, value = waiting.pop(0)
        if isinstance(value, Mapping):
            waiting = [*((f"{key}.{inner}", item) for inner, item in value.items()), *waiting]
        else:
            flat[key] = value
    return flat


def _scenario(design: Design, base: Base, folder: Path, found: Sequence[Gathered]) -> Record:
    scenario = base.with_method(design.methods[0], design.pairs[0])
    done = next((each for each in found if each.run.scenario == base.name and each.counts), None)
    return {
        "name": base.name,
        "description": scenario.description,
        "dataset": plugins.spelled(scenario.data, "fedsim.datasets"),
        "partition": plugins.spelled(scenario.partition, "fedsim.partitions"),
        "model": plugins.spelled(scenario.model, "fedsim.models"),
        "num_clients": None if done is None else num_clients_of(folder / done.record["folder"]),
        "clients_per_round": scenario.server.clients_per_round,
        "rounds": scenario.rounds,
        "toml": scenario.to_toml(),
    }


def _pairs(found: Sequence[Gathered]) -> list[Record]:
    hashes = ("partition_sha256", "data_sha256", "initial_sha256", "samples_sha256")
    pairs: dict[tuple[str, Any], Record] = {}
    for each in found:
        key = each.run.scenario, each.run.pair
        if each.counts and key not in pairs:
            pairs[key] = {
                **{name: each.record[name] for name in ("scenario", "partition", "seed")},
                **{name: each.record[name] for name in hashes},
            }
    return list(pairs.values())


def _results(design: Design, base: Base, found: Sequence[Gathered]) -> list[Record]:
    """Return an entry for each measure and method: the tested ones first."""
    settings = design.settings
    reference = settings.reference
    others = [name for name in CONVENTIONS if name not in ("n", *settings.metrics)]
    named = {
        **{name: ("measures", name) for name in (*settings.metrics, *others)},
        **{f"loss_{name}": ("loss", name) for name in LOSSES},
    }
    ways = {n: better(measure, higher_is_better=block == "measures") for n, (block, measure) in named.items()}
    values = {
        method.label: {name: _column(design, found, method.label, *place) for name, place in named.items()}
        for method in design.methods
    }
    # Runs of one seed share weights and samples over partitions: only seeds are independent.
    tested = {
        label: {name: _by_seed(design, column) for name, column in of.items()} for label, of in values.items()
    }
    rules = (settings.alpha, settings.min_pairs, settings.level)
    differences = statistics.compare(tested, reference, settings.metrics, ways, *rules)
    if settings.partitions is not None:
        drawn = [pair.partition for pair in design.pairs]
        by_pair = statistics.compare(values, reference, settings.metrics, ways, *rules, partitions=drawn)
        for label, of in differences.items():
            for name, difference in of.items():
                whole = by_pair[label][name]
                if difference is not None and whole is not None:
                    difference["partitions_agree"] = whole["partitions_agree"]
    entries = []
    for name in named:
        for method in design.methods:
            label, column = method.label, values[method.label][name]
            about = statistics.describe(_known(tested[label][name]), level=settings.level)
            entries.append(
                {
                    "scenario": base.name,
                    "method": label,
                    "metric": name,
                    "better": ways[name],
                    "tested": name in settings.metrics,
                    "n": about.n,
                    "values": column.tolist(),
                    "mean": about.mean,
                    "std": about.std,
                    "interval": list(about.interval),
                    "t_interval": list(about.t_interval),
                    "difference": differences[label][name],
                }
            )
    return entries


def _column(design: Design, found: Sequence[Gathered], label: str, block: str, measure: str) -> Values:
    """Return a measure of a method's runs in order of the pairs, NaN where one is missing."""
    of_pair = {each.run.pair: each.record[block].get(measure) for each in found if _is(each, label)}
    given = [of_pair.get(pair) for pair in design.pairs]
    return np.array([math.nan if value is None else value for value in given], dtype=np.float64)


def seed_means(values: Values, num_partitions: int) -> Values:
    """Return the mean over partitions for each seed, [S]; NaN for a seed that lacks one.

    Args:
        values: [P * S], partition after partition.
        num_partitions: P.
    """
    means: Values = values.reshape(num_partitions, -1).mean(axis=0)
    return means


def _by_seed(design: Design, column: Values) -> Values:
    partitions = design.settings.partitions
    return seed_means(column, len(partitions)) if isinstance(partitions, tuple) else column


def _known(column: Values) -> Values:
    return column[~np.isnan(column)]


def _is(each: Gathered, label: str) -> bool:
    return each.counts and each.run.method == label


def _wins(design: Design, base: Base, found: Sequence[Gathered]) -> list[Record]:
    """Return the shares of clients that a method serves better, as well and worse than the baseline does."""
    accuracies = {(each.run.method, each.run.pair): each.accuracies for each in found if each.counts}
    entries = []
    for method in design.methods:
        if method.label == design.settings.reference:
            continue
        columns = np.full((len(design.pairs), 3), np.nan)
        for place, pair in enumerate(design.pairs):
            mine = accuracies.get((method.label, pair))
            theirs = accuracies.get((design.settings.reference, pair))
            if mine is not None and theirs is not None:
                share = statistics.wins(mine, theirs)
                columns[place] = share.better, share.equal, share.worse
        better_, equal, worse = (_known(_by_seed(design, column)) for column in columns.T)
        about = statistics.describe(better_, level=design.settings.level)
        entries.append(
            {
                "scenario": base.name,
                "method": method.label,
                "better": about.mean,
                "equal": float(equal.mean()) if len(equal) else math.nan,
                "worse": float(worse.mean()) if len(worse) else math.nan,
                "interval": [min(max(end, 0.0), 1.0) for end in about.interval],
                "n": about.n,
            }
        )
    return entries


def _tuning(plan: tuning.Plan | None, folder: Path) -> Record | None:
    if plan is None:
        return None
    trials = []
    for trial in plan.trials:
        score, error = tuning.outcome(plan, trial, folder)
        trials.append(
            {
                "scenario": trial.scenario,
                "method": trial.method,
                "values": dict(trial.values),
                "score": abs(score),
                "error": error,
            }
        )
    try:
        chosen = tuning.chosen(plan, folder) if tuning.is_complete(plan, folder) else []
    except ScenarioError:  # all of a method's trials went wrong: their errors say so
        chosen = []
    return {
        "metric": plan.settings.metric,
        "budget": plan.budget,
        "fraction": plan.settings.fraction,
        "seeds": sorted({run.pair.seed for run in plan.runs}),
        "trials": trials,
        "grids": {label: {key: list(values) for key, values in grid.items()} for label, grid in plan.grids.items()},
        "chosen": chosen,
    }


def _means(results: Sequence[Record], scenario: str, metric: str) -> dict[str, float]:
    """Return the means of the methods that have all the runs that any has: others' are of other pairs."""
    entries = [e for e in results if (e["scenario"], e["metric"]) == (scenario, metric)]
    there = {e["method"]: {i for i, value in enumerate(e["values"]) if not math.isnan(value)} for e in entries}
    every = set().union(*there.values())
    whole = [entry for entry in entries if there[entry["method"]] == every and not math.isnan(entry["mean"])]
    return {entry["method"]: entry["mean"] for entry in whole}


def _ranks(design: Design, results: Sequence[Record]) -> list[Record]:
    """Return average ranks over scenarios of the tested measures; a scenario that lacks a method is left out."""
    labels = [method.label for method in design.methods]
    found = []
    for metric in design.settings.metrics:
        rows = {base.name: _means(results, base.name, metric) for base in design.bases}
        whole = {name: [row[label] for label in labels] for name, row in rows.items() if len(row) == len(labels)}
        if len(whole) < 2 or len(labels) < 2:
            continue
        way = better(metric, higher_is_better=True)
        ranked = statistics.ranks(
            np.array(list(whole.values())), higher_is_better=way == "higher", alpha=design.settings.alpha
        )
        found.append(
            {
                "metric": metric,
                "scenarios": list(whole),
                "methods": labels,
                "average": [float(rank) for rank in ranked.average],
                "friedman": {"statistic": ranked.friedman.statistic, "p": ranked.friedman.p},
                "critical_difference": ranked.critical_difference,
                "cliques": [[labels[place] for place in clique] for clique in ranked.cliques],
            }
        )
    return found


def _pareto(design: Design, results: Sequence[Record]) -> list[Record]:
    found = []
    for base in design.bases:
        for x, y in (("mean", "worst_10"), ("mean", "std")):
            across, up = _means(results, base.name, x), _means(results, base.name, y)
            labels = [method.label for method in design.methods if method.label in across and method.label in up]
            turned = [1.0 if better(name, higher_is_better=True) == "higher" else -1.0 for name in (x, y)]
            points = np.array([[turned[0] * across[one], turned[1] * up[one]] for one in labels])
            front = statistics.pareto(points.reshape(-1, 2))
            on_it = [label for label, is_on in zip(labels, front, strict=True) if is_on]
            found.append({"scenario": base.name, "x": x, "y": y, "methods": on_it})
    return found
