"""What a study runs: methods, pairs and digests; what cannot be compared is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import DataError, ScenarioError
from fedsim.study.design import Design
from fedsim.study.settings import parse_method, split_methods
from tests.study.studies import design, problems, scenario

TWO = ("fedavg", "qfedavg[q=0.5]")


def digests(made: Design) -> dict[tuple[str, Any], str]:
    return {(run.method, run.pair): run.digest for run in made.runs({})}


class TestFairBeforeTheStart:
    @pytest.mark.parametrize(
        "change",
        [
            "data.limit=60",
            "data.name=mnist",
            "partition.num_clients=3",
            "partition.seed=1",
            "partition={name='iid', num_clients=3}",
            "model.name=mlp",
            "seed=3",
            "rounds=9",
            "evaluation.every=2",
            "evaluation.validation=0.2",
            "server.clients_per_round=3",
            "server.initial=weights.safetensors",
            # The same by way of whole tables.
            "server={clients_per_round=3}",
            "strategy={name='afl'}",
            "strategy.name=afl",
        ],
    )
    def test_a_method_that_would_be_measured_on_something_else_is_refused_by_name(
        self, tmp_path: Path, change: str
    ) -> None:
        method = {"strategy": "fedavg", "label": "odd one", "changes": [change]}
        said = problems(scenario(tmp_path), "fedavg", method)
        assert len(said) == 1
        assert said[0].startswith("study.methods: odd one: ")
        assert change.partition("=")[0] in said[0]

    @pytest.mark.parametrize(
        "key",
        ["rounds", "seed", "partition.num_clients", "server.clients_per_round", "data.limit", "strategy.name"],
    )
    def test_nor_can_tuning_choose_it(self, tmp_path: Path, key: str) -> None:
        """Each method would be given its own best value of what all must have alike."""
        tune: dict[str, Any] = {"grid": {key: [1, 2], "client.lr": ["x1", "x2"]}}
        said = problems(scenario(tmp_path), *TWO, tune=tune)
        assert any(key in line and "study.tune" in line for line in said)
        own = {"grid": {"client.lr": ["x1", "x2"]}, "own": {"fedavg": {key: [1, 2]}}}
        assert any(key in line for line in problems(scenario(tmp_path), *TWO, tune=own))

    def test_a_method_may_change_what_is_its_own(self, tmp_path: Path) -> None:
        method = "fedavg[client.lr=0.2; client.local_epochs=2; server.lr=0.5; server.average=all]"
        made = design(scenario(tmp_path), "fedavg", method)
        resolved = made.runs({})[1].resolved
        assert (resolved.client.lr, resolved.client.local_epochs, resolved.server.lr) == (0.2, 2, 0.5)
        assert resolved.server.clients_per_round == made.runs({})[0].resolved.server.clients_per_round

    def test_all_mistakes_are_said_at_once(self, tmp_path: Path) -> None:
        unfair = {"strategy": "fedavg", "label": "one", "changes": ["seed=1", "rounds=2"]}
        also = {"strategy": "afl", "label": "two", "changes": ["data.limit=9"]}
        assert len(problems(scenario(tmp_path), unfair, also)) == 3
        said = problems(scenario(tmp_path), "fedavgg", "qfedavg[qq=1]", "afl[client.lr=-1]")
        assert len(said) == 3
        for line, words in zip(
            said, ('did you mean "fedavg"', "strategy.qq: unknown option", "client.lr"), strict=True
        ):
            assert words in line


class TestDigest:
    @pytest.mark.parametrize(
        "change",
        [
            {"name": "another"},
            {"description": "in other words"},
            {"tier": "paper"},
            {"expect": {"fedavg": {"mean": {"value": 0.5, "within": 0.1, "source": "a paper"}}}},
            {"study": {"methods": ["fedavg", "afl"], "seeds": 7}},
            {"engine": {"workers": 2, "backend": "ray"}},
        ],
    )
    def test_what_changes_no_result_changes_no_digest(self, tmp_path: Path, change: dict[str, Any]) -> None:
        plain = design(scenario(tmp_path), *TWO, seeds=2)
        dressed = design(scenario(tmp_path, "dressed", **change), *TWO, seeds=2)
        assert digests(plain) == digests(dressed)

    @pytest.mark.parametrize(
        "change",
        [{"rounds": 3}, {"client": {"lr": 0.2}}, {"data": {"limit": 100}}, {"engine": {"threads_per_worker": 2}}],
    )
    def test_what_may_change_a_result_changes_every_digest(self, tmp_path: Path, change: dict[str, Any]) -> None:
        plain = digests(design(scenario(tmp_path), *TWO, seeds=2))
        other = digests(design(scenario(tmp_path, "other", **change), *TWO, seeds=2))
        assert not set(plain.values()) & set(other.values())

    def test_a_label_is_only_a_word(self, tmp_path: Path) -> None:
        labelled = {"strategy": "qfedavg", "label": "ours", "changes": ["strategy.q=0.5"]}
        path = scenario(tmp_path)
        plain, renamed = design(path, *TWO, seeds=2), design(path, "fedavg", labelled, seeds=2)
        assert set(digests(plain).values()) == set(digests(renamed).values())
        assert {run.id for run in plain.runs({})} == {run.id for run in renamed.runs({})}

    def test_an_option_of_one_method_is_its_own_matter(self, tmp_path: Path) -> None:
        path = scenario(tmp_path)
        before = digests(design(path, *TWO, seeds=2))
        after = digests(
            design(path, "fedavg", {"strategy": "qfedavg", "label": TWO[1], "changes": ["strategy.q=2"]}, seeds=2)
        )
        changed = {key for key, digest in before.items() if after[key] != digest}
        assert changed == {key for key in before if key[0] == TWO[1]}

    def test_every_run_of_a_study_has_its_own_folder(self, tmp_path: Path) -> None:
        runs = design(scenario(tmp_path), *TWO, "afl", seeds=3, partitions=2).runs({})
        assert len({run.id for run in runs}) == len(runs) == 3 * 3 * 2

    def test_the_name_of_a_folder_is_one(self, tmp_path: Path) -> None:
        run = design(scenario(tmp_path, "x", name="a/b ../c [d]"), *TWO).runs({})[0]
        assert "/" not in run.id
        assert not run.id.startswith(".")


class TestPairs:
    def test_pairs_are_partitions_times_seeds(self, tmp_path: Path) -> None:
        made = design(scenario(tmp_path), *TWO, partitions=[0, 4], seeds=[1, 2, 3])
        wanted = {(partition, seed) for partition in (0, 4) for seed in (1, 2, 3)}
        assert {(pair.partition, pair.seed) for pair in made.pairs} == wanted
        for run in made.runs({}):
            assert (run.resolved.partition.seed, run.resolved.seed) == (run.pair.partition, run.pair.seed)

    def test_without_partitions_each_seed_draws_its_own(self, tmp_path: Path) -> None:
        made = design(scenario(tmp_path), *TWO, seeds=[5, 8])
        assert [(pair.partition, pair.seed) for pair in made.pairs] == [(None, 5), (None, 8)]
        assert {run.resolved.partition.seed for run in made.runs({})} == {None}

    @pytest.mark.parametrize("seeds", [0, -1, [], [1, 1], [-1, 2]])
    def test_seeds_that_are_none(self, tmp_path: Path, seeds: Any) -> None:
        assert any("seeds" in line for line in problems(scenario(tmp_path), *TWO, seeds=seeds))


class TestMethods:
    def test_no_method_and_a_lonely_one(self, tmp_path: Path) -> None:
        assert "names none" in problems(scenario(tmp_path))[0]
        assert "takes 2 or more, got fedavg" in problems(scenario(tmp_path), "fedavg")[0]

    def test_one_label_is_one_method(self, tmp_path: Path) -> None:
        assert "fedavg is there more than once" in problems(scenario(tmp_path), "fedavg", "fedavg")[0]

    def test_the_baseline_is_fedavg_or_the_first_or_the_one_that_is_named(self, tmp_path: Path) -> None:
        path = scenario(tmp_path)
        assert design(path, "afl", "fedavg").settings.reference == "fedavg"
        assert design(path, "afl", "qfedavg").settings.reference == "afl"
        assert design(path, "afl", "fedavg", baseline="afl").settings.reference == "afl"
        assert 'did you mean "afl"' in problems(path, "afl", "fedavg", baseline="afll")[0]

    def test_a_label_before_the_strategy(self, tmp_path: Path) -> None:
        made = design(scenario(tmp_path), "fedavg", "Ours=qfedavg[q=0.5; client.lr=0.2]", "Plain = afl")
        assert [(m.label, m.strategy, m.changes) for m in made.methods] == [
            ("fedavg", "fedavg", ()),
            ("Ours", "qfedavg", ("strategy.q=0.5", "client.lr=0.2")),
            ("Plain", "afl", ()),
        ]
        same = {"strategy": "qfedavg", "label": "Ours", "changes": ["strategy.q=0.5", "client.lr=0.2"]}
        other = design(scenario(tmp_path), "fedavg", same, "Plain=afl")
        assert digests(made) == digests(other)

    def test_a_label_with_a_comma_is_refused(self, tmp_path: Path) -> None:
        """In a list on the command line it would be two; in brackets a comma is part of a value."""
        (said,) = problems(scenario(tmp_path), "fedavg", {"strategy": "afl", "label": "ours, new"})
        assert 'must have no comma, they stand between labels in lists, got "ours, new"' in said
        assert split_methods("fedavg,Ours=fedavg[client.lr=0.2],x[a=[1,2]]") == [
            "fedavg",
            "Ours=fedavg[client.lr=0.2]",
            "x[a=[1,2]]",
        ]

    @pytest.mark.parametrize("text", ["adafed[scale=min", "adafed[scale]", "[q=1]", ""])
    def test_a_text_that_is_no_method(self, text: str) -> None:
        with pytest.raises(ValueError, match="must be"):
            parse_method(text)

    def test_measures_are_known_and_named_once(self, tmp_path: Path) -> None:
        path = scenario(tmp_path)
        assert 'did you mean "mean"' in problems(path, *TWO, metrics=["meen"])[0]
        assert "more than once" in problems(path, *TWO, metrics=["mean", "mean"])[0]
        assert problems(path, *TWO, metrics=["n"])
        assert problems(path, *TWO, metrics=[])


class TestScenarios:
    def test_a_study_of_several(self, tmp_path: Path) -> None:
        scenario(tmp_path, "a")
        scenario(tmp_path, "b", rounds=3, study={"methods": ["afl", "fedavg"]})
        (tmp_path / "both.toml").write_text(
            '[study]\nscenarios = ["a.toml", "b.toml"]\nchanges = ["client.lr=0.3"]\n'
        )
        made = design(tmp_path / "both.toml", *TWO, changes=["client.batch_size=4"], seeds=1)
        assert [(run.scenario, run.method) for run in made.runs({})] == [
            (name, method) for name in ("a", "b") for method in TWO
        ]
        assert [run.resolved.rounds for run in made.runs({})] == [2, 2, 3, 3]
        assert {(run.resolved.client.lr, run.resolved.client.batch_size) for run in made.runs({})} == {(0.3, 4)}

    def test_tiers_are_never_mixed(self, tmp_path: Path) -> None:
        scenario(tmp_path, "a", tier="paper")
        scenario(tmp_path, "b", tier="smoke")
        (tmp_path / "both.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml"]\n')
        (said,) = problems(tmp_path / "both.toml", *TWO)
        assert "a: paper; b: smoke" in said
        (tmp_path / "claims.toml").write_text('tier = "paper"\n[study]\nscenarios = ["b.toml"]\n')
        assert 'is "paper", that of its scenarios "smoke"' in problems(tmp_path / "claims.toml", *TWO)[0]

    def test_a_papers_scenario_with_other_settings_is_no_papers(self, tmp_path: Path) -> None:
        path = scenario(tmp_path, tier="paper", description="As published.")
        plain = design(path, *TWO)
        assert (plain.tier, plain.description) == ("paper", "As published.")
        for change in ("engine.workers=2", "description=As published.", "rounds=2"):  # the same runs
            kept = design(path, *TWO, changes=[change])
            assert (kept.tier, kept.description) == ("paper", "As published.")
        of_study = {"changes": ["rounds=1", "engine.workers=2"]}
        for made in (
            design(path, *TWO, changes=["rounds=1", "engine.workers=2"]),
            design(scenario(tmp_path, "own", tier="paper", description="As published.", study=of_study), *TWO),
        ):
            assert made.tier == ""
            assert made.description == "As published. Changed: rounds=1, engine.workers=2."
        (tmp_path / "s.toml").write_text(f'tier = "paper"\n[study]\nscenarios = ["{path.name}"]\n')
        assert design(tmp_path / "s.toml", *TWO).tier == "paper"
        assert design(tmp_path / "s.toml", *TWO, changes=["client.lr=0.2"]).tier == ""
        smoke = design(scenario(tmp_path, "smoke", tier="smoke"), *TWO, changes=["rounds=1"])
        assert (smoke.tier, smoke.description) == ("smoke", "")

    def test_two_of_one_name(self, tmp_path: Path) -> None:
        scenario(tmp_path, "a", name="same")
        scenario(tmp_path, "b", name="same")
        (tmp_path / "both.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml"]\n')
        assert "two have one name" in problems(tmp_path / "both.toml", *TWO)[0]

    @pytest.mark.parametrize(
        "text", ["[client]\nlr = 0.3\n", "rounds = 3\n", "[expect.fedavg.mean]\nlow = 0\nhigh = 1\nsource = 'x'\n"]
    )
    def test_nothing_else_in_a_study_of_scenarios_is_silently_ignored(self, tmp_path: Path, text: str) -> None:
        scenario(tmp_path, "a")
        rest, tables = (text, "") if not text.startswith("[") else ("", text)
        (tmp_path / "s.toml").write_text(f'{rest}[study]\nscenarios = ["a.toml"]\n{tables}')
        assert "has no place in a study of other scenarios" in problems(tmp_path / "s.toml", *TWO)[0]

    def test_a_scenario_whose_study_names_itself_may_have_keys_of_its_own(self, tmp_path: Path) -> None:
        scenario(tmp_path, "b", rounds=3)
        study = {"scenarios": ["a.toml", "b.toml"], "methods": list(TWO), "seeds": 1}
        made = design(scenario(tmp_path, "a", study=study))
        assert [(run.scenario, run.resolved.rounds) for run in made.runs({})] == [("a", 2)] * 2 + [("b", 3)] * 2
        # One of the same name elsewhere is not itself.
        (tmp_path / "sub").mkdir()
        study["scenarios"] = ["sub/a.toml", "b.toml"]
        scenario(tmp_path / "sub", "a")
        said = problems(scenario(tmp_path, "a", study=study))
        assert any("client: has no place in a study of other scenarios" in line for line in said)

    @pytest.mark.parametrize(
        ("key", "values"),
        [("workers", (1, 2)), ("threads_per_worker", (1, 2)), ("backend", ("local", "ray"))],
    )
    def test_scenarios_share_their_workers(self, tmp_path: Path, key: str, values: tuple[Any, Any]) -> None:
        for name, value in zip("ab", values, strict=True):
            scenario(tmp_path, name, engine={"backend": "ray", key: value})
        path = tmp_path / "both.toml"
        path.write_text('[study]\nscenarios = ["a.toml", "b.toml"]\n')
        (said,) = problems(path, *TWO)
        assert said.startswith(f"engine.{key}: must be the same in all scenarios of a study")
        assert f"{values[0]} in a, {values[1]} in b" in said
        assert len(design(path, *TWO, changes=[f"engine.{key}={values[0]}"], seeds=1).runs({})) == 4

    def test_engines_may_differ_in_what_workers_do_not_share(self, tmp_path: Path) -> None:
        for name, value in (("a", 1), ("b", 2)):
            scenario(tmp_path, name, engine={"backend": "ray", "checkpoint_every": value})
        (tmp_path / "both.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml"]\n')
        assert design(tmp_path / "both.toml", *TWO).bases

    def test_a_seed_for_all_is_refused(self, tmp_path: Path) -> None:
        """Every run has its pair's, whatever is set."""
        for change in ("seed=3", " seed = 3"):
            (said,) = problems(scenario(tmp_path), *TWO, changes=[change])
            assert "a study has several seeds; name them with --seeds 3,4,5" in said

    def test_a_file_with_neither_data_nor_scenarios(self, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_text('[study]\nmethods = ["fedavg", "afl"]\n')
        assert "is no scenario" in problems(tmp_path / "s.toml")[0]

    @pytest.mark.parametrize("study", ["study = 3\n", "study = 'mnist'\n"])
    def test_a_study_that_is_no_table(self, tmp_path: Path, study: str) -> None:
        (tmp_path / "s.toml").write_text(study)
        assert "study: must be a table" in problems(tmp_path / "s.toml")[0]

    @pytest.mark.parametrize("scenarios", ['"a.toml"', "3", "[3]", "[]"])
    def test_scenarios_that_are_no_list_of_names(self, tmp_path: Path, scenarios: str) -> None:
        scenario(tmp_path, "a")
        (tmp_path / "s.toml").write_text(f"[study]\nscenarios = {scenarios}\n")
        with pytest.raises(ScenarioError):
            design(tmp_path / "s.toml", *TWO)


class TestOnDisk:
    def test_a_design_is_read_back_as_it_was(self, tmp_path: Path) -> None:
        path = scenario(tmp_path, partition={"name": "dirichlet", "alpha": 0.5})
        method = {"strategy": "qfedavg", "label": "ours [x]", "changes": ["strategy.q=0.5", "client.lr=0.3"]}
        tune = {"budget": 2, "own": {"qfedavg": {"strategy.q": [0.1, "x2"]}}, "grid": {"client.lr": ["x1", 0.3]}}
        made = design(path, "fedavg", method, changes=["rounds=4"], seeds=[3, 1], partitions=[2, 0], tune=tune)
        (tmp_path / "study.toml").write_text(made.to_toml())
        read = Design.read(tmp_path)
        assert read.settings == made.settings
        assert [(run.id, run.digest) for run in read.runs({})] == [(run.id, run.digest) for run in made.runs({})]
        assert read.to_toml() == made.to_toml()

    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="give a folder that `compare` has made"):
            Design.read(tmp_path)
        (tmp_path / "study.toml").write_text("layout = 99\n")
        with pytest.raises(DataError, match="layout must be 1, got 99"):
            Design.read(tmp_path)

    def test_the_folder_of_a_study_is_always_the_same_one(self, tmp_path: Path) -> None:
        path = scenario(tmp_path)
        assert design(path, *TWO).default_folder() == design(path, *TWO).default_folder()
        assert design(path, *TWO).default_folder() != design(path, *TWO, seeds=3).default_folder()
