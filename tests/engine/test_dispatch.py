"""The dispatcher against a crew without processes: whatever order things happen in, every client has one answer."""

from __future__ import annotations

import gc
import random
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from fedsim.engine import dispatch
from fedsim.engine.base import BlockGrid
from fedsim.engine.board import Reader
from fedsim.engine.desk import IDLE, WorkerDesk
from fedsim.engine.dispatch import Dispatcher
from fedsim.engine.jobs import Answered, Died, Done, Job, Member
from fedsim.engine.states import States, read_states, write_states
from fedsim.engine.task import Patience, Task
from fedsim.engine.usage import Usage
from fedsim.errors import EngineError
from fedsim.wire import Block
from tests.engine.fakes import FakeApp, content


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now


class FakeCrew:
    """Members that answer, die or hang as a random generator has it, in any order between members.

    Args:
        app: Answers.
        states: Where clients' states are.
        dice: Decides.
        poison: A client that kills whoever answers for it.
        hangs: A client nobody comes back from.
        deaths: Chance that a member dies rather than answers.
        blind: Whether nobody knows which client a member was busy with.
    """

    def __init__(
        self,
        app: FakeApp,
        states: States,
        dice: random.Random,
        clock: Clock,
        *,
        num: int = 3,
        poison: int = -1,
        hangs: int = -1,
        deaths: float = 0.0,
        blind: bool = False,
    ) -> None:
        self.members = [Member(number, up=True) for number in range(num)]
        self._jobs: dict[Member, deque[tuple[Job, Task]]] = {member: deque() for member in self.members}
        self._app, self._states, self._dice, self._clock = app, states, dice, clock
        self._poison, self._hangs, self._deaths, self._blind = poison, hangs, deaths, blind
        self._marked = dict.fromkeys(self.members, IDLE)
        self._starting: list[Member] = []
        self.runs: list[list[int]] = []
        self.restarts = 0

    def send(self, member: Member, job: Job, task: Task) -> None:
        assert member.up
        self._jobs[member].append((job, task))
        assert len(self._jobs[member]) <= dispatch.DEPTH

    def marker(self, member: Member) -> tuple[int, int]:
        return self._marked[member]

    def restart(self, member: Member) -> None:
        self.restarts += 1
        self._jobs[member].clear()
        self._marked[member] = IDLE

    def events(self, timeout: float | None) -> list[Answered | Died]:
        for member in self._starting:
            member.up = True
        if self._starting and not any(self._jobs.values()):
            self._starting = []
            return []
        self._starting = []
        for member in self.members:
            if self._jobs[member] and self._hangs in self._clients(member):
                self._marked[member] = self._place(member, self._hangs)
        able = [m for m in self.members if self._jobs[m] and self._hangs not in self._clients(m)]
        if not able:
            assert timeout is not None, "the dispatcher waits without end for nobody"
            self._clock.now += timeout
            return []
        return [self._happens(member) for member in self._dice.sample(able, self._dice.randint(1, len(able)))]

    def _clients(self, member: Member) -> list[int]:
        return [client for unit in self._jobs[member][0][0].units for client in unit]

    def _place(self, member: Member, client: int) -> tuple[int, int]:
        return IDLE if self._blind else (self._clients(member).index(client), 1)

    def _happens(self, member: Member) -> Answered | Died:
        clients = self._clients(member)
        if self._poison in clients or self._dice.random() < self._deaths:
            victim = self._poison if self._poison in clients else self._dice.choice(clients)
            self._marked[member] = self._place(member, victim)
            self._jobs[member].clear()
            member.up = False
            self._starting.append(member)
            return Died(member, "signal 9")
        job, task = self._jobs[member].popleft()
        self._marked[member] = IDLE
        self.runs.append(clients)
        self._clock.now += 0.1 * len(clients)
        states = (
            read_states(self._states.folder, [str(s) for s in job.states]) if job.states else [{}] * len(clients)
        )
        desk = WorkerDesk(Reader(), job.request, job.places, None)
        block, kept = self._app.run(job.kind, task.content, job.units, states, desk)
        slips = write_states(self._states.folder, job.file, kept) if job.file else []
        return Answered(member, Done(job.number, desk.signed(block), slips, busy_s=0.1 * len(clients)))


class FakeGrid(BlockGrid):
    """The part of a grid that is not Ray."""

    def __init__(self, app: FakeApp, crew: FakeCrew, states: States) -> None:
        super().__init__(app, states)
        self._dispatcher = Dispatcher(app, crew, states)

    def start(self, task: Task) -> None:
        self._dispatcher.add(task, self.slips_for)

    def finish(self, tasks: Sequence[Task], *, wait: bool) -> None:
        self._dispatcher.run(tasks, wait=wait)

    def usage(self) -> Usage:
        return self._dispatcher.used

    def close(self) -> None:
        self._dispatcher.close()
        super().close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    monkeypatch.setattr(dispatch, "time", found)
    return found


