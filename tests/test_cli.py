"""The command line: one clear message and the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

import run_sim
import strategies.seeded
from fedsim.scenario import Scenario

HOME = Path(__file__).resolve().parents[1]
SMALL = """
rounds = 2
[data]
name = "digits"
limit = 300
[partition]
name = "iid"
num_clients = 4
[model]
name = "logistic"
[strategy]
name = "fedavg"
[engine]
backend = "local"
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        self.scenario = folder / "small.toml"
        self.scenario.write_text(SMALL)

    def __call__(self, *words: str) -> Done:
        """`run_sim.py words` in this process."""
        self._monkeypatch.setattr(sys, "argv", ["run_sim.py", *words])
        self._capsys.readouterr()
        code = 0
        try:
            run_sim.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(code, out, err)

    def run(self, *changes: str, out: str = "out") -> Done:
        options = [word for change in changes for word in ("--set", change)]
        return self("run", str(self.scenario), *options, "--out", str(self.folder / out))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "no-data"))
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, monkeypatch, capsys)


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("strategy.name=fedavgg", 'strategy.name: no such rule "fedavgg"; did you mean "fedavg"'),
            ("data.name=digit", 'did you mean "digits"'),
            ("clientt.lr=1", 'clientt: unknown key; did you mean "client"'),
            ("client.lrr=1", 'client.lrr: unknown option; did you mean "lr"'),
            ("strategy.q=1", "strategy.q: unknown option; fedavg takes no options"),
            ("rounds=0", "rounds: must be greater than 0, got 0"),
            ("rounds=-3", "rounds: must be greater than 0, got -3"),
            ("rounds=ten", "rounds: must be a whole number, got 'ten'"),
            ("client.lr=-0.1", "client.lr: must be greater than 0"),
            ("client.lr=nan", "client.lr"),
            ("client.lr=inf", "client.lr"),
            ("partition.num_clients=0", "partition.num_clients: must be greater than 0"),
            ("partition.test_fraction=1", "partition.test_fraction: must be less than 1"),
            (
                "server.clients_per_round=5",
                "server.clients_per_round: must be at most partition.num_clients = 4, got 5",
            ),
            ("engine.backend=cluster", "engine.backend: must be 'ray' or 'local'"),
            ("engine.workers=0", "engine.workers: must be greater than 0"),
            ("partition.num_clients=301", "301 clients cannot share 300 examples"),
            ("partition.num_clients=200", "needs at least 2 examples"),
            ("model.name=cnn", "cnn expects images"),
            ("model.name=char_lstm", "char_lstm expects"),
            ("partition.name=natural", "the data set has no natural owners"),
            ("nonsense", '--set: must be key=value, got "nonsense"'),
        ],
    )
    def test_they_are_named_and_leave_no_folder(self, command: Command, change: str, said: str) -> None:
        done = command.run(change)
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert said in done.err
        assert not (command.folder / "out").exists()

    @pytest.mark.parametrize("backend", ["local", "ray"])
    def test_a_gpu_that_is_not_there(self, command: Command, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        done = command.run("engine.gpus_per_worker=0.5", f"engine.backend={backend}")
        assert done.code == 2
        assert "engine.gpus_per_worker: no CUDA device was found, got 0.5; set it to 0" in done.err

    def test_data_that_are_not_there(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether downloading is not allowed or there is no network: which files, where to, where from."""

        def refused(*_: object, **__: object) -> None:
            raise OSError("Network is unreachable")

        monkeypatch.setattr("socket.create_connection", refused)
        monkeypatch.setattr("socket.getaddrinfo", refused)
        began = time.monotonic()
        for changes in (("data.name=mnist", "data.download=false"), ("data.name=mnist",)):
            done = command.run(*changes)
            assert done.code == 2
            assert "train-images-idx3-ubyte" in done.err
            assert str(command.folder / "no-data") in done.err
            assert "ossci-datasets" in done.err
        assert time.monotonic() - began < 10

    def test_more_clients_a_round_than_natural_owners_is_said_at_once(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, data_root: Path
    ) -> None:
        """The number of hospitals is known when the data are read; waiting for more cannot help."""
        monkeypatch.setenv("FEDSIM_DATA", str(data_root))
        monkeypatch.setattr(strategies.seeded, "WAIT_S", 0.0)
        command.scenario.write_text(
            SMALL.replace('"digits"', '"heart"').replace('"iid"\nnum_clients = 4', '"natural"')
        )
        done = command.run("server.clients_per_round=50")
        assert done.code == 2
        assert "server.clients_per_round" in done.err

    def test_unknown_commands_options_and_families(self, command: Command) -> None:
        for words in (("runn",), ("run",), ("run", "quickstart", "--sett", "a=1"), ("list", "strategy")):
            assert command(*words).code == 2
        assert 'did you mean "strategies"' in command("list", "strategy").err

    def test_a_scenario_that_is_not_there(self, command: Command) -> None:
        done = command("run", "quickstrat")
        assert done.code == 2
        assert 'did you mean "quickstart"' in done.err

    def test_a_folder_in_use(self, command: Command) -> None:
        (command.folder / "out").mkdir()
        (command.folder / "out" / "precious.txt").write_text("mine")
        done = command.run()
        assert done.code == 2
        assert "--out" in done.err
        assert [file.name for file in (command.folder / "out").iterdir()] == ["precious.txt"]

    def test_a_report_of_no_run(self, command: Command) -> None:
        assert command("report", str(command.folder / "gone")).code == 2


class TestDivergence:
    @pytest.mark.parametrize(
        "changes",
        [
            ("model.name=mlp", "client.batch_size=8"),  # weights overflow within a client's epoch
            ("model.name=mlp", "client.batch_size=1000"),  # one step: the model is finite, its losses are not
            ("model.name=mlp", "client.batch_size=1000", "strategy.name=adafed"),
        ],
    )
    def test_it_stops_and_names_client_and_round(self, command: Command, changes: tuple[str, ...]) -> None:
        done = command.run("client.lr=1e30", "rounds=5", *changes)
        assert done.code == 1
        assert "round 1: " in done.err or "client 0, round " in done.err
        assert "client 0" in done.err
        folder = command.folder / "out"
        assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
        assert (folder / "report.html").exists()
        assert len(pd.read_parquet(folder / "clients.parquet")) >= 4

    def test_a_server_step_that_overflows(self, command: Command) -> None:
        done = command.run("server.lr=1e38", "client.lr=5", "rounds=9")
        assert done.code == 1
        assert "round" in done.err


class TestWhoseAccuracy:
    """What is measured has to be said where it is read."""

    def test_ditto_says_that_clients_have_models_of_their_own(self, command: Command) -> None:
        done = command.run("strategy.name=ditto", "server.clients_per_round=1", "server.average=all")
        assert done.code == 0
        assert "each client's own model" in " ".join(done.out.split())
        summary = json.loads((command.folder / "out" / "summary.json").read_text())
        assert {"server_accuracy", "server_loss", "test_accuracy"} <= set(summary["fairness"])
        page = (command.folder / "out" / "report.html").read_text()
        assert "of 4 clients have a model of their own; the shared model is right on" in page
        assert "own model" in page
        assert "mean of the models of all rounds" in page
        clients = pd.read_parquet(command.folder / "out" / "clients.parquet")
        took_part = set(clients[clients["sampled"]]["client"])
        last = clients[clients["round"] == 2].set_index("client")
        for client, row in last.iterrows():
            assert (row["test_loss"] != row["server_loss"]) == (client in took_part)
        assert f"{len(took_part)} of 4 clients" in page

    def test_a_wrapped_strategy_is_named_with_what_it_wraps(self, command: Command) -> None:
        name = "flwr:DifferentialPrivacyServerSideFixedClipping"
        options = ("strategy.noise_multiplier=0.1", "strategy.clipping_norm=1.0", "strategy.strategy.name=fedavg")
        done = command.run(f"strategy.name={name}", *options)
        assert done.code == 0
        assert f"{name}(fedavg)" in done.out.replace("\n", "")
        assert "claim no epsilon" in " ".join(done.out.split())
        assert json.loads((command.folder / "out" / "summary.json").read_text())["strategy"] == f"{name}(fedavg)"


class TestCommands:
    def test_run_ends_with_the_folder_and_report_writes_again(self, command: Command) -> None:
        done = command.run()
        assert done.code == 0
        folder = Path(done.out.splitlines()[-1])
        assert folder == command.folder / "out"
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["scenario"], summary["rounds"], summary["status"]) == ("small", 2, "finished")
        (folder / "report.html").unlink()
        again = command("report", str(folder))
        assert again.code == 0
        assert Path(again.out.splitlines()[-1]) == folder / "report.html"
        assert (folder / "report.html").stat().st_size > 1000

    def test_without_out_a_new_folder_is_made_under_runs(self, command: Command) -> None:
        done = command("run", str(command.scenario), "--set", "rounds=1")
        assert done.code == 0
        folder = Path(done.out.splitlines()[-1])
        assert folder.parent == Path("runs")
        assert folder.name.startswith("small-fedavg-seed0-")
        assert (folder / "summary.json").exists()

    def test_check_prints_the_resolved_scenario(self, command: Command) -> None:
        done = command("check", str(command.scenario), "--set", "seed=7")
        assert done.code == 0
        (command.folder / "resolved.toml").write_text(done.out)
        resolved = Scenario.load(command.scenario, ["seed=7", "client.cohort=each"])  # what a run would choose
        assert Scenario.load(command.folder / "resolved.toml") == resolved
        assert done.err == ""

    def test_check_says_when_the_data_are_not_there(self, command: Command) -> None:
        done = command("check", str(command.scenario), "--set", "data.name=heart", "--data", str(command.folder))
        assert done.code == 0
        assert "not checked with its data" in done.err
        assert 'cohort = "auto"' in done.out

    def test_check_finds_what_only_the_data_can_tell(self, command: Command) -> None:
        done = command("check", str(command.scenario), "--set", 'client.hooks=["ncmi"]')
        assert done.code == 2
        assert "client.hooks.ncmi: ncmi trains the features" in done.err

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("dp_sgd", "noise = 1.0"),
            ("server", "initial = (not set)"),
            ("cmi", 'centroids = "alternate"'),
            ("tests.clients.hooks.outside:ConfidencePenalty", "weight = 0.1"),
        ],
    )
    def test_list_says_what_one_thing_is_and_takes(self, command: Command, name: str, said: str) -> None:
        done = command("list", name)
        assert done.code == 0
        assert f"  {said}" in done.out.splitlines()
        assert command("check", str(command.scenario), "--set", "rounds=0").code == 2

    def test_list_names_everything_a_scenario_can_name(self, command: Command) -> None:
        done = command("list")
        assert done.code == 0
        for word in ("strategies:", "adafed", "digits", "dirichlet", "mlp", "accuracy", "quickstart"):
            assert word in done.out
        one = command("list", "strategies")
        lines = one.out.splitlines()
        assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
        assert all(len(line.split(maxsplit=1)) == 2 for line in lines)  # each says what it is

    def test_help(self, command: Command) -> None:
        for words in (("--help",), ("run", "--help")):
            assert command(*words).code == 0
        text = " ".join(command("compare", "--help").out.split())
        assert "adafed[scale=min; server.average=all]" in text  # brackets are no markup


class TestStudies:
    TWO = ("--strategies", "fedavg,afl", "--seeds", "1")

    @pytest.fixture(autouse=True)
    def quick_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Figures take longer than such a study, and have tests of their own."""

        def drawn(folder: Path) -> None:
            (folder / "study.html").write_text("figures")

        monkeypatch.setattr("fedsim.study.conductor.write_study_report", drawn)

    def compare(self, command: Command, *words: str, out: str = "study") -> Done:
        return command("compare", str(command.scenario), *words, "--out", str(command.folder / out))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "study.methods: names none; write methods = [...], or --strategies fedavg,adafed"),
            (("--strategies", "fedavg"), "study.methods: a comparison takes 2 or more, got fedavg"),
            (("--strategies", "fedavg,qfedavgg"), 'no such rule "qfedavgg"; did you mean "qfedavg"'),
            (("--strategies", "fedavg,afl[lamda_lr=1]"), "strategy.lamda_lr: unknown option"),
            (("--strategies", "fedavg,afl[x"), "must be a strategy or strategy[key=value; ...]"),
            (("--strategies", "fedavg,fedavg"), "fedavg is there more than once"),
            (("--strategies", "fedavg,afl[data.limit=9]"), "data.limit would let a method be measured"),
            ((*TWO, "--metrics", "mean,wurst_10"), 'no such measure "wurst_10"; did you mean "worst_10"'),
            ((*TWO, "--baseline", "fedavgg"), 'no method is called "fedavgg"; did you mean "fedavg"'),
            (
                ("--strategies", "fedavg,afl", "--seeds", "abc"),
                'must be a count or seeds with commas between, got "abc"',
            ),
            (("--strategies", "fedavg,afl", "--seeds", "0"), "must be a count, or whole numbers from 0"),
            (("--strategies", "fedavg,afl", "--seeds", "1,1"), "1 is there more than once"),
            (("--strategies", "fedavg,afl", "--partitions", "1.5"), "--partitions"),
            ((*TWO, "--parallel", "threads"), "parallel"),
            ((*TWO, "--set", "seed=3"), "--set seed: a study has several seeds; name them with --seeds"),
            ((*TWO, "--set", "rounds=0"), "rounds: must be greater than 0, got 0"),
            ((*TWO, "--set", "study.alpha=2"), "study.alpha: must be less than 1"),
            ((*TWO, "--set", "study.alfa=0.1"), "study.alfa: unknown option"),
            ((*TWO, "--set", "model.name=char_lstm"), "char_lstm expects"),
        ],
    )
    def test_mistakes_are_named_and_leave_no_folder(
        self, command: Command, words: tuple[str, ...], said: str
    ) -> None:
        done = self.compare(command, *words)
        assert done.code == 2
        assert said in done.err
        assert not (command.folder / "study").exists()

    def test_mistakes_are_all_said_at_once(self, command: Command) -> None:
        done = self.compare(command, "--strategies", "fedavgg,afl[lamda_lr=1],qfedavg[q=-1]")
        assert done.code == 2
        assert "3 problems" in done.err

    def test_tiers_that_are_mixed(self, command: Command) -> None:
        for tier in ("paper", "smoke"):
            (command.folder / f"{tier}.toml").write_text(f'tier = "{tier}"\n{SMALL}')
        (command.folder / "both.toml").write_text('[study]\nscenarios = ["paper.toml", "smoke.toml"]\n')
        done = command("compare", "both.toml", *self.TWO)
        assert done.code == 2
        assert "which never share a table: paper: paper; smoke: smoke" in done.err

    def test_a_study_file_is_not_run(self, command: Command) -> None:
        (command.folder / "s.toml").write_text(f'[study]\nscenarios = ["{command.scenario}"]\n')
        done = command("run", "s.toml")
        assert done.code == 2
        assert "no scenario; run it with `compare`" in done.err

    def test_a_study_file_is_checked_as_what_it_is(self, command: Command) -> None:
        methods = 'methods = ["fedavg", "afl"]'
        (command.folder / "s.toml").write_text(f'[study]\nscenarios = ["{command.scenario}"]\n{methods}\n')
        done = command("check", "s.toml", "--set", "study.seeds=3")
        assert (done.code, done.err) == (0, "")
        assert "6 runs" in done.out
        assert command("check", "s.toml", "--set", "study.baseline=fedavgg").code == 2
        assert command("check", "s.toml", "--set", "rounds=0").code == 2

    def test_a_folder_of_something_else(self, command: Command) -> None:
        assert command.run("rounds=1", out="run").code == 0
        before = sorted(path.name for path in (command.folder / "run").iterdir())
        done = self.compare(command, *self.TWO, out="run")
        assert done.code == 2
        assert "is not empty and holds no study; name another folder with --out" in done.err
        assert sorted(path.name for path in (command.folder / "run").iterdir()) == before

    def test_a_study_from_the_first_word_to_the_last(self, command: Command) -> None:
        done = self.compare(command, "--strategies", "fedavg,afl[lambda_lr=0.1]", "--seeds", "4,")
        assert (done.code, done.err) == (0, "")
        folder = command.folder / "study"
        assert done.out.splitlines()[-1] == str(folder)
        assert "1 pair is too few for a claim" in done.out
        found = json.loads((folder / "study.json").read_text())
        words = shlex.split(found["command"])
        assert [run["seed"] for run in found["runs"]] == [4, 4]
        for name in ("study.json", "study.html"):
            (folder / name).unlink()
        assert command("report", str(folder)).out.strip() == str(folder / "study.html")
        assert (folder / "study.html").exists()
        again = json.loads((folder / "study.json").read_text())
        assert again == found
        assert command("resume", str(folder)).code == 0
        assert command("resume", str(folder), "--set", "rounds=9").code == 2
        done = command(*words[2:])  # the line that it notes
        assert done.code == 0
        assert "2 of 2 runs are finished already" in done.out
        assert json.loads((folder / "study.json").read_text()) == found

    def test_another_study_takes_the_place_of_one_only_if_that_is_said(self, command: Command) -> None:
        assert self.compare(command, *self.TWO).code == 0
        kept = (command.folder / "study" / "study.json").read_text()
        others = ("--strategies", "Base=fedavg,Ours=qfedavg[q=0.5]", "--seeds", "1", "--baseline", "Base")
        done = self.compare(command, *others)
        assert done.code == 2
        assert "holds another study, whose results would be lost" in done.err
        assert (command.folder / "study" / "study.json").read_text() == kept
        done = self.compare(command, *others, "--replace")
        assert (done.code, done.err) == (0, "")
        assert "1 of 2 runs are finished already" in done.out
        assert "beware: No method was tuned" in done.out
        found = json.loads((command.folder / "study" / "study.json").read_text())
        assert [method["label"] for method in found["design"]["methods"]] == ["Base", "Ours"]
        assert command(*shlex.split(found["command"])[2:]).code == 0  # as it says it is made again

    def test_what_numbers_are_over_is_said(self, command: Command) -> None:
        for words, unit in (((), "pairs"), (("--partitions", "2"), "seeds")):
            done = self.compare(command, *self.TWO, *words, out=unit)
            assert done.code == 0
            assert f"small: mean (deviation) over {unit}" in done.out
            assert f"1 {unit[:-1]} is too few for a claim" in done.out

    def test_by_default_there_are_five_seeds_and_a_folder_by_content(self, command: Command) -> None:
        words = ("compare", str(command.scenario), "--strategies", "fedavg,afl", "--set", "rounds=1")
        done = command(*words)
        assert done.code == 0
        folder = Path(done.out.splitlines()[-1])
        assert folder.parent == Path("runs")
        assert json.loads((folder / "study.json").read_text())["design"]["seeds"] == [0, 1, 2, 3, 4]
        done = command(*words)
        assert Path(done.out.splitlines()[-1]) == folder
        assert "10 of 10 runs are finished already" in done.out

    def test_runs_that_failed_are_named_with_exit_code_1(self, command: Command) -> None:
        wild = "fedavg,fedavg[client.lr=3e38]"
        for _ in range(2):
            done = self.compare(command, "--strategies", wild, "--seeds", "1")
            assert done.code == 1
            assert "1 of 2 runs failed" in done.err
            assert "small, fedavg[client.lr=3e38], seed 0: " in done.err

    def test_an_interrupted_study_says_so_and_goes_on(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(finished: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("fedsim.study.perform.heed", interrupted)
            done = self.compare(command, *self.TWO)
        assert done.code == run_sim.INTERRUPTED
        assert "interrupted" in done.err
        assert command("resume", str(command.folder / "study")).code == 0
        found = json.loads((command.folder / "study" / "study.json").read_text())
        assert (found["status"], {run["status"] for run in found["runs"]}) == ("finished", {"finished"})

    def test_verify(self, command: Command) -> None:
        expect = "[study]\nseeds = 1\n[expect.fedavg.mean]\nlow = {}\nhigh = 1.0\nsource = 'a paper'\n"
        out = ("--out", str(command.folder / "study"))
        for low, code in ((0.0, 0), (0.999, 1)):
            command.scenario.write_text(SMALL + expect.format(low))
            done = command("verify", str(command.scenario), *out)
            assert (done.code, done.err) == (code, "")
            assert ("OUTSIDE" in done.out) == (code == 1)
        done = command("verify", str(command.scenario), "--set", "rounds=1", *out)
        assert done.code == 2
        assert "makes other runs than [expect] is about" in done.err
        command.scenario.write_text(SMALL)
        assert command("verify", str(command.scenario)).code == 2
        assert command("verify", str(command.scenario), "--seeds", "x").code == 2


def spawn(*words: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "FEDSIM_DATA": str(folder / "no-data"), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, str(HOME / "run_sim.py"), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
class TestProcess:
    @pytest.mark.parametrize("backend", ["local", "ray"])
    def test_ctrl_c_leaves_a_folder_that_can_be_read(self, tmp_path: Path, backend: str) -> None:
        """The signal goes to the whole group, as a terminal sends it."""
        (tmp_path / "small.toml").write_text(SMALL)
        changes = ["rounds=100000", f"engine.backend={backend}", "engine.workers=1"]
        options = [word for change in changes for word in ("--set", change)]
        process = spawn("run", "small.toml", *options, "--out", "out", folder=tmp_path)
        try:
            log, deadline = tmp_path / "out" / "log.txt", time.monotonic() + 90
            while time.monotonic() < deadline and process.poll() is None:
                if log.exists() and "strategy" in log.read_text():  # the rounds have begun
                    break
                time.sleep(0.2)
            time.sleep(2.0)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert "Traceback" not in out + err
        assert process.returncode == 130, err
        assert "interrupted" in err
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["status"] == "interrupted"
        assert 0 < summary["rounds"] < 100000
        assert len(pd.read_parquet(tmp_path / "out" / "clients.parquet")) >= 4 * summary["rounds"]
        assert (tmp_path / "out" / "report.html").exists()

    def test_ray_from_start_to_end_gives_the_model_of_one_process(self, command: Command, tmp_path: Path) -> None:
        changes = ("--set", "engine.backend=ray", "--set", "engine.workers=2")
        process = spawn("run", str(command.scenario), *changes, "--out", "by-ray", folder=tmp_path)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err == ""
        assert out.splitlines()[-1] == "by-ray"
        assert command.run(out="local").code == 0
        summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("by-ray", "local")]
        models = [summary["model_sha256"] for summary in summaries]
        assert models[0] == models[1]
