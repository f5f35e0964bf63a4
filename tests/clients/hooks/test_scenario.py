"""Hooks in a scenario: how they are named, changed, refused, and carried through a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch

from clients.app import LocalApp
from clients.hooks import misfits
from clients.hooks.cmi import Cmi
from clients.hooks.focal import Focal
from clients.hooks.pgd import Pgd
from clients.resident import Resident
from fedsim import plugins
from fedsim.engine.local import LocalGrid
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.scenario import Scenario
from tests.clients.hooks.outside import ConfidencePenalty
from tests.clients.hooks.small import hook_of
from tests.test_determinism import BASE, run, scenario_of

OUTSIDE = "tests.clients.hooks.outside:ConfidencePenalty"
NAMES = plugins.names("clients.hooks")


def with_hooks(hooks: Any, rule: str = "fedavg", client: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    settings = {"batch_size": 16, "lr": 0.1, "hooks": hooks, **(client or {})}
    return scenario_of(rule, **{"client": settings, **changes})


def problems(hooks: Any, **client: Any) -> tuple[str, ...]:
    with pytest.raises(ScenarioError) as caught:
        with_hooks(hooks, client=client)
    return tuple(caught.value.problems)


class TestNames:
    def test_a_name_or_a_table(self) -> None:
        assert with_hooks(["cmi", {"name": "pgd", "steps": 2}]).client.hooks == (Cmi(), Pgd(steps=2))
        assert with_hooks([]).client.hooks == ()

    def test_one_of_somebody_else_s(self) -> None:
        (hook,) = with_hooks([{"name": OUTSIDE, "weight": 3}]).client.hooks
        assert hook == ConfidencePenalty(weight=3.0)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_resolved_scenario_is_the_same_experiment(self, name: str) -> None:
        other = "focal" if name == "dp_sgd" else OUTSIDE
        scenario = with_hooks([name, {"name": other, **({} if other == "focal" else {"weight": 0.25})}])
        again = Scenario.of(scenario.table())
        assert again == scenario
        assert again.digest() == scenario.digest() != with_hooks([name]).digest()
        assert list(again.client.named_hooks) == [name, other]

    def test_a_changed_option_is_another_experiment(self) -> None:
        digests = {with_hooks([{"name": "cmi", "lam": lam}]).digest() for lam in (0.1, 0.2)}
        assert len(digests | {with_hooks([]).digest()}) == 3

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (["client.hooks.cmi.lam=0.5"], (Cmi(lam=0.5), Focal())),
            (["client.hooks.pgd.steps=2"], (Cmi(lam=0.1), Focal(), Pgd(steps=2))),
            (
                ["client.hooks.focal.gamma=1", "client.hooks.cmi.beta=0.2"],
                (Cmi(lam=0.1, beta=0.2), Focal(gamma=1.0)),
            ),
            (['client.hooks=["focal"]'], (Focal(),)),
            (["client.hooks=[]"], ()),
            ([f'client.hooks=[{{name = "{OUTSIDE}", weight = 2.0}}]'], (ConfidencePenalty(weight=2.0),)),
        ],
        ids=str,
    )
    def test_overrides(self, tmp_path: Path, overrides: list[str], expected: Any) -> None:
        client = {"hooks": [{"name": "cmi", "lam": 0.1}, "focal"]}
        table = {**BASE, "strategy": {"name": "fedavg"}, "client": client}
        (tmp_path / "s.toml").write_text(tomli_w.dumps(table))
        assert Scenario.load(tmp_path / "s.toml", overrides).client.hooks == expected


class TestRefused:
    def test_names_that_are_none(self) -> None:
        known = ", ".join(NAMES)
        assert problems(["cmj"]) == (
            f'client.hooks.0: no such client hook "cmj"; did you mean "cmi"? there are {known}',
        )
        assert problems("cmi") == (
            "client.hooks: must be a list of client hooks, got 'cmi'; write client.hooks = [\"cmi\"]",
        )
        (said,) = problems(["nowhere.x:Y"])
        assert said.startswith('client.hooks.0: cannot import client hook "nowhere.x:Y": No module named')
        assert problems(["tests.clients.hooks.outside:entropy"]) == (
            'client.hooks.0: "tests.clients.hooks.outside:entropy" is not a clients.hooks.Hook',
        )

    def test_options_that_are_none(self) -> None:
        assert problems([{"name": "cmi", "lam": -1}, {"name": "pgd", "step": 1}]) == (
            "client.hooks.0.lam: must be at least 0.0, got -1",
            'client.hooks.1.step: unknown option; did you mean "steps"? pgd takes '
            "epsilon, step_size, steps, random_start, low, high",
        )

    def test_one_hook_twice(self) -> None:
        assert problems(["cmi", {"name": "cmi", "lam": 1}]) == (
            "client.hooks: cmi is there more than once, keep one of them",
        )
        assert problems([OUTSIDE, OUTSIDE]) == (
            f"client.hooks: {OUTSIDE} is there more than once, keep one of them",
        )

    @pytest.mark.parametrize(
        ("hooks", "client", "said"),
        [
            (
                ["focal", "label_smoothing", "ncmi"],
                {},
                "only one may replace cross-entropy, got focal and label_smoothing and ncmi; leave one out",
            ),
            (
                ["dp_sgd", {"name": "cmi", "centroids": "round"}],
                {},
                "cmi goes through the whole shard without noise, which dp_sgd does not account for; leave one of "
                "them out",
            ),
            (
                ["logit_adjustment", "dp_sgd"],
                {},
                "logit_adjustment counts a client's classes without noise, which dp_sgd does not account for; "
                "leave one of them out",
            ),
            (
                ["proximal"],
                {"local_epochs": 0},
                "they change local steps, and client.local_epochs = 0 takes none; set it to 1 or more",
            ),
            (
                [OUTSIDE, "tests.clients.hooks.outside:Loud"],
                {},
                f"{OUTSIDE} and tests.clients.hooks.outside:Loud come from files of one name, so both would report "
                "in columns outside_...; rename one of the files",
            ),
        ],
        ids=str,
    )
    def test_hooks_that_do_not_go_together(self, hooks: Any, client: Any, said: str) -> None:
        assert problems(hooks, **client) == (f"client.hooks: {said}",)

    def test_a_loss_over_the_batch_has_no_gradient_of_a_single_example(self) -> None:
        found = problems([{"name": "cmi", "beta": 0.1}, "dp_sgd"])
        assert found[0] == (
            "client.hooks: cmi looks at several examples at once, so no single example's gradient exists for "
            "dp_sgd to clip; leave one of them out"
        )
        assert len(found) == 2

    def test_a_gradient_without_noise_beside_dp_sgd(self) -> None:
        strategy = {"name": "dqnfed", "row": "final_gradient"}
        with pytest.raises(ScenarioError) as caught:
            with_hooks(["dp_sgd"], strategy=strategy)
        assert caught.value.problems == (
            'strategy.row: "final_gradient" sends an exact gradient, which dp_sgd does not make private; '
            'use "update"',
        )
        assert with_hooks(["dp_sgd"], rule="dqnfed").client.private_by == "dp_sgd"
        assert with_hooks(["cmi"], strategy=strategy).client.private_by is None

    def test_two_that_predict_or_make_private(self) -> None:
        ncmi, private = hook_of("ncmi"), hook_of("dp_sgd")
        assert "only one may say what predictions are made from, got a and b; leave one out" in misfits(
            {"a": ncmi, "b": ncmi}, 1
        )
        assert "only one may make gradients private, got a and b; leave one out" in misfits(
            {"a": private, "b": private}, 1
        )

    def test_those_that_go_together_are_let_through(self) -> None:
        every = {
            name: hook_of(name) for name in ("cmi", "cmim", "fed_it", "mcmi", "proximal", "pgd", "distill", "focal")
        }
        assert misfits(every, 1) == []
        private = {name: hook_of(name) for name in ("dp_sgd", "proximal", "pgd", "distill", "label_smoothing")}
        assert misfits(private, 1) == []
        assert misfits({}, 0) == []

    @pytest.mark.parametrize(
        ("hooks", "changes", "said"),
        [
            (["ncmi"], {"model": {"name": "logistic"}}, "ncmi trains the features, and this model's are its input"),
            (["ncmi"], {"model": {"name": "mlp", "hidden": [5]}}, "ncmi needs at least 10 features"),
            ([{"name": "distill", "source": "no.safetensors"}], {}, r"no\.safetensors: cannot be read"),
        ],
        ids=str,
    )
    def test_before_the_run(self, hooks: Any, changes: Any, said: str, federation: Federation) -> None:
        hook_name = hooks[0]["name"] if isinstance(hooks[0], dict) else hooks[0]
        with pytest.raises(ScenarioError, match=rf"client\.hooks\.{hook_name}: .*{said}"):
            LocalApp(with_hooks(hooks, **changes), federation).check()


@pytest.fixture(scope="module")
def federation() -> Federation:
    scenario = scenario_of("fedavg")
    return Federation.build(scenario.data, scenario.partition, scenario.seed, Path())


def tables(scenario: Scenario, federation: Federation, folder: Path) -> pd.DataFrame:
    app = LocalApp(scenario, federation)
    app.check()
    found = run(app.scenario, federation, LocalGrid(app), folder)["clients"]
    assert isinstance(found, pd.DataFrame)
    return found


class TestRuns:
    @pytest.mark.parametrize("cohort", ["each", "stacked"])
    def test_a_third_party_s_hook_trains_and_its_report_is_a_column(
        self, cohort: str, federation: Federation, tmp_path: Path
    ) -> None:
        scenario = with_hooks([{"name": OUTSIDE, "weight": 0.5}], client={"cohort": cohort}, rounds=3)
        found = tables(scenario, federation, tmp_path / "with")
        plain = tables(with_hooks([], client={"cohort": cohort}, rounds=3), federation, tmp_path / "without")
        assert Scenario.load(tmp_path / "with" / "scenario.toml").client.hooks == (ConfidencePenalty(weight=0.5),)
        trained = found[found["outside_entropy"].notna()]
        assert len(trained) == 3 * 5  # clients a round
        assert (trained["outside_entropy"] > 0).all()
        assert "outside_entropy" not in plain
        # What a client keeps comes back: its steps add up over its rounds.
        for _, rows in trained.sort_values("round").groupby("client"):
            np.testing.assert_array_equal(rows["outside_all_steps"], rows["steps"].cumsum())
        # Confident outputs cost something: the losses differ from the second round on.
        one, other = (t[t["round"] == 3].set_index("client")["loss"].dropna() for t in (found, plain))
        assert (one - other).abs().min() > 1e-6

    @pytest.mark.parametrize("name", NAMES)
    def test_every_hook_runs(self, name: str, federation: Federation, tmp_path: Path) -> None:
        found = tables(with_hooks([name], rounds=2), federation, tmp_path / "run")
        last = found[found["round"] == 2]
        assert np.isfinite(last["update_norm"].dropna()).all()
        assert last["update_norm"].notna().sum() == 5
        if name == "dp_sgd":
            twice = found[found["dp_sgd_epsilon"].notna()].groupby("client")["dp_sgd_epsilon"]
            assert (twice.count() == 2).any()
            assert all(rows.is_monotonic_increasing for _, rows in twice)
            assert (found["dp_sgd_epsilon"].dropna() > 0).all()

    def test_noise_is_drawn_anew_for_every_client_and_round(self, federation: Federation) -> None:
        """Equal noise would let the server subtract it."""
        here = Resident(with_hooks(["dp_sgd"]), federation, torch.device("cpu"))
        drawn = {
            float(torch.randn((), generator=here.client(3, round_, client, {}).stream(purpose)))
            for round_ in (1, 2)
            for client in (0, 1)
            for purpose in ("noise", "batches", "hook dp_sgd")
        }
        assert len(drawn) == 12
