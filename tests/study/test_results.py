"""study.json against what the run folders say, recomputed the slow way; and what its words claim."""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.fairness import CONVENTIONS
from fedsim.study import conductor
from fedsim.study.words import warnings, words
from tests.study.conftest import METHODS, PARTITIONS, SEEDS
from tests.study.studies import copied, design, entry, last_accuracies, rewrite, scenario, study_of, summary

PAIRS = list(itertools.product(PARTITIONS, SEEDS))
OURS = "qfedavg[q=0.5]"


@pytest.fixture(scope="module")
def study(finished: Path) -> dict[str, Any]:
    return study_of(finished)


def run_of(study: dict[str, Any], method: str, pair: tuple[int, int]) -> dict[str, Any]:
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

    def test_means_deviations_and_differences(self, study: dict[str, Any]) -> None:
        for metric in ("mean", "worst_10", "std", "gini", "loss_mean"):
            ours, theirs = entry(study, OURS, metric), entry(study, "fedavg", metric)
            assert ours["n"] == len(PAIRS)
            assert ours["mean"] == pytest.approx(statistics.fmean(ours["values"]))
            assert ours["std"] == pytest.approx(statistics.stdev(ours["values"]))
            changes = [a - b for a, b in zip(ours["values"], theirs["values"], strict=True)]
            found = ours["difference"]
            assert theirs["difference"] is None
            assert found["n"] == len(PAIRS)
            assert found["mean"] == pytest.approx(statistics.fmean(changes))
            assert found["std"] == pytest.approx(statistics.stdev(changes))
            said = stats.ttest_rel(ours["values"], theirs["values"])
            assert (found["t"]["statistic"], found["t"]["p"]) == pytest.approx((said.statistic, said.pvalue))
            if found["improves"] is not None:
                assert found["improves"] == ((found["mean"] > 0) == (ours["better"] == "higher"))

    def test_p_values_are_corrected_over_methods_and_tested_measures(self, study: dict[str, Any]) -> None:
        tested = [e for e in study["results"] if e["tested"] and (e["difference"] or {}).get("n")]
        assert {e["metric"] for e in tested} == {"mean", "worst_10", "std"}
        in_order = sorted(tested, key=lambda e: float(e["difference"]["t"]["p"]))
        highest = 0.0
        for place, each in enumerate(in_order):
            highest = max(highest, min(1.0, (len(tested) - place) * each["difference"]["t"]["p"]))
            assert each["difference"]["t"]["p_holm"] == pytest.approx(highest)
            assert each["difference"]["significant"] == (highest < study["design"]["alpha"])
        for each in study["results"]:
            if not each["tested"] and each["difference"] is not None:
                assert each["difference"]["t"]["p_holm"] is None
                assert not each["difference"]["significant"]

    def test_wins_are_clients_counted_one_by_one(self, finished: Path, study: dict[str, Any]) -> None:
        (found,) = [each for each in study["wins"] if each["method"] == OURS]
        shares: dict[str, list[float]] = {"better": [], "equal": [], "worse": []}
        for pair in PAIRS:
            ours, theirs = (last_accuracies(finished, run_of(study, method, pair)) for method in (OURS, "fedavg"))
            signs = [(ours[client] > theirs[client]) - (ours[client] < theirs[client]) for client in theirs]
            for name, sign in (("better", 1), ("equal", 0), ("worse", -1)):
                shares[name].append(signs.count(sign) / len(signs))
        assert found["n"] == len(PAIRS)
        for name, each in shares.items():
            assert found[name] == pytest.approx(statistics.fmean(each))
        assert found["interval"][0] <= found["better"] <= found["interval"][1]

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
        there = [value for value in kept if value is not None]
        assert (after["n"], after["difference"]["n"]) == (4, 4)
        assert after["mean"] == pytest.approx(statistics.fmean(there))
        theirs = [v for v, k in zip(entry(study, "fedavg", "mean")["values"], kept, strict=True) if k is not None]
        assert after["difference"]["t"]["p"] == pytest.approx(stats.ttest_rel(there, theirs).pvalue)
        assert not after["difference"]["significant"]  # 4 pairs are fewer than min_pairs
        assert entry(found, "twin", "mean")["difference"]["n"] == len(PAIRS)
        (wins,) = [each for each in found["wins"] if each["method"] == OURS]
        assert wins["n"] == 4
        assert any("on purpose" in run["error"] for run in found["runs"] if run["error"])

    def test_without_the_baseline_there_is_nothing_to_compare(
        self, finished: Path, study: dict[str, Any], tmp_path: Path
    ) -> None:
        folder = copied(finished, tmp_path / "study")
        for pair in PAIRS:
            shutil.rmtree(folder / run_of(study, "fedavg", pair)["folder"])  # the twin's, too
        conductor.report(folder)
        found = study_of(folder)
        assert entry(found, OURS, "mean")["n"] == len(PAIRS)
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


