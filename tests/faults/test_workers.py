"""Workers that are killed, stopped or lost: the same study comes out, or whose fault it was."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from fedsim import wire
from fedsim.errors import ClientError
from tests.engine.fakes import FakeApp, content
from tests.faults.apps import Fault, Faulty, Wide
from tests.faults.studies import ROUNDS, SAMPLED, Left, Study, culprits, same, turns
from tests.processes import gone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grid(ray_cluster: None) -> Iterator[Any]:
    """Two workers that every test gives its own application: they take seconds to start."""
    from fedsim.engine.grid import RayGrid
    from fedsim.settings import EngineSettings

    with RayGrid(FakeApp(), EngineSettings(workers=2)) as opened:
        yield opened


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.of()


def pids(grid: Any) -> list[int]:
    return [worker.pid for worker in grid.usage().workers]


def settled(grid: Any) -> list[int]:
    """Ask until every place has a worker again."""
    deadline = time.monotonic() + 60
    while not all(member.up for member in grid._crew.members):
        assert time.monotonic() < deadline, "a worker that died was not replaced"
        assert len(ask(grid)) == 7
        time.sleep(0.1)
    return pids(grid)


def ask(grid: Any, clients: int = 7) -> list[Message]:
    shared = content()
    found: list[Message] = grid.send_and_receive([Message(shared, k + 1, "train") for k in range(clients)])
    return found


class TestInMidRound:
    def test_a_worker_that_is_killed_once_costs_its_piece_and_not_a_bit(
        self, grid: Any, study: Study, undisturbed: Left, tmp_path: Path, marks: Path
    ) -> None:
        victim = undisturbed.sampled(2)[0]
        grid.change(Faulty(study.app(), Fault("kill", marks, victim, round=2, times=1)))
        before = set(pids(grid))
        same(study.run(grid, tmp_path / "run"), undisturbed)
        assert len(culprits(marks)) == 1
        assert set(culprits(marks)) <= before
        taken = turns(marks)
        assert set(taken) == set(undisturbed.sampled(2))
        assert taken[victim] == 2
        assert set(taken.values()) <= {1, 2}
        assert (
            sum(count == 2 for count in taken.values()) <= SAMPLED // 2 + 1
        )  # what the worker had in hand; the other's clients are left alone

    def test_a_worker_that_stops_is_replaced_and_its_clients_are_named(
        self, grid: Any, study: Study, undisturbed: Left, tmp_path: Path, marks: Path
    ) -> None:
        victim = undisturbed.sampled(2)[1]
        grid.change(Faulty(study.app(), Fault("stop", marks, victim, round=2, times=1)))
        left = study.run(grid, tmp_path / "run", timeout_s=4.0, max_failures=SAMPLED - 1)
        assert (2, victim) in left.failed()
        assert {number for number, _ in left.failed()} == {2}
        assert gone(culprits(marks)[0])  # Ray alone leaves a stopped process where it is
        answered = left.clients[(left.clients["round"] > 2) & left.clients["sampled"]]
        assert answered["loss"].notna().all()

    def test_a_client_that_hangs_is_named(
        self, grid: Any, study: Study, undisturbed: Left, tmp_path: Path, marks: Path
    ) -> None:
        victim = undisturbed.sampled(2)[2]
        grid.change(Faulty(study.app(), Fault("hang", marks, victim, round=2, times=1)))
        with pytest.raises(ClientError) as caught:
            study.run(grid, tmp_path / "run", timeout_s=3.0)
        assert caught.value.server_round == 2
        assert re.match(rf"no answer within 3 s; .*busy with client.* {victim}\b", caught.value.cause)

    def test_a_client_that_always_kills_its_worker_is_named(
        self, grid: Any, study: Study, undisturbed: Left, tmp_path: Path, marks: Path
    ) -> None:
        victim = undisturbed.sampled(1)[3]
        grid.change(Faulty(study.app(), Fault("segfault", marks, victim, round=1)))
        with pytest.raises(ClientError) as caught:
            study.run(grid, tmp_path / "run")
        assert (caught.value.client, caught.value.server_round) == (victim, 1)
        assert "its worker died 2 times while it was answered for" in caught.value.cause
        assert len(culprits(marks)) == 2

    def test_where_failures_are_allowed_the_run_goes_on_without_it(
        self, grid: Any, study: Study, undisturbed: Left, tmp_path: Path, marks: Path
    ) -> None:
        victim = undisturbed.sampled(2)[4]
        grid.change(Faulty(study.app(), Fault("exit", marks, victim, round=2)))
        left = study.run(grid, tmp_path / "run", max_failures=1)
        assert left.failed() == [(2, victim)]
        second = left.clients[(left.clients["round"] == 2) & left.clients["sampled"]].set_index("client")
        assert second["weight"].drop(victim).notna().all()
        assert second["loss"].drop(victim).notna().all()
        assert len(left.rounds) == ROUNDS + 1
        # Nobody else trained otherwise than without the fault.
        known = undisturbed.clients[(undisturbed.clients["round"] == 2)].set_index("client")
        for client in second.index.drop(victim):
            assert second["loss"][client] == known["loss"][client]


class TestBetweenRounds:
    def test_idle_workers_that_are_killed_are_replaced(self, grid: Any) -> None:
        grid.change(FakeApp())
        for count in (1, 2):
            killed = settled(grid)[:count]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            assert all(gone(pid) for pid in killed)
            assert [wire.read(reply).error for reply in ask(grid)] == [None] * 7
        assert [wire.read(reply).error for reply in ask(grid)] == [None] * 7

    def test_workers_may_die_before_they_get_another_application(self, grid: Any) -> None:
        grid.change(FakeApp())
        ask(grid)
        killed = pids(grid)[0]
        os.kill(killed, signal.SIGKILL)
        assert gone(killed)
        grid.change(FakeApp(9))
        assert len(ask(grid, 9)) == 9
        assert killed not in pids(grid)

    def test_a_worker_started_after_a_change_shares_memory_like_those_before(self, grid: Any) -> None:
        """Were it taken for one on another machine, all it says would go through Ray, and nobody saw its marker."""
        grid.change(FakeApp())
        os.kill(settled(grid)[1], signal.SIGKILL)
        time.sleep(0.5)
        settled(grid)
        assert all(member.line is not None for member in grid._crew.members)

    def test_a_caller_who_hangs_up_is_no_worker(self, grid: Any) -> None:
        grid.change(FakeApp())
        for words in (b"", b"\0\0"):  # nothing, or half a greeting
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(grid._crew._address)
                caller.send(words)
            assert len(ask(grid)) == 7


def test_killed_at_any_moment_no_turn_is_lost_or_doubled(grid: Any) -> None:
    """While they write to the board, save states, answer, or start: every client has each turn once, whole."""
    num_clients, width, dice = 8, 100_000, random.Random(5)
    grid.change(Wide(num_clients))
    arrays = wire.pack_arrays({"w": np.zeros(width, np.float32)})
    records = wire.pack_request(arrays, ConfigRecord(), 1, wants_update=True)
    open_files: list[int] = []
    kills = []
    turn = 0
    while len(kills) < 6:
        turn += 1
        timer = None
        if turn % 4 == 0:
            kills.append(dice.choice(pids(grid)))
            timer = threading.Timer(dice.uniform(0.0, 0.012), _kill, [kills[-1]])
            timer.start()
        replies = grid.send_and_receive([Message(records, k + 1, "train") for k in range(num_clients)])
        if timer is not None:
            timer.join()
            open_files.append(len(list(Path("/proc/self/fd").iterdir())))
        for client, reply in enumerate(replies):
            answer = wire.read(reply)
            assert answer.error is None, answer.error
            assert answer.numbers["turns"] == turn
            update = wire.stack_updates([reply], np.zeros(width, np.float32), _layout(width))[0]
            assert (update == 1000 * client + turn).all()
    kept = grid.client_states()
    assert {client: int(state["turns"][0]) for client, state in kept.items()} == dict.fromkeys(range(8), turn)
    assert len(list(grid.states.folder.glob("*.states"))) <= 2 * num_clients + len(kills) * 4
    assert max(open_files[1:]) <= open_files[0] + 12, open_files  # Ray keeps some of its own for a while


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _layout(width: int) -> Any:
    from fedsim.parameters import Layout

    return Layout(("w",), ((width,),))


def test_messages_nobody_asks_after_leave_nothing_behind(ray_cluster: None) -> None:
    from fedsim.engine import board
    from fedsim.engine.grid import RayGrid
    from fedsim.settings import EngineSettings

    def files() -> set[Path]:
        return {path for folder in board.FOLDERS for path in folder.glob("fedsim-f*")}

    before = files()
    grid = RayGrid(FakeApp(stateful=True), EngineSettings(workers=1))
    (worker,) = pids(grid)
    shared = content(order="sleep-all", seconds=0.5)
    assert len(list(grid.push_messages([Message(shared, k + 1, "train") for k in range(7)]))) == 7
    assert files() > before
    grid.close()
    assert files() == before
    assert gone(worker)


class TestWhatRaySays:
    """Pieces of the crew that a test cannot bring about in time by killing somebody."""

    @pytest.fixture
    def crew(self) -> Any:
        from fedsim.engine.crew import RayCrew

        return object.__new__(RayCrew)

    @pytest.fixture
    def place(self) -> Any:
        from fedsim.engine.crew import Place

        return Place(0, life=1)

    def test_a_short_answer_that_overtakes_a_long_one_waits_for_it(self, crew: Any, place: Any) -> None:
        from fedsim.engine.jobs import Done, Job

        for number in (4, 7):
            place.jobs[number] = Job(number, 0, "evaluate", None, [], [], [], None)
        told: dict[int, Future[Done]] = {4: Future(), 7: Future()}
        for number, future in told.items():
            future.set_result(Done(number, None))
        assert crew._told("job 7", place, 1, told[7]) == []
        assert [event.done.number for event in crew._told("job 4", place, 1, told[4])] == [4, 7]
        assert not place.jobs
        assert not place.results

    def test_what_a_worker_said_before_it_died_counts(
        self, crew: Any, place: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fedsim.engine.jobs import Answered, Died, Done

        place.line, theirs = Pipe()
        theirs.send(Done(1, None))
        theirs.send(Done(2, None))
        theirs.close()
        monkeypatch.setattr(crew, "_lost", lambda place, error: [Died(place, str(error))], raising=False)
        events = crew._gone(place, RuntimeError("shot"))
        assert [event.done.number for event in events if isinstance(event, Answered)] == [1, 2]
        assert [event.cause for event in events if isinstance(event, Died)] == ["shot"]
        place.line.close()

    def test_one_that_dies_before_it_says_a_word_is_not_tried_for_ever(
        self, crew: Any, place: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fedsim.engine.crew import STILLBORN
        from fedsim.errors import EngineError

        launched: list[Any] = []
        monkeypatch.setattr(crew, "_part", lambda _: None, raising=False)
        monkeypatch.setattr(crew, "_launch", launched.append, raising=False)
        crew._stillborn, crew.members = 0, [place]
        future: Future[None] = Future()
        future.set_exception(RuntimeError("no such file"))

        def tried() -> None:
            for _ in range(STILLBORN):
                assert crew._told("serve", place, 1, future) == []

        with pytest.raises(EngineError, match="the Ray workers cannot start: no such file"):
            tried()
        assert launched == [place] * (STILLBORN - 1)

    def test_a_bell_that_is_gone_writes_into_nobody_elses_file(self, tmp_path: Path) -> None:
        from fedsim.engine.crew import _Bell

        bell = _Bell()
        ring: Callable[[], None] = bell.ring
        for _ in range(100_000):  # full, it must not make its ringer wait
            ring()
        bell.close()
        with (tmp_path / "first").open("wb") as first, (tmp_path / "second").open("wb") as second:
            assert {first.fileno(), second.fileno()} & {bell.heard, bell._ring}
            ring()
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == b""