def made(seed: int, clock: Clock, folder: Path, **options: object) -> tuple[FakeGrid, FakeCrew]:
    dice = random.Random(seed)
    app = FakeApp(30, stateful=True, group=dice.choice([1, 1, 2, 4]))
    states = States(folder)
    crew = FakeCrew(app, states, dice, clock, num=dice.randint(1, 5), **options)  # type: ignore[arg-type]
    return FakeGrid(app, crew, states), crew


def messages(clients: Sequence[int], kind: str = "train", **settings: object) -> list[object]:
    from flwr.app import Message

    shared: RecordDict = content(**settings)
    return [Message(shared, dst_node_id=client + 1, message_type=kind) for client in clients]


def told(reply: object) -> tuple[int, float | None, str | None]:
    from fedsim import wire

    answer = wire.read(reply)  # type: ignore[arg-type]
    return answer.client, answer.numbers.get("count"), answer.error


@pytest.mark.parametrize("seed", range(40))
def test_every_client_is_answered_once_and_counts_once_whoever_dies(
    seed: int, clock: Clock, tmp_path: Path
) -> None:
    """Workers die at random; a client's state counts its turns, so one that was lost or ran twice would show."""
    grid, _ = made(seed, clock, tmp_path, deaths=0.1, blind=seed % 2 == 0)
    dice, turns = random.Random(seed), dict.fromkeys(range(30), 0)
    failed = 0
    for _ in range(12):
        clients = dice.sample(range(30), dice.randint(1, 30))
        replies = grid.send_and_receive(messages(clients))  # type: ignore[arg-type]
        assert [told(reply)[0] for reply in replies] == clients
        for client, count, error in map(told, replies):
            if error is None:
                turns[client] += 1
                assert count == turns[client]
            else:
                failed += 1
                assert "its worker died 2 times" in error
    kept = {client: int(state["count"][0]) for client, state in grid.client_states().items()}
    assert kept == {client: count for client, count in turns.items() if count}
    assert failed < 0.2 * sum(turns.values())
    assert len(list(tmp_path.iterdir())) <= 30
    grid.close()


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_a_client_that_kills_its_worker_is_found_and_costs_nobody_else(
    seed: int, blind: bool, clock: Clock, tmp_path: Path
) -> None:
    grid, _ = made(seed, clock, tmp_path, poison=13, blind=blind)
    replies = grid.send_and_receive(messages(range(30)))  # type: ignore[arg-type]
    lost = {client: error for client, _, error in map(told, replies) if error is not None}
    assert set(lost) == {13}
    assert all("its worker died 2 times while it was answered for" in error for error in lost.values())
    assert all("signal 9" in error for error in lost.values())
    grid.close()


@pytest.mark.parametrize("seed", range(10))
def test_a_client_that_hangs_is_named_and_its_worker_replaced(seed: int, clock: Clock, tmp_path: Path) -> None:
    grid, crew = made(seed, clock, tmp_path, hangs=7)
    replies = grid.send_and_receive(messages(range(30)), timeout=50.0)  # type: ignore[arg-type]
    lost = {client: error for client, _, error in map(told, replies) if error is not None}
    assert 7 in lost
    assert lost[7] == "no answer within 50 s; its worker was busy with client 7"
    assert crew.restarts == 1
    assert 50.0 <= clock.now <= 60.0
    # Whoever was not lost is answered, and the crew goes on.
    others = [client for client in range(30) if client != 7]
    again = grid.send_and_receive(messages(others), timeout=50.0)  # type: ignore[arg-type]
    counted = {client: count for client, count, error in map(told, again) if error is None}
    assert counted == {client: 1.0 if client in lost else 2.0 for client in others}
    grid.close()


def test_an_answered_task_waits_for_nobody_and_a_later_one_for_its_states(clock: Clock, tmp_path: Path) -> None:
    """Two trainings and an evaluation of the same clients are on their way at once; turns stay in order."""
    grid, _ = made(3, clock, tmp_path)
    first = grid.submit(messages(range(10)))  # type: ignore[arg-type]
    between = grid.submit(messages(range(10), "evaluate"))  # type: ignore[arg-type]
    second = grid.submit(messages(range(5, 15)))  # type: ignore[arg-type]
    assert [told(reply)[1] for reply in second.replies()] == [2.0] * 5 + [1.0] * 5
    assert [told(reply)[1] for reply in first.replies()] == [1.0] * 10
    assert len(between.replies()) == 10
    # What was looked at last was asked first: it must not bring old states back.
    kept = {client: int(state["count"][0]) for client, state in grid.client_states().items()}
    assert kept == {client: 2 if 5 <= client < 10 else 1 for client in range(15)}
    grid.close()


def test_clients_keep_nothing_of_an_answer_nobody_has_looked_at(clock: Clock, tmp_path: Path) -> None:
    grid, _ = made(4, clock, tmp_path)
    ahead = grid.submit(messages(range(10)))  # type: ignore[arg-type]
    grid.send_and_receive(messages(range(20, 30), "evaluate"))  # type: ignore[arg-type]
    assert grid.states.index() == {}  # a checkpoint now is one of before
    ahead.replies()
    assert set(grid.states.index()) == set(range(10))
    grid.close()


