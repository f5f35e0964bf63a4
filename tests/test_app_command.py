"""`run_sim.py app`: any Flower app runs unchanged; mistakes in it are one message with the app's own traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import run_sim
from tests.engine.app_folders import APPS, own_imports, write_app

HOME = Path(__file__).resolve().parents[1]

STOCK = """
import sys, warnings
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from fedsim.engine.apps import find_app

app = find_app(sys.argv[1], sys.argv[3:])
server, client = app.load_server(), app.load_client()

class Configured(ClientApp):
    # run_simulation knows no run configuration, and lets no ClientApp leave another one behind.
    def __call__(self, message, context):
        context.run_config = dict(app.run_config)
        try:
            return client(message, context)
        finally:
            context.run_config = {}

outer = ServerApp()

@outer.main()
def main(grid, context):
    context.run_config = dict(app.run_config)
    server(grid, context)

run_simulation(outer, Configured(), int(sys.argv[2]), backend_config={"client_resources": {"num_cpus": 1}})
"""
"""Flower's own simulation of an app: its folder, the number of nodes, changes of its configuration."""


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, folder: Path, *words: str, nodes: int = 4) -> Done:
        """`run_sim.py app folder --nodes nodes words` in this process."""
        self._monkeypatch.setattr(sys, "argv", ["run_sim.py", "app", str(folder), "--nodes", str(nodes), *words])
        self._capsys.readouterr()
        code = 0
        with own_imports():
            try:
                run_sim.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        out, err = self._capsys.readouterr()
        return Done(code, out, err)

    def local(self, folder: Path, *words: str, nodes: int = 4) -> Done:
        return self(folder, "--backend", "local", *words, nodes=nodes)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Command(monkeypatch, capsys)


def output(path: Path) -> str:
    return f"output='{path}'"


def rounds(done: Done) -> list[dict[str, Any]]:
    """What the ServerApp of trouble_app printed."""
    return [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]


