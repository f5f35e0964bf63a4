"""Tuning: one budget for all, on validation shards alone, and the best trial by anybody's reckoning."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from clients.client_app import _app_of
from fedsim import plugins
from fedsim.datasets.digits import Digits
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.scenario import Scenario
from fedsim.study import conductor, tuning
from fedsim.study.settings import TuneSettings
from fedsim.study.tuning import Plan, Trial
from strategies.rules import AnyRule
from tests.study.studies import DIVERGES, Counted, design, entry, problems, scenario, study_of

OURS = "qfedavg[q=0.5]"
LR = {"grid": {"client.lr": [0.05, 0.1, 0.2]}, "own": {"qfedavg": {}}}


def planned(folder: Path, *methods: Any, tables: dict[str, Any] | None = None, **tune: Any) -> Plan:
    options = {"tune": tune, "seeds": 3}
    found = tuning.plan(design(scenario(folder, **(tables or {})), *(methods or ("fedavg", OURS)), **options))
    assert found is not None
    return found


def of(plan: Plan, method: str) -> list[Trial]:
    return [trial for trial in plan.trials if trial.method == method]


def pretend(
    plan: Plan, folder: Path, score: Any, metric: str = "mean", losses: Any = lambda _trial, _seed: (2.0, 1.0)
) -> None:
    """Write what trials would leave: a measure and the first and last loss, or an error where the score is none."""
    for trial in plan.trials:
        for run in trial.runs:
            (folder / run.id).mkdir(parents=True, exist_ok=True)
            value = score(trial, run.pair.seed)
            summary = (
                {"status": "failed", "error": "client 1, round 1: not finite"}
                if value is None
                else {"status": "finished", "fairness": {"test_accuracy": {metric: value}}}
            )
            (folder / run.id / "summary.json").write_text(json.dumps(summary))
            (folder / run.id / "manifest.json").write_text("{}")
            (folder / run.id / "environment.json").write_text("{}")
            began, ended = losses(trial, run.pair.seed)
            rows = {"round": [0, 0, 1, 2, 2], "test_loss": [began - 1, began + 1, math.nan, ended / 2, ended * 1.5]}
            pd.DataFrame(rows).to_parquet(folder / run.id / "clients.parquet")


class TestPlan:
    @pytest.mark.parametrize("budget", [1, 4, 9])
    def test_every_method_has_as_many_trials_on_the_same_seeds(self, tmp_path: Path, budget: int) -> None:
        plan = planned(tmp_path, "fedavg", OURS, "adafed", budget=budget, seeds=2, fraction=0.3, rounds=1)
        for method in ("fedavg", OURS, "adafed"):
            trials = of(plan, method)
            assert len(trials) == budget
            assert len({json.dumps(trial.values, sort_keys=True) for trial in trials}) == budget
            for trial in trials:
                assert [run.pair.seed for run in trial.runs] == [0, 1]
                for run in trial.runs:
                    assert run.resolved.evaluation.validation == 0.3
                    assert run.resolved.rounds == 1
                    for key, value in trial.values.items():
                        assert tuning.value_at(run.resolved, key) == value

    def test_without_a_budget_it_is_the_smallest_grid(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, "fedavg", "adafed")  # 3 x 3 points, and 3 x 3 x 3
        assert plan.budget == len(of(plan, "fedavg")) == len(of(plan, "adafed")) == 9

    @pytest.mark.parametrize("budget", [1, 2, 8])
    def test_what_a_method_would_do_untuned_is_always_tried(self, tmp_path: Path, budget: int) -> None:
        own = {"adafed": {"strategy.scale": ["raw", "min", "norm"], "strategy.per_step": [False, True]}}
        plan = planned(tmp_path, "fedavg", "adafed", budget=budget, own=own)
        (plain,) = [t for t in of(plan, "fedavg") if t.values == {"client.lr": 0.1, "server.lr": 1.0}]
        assert plain.runs
        default = {"client.lr": 0.1, "server.lr": 1.0, "strategy.scale": "norm", "strategy.per_step": True}
        assert [t for t in of(plan, "adafed") if t.values == default]

    @pytest.mark.parametrize("budget", [1, 2, 3])
    def test_what_a_method_would_do_untuned_is_tried_first_also_where_it_is_no_point(
        self, tmp_path: Path, budget: int
    ) -> None:
        grid = {"client.lr": [0.01, 0.3], "server.lr": [0.5, 2.0]}
        plan = planned(tmp_path, "fedavg", "afl", budget=budget, grid=grid, own={"afl": {}})
        for method in ("fedavg", "afl"):
            first, *others = [t.values for t in of(plan, method)]
            assert first == {"client.lr": 0.1, "server.lr": 1.0}
            assert of(plan, method)[0].runs[0].resolved.client.lr == 0.1
            assert all(v["client.lr"] in grid["client.lr"] and v["server.lr"] in grid["server.lr"] for v in others)
            assert len(others) == budget - 1

    def test_an_option_that_is_off_untuned_is_off_in_the_first_trial(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, budget=3, grid={"client.clip_norm": [1.0, 5.0, 10.0, 20.0]}, own={"qfedavg": {}})
        for method in ("fedavg", OURS):
            first, *others = of(plan, method)
            assert first.values == {}
            assert first.runs[0].resolved.client.clip_norm is None
            assert {t.runs[0].resolved.client.clip_norm for t in others} <= {1.0, 5.0, 10.0, 20.0}
            assert len({t.values["client.clip_norm"] for t in others}) == 2
        pretend(plan, tmp_path, lambda t, _seed: 0.9 if not t.values else 0.5)
        assert [(c["values"], c["at_edge"]) for c in tuning.chosen(plan, tmp_path)] == [({}, [])] * 2

    def test_a_budget_of_the_whole_grid_tries_just_that(self, tmp_path: Path) -> None:
        grid = {"client.lr": [0.01, 0.3], "server.lr": [0.5, 2.0]}
        plan = planned(tmp_path, budget=4, grid=grid, own={"qfedavg": {}})
        for method in ("fedavg", OURS):
            points = [tuple(t.values.values()) for t in of(plan, method)]
            assert sorted(points) == sorted(itertools.product(*grid.values()))

    @pytest.mark.parametrize("budget", [3, 5, 8])
    def test_keys_that_methods_share_are_drawn_in_one_order_for_all(self, tmp_path: Path, budget: int) -> None:
        """None is luckier with them than another; what is a method's own comes on top."""
        own = {"afl": {}, "adafed": {"strategy.gamma": [0.5, 1.0, 2.0]}}
        plan = planned(tmp_path, "fedavg", "afl", "adafed", budget=budget, own=own)
        drawn = {
            method: [(t.values["client.lr"], t.values["server.lr"]) for t in of(plan, method)]
            for method in ("fedavg", "afl", "adafed")
        }
        assert drawn["fedavg"] == drawn["afl"]
        # One with options of its own takes the shared point it has untuned, too, with another option.
        (plain, *others) = drawn["fedavg"]
        theirs = [point for point in drawn["adafed"][1:] if point != plain]
        shared = min(len(theirs), len(others))
        assert shared >= budget - 2
        assert theirs[:shared] == others[:shared]
        assert len({t.values["strategy.gamma"] for t in of(plan, "adafed")}) > 1

    def test_other_draws_for_other_methods_and_the_same_whenever_asked(self, tmp_path: Path) -> None:
        one, again = (planned(tmp_path, "fedavg", OURS, "adafed", budget=5) for _ in range(2))
        assert [trial.values for trial in one.trials] == [trial.values for trial in again.trials]

    def test_a_label_changes_no_draw(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, "fedavg", {"strategy": "fedavg", "label": "twin"}, budget=4)
        assert [t.values for t in of(plan, "fedavg")] == [t.values for t in of(plan, "twin")]
        assert {r.id for t in of(plan, "fedavg") for r in t.runs} == {
            r.id for t in of(plan, "twin") for r in t.runs
        }

    def test_factors_are_of_each_methods_own_default(self, tmp_path: Path) -> None:
        methods = ("fedavg", "fedavg[client.lr=0.02]", "fedadam", "fedadam[server.lr=0.5]")
        own: dict[str, Any] = {"fedadam": {}}
        plan = planned(
            tmp_path,
            *methods,
            budget=3,
            grid={"client.batch_size": [4, 8, 16], "client.lr": ["x0.3", "x1", "x3"]},
            own=own,
        )
        assert plan.grids["fedavg"]["client.lr"] == ("x0.3", "x1", "x3")
        plan = planned(
            tmp_path, methods[0], methods[2], budget=3, grid={"server.lr": ["x0.5", "x1", "x2"]}, own=own
        )
        assert [t.values["server.lr"] for t in of(plan, "fedavg")] == [0.5, 1.0, 2.0]
        default = design(scenario(tmp_path), *methods).runs({})[2].resolved.server.lr
        assert default is not None
        assert default != 1.0
        assert [t.values["server.lr"] for t in of(plan, "fedadam")] == pytest.approx(
            [default / 2, default, 2 * default]
        )
        given = scenario(tmp_path, "given", client={"lr": 0.3})
        plain = tuning.plan(
            design(given, "fedavg", "afl", tune={"grid": {"client.lr": ["x0.1", "x1", 0.5]}, "own": {"afl": {}}})
        )
        assert plain is not None
        assert [t.values["client.lr"] for t in of(plain, "fedavg")] == [0.03, 0.3, 0.5]

    def test_a_value_that_a_method_fixes_is_not_tuned(self, tmp_path: Path) -> None:
        grid = {"client.lr": ["x0.3", "x1", "x3"], "server.lr": ["x1", "x2"]}
        plan = planned(tmp_path, "fedavg", "fedavg[client.lr=0.02]", OURS, "qfedavg", budget=2, grid=grid)
        assert set(plan.grids["fedavg[client.lr=0.02]"]) == {"server.lr"}
        assert {t.runs[0].resolved.client.lr for t in of(plan, "fedavg[client.lr=0.02]")} == {0.02}
        assert "strategy.q" in plan.grids["qfedavg"]
        assert "strategy.q" not in plan.grids[OURS]
        assert {t.runs[0].resolved.table()["strategy"]["q"] for t in of(plan, OURS)} == {0.5}

    def test_the_trials_of_a_method_are_the_runs_it_would_make_but_for_the_values(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, **LR, rounds=1)
        for one, other in itertools.pairwise(of(plan, "fedavg")):
            tables = [trial.runs[0].resolved.table() for trial in (one, other)]
            for table in tables:
                del table["client"]["lr"]
            assert tables[0] == tables[1]
        assert len({run.id for run in plan.runs}) == len(plan.runs)

    def test_a_rules_own_grid_has_what_it_would_do_untuned(self) -> None:
        """What a rule declares that it tunes are options that it has."""
        seen = 0
        for name in plugins.names("strategies.rules"):
            rule = plugins.find("strategies.rules", name, AnyRule)
            for option, values in rule.tunes.items():
                seen += 1
                assert option in rule.model_fields, name
                assert len(set(values)) == len(values) >= 2, name
        assert seen > 5


