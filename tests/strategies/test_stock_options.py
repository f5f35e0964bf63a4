"""Flower's own strategies in a scenario: options by their own names, and errors as good as for our rules."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import strategy as flower

from clients.methods.proximal import Proximal
from fedsim.catalogue import lines
from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario
from strategies import stock_options
from strategies.stock_options import StockOptions
from tests.strategies.stock_studies import ADAPTIVE, FIXED, NAMED
from tests.test_scenario import SMALL, problems_of, write

HOME = Path(__file__).resolve().parents[2]

TABLE: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "partition": {"name": "dirichlet", "num_clients": 8, "alpha": 0.4},
    "model": {"name": "mlp"},
    "client": {"lr": 0.07},
}
PRIVATE = {"name": FIXED, "noise_multiplier": 1.0, "clipping_norm": 0.5, "strategy": {"name": "fedavg"}}


def scenario_of(strategy: Mapping[str, Any] | str, **changes: Any) -> Scenario:
    named = {"name": strategy} if isinstance(strategy, str) else strategy
    return Scenario.of({**TABLE, "strategy": named, **changes})


def options_of(strategy: Mapping[str, Any] | str, **changes: Any) -> Any:
    return scenario_of(strategy, **changes).strategy


def problems(strategy: Mapping[str, Any] | str, **changes: Any) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        scenario_of(strategy, **changes)
    return dict(line.split(": ", 1) for line in caught.value.problems)


class TestNames:
    def test_an_unknown_one_is_answered_with_the_nearest_and_all(self) -> None:
        said = problems("flwr:FedTrimedAvg")["strategy.name"]
        assert said.startswith('no such strategy of Flower "flwr:FedTrimedAvg"; did you mean "flwr:FedTrimmedAvg"?')
        assert "there are flwr:Bulyan, " in said
        assert 'did you mean "flwr:FedAvg"?' in problems("flwr:fedavg")["strategy.name"]

    @pytest.mark.parametrize("name", ["flwr:", "flwr:Strategy", "flwr:Result", "flwr:strategy", "flwr:FedOpt"])
    def test_what_is_no_strategy_is_unknown(self, name: str) -> None:
        assert problems(name)["strategy.name"].startswith(f'no such strategy of Flower "{name}"')

    @pytest.mark.parametrize("name", ["FedXgbBagging", "FedXgbCyclic"])
    def test_trees_are_refused_with_the_reason(self, name: str) -> None:
        assert "boosted trees" in problems(f"flwr:{name}")["strategy.name"]

    @pytest.mark.parametrize("kind", ["Fixed", "Adaptive"])
    def test_clipping_by_the_clients_is_refused_with_what_to_use(self, kind: str) -> None:
        said = problems({"name": f"flwr:DifferentialPrivacyClientSide{kind}Clipping"})["strategy.name"]
        assert "nothing would be clipped" in said
        assert f'"flwr:DifferentialPrivacyServerSide{kind}Clipping"' in said

    def test_every_strategy_flower_exports_is_offered_or_refused_with_a_reason(self) -> None:
        for name in flower.__all__:
            if name in ("Result", "Strategy"):
                continue
            if f"flwr:{name}" not in stock_options.names():
                assert "cannot be used: " in problems(f"flwr:{name}")["strategy.name"]

    def test_an_unknown_rule_says_how_flowers_are_named(self) -> None:
        said = problems("FedTrimmedAvg")["strategy.name"]
        assert said.startswith('no such rule "FedTrimmedAvg"')
        assert "flwr:" in said

    def test_the_list_shows_them_as_flowers(self) -> None:
        shown = {line.split()[0]: line for line in lines("strategies")}
        assert {name for name in shown if name.startswith("flwr:")} == set(stock_options.names())
        assert "Flower's own: " in shown["flwr:Krum"]
        assert "Blanchard" in shown["flwr:Krum"]
        assert "Flower" not in shown["fedavg"]
        assert shown.keys() >= {"adafed", "flwr:FedAvg"}

    def test_nothing_of_flower_is_loaded_until_one_is_named(self) -> None:
        code = """
