"""What figures and tables show, in words: one place, so that the page, the files and the LaTeX agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.fairness import tail_size
from fedsim.frames import Study, ranked_scenarios
from fedsim.study_report.scene import Scene, units_of
from fedsim.study_report.spread import heat
from fedsim.study_report.units import title

_TERMS = (
    (
        "pair",
        "A partition and a seed. Every method runs once on it, with the same data, initial weights and sampled "
        "clients.",
    ),
    ("\u00b1", "Standard deviation over {units}; it divides by n \u2212 1."),
    (
        "interval (bootstrap)",
        "Of a mean over {units}, by the beta bootstrap t (Owen 2025, arXiv:2508.10083): of levels, or of "
        "differences.",
    ),
    ("interval (t)", "The same by Student's t distribution, for comparison."),
    (
        "paired t test",
        "Of the differences to the baseline, {unit} by {unit}; two-sided. It decides what is significant.",
    ),
    ("Holm", "p corrected for the number of tests of a scenario, methods x tested measures (Holm 1979)."),
    (
        "Wilcoxon's test",
        "Signed ranks of the same differences; with n {units} its p is never below 2 / 2^n. W is the smaller "
        "sum of ranks.",
    ),
    ("significant", "The Holm-corrected p of the t test is below alpha, and there are enough {units}."),
    ("d_z", "Mean difference over the standard deviation of the differences, with Hedges' correction for small n."),
    (
        "rank-biserial",
        "Matched-pairs rank-biserial correlation (Kerby 2014): 1 where every difference is positive, \u22121 "
        "where none.",
    ),
    (
        "clients better, equal, worse",
        "Shares of clients with a higher, equal, lower accuracy than with the baseline, mean over {units}.",
    ),
    (
        "Pareto front",
        "Methods whose mean values no other method beats in both measures; it says nothing of significance. A "
        "method with fewer {units} than another is not considered: its mean is of others.",
    ),
    (
        "average rank",
        "Mean over scenarios of a method's rank by its mean over {units}; 1 is best, ties share ranks.",
    ),
    (
        "critical difference",
        "Average ranks that differ by less are not told apart (Nemenyi's test; Demsar, JMLR 2006).",
    ),
)
"""The words of the statistics, and what they mean here; {units} are what is tested over."""


def terms(study: Study) -> list[tuple[str, str]]:
    """Return the words of the statistics, and what they mean in a study."""
    units = units_of(study)
    found = [(term, said.format(units=units, unit=units[:-1])) for term, said in _TERMS]
    if units == "seeds":
        said = (
            "Every seed was run on every partition. Pairs that share a seed or a partition are not independent, so "
            "values are averaged over the partitions of each seed first: n is the number of seeds, and tests and "
            "intervals speak of these partitions."
        )
        found.insert(1, ("crossed partitions", said))
    return found


def averaged(study: Study) -> str:
    """Return what was done before deviations, intervals and tests, to be put behind "over seeds"; "" otherwise."""
    return " (each the mean over its partitions)" if units_of(study) == "seeds" else ""


def comparison(scene: Scene) -> str:
    """Return what the table against the baseline shows."""
    design = scene.study.info["design"]
    differences = [scene.result(m, k).get("difference") or {} for m in scene.methods for k in scene.tested]
    tests = sum((difference.get("t") or {}).get("p_holm") is not None for difference in differences)
    crossed = " The tests speak of these partitions, with the seed as the chance." if scene.crossed else ""
    return (
        f"Mean \u00b1 standard deviation over {scene.units}{averaged(scene.study)}; below, the mean difference to "
        f"{scene.baseline} on the same pairs and its {scene.level} interval, in points where the measure is in "
        "percent. \u25b2 significantly better, \u25bc significantly worse: paired t test, Holm-corrected over the "
        f"{tests} tests of this scenario, alpha = {design['alpha']:g}, at least {design['min_pairs']} "
        f"{scene.units}. No mark means not told apart, which is no proof of equality.{crossed}{_tail(scene)}"
    )


def tradeoff(scene: Scene) -> str:
    """Return what the figure of accuracy against fairness shows."""
    return (
        f"Up and to the right is better in both panels. Lines: {scene.level} intervals over {_units(scene)}. "
        "The front is that of the mean values; where intervals overlap, the differences below say what is told "
        f"apart.{_left_out(scene)}"
    )


def distribution(scene: Scene) -> str:
    """Return what the figure of the clients' accuracies shows."""
    return (
        f"Every client's test accuracy at the last evaluation, the clients of {_pairs(scene)} together. The "
        "diamond is the mean of the worst 10 % of each pair, averaged over pairs, as in the table."
    )


