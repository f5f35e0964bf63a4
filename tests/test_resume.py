"""A run stopped anywhere and taken up again leaves, bit by bit, what a run without an interruption leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import run_sim
from clients.app import LocalApp
from clients.resident import initial_weights
from fedsim import checkpoint, simulation
from fedsim.averages import Average
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, DataError, FedSimError, ScenarioError
from fedsim.lock import RunLock, lock_file
from fedsim.resume import bring_up, state_file
from fedsim.rounds import Round, run_rounds
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, strategy_of
from fedsim.simulation import resume, simulate
from fedsim.wire import pack_arrays

NUM_ROUNDS = 5
BASE = """
rounds = 5
seed = 3
[data]
name = "digits"
limit = 400
[partition]
name = "dirichlet"
num_clients = 6
alpha = 0.5
[model]
name = "mlp"
hidden = [12]
[client]
batch_size = 16
lr = 0.05
[strategy]
name = "fedavg"
[server]
clients_per_round = 4
[engine]
backend = "local"
[evaluation]
every = 2
"""
METHODS: dict[str, list[str]] = {
    "fedavg": [],
    "adafed": ["strategy.name=adafed"],
    "dqnfed": ["strategy.name=dqnfed"],
    "dqnfed, exact": ["strategy.name=dqnfed", "client.local_epochs=0", "server.clients_per_round=6"],
    "dqnfed, pairs of rounds": ["strategy.name=dqnfed", "strategy.pairs_from=rounds"],
    "scaffold": ["strategy.name=scaffold"],
    "feddyn": ["strategy.name=feddyn"],
    "ditto": ["strategy.name=ditto"],
    "fedmdfg": ["strategy.name=fedmdfg"],
    "afl": ["strategy.name=afl", "server.average=all"],
    "fedadam, recent average": ["strategy.name=fedadam", "server.average=recent"],
    "flwr:FedAdam": ["strategy.name=flwr:FedAdam"],
    "devices by day": [
        "strategy.name=scaffold",
        "system.availability.name=day_cycle",
        "system.availability.share=0.5",
        "system.availability.period_s=60",
        "system.speed.name=lognormal",
        "system.speed.median=20",
        "system.dropout=0.3",
        "system.partial_work.name=uniform",
    ],
    "devices with a deadline, rounds of nobody": [
        "strategy.name=scaffold",
        "system.deadline_s=20",
        "system.over_selection=1.4",
        "system.dropout=0.25",
        "system.availability.name=day_cycle",
        "system.availability.share=0.45",
        "system.availability.period_s=60",
        "system.speed.name=lognormal",
        "system.speed.median=10",
        "system.speed.sigma=0.8",
        "system.partial_work.name=uniform",
        "system.partial_work.min_share=0.2",
    ],
    "devices, rounds of nobody": [
        "strategy.name=flwr:FedAdam",
        "server.average=recent",
        "system.availability.name=bernoulli",
        "system.availability.p=0.25",  # nobody in round 4
    ],
    "flwr: adaptive clipping": [
        "strategy.name=flwr:DifferentialPrivacyServerSideAdaptiveClipping",
        "strategy.noise_multiplier=0.1",
        "strategy.num_sampled_clients=4",
        "strategy.strategy.name=fedadam",
    ],
    "hooks with a memory": ["client.hooks.fed_it.decay=0.9", 'evaluation.metrics=["class_accuracy", "cmi"]'],
    "decays": ["client.lr_decay=0.9", "server.lr_decay=0.9", "strategy.name=fedyogi"],
}


MOMENTS = [
    *((number, "callbacks") for number in range(NUM_ROUNDS + 1)),
    *((number, "train") for number in range(1, NUM_ROUNDS + 1)),
    *((number, "evaluate") for number in (0, 2, 4, 5)),
]
"""Every round and what happens in it."""


class Killed(BaseException):
    """Nothing in the platform catches this."""


class Runner:
    """Runs and resumes, stopped where a test wants it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self._conduct = simulation.conduct
        self.file = folder / "small.toml"
        self.file.write_text(BASE)

    def whole(self, *changes: str, out: str = "whole") -> Path:
        return simulate(self.file, changes, self.folder / out)

    def stopped(
        self, number: int, *changes: str, during: str = "callbacks", error: BaseException | None = None
    ) -> Path:
        """A run, or one that is taken up, stopped in a round: at its callbacks, or while its clients train."""
        path = self.folder / "stopped"
        stop = error or Killed()
        with self._monkeypatch.context() as patched:
            patched.setattr(simulation, "conduct", self._until(number, stop, during))
            begin = resume if path.exists() else partial(simulate, self.file, out=path)
            with pytest.raises(type(stop)):
                begin(*([path] if path.exists() else []), overrides=changes)
        return path

    def _until(self, number: int, stop: BaseException, during: str) -> Callable[..., Any]:
        def conduct(scenario: Any, federation: Any, grid: Any, folder: Path, **options: Any) -> Any:
            if during == "callbacks":

                def callback(finished: Round) -> None:
                    if finished.number == number:
                        raise stop

                options["callbacks"] = [*options["callbacks"], callback]
            else:
                collect = grid.collect

                def collected(submitted: Any) -> Any:
                    replies = collect(submitted)
                    first = submitted.messages[0]
                    settings = first.content["config"]
                    if first.metadata.message_type == during and settings["server-round"] == number:
                        raise stop  # what the clients keep has been written
                    return replies

                grid.collect = collected
            return self._conduct(scenario, federation, grid, folder, **options)

        return conduct


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(tmp_path, monkeypatch)