class TestRefused:
    @pytest.mark.parametrize(
        ("tune", "words"),
        [
            (
                {"grid": {"client.lr": [0.1, 0.2]}, "own": {}, "budget": 3},
                "the grid of fedavg has 2 points, the budget is 3",
            ),
            ({"grid": {"client.lr": []}}, "client.lr has no values"),
            ({"grid": {"client.lr": [0.1, 0.1]}}, "client.lr has a value twice"),
            ({"grid": {"client.lr": ["x1", 0.1]}, "own": {}}, "client.lr of fedavg in small has a value twice"),
            ({"own": {"afl": {"strategy.lambda_lr": [1, 2]}}}, "no method has the strategy afl"),
            ({"metric": "meen"}, 'did you mean "mean"'),
            ({"seeds": []}, "seeds"),
            ({"seeds": [1, 1]}, "seeds"),
            ({"seeds": 4}, "must be at most 3, the pairs of the study"),
            ({"fraction": 0}, "fraction: must be greater than 0"),
            ({"fraction": 1}, "fraction: must be less than 1"),
            ({"budget": 0}, "budget: must be greater than 0"),
            ({"grid": {"client.lrr": [0.1, 0.2]}, "own": {}}, 'did you mean "lr"'),
            ({"grid": {"client.lr": [-1.0, 0.2]}, "own": {}}, "client.lr: must be greater than 0"),
        ],
    )
    def test_what_cannot_be_tuned(self, tmp_path: Path, tune: dict[str, Any], words: str) -> None:
        with pytest.raises(ScenarioError) as caught:
            tuning.plan(design(scenario(tmp_path), "fedavg", OURS, tune=tune, seeds=3))
        assert words in str(caught.value)

    def test_an_option_that_only_some_have_goes_into_own(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match=r"strategy\.q: unknown option"):
            planned(tmp_path, grid={"strategy.q": [0.1, 0.2]}, own={})
        assert problems(scenario(tmp_path), "fedavg", OURS, tune={"sedes": 1})


