"""What study.json claims of numbers known beforehand: a study is judged by the rules that it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim import statistics
from fedsim.fairness import CONVENTIONS
from fedsim.study import results
from fedsim.study.design import Run
from fedsim.study.gathering import Gathered
from tests.study.studies import design, entry, scenario

OURS, THIRD = "fedavg[client.lr=0.2]", "fedavg[client.lr=0.3]"
FOURTH, FIFTH = "fedavg[client.lr=0.4]", "fedavg[client.lr=0.5]"
NOISE = np.array([0.011, -0.004, 0.016, 0.003, 0.013])
"""Differences whose paired t test has p = 0.09."""

Numbers = Mapping[str, Mapping[str, Sequence[float]]]
Judged = Callable[..., dict[str, Any]]


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Return study.json of runs that reached given numbers: scenario -> method -> measure -> value of each pair."""
    hashes = ("partition_sha256", "data_sha256", "initial_sha256", "samples_sha256")

    def make(numbers: Mapping[str, Numbers], **options: Any) -> dict[str, Any]:
        for name in numbers:
            scenario(tmp_path, name)
        files = ", ".join(f'"{name}.toml"' for name in numbers)
        (tmp_path / "study.toml").write_text(f"[study]\nscenarios = [{files}]\n")
        labels = list(next(iter(numbers.values())))
        made = design(tmp_path / "study.toml", *labels, **options)

        def gather(run: Run, _folder: Path, *, ready: bool) -> Gathered:
            assert ready
            of = {
                name: values[made.pairs.index(run.pair)]
                for name, values in numbers[run.scenario][run.method].items()
            }
            there = not any(math.isnan(value) for value in of.values())
            record = {
                "scenario": run.scenario, "method": run.method, "partition": run.pair.partition,
                "seed": run.pair.seed, "status": "finished" if there else "missing", "folder": f"runs/{run.id}",
                "digest": run.digest, "error": None, "notes": [], "commits": ["c"], "commit": "c", "versions": {},
                "measures": {**dict.fromkeys(CONVENTIONS, 0.5), **of} if there else {},
                "loss": dict.fromkeys(CONVENTIONS, 0.5) if there else {}, "first_loss": None,
                **dict.fromkeys(hashes, f"{run.pair}"),
            }  # fmt: skip
            return Gathered(run, record, np.full(4, 0.5) if there else None)

        monkeypatch.setattr(results, "gather", gather)
        monkeypatch.setattr(results, "num_clients_of", lambda _folder: 4)
        return results.gathered(made, tmp_path, made.runs({}), None, command="", status="finished")

    return make


def against(differences: Sequence[float] | np.ndarray) -> dict[str, Numbers]:
    """Return the numbers of a baseline and of one method with these differences in its mean."""
    theirs = 0.5 + 0.01 * np.arange(len(differences))
    return {"s": {"fedavg": {"mean": theirs}, OURS: {"mean": theirs + differences}}}


class TestTheRulesOfAStudyAreThoseAskedFor:
    def test_alpha(self, judged: Judged) -> None:
        p = stats.ttest_1samp(NOISE, 0).pvalue
        assert 0.06 < p < 0.19
        for alpha, claimed in ((0.05, False), (0.2, True)):
            found = judged(against(NOISE), seeds=5, metrics=["mean"], alpha=alpha)
            difference = entry(found, OURS, "mean", "s")["difference"]
            assert difference["t"]["p_holm"] == pytest.approx(p)
            assert difference["significant"] is claimed
            assert ("are significant" in found["words"][0]) is claimed

    def test_min_pairs(self, judged: Judged) -> None:
        for fewest, claimed in ((4, True), (5, False)):
            found = judged(against(0.1 + NOISE[:4]), seeds=4, metrics=["mean"], min_pairs=fewest)
            assert entry(found, OURS, "mean", "s")["difference"]["significant"] is claimed

    def test_level(self, judged: Judged) -> None:
        widths = []
        for level in (0.5, 0.99):
            found = judged(against(NOISE), seeds=5, metrics=["mean"], level=level)
            ours = entry(found, OURS, "mean", "s")
            for about, values in ((ours, ours["values"]), (ours["difference"], NOISE)):
                expected = stats.t.interval(level, 4, np.mean(values), stats.sem(values))
                assert about["t_interval"] == pytest.approx(expected)
                widths.append(about["interval"][1] - about["interval"][0])
        assert widths[2] > 2 * widths[0]
        assert widths[3] > 2 * widths[1]

    def test_alpha_of_ranks(self, judged: Judged) -> None:
        labels = ["fedavg", OURS, THIRD, FOURTH, FIFTH]
        numbers = {name: {m: {"mean": [0.1 * k]} for k, m in enumerate(labels)} for name in "abcd"}
        cliques = []
        for alpha in (0.01, 0.3):
            (found,) = judged(numbers, seeds=1, metrics=["mean"], alpha=alpha)["ranks"]
            critical = stats.studentized_range.ppf(1 - alpha, 5, 1e6) / math.sqrt(2) * math.sqrt(5 * 6 / (6 * 4))
            assert found["critical_difference"] == pytest.approx(critical, rel=1e-3)
            assert found["average"] == [5, 4, 3, 2, 1]
            cliques.append(max(map(len, found["cliques"])))
        assert cliques[0] > cliques[1]