def test_pieces_are_about_equal_and_the_longest_goes_first(clock: Clock, tmp_path: Path) -> None:
    app, states = FakeApp(30), States(tmp_path)
    crew = FakeCrew(app, states, random.Random(0), clock, num=3)
    grid = FakeGrid(app, crew, states)
    for _ in range(3):
        crew.runs.clear()
        grid.send_and_receive(messages(range(30)))  # type: ignore[arg-type]
    costs = [sum(app.cost("train", client) for client in clients) for clients in crew.runs]
    # After the first round it is known that clients take 0.1 s: worth several pieces a worker.
    assert len(costs) == 3 * dispatch.MOST_PIECES
    assert max(costs) - min(costs) <= 3.0
    assert sorted(client for clients in crew.runs for client in clients) == list(range(30))
    grid.close()


def test_workers_that_die_without_end_are_an_error(clock: Clock, tmp_path: Path) -> None:
    grid, _ = made(5, clock, tmp_path, deaths=1.0, blind=True)

    def rounds() -> None:
        for _ in range(dispatch.BARREN):
            grid.send_and_receive(messages(range(30)))  # type: ignore[arg-type]

    with pytest.raises(EngineError, match=f"{dispatch.BARREN} workers died one after the other"):
        rounds()
    grid.close()


def test_a_job_that_fails_ends_its_task_and_no_other(clock: Clock, tmp_path: Path) -> None:
    grid, _ = made(6, clock, tmp_path)
    crash = grid._app.run

    def run(kind: str, *rest: object) -> tuple[Block, list[dict[str, np.ndarray]]]:
        if kind == "evaluate":
            raise ValueError("no luck")
        return crash(kind, *rest)  # type: ignore[arg-type]

    crew: FakeCrew = grid._dispatcher._crew  # type: ignore[assignment]
    happens = crew._happens

    def guarded(member: Member) -> Answered | Died:
        job = crew._jobs[member][0][0]
        try:
            return happens(member)
        except ValueError as error:
            return Answered(member, Done(job.number, None, error=str(error)))

    grid._app.run = run  # type: ignore[method-assign]
    crew._happens = guarded  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"a worker failed on clients .*: no luck"):
        grid.send_and_receive(messages(range(30), "evaluate"))  # type: ignore[arg-type]
    replies = grid.send_and_receive(messages(range(30)))  # type: ignore[arg-type]
    assert [told(reply)[1] for reply in replies] == [1.0] * 30
    grid.close()


@pytest.mark.parametrize("patience", [Patience.FAIR, Patience.BEHIND])
@pytest.mark.parametrize("seed", range(6))
def test_a_client_that_hangs_takes_nobody_along_where_that_is_asked_for(
    seed: int, patience: Patience, clock: Clock, tmp_path: Path
) -> None:
    """However many workers there are and however pieces were cut, the same clients fail."""
    grid, crew = made(seed, clock, tmp_path, hangs=7)
    sent = grid.submit(messages(range(30)), timeout=50.0, patience=patience)  # type: ignore[arg-type]
    lost = {client: error for client, _, error in map(told, sent.replies()) if error is not None}
    (unit,) = (u for u in grid._app.units("train", range(30)) if 7 in u)
    assert set(lost) == set(unit)
    assert set(lost.values()) == {"no answer within 50 s; its worker was busy with client 7"}
    assert crew.restarts == 1
    grid.close()


def test_an_older_question_without_a_timeout_does_not_hold_the_clock(clock: Clock, tmp_path: Path) -> None:
    app, states = FakeApp(30), States(tmp_path)
    crew = FakeCrew(app, states, random.Random(0), clock, num=2, hangs=7)
    grid = FakeGrid(app, crew, states)
    grid.push_messages(messages([7], "evaluate"))  # type: ignore[arg-type]
    replies = grid.send_and_receive(messages([1, 2, 3, 4], "evaluate"), timeout=5.0)  # type: ignore[arg-type]
    errors = [told(reply)[2] for reply in replies]
    assert clock.now <= 6.0
    assert None in errors  # the other worker's clients are unharmed
    assert all(error in (None, "no answer within 5 s") for error in errors)
    grid.close()


def test_a_task_lets_go_of_those_before_it(clock: Clock, tmp_path: Path) -> None:
    grid, _ = made(7, clock, tmp_path)
    kept: list[weakref.ref[Task]] = []
    before = grid.submit(messages([3]))  # type: ignore[arg-type]
    for _ in range(20):
        after = grid.submit(messages([3]))  # type: ignore[arg-type]
        kept += [weakref.ref(task) for task, _ in before.entries]
        before.replies()
        before = after
    before.replies()
    del before, after
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 1
    assert grid._keepers == {}
    grid.close()