import sys
from fedsim.scenario import Scenario
Scenario.load("quickstart")
assert "flwr" not in sys.modules
Scenario.load("quickstart", ["strategy.name=flwr:FedAvg"])
assert "flwr" in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestOptions:
    def test_they_are_those_of_flower_with_its_defaults(self) -> None:
        found = options_of("flwr:FedYogi")
        assert found.model_dump() == {"eta": 0.01, "eta_l": 0.07, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
        built = options_of({"name": "flwr:FedYogi", "eta": 0.5, "beta_2": 0.8}).build()
        assert isinstance(built, flower.FedYogi)
        assert (built.eta, built.beta_2, built.tau, built.fraction_train) == (0.5, 0.8, 1e-3, 1.0)

    def test_the_clients_rate_and_the_name_of_the_loss_come_from_the_platform(self) -> None:
        found = options_of("flwr:QFedAvg")
        assert (found.client_learning_rate, found.train_loss_key) == (0.07, "loss")
        assert found.reports() == (("loss",), ())
        given = {"name": "flwr:QFedAvg", "client_learning_rate": 0.5, "train_loss_key": "loss-after"}
        assert options_of(given).client_learning_rate == 0.5
        assert options_of(given).reports() == (("loss-after",), ())

    def test_the_number_of_clients_comes_from_the_scenario(self) -> None:
        assert options_of(PRIVATE).num_sampled_clients == 8
        assert options_of(PRIVATE, server={"clients_per_round": 3}).num_sampled_clients == 3
        said = problems({**PRIVATE, "num_sampled_clients": 4})
        assert said == {"strategy.num_sampled_clients": "must be 8, as many clients as train in a round, got 4"}

    def test_where_the_partition_does_not_know_the_number_of_clients_it_is_asked_for(self) -> None:
        changes = {"partition": {"name": "natural"}, "data": {"name": "heart"}}
        said = problems(PRIVATE, **changes)
        assert said == {"strategy.num_sampled_clients": f"missing; {FIXED} needs it"}
        assert options_of({**PRIVATE, "num_sampled_clients": 4}, **changes).num_sampled_clients == 4

    @pytest.mark.parametrize("name", NAMED)
    def test_the_resolved_scenario_gives_an_equal_one(self, name: str, tmp_path: Path) -> None:
        scenario = scenario_of(NAMED[name])
        resolved = scenario.to_toml()
        again = Scenario.load(write(tmp_path, resolved, "resolved.toml"))
        assert again == scenario
        assert again.to_toml() == resolved
        assert again.digest() == scenario.digest()
        assert again.table()["strategy"]["name"] == NAMED[name]["name"]
        assert scenario.strategy.plugin_name == NAMED[name]["name"]

    @pytest.mark.parametrize("name", NAMED)
    def test_it_travels_to_other_processes(self, name: str) -> None:
        scenario = scenario_of(NAMED[name])
        assert pickle.loads(pickle.dumps(scenario)) == scenario
        assert copy.deepcopy(scenario) == scenario

    def test_an_option_changes_the_digest(self) -> None:
        digests = {scenario_of({"name": "flwr:FedTrimmedAvg", "beta": beta}).digest() for beta in (0.1, 0.2, 0.3)}
        nested = {scenario_of({**PRIVATE, "strategy": {"name": "adafed", "gamma": g}}).digest() for g in (0.1, 0.2)}
        assert (len(digests), len(nested)) == (3, 2)

    def test_they_are_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            options_of("flwr:FedTrimmedAvg").beta = 0.3


class TestMistakes:
    def test_all_are_reported_at_once(self) -> None:
        strategy = {"name": "flwr:FedAdam", "eta": "fast", "beta_1": 1.0, "betta_2": 0.5, "min_train_nodes": 3}
        said = problems(strategy, client={"lr": -1.0})
        assert said["strategy.eta"] == "must be a number, got 'fast'"
        assert said["strategy.beta_1"] == "must be less than 1.0, got 1.0"
        assert said["strategy.betta_2"].startswith(
            'unknown option; did you mean "beta_2"? flwr:FedAdam takes eta, eta_l'
        )
        assert said["strategy.min_train_nodes"] == "no option of flwr:FedAdam here; set server.clients_per_round"
        assert "client.lr" in said

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("num_malicious_nodes", 1.5, "must be a whole number, got 1.5"),
            ("num_malicious_nodes", -1, "must be at least 0, got -1"),
            ("num_malicious_nodes", True, "must be a whole number, got 'true'"),
            ("num_nodes_to_select", 0, "must be at least 1, got 0"),
            ("num_malicious_nodes", float("inf"), "must be"),
        ],
    )
    def test_a_wrong_value_is_named(self, option: str, value: Any, said: str) -> None:
        found = problems({"name": "flwr:MultiKrum", option: value})
        assert list(found) == [f"strategy.{option}"]
        assert found[f"strategy.{option}"].startswith(said)

    @pytest.mark.parametrize("name", stock_options.names())
    def test_flowers_own_defaults_are_within_our_bounds(self, name: str) -> None:
        fields = stock_options.find(name).model_fields
        given = {"noise_multiplier": 0.1, "clipping_norm": 1.0, "strategy": {"name": "fedavg"}}
        needed = {option: value for option, value in given.items() if option in fields}
        assert options_of({"name": name, **needed}).plugin_name == name

    def test_what_only_flower_finds_wrong_is_said_in_its_words(self) -> None:
        said = problems({"name": ADAPTIVE, "noise_multiplier": 5.0, "strategy": {"name": "fedavg"}})
        assert list(said) == ["strategy"]
        assert "`clipped_count_stddev`" in said["strategy"]

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("fraction_train", "server.clients_per_round"),
            ("fraction_evaluate", "evaluation.every"),
            ("weighted_by_key", "names its records itself"),
            ("train_metrics_aggr_fn", "clients.parquet"),
            ("selection_rule", "Multi-Krum"),
        ],
    )
    def test_what_the_platform_decides_says_what_to_use_instead(self, option: str, said: str) -> None:
        assert said in problems({"name": "flwr:Bulyan", option: 1})[f"strategy.{option}"]

    def test_what_a_strategy_does_not_have_is_unknown_as_everywhere(self) -> None:
        assert problems({"name": "flwr:FedAvg", "selection_rule": 1})["strategy.selection_rule"].startswith(
            "unknown option; flwr:FedAvg takes no options"
        )

    def test_too_few_clients_say_what_to_do(self) -> None:
        said = problems({"name": "flwr:Bulyan", "num_malicious_nodes": 2})
        assert said == {
            "strategy.num_malicious_nodes": "flwr:Bulyan needs 4 * 2 + 3 = 11 clients in a round, got 8; "
            "raise server.clients_per_round"
        }
        krum = {"name": "flwr:MultiKrum", "num_malicious_nodes": 2, "num_nodes_to_select": 7}
        assert options_of(krum).num_nodes_to_select == 7
        assert set(problems(krum, server={"clients_per_round": 6})) == {
            "strategy.num_malicious_nodes",
            "strategy.num_nodes_to_select",
        }

    def test_q_fedavg_and_fedprox_need_local_steps(self) -> None:
        gradients = {"lr": 0.07, "local_epochs": 0}
        for strategy, option in (("flwr:QFedAvg", "client_learning_rate"), (NAMED["FedProx"], "proximal_mu")):
            said = problems(strategy, client=gradients)
            assert list(said) == [f"strategy.{option}"]
            assert said[f"strategy.{option}"].endswith("needs client.local_epochs >= 1, got 0")
        assert options_of("flwr:FedProx", client=gradients).proximal_mu == 0.0

    def test_a_clients_rate_that_changes_nothing_is_refused(self) -> None:
        said = problems({"name": "flwr:FedAdam", "eta_l": 0.1})
        assert said == {"strategy.eta_l": "the clients train with client.lr = 0.07, got 0.1; leave it out"}
        nested = problems({**PRIVATE, "strategy": {"name": "flwr:FedAdam", "eta_l": 0.1}})
        assert list(nested) == ["strategy.strategy.eta_l"]
        assert options_of({"name": "flwr:FedAdam", "eta_l": 0.07}).eta_l == 0.07