class TestWords:
    @staticmethod
    def made(values: Callable[[np.random.Generator], np.ndarray], pairs: int, **changes: Any) -> dict[str, Any]:
        """A study.json as `words` reads it, of one method against fedavg in one measure."""
        from fedsim.statistics import compare

        rng = np.random.default_rng(0)
        theirs = rng.normal(0.5, 0.02, pairs)
        both = {"fedavg": {"mean": theirs}, "ours": {"mean": theirs + values(rng)}}
        difference = compare(both, "fedavg", ["mean"], {"mean": "higher"})["ours"]["mean"]
        about = {"scenario": "s", "metric": "mean", "tested": True}
        return {
            "design": {
                "scenarios": [{"name": "s"}],
                "methods": [{"label": "fedavg", "changes": []}, {"label": "ours", "changes": []}],
                "baseline": "fedavg",
                "alpha": 0.05,
                "level": 0.95,
                "min_pairs": 5,
                "partitions": None,
                **changes,
            },
            "results": [
                {**about, "method": "fedavg", "difference": None},
                {**about, "method": "ours", "difference": difference},
            ],
            "ranks": [],
            "runs": [],
            "pairs": [],
            "tuning": None,
        }

    def test_too_few_pairs_allow_no_claim_however_large_the_difference(self) -> None:
        said = words(self.made(lambda rng: 0.2 + rng.normal(0, 1e-3, 4), 4))
        assert any("too few for a claim" in line for line in said)
        assert not any("better" in line or "significant" in line for line in said)

    def test_a_difference_that_is_significant_is_said_with_its_side_and_interval(self) -> None:
        for sign, way in ((1, "better"), (-1, "worse")):
            text = " ".join(words(self.made(lambda rng, s=sign: s * (0.1 + rng.normal(0, 1e-3, 10)), 10)))
            assert "1 of 1 differences to fedavg are significant" in text
            assert f"ours has mean {way} by {'+' if sign > 0 else '-'}10.0 points (95 % interval" in text

    def test_noise_is_no_claim_and_no_proof_of_equality(self) -> None:
        said = words(self.made(lambda rng: rng.normal(0, 0.01, 6), 6))
        assert "no difference to fedavg is significant" in said[0]
        assert "no evidence that there is none" in said[0]

    @pytest.mark.parametrize(("pairs", "can"), [(5, False), (6, True)])
    def test_what_the_wilcoxon_test_cannot_reach_is_said(self, pairs: int, can: bool) -> None:
        """2 / 2^5 = 0.0625 is above 0.05, 2 / 2^6 = 0.031 is not."""
        text = " ".join(words(self.made(lambda rng: rng.normal(0, 0.01, pairs), pairs)))
        assert ("the Wilcoxon test cannot be below 0.062" in text) == (not can)

    def test_crossed_partitions_are_said_to_make_pairs_dependent(self, study: dict[str, Any]) -> None:
        assert any("share 2 partitions and so are not independent" in line for line in study["words"])

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
        runs[0]["commit"] = "f" * 40
        assert any("2 versions of the code" in line for line in warnings({**study, "runs": runs}))
        runs[0] = {**study["runs"][0], "versions": {**study["runs"][0]["versions"], "torch": "1.0"}}
        assert any("2 of the packages" in line for line in warnings({**study, "runs": runs}))

    def test_other_local_work_is_said(self, study: dict[str, Any]) -> None:
        methods = [{**study["design"]["methods"][0], "changes": ["client.local_epochs=3"]}]
        said = warnings({**study, "design": {**study["design"], "methods": methods}})
        assert f"{OURS}: other local work than the rest (client.local_epochs)." in said


def test_ranks_over_scenarios_are_those_of_the_means(tmp_path: Path) -> None:
    for name, alpha in (("a", 0.1), ("b", 100.0)):
        scenario(tmp_path, name, partition={"name": "dirichlet", "num_clients": 4, "alpha": alpha, "min_size": 4})
    (tmp_path / "both.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml"]\nmetrics = ["mean", "std"]\n')
    made = design(tmp_path / "both.toml", "fedavg", "fedavg[client.lr=0.4]", "fedavg[client.lr=0.01]", seeds=1)
    found = conductor.compare(made, tmp_path / "out")
    labels = [method.label for method in made.methods]
    for ranks, sign in zip(found["ranks"], (-1, 1), strict=True):
        assert ranks["methods"] == labels
        assert ranks["datasets"] == ["a", "b"]
        means = [[sign * entry(found, m, ranks["metric"], s)["mean"] for m in labels] for s in ("a", "b")]
        assert ranks["average"] == pytest.approx(np.mean([stats.rankdata(row) for row in means], axis=0))
        assert sum(ranks["average"]) == pytest.approx(1 + 2 + 3)
        assert ranks["critical_difference"] > 0
        assert math.isfinite(ranks["critical_difference"])
    assert any("cannot be told apart" in line for line in found["words"])
