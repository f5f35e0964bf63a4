"""A ServerApp and its ClientApp see on our grids what they see on Flower's."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.engine import flower, open_grid
from fedsim.engine.app_grid import AppGrid, Tally
from fedsim.engine.apps import FlowerApp, FlowerClients, find_app
from fedsim.engine.base import BlockGrid
from fedsim.engine.local import LocalGrid
from fedsim.engine.records import sealed
from fedsim.errors import EngineError
from fedsim.settings import EngineSettings
from tests.engine.app_folders import own_imports, write_app

BACKENDS = ["local", pytest.param("ray", marks=pytest.mark.slow)]

CLIENT = """
import os, time

def outer(message, context, call_next):
    message.content["config"]["trail"] = message.content["config"].get("trail", "") + "outer "
    reply = call_next(message, context)
    reply.content["answer"]["trail"] = reply.content["answer"]["trail"] + " outer"
    return reply

def inner(message, context, call_next):
    message.content["config"]["trail"] = message.content["config"].get("trail", "") + "inner "
    reply = call_next(message, context)
    reply.content["answer"]["trail"] = reply.content["answer"]["trail"] + " inner"
    return reply

def own(message, context, call_next):
    message.content["config"]["trail"] += "own "
    return call_next(message, context)

app = ClientApp(mods=[outer, inner])

@app.lifespan()
def lifespan(context):
    log = context.state.get("lifespan", ConfigRecord({"log": ""}))
    log["log"] = log["log"] + "("
    context.state["lifespan"] = log
    yield
    context.state["lifespan"]["log"] = context.state["lifespan"]["log"] + ")"

def answer(name, message, context):
    count = context.state.get("count", MetricRecord({"asked": 0}))
    count["asked"] += 1
    context.state["count"] = count
    config = message.content["config"]
    if config.get("say"):
        print(config["say"])
    if config.get("sleep"):
        time.sleep(config["sleep"])
    if config.get("victim") == context.node_id:
        raise LookupError("nobody home")
    m = message.metadata
    return Message(RecordDict({"answer": ConfigRecord({
        "function": name, "trail": config["trail"], "asked": count["asked"], "word": config["word"],
        "lifespan": context.state["lifespan"]["log"], "pid": os.getpid(), "cwd": os.getcwd(),
        "run": m.run_id, "id": m.message_id, "src": m.src_node_id, "dst": m.dst_node_id, "group": m.group_id,
        "ttl": m.ttl, "created": m.created_at, "type": m.message_type, "reply": m.reply_to_message_id,
        "delivered": m.delivered_at, "node": context.node_id, "context-run": context.run_id,
        "node-config": [f"{k}={v}" for k, v in context.node_config.items()],
        "run-config": [f"{k}={v!r}" for k, v in context.run_config.items()],
        "keys": list(message.content)})}), reply_to=message)

@app.train(mods=[own])
def train(message, context):
    return answer("train", message, context)

@app.train("foo")
def train_foo(message, context):
    return answer("train.foo", message, context)

@app.evaluate()
def evaluate(message, context):
    return answer("evaluate", message, context)

@app.query("bar")
def query_bar(message, context):
    return answer("query.bar", message, context)