class TestChoice:
    @pytest.mark.parametrize(("metric", "pick"), [("mean", max), ("worst_10", max), ("std", min), ("gini", min)])
    def test_the_best_mean_over_seeds_is_chosen(self, tmp_path: Path, metric: str, pick: Any) -> None:
        plan = planned(tmp_path, budget=9, seeds=3, metric=metric)
        rng = np.random.default_rng(1)
        table = {
            (t.method, json.dumps(t.values), seed): float(rng.uniform()) for t in plan.trials for seed in range(3)
        }
        pretend(plan, tmp_path, lambda t, seed: table[t.method, json.dumps(t.values), seed], metric)
        found = {choice["method"]: choice for choice in tuning.chosen(plan, tmp_path)}
        for method in ("fedavg", OURS):
            means = {
                json.dumps(t.values): sum(table[method, json.dumps(t.values), seed] for seed in range(3)) / 3
                for t in of(plan, method)
            }
            best = pick(means, key=means.__getitem__)
            assert json.dumps(found[method]["values"]) == best
            assert found[method]["score"] == pytest.approx(means[best])

    @pytest.mark.parametrize("metric", ["mean", "std"])
    def test_the_first_of_equals(self, tmp_path: Path, metric: str) -> None:
        plan = planned(tmp_path, **LR, metric=metric)
        pretend(plan, tmp_path, lambda _trial, _seed: 0.5, metric)
        assert [choice["values"] for choice in tuning.chosen(plan, tmp_path)] == [{"client.lr": 0.05}] * 2

    def test_a_trial_that_failed_on_one_seed_is_never_chosen(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, **LR, seeds=2)
        pretend(
            plan,
            tmp_path,
            lambda t, seed: None if t.values["client.lr"] == 0.2 and seed == 1 else t.values["client.lr"],
        )
        assert [choice["values"]["client.lr"] for choice in tuning.chosen(plan, tmp_path)] == [0.1, 0.1]
        bad = of(plan, "fedavg")[2]
        score, error = tuning.outcome(plan, bad, tmp_path)
        assert math.isnan(score)
        assert error == "client 1, round 1: not finite"

    def test_where_all_failed_there_is_no_choice(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, **LR)
        pretend(plan, tmp_path, lambda t, _seed: None if t.method == OURS else 0.3)
        with pytest.raises(ScenarioError, match=r"qfedavg\[q=0.5\]: every trial of its tuning failed") as caught:
            tuning.chosen(plan, tmp_path)
        assert "small, fedavg:" not in "\n".join(caught.value.problems)

    def test_values_at_the_edge_are_flagged(self, tmp_path: Path) -> None:
        plan = planned(
            tmp_path,
            "fedavg",
            OURS,
            grid={"client.lr": [0.1, 0.2, 0.05], "server.lr": [0.5, 1.0]},
            own={"qfedavg": {}},
        )
        for best, edge in ((0.05, ["client.lr"]), (0.1, []), (0.2, ["client.lr"])):
            pretend(plan, tmp_path, lambda t, _seed, best=best: float(t.values["client.lr"] == best))
            assert [choice["at_edge"] for choice in tuning.chosen(plan, tmp_path)] == [edge, edge]

    def test_the_edge_is_that_of_the_whole_grid_not_of_what_was_tried(self, tmp_path: Path) -> None:
        grid = {"client.lr": [0.001, 0.01, 0.05, 0.5, 1.0]}
        plan = planned(tmp_path, budget=3, grid=grid, own={"qfedavg": {}})
        for best in grid["client.lr"]:  # as if all draws had been this one
            drawn = replace(plan, trials=tuple(replace(t, values={"client.lr": best}) for t in plan.trials))
            pretend(drawn, tmp_path, lambda _trial, _seed: 0.5)
            edges = [choice["at_edge"] for choice in tuning.chosen(drawn, tmp_path)]
            assert edges == [["client.lr"] if best in (0.001, 1.0) else []] * 2
        # What it does untuned is no point of this grid, and lies beyond it.
        plan = planned(tmp_path, budget=2, grid={"client.lr": [0.2, 0.3, 0.4]}, own={"qfedavg": {}})
        pretend(plan, tmp_path, lambda t, _seed: float(t.values["client.lr"] == 0.1))
        assert [choice["at_edge"] for choice in tuning.chosen(plan, tmp_path)] == [["client.lr"]] * 2

    @pytest.mark.parametrize(("ended", "counts"), [(20.0, True), (20.1, False), (math.inf, False)])
    def test_a_trial_that_diverged_is_not_chosen_however_high_its_score(
        self, tmp_path: Path, ended: float, counts: bool
    ) -> None:
        """Ten times the untrained model's loss, which is 2: models that are sure of what is wrong."""
        plan = planned(tmp_path, **LR)
        pretend(
            plan,
            tmp_path,
            lambda t, _seed: t.values["client.lr"],
            losses=lambda t, _seed: (2.0, ended if t.values["client.lr"] == 0.2 else 1.0),
        )
        best = 0.2 if counts else 0.1
        assert [choice["values"]["client.lr"] for choice in tuning.chosen(plan, tmp_path)] == [best] * 2
        score, error = tuning.outcome(plan, of(plan, "fedavg")[2], tmp_path)
        assert (error is None, math.isnan(score)) == (counts, not counts)
        if not counts:
            assert str(error).startswith("it diverged: its mean loss went from 2 to ")
        assert tuning.is_complete(plan, tmp_path)

    def test_a_trial_that_has_not_ended_has_neither_score_nor_error(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, **LR)
        pretend(plan, tmp_path, lambda t, _seed: t.values["client.lr"])
        trial = of(plan, "fedavg")[2]
        for content in (None, {"status": "interrupted", "fairness": {"test_accuracy": {"mean": 0.9}}}):
            summary = tmp_path / trial.runs[0].id / "summary.json"
            summary.unlink() if content is None else summary.write_text(json.dumps(content))
            score, error = tuning.outcome(plan, trial, tmp_path)
            assert (math.isnan(score), error) == (True, None)
            assert not tuning.is_complete(plan, tmp_path)

    @pytest.mark.parametrize("name", ["clients.parquet", "summary.json"])
    def test_a_trial_whose_folder_is_damaged_has_no_score_and_is_not_over(self, tmp_path: Path, name: str) -> None:
        plan = planned(tmp_path, **LR)
        pretend(plan, tmp_path, lambda t, _seed: t.values["client.lr"])
        trial = of(plan, "fedavg")[2]
        (tmp_path / trial.runs[0].id / name).write_bytes(b"PAR1")
        score, error = tuning.outcome(plan, trial, tmp_path)
        assert math.isnan(score)
        assert str(error).startswith("its folder is damaged")
        assert not tuning.is_complete(plan, tmp_path)


