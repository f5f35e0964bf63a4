"""study.json against what the run folders say, recomputed the slow way; and what its words claim."""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats

from fedsim.fairness import CONVENTIONS
from fedsim.statistics import compare
from fedsim.study import conductor
from fedsim.study.results import seed_means
from fedsim.study.words import warnings, words
from tests.study.conftest import METHODS, PARTITIONS, SEEDS
from tests.study.studies import copied, design, entry, last_accuracies, rewrite, scenario, study_of, summary

PAIRS = list(itertools.product(PARTITIONS, SEEDS))
OURS = "qfedavg[q=0.5]"


@pytest.fixture(scope="module")
def study(finished: Path) -> dict[str, Any]:
    return study_of(finished)


class Case(NamedTuple):
    """A study, and which of its pairs are of one seed."""

    folder: Path
    study: dict[str, Any]
    pairs: list[tuple[int | None, int]]

    def by_seed(self, values: list[float]) -> list[float]:
        """Return the mean over partitions for each seed."""
        seeds = dict.fromkeys(seed for _, seed in self.pairs)
        return [
            statistics.fmean(v for v, (_, seed) in zip(values, self.pairs, strict=True) if seed == one)
            for one in seeds
        ]


@pytest.fixture(scope="module")
def plain(without_a_page: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seeds, each with its own partition; one method does so much better that it is significant."""
    del without_a_page
    folder = tmp_path_factory.mktemp("plain")
    made = design(scenario(folder, rounds=6, client={"lr": 0.3}), OURS, "fedavg", "fedavg[client.lr=1e-3]", seeds=5)
    conductor.compare(made, folder / "study")
    return folder / "study"


@pytest.fixture(scope="module", params=["crossed", "plain"])
def case(request: pytest.FixtureRequest, finished: Path, plain: Path) -> Case:
    """Partitions crossed with seeds, and a partition for each seed."""
    if request.param == "crossed":
        return Case(finished, study_of(finished), PAIRS)
    return Case(plain, study_of(plain), [(None, seed) for seed in range(5)])


def run_of(study: dict[str, Any], method: str, pair: tuple[int | None, int]) -> dict[str, Any]:
    (found,) = [r for r in study["runs"] if (r["method"], r["partition"], r["seed"]) == (method, *pair)]
    return dict(found)


class TestNumbers:
    def test_values_are_those_of_the_runs_in_order_of_the_pairs(
        self, finished: Path, study: dict[str, Any]
    ) -> None:
        for method, metric in itertools.product(("fedavg", OURS, "twin"), CONVENTIONS):
            if metric == "n":
                continue
            block = [summary(finished, run_of(study, method, pair))["fairness"]["test_accuracy"] for pair in PAIRS]
            assert entry(study, method, metric)["values"] == [each[metric] for each in block]

    def test_losses_are_beside_them_and_lower_is_better(self, finished: Path, study: dict[str, Any]) -> None:
        for metric in ("mean", "worst_10"):
            found = entry(study, OURS, f"loss_{metric}")
            block = [summary(finished, run_of(study, OURS, pair))["fairness"]["test_loss"] for pair in PAIRS]
            assert found["values"] == [each[metric] for each in block]
            assert (found["better"], found["tested"]) == ("lower", False)

    def test_the_measures_of_a_run_are_those_of_its_clients(self, finished: Path, study: dict[str, Any]) -> None:
        for pair in PAIRS:
            run = run_of(study, OURS, pair)
            accuracies = list(last_accuracies(finished, run).values())
            assert len(accuracies) == 4
            assert run["measures"]["mean"] == pytest.approx(statistics.fmean(accuracies))
            assert run["measures"]["std"] == pytest.approx(statistics.pstdev(accuracies))
            assert run["measures"]["worst_10"] == min(accuracies)

    def test_means_deviations_and_differences_are_over_seeds(self, case: Case) -> None:
        """Runs of one seed share weights and samples over partitions: only seeds are independent."""
        seeds = {seed for _, seed in case.pairs}
        for metric in ("mean", "worst_10", "std", "gini", "loss_mean"):
            ours, theirs = entry(case.study, OURS, metric), entry(case.study, "fedavg", metric)
            assert len(ours["values"]) == len(case.pairs)
            mine, other = case.by_seed(ours["values"]), case.by_seed(theirs["values"])
            assert ours["n"] == len(mine) == len(seeds)
            assert ours["mean"] == pytest.approx(statistics.fmean(mine))
            assert ours["std"] == pytest.approx(statistics.stdev(mine))
            low, high = stats.t.interval(0.95, len(mine) - 1, statistics.fmean(mine), stats.sem(mine))
            assert ours["t_interval"] == pytest.approx([low, high])
            changes = [a - b for a, b in zip(mine, other, strict=True)]
            found = ours["difference"]
            assert theirs["difference"] is None
            assert found["n"] == len(seeds)
            assert found["mean"] == pytest.approx(statistics.fmean(changes))
            assert found["std"] == pytest.approx(statistics.stdev(changes))
            said = stats.ttest_rel(mine, other)
            assert (found["t"]["statistic"], found["t"]["p"]) == pytest.approx((said.statistic, said.pvalue))
            if found["improves"] is not None:
                assert found["improves"] == ((found["mean"] > 0) == (ours["better"] == "higher"))

    def test_p_values_are_corrected_over_methods_and_tested_measures(self, case: Case) -> None:
        study = case.study
        tested = [e for e in study["results"] if e["tested"] and (e["difference"] or {}).get("n")]
        assert {e["metric"] for e in tested} == {"mean", "worst_10", "std"}
        in_order = sorted(tested, key=lambda e: float(e["difference"]["t"]["p"]))
        enough = len({seed for _, seed in case.pairs}) >= study["design"]["min_pairs"]
        highest = 0.0
        for place, each in enumerate(in_order):
            highest = max(highest, min(1.0, (len(tested) - place) * each["difference"]["t"]["p"]))
            assert each["difference"]["t"]["p_holm"] == pytest.approx(highest)
            assert each["difference"]["significant"] == (enough and highest < study["design"]["alpha"])
        assert any(each["difference"]["significant"] for each in tested) == enough
        for each in study["results"]:
            if not each["tested"] and each["difference"] is not None:
                assert each["difference"]["t"]["p_holm"] is None
                assert not each["difference"]["significant"]

    def test_wins_are_clients_counted_one_by_one(self, case: Case) -> None:
        (found,) = [each for each in case.study["wins"] if each["method"] == OURS]
        shares: dict[str, list[float]] = {"better": [], "equal": [], "worse": []}
        for pair in case.pairs:
            ours, theirs = (
                last_accuracies(case.folder, run_of(case.study, method, pair)) for method in (OURS, "fedavg")
            )
            signs = [(ours[client] > theirs[client]) - (ours[client] < theirs[client]) for client in theirs]
            for name, sign in (("better", 1), ("equal", 0), ("worse", -1)):
                shares[name].append(signs.count(sign) / len(signs))
        assert found["n"] == len({seed for _, seed in case.pairs})
        for name, each in shares.items():
            assert found[name] == pytest.approx(statistics.fmean(case.by_seed(each)))
        assert found["interval"][0] <= found["better"] <= found["interval"][1]

    def test_a_seed_that_lacks_a_partition_has_no_mean(self) -> None:
        values = np.array([1.0, 2.0, 3.0, 5.0, math.nan, 9.0])
        assert seed_means(values, 2) == pytest.approx([3.0, math.nan, 6.0], nan_ok=True)

    def test_partitions_agree_where_their_own_means_have_the_sign_of_the_whole(self, study: dict[str, Any]) -> None:
        checked = 0
        for metric in ("mean", "std", "gini", "loss_mean", "worst_10"):
            ours, theirs = entry(study, OURS, metric), entry(study, "fedavg", metric)
            changes = [a - b for a, b in zip(ours["values"], theirs["values"], strict=True)]
            if abs(sum(changes)) < 1e-12:
                continue
            checked += 1
            by_partition = [
                statistics.fmean(c for c, (p, _) in zip(changes, PAIRS, strict=True) if p == one)
                for one in PARTITIONS
            ]
            agree = sum(mean * sum(changes) > 0 for mean in by_partition)
            assert ours["difference"]["partitions_agree"] == [agree, len(PARTITIONS)]
        assert checked > 1

    def test_the_pareto_front_has_whom_nobody_beats(self, study: dict[str, Any]) -> None:
        labels = ["fedavg", OURS, "twin"]
        points = {m: (entry(study, m, "mean")["mean"], entry(study, m, "worst_10")["mean"]) for m in labels}
        front = [
            m
            for m, (x, y) in points.items()
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
        ]
        (found,) = [each for each in study["pareto"] if each["y"] == "worst_10"]
        assert sorted(found["methods"]) == sorted(front)

    def test_a_study_of_one_scenario_has_no_ranks(self, study: dict[str, Any]) -> None:
        assert study["ranks"] == []

    def test_every_entry_is_there_once(self, study: dict[str, Any]) -> None:
        measures = [name for name in CONVENTIONS if name != "n"] + ["loss_mean", "loss_worst_10"]
        labels = ["fedavg", OURS, "twin", "wild"]
        keys = [(each["method"], each["metric"]) for each in study["results"]]
        assert sorted(keys) == sorted(itertools.product(labels, measures))
        assert len(study["runs"]) == len(METHODS) * len(PAIRS)
        assert [(p["partition"], p["seed"]) for p in study["pairs"]] == PAIRS
        tested = [each["tested"] for each in study["results"]]
        assert tested == sorted(tested, reverse=True)


class TestTwins:
    """Two labels of one method."""

    def test_they_share_their_runs(self, study: dict[str, Any]) -> None:
        for pair in PAIRS:
            one, other = (run_of(study, method, pair) for method in ("fedavg", "twin"))
            assert one["folder"] == other["folder"]
            assert {**one, "method": ""} == {**other, "method": ""}

    def test_nothing_about_them_differs_significantly(self, study: dict[str, Any]) -> None:
        for metric in ("mean", "worst_10", "std", "loss_mean"):
            found = entry(study, "twin", metric)["difference"]
            assert (found["mean"], found["significant"], found["improves"]) == (0, False, None)
            assert (found["t"]["p"], found["wilcoxon"]["p"]) == (1, 1)

    def test_a_reader_is_warned(self, study: dict[str, Any]) -> None:
        assert "fedavg and twin are the same runs: nothing about them differs." in study["warnings"]


class TestFailed:
    def test_a_method_that_diverges_is_listed_with_its_cause_and_the_rest_is_compared(
        self, study: dict[str, Any]
    ) -> None:
        assert study["status"] == "failed"
        for pair in PAIRS:
            run = run_of(study, "wild", pair)
            assert run["status"] == "failed"
            assert "client" in run["error"]
            assert "finite" in run["error"]
            assert run["measures"] == run["loss"] == {}
        assert {run["status"] for run in study["runs"] if run["method"] != "wild"} == {"finished"}
        assert any(f"{len(PAIRS)} of {len(study['runs'])} runs failed" in line for line in study["warnings"])

    def test_it_has_no_numbers(self, study: dict[str, Any]) -> None:
        found = entry(study, "wild", "mean")
        assert (found["n"], found["mean"], found["values"]) == (0, None, [None] * len(PAIRS))
        assert found["difference"]["n"] == 0
        assert not found["difference"]["significant"]
        (wins,) = [each for each in study["wins"] if each["method"] == "wild"]
        assert (wins["n"], wins["better"]) == (0, None)

    def test_it_does_not_dilute_the_correction_of_the_others(self, study: dict[str, Any]) -> None:
        """Comparisons that were not made are in no family."""
        smallest = min(
            (e["difference"]["t"] for e in study["results"] if e["tested"] and (e["difference"] or {}).get("n")),
            key=lambda t: t["p"],
        )
        assert smallest["p_holm"] == pytest.approx(min(1.0, 6 * smallest["p"]))  # 2 methods x 3 measures

    def test_a_pair_that_lacks_one_run_is_left_out_of_that_comparison_alone(
        self, finished: Path, study: dict[str, Any], tmp_path: Path
    ) -> None:
        folder = copied(finished, tmp_path / "study")
        lost = run_of(study, OURS, PAIRS[1])
        rewrite(folder / lost["folder"] / "summary.json", status="failed", error="client 3, round 1: on purpose")
        gone = run_of(study, OURS, PAIRS[4])
        shutil.rmtree(folder / gone["folder"])
        conductor.report(folder)
        found = study_of(folder)
        assert (run_of(found, OURS, PAIRS[1])["status"], run_of(found, OURS, PAIRS[4])["status"]) == (
            "failed",
            "missing",
        )
        before, after = entry(study, OURS, "mean"), entry(found, OURS, "mean")
        kept = [value if place not in (1, 4) else None for place, value in enumerate(before["values"])]
        assert after["values"] == kept
        # Places 1 and 4 are the second seed on both partitions.
        there, theirs = (
            [statistics.fmean((values[place], values[place + len(SEEDS)])) for place in (0, 2)]
            for values in (before["values"], entry(study, "fedavg", "mean")["values"])
        )
        assert (after["n"], after["difference"]["n"]) == (2, 2)
        assert after["mean"] == pytest.approx(statistics.fmean(there))
        assert after["difference"]["t"]["p"] == pytest.approx(stats.ttest_rel(there, theirs).pvalue)
        assert not after["difference"]["significant"]
        assert entry(found, "twin", "mean")["difference"]["n"] == len(SEEDS)
        (wins,) = [each for each in found["wins"] if each["method"] == OURS]
        assert wins["n"] == 2
        # What is of fewer seeds is ranked nowhere, and that is said.
        labels = {label for each in found["pareto"] for label in each["methods"]}
        assert labels <= {"fedavg", "twin"}
        assert f"small: {OURS} (2) have fewer than the 3 of others" in "\n".join(found["warnings"])
        assert any("on purpose" in run["error"] for run in found["runs"] if run["error"])

    def test_one_run_that_is_lost_costs_its_seed_on_all_partitions(
        self, finished: Path, study: dict[str, Any], tmp_path: Path
    ) -> None:
        folder = copied(finished, tmp_path / "study")
        shutil.rmtree(folder / run_of(study, OURS, PAIRS[4])["folder"])
        conductor.report(folder)
        found = entry(study_of(folder), OURS, "mean")
        assert (found["n"], found["difference"]["n"]) == (2, 2)
        assert found["values"].count(None) == 1

    def test_without_the_baseline_there_is_nothing_to_compare(
        self, finished: Path, study: dict[str, Any], tmp_path: Path
    ) -> None:
        folder = copied(finished, tmp_path / "study")
        for pair in PAIRS:
            shutil.rmtree(folder / run_of(study, "fedavg", pair)["folder"])  # the twin's, too
        conductor.report(folder)
        found = study_of(folder)
        assert entry(found, OURS, "mean")["n"] == len(SEEDS)
        assert entry(found, OURS, "mean")["difference"]["n"] == 0
        assert found["status"] != "finished"
        assert "nothing to compare yet" in found["words"][0]


def test_the_order_of_methods_changes_no_number(finished: Path, study: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "study")
    made = design(scenario(tmp_path), *METHODS[::-1], seeds=SEEDS, partitions=PARTITIONS)
    found = conductor.compare(made, folder)
    for key in ("results", "runs", "wins"):
        assert sorted(map(repr, (_rid_of_time(e) for e in found[key]))) == sorted(
            map(repr, (_rid_of_time(e) for e in study[key]))
        )
    assert found["pairs"] == study["pairs"]


def _rid_of_time(each: dict[str, Any]) -> list[Any]:
    return sorted((key, str(value)) for key, value in each.items() if key != "seconds" and key != "error")


Values = Callable[[np.random.Generator], np.ndarray]


def several(methods: dict[str, tuple[Values, int]], pairs: int, **changes: Any) -> dict[str, Any]:
    """A study.json as `words` reads it: methods' differences to fedavg, in their first so many pairs."""
    rng = np.random.default_rng(0)
    theirs = rng.normal(0.5, 0.02, pairs)
    all_of = {"fedavg": {"mean": theirs}}
    for label, (values, n) in methods.items():
        column = np.full(pairs, np.nan)
        column[:n] = theirs[:n] + values(rng)
        all_of[label] = {"mean": column}
    differences = compare(all_of, "fedavg", ["mean"], {"mean": "higher"})
    about = {"scenario": "s", "metric": "mean", "tested": True}
    return {
        "design": {
            "scenarios": [{"name": "s"}],
            "methods": [{"label": label, "changes": [], "settings": {"s": {}}} for label in all_of],
            "baseline": "fedavg",
            "metrics": ["mean"],
            "alpha": 0.05,
            "level": 0.95,
            "min_pairs": 5,
            "partitions": None,
            **changes,
        },
        "results": [{**about, "method": m, "difference": differences[m]["mean"]} for m in all_of],
        "ranks": [],
        "runs": [],
        "pairs": [],
        "tuning": None,
    }


class TestWords:
    @staticmethod
    def made(values: Callable[[np.random.Generator], np.ndarray], pairs: int, **changes: Any) -> dict[str, Any]:
        """A study.json as `words` reads it, of one method against fedavg in one measure."""
        return several({"ours": (values, pairs)}, pairs, **changes)

    def test_too_few_pairs_allow_no_claim_however_large_the_difference(self) -> None:
        said = words(self.made(lambda rng: 0.2 + rng.normal(0, 1e-3, 4), 4))
        assert any("too few for a claim" in line for line in said)
        assert not any("better" in line or "significant" in line for line in said)

    def test_a_difference_that_is_significant_is_said_with_its_side_and_interval(self) -> None:
        for sign, way in ((1, "higher (better)"), (-1, "lower (worse)")):
            said = words(self.made(lambda rng, s=sign: s * (0.1 + rng.normal(0, 1e-3, 10)), 10))
            assert said[0].startswith("s: 1 of 1 differences to fedavg are significant (paired t test, Holm")
            assert said[0].endswith("over 1 comparisons at 0.05).")
            (line,) = [line for line in said if line.startswith("s: ours has ")]
            assert line.startswith(f"s: ours has mean {way} by 10.0 points (95 % interval {'+-'[sign < 0]}")

    def test_the_side_that_is_better_is_the_measures_own(self) -> None:
        study = self.made(lambda rng: 0.1 + rng.normal(0, 1e-3, 10), 10)
        for each in study["results"]:
            each["metric"] = "std"
        study["results"][1]["difference"]["improves"] = False
        assert any("ours has standard deviation higher (worse) by 10.0 points" in line for line in words(study))

    def test_too_few_pairs_are_listed_for_the_methods_that_have_them(self) -> None:
        big: Values = lambda rng: 0.1 + rng.normal(0, 1e-3, 10)  # noqa: E731
        study = several({"ours": (big, 10), "lost": (lambda rng: 0.1 + rng.normal(0, 1e-3, 3), 3)}, 10)
        said = words(study)
        assert said[0] == (
            "s: pairs of lost (3) are too few for a claim, whatever the numbers look like; it takes 5 or more."
        )
        assert "1 of 2 differences to fedavg are significant" in said[1]
        assert any(line.startswith("s: ours has mean higher") for line in said)
        assert not any(line.startswith("s: lost has") for line in said)

    def test_the_family_is_the_comparisons_that_were_made(self) -> None:
        methods = {name: ((lambda rng: rng.normal(0, 0.01, 6)), 6) for name in ("a", "b", "c")}
        assert "Holm-corrected over 3 comparisons at 0.05, 6 pairs" in words(several(methods, 6))[0]
        without = {**methods, "c": ((lambda rng: rng.normal(0, 0.01, 0)), 0)}
        assert any("Holm-corrected over 2 comparisons" in line for line in words(several(without, 6)))

    def test_noise_is_no_claim_and_no_proof_of_equality(self) -> None:
        said = words(self.made(lambda rng: rng.normal(0, 0.01, 6), 6))
        assert "no difference to fedavg is significant" in said[0]
        assert "no evidence that there is none" in said[0]

    @pytest.mark.parametrize(("pairs", "can"), [(5, False), (6, True)])
    def test_what_the_wilcoxon_test_cannot_reach_is_said(self, pairs: int, can: bool) -> None:
        """2 / 2^5 = 0.0625 is above 0.05, 2 / 2^6 = 0.031 is not."""
        text = " ".join(words(self.made(lambda rng: rng.normal(0, 0.01, pairs), pairs)))
        assert ("the Wilcoxon test cannot be below 0.062" in text) == (not can)

    @pytest.mark.parametrize(("most", "can"), [(5, False), (6, False), (7, True)])
    def test_the_comparison_with_most_pairs_says_what_the_wilcoxon_test_can_reach(
        self, most: int, can: bool
    ) -> None:
        """Of two comparisons: 2 * 2 / 2^6 = 0.0625, 2 * 2 / 2^7 = 0.031; the other has 5 pairs, which never can."""
        noise = {n: (lambda rng, n=n: rng.normal(0, 0.01, n)) for n in (5, most)}
        text = " ".join(words(several({"few": (noise[5], 5), "many": (noise[most], most)}, most)))
        assert ("it can confirm nothing here" in text) == (not can)
        assert (f"With {most} pairs the p value of the Wilcoxon test" in text) == (not can)

    def test_crossed_partitions_are_said_to_be_averaged_over(self, study: dict[str, Any]) -> None:
        (line,) = [line for line in study["words"] if "averaged over the 2 partitions of each seed" in line]
        assert "tests and intervals speak of these partitions" in line
        assert any("3 seeds are too few for a claim" in line for line in study["words"])
        plain = " ".join(words(self.made(lambda rng: rng.normal(0, 0.01, 6), 6)))
        assert "averaged over" not in plain

    def test_a_partition_that_is_always_the_same_is_said(self) -> None:
        made = self.made(lambda rng: rng.normal(0, 0.01, 6), 6)
        for hashes, same in ((["a"] * 6, True), (list("abcdef"), False)):
            study = {**made, "pairs": [{"scenario": "s", "partition_sha256": one} for one in hashes]}
            assert ("all pairs share one partition" in " ".join(words(study))) == same

    def test_a_study_that_was_not_tuned_says_so(self, study: dict[str, Any]) -> None:
        assert any("No method was tuned" in line for line in study["warnings"])

    def test_runs_of_two_commits_or_packages_are_said(self, study: dict[str, Any]) -> None:
        runs = [dict(run) for run in study["runs"]]
        assert not any("versions of the code" in line for line in warnings(study))
        # Also a commit of which only one session was, before it was interrupted.
        runs[0]["commits"] = [*runs[0]["commits"], "f" * 40]
        assert any("2 versions of the code" in line for line in warnings({**study, "runs": runs}))
        runs[0] = {**study["runs"][0], "versions": {**study["runs"][0]["versions"], "torch": "1.0"}}
        assert any("2 of the packages" in line for line in warnings({**study, "runs": runs}))

    def test_runs_of_other_code_than_the_present_are_said(self, study: dict[str, Any]) -> None:
        before = [
            {**run, "commits": ["e" * 40 + "+edited.0123abcd"] * bool(run["commits"])} for run in study["runs"]
        ]
        said = warnings({**study, "runs": before, "environment": {**study["environment"], "commit": "f" * 40}})
        (line,) = [line for line in said if "made by another version of the code" in line]
        assert "(eeeeeeeeeeee+edited.0123abcd) than this page (ffffffffffff)" in line
        same = {**study, "runs": before, "environment": {"commit": "e" * 40 + "+edited.0123abcd"}}
        assert not any("another version of the code" in line for line in warnings(same))

    def test_runs_that_went_on_with_other_versions_are_said(self, study: dict[str, Any]) -> None:
        assert not any("went on with other versions" in line for line in warnings(study))
        runs = [dict(run) for run in study["runs"]]
        first = next(run for run in runs if run["status"] == "finished")
        first["notes"] = ["Resumed at round 2 with another torch (1 -> 2): bits may differ."]
        (line,) = [w for w in warnings({**study, "runs": runs}) if "went on with other versions" in w]
        assert line.startswith("1 runs went on")
        named = f"{first['method']}, seed {first['seed']}, partition {first['partition']}"
        assert f"{named}: Resumed at round 2 with another torch" in line

    def test_runs_that_ended_worse_than_they_began_are_said(self, study: dict[str, Any]) -> None:
        assert not any("than the untrained model has" in line for line in warnings(study))
        done = [run for run in study["runs"] if run["status"] == "finished"]
        assert all(run["loss"]["mean"] < run["first_loss"] for run in done)
        runs = [
            {**run, "loss": {**run["loss"], "mean": run["first_loss"] * (1.5 if run["seed"] == 1 else 1.0)}}
            if run["status"] == "finished" and run["method"] == OURS
            else run
            for run in study["runs"]
        ]
        (line,) = [w for w in warnings({**study, "runs": runs}) if "than the untrained model has" in w]
        assert line.startswith(f"{len(PARTITIONS)} runs ended with a higher mean test loss")
        assert f"(small, {OURS})" in line

    def test_points_of_a_grid_that_were_not_tried_are_said(self, study: dict[str, Any]) -> None:
        tuning = {"budget": 4, "grids": {OURS: {"client.lr": [1, 2], "server.lr": [1, 2, 3]}}}
        for budget, left_out in ((4, True), (6, False)):
            about = {**tuning, "budget": budget, "chosen": [], "trials": []}
            said = warnings({**study, "tuning": about})
            assert (f"{OURS}: 4 of the 6 points of its grid were tried." in said) == left_out
            assert any("points of its grid" in line for line in said) == left_out

    def test_other_local_work_is_said_of_what_was_run_tuned_or_not(self, tmp_path: Path) -> None:
        """The baseline's work is what others are held against; tuning may choose another, too."""
        more = {"strategy": "afl", "label": "more", "changes": ["client.local_epochs=2"]}
        found = conductor.compare(design(scenario(tmp_path), "fedavg", "afl", more, seeds=1), tmp_path / "out")
        assert "more: other local work than fedavg (client.local_epochs)." in found["warnings"]
        tune = {"grid": {"client.lr": ["x1"]}, "own": {"afl": {"client.batch_size": [4]}}, "rounds": 1}
        made = design(scenario(tmp_path), "fedavg", "afl", seeds=1, tune=tune)
        found = conductor.compare(made, tmp_path / "tuned")
        assert "afl: other local work than fedavg (client.batch_size)." in found["warnings"]
        about = {m["label"]: m["settings"]["small"] for m in found["design"]["methods"]}
        assert about["afl"]["client.batch_size"] == 4
        assert "client.batch_size" not in about["fedavg"]
        alike = conductor.compare(design(scenario(tmp_path), "fedavg", "afl", seeds=1), tmp_path / "alike")
        assert not any("local work" in line for line in alike["warnings"])

    def test_what_methods_set_themselves_is_said_of_a_study_that_was_not_tuned(self, study: dict[str, Any]) -> None:
        (line,) = [line for line in study["warnings"] if "No method was tuned" in line]
        assert f"save for what {OURS} (strategy.q=0.5); wild (client.lr=3e38) set themselves" in line


def test_ranks_over_scenarios_are_those_of_the_means(tmp_path: Path) -> None:
    for name, alpha in (("a", 0.1), ("b", 100.0)):
        scenario(tmp_path, name, partition={"name": "dirichlet", "num_clients": 4, "alpha": alpha, "min_size": 4})
    (tmp_path / "both.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml"]\nmetrics = ["mean", "std"]\n')
    made = design(tmp_path / "both.toml", "fedavg", "fedavg[client.lr=0.4]", "fedavg[client.lr=0.01]", seeds=1)
    found = conductor.compare(made, tmp_path / "out")
    labels = [method.label for method in made.methods]
    for ranks, sign in zip(found["ranks"], (-1, 1), strict=True):
        assert ranks["methods"] == labels
        assert ranks["scenarios"] == ["a", "b"]
        means = [[sign * entry(found, m, ranks["metric"], s)["mean"] for m in labels] for s in ("a", "b")]
        assert ranks["average"] == pytest.approx(np.mean([stats.rankdata(row) for row in means], axis=0))
        assert sum(ranks["average"]) == pytest.approx(1 + 2 + 3)
        assert ranks["critical_difference"] > 0
        assert math.isfinite(ranks["critical_difference"])


def test_a_scenario_that_lacks_a_method_is_in_no_ranking(tmp_path: Path) -> None:
    """A mean over other pairs would be compared with those of all."""
    for name in "abc":
        scenario(tmp_path, name)
    (tmp_path / "all.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml", "c.toml"]\nmetrics = ["mean"]\n')
    made, out = design(tmp_path / "all.toml", "fedavg", "afl", seeds=2), tmp_path / "out"
    whole = conductor.compare(made, out)
    assert [ranks["scenarios"] for ranks in whole["ranks"]] == [["a", "b", "c"]]
    assert not any("left out of ranks" in line for line in whole["warnings"])
    lost = next(r for r in whole["runs"] if (r["scenario"], r["method"], r["seed"]) == ("b", "afl", 1))
    rewrite(out / lost["folder"] / "summary.json", status="failed", error="on purpose")
    conductor.report(out)
    found = study_of(out)
    assert [ranks["scenarios"] for ranks in found["ranks"]] == [["a", "c"]]
    assert [each["methods"] for each in found["pareto"] if each["scenario"] == "b"] == [["fedavg"]] * 2
    (line,) = [line for line in found["warnings"] if "left out of ranks and Pareto front" in line]
    assert line.startswith("b: afl (1) have fewer than the 2 of others")
    left_out = "b: is left out of the ranks over scenarios, which take all methods with all their pairs: not afl."
    assert left_out in found["warnings"]
    # The same of a method of which nothing is left.
    for run in whole["runs"]:
        if (run["scenario"], run["method"]) == ("b", "afl"):
            rewrite(out / run["folder"] / "summary.json", status="failed", error="on purpose")
    conductor.report(out)
    assert left_out in study_of(out)["warnings"]
    assert not any("left out of ranks and Pareto" in line for line in study_of(out)["warnings"])


def test_settings_are_what_was_run_and_differs(plain: Path) -> None:
    about = {m["label"]: m["settings"]["small"] for m in study_of(plain)["design"]["methods"]}
    assert about["fedavg[client.lr=1e-3]"]["client.lr"] == 1e-3
    assert about["fedavg"]["client.lr"] == 0.3
    assert about[OURS]["strategy.q"] == 0.5
    assert not any("client.batch_size" in each for each in about.values())  # all have one
