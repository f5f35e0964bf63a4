"""The grid that somebody else's ServerApp is given: messages pushed and pulled, and what it tells at the end."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MetricRecord

from fedsim.engine import flower
from fedsim.engine.app_grid import AppGrid, Tally
from fedsim.engine.apps import FlowerClients, find_app
from fedsim.engine.local import LocalGrid
from fedsim.engine.records import sealed
from tests.engine.app_clients import CLIENT, answers, asked, content, messages
from tests.engine.app_folders import write_app

pytestmark = pytest.mark.usefixtures("own_app_imports")


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