class TestCarriedOut:
    def test_test_shards_are_never_looked_at(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their inputs are poisoned in every federation that a trial sees: nothing about the tuning changes."""
        made = design(scenario(tmp_path), "fedavg", OURS, seeds=1, tune={**LR, "rounds": 1})
        conductor.compare(made, tmp_path / "clean")
        build, load = Federation.build, Digits.load
        poison: list[torch.Tensor] = []
        poisoned = 0

        def loaded(self: Digits, root: Path) -> Any:
            raw = load(self, root)
            for tested in poison:
                hit = (raw.train.x.flatten(1)[:, None] == tested.flatten(1)[None]).all(2).any(1)
                assert hit.sum() >= len(tested)
                raw.train.x[hit] = torch.nan
            return raw

        def built(dataset: Any, partition: Any, seed: int, root: Path, *, validation: float | None = None) -> Any:
            nonlocal poisoned
            if validation is not None:
                poisoned += 1
                poison.append(build(dataset, partition, seed, root).test.x)
            try:
                return build(dataset, partition, seed, root, validation=validation)
            finally:
                poison.clear()

        monkeypatch.setattr(Digits, "load", loaded)
        monkeypatch.setattr(Federation, "build", built)
        conductor.compare(made, tmp_path / "poisoned")
        assert poisoned == 2 * 3  # methods x values
        clean, found = study_of(tmp_path / "clean"), study_of(tmp_path / "poisoned")
        assert found["tuning"] == clean["tuning"]
        assert all(trial["score"] is not None for trial in clean["tuning"]["trials"])
        assert entry(found, OURS, "mean") == entry(clean, OURS, "mean")

    def test_clients_that_are_processes_of_flowers_hold_out_the_same_examples(self, tmp_path: Path) -> None:
        path = str(scenario(tmp_path))
        given = Scenario.load(path, ["evaluation.validation=0.3"])
        held = Federation.build(given.data, given.partition, given.seed, Path(), validation=0.3)
        before = torch.get_num_threads()
        theirs = _app_of(path, "evaluation.validation=0.3")
        _app_of.cache_clear()
        torch.set_num_threads(before)  # it sets those of its process
        assert torch.equal(theirs._federation.test.x, held.test.x)
        assert torch.equal(theirs._federation.train.x, held.train.x)

    def test_methods_run_with_what_was_chosen_for_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = Counted(monkeypatch)
        tune = {"grid": {"client.lr": [0.001, 0.1, 3e38]}, "own": {"afl": {}}, "rounds": 1}
        made = design(scenario(tmp_path), "fedavg", "afl", seeds=2, tune=tune)
        found = conductor.compare(made, tmp_path / "out")
        assert found["status"] == "finished"  # a trial that diverged is no failure of the study
        assert len(counted.names) == 2 * 3 + 2 * 2
        about = found["tuning"]
        assert about["budget"] == 3
        for method in ("fedavg", "afl"):
            trials = [trial for trial in about["trials"] if trial["method"] == method]
            (choice,) = [choice for choice in about["chosen"] if choice["method"] == method]
            assert [trial["error"] is None for trial in trials] == [True, True, False]
            assert choice["score"] == max(trial["score"] for trial in trials[:2])
            ran = {run["digest"] for run in found["runs"] if run["method"] == method}
            with_it = design(
                scenario(tmp_path),
                {"strategy": method, "label": "x", "changes": [f"client.lr={choice['values']['client.lr']}"]},
                "qfedavg",
                seeds=2,
            )
            assert ran == {run.digest for run in with_it.runs({}) if run.method == "x"}
        assert any("2 of 6 trials of the tuning failed and were not chosen" in line for line in found["warnings"])
        assert not any("No method was tuned" in line for line in found["warnings"])
        assert sorted(counted.during(lambda: conductor.compare(made, tmp_path / "out"))) == sorted(
            f"small, {trial['method']}, s0, client.lr={trial['values']['client.lr']}"
            for trial in about["trials"]
            if trial["error"] is not None
        )  # failed trials are tried again

    def test_where_all_trials_fail_the_study_ends_and_says_why(self, tmp_path: Path) -> None:
        made = design(
            scenario(tmp_path),
            "fedavg",
            DIVERGES,
            seeds=1,
            tune={"grid": {"server.lr": [0.5, 1.0]}, "own": {}, "rounds": 1},
        )
        with pytest.raises(ScenarioError, match="small, wild: every trial of its tuning failed"):
            conductor.compare(made, tmp_path / "out")
        found = study_of(tmp_path / "out")
        assert found["status"] == "failed"
        assert [trial["error"] is None for trial in found["tuning"]["trials"]] == [True, True, False, False]

    def test_settings_have_sound_defaults(self) -> None:
        assert TuneSettings().fraction == 0.2
        assert all("x1" in values for values in TuneSettings().grid.values())