class TestRuns:
    def test_an_app_with_a_strategy_of_flower_s(self, command: Command) -> None:
        done = command.local(APPS / "numpy_app")
        assert done.code == 0, done.err
        assert done.out.startswith("accuracy 0.9")
        found = json.loads(Path("numpy_app.json").read_text())  # relative to where the user is
        assert list(found["train"]) == ["1", "2", "3"]
        losses = [record["loss"] for record in found["train"].values()]
        assert losses == sorted(losses, reverse=True)
        assert "tests/numpy-app 1.0.0: 4 nodes in this process" in done.err
        assert "24 messages answered in " in done.err
        assert ": 12 evaluate, 12 train\n" in done.err

    def test_an_app_with_a_loop_of_its_own(self, command: Command, tmp_path: Path) -> None:
        done = command.local(APPS / "torch_app", "--run-config", output(tmp_path / "found.json"))
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1] == "closed"
        assert "30 messages answered" in done.err
        replies = json.loads((tmp_path / "found.json").read_text())["replies"]
        first, second = replies[0], replies[4]
        assert first["answer"] == {
            "partition-id": 0,
            "num-partitions": 4,
            "echo": "one",
            "group": "0",
            "type": "query",
            "for-me": True,
            "has-id": True,
            "ttl": 600,
            "entered": 1,
        }
        assert second["answer"]["entered"] == 2
        assert second["answer"]["echo"] == "two"
        trained = [reply["metrics"] for reply in replies if reply["type"] == "train"]
        assert [(m["partition-id"], m["rounds"]) for m in trained] == [
            *((part, 1) for part in range(4)),
            *((part, 2) for part in (0, 2)),
            *((part, {0: 3, 1: 2, 2: 3, 3: 2}[part]) for part in range(4)),
        ]
        assert all(m["rounded"] == 1 for m in trained)
        assert all(reply["mods"] == ["counting"] for reply in replies)
        last = [reply for reply in replies if reply["type"] == "evaluate.personal"][-4:]
        assert [reply["messages"] for reply in last] == [8, 7, 8, 7]
        # A bias of its own must do something for a node, or the state is not what it was.
        assert any(reply["metrics"]["with"] != reply["metrics"]["without"] for reply in last)

    def test_the_number_of_nodes_and_the_configuration_reach_the_app(self, command: Command) -> None:
        done = command.local(APPS / "numpy_app", "--run-config", "num-server-rounds=1 lr=0.1", nodes=6)
        assert done.code == 0, done.err
        assert "12 messages answered" in done.err
        found = json.loads(Path("numpy_app.json").read_text())
        assert list(found["train"]) == ["1"]

    def test_a_strategy_of_ours_inside_an_app(self, command: Command, tmp_path: Path) -> None:
        """The app of the README: AdaFed in a ServerApp, clients that reply with weights, num-examples and loss."""
        server = """
            import json
            from flwr.app import Array, ArrayRecord
            from flwr.serverapp import ServerApp
            import numpy as np
            from strategies import AdaFed

            app = ServerApp()

            @app.main()
            def main(grid, context):
                strategy = AdaFed(gamma=1.0, fraction_train=1.0, seed=0)
                result = strategy.start(grid, ArrayRecord({"w": Array(np.zeros(3, np.float32))}), num_rounds=30)
                print(json.dumps(result.arrays["w"].numpy().tolist()))
            """
        client = """
            from flwr.app import Array
            import numpy as np

            @app.train()
            def train(message, context):
                w = message.content["arrays"]["w"].numpy()
                goal = np.array([1.0, 2.0, 3.0 + context.node_config["partition-id"]], np.float32)
                loss = float(((w - goal) ** 2).mean())
                arrays = ArrayRecord({"w": Array(w - 0.1 * (w - goal))})
                metrics = MetricRecord({"num-examples": 10, "loss": loss})
                return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

            @app.evaluate()
            def evaluate(message, context):
                return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
            """
        done = command.local(write_app(tmp_path / "ada", client=client, server=server), nodes=3)
        assert done.code == 0, done.err
        weights = json.loads(done.out)
        # All nodes want the first two; of the third each wants another, from 3 to 5.
        assert weights[:2] == pytest.approx([1.0, 2.0], abs=0.2)
        assert 3.0 < weights[2] < 5.0

    def test_an_app_of_the_older_kind(
        self, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = """
            import numpy as np
            from flwr.common import ndarrays_to_parameters
            from flwr.server import ServerAppComponents, ServerConfig
            from flwr.server.strategy import FedAvg
            from flwr.serverapp import ServerApp

            def server_fn(context):
                start = ndarrays_to_parameters([np.zeros(2)])
                return ServerAppComponents(
                    strategy=FedAvg(initial_parameters=start, min_available_clients=4),
                    config=ServerConfig(num_rounds=2),
                )

            app = ServerApp(server_fn=server_fn)
            """
        client = """
            from flwr.client import NumPyClient

            class Adds(NumPyClient):
                def fit(self, parameters, config):
                    return [parameter + 1 for parameter in parameters], 3, {}

                def evaluate(self, parameters, config):
                    return float(parameters[0].sum()), 3, {}

            app = ClientApp(lambda context: Adds().to_client())
            """
        done = command.local(write_app(tmp_path / "old", client=client, server=server))
        assert done.code == 0, done.err
        assert "round 2: 4.0" in caplog.text
        assert "16 messages answered" in done.err


class TestTrouble:
    def trouble(self, command: Command, which: str, *words: str) -> Done:
        return command.local(APPS / "trouble_app", "--run-config", f"trouble='{which}'", *words, nodes=3)

    def test_a_client_that_raises(self, command: Command) -> None:
        done = self.trouble(command, "client-raises")
        assert done.code == 0  # the ServerApp decides what to make of it
        assert [found["said"] for found in rounds(done)] == [{"1": 2, "2": 1, "3": 1}, {"1": 2, "2": 2, "3": 2}]
        (reason,) = rounds(done)[0]["reasons"]
        assert reason.startswith("<class 'ZeroDivisionError'>:<'division by zero'>\nTraceback")
        assert "in broken_step" in reason
        assert "4 messages answered" in done.err
        assert "2 messages failed, of node 1\n" in done.err
        assert "  node 1 (partition 0), 2 x train: ZeroDivisionError: division by zero\n" in done.err

    def test_clients_that_all_raise_are_a_run_that_failed(self, command: Command) -> None:
        done = command.local(APPS / "trouble_app", "--run-config", "trouble='client-raises' victims=9", nodes=3)
        assert done.code == 1
        assert "error: trouble_app.client_app:app: every message failed; the first, train of node 1:\n" in done.err
        assert done.err.count("Traceback") == 1
        assert done.err.endswith("ZeroDivisionError: division by zero\n")

    def test_a_serverapp_that_raises(self, command: Command) -> None:
        done = self.trouble(command, "server-raises")
        assert done.code == 1
        lines = done.err[done.err.index("error: ") :].splitlines()
        assert lines[0] == "error: trouble_app.server_app:app failed"
        assert lines[1] == "Traceback (most recent call last):"
        assert str(APPS / "trouble_app" / "trouble_app" / "server_app.py") in lines[2]
        assert lines[-1] == "KeyError: 'no-such-key'"
        assert "app_run.py" not in done.err

    def test_records_changed_by_a_client_stay_its_own(self, command: Command) -> None:
        assert [found["word"] for found in rounds(self.trouble(command, "changes-request"))] == ["sent", "sent"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--run-config", "lr=1"], 'error: --run-config: the app declares no key "lr"; '),
            (["--run-config", "trouble=none"], "strings need quotes"),
            (["--backend", "slurm"], "'slurm' is not one of 'ray', 'local'"),
            (["--workers", "0"], "--workers"),
            (["--gpus-per-worker", "-1"], "--gpus-per-worker"),
        ],
    )
    def test_mistakes_in_the_command(self, command: Command, words: list[str], said: str) -> None:
        done = command(APPS / "trouble_app", *words)
        assert done.code == 2
        assert said in done.err
        assert "Traceback" not in done.err

    def test_no_node_at_all(self, command: Command) -> None:
        assert command.local(APPS / "numpy_app", nodes=0).code == 2

    def test_no_app(self, command: Command, tmp_path: Path) -> None:
        done = command.local(tmp_path)
        assert done.code == 2
        assert done.err == f"error: {tmp_path / 'pyproject.toml'}: no such file; give the folder of a Flower app\n"

    def test_an_import_error_of_the_client_is_told_before_anything_starts(
        self, command: Command, tmp_path: Path
    ) -> None:
        folder = write_app(tmp_path / "app", client="raise OSError('no data')")
        done = command(folder)
        assert done.code == 2
        said = f"error: {folder / 'pyproject.toml'}, clientapp: little.client cannot be imported\n"
        assert done.err.startswith(said)
        assert done.err.endswith("OSError: no data\n")
        assert done.err.count("Traceback") == 1

    def test_a_serverapp_that_exits_says_how(self, command: Command, tmp_path: Path) -> None:
        server = "import sys\nfrom flwr.serverapp import ServerApp\napp = ServerApp()\n"
        server += "@app.main()\ndef main(grid, context):\n    sys.exit(7)\n"
        done = command.local(write_app(tmp_path / "app", server=server))
        assert done.code == 7
        assert "no messages were sent" in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestRay:
    @pytest.mark.parametrize("name", ["numpy_app", "torch_app"])
    def test_workers_give_the_bits_of_this_process(self, command: Command, tmp_path: Path, name: str) -> None:
        found = []
        for number, words in enumerate((["--backend", "local"], ["--workers", "1"], ["--workers", "3"])):
            path = tmp_path / f"{number}.json"
            done = command(APPS / name, "--run-config", output(path), *words)
            assert done.code == 0, done.err
            found.append(path.read_bytes())
        assert found[0] == found[1] == found[2]

    def test_a_client_that_hangs_is_left_out(self, command: Command) -> None:
        words = ["--workers", "3", "--run-config", "trouble='client-hangs' seconds=60.0 timeout=2.5"]
        done = command(APPS / "trouble_app", *words, nodes=3)
        assert done.code == 0, done.err
        first, second = (found["said"] for found in rounds(done))
        assert first == {"2": 1, "3": 1}
        assert "1" not in second
        assert "  node 1 (partition 0), 2 x train: no answer" in done.err

    def test_a_client_that_ends_its_process(self, command: Command) -> None:
        done = command(APPS / "trouble_app", "--workers", "3", "--run-config", "trouble='client-dies'", nodes=3)
        assert done.code == 0, done.err
        assert [found["said"] for found in rounds(done)] == [{"1": 0, "2": 1, "3": 1}, {"1": 0, "2": 2, "3": 2}]
        assert "  node 1 (partition 0), 2 x train: " in done.err

    def test_an_app_with_a_package_named_as_ours(self, command: Command, tmp_path: Path) -> None:
        client = """
            @app.train()
            def train(message, context):
                return Message(RecordDict({"m": MetricRecord({"a": 1})}), reply_to=message)
            """
        server = """
            from flwr.app import Message, RecordDict
            from flwr.serverapp import ServerApp
            app = ServerApp()

            @app.main()
            def main(grid, context):
                sent = [Message(RecordDict(), dst_node_id=n, message_type="train") for n in grid.get_node_ids()]
                print(sum(reply.content["m"]["a"] for reply in grid.send_and_receive(sent)))
            """
        folder = write_app(tmp_path / "app", client=client, server=server, name="clients")
        done = command(folder, "--workers", "2")
        assert (done.code, done.out) == (0, "4\n"), done.err


@pytest.fixture(scope="class")
def stock_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Flower neither calls home nor looks at the user's settings."""
    own = {
        "FLWR_HOME": str(tmp_path_factory.mktemp("flwr")),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": str(HOME),
        "OMP_NUM_THREADS": "1",
    }
    # Without the last one Flower joins whatever Ray somebody has on this machine.
    return {**os.environ, **own, "RAY_ADDRESS": "local"}


@pytest.mark.slow
class TestAgainstFlower:
    @pytest.mark.parametrize("name", ["numpy_app", "torch_app"])
    def test_the_same_bits_as_flower_s_simulation(
        self, command: Command, tmp_path: Path, stock_environment: dict[str, str], name: str
    ) -> None:
        stock, ours = tmp_path / "stock.json", tmp_path / "ours.json"
        words = [sys.executable, "-c", STOCK, str(APPS / name), "4", output(stock)]
        done = subprocess.run(
            words, env=stock_environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert stock.exists(), done.stdout + done.stderr
        assert command.local(APPS / name, "--run-config", output(ours)).code == 0
        assert ours.read_bytes() == stock.read_bytes()