def clockless(folder: Path) -> dict[str, Any]:
    """What is in a folder, without what a clock says."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("seconds")["total"] > 0
    rounds = pd.read_parquet(folder / "rounds.parquet")
    clocks = [column for column in rounds.columns if column.startswith("seconds")]
    return {
        "summary": summary,
        "rounds": rounds.drop(columns=clocks).to_json(double_precision=15),
        "exact": {name: values.map(repr).tolist() for name, values in rounds.drop(columns=clocks).items()},
        "clients": (folder / "clients.parquet").read_bytes(),
        "model": (folder / "model.safetensors").read_bytes(),
        "manifest": (folder / "manifest.json").read_text(),
        "scenario": (folder / "scenario.toml").read_text(),
        "files": sorted(file.name for file in folder.iterdir()),
    }


def assert_same(found: Path, expected: Path) -> None:
    one, other = clockless(found), clockless(expected)
    for name in one:
        assert one[name] == other[name], name


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take ten times as long as these runs."""
    monkeypatch.setattr("fedsim.server_app.write_report", lambda folder: folder)
    monkeypatch.setattr("fedsim.server_app.save_partition_figure", lambda folder: folder)


def first_rounds(folder: Path) -> list[int]:
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    return [session["first_round"] for session in sessions]


class TestBits:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_session_a_round_gives_the_bits_of_one_session(self, method: str, runner: Runner) -> None:
        """Stopped in every round, by turns at its callbacks and while its clients train."""
        changes = METHODS[method]
        whole = runner.whole(*changes)
        for number in range(NUM_ROUNDS + 1):
            # Devices leave rounds in which nobody trains.
            during = "train" if number % 2 and "devices" not in method else "callbacks"
            stopped = runner.stopped(number, *(changes if number == 0 else ()), during=during)
        assert first_rounds(stopped) == [0, 1, 2, 3, 4]  # the second began anew: the first had no checkpoint
        assert_same(resume(stopped), whole)
        if "nobody" in method:
            assert pd.read_parquet(whole / "rounds.parquet")["num_sampled"].tolist()[1:].count(0) > 0

    @pytest.mark.parametrize(("number", "during"), MOMENTS)
    def test_one_interruption_in_any_round_and_phase(self, number: int, during: str, runner: Runner) -> None:
        changes = METHODS["scaffold"]
        stopped = runner.stopped(number, *changes, during=during)
        assert state_file(stopped).exists() == (number > 0)
        assert_same(resume(stopped), runner.whole(*changes))
        assert first_rounds(stopped) == ([0, number] if number > 0 else [0])

    @pytest.mark.parametrize("every", [2, 3])
    def test_rare_checkpoints_cost_rounds_but_no_bit(self, every: int, runner: Runner) -> None:
        changes = [*METHODS["ditto"], f"engine.checkpoint_every={every}"]
        whole = runner.whole(*changes)
        for _ in range(2):
            stopped = runner.stopped(4, *changes)
        assert first_rounds(stopped) == [0, {2: 3, 3: 4}[every]]
        assert_same(resume(stopped), whole)

    def test_what_is_over_goes_into_no_second_row(self, runner: Runner) -> None:
        """The journal holds the stopped round already, the checkpoint does not."""
        stopped = runner.stopped(3)
        assert pd.read_parquet(stopped / "rounds.parquet")["round"].tolist() == [0, 1, 2, 3]
        resume(stopped)
        clients = pd.read_parquet(stopped / "clients.parquet")
        assert not clients.duplicated(["round", "client"]).any()
        assert len(clients) == (NUM_ROUNDS + 1) * 6

    def test_the_seconds_of_all_sessions_add_up(self, runner: Runner) -> None:
        stopped = runner.stopped(4)
        before = json.loads((stopped / "summary.json").read_text())["seconds"]
        assert not (resume(stopped) / "checkpoint").exists()
        after = json.loads((stopped / "summary.json").read_text())["seconds"]
        assert after["start"] > before["start"]
        assert after["total"] > sum(after[phase] for phase in ("train", "aggregate", "evaluate"))
        rounds = pd.read_parquet(stopped / "rounds.parquet")
        for phase in ("train", "aggregate", "evaluate"):
            assert after[phase] == pytest.approx(rounds[f"seconds_{phase}"].sum())

    @pytest.mark.slow
    @pytest.mark.usefixtures("ray_cluster")
    @pytest.mark.parametrize("backends", [("local", "ray"), ("ray", "local")], ids="-".join)
    def test_another_backend_goes_on_with_the_same_bits(self, backends: tuple[str, str], runner: Runner) -> None:
        changes = [*METHODS["scaffold"], f"engine.backend={backends[0]}", "engine.workers=2"]
        stopped = runner.stopped(3, *changes)
        resume(stopped, [f"engine.backend={backends[1]}", "engine.workers=1"])
        (stopped / "scenario.toml").write_text((runner.whole(*changes) / "scenario.toml").read_text())
        assert_same(stopped, runner.folder / "whole")


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (KeyboardInterrupt(), "interrupted"),
            (ClientError(2, 3, "no luck"), "failed"),
            (OSError("full"), "failed"),
        ],
        ids=["Ctrl-C", "client", "disk"],
    )
    def test_other_ends_than_a_kill(self, error: BaseException, status: str, runner: Runner) -> None:
        stopped = runner.stopped(3, during="train", error=error)
        assert json.loads((stopped / "summary.json").read_text())["status"] == status
        assert_same(resume(stopped), runner.whole())

    def test_a_failure_whose_cause_stays_fails_again_and_loses_nothing(self, runner: Runner) -> None:
        for _ in range(2):
            stopped = runner.stopped(3, during="train", error=ClientError(2, 3, "no luck"))
        assert_same(resume(stopped), runner.whole())

    def test_limits_may_be_widened(self, runner: Runner) -> None:
        stopped = runner.stopped(3, during="train", error=ClientError(2, 3, "no luck"))
        resume(stopped, ["engine.max_failures=2", "engine.timeout_s=60"])
        (stopped / "scenario.toml").write_text((runner.whole() / "scenario.toml").read_text())
        assert_same(stopped, runner.folder / "whole")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestRefusals:
    def refused(self, folder: Path, said: str, *changes: str, kind: type[FedSimError] = DataError) -> str:
        """Nothing in the folder may change by a refusal, beside who held its lock last."""
        before = content(folder) if folder.is_dir() else {}
        with pytest.raises(kind, match=said) as caught:
            resume(folder, changes)
        after = content(folder) if folder.is_dir() else {}
        lock = "checkpoint/lock"
        assert {name: data for name, data in after.items() if name != lock} == {
            name: data for name, data in before.items() if name != lock
        }
        return str(caught.value)

    def test_no_run(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nowhere", "nowhere: is no folder; give one that `run` has made")
        self.refused(tmp_path, "has no scenario.toml, so it is no run folder")

    def test_a_finished_run_is_left_alone(self, runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
        whole = runner.whole()
        before = content(whole)
        assert resume(whole) == whole
        assert "is finished; there is nothing to resume" in capsys.readouterr().out
        assert content(whole) == before

    def test_no_checkpoint_was_wanted(self, runner: Runner) -> None:
        stopped = runner.stopped(3, "engine.checkpoint_every=0")
        assert not state_file(stopped).exists()
        self.refused(
            stopped, "no checkpoint to go on from, it was run with engine.checkpoint_every = 0; begin again"
        )

    def test_a_run_of_an_older_version(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        shutil.rmtree(stopped / "checkpoint")
        self.refused(stopped, "no checkpoint to go on from, the version that wrote it made none")

    def test_a_strategy_without_plain_memory(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        """The run goes on, and what it left is not begun anew without a word."""

        def memory(strategy: Any) -> Any:
            raise TypeError("trees: bytes is no plain data")

        with monkeypatch.context() as patched:
            patched.setattr("strategies.stock.StockStrategy.memory", property(memory))
            stopped = runner.stopped(3, "strategy.name=flwr:FedAvg")
        assert not state_file(stopped).exists()
        assert (stopped / "log.txt").read_text().count("no checkpoints: ") == 1
        assert "trees: bytes is no plain data" in (stopped / "log.txt").read_text()
        self.refused(
            stopped, "no checkpoint to go on from, its strategy allows none, log.txt says why; begin again"
        )

    @pytest.mark.parametrize("number", [0, 3])
    def test_another_scenario_by_set(self, number: int, runner: Runner) -> None:
        stopped = runner.stopped(number)
        said = self.refused(
            stopped,
            r"client\.lr: 0\.05 -> 0\.1; the rounds so far would have been others",
            "client.lr=0.1",
            "rounds=9",
            "engine.backend=ray",
            kind=ScenarioError,
        )
        assert "rounds: 5 -> 9" in said
        assert "engine.backend:" not in said
        assert ": 2 problems\n" in said
        assert "\na resumed run may change engine.address, engine.backend, " in said

    def test_an_edited_scenario(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        text = (stopped / "scenario.toml").read_text()
        (stopped / "scenario.toml").write_text(text.replace("seed = 3", "seed = 4"))
        assert text.count("seed = 3") == 1
        self.refused(stopped, "seed: 3 -> 4", kind=ScenarioError)

    def test_stricter_limits(self, runner: Runner) -> None:
        stopped = runner.stopped(3, "engine.max_failures=2")
        self.refused(
            stopped,
            "engine.max_failures: 2 -> 1; it may only be raised",
            "engine.max_failures=1",
            kind=ScenarioError,
        )

    @pytest.mark.parametrize("change", ["pixel", "label"])
    def test_other_data(self, change: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped = runner.stopped(3)
        build = simulation.build_federation

        def changed(scenario: Any) -> Any:
            federation = build(scenario)
            if change == "pixel":
                federation.train.x[7, 0, 3, 3] += 1.0
            else:
                federation.manifest["sha256"] = "0" * 64
            return federation

        monkeypatch.setattr(simulation, "build_federation", changed)
        name = {"pixel": "examples", "label": "partition"}[change]
        said = self.refused(stopped, f"the data have changed .*\n  {name}: [0-9a-f]{{64}} -> [0-9a-f]{{64}}")
        assert len(said.splitlines()) == 2

    def test_another_teacher(self, runner: Runner) -> None:
        teacher = runner.whole() / "model.safetensors"
        stopped = runner.stopped(3, f"client.hooks.distill.source={teacher}")
        teacher.unlink()
        shutil.copy(runner.whole("seed=9", out="other") / "model.safetensors", teacher)
        self.refused(stopped, "distill: .*model.safetensors: [0-9a-f]{64} -> [0-9a-f]{64}")

    def test_another_trace(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDSIM_DATA", str(runner.folder))
        trace = runner.folder / "speeds.csv"
        trace.write_text("client,speed\n" + "".join(f"{client},{client + 5}\n" for client in range(6)))
        stopped = runner.stopped(3, "system.speed.name=trace", "system.speed.path=speeds.csv")
        trace.write_text(trace.read_text().replace("0,5", "0,6"))
        self.refused(stopped, "system.speed: speeds.csv: [0-9a-f]{64} -> [0-9a-f]{64}")

    def test_settings_of_a_finished_run(self, runner: Runner) -> None:
        finished = runner.whole()
        self.refused(finished, "is finished, so rounds=9 would change nothing", "rounds=9")

    def test_a_damaged_run_says_how_to_begin_again(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        (stopped / "checkpoint" / "rounds.journal").unlink()
        self.refused(stopped, "it cannot be resumed, begin again with: python run_sim.py run .*scenario.toml")

    def test_a_damaged_checkpoint(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        whole = state_file(stopped).read_bytes()
        state_file(stopped).write_bytes(whole[:-9])
        self.refused(stopped, "cannot be read as a checkpoint")
        state_file(stopped).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        self.refused(stopped, "is damaged, its checksum is another one")

    def test_a_checkpoint_of_another_version(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        data = checkpoint.load(state_file(stopped))
        checkpoint.save(state_file(stopped), {**data, "layout": 99})
        self.refused(stopped, "its layout must be 1, got 99; go on with the version of fedsim that wrote it")

    def test_a_journal_that_is_shorter_or_damaged(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        journal = stopped / "checkpoint" / "rounds.journal"
        whole = journal.read_bytes()
        counts = checkpoint.load(state_file(stopped))["folder"]["journal"]
        assert counts < len(whole)
        journal.write_bytes(whole[: counts - 1])
        self.refused(stopped, "rounds.journal: is damaged before byte")
        journal.write_bytes(whole[: counts - 100] + bytes([whole[counts - 100] ^ 1]) + whole[counts - 99 :])
        self.refused(stopped, "its checksum is another one")
        journal.write_bytes(whole[: counts + 3])  # a frame that was being written
        assert_same(resume(stopped), runner.whole())

    def test_lost_states_of_clients(self, runner: Runner) -> None:
        stopped = runner.stopped(3, *METHODS["scaffold"])
        index = checkpoint.load(state_file(stopped))["clients"]
        named = index["slips"].numpy().tobytes().decode().partition("#")[0]
        (stopped / "checkpoint" / "clients" / named).unlink()
        with pytest.raises(DataError, match=named):
            resume(stopped)

    def test_a_grid_that_keeps_no_files(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        data = checkpoint.load(state_file(stopped))
        checkpoint.save(state_file(stopped), {**data, "clients": None})
        with pytest.raises(DataError, match="what clients keep was not written beside it, as on Flower's"):
            resume(stopped)


class TestLock:
    def test_a_run_that_is_alive_is_not_resumed(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        refused = []
        conduct = simulation.conduct

        def watched(*args: Any, **options: Any) -> Any:
            def callback(finished: Round) -> None:
                with pytest.raises(DataError) as caught:
                    resume(runner.folder / "whole")
                refused.append(str(caught.value))

            return conduct(*args, **{**options, "callbacks": [callback]})

        monkeypatch.setattr(simulation, "conduct", watched)
        runner.whole()
        assert len(refused) == NUM_ROUNDS + 1
        assert all(f"is being written by process {os.getpid()} on {socket.gethostname()}" in s for s in refused)

    def test_two_resumes_at_once(self, runner: Runner) -> None:
        stopped = runner.stopped(3)
        with (
            RunLock(stopped),
            pytest.raises(DataError, match=r"is being written by process \d+ on .* since .*; wait"),
        ):
            resume(stopped)
        resume(stopped)

    def test_a_lock_ends_with_its_process(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; from fedsim.lock import RunLock; "
            "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(DataError, match=f"process {holder.pid} on"):
                RunLock(tmp_path)
            holder.kill()
            holder.wait()
        with RunLock(tmp_path):
            assert json.loads(lock_file(tmp_path).read_text())["pid"] == os.getpid()

    def test_a_run_that_ends_while_it_is_looked_at(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lock of a finished run can be had; that must not begin it anew."""
        stopped = runner.stopped(3)
        unlocked = RunLock

        def late(folder: Path) -> RunLock:
            monkeypatch.setattr(simulation, "RunLock", unlocked)
            resume(folder)  # another process was faster
            return unlocked(folder)

        monkeypatch.setattr(simulation, "RunLock", late)
        resume(stopped)
        assert_same_but_files(stopped, runner.whole())


def assert_same_but_files(found: Path, expected: Path) -> None:
    one, other = clockless(found), clockless(expected)
    assert {**one, "files": None} == {**other, "files": None}


DEATHS = {
    "training": (
        "from fedsim.engine.local import LocalGrid as C",
        "_answer",
        "a[1].kind == 'train' and a[1].content['config']['server-round'] == 3",
        "after",
    ),
    "journal, not yet checkpoint": ("import fedsim.checkpoint as C", "save", "a[1]['round'] == 3", "before"),
    "checkpoint, not yet in place": (
        "import os as C",
        "replace",
        "'state' in str(a[0]) and next(count) == 3",
        "before",
    ),
    "checkpoint, states not yet cleared": (
        "from fedsim.engine.states import States as C",
        "keep",
        "next(count) == 3",
        "before",
    ),
    "summary, folder not yet cleared": ("from fedsim.run_folder import RunFolder as C", "clear", "True", "before"),
}
"""Moment of death -> what is replaced, when it kills, and whether the call is made first."""

DRIVER = """
import itertools, os, signal, sys
count = itertools.count()
{place}
original = C.{name}
def deadly(*a, **k):
    dies = {when}
    if dies and "{order}" == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*a, **k)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
C.{name} = deadly
import fedsim.server_app
fedsim.server_app.write_report = fedsim.server_app.save_partition_figure = lambda folder: folder
from fedsim.simulation import simulate
from pathlib import Path
simulate(sys.argv[1], sys.argv[3:], Path(sys.argv[2]))
"""


@pytest.mark.slow
class TestDeath:
    @pytest.mark.parametrize("moment", DEATHS)
    def test_a_killed_driver(self, moment: str, runner: Runner) -> None:
        place, name, when, order = DEATHS[moment]
        code = DRIVER.format(place=place, name=name, when=when, order=order)
        path = runner.folder / "stopped"
        words = [sys.executable, "-c", code, str(runner.file), str(path), *METHODS["scaffold"]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert state_file(path).exists()
        resume(path)
        assert_same(path, runner.whole(*METHODS["scaffold"]))
        expected = {"checkpoint, states not yet cleared": 4, "summary, folder not yet cleared": NUM_ROUNDS + 1}
        assert first_rounds(path) == [0, expected.get(moment, 3)]


class TestCommand:
    def test_resume_and_its_mistakes(
        self, runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def command(*words: str) -> tuple[int, str, str]:
            capsys.readouterr()
            monkeypatch.setattr(sys, "argv", ["run_sim.py", *words])
            with pytest.raises(SystemExit) as stop:
                run_sim.main()
            return (int(stop.value.code or 0), *capsys.readouterr())

        stopped = runner.stopped(3, during="train", error=KeyboardInterrupt())
        assert f"go on with: python run_sim.py resume {stopped}" in capsys.readouterr().out
        code, _, err = command("resume", str(stopped), "--set", "seed=1")
        assert (code, "seed: 3 -> 1" in err) == (2, True)
        code, out, _ = command("resume", str(stopped))
        assert code == 0
        assert "goes on after round 2" in out
        assert out.splitlines()[-1] == str(stopped)
        code, out, _ = command("resume", str(stopped))
        assert (code, "nothing to resume" in out) == (0, True)
        code, _, err = command("resume", str(runner.folder))
        assert (code, "no run folder" in err) == (2, True)


def test_other_versions_are_said(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = runner.stopped(3)
    monkeypatch.setattr("fedsim.environment.metadata.version", lambda package: f"{package} 99")
    resume(stopped)
    note = json.loads((stopped / "summary.json").read_text())["notes"][-1]
    assert note.startswith("Resumed at round 3 with another fedsim (")
    assert "torch (" in note
    assert "-> torch 99)" in note
    assert note in (stopped / "log.txt").read_text()


def test_memories_are_replaced_and_not_edited(runner: Runner) -> None:
    """A round is handed over with references; what they refer to must stay as it was."""
    import copy

    for method, changes in METHODS.items():
        handed: list[tuple[Any, Any]] = []

        def callback(finished: Round, handed: list[tuple[Any, Any]] = handed) -> None:
            assert finished.kept is not None
            handed.append((finished.kept, copy.deepcopy(finished.kept)))

        scenario = Scenario.load(runner.file, changes)
        federation = build_federation(scenario)
        with LocalGrid(LocalApp(scenario, federation)) as grid:
            run_rounds(
                strategy_of(scenario, federation),
                grid,
                pack_arrays(initial_weights(scenario, federation)),
                num_rounds=4,
                callbacks=[callback],
                average=Average.of(scenario.server.average, 4, 6),
                keep_every=1,
            )
        assert len(handed) == 5
        for kept, copied in handed:
            assert same(kept.strategy, copied.strategy), method
            assert same(kept.average, copied.average), method


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_tables_of_a_killed_run_are_brought_up_to_its_checkpoint(runner: Runner) -> None:
    stopped = runner.stopped(3)
    complete = {name: pd.read_parquet(stopped / f"{name}.parquet") for name in ("clients", "rounds")}
    for name, table in complete.items():  # as a kill leaves them: some rounds behind
        table[table["round"] < 1].to_parquet(stopped / f"{name}.parquet", index=False)
    before = state_file(stopped).read_bytes(), (stopped / "checkpoint" / "rounds.journal").read_bytes()
    reached = bring_up(stopped)
    assert reached is not None
    for name, table in complete.items():
        expected = table[table["round"] <= reached].reset_index(drop=True)
        pd.testing.assert_frame_equal(pd.read_parquet(stopped / f"{name}.parquet"), expected, check_exact=True)
    assert (state_file(stopped).read_bytes(), (stopped / "checkpoint" / "rounds.journal").read_bytes()) == before
    with RunLock(stopped):
        assert bring_up(stopped) is None  # somebody is at it
    assert bring_up(runner.whole()) is None
