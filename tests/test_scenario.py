"""Scenario files: every mistake at once, merging, overrides, and the resolved form."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario, locate, overrides_of

HOME = Path(__file__).resolve().parents[1]
FILES = [file for file in sorted(HOME.glob("scenarios/**/*.toml")) if not file.stem.startswith("study_")]

SMALL = """
rounds = 3
[data]
name = "digits"
[partition]
name = "dirichlet"
num_clients = 8
alpha = 0.4
test_fraction = 0.25
[model]
name = "mlp"
hidden = [16]
[client]
lr = 0.07
[strategy]
name = "fedavg"
"""


def write(folder: Path, text: str, name: str = "small.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def small(folder: Path, *overrides: str) -> Scenario:
    return Scenario.load(write(folder, SMALL), overrides)


def problems_of(path: Path | str, *overrides: str) -> dict[str, str]:
    """The problems by key."""
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(path, overrides)
    assert str(path) in str(caught.value)
    return dict(line.split(": ", 1) for line in caught.value.problems)


def test_every_mistake_is_reported_at_once_with_its_key(tmp_path: Path) -> None:
    text = """
        rounds = 0
        seed = -1
        ronds = 5
        [data]
        name = "digit"
        [partition]
        name = "dirichlet"
        num_clients = 2.5
        alhpa = 1.0
        [model]
        name = "resnet"
        [client]
        lr = "fast"
        momentum = 1.0
        local_epoch = 1
        [strategy]
        name = "qfedvg"
        [server]
        lr_decay = 1.5
        [engine]
        backend = "rai"
        [evaluation]
        every = 0
    """
    problems = problems_of(write(tmp_path, text))
    assert set(problems) == {
        "rounds",
        "seed",
        "ronds",
        "data.name",
        "partition.num_clients",
        "partition.alhpa",
        "model.name",
        "client.lr",
        "client.momentum",
        "client.local_epoch",
        "strategy.name",
        "server.lr_decay",
        "engine.backend",
        "evaluation.every",
    }
    assert "must be greater than 0, got 0" in problems["rounds"]
    assert "must be at least 0, got -1" in problems["seed"]
    assert 'did you mean "rounds"?' in problems["ronds"]
    assert problems["data.name"].startswith('no such data set "digit"; did you mean "digits"?')
    assert "whole number, got 2.5" in problems["partition.num_clients"]
    assert 'unknown option; did you mean "alpha"? dirichlet takes' in problems["partition.alhpa"]
    assert "num_clients" in problems["partition.alhpa"]
    assert "must be a number, got 'fast'" in problems["client.lr"]
    assert "must be less than 1" in problems["client.momentum"]
    assert 'did you mean "local_epochs"?' in problems["client.local_epoch"]
    assert problems["strategy.name"].startswith('no such rule "qfedvg"; did you mean "qfedavg"? there are adafed')
    assert "must be at most 1" in problems["server.lr_decay"]
    assert "'ray' or 'local', got 'rai'" in problems["engine.backend"]


def test_the_count_of_problems_heads_the_message(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(path, ["rounds=0", "client.lr=-1"])
    assert str(caught.value).splitlines()[0] == f"{path}: 2 problems"
    with pytest.raises(ScenarioError, match=r": 1 problem\n"):
        Scenario.load(path, ["rounds=0"])


def test_sections_that_are_missing_are_named_with_what_there_is(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, "rounds = 2\n"))
    assert set(problems) == {"data.name", "partition.name", "model.name", "strategy.name"}
    assert "fedavg" in problems["strategy.name"]
    assert "mlp" in problems["model.name"]


def test_an_option_that_a_plugin_needs_is_named(tmp_path: Path) -> None:
    text = SMALL.replace("num_clients = 8\n", "")
    assert problems_of(write(tmp_path, text))["partition.num_clients"] == "missing; dirichlet needs it"


def test_what_two_options_say_together_is_said_in_the_plugins_words(tmp_path: Path) -> None:
    changes = ("strategy.name=gifair", "strategy.lam=1.0", "strategy.strength=0.25")
    problems = problems_of(write(tmp_path, SMALL), *changes)
    assert problems == {"strategy": "give strength or lam, got strength = 0.25 and lam = 1.0"}


def test_a_section_that_is_no_table_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, SMALL), "client=3", "strategy=fedavg")
    assert "must be a table" in problems["client"]
    assert "strategy.name" in problems["strategy"]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "key",
    [
        "client.lr",
        "client.weight_decay",
        "client.clip_norm",
        "server.lr",
        "engine.gpus_per_worker",
        "engine.timeout_s",
        "partition.alpha",
    ],
)
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, key: str, value: str) -> None:
    problems = problems_of(write(tmp_path, SMALL), f"{key}={value}")
    assert set(problems) == {key}


@pytest.mark.parametrize("change", ["rounds=true", "client.lr=true"])
def test_true_is_not_taken_for_the_number_one(tmp_path: Path, change: str) -> None:
    assert set(problems_of(write(tmp_path, SMALL), change)) == {change.partition("=")[0]}


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read as TOML"):
        Scenario.load(write(tmp_path, "rounds = = 3"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="cannot be read as TOML"):
        Scenario.load(tmp_path / "binary.toml")


def test_a_file_that_is_not_there_is_refused_with_the_nearest_bundled_one() -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.load("quickstrat")
    assert 'did you mean "quickstart"?' in str(caught.value)
    assert caught.value.exit_code == 2


def test_bundled_scenarios_are_found_by_bare_name_and_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("quickstart") == HOME / "scenarios" / "quickstart.toml"
    assert locate("scenarios/quickstart.toml") == HOME / "scenarios" / "quickstart.toml"
    assert Scenario.load("quickstart").name == "quickstart"


class TestExtends:
    def test_a_child_changes_its_parents_keys(self, tmp_path: Path) -> None:
        write(tmp_path, SMALL, "base.toml")
        child = write(tmp_path, 'extends = "base.toml"\nrounds = 9\n[client]\nbatch_size = 4\n', "child.toml")
        scenario = Scenario.load(child)
        assert (scenario.rounds, scenario.client.batch_size) == (9, 4)
        assert scenario.client.lr == 0.07  # the parent's, in the same table
        assert scenario.partition.plugin_name == "dirichlet"
        assert scenario.name == "child"

    def test_the_path_is_relative_to_the_child(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, SMALL, "shared/base.toml")
        child = write(tmp_path, 'extends = "../shared/base.toml"\n', "mine/child.toml")
        monkeypatch.chdir("/")
        assert Scenario.load(child).client.lr == 0.07

    def test_a_bundled_scenario_can_be_extended_by_name(self, tmp_path: Path) -> None:
        child = write(tmp_path, 'extends = "quickstart"\nseed = 5\n', "child.toml")
        bundled = Scenario.load("quickstart", ["seed=5"])
        assert Scenario.load(child).digest() == bundled.digest()

    def test_only_one_level(self, tmp_path: Path) -> None:
        write(tmp_path, SMALL, "a.toml")
        write(tmp_path, 'extends = "a.toml"\n', "b.toml")
        child = write(tmp_path, 'extends = "b.toml"\n', "c.toml")
        with pytest.raises(ScenarioError, match=r"extends: b.toml itself extends a.toml"):
            Scenario.load(child)

    def test_itself_is_refused(self, tmp_path: Path) -> None:
        child = write(tmp_path, 'extends = "me.toml"\n', "me.toml")
        with pytest.raises(ScenarioError, match="itself extends"):
            Scenario.load(child)

    def test_a_parent_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        child = write(tmp_path, 'extends = "gone.toml"\n', "child.toml")
        with pytest.raises(ScenarioError, match="gone"):
            Scenario.load(child)

    def test_another_plugin_drops_the_parents_options_of_the_former_one(self, tmp_path: Path) -> None:
        write(tmp_path, SMALL, "base.toml")
        text = 'extends = "base.toml"\n[partition]\nname = "iid"\nnum_clients = 5\n'
        scenario = Scenario.load(write(tmp_path, text, "child.toml"))
        # alpha belonged to dirichlet; test_fraction every partition takes.
        options = scenario.table()["partition"]
        assert options == {"name": "iid", "num_clients": 5, "test_fraction": 0.25}


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "section", "key", "value"),
        [
            ("client.lr=0.5", "client", "lr", 0.5),
            ("client.lr=1e-3", "client", "lr", 1e-3),
            ("client.lr = 2", "client", "lr", 2.0),
            ("client.batch_size=7", "client", "batch_size", 7),
            ("engine.backend=local", "engine", "backend", "local"),
            ('engine.backend="local"', "engine", "backend", "local"),
            ("model.hidden=[8, 4]", "model", "hidden", (8, 4)),
            ("partition.self_balancing=true", "partition", "self_balancing", True),
            ("partition.test_fraction=.5", "partition", "test_fraction", 0.5),
        ],
    )
    def test_a_value_reads_as_toml(self, tmp_path: Path, override: str, section: str, key: str, value: Any) -> None:
        found = getattr(getattr(small(tmp_path, override), section), key)
        assert found == value
        assert type(found) is type(value)

    def test_a_bare_word_is_a_string_and_may_hold_an_equals_sign(self, tmp_path: Path) -> None:
        assert small(tmp_path, "description=a = b, with [brackets").description == "a = b, with [brackets"

    def test_the_last_one_wins(self, tmp_path: Path) -> None:
        assert small(tmp_path, "seed=1", "seed=2").seed == 2

    @pytest.mark.parametrize("override", ["rounds", "=3", "", " =3"])
    def test_a_bad_form_is_refused_with_what_came(self, tmp_path: Path, override: str) -> None:
        with pytest.raises(ScenarioError, match=r"--set: must be key=value, got ") as caught:
            small(tmp_path, override)
        assert f'"{override}"' in str(caught.value)

    @pytest.mark.parametrize("override", ["client..lr=1", ".rounds=1", "client.lr.deep=1", "rounds.deep=1"])
    def test_a_key_that_leads_nowhere_is_a_problem_and_not_a_crash(self, tmp_path: Path, override: str) -> None:
        with pytest.raises(ScenarioError):
            small(tmp_path, override)

    def test_another_plugin_drops_the_options_of_the_former_one(self, tmp_path: Path) -> None:
        scenario = small(tmp_path, "partition.name=shards", "partition.num_clients=6")
        assert scenario.table()["partition"] == {
            "name": "shards",
            "num_clients": 6,
            "test_fraction": 0.25,
            "shards_per_client": 2,
        }

    def test_an_option_that_two_plugins_happen_to_share_goes_too(self, tmp_path: Path) -> None:
        problems = problems_of(write(tmp_path, SMALL), "partition.name=shards")
        assert problems == {"partition.num_clients": "missing; shards needs it"}

    def test_flowers_strategies_and_ours_take_each_others_place(self, tmp_path: Path) -> None:
        base = write(tmp_path, SMALL.replace('"fedavg"', '"adafed"\ngamma = 0.5'))
        theirs = Scenario.load(base, ["strategy.name=flwr:FedTrimmedAvg", "strategy.beta=0.3"])
        assert theirs.table()["strategy"] == {"name": "flwr:FedTrimmedAvg", "beta": 0.3}
        assert theirs.server.lr is None
        resolved = write(tmp_path, theirs.to_toml(), "theirs.toml")
        ours = Scenario.load(resolved, ["strategy.name=adafed", "strategy.gamma=0.5", "name=small"])
        assert ours == Scenario.load(base)

    def test_naming_the_same_plugin_again_keeps_its_options(self, tmp_path: Path) -> None:
        scenario = small(tmp_path, "partition.name=dirichlet")
        assert scenario.table()["partition"]["alpha"] == 0.4

    def test_overrides_of_a_run_configuration(self) -> None:
        assert overrides_of("") == []
        assert overrides_of(" a=1 ;; b=[1, 2]; ") == ["a=1", "b=[1, 2]"]


class TestResolved:
    @pytest.mark.parametrize("path", FILES, ids=[file.stem for file in FILES])
    def test_every_bundled_scenario_loads_from_its_resolved_form(self, path: Path, tmp_path: Path) -> None:
        scenario = Scenario.load(path)
        resolved = scenario.to_toml()
        again = Scenario.load(write(tmp_path, resolved, "resolved.toml"))
        assert again == scenario
        assert again.to_toml() == resolved
        assert again.digest() == scenario.digest()

    @pytest.mark.parametrize("path", FILES, ids=[file.stem for file in FILES])
    def test_every_bundled_scenario_says_what_it_is_for(self, path: Path) -> None:
        assert tomllib.loads(path.read_text(encoding="utf-8")).get("description")

    def test_every_default_is_filled_in(self, tmp_path: Path) -> None:
        table = tomllib.loads(small(tmp_path).to_toml())
        local = {"local_epochs", "batch_size", "lr", "lr_decay", "momentum", "weight_decay"}
        assert set(table["client"]) == {*local, "augment", "losses", "cohort"}
        assert table["server"]["lr"] == 1.0
        assert table["evaluation"] == {"every": 1}

    def test_text_that_toml_must_escape_comes_back(self, tmp_path: Path) -> None:
        scenario = small(tmp_path, r'description="say \"hi\"\n\ttab \\ ü"')
        assert scenario.description == 'say "hi"\n\ttab \\ ü'
        assert Scenario.load(write(tmp_path, scenario.to_toml(), "again.toml")) == scenario

    def test_a_scenario_is_frozen(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="frozen"):
            small(tmp_path).rounds = 4  # type: ignore[misc]

    def test_the_learning_rate_of_the_clients_decays_from_the_second_round(self, tmp_path: Path) -> None:
        scenario = small(tmp_path, "client.lr=0.5", "client.lr_decay=0.5")
        assert [scenario.client_lr(number) for number in (1, 2, 3)] == [0.5, 0.25, 0.125]


class TestMetrics:
    """Lists of plugins: [evaluation] metrics."""

    CHOICE = 'evaluation.metrics=["cmi", {name = "calibration", bins = 10}, "tests.metrics.outside:Brier"]'

    def test_names_and_tables_become_metrics(self, tmp_path: Path) -> None:
        metrics = small(tmp_path, self.CHOICE).evaluation.metrics
        assert [repr(metric) for metric in metrics] == ["Cmi()", "Calibration(bins=10)", "Brier(shift=1.0)"]

    def test_they_come_back_from_the_resolved_form(self, tmp_path: Path) -> None:
        scenario = small(tmp_path, self.CHOICE)
        assert scenario.table()["evaluation"]["metrics"] == [
            "cmi",
            {"name": "calibration", "bins": 10},
            {"name": "tests.metrics.outside:Brier", "shift": 1.0},
        ]
        again = Scenario.load(write(tmp_path, scenario.to_toml(), "again.toml"))
        assert again == scenario
        assert again.digest() == scenario.digest()
        bins = self.CHOICE.replace("10", "11")
        assert len({small(tmp_path, *more).digest() for more in ((), (self.CHOICE,), (bins,))}) == 3

    def test_a_layer_replaces_the_whole_list(self, tmp_path: Path) -> None:
        assert small(tmp_path, self.CHOICE, "evaluation.metrics=[]") == small(tmp_path)

    @pytest.mark.parametrize(
        ("metrics", "place", "words"),
        [
            ('["cm"]', ".0", 'no such metric "cm"; did you mean "cmi"? there are accuracy, calibration'),
            ('["cmi", "fedsim.metrics.cmi:Cni"]', ".1", "cannot import metric"),
            ('["tests.metrics.samples:NAMES"]', ".0", "is not a fedsim.metrics.Metric"),
            ('[{name = "calibration", bin = 3}]', ".0.bin", 'did you mean "bins"? calibration takes bins'),
            ('[{name = "calibration", bins = 0}]', ".0.bins", "must be greater than 0, got 0"),
            ("[{bins = 3}]", ".0", "must be a name or a table with a name, got {'bins': 3}; there are accuracy"),
            ("[3]", ".0", "must be a name or a table with a name, got 3; there are accuracy"),
            ("cmi", "", "must be a list of metrics, got 'cmi'; write evaluation.metrics = [\"cmi\"]"),
            ("7", "", 'must be a list of metrics, got 7; write evaluation.metrics = ["metric", ...]'),
            ('["accuracy"]', "", "accuracy is always measured, leave it out"),
            ('["cmi", "cmi"]', "", "cmi is there twice, keep one of them"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, metrics: str, place: str, words: str) -> None:
        problems = problems_of(write(tmp_path, SMALL), f"evaluation.metrics={metrics}")
        assert list(problems) == [f"evaluation.metrics{place}"]
        assert words in problems[f"evaluation.metrics{place}"]


class TestAcrossSections:
    def test_qfedavg_takes_the_clients_learning_rate(self, tmp_path: Path) -> None:
        assert small(tmp_path, "strategy.name=qfedavg").strategy.client_lr == 0.07  # type: ignore[attr-defined]
        given = small(tmp_path, "strategy.name=qfedavg", "strategy.client_lr=0.5")
        assert given.strategy.client_lr == 0.5  # type: ignore[attr-defined]

    def test_qfedavg_follows_a_changed_learning_rate(self, tmp_path: Path) -> None:
        changed = small(tmp_path, "strategy.name=qfedavg", "client.lr=0.3")
        assert changed.strategy.client_lr == 0.3  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("changes", "lr"),
        [
            (("strategy.name=fedavg",), 1.0),
            (("strategy.name=qfedavg",), 1.0),
            (("strategy.name=adafed",), 1.0),
            (("strategy.name=dqnfed",), 0.2),
            (("strategy.name=dqnfed", "strategy.step=paper"), 1.0),
            (("strategy.name=dqnfed", "server.lr=0.9"), 0.9),
        ],
    )
    def test_the_server_learning_rate_is_the_rules_default(
        self, tmp_path: Path, changes: tuple[str, ...], lr: float
    ) -> None:
        assert small(tmp_path, *changes).server.lr == lr

    def test_no_more_clients_a_round_than_there_are(self, tmp_path: Path) -> None:
        problems = problems_of(write(tmp_path, SMALL), "server.clients_per_round=9")
        assert problems == {"server.clients_per_round": "must be at most partition.num_clients = 8, got 9"}
        assert small(tmp_path, "server.clients_per_round=8").server.clients_per_round == 8

    def test_local_pairs_need_a_local_epoch(self, tmp_path: Path) -> None:
        changes = ("strategy.name=dqnfed", "strategy.pairs_from=local")
        problems = problems_of(write(tmp_path, SMALL), *changes, "client.local_epochs=0")
        assert set(problems) == {"strategy.pairs_from"}
        assert "local_epochs >= 1, got 0" in problems["strategy.pairs_from"]
        assert small(tmp_path, *changes, "client.local_epochs=1").client.local_epochs == 1

    def test_both_checks_at_once(self, tmp_path: Path) -> None:
        changes = ("strategy.name=dqnfed", "strategy.pairs_from=local", "server.clients_per_round=9")
        assert len(problems_of(write(tmp_path, SMALL), *changes, "client.local_epochs=0")) == 2

    def test_a_name_without_its_table_is_explained(self, tmp_path: Path) -> None:
        problems = problems_of(write(tmp_path, SMALL), "strategy=fedavg")
        assert 'did you mean strategy.name = "fedavg"' in problems["strategy"]


class TestDigest:
    @pytest.mark.parametrize(
        "change",
        ["name=other", "description=other", "engine.backend=local", "engine.workers=3"],
    )
    def test_what_changes_no_result_is_left_out(self, tmp_path: Path, change: str) -> None:
        assert small(tmp_path, change).digest() == small(tmp_path).digest()

    @pytest.mark.parametrize(
        "change",
        [
            "seed=1",
            "rounds=4",
            "client.lr=0.08",
            "strategy.name=adafed",
            "partition.alpha=0.5",
            "model.hidden=[17]",
        ],
    )
    def test_what_changes_results_is_in(self, tmp_path: Path, change: str) -> None:
        assert small(tmp_path, change).digest() != small(tmp_path).digest()

    def test_a_default_written_out_is_the_same_experiment(self, tmp_path: Path) -> None:
        assert small(tmp_path, "server.lr=1.0", "client.momentum=0").digest() == small(tmp_path).digest()


OUTSIDE = '''
from typing import final
from pydantic import PositiveFloat
from strategies.rules import Cohort, Direction, Rule


@final
class Halver(Rule):
    """Halves the plain mean."""

    factor: PositiveFloat = 0.5

    def direction(self, cohort: Cohort) -> Direction:
        """Return it."""
        return Direction(self.factor * cohort.updates.mean(0))


class NotARule:
    """Nothing."""
'''


class TestImportPath:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "", "my_rules_for_tests/__init__.py")
        write(tmp_path, OUTSIDE, "my_rules_for_tests/halver.py")
        monkeypatch.syspath_prepend(tmp_path)

    def test_a_rule_of_ones_own_is_found_and_checked(self, tmp_path: Path) -> None:
        where = "my_rules_for_tests.halver:Halver"
        scenario = small(tmp_path, f"strategy.name={where}", "strategy.factor=0.25")
        assert scenario.strategy.factor == 0.25  # type: ignore[attr-defined]
        assert scenario.table()["strategy"] == {"name": where, "factor": 0.25}
        assert Scenario.load(write(tmp_path, scenario.to_toml(), "again.toml")) == scenario
        problems = problems_of(write(tmp_path, SMALL), f"strategy.name={where}", "strategy.facto=1")
        assert 'did you mean "factor"?' in problems["strategy.facto"]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("my_rules_for_tests.halver:Gone", "cannot import rule"),
            ("no_such_package_here:Halver", "cannot import rule"),
            ("my_rules_for_tests.halver:NotARule", "is not a strategies.rules.AnyRule"),
            ("strategies.rules:Rule", "is not a strategies.rules.AnyRule"),
            (":Halver", "rule"),
            ("my_rules_for_tests.halver:", "rule"),
        ],
    )
    def test_what_cannot_be_used_is_a_problem(self, tmp_path: Path, name: str, said: str) -> None:
        problems = problems_of(write(tmp_path, SMALL), f"strategy.name={name}")
        assert said in problems["strategy.name"]


def test_names_are_set_before_other_changes_whatever_their_order() -> None:
    """Another plugin's name resets its table; an option given before it must not be lost without a word."""
    for changes in (
        ["strategy.lam=0.5", "strategy.name=ditto"],
        ["strategy.name=ditto", "strategy.lam=0.5"],
    ):
        assert Scenario.load("quickstart", changes).table()["strategy"]["lam"] == 0.5
    with pytest.raises(ScenarioError, match=r"strategy\.foo: unknown option"):
        Scenario.load("quickstart", ["strategy.foo=2", "strategy.name=term"])
    divided = Scenario.load("quickstart", ["partition.num_clients=7", "partition.name=iid"]).partition
    assert divided.num_clients == 7  # type: ignore[attr-defined]