def test_on_a_front_a_smaller_standard_deviation_is_better(judged: Judged) -> None:
    """The third is worse in both; were a larger deviation better, it would be on the front, and the first not."""
    points = {"fedavg": (0.6, 0.2), OURS: (0.7, 0.25), THIRD: (0.5, 0.3), FOURTH: (0.65, 0.1)}
    numbers = {"s": {m: {"mean": [mean], "std": [std]} for m, (mean, std) in points.items()}}
    fronts = {(front["x"], front["y"]): front["methods"] for front in judged(numbers, seeds=1)["pareto"]}
    assert sorted(fronts["mean", "std"]) == sorted([OURS, FOURTH])


def test_a_method_that_lacks_a_pair_is_in_no_front_and_its_scenario_in_no_ranks(judged: Judged) -> None:
    best = {"mean": [0.9, 0.9, math.nan], "std": [0.1] * 3}
    rest = {"fedavg": {"mean": [0.5] * 3, "std": [0.2] * 3}, THIRD: {"mean": [0.4] * 3, "std": [0.3] * 3}}
    whole = {**rest, OURS: {"mean": [0.9] * 3, "std": [0.1] * 3}}
    found = judged({"a": {**rest, OURS: best}, "b": whole, "c": whole}, seeds=3, metrics=["mean"])
    fronts = {(front["scenario"], front["y"]): front["methods"] for front in found["pareto"]}
    assert fronts["a", "std"] == ["fedavg"]
    assert fronts["b", "std"] == [OURS]
    assert [entry["scenarios"] for entry in found["ranks"]] == [["b", "c"]]
    assert any("left out of ranks and Pareto front" in line for line in found["warnings"])


@pytest.mark.parametrize(("lacking", "said"), [(1, False), (2, True)])
def test_wilcoxon_can_confirm_nothing_only_if_it_cannot_for_the_method_with_most_pairs(
    judged: Judged, lacking: int, said: bool
) -> None:
    """Two comparisons at alpha = 0.1: 2 * 2 / 2^6 is below it, 2 * 2 / 2^5 is not."""
    theirs = 0.5 + 0.01 * np.arange(6)
    full, short = theirs + 0.01 * np.array([1, -1, 2, -2, 3, 4]), theirs + 0.02 * np.array([1, -1, 2, -2, 3, 4])
    short[0] = math.nan
    if lacking == 2:
        full[1] = math.nan
    numbers = {"s": {"fedavg": {"mean": theirs}, OURS: {"mean": full}, THIRD: {"mean": short}}}
    text = " ".join(judged(numbers, seeds=6, metrics=["mean"], alpha=0.1)["words"])
    assert ("the Wilcoxon test cannot be below" in text) is said


class TestCrossedPartitions:
    def test_tests_and_intervals_are_over_the_means_of_seeds(self, judged: Judged) -> None:
        rng = np.random.default_rng(3)
        theirs, ours = 0.5 + 0.1 * rng.normal(size=(3, 5)), 0.6 + 0.1 * rng.normal(size=(3, 5))
        ours[1, 2] = math.nan  # seed 2 lacks a partition: it has no mean
        numbers = {"s": {"fedavg": {"mean": theirs.ravel()}, OURS: {"mean": ours.ravel()}}}
        found = entry(judged(numbers, seeds=5, partitions=3, metrics=["mean"], min_pairs=4), OURS, "mean", "s")
        kept = [0, 1, 3, 4]
        expected = (ours - theirs).mean(axis=0)[kept]
        difference = found["difference"]
        assert (found["n"], difference["n"], len(found["values"])) == (4, 4, 15)
        assert found["mean"] == pytest.approx(ours.mean(axis=0)[kept].mean())
        assert found["std"] == pytest.approx(ours.mean(axis=0)[kept].std(ddof=1))
        assert difference["t"]["p"] == pytest.approx(stats.ttest_1samp(expected, 0).pvalue)
        assert difference["t_interval"] == pytest.approx(
            stats.t.interval(0.95, 3, expected.mean(), stats.sem(expected))
        )

    def test_a_seed_effect_that_partitions_share_makes_no_claims(self) -> None:
        """Half of the variance is the seed's: no difference is there, and 5 % of studies may claim one."""
        studies, partitions, seeds, alpha = 1500, 3, 5, 0.05
        rng = np.random.default_rng(0)
        shared = math.sqrt(0.5) * rng.normal(size=(studies, 1, seeds))
        gaps = 0.5 + 0.01 * (shared + math.sqrt(0.5) * rng.normal(size=(studies, partitions, seeds)))
        bound = alpha + 3 * math.sqrt(alpha * (1 - alpha) / studies)
        claims = 0
        for one in gaps:
            means = results.seed_means(one.ravel(), partitions)
            values = {"fedavg": {"mean": np.full(seeds, 0.5)}, "ours": {"mean": means}}
            said = statistics.compare(values, "fedavg", ["mean"], {"mean": "higher"}, alpha)["ours"]["mean"]
            assert said is not None
            assert said["n"] == seeds
            claims += said["significant"]
        assert alpha / 3 < claims / studies <= bound
        # Taken for independent, the pairs of these same studies claim too much: the simulation would show it.
        by_pair = stats.ttest_1samp(gaps.reshape(studies, -1), 0.5, axis=1).pvalue
        assert (by_pair < alpha).mean() > 2 * bound

    def test_a_mean_over_partitions_is_of_one_seed(self) -> None:
        values = np.array([1.0, 2.0, 3.0, 5.0, math.nan, 7.0])
        np.testing.assert_array_equal(results.seed_means(values, 2), [3.0, math.nan, 5.0])
