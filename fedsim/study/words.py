"""What a study lets one say, in sentences: what is significant, what cannot be claimed, what to beware of."""

from __future__ import annotations

import math
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
    return [*found, *_of_pairs(study)]


def warnings(study: Record) -> list[str]:
    """Return what a reader has to know before believing the findings."""
    found = [*_missing(study), *_incomplete(study), *_worse_than_nothing(study), *_versions(study)]
    return [*found, *_tuned(study), *_unequal_work(study), *_same(study)]


def amount(metric: str, difference: float) -> str:
    """Return a difference with its sign and unit.

    >>> amount("worst_10", 0.0312), amount("jain", -0.01)
    ('+3.1 points', '-0.01')
    """
    return f"{100 * difference:+.1f} points" if metric in LEVELS or metric == "std" else f"{difference:+.3g}"


def name_of(run: Record) -> str:
    """Return what an entry of "runs" is called."""
    drawn = "" if run["partition"] is None else f", partition {run['partition']}"
    return f"{run['scenario']}, {run['method']}, seed {run['seed']}{drawn}"


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
    unit = "seed" if design["partitions"] is not None else "pair"
    if not any(difference["n"] for _, difference in differences):
        yield f"{scenario}: there is nothing to compare yet."
        return
    fewest = {entry["method"]: difference["n"] for entry, difference in differences}
    few = {method: n for method, n in fewest.items() if n < design["min_pairs"]}
    if few:
        listed = ", ".join(f"{method} ({n})" for method, n in few.items()) if len(few) < len(fewest) else ""
        most = max(few.values())
        who = listed or f"{most} {unit}{' is' if most == 1 else 's are'}"
        so_far = any(run["status"] == "missing" and run["scenario"] == scenario for run in study["runs"])
        wanted = "more runs are to come" if so_far else f"it takes {design['min_pairs']} or more"
        subject = f"{unit}s of {who} are" if listed else who
        yield f"{scenario}: {subject} too few for a claim, whatever the numbers look like; {wanted}."
        if len(few) == len(fewest):
            return
    known = [pair for pair in differences if pair[1]["t"]["p_holm"] is not None]
    counts = sorted({n for n in fewest.values() if n >= design["min_pairs"]})
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    held = [pair for pair in known if pair[1]["significant"]]
    family = f"paired t test, Holm-corrected over {len(known)} comparisons at {design['alpha']:g}"
    if not held:
        yield (
            f"{scenario}: no difference to {design['baseline']} is significant ({family}, {spread} {unit}s). That "
            "is no evidence that there is none."
        )
        return
    yield f"{scenario}: {len(held)} of {len(known)} differences to {design['baseline']} are significant ({family})."
    by_method: dict[str, list[str]] = {}
    for entry, difference in held:
        metric = entry["metric"]
        way = "higher" if difference["mean"] > 0 else "lower"
        verdict = "better" if difference["improves"] else "worse"
        low, high = (amount(metric, end) for end in difference["interval"])
        by_method.setdefault(entry["method"], []).append(
            f"{spoken(metric)} {way} ({verdict}) by {amount(metric, abs(difference['mean']))[1:]} "
            f"({100 * design['level']:g} % interval {low} to {high}, corrected p = {difference['t']['p_holm']:.2g})"
        )
    for method, said in by_method.items():
        yield f"{scenario}: {method} has {'; '.join(said)}."


def _of_pairs(study: Record) -> Iterator[str]:
    design = study["design"]
    for scenario in design["scenarios"]:
        tested = [
            entry["difference"]
            for entry in study["results"]
            if entry["scenario"] == scenario["name"] and entry["tested"] and entry["difference"] is not None
        ]
        family = sum(difference["wilcoxon"]["p_holm"] is not None for difference in tested)
        enough = [difference["n"] for difference in tested if difference["n"] >= design["min_pairs"]]
        # The test can confirm something as long as the comparison with most pairs can.
        if enough and smallest_wilcoxon_p(max(enough)) * family >= design["alpha"]:
            most, smallest = max(enough), smallest_wilcoxon_p(max(enough))
            unit = "seeds" if design["partitions"] is not None else "pairs"
            yield (
                f"With {most} {unit} the p value of the Wilcoxon test cannot be below {smallest:.2g}, and "
                f"corrected for {family} comparisons not below {min(1.0, smallest * family):.2g}: it can confirm "
                "nothing here. The t test, which can, assumes differences that are about normal."
            )
            break
    if design["partitions"] is not None:
        yield (
            f"Values are averaged over the {len(design['partitions'])} partitions of each seed, and tested over "
            "seeds: tests and intervals speak of these partitions. Without --partitions every seed has its own."
        )
        return
    for scenario in design["scenarios"]:
        drawn = [pair["partition_sha256"] for pair in study["pairs"] if pair["scenario"] == scenario["name"]]
        if len(drawn) > 1 and len(set(drawn)) == 1:
            yield (
                f"{scenario['name']}: all pairs share one partition, by partition.seed: tests and intervals "
                "speak of it alone. Without that key every pair has its own."
            )