def rounds(scene: Scene) -> str:
    """Return what the figure over rounds shows."""
    others = len(scene.methods) - len(scene.prominent)
    more = f" In colour: the baseline and the best worst 10 % at the end; grey: {others} others." if others else ""
    return f"Mean over {_pairs(scene)}; the band reaches from the lowest to the highest pair.{more}"


def cost(scene: Scene) -> str:
    """Return what the figure against simulated time and traffic shows."""
    return (
        "The same on the virtual clock of the scenario's [system] (above), and over the bytes sent to and from "
        "the clients, those of lost clients included (below). A round stands at the mean time, or traffic, over "
        f"{_pairs(scene)}."
    )


def differences(scene: Scene) -> str:
    """Return what the figure of paired differences shows."""
    marks = "the seeds, each the mean of its pairs over the partitions" if scene.crossed else "the pairs"
    return (
        f"Method minus {scene.baseline} on the same pair: what the tests see. Open marks: {marks}; diamond and "
        f"bar: their mean and its {scene.level} interval. Vertical position within a row has no meaning."
    )


def clients(scene: Scene) -> str:
    """Return what the heat map shows, and what it cannot."""
    found = heat(scene)
    chance = (
        " The order is that of the first row, so part of what others gain at the left and lose at the right is "
        "chance (regression towards the mean)."
    )
    place = (
        " The partition follows the seed, so client k is another client in each pair: columns are places, not "
        "clients."
        if not found.clients
        else ""
    )
    fewer = any(scene.count(m) < len(scene.pairs) for m in scene.evaluated)
    tail = "Left of the dotted line: the worst 10 %."
    tail += " A method that lacks a pair is the mean of the others." if fewer else ""
    return f"Test accuracy at the last evaluation, {found.about}.{place}{chance} {tail}"


def ranks(entry: Mapping[str, Any]) -> str:
    """Return what a critical-difference figure shows."""
    return (
        f"{title(str(entry['metric']))}: average ranks over {len(ranked_scenarios(entry))} scenarios, the best at "
        "the left. Grey bars join methods that are not told apart."
    )


def tuning(record: Mapping[str, Any]) -> str:
    """Return how methods were tuned."""
    seeds = ", ".join(map(str, record.get("seeds") or []))
    fraction = record.get("fraction")
    trials = record.get("trials") or []
    scored = sum(trial.get("score") is not None for trial in trials)
    if not record.get("chosen"):
        known = f"{scored} of {len(trials)} trials have a score"
        return f"Each method has {record.get('budget')} trials (seed {seeds}); {known}. No values are chosen yet."
    held = f" on {100 * fraction:g} % of each client's training examples, held out for this" if fraction else ""
    return (
        f"Each method had {record.get('budget')} trials (seed {seeds}), and was given the values with the best "
        f"{title(str(record.get('metric') or 'mean')).lower()}{held}. Test data were not looked at."
    )


def _tail(scene: Scene) -> str:
    """Say so where the worst 10 % are one client."""
    clients = scene.record.get("num_clients")
    if not clients or "worst_10" not in scene.tested or tail_size(clients, 0.1) > 1:
        return ""
    return f" With {clients} clients the worst 10 % are one client."


def _left_out(scene: Scene) -> str:
    """Name the methods that the front leaves out."""
    if not scene.incomplete:
        return ""
    return f" Not considered for the front, with fewer {scene.units} than others: {', '.join(scene.incomplete)}."


def _units(scene: Scene) -> str:
    if not scene.crossed:
        return _pairs(scene)
    count = len({pair["seed"] for pair in scene.pairs})
    return f"{count} seed{'s' if count != 1 else ''}{averaged(scene.study)}"


def _pairs(scene: Scene) -> str:
    return f"{len(scene.pairs)} pairs" if len(scene.pairs) != 1 else "1 pair"
