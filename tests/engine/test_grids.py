"""Both grids keep the promises of Flower's Grid; faults of clients and workers are named and end nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim import wire
from fedsim.engine.base import BlockGrid
from fedsim.engine.local import LocalGrid
from fedsim.errors import EngineError
from fedsim.parameters import Layout
from fedsim.settings import EngineSettings
from tests.engine.fakes import FakeApp, content

BACKENDS = ["local", pytest.param("ray", marks=pytest.mark.slow)]
LAYOUT = Layout(("w",), ((2,),))
THETA = np.zeros(2, np.float32)


def ray_grid(app: FakeApp, workers: int = 3) -> BlockGrid:
    from fedsim.engine.grid import RayGrid

    return RayGrid(app, EngineSettings(workers=workers))


@pytest.fixture(scope="module")
def three_workers(ray_cluster: None) -> Iterator[BlockGrid]:
    """One Ray grid for all tests that leave its workers alive: a worker takes seconds to start."""
    grid = ray_grid(fake())
    yield grid
    grid.close()


@pytest.fixture(params=BACKENDS)
def grid(request: pytest.FixtureRequest) -> BlockGrid:
    if request.param == "ray":
        found: BlockGrid = request.getfixturevalue("three_workers")
        return found
    return LocalGrid(fake())


def fake() -> FakeApp:
    """Seven clients that keep a state; 0 and 1, 2 and 3, 4 and 5 belong together."""
    return FakeApp(7, stateful=True, group=2)


def messages(nodes: list[int], records: RecordDict | None = None, kind: str = "train") -> list[Message]:
    shared = content() if records is None else records
    return [Message(shared, dst_node_id=node, message_type=kind) for node in nodes]


def clients_of(replies: list[Message]) -> list[int]:
    return [wire.read(reply).client for reply in replies]


def pulled(grid: BlockGrid, ids: list[str]) -> list[Message]:
    """Ask for replies until all are there."""
    found: list[Message] = []
    began = time.monotonic()
    while len(found) < len(ids) and time.monotonic() - began < 60:
        found += grid.pull_messages(ids)
        time.sleep(0.01)
    return found


def counts(grid: BlockGrid) -> dict[int, int]:
    """How often each client has trained, by its own count."""
    found = {client: int(state["count"][0]) for client, state in grid.client_states().items()}
    return dict.fromkeys(range(7), 0) | found


class TestBothGrids:
    def test_it_is_a_flower_grid_with_stable_nodes(self, grid: BlockGrid) -> None:
        assert isinstance(grid, Grid)
        assert grid.get_node_ids() == [1, 2, 3, 4, 5, 6, 7]
        assert grid.run.run_id

    def test_replies_keep_the_order_of_the_requests(self, grid: BlockGrid) -> None:
        for nodes in ([1, 2, 3, 4, 5, 6, 7], [7, 3, 5, 1], [2], []):
            sent = messages(nodes)
            replies = grid.send_and_receive(sent)
            assert [reply.metadata.src_node_id for reply in replies] == nodes
            assert clients_of(replies) == [node - 1 for node in nodes]
            assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in sent]
            assert all(not reply.has_error() for reply in replies)
            updates = [wire.read_update(reply, THETA, LAYOUT)[0] for reply in replies]
            assert updates == [node - 1 for node in nodes]

    def test_replies_are_ordinary_records(self, grid: BlockGrid) -> None:
        (reply,) = grid.send_and_receive(messages([4], content(10.0)))
        assert reply.content.metric_records["metrics"]["client"] == 3
        np.testing.assert_array_equal(
            wire.unpack_arrays(reply.content.array_records["update"])["update"], [13.0, 13.0]
        )

    def test_an_evaluation_answers_without_arrays(self, grid: BlockGrid) -> None:
        replies = grid.send_and_receive(messages([3, 1], kind="evaluate"))
        assert clients_of(replies) == [2, 0]
        assert not replies[0].content.array_records
        assert replies[0].metadata.message_type == "evaluate"

    def test_different_contents_in_one_call(self, grid: BlockGrid) -> None:
        first, second = content(100.0), content(200.0)
        sent = [*messages([1, 5], first), *messages([2, 5], second), *messages([3], first)]
        sent = [sent[i] for i in (2, 0, 4, 3, 1)]
        replies = grid.send_and_receive(sent)
        assert clients_of(replies) == [1, 0, 2, 4, 4]
        updates = [float(wire.read_update(reply, THETA, LAYOUT)[0]) for reply in replies]
        assert updates == [201.0, 100.0, 102.0, 204.0, 104.0]

    def test_training_and_evaluation_in_one_call(self, grid: BlockGrid) -> None:
        shared = content()
        sent = [*messages([2], shared, "train"), *messages([2], shared, "evaluate")]
        trained, evaluated = grid.send_and_receive(sent)
        assert trained.content.array_records
        assert not evaluated.content.array_records

    def test_several_messages_to_one_node_are_answered_one_after_the_other(self, grid: BlockGrid) -> None:
        before = counts(grid)
        replies = grid.send_and_receive(messages([2, 4, 2, 2, 4]))
        assert clients_of(replies) == [1, 3, 1, 1, 3]
        gained = [
            wire.read(r).numbers["count"] - before[c] for r, c in zip(replies, clients_of(replies), strict=True)
        ]
        assert gained == [1, 1, 2, 3, 2]

    def test_push_and_pull(self, grid: BlockGrid) -> None:
        sent = messages([3, 1, 2])
        ids = list(grid.push_messages(sent))
        assert len(set(ids)) == 3
        assert clients_of(pulled(grid, [ids[1]])) == [0]
        assert clients_of(pulled(grid, [ids[0], ids[2]])) == [2, 1]
        assert list(grid.pull_messages(ids)) == []  # each once
        assert list(grid.pull_messages([*ids, "unknown"])) == []

    def test_create_message_makes_one_that_is_answered(self, grid: BlockGrid) -> None:
        message = grid.create_message(content(), "train", 2, "group")
        assert clients_of(grid.send_and_receive([message])) == [1]

    @pytest.mark.parametrize("node", [0, -1, 8, 2**40])
    def test_a_message_to_nobody_is_refused(self, grid: BlockGrid, node: int) -> None:
        with pytest.raises(EngineError, match=f"node {node}: there are nodes 1 to 7"):
            grid.send_and_receive(messages([1, node]))

    def test_a_client_that_fails_is_named_and_the_others_are_unharmed(self, grid: BlockGrid) -> None:
        replies = grid.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7], content(order="fail", victim=4)))
        assert [reply.has_error() for reply in replies] == [False] * 4 + [True] + [False] * 2
        assert wire.read(replies[4]).client == 4
        assert wire.read(replies[4]).error == "RuntimeError: no luck"
        assert [float(wire.read_update(replies[i], THETA, LAYOUT)[0]) for i in (3, 5)] == [3.0, 5.0]
        assert clients_of(grid.send_and_receive(messages([5]))) == [4]

    def test_state_is_kept_per_client_through_partial_participation(self, grid: BlockGrid) -> None:
        """Which worker has a client changes with who else takes part; what the client keeps goes with it."""
        expected = counts(grid)
        for nodes in ([1, 2, 3, 4, 5, 6, 7], [7, 6], [1, 3, 5, 7], [2], [7, 5, 3, 1], [4, 1], [6, 2, 7]):
            replies = grid.send_and_receive(messages(nodes))
            for node, reply in zip(nodes, replies, strict=True):
                expected[node - 1] += 1
                assert wire.read(reply).numbers["count"] == expected[node - 1]
        assert counts(grid) == expected

    def test_an_evaluation_leaves_the_state_alone(self, grid: BlockGrid) -> None:
        grid.send_and_receive(messages([1, 2]))
        before = counts(grid)
        grid.send_and_receive(messages([1, 2, 3], kind="evaluate"))
        assert counts(grid) == before
        (reply, other) = grid.send_and_receive(messages([2, 3]))
        assert wire.read(reply).numbers["count"] == before[1] + 1
        assert wire.read(other).numbers["count"] == before[2] + 1

    def test_clients_that_belong_together_stay_together(self, grid: BlockGrid) -> None:
        replies = grid.send_and_receive(messages([1, 2, 3, 4, 5, 6]))
        pids = [wire.read(reply).numbers["pid"] for reply in replies]
        assert pids[0::2] == pids[1::2]

    def test_a_whole_block_that_fails_is_an_engine_error(self, grid: BlockGrid) -> None:
        with pytest.raises(EngineError, match="the whole block failed"):
            grid.send_and_receive(messages([1, 2], content(order="crash", victim=1)))


@pytest.mark.slow
class TestRayGrid:
    def test_all_workers_take_part_and_stay_the_same(self, three_workers: BlockGrid) -> None:
        rounds = [three_workers.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7])) for _ in range(3)]
        places = [[wire.read(reply).numbers["pid"] for reply in replies] for replies in rounds]
        assert places[0] == places[1] == places[2]
        assert len(set(places[0])) == 3
        assert os.getpid() not in places[0]

    def test_a_client_with_no_answer_in_time_is_an_error_reply(self, three_workers: BlockGrid) -> None:
        began = time.monotonic()
        records = content(order="sleep", victim=0, seconds=600)
        replies = three_workers.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7], records), timeout=2.0)
        assert time.monotonic() - began < 300
        late = {wire.read(reply).client for reply in replies if reply.has_error()}
        assert {0, 1} <= late
        assert len(late) < 7  # the other workers' clients are unharmed
        assert all("no answer within 2 s" in str(wire.read(r).error) for r in replies if r.has_error())
        assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3, 4, 5, 6, 7]
        assert all(not reply.has_error() for reply in three_workers.send_and_receive(messages([1, 2, 7])))

    def test_after_a_crash_every_client_is_as_it_was(self, three_workers: BlockGrid) -> None:
        before = counts(three_workers)
        with pytest.raises(EngineError, match="the whole block failed"):
            three_workers.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7], content(order="crash", victim=6)))
        assert counts(three_workers) == before
        three_workers.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7]))
        assert counts(three_workers) == {client: count + 1 for client, count in before.items()}

    def test_the_timeout_is_for_all_workers_together(self, three_workers: BlockGrid) -> None:
        """Five seconds of patience are not fifteen because there are three workers."""
        records = content(order="sleep-all", seconds=600)
        began = time.monotonic()
        replies = three_workers.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7], records), timeout=5.0)
        took = time.monotonic() - began
        assert all(reply.has_error() for reply in replies)
        three_workers.send_and_receive(messages([1, 2, 3, 4, 5, 6, 7]))  # leaves no one busy
        assert took < 10.0

    @pytest.mark.usefixtures("ray_cluster")
    def test_ray_that_was_running_is_used_and_left_running(self) -> None:
        import ray

        with pytest.raises(RuntimeError, match="inside"), ray_grid(FakeApp(), workers=1) as grid:  # noqa: PT012
            (reply,) = grid.send_and_receive(messages([2]))
            raise RuntimeError("inside")
        assert ray.is_initialized()
        place = Path(f"/proc/{int(wire.read(reply).numbers['pid'])}")
        deadline = time.monotonic() + 10
        while place.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not place.exists()  # but its own worker is gone
        assert grid.num_workers == 0  # type: ignore[attr-defined]
        grid.close()  # a second time does no harm


@pytest.mark.slow
def test_workers_elsewhere_answer_through_ray(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that shares neither memory nor disk with the driver gives the same answers and keeps the same states."""
    from fedsim.engine import crew

    class Elsewhere(crew.Probe):
        def __init__(self, folders: Sequence[Path]) -> None:
            super().__init__(folders)
            self.token = "of another machine"

    monkeypatch.setattr(crew, "Probe", Elsewhere)
    with ray_grid(fake(), workers=2) as far, LocalGrid(fake()) as near:
        for nodes, kind in (([7, 2, 5, 1], "train"), ([1, 2, 3], "evaluate"), ([2, 6, 7], "train")):
            found = [answers(grid.send_and_receive(messages(nodes, content(2.0), kind))) for grid in (far, near)]
            assert found[0] == found[1]
        assert counts(far) == counts(near)
        assert counts(far)[1] == 2
        replies = far.send_and_receive(messages([1, 2, 3], content(order="sleep", victim=0, seconds=30)), timeout=1)
        assert [reply.has_error() for reply in replies][:2] == [True, True]
        assert clients_of(far.send_and_receive(messages([1, 2, 7]))) == [0, 1, 6]


def answers(replies: list[Message]) -> list[tuple[int, float, list[float]]]:
    read = [wire.read(reply) for reply in replies]
    trained = replies[0].metadata.message_type == "train"
    rows = [wire.read_update(r, THETA, LAYOUT).tolist() if trained else [] for r in replies]
    return [(answer.client, answer.numbers["count"], row) for answer, row in zip(read, rows, strict=True)]