"""

Open = Callable[..., AppGrid]


def opened(folder: Path, backend: str, num_nodes: int = 5, client: str = CLIENT) -> tuple[BlockGrid, FlowerApp]:
    app = find_app(write_app(folder, client=client, config="lr = 0.1\nname = 'x'"), ["lr=0.5"])
    return open_grid(
        FlowerClients(app, num_nodes), EngineSettings.model_validate({"backend": backend, "workers": 2})
    ), app


def told(inner: BlockGrid, app: FlowerApp) -> AppGrid:
    return AppGrid(inner, flower.described_run(app.name, app.version, app.overrides))


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with own_imports():
        yield


@pytest.fixture(scope="module")
def two_workers(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BlockGrid, FlowerApp]]:
    """One Ray grid for all tests: a worker takes seconds to start."""
    inner, app = opened(tmp_path_factory.mktemp("app") / "app", "ray")
    yield inner, app
    inner.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Open]:
    """Open grids in this process on clients of any code."""
    with ExitStack() as stack:

        def made(num_nodes: int, client: str) -> AppGrid:
            inner, app = opened(tmp_path / "app", "local", num_nodes, client)
            stack.enter_context(inner)
            return told(inner, app)

        yield made


@pytest.fixture(params=BACKENDS)
def grid(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AppGrid]:
    """Five nodes of the code above that keep nothing yet, in this process or on Ray."""
    if request.param == "ray":
        inner, app = request.getfixturevalue("two_workers")
        inner.states.restore({})
        yield told(inner, app)
        return
    inner, app = opened(tmp_path / "app", "local")
    with inner:
        yield told(inner, app)


def content(word: str = "", **settings: Any) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"word": word, **settings})})


def messages(nodes: Sequence[int], kind: str = "train", word: str = "", **settings: Any) -> list[Message]:
    shared = content(word, **settings)
    return [Message(shared, dst_node_id=node, message_type=kind) for node in nodes]


def answers(replies: Sequence[Message]) -> list[dict[str, Any]]:
    return [dict(reply.content["answer"]) for reply in replies]


def asked(grid: AppGrid, nodes: Sequence[int], kind: str = "train") -> list[int]:
    return [answer["asked"] for answer in answers(grid.send_and_receive(messages(nodes, kind)))]


class TestWhatAClientSees:
    def test_metadata(self, grid: AppGrid) -> None:
        shared = content("w")
        sent = [
            Message(shared, dst_node_id=node, message_type="evaluate", group_id=f"g{node}", ttl=50.0 + node)
            for node in (4, 2, 5)
        ]
        for message, seen in zip(sent, answers(grid.send_and_receive(sent)), strict=True):
            letter = message.metadata
            assert letter.message_id
            assert seen["id"] == letter.message_id
            assert (seen["src"], seen["dst"]) == (letter.src_node_id, letter.dst_node_id)
            assert seen["node"] == letter.dst_node_id
            assert (seen["group"], seen["ttl"], seen["created"]) == (letter.group_id, letter.ttl, letter.created_at)
            assert (seen["type"], seen["reply"]) == ("evaluate", "")
            assert seen["run"] == seen["context-run"] == letter.run_id == grid.run.run_id
            assert seen["delivered"]
            assert seen["keys"] == ["config"]

    def test_context(self, grid: AppGrid) -> None:
        for node, seen in zip((5, 1), answers(grid.send_and_receive(messages([5, 1]))), strict=True):
            assert seen["node-config"] == [f"partition-id={node - 1}", "num-partitions=5"]
            assert seen["run-config"] == ["lr=0.5", "name='x'"]
            assert seen["cwd"] == str(Path.cwd())

    def test_mods_of_the_app_go_around_those_of_the_function(self, grid: AppGrid) -> None:
        (trained,) = answers(grid.send_and_receive(messages([1])))
        assert trained["trail"] == "outer inner own  inner outer"
        (evaluated,) = answers(grid.send_and_receive(messages([1], "evaluate")))
        assert evaluated["trail"] == "outer inner  inner outer"

    @pytest.mark.parametrize("kind", ["train", "train.foo", "evaluate", "query.bar"])
    def test_the_function_of_the_type_answers(self, grid: AppGrid, kind: str) -> None:
        (reply,) = grid.send_and_receive(messages([3], kind))
        assert reply.content["answer"]["function"] == kind
        assert reply.metadata.message_type == kind

    def test_a_type_without_a_function_is_an_error_reply(self, grid: AppGrid) -> None:
        (reply,) = grid.send_and_receive(messages([3], "query"))
        assert reply.error.code == 2
        assert "No query function registered with name 'default'" in str(reply.error.reason)

    def test_records_are_each_client_s_own_and_the_server_keeps_its(self, grid: AppGrid) -> None:
        shared = content("same")
        sent = [Message(shared, dst_node_id=node, message_type="train") for node in (1, 2, 3, 1)]
        trails = [answer["trail"] for answer in answers(grid.send_and_receive(sent))]
        assert trails == ["outer inner own  inner outer"] * 4
        assert dict(shared["config"]) == {"word": "same"}

    def test_different_contents(self, grid: AppGrid) -> None:
        sent = [Message(content(f"to {node}"), dst_node_id=node, message_type="train") for node in (2, 5, 1)]
        assert [answer["word"] for answer in answers(grid.send_and_receive(sent))] == ["to 2", "to 5", "to 1"]


class TestState:
    def test_it_lives_through_messages_of_all_types_node_by_node(self, grid: AppGrid) -> None:
        assert asked(grid, [1, 2, 3, 4, 5]) == [1] * 5
        assert asked(grid, [2, 4], "evaluate") == [2, 2]
        assert asked(grid, [2, 3], "query.bar") == [3, 2]
        assert asked(grid, [5, 4, 3, 2, 1], "train.foo") == [2, 3, 3, 4, 2]

    def test_several_messages_to_one_node_are_answered_in_their_order(self, grid: AppGrid) -> None:
        sent = [Message(content(w), dst_node_id=n, message_type="train") for n, w in ((1, "a"), (2, "b"), (1, "c"))]
        sent += messages([1, 1], "evaluate", "d")
        found = answers(grid.send_and_receive(sent))
        assert [(a["dst"], a["word"], a["asked"]) for a in found] == [
            (1, "a", 1),
            (2, "b", 1),
            (1, "c", 2),
            (1, "d", 3),
            (1, "d", 4),
        ]

    def test_a_client_that_raises_keeps_what_it_had(self, grid: AppGrid) -> None:
        assert asked(grid, [1, 2, 3]) == [1, 1, 1]
        replies = grid.send_and_receive(messages([1, 2, 3], victim=2))
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert asked(grid, [1, 2, 3]) == [3, 2, 3]

    def test_a_lifespan_is_entered_and_left_around_each_message(self, grid: AppGrid) -> None:
        grid.send_and_receive(messages([2]))
        grid.send_and_receive(messages([2], "evaluate"))
        (third,) = answers(grid.send_and_receive(messages([2], "query.bar")))
        assert third["lifespan"] == "()()("

    def test_changing_a_reply_changes_nothing_that_a_client_keeps(self, make: Open) -> None:
        grid = make(
            1,
            """
            @app.train()
            def train(message, context):
                if "mine" not in context.state:
                    context.state["mine"] = MetricRecord({"a": 1})
                return Message(RecordDict({"mine": context.state["mine"]}), reply_to=message)
            """,
        )
        (reply,) = grid.send_and_receive(messages([1]))
        reply.content["mine"]["a"] = 99
        (again,) = grid.send_and_receive(messages([1]))
        assert again.content["mine"]["a"] == 1


class TestMods:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_those_of_flower(self, make: Open, caplog: pytest.LogCaptureFixture) -> None:
        """They look at sizes, and clip the update to a norm that the server sends."""
        grid = make(
            2,
            """
            from flwr.app import Array
            from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod, message_size_mod
            import numpy as np

            app = ClientApp(mods=[message_size_mod, arrays_size_mod, fixedclipping_mod])

            @app.train()
            def train(message, context):
                arrays = ArrayRecord({"w": Array(np.full(4, 10.0))})
                reply = Message(RecordDict({"arrays": arrays}), reply_to=message)
                assert reply.content.object_id  # computed: Flower now keeps views of the bytes
                return reply
            """,
        )
        records = RecordDict(
            {"arrays": ArrayRecord({"w": Array(np.zeros(4))}), "config": ConfigRecord({"clipping_norm": 1.0})}
        )
        with caplog.at_level("INFO"):
            replies = grid.send_and_receive([Message(records, dst_node_id=n, message_type="train") for n in (1, 2)])
        assert [reply.error.reason for reply in replies if reply.has_error()] == []
        for reply in replies:
            np.testing.assert_allclose(reply.content["arrays"]["w"].numpy(), np.full(4, 0.5))
            pickle.dumps(reply.content)


class TestErrors:
    def test_the_code_and_reason_are_flower_s_with_the_app_s_traceback(self, grid: AppGrid) -> None:
        _, reply = grid.send_and_receive(messages([1, 2], victim=2))
        assert reply.error.code == 2
        said = str(reply.error.reason).splitlines()
        assert said[0] == "<class 'LookupError'>:<'nobody home'>"
        assert said[1] == "Traceback (most recent call last):"
        assert "client.py" in said[2]
        assert said[-1] == "LookupError: nobody home"
        assert "fedsim" not in "".join(said)
        assert reply.metadata.src_node_id == 2

    @pytest.mark.parametrize(
        ("body", "code", "said"),
        [
            ("return Message(Error(code=6, reason='not today'), reply_to=message)", 6, "not today"),
            ("return Message(Error(code=77), reply_to=message)", 77, ""),
            ("import sys; sys.exit(4)", 2, "SystemExit: 4"),
            ("return None", 0, "a ClientApp returns a Message, got NoneType"),
            ("return message", 0, "its reply answers another message"),
            ("return Message(RecordDict(), dst_node_id=1, message_type='train')", 0, "answers another message"),
            (
                "context.run_config['lr'] = 3.0; return Message(RecordDict(), reply_to=message)",
                0,
                "cannot be modified",
            ),
            (
                "context.state = 3; return Message(RecordDict(), reply_to=message)",
                0,
                "context.state cannot be kept",
            ),
        ],
    )
    def test_a_client_that_does_what_it_must_not(self, make: Open, body: str, code: int, said: str) -> None:
        grid = make(2, f"@app.train()\ndef train(message, context):\n    {body}\n")
        for _ in range(2):
            first, second = grid.send_and_receive(messages([1, 2]))
            assert first.error.code == second.error.code == code
            assert said in str(first.error.reason)
            assert first.metadata.src_node_id == 1

    @pytest.mark.parametrize("node", [0, 6, -3])
    def test_a_message_to_nobody_is_refused(self, grid: AppGrid, node: int) -> None:
        with pytest.raises(EngineError, match=f"node {node}: there are nodes 1 to 5"):
            grid.push_messages(messages([1, node]))

    def test_what_flower_would_not_send_is_not_sent(self, grid: AppGrid) -> None:
        (sent,) = messages([1])
        (reply,) = grid.send_and_receive([sent])
        with pytest.raises(ValueError, match="Invalid message"):
            grid.send_and_receive([reply])
        with pytest.raises(ValueError, match="Invalid message"):
            grid.push_messages([Message(content(), dst_node_id=1, message_type="train", ttl=-1.0)])


class TestTheGrid:
    def test_it_tells_its_run_and_nodes(self, grid: AppGrid) -> None:
        assert list(grid.get_node_ids()) == [1, 2, 3, 4, 5]
        assert [node.node_id for node in grid.get_nodes()] == [1, 2, 3, 4, 5]
        run = grid.run
        assert (run.fab_id, run.fab_version, run.override_config) == ("me/little", "0.1.0", {"lr": 0.5})
        run.fab_id = "changed"
        assert grid.run.fab_id == "me/little"
        grid.set_run(run)
        assert grid.run.fab_id == "changed"

    def test_create_message(self, grid: AppGrid) -> None:
        (reply,) = grid.send_and_receive([grid.create_message(content("w"), "train", 3, "g", 40.0)])
        seen = reply.content["answer"]
        assert (seen["dst"], seen["group"], seen["ttl"], seen["word"]) == (3, "g", 40.0, "w")

    def test_a_message_sent_twice_is_two_messages(self, grid: AppGrid) -> None:
        sent = messages([1, 2])
        first = [answer["id"] for answer in answers(grid.send_and_receive(sent))]
        second = [answer["id"] for answer in answers(grid.send_and_receive(sent))]
        assert len({*first, *second}) == 4

    def test_push_and_pull(self, grid: AppGrid) -> None:
        sent = [Message(content(str(node)), dst_node_id=node, message_type="train") for node in (3, 1, 5)]
        ids = grid.push_messages(sent)
        assert len(set(ids)) == 3
        left, found = set(ids), {}
        while left:
            for reply in grid.pull_messages(left):
                found[reply.metadata.reply_to_message_id] = reply
                left.discard(reply.metadata.reply_to_message_id)
            time.sleep(0.01)
        assert [found[id_].content["answer"]["dst"] for id_ in ids] == [3, 1, 5]
        assert list(grid.pull_messages(ids)) == []

    def test_what_is_changed_after_pushing_is_not_what_a_node_gets(self, grid: AppGrid) -> None:
        records = content("as sent", sleep=0.2)
        sent = [Message(records, dst_node_id=node, message_type="train") for node in (1, 2, 3, 4, 5)]
        left = set(grid.push_messages(sent))
        records["config"]["word"] = "changed"
        words = []
        while left:
            for reply in grid.pull_messages(left):
                words.append(reply.content["answer"]["word"])
                left.discard(reply.metadata.reply_to_message_id)
            time.sleep(0.01)
        assert words == ["as sent"] * 5

    def test_what_is_pushed_comes_back_node_by_node(self, grid: AppGrid) -> None:
        """One content for all: who is done need not wait for who is not."""
        shared = content(sleep=0.3)
        ids = grid.push_messages([Message(shared, dst_node_id=n, message_type="train") for n in (1, 2, 3, 4, 5)])
        came: list[int] = []
        left = set(ids)
        while left:
            replies = grid.pull_messages(left)
            left -= {reply.metadata.reply_to_message_id for reply in replies}
            came += [len(replies)] if replies else []
            time.sleep(0.01)
        assert sum(came) == 5
        assert len(came) > 1 or isinstance(grid._inner, LocalGrid)

    def test_what_clients_print_is_printed(self, grid: AppGrid, capsys: pytest.CaptureFixture[str]) -> None:
        (reply,) = grid.send_and_receive(messages([3], say="hello\nthere"))
        said = capsys.readouterr().out
        assert said in ("hello\nthere\n", "[node 3] hello\n[node 3] there\n")
        assert set(reply.content) == {"answer"}
        (failed,) = grid.send_and_receive(messages([3], say="almost", victim=3))
        assert "almost" in capsys.readouterr().out + str(failed.error.reason)

    def test_several_threads_may_ask(self, grid: AppGrid) -> None:
        found: dict[int, list[int]] = {}

        def ask(node: int) -> None:
            found[node] = [asked(grid, [node])[0] for _ in range(3)]

        threads = [threading.Thread(target=ask, args=(node,)) for node in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {node: [1, 2, 3] for node in range(1, 6)}

    def test_replies_are_ordinary_messages(self, grid: AppGrid) -> None:
        (sent,) = messages([2])
        (reply,) = grid.send_and_receive([sent])
        assert reply.metadata.reply_to_message_id == sent.metadata.message_id
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (2, sent.metadata.src_node_id)
        assert reply.has_content()
        assert not reply.has_error()
        assert 0 < reply.metadata.ttl <= sent.metadata.ttl
        reply.content["more"] = MetricRecord({"a": 1})
        assert set(reply.content) == {"answer", "more"}


class TestTally:
    def test_it_counts_by_type_and_names_nodes(self, grid: AppGrid) -> None:
        grid.send_and_receive(messages([1, 2, 3]))
        grid.send_and_receive(messages([1, 2], "evaluate"))
        grid.send_and_receive(messages([2, 3], victim=2))
        grid.send_and_receive(messages([2], victim=2))
        grid.push_messages(messages([4, 5]))
        first, waiting, second, third = grid.tally.lines()
        assert first.startswith("6 messages answered in ")
        assert first.endswith(": 2 evaluate, 4 train")
        assert waiting == "2 not answered yet or not pulled, of nodes 4, 5"
        assert second == "2 messages failed, of node 2"
        assert third == "  node 2 (partition 1), 2 x train: LookupError: nobody home"
        assert not grid.tally.fruitless

    def test_many_nodes_are_not_all_listed(self) -> None:
        tally = Tally()
        for node in range(12, 0, -1):
            tally.failure(node, "train", "Traceback:\n  ...\nboom\n")
        assert tally.first == (12, "train", "Traceback:\n  ...\nboom\n")
        assert tally.fruitless
        lines = tally.lines()
        assert lines[1] == "12 messages failed, of nodes 1, 2, 3, 4, 5, 6, 7, 8, ... (12 in all)"
        assert lines[2] == "  node 1 (partition 0), 1 x train: boom"
        assert lines[-1] == "  ... and 9 more nodes"
        assert len(lines) == 6

    def test_nothing_sent_is_not_fruitless(self) -> None:
        assert not Tally().fruitless
        assert Tally().lines() == ["no messages were sent"]


class FakeDesk:
    """Notes whose turn it was."""

    def __init__(self) -> None:
        self.turns: list[int] = []

    def rows(self, width: int) -> Any:
        raise AssertionError(f"answers are records, nobody needs {width} numbers")

    def turn_to(self, first: int, count: int = 1) -> None:
        assert count == 1
        self.turns.append(first)


def test_clients_travel_without_what_they_have_loaded(tmp_path: Path) -> None:
    """Whoever needs the ClientApp imports it: an app's functions need not be picklable."""
    clients, desk = FlowerClients(find_app(write_app(tmp_path, client=CLIENT)), 3), FakeDesk()
    sent = messages([1, 3])
    flower.set_identity()
    for message in sent:
        flower.new_id(message)
    request = sealed(sent[0].content, sent)
    block, kept = clients.run("train", request, [[0], [2]], [{}, {}], desk)
    assert [block.content(row)["answer"]["asked"] for row in (0, 1)] == [1, 1]
    assert desk.turns == [0, 1]  # should one hang, it is named
    again = pickle.loads(pickle.dumps(clients))
    block, _ = again.run("train", request, [[2]], kept[1:], desk)
    assert block.clients == (2,)
    assert block.content(0)["answer"]["asked"] == 2