def test_the_last_of_two_changes_of_one_key_counts() -> None:
    scenario = Scenario.load("quickstart", ["strategy.name=term", "seed=1", "strategy.name=ditto", "seed=2"])
    assert scenario.seed == 2
    assert scenario.method == "ditto"


def test_what_a_reader_must_know_is_said() -> None:
    notes = Scenario.load("mnist_shards", ["strategy.name=ditto", "server.average=all"]).notes()
    assert "own model" in notes[0]
    assert "mean of the models of all rounds" in notes[1]
    assert Scenario.load("mnist_shards").notes() == []
    assert "is the last model" in Scenario.load("quickstart", ["server.average=recent"]).notes()[0]


class TestStudyKeys:
    """tier, [study] and [expect] are about results, and none depends on them."""

    STUDY = (
        'tier = "smoke"\n'
        + SMALL
        + """
[study]
methods = ["fedavg", "adafed[scale=min]", {strategy = "qfedavg", label = "ours", changes = ["strategy.q=2"]}]
seeds = 3
[study.tune]
budget = 2
[study.tune.grid]
"client.lr" = [0.1, "x2"]
[expect.fedavg.mean]
value = 0.8
within = 0.05
source = "a paper"
[expect."adafed[scale=min]".worst_10]
low = 0.1
high = 1.0
source = "another"
"""
    )

    def test_they_are_no_part_of_the_digest_and_survive_being_resolved(self, tmp_path: Path) -> None:
        plain, full = small(tmp_path), Scenario.load(write(tmp_path, self.STUDY, "full.toml"))
        assert full.digest() == plain.digest()
        assert full.study is not None
        assert [method.label for method in full.study.methods] == ["fedavg", "adafed[scale=min]", "ours"]
        assert full.study.seeds == (0, 1, 2)
        resolved = Scenario.load(write(tmp_path, full.to_toml(), "resolved.toml"))
        assert resolved == full
        assert plain.study is None
        assert "study" not in plain.table()

    def test_mistakes_in_them_are_among_the_others(self, tmp_path: Path) -> None:
        text = "rounds = 0\n" + self.STUDY.replace("rounds = 3\n", "").replace('"smoke"', '"papper"')
        text = text.replace("seeds = 3", "seeds = 0\nmethod = 1").replace("within = 0.05", "within = -1")
        problems = problems_of(write(tmp_path, text))
        assert set(problems) == {
            "rounds",
            "tier",
            "study.seeds",
            "study.method",
            "expect.fedavg.mean.within",
        }
        assert 'did you mean "methods"' in problems["study.method"]

    @pytest.mark.parametrize("key", ["study", "expect", "tier"])
    def test_what_is_no_table_is_a_problem_and_not_a_crash(self, tmp_path: Path, key: str) -> None:
        assert list(problems_of(write(tmp_path, f"{key} = 3\n{SMALL}"))) == [key]
        assert key in problems_of(write(tmp_path, f"{key} = 3\n"))

    def test_a_child_inherits_the_study_of_its_parent_and_no_expectation(self, tmp_path: Path) -> None:
        write(tmp_path, self.STUDY, "parent.toml")
        child = Scenario.load(write(tmp_path, 'extends = "parent.toml"\n[study]\nseeds = 2\n', "child.toml"))
        assert child.expect is None
        assert child.study is not None
        assert (len(child.study.methods), child.study.seeds) == (3, (0, 1))
        own = 'extends = "parent.toml"\n[expect.fedavg.std]\nlow = 0\nhigh = 1\nsource = "x"\n'
        expect = Scenario.load(write(tmp_path, own, "own.toml")).expect
        assert expect is not None
        assert {method: set(measures) for method, measures in expect.root.items()} == {"fedavg": {"std"}}

    def test_a_study_of_other_scenarios_is_none_itself(self, tmp_path: Path) -> None:
        path = write(tmp_path, '[study]\nscenarios = ["a", "b"]\n', "study.toml")
        with pytest.raises(ScenarioError, match="is a study of a, b, no scenario; run it with `compare`"):
            Scenario.load(path)
