"""What a study lets one say, in sentences: what is significant, what cannot be claimed, what to beware of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.fairness import LEVELS
from fedsim.statistics import smallest_wilcoxon_p

Record = Mapping[str, Any]


def words(study: Record) -> list[str]:
    """Return the findings of study.json, the most important first."""
    found: list[str] = []
    for scenario in study["design"]["scenarios"]:
        found += _of_scenario(study, scenario["name"])
    return [*found, *_of_pairs(study), *_of_ranks(study)]


def warnings(study: Record) -> list[str]:
    """Return what a reader has to know before believing the findings."""
    return [*_missing(study), *_versions(study), *_tuned(study), *_unequal_work(study), *_same(study)]


def amount(metric: str, difference: float) -> str:
    """Return a difference with its sign and unit.

    >>> amount("worst_10", 0.0312), amount("jain", -0.01)
    ('+3.1 points', '-0.01')
    """
    return f"{100 * difference:+.1f} points" if metric in LEVELS or metric == "std" else f"{difference:+.3g}"


def spoken(metric: str) -> str:
    """Return a measure as in a sentence.

    >>> spoken("worst_10"), spoken("std")
    ('worst 10 %', 'standard deviation')
    """
    named = {"std": "standard deviation", "angle_deg": "angle", "weighted_mean": "mean over examples"}
    plain = metric.replace("_", " ")
    return named.get(metric, f"{plain} %" if plain[-1].isdigit() else plain)


def _of_scenario(study: Record, scenario: str) -> Iterator[str]:
    design = study["design"]
    differences = [
        (entry, entry["difference"])
        for entry in study["results"]
        if entry["scenario"] == scenario and entry["tested"] and entry["difference"] is not None
    ]
    known = [pair for pair in differences if pair[1]["n"] > 0]
    if not known:
        yield f"{scenario}: there is nothing to compare yet."
        return
    most = max(difference["n"] for _, difference in known)
    if most < design["min_pairs"]:
        yield (
            f"{scenario}: {most} {'pair is' if most == 1 else 'pairs are'} too few for a claim, whatever the "
            f"numbers look like; run at least {design['min_pairs']} seeds."
        )
        return
    held = [pair for pair in known if pair[1]["significant"]]
    family = f"paired t test, Holm-corrected over {len(known)} comparisons at {design['alpha']:g}"
    if not held:
        yield (
            f"{scenario}: no difference to {design['baseline']} is significant ({family}, {most} pairs). That is "
            "no evidence that there is none."
        )
        return
    yield f"{scenario}: {len(held)} of {len(known)} differences to {design['baseline']} are significant ({family})."
    by_method: dict[str, list[str]] = {}
    for entry, difference in held:
        metric, way = entry["metric"], "better" if difference["improves"] else "worse"
        low, high = (amount(metric, end) for end in difference["interval"])
        by_method.setdefault(entry["method"], []).append(
            f"{spoken(metric)} {way} by {amount(metric, difference['mean'])} ({100 * design['level']:g} % interval "
            f"{low} to {high}, corrected p = {difference['t']['p_holm']:.2g})"
        )
    for method, said in by_method.items():
        yield f"{scenario}: {method} has {'; '.join(said)}."


def _of_pairs(study: Record) -> Iterator[str]:
    design = study["design"]
    tested = [e for e in study["results"] if e["tested"] and e["difference"] is not None]
    counts = {entry["difference"]["n"] for entry in tested if entry["difference"]["n"] >= design["min_pairs"]}
    if counts:
        fewest = min(counts)
        family = len({(entry["method"], entry["metric"]) for entry in tested})
        smallest = smallest_wilcoxon_p(fewest)
        if smallest * family >= design["alpha"]:
            yield (
                f"With {fewest} pairs the p value of the Wilcoxon test cannot be below {smallest:.2g}, and "
                f"corrected for {family} comparisons not below {min(1.0, smallest * family):.2g}: it can confirm "
                "nothing here. "
                "The t test, which can, assumes differences that are about normal."
            )
    if design["partitions"] is not None:
        yield (
            f"Pairs share {len(design['partitions'])} partitions and so are not independent: tests and intervals "
            "speak of these partitions. Without --partitions every pair has its own."
        )
        return
    for scenario in design["scenarios"]:
        drawn = [pair["partition_sha256"] for pair in study["pairs"] if pair["scenario"] == scenario["name"]]
        if len(drawn) > 1 and len(set(drawn)) == 1:
            yield (
                f"{scenario['name']}: all pairs share one partition, by partition.seed: tests and intervals "
                "speak of it alone. Without that key every pair has its own."
            )


def _of_ranks(study: Record) -> Iterator[str]:
    for entry in study["ranks"]:
        count, methods = len(entry["datasets"]), len(entry["methods"])
        if entry["critical_difference"] is not None and entry["critical_difference"] > methods - 1:
            yield (
                f"Over {count} data sets, average ranks of {methods} methods cannot be told apart: they would have "
                f"to differ by {entry['critical_difference']:.1f}, and can differ by {methods - 1} at most."
            )
            return


def _missing(study: Record) -> Iterator[str]:
    for status, what in (
        ("failed", "failed and are left out"),
        ("refused", "are not compared"),
        ("missing", "have not been made yet"),
    ):
        runs = [run for run in study["runs"] if run["status"] == status]
        if runs:
            some = "; ".join(f"{run['scenario']}, {run['method']}, seed {run['seed']}" for run in runs[:5])
            more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
            yield f"{len(runs)} of {len(study['runs'])} runs {what}: {some}{more}."


def _versions(study: Record) -> Iterator[str]:
    done = [run for run in study["runs"] if run["status"] == "finished"]
    commits = sorted({str(run["commit"]) for run in done})
    others = sorted({str(sorted(run["versions"].items())) for run in done})
    if len(commits) > 1 or len(others) > 1:
        listed = ", ".join(commit[:12] + ("+edited" if commit.endswith("+edited") else "") for commit in commits)
        yield (
            f"Runs were made by {len(commits)} versions of the code ({listed}) and {len(others)} of the packages; "
            "remove runs/ from the study folder to make all with one."
        )


def _tuned(study: Record) -> Iterator[str]:
    tuning = study["tuning"]
    if tuning is None:
        yield (
            "No method was tuned: all run with the scenario's learning rates and their own defaults, which suit "
            "some better than others. --tune gives each the same number of trials."
        )
        return
    for choice in tuning["chosen"]:
        if choice["at_edge"]:
            yield (
                f"{choice['scenario']}, {choice['method']}: tuning chose the smallest or largest value of "
                f"{', '.join(choice['at_edge'])} in its grid; a wider grid might find a better one."
            )
    lost = [trial for trial in tuning["trials"] if trial["error"] is not None]
    if lost:
        yield f"{len(lost)} of {len(tuning['trials'])} trials of the tuning failed and were not chosen."


def _unequal_work(study: Record) -> Iterator[str]:
    for key in ("client.local_epochs", "client.batch_size"):
        changed = [
            method["label"]
            for method in study["design"]["methods"]
            if any(change.partition("=")[0].strip() == key for change in method["changes"])
        ]
        if changed:
            yield f"{', '.join(changed)}: other local work than the rest ({key})."


def _same(study: Record) -> Iterator[str]:
    by_digest: dict[str, list[str]] = {}
    for run in study["runs"]:
        by_digest.setdefault(f"{run['scenario']} {run['digest']}", []).append(run["method"])
    groups: Sequence[tuple[str, ...]] = sorted({tuple(labels) for labels in by_digest.values() if len(labels) > 1})
    for labels in groups:
        yield f"{' and '.join(labels)} are the same runs: nothing about them differs."