class TestServerRate:
    @pytest.mark.parametrize(
        ("strategy", "said"),
        [
            ("flwr:FedAvg", "leave it out"),
            ("flwr:FedAvgM", "set strategy.server_learning_rate"),
            ("flwr:FedAdam", "set strategy.eta"),
            ({**PRIVATE, "strategy": {"name": "flwr:FedAdam"}}, "set strategy.strategy.eta"),
        ],
        ids=["FedAvg", "FedAvgM", "FedAdam", "DP around FedAdam"],
    )
    def test_flowers_have_their_own(self, strategy: Mapping[str, Any] | str, said: str) -> None:
        found = problems(strategy, server={"lr": 0.5, "lr_decay": 0.9})
        assert set(found) == {"server.lr", "server.lr_decay"}
        assert "takes its own step, got 0.5" in found["server.lr"]
        assert found["server.lr"].endswith(said)
        assert scenario_of(strategy).server.lr is None

    def test_a_rule_of_ours_inside_a_wrapper_takes_the_servers(self) -> None:
        assert scenario_of(PRIVATE).server.lr == 1.0
        assert scenario_of(PRIVATE, server={"lr": 0.5}).server.lr == 0.5


class TestClients:
    def test_fedprox_has_its_half(self) -> None:
        assert options_of(NAMED["FedProx"]).local() == Proximal(1.0)
        assert options_of({**PRIVATE, "strategy": NAMED["FedProx"]}).local() == Proximal(1.0)
        assert options_of({**PRIVATE, "strategy": {"name": "fedprox", "mu": 0.3}}).local() == Proximal(0.3)
        assert options_of("flwr:FedAdam").local() is None

    def test_clipping_and_lost_clients_do_not_go_together(self) -> None:
        said = problems(PRIVATE, engine={"max_failures": 1})
        assert list(said) == ["engine.max_failures"]
        assert scenario_of("flwr:FedAvg", engine={"max_failures": 1}).engine.max_failures == 1