def _missing(study: Record) -> Iterator[str]:
    for status, what in (
        ("failed", "failed and are left out"),
        ("refused", "are not compared"),
        ("missing", "have not been made yet"),
    ):
        runs = [run for run in study["runs"] if run["status"] == status]
        if runs:
            some = "; ".join(name_of(run) for run in runs[:5])
            more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
            yield f"{len(runs)} of {len(study['runs'])} runs {what}: {some}{more}."


def _versions(study: Record) -> Iterator[str]:
    done = [run for run in study["runs"] if run["status"] == "finished"]
    commits = sorted({commit for run in done for commit in run["commits"]})
    others = sorted({str(sorted(run["versions"].items())) for run in done})
    if len(commits) > 1 or len(others) > 1:
        listed = ", ".join(map(_short, commits))
        yield (
            f"Runs were made by {len(commits)} versions of the code ({listed}) and {len(others)} of the packages; "
            "remove runs/ from the study folder to make all with one."
        )
    now = str(study["environment"].get("commit"))
    if len(commits) == 1 and commits[0] != now:
        yield (
            f"Runs were made by another version of the code ({_short(commits[0])}) than this page ({_short(now)}); "
            "remove runs/ from the study folder to make them anew."
        )
    resumed = [run for run in done if run["notes"]]
    if resumed:
        first = resumed[0]
        yield (
            f"{len(resumed)} runs went on with other versions than they began with: {name_of(first)}: "
            f"{first['notes'][0]}"
        )


def _short(commit: str) -> str:
    """Return a commit with the first letters of its hash."""
    sha, plus, edited = commit.partition("+")
    return f"{sha[:12]}{plus}{edited}"


def _incomplete(study: Record) -> Iterator[str]:
    for scenario in study["design"]["scenarios"]:
        mine = [e for e in study["results"] if e["scenario"] == scenario["name"] and e["metric"] == _first(study)]
        most = max((entry["n"] for entry in mine), default=0)
        few = [f"{entry['method']} ({entry['n']})" for entry in mine if 0 < entry["n"] < most]
        if few:
            yield (
                f"{scenario['name']}: {', '.join(few)} have fewer than the {most} of others: their means are of "
                "other pairs, so they are left out of ranks and Pareto front."
            )
        lacking = [entry["method"] for entry in mine if entry["n"] < most]
        if lacking and len(study["design"]["scenarios"]) > 1:
            yield (
                f"{scenario['name']}: is left out of the ranks over scenarios, which take all methods with all "
                f"their pairs: not {', '.join(lacking)}."
            )


def _worse_than_nothing(study: Record) -> Iterator[str]:
    risen = [
        run
        for run in study["runs"]
        if run["status"] == "finished"
        and None not in (run["first_loss"], run["loss"].get("mean"))
        and run["loss"]["mean"] > run["first_loss"]
    ]
    if risen:
        methods = "; ".join(sorted({f"{run['scenario']}, {run['method']}" for run in risen}))
        yield (
            f"{len(risen)} runs ended with a higher mean test loss than the untrained model has ({methods}): they "
            "diverged, or their models are sure of what is wrong, whatever their accuracy."
        )


def _first(study: Record) -> str:
    return str(study["design"]["metrics"][0])


def _tuned(study: Record) -> Iterator[str]:
    tuning = study["tuning"]
    if tuning is None:
        changed = [f"{m['label']} ({', '.join(m['changes'])})" for m in study["design"]["methods"] if m["changes"]]
        beside = f", save for what {'; '.join(changed)} set themselves" if changed else ""
        yield (
            f"No method was tuned: all run with the scenario's learning rates and their own defaults{beside}. "
            "These suit some better than others; --tune gives each the same number of trials."
        )
        return
    for label, grid in tuning["grids"].items():
        points = math.prod(len(values) for values in grid.values())
        if points > tuning["budget"]:
            yield f"{label}: {tuning['budget']} of the {points} points of its grid were tried."
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
    methods, baseline = study["design"]["methods"], study["design"]["baseline"]
    for key in ("client.local_epochs", "client.batch_size"):
        # A method has the key among its settings where the baseline has another value.
        changed = [m["label"] for m in methods if any(key in one for one in m["settings"].values())]
        if changed:
            yield f"{', '.join(changed)}: other local work than {baseline} ({key})."


def _same(study: Record) -> Iterator[str]:
    by_digest: dict[str, list[str]] = {}
    for run in study["runs"]:
        by_digest.setdefault(f"{run['scenario']} {run['digest']}", []).append(run["method"])
    groups: Sequence[tuple[str, ...]] = sorted({tuple(labels) for labels in by_digest.values() if len(labels) > 1})
    for labels in groups:
        yield f"{' and '.join(labels)} are the same runs: nothing about them differs."
