"""From run folders to study.json: what every run reached, whether runs may be compared, and what that shows.

docs/studies.md describes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import statistics
from fedsim.environment import versions
from fedsim.errors import ScenarioError
from fedsim.fairness import CONVENTIONS, better
from fedsim.study import tuning
from fedsim.study.design import Base, Design, Run
from fedsim.study.fair_play import unlike
from fedsim.study.folder import (
    RUNS,
    TRIALS,
    last_accuracies,
    measures_of,
    num_clients_of,
    samples_digest,
    summary_of,
)
from fedsim.study.words import warnings, words

LAYOUT = 1

LOSSES = ("mean", "worst_10")
"""Measures of the clients' test losses that are reported beside those of their accuracies."""

Record = dict[str, Any]
Values = NDArray[np.float64]


@dataclass
class Gathered:
    """A run of the design, and what is known of it.

    Attributes:
        run: What was to be run.
        record: Its entry in study.json.
        accuracies: Of every client at its end, [K]; None unless it is finished.
    """

    run: Run
    record: Record
    accuracies: Values | None

    @property
    def counts(self) -> bool:
        """Whether it may be compared."""
        return bool(self.record["status"] == "finished")


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
    found = [_gathered(run, folder) for run in runs]
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
    plain: Record = _without_nan(study)
    return plain


def _gathered(run: Run, folder: Path) -> Gathered:
    where = folder / RUNS / run.id
    summary = summary_of(where)
    status = summary.get("status")
    done = status == "finished"
    environment = json.loads((where / "environment.json").read_text(encoding="utf-8")) if done else {}
    record: Record = {
        "scenario": run.scenario,
        "method": run.method,
        "partition": run.pair.partition,
        "seed": run.pair.seed,
        "status": status if status in ("finished", "failed") else "missing",
        "folder": f"{RUNS}/{run.id}",
        "digest": run.digest,
        "error": summary.get("error"),
        "rounds": summary.get("rounds", 0),
        "seconds": (summary.get("seconds") or {}).get("total"),
        "partition_sha256": summary.get("partition_sha256"),
        "data_sha256": summary.get("data_sha256"),
        "initial_sha256": summary.get("initial_sha256"),
        "samples_sha256": samples_digest(where) if done else None,
        "model_sha256": summary.get("model_sha256"),
        "commit": environment.get("commit"),
        "versions": {name: environment.get(name) for name in ("python", "torch", "numpy")} if done else {},
        "measures": measures_of(summary, "test_accuracy") if done else {},
        "loss": measures_of(summary, "test_loss") if done else {},
        "central": summary.get("central") if done else None,
        "system": summary.get("system") if done else None,
    }
    return Gathered(run, record, last_accuracies(where) if done else None)


def _design(design: Design, folder: Path, found: Sequence[Gathered]) -> Record:
    settings = design.settings
    return {
        "scenarios": [_scenario(design, base, folder, found) for base in design.bases],
        "methods": [
            {
                "label": method.label,
                "strategy": method.strategy,
                "changes": list(method.changes),
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


def _scenario(design: Design, base: Base, folder: Path, found: Sequence[Gathered]) -> Record:
    scenario = base.with_method(design.methods[0], design.pairs[0])
    done = next((each for each in found if each.run.scenario == base.name and each.counts), None)
    return {
        "name": base.name,
        "description": scenario.description,
        "dataset": scenario.data.plugin_name,
        "partition": scenario.partition.plugin_name,
        "model": scenario.model.plugin_name,
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
    crossed = settings.partitions is not None
    differences = statistics.compare(
        values,
        reference,
        settings.metrics,
        ways,
        settings.alpha,
        settings.min_pairs,
        settings.level,
        partitions=[pair.partition for pair in design.pairs] if crossed else None,
    )
    entries = []
    for name in named:
        for method in design.methods:
            label, column = method.label, values[method.label][name]
            about = statistics.describe(column[~np.isnan(column)], level=settings.level)
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


def _is(each: Gathered, label: str) -> bool:
    return each.counts and each.run.method == label


def _wins(design: Design, base: Base, found: Sequence[Gathered]) -> list[Record]:
    """Return the shares of clients that a method serves better, as well and worse than the baseline does."""
    accuracies = {(each.run.method, each.run.pair): each.accuracies for each in found if each.counts}
    entries = []
    for method in design.methods:
        if method.label == design.settings.reference:
            continue
        shares = [
            statistics.wins(mine, theirs)
            for pair in design.pairs
            if (mine := accuracies.get((method.label, pair))) is not None
            and (theirs := accuracies.get((design.settings.reference, pair))) is not None
        ]
        about = statistics.describe(np.array([s.better for s in shares]), level=design.settings.level)
        entries.append(
            {
                "scenario": base.name,
                "method": method.label,
                "better": about.mean,
                "equal": float(np.mean([s.equal for s in shares])) if shares else math.nan,
                "worse": float(np.mean([s.worse for s in shares])) if shares else math.nan,
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


def _ranks(design: Design, results: Sequence[Record]) -> list[Record]:
    """Return average ranks over scenarios of the tested measures; a scenario that lacks a method is left out."""
    if len(design.bases) < 2 or len(design.methods) < 2:
        return []
    labels = [method.label for method in design.methods]
    found = []
    for metric in design.settings.metrics:
        means = {
            (entry["scenario"], entry["method"]): entry["mean"] for entry in results if entry["metric"] == metric
        }
        rows = {base.name: [means[base.name, label] for label in labels] for base in design.bases}
        whole = {name: row for name, row in rows.items() if not any(math.isnan(value) for value in row)}
        if len(whole) < 2:
            continue
        way = better(metric, higher_is_better=True)
        ranked = statistics.ranks(
            np.array(list(whole.values())), higher_is_better=way == "higher", alpha=design.settings.alpha
        )
        found.append(
            {
                "metric": metric,
                "datasets": list(whole),
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
            means = {
                (entry["metric"], entry["method"]): entry["mean"]
                for entry in results
                if entry["scenario"] == base.name and entry["metric"] in (x, y)
            }
            labels = [m.label for m in design.methods if not math.isnan(means[x, m.label] + means[y, m.label])]
            turned = [1.0 if better(name, higher_is_better=True) == "higher" else -1.0 for name in (x, y)]
            points = np.array([[turned[0] * means[x, one], turned[1] * means[y, one]] for one in labels])
            front = statistics.pareto(points.reshape(-1, 2))
            on_it = [label for label, is_on in zip(labels, front, strict=True) if is_on]
            found.append({"scenario": base.name, "x": x, "y": y, "methods": on_it})
    return found


def _without_nan(value: Any) -> Any:
    """Return JSON-able data: what is no number becomes null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