class TestWrapped:
    @pytest.mark.parametrize(
        ("inner", "key", "said"),
        [
            (None, "strategy.strategy.name", "missing; there are adafed"),
            ("fedavg", "strategy.strategy", 'did you mean strategy.strategy.name = "fedavg"?'),
            ({"name": "fedavgg"}, "strategy.strategy.name", 'did you mean "fedavg"?'),
            ({"name": "adafed", "gama": 1.0}, "strategy.strategy.gama", 'did you mean "gamma"?'),
            ({"name": "adafed", "gamma": -1.0}, "strategy.strategy.gamma", "must be"),
            (
                {"name": "flwr:Krum", "num_malicious_nodes": 3},
                "strategy.strategy.num_malicious_nodes",
                "= 9 clients",
            ),
            (PRIVATE, "strategy.strategy", "a wrapper cannot wrap a wrapper"),
            ({"name": "dqnfed"}, "strategy.strategy", "curvature"),
            ({"name": "scaffold"}, "strategy.strategy", "whose clients keep nothing"),
            ({"name": "feddyn"}, "strategy.strategy", "whose clients keep nothing"),
        ],
    )
    def test_what_is_wrong_inside_has_its_place(self, inner: Any, key: str, said: str) -> None:
        found = problems({**PRIVATE, "strategy": inner} if inner is not None else {**PRIVATE, "strategy": {}})
        assert list(found) == [key]
        assert said in found[key]

    def test_mistakes_inside_and_outside_come_together(self) -> None:
        strategy = {"name": FIXED, "clipping_norm": -1.0, "strategy": {"name": "adafed", "gama": 1.0}}
        assert set(problems(strategy)) == {
            "strategy.clipping_norm",
            "strategy.noise_multiplier",
            "strategy.strategy.gama",
        }

    def test_a_rule_inside_inherits_from_the_scenario(self) -> None:
        found = options_of({**PRIVATE, "strategy": {"name": "qfedavg"}})
        assert found.rule.client_lr == 0.07
        assert found.reports()[0] == ("loss",)

    def test_what_a_rule_inside_promises_the_clients_counts(self) -> None:
        inner = {**PRIVATE, "strategy": {"name": "fedprox", "mu": 0.1}}
        assert set(problems(inner, client={"lr": 0.07, "local_epochs": 0})) == {"strategy.strategy.mu"}

    def test_an_override_reaches_inside(self, tmp_path: Path) -> None:
        head, _, _ = SMALL.partition("[strategy]")
        inner = '[strategy.strategy]\nname = "adafed"\ngamma = 0.25\n'
        table = f'[strategy]\nname = "{FIXED}"\nnoise_multiplier = 1.0\nclipping_norm = 0.5\n{inner}'
        path = write(tmp_path, head + table)

        def inside(*overrides: str) -> dict[str, Any]:
            found = Scenario.load(path, overrides).strategy
            assert isinstance(found, StockOptions)
            return {
                "name": found.rule and found.rule.plugin_name,
                **Scenario.load(path, overrides).table()["strategy"]["strategy"],
            }

        assert inside()["gamma"] == 0.25
        assert inside("strategy.strategy.gamma=0.75") == {**inside(), "gamma": 0.75}
        # Another rule drops the options of the former one, as everywhere.
        assert inside("strategy.strategy.name=fedavg") == {"name": "fedavg"}
        assert set(problems_of(path, "strategy.strategy.name=fedavg", "strategy.strategy.gamma=1.0")) == {
            "strategy.strategy.gamma"
        }
        assert Scenario.load(path, ["strategy.name=fedavg"]).table()["strategy"] == {"name": "fedavg"}
