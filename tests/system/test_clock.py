"""The plan of a round against a slow simulation of its events, and what the clock does between rounds."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import pytest

from fedsim import plugins
from fedsim.errors import RoundError
from fedsim.system.availability import Availability
from fedsim.system.availability.bernoulli import Bernoulli
from fedsim.system.availability.day_cycle import DayCycle
from fedsim.system.crowd import Crowd, Floats, Moment
from fedsim.system.model import Demand, System
from fedsim.system.plan import DROPPED, LATE, LEFT, TOO_FEW, Plan, totals
from fedsim.system.rates.constant import Constant
from fedsim.system.rates.lognormal import Lognormal
from fedsim.system.settings import SystemSettings
from fedsim.system.work import PartialWork
from fedsim.system.work.deadline import Deadline
from fedsim.system.work.uniform import Uniform

NUM_CLIENTS = 12
DOWN, UP = 300, 100


def settings_of(generator: np.random.Generator) -> SystemSettings:
    """Settings of any kind."""

    def either(*choices: Any) -> Any:
        return choices[int(generator.integers(len(choices)))]

    def rates(median: float) -> Any:
        return either(None, Constant(value=median), Lognormal(median=median, sigma=1.0))

    deadline = either(None, 2.0, 8.0, 30.0)
    works: list[PartialWork | None] = [None, None, Uniform(min_share=0.2)]
    if deadline is not None:
        works.append(Deadline(min_share=0.3))
    return SystemSettings(
        availability=either(
            SystemSettings().availability,
            Bernoulli(p=0.5),
            Bernoulli(p=0.08),
            DayCycle(share=0.3, period_s=40.0),
            DayCycle(share=0.1, period_s=60.0),
        ),
        speed=rates(20.0),
        bandwidth_down=rates(0.005),
        bandwidth_up=rates(0.002),
        latency_s=either(0.0, 0.5),
        deadline_s=deadline,
        over_selection=either(1.0, 1.3, 2.0),
        dropout=either(0.0, 0.0, 0.3, 0.9),
        partial_work=either(*works),
    )


def made(settings: SystemSettings, seed: int = 0, **demand: Any) -> System:
    sizes = np.random.default_rng(seed).integers(1, 60, NUM_CLIENTS)
    return System(settings, Crowd(seed, NUM_CLIENTS), Demand(sizes, **{"batch_size": 8, "epochs": 2, **demand}))


def batches_of(size: int, batch: int, epochs: int) -> list[int]:
    return [min(batch, size - start) for start in range(0, size, batch)] * epochs


class Slow:
    """The same round, event by event, from the same random numbers."""

    def __init__(self, system: System, server_round: int, time_s: float, order: list[int], count: int) -> None:
        settings, crowd, demand = system.settings, system.crowd, system.demand
        moment = Moment(crowd, server_round, time_s)
        remaining = settings.availability.remaining(moment)
        there = [client for client in order if remaining[client] > 0]
        self.asked = there[: math.ceil(round(settings.over_selection * count, 6))]
        self.num_available = len(there)
        if not there:
            self.seconds = settings.availability.wait(moment)
            self.counted: set[int] = set()
            return
        coins, moments = (crowd.uniform(name, server_round) for name in ("dropout", "dropout moment"))
        deadline = settings.deadline_s or math.inf
        self.legs: dict[int, tuple[float, float, float]] = {}
        self.share: dict[int, float] = {}
        events: list[tuple[float, int, int, str]] = [(deadline, 2, -1, "deadline")]
        for client in self.asked:
            visits = batches_of(int(demand.sizes[client]), demand.batch_size, demand.epochs)
            if demand.epochs == 0:
                visits = [int(demand.sizes[client])]
            own = batches_of(int(demand.sizes[client]), demand.batch_size, demand.beside)

            def rate(table: Any, name: str, client: int = client) -> float:
                return math.inf if table is None else float(table.draw(crowd, name)[client])

            def legs(
                steps: int, client: int = client, visits: list[int] = visits, own: list[int] = own, rate: Any = rate
            ) -> tuple[float, float, float]:
                mine = own if steps == len(visits) else own[: max(1, round(steps / len(visits) * len(own)))]
                return (
                    settings.latency_s + DOWN * 4 * 8 / 1e6 / rate(settings.bandwidth_down, "bandwidth_down"),
                    (sum(visits[:steps]) + sum(mine)) / rate(settings.speed, "speed"),
                    UP * 4 * 8 / 1e6 / rate(settings.bandwidth_up, "bandwidth_up"),
                )

            steps = len(visits)
            if isinstance(settings.partial_work, Uniform):
                luck = crowd.uniform("work", server_round)[client]
                low = settings.partial_work.min_share
                steps = max(1, round((low + (1 - low) * luck) * steps))
            elif isinstance(settings.partial_work, Deadline):
                least = max(1, math.ceil(settings.partial_work.min_share * steps - 1e-9))
                while steps > least and sum(legs(steps)) > deadline:
                    steps -= 1
            self.share[client] = steps / len(visits)
            self.legs[client] = legs(steps)
            finish = sum(self.legs[client])
            lost = moments[client] * finish if coins[client] < settings.dropout else math.inf
            if finish <= min(lost, remaining[client]):
                heapq.heappush(events, (finish, 0, client, "answer"))
            else:
                first = min(lost, remaining[client])
                heapq.heappush(events, (first, 1, client, DROPPED if lost <= remaining[client] else LEFT))
        self._run(events, count, deadline)

    def _run(self, events: list[tuple[float, int, int, str]], count: int, deadline: float) -> None:
        heapq.heapify(events)
        waiting, self.counted, self.seconds = set(self.asked), set(), 0.0
        self.reasons: dict[int, str] = {}
        self.stops: dict[int, float] = {}
        # With a deadline the server does not hear of a loss; without one it must, or it would wait for ever.
        while waiting and len(self.counted) < count:
            now, _, client, what = heapq.heappop(events)
            if what == "deadline":
                self.seconds = now
                break
            if what == "answer":
                self.seconds = now
                self.counted.add(client)
                waiting.remove(client)
                self.stops[client] = now
            else:
                self.reasons[client] = what
                self.stops[client] = now
                if deadline == math.inf:
                    waiting.remove(client)
                    self.seconds = now
        for client in self.asked:
            if client not in self.counted and client not in self.reasons:
                self.reasons[client], self.stops[client] = LATE, self.seconds

    def bytes_of(self, client: int, latency: float) -> tuple[float, float]:
        """What has travelled when the client stops."""
        first, middle, last = self.legs[client]
        stop = self.stops[client]

        def share(start: float, end: float) -> float:
            if stop >= end - 1e-9:
                return 1.0
            return 0.0 if stop <= start else (stop - start) / (end - start)

        return DOWN * 4 * share(latency, first), UP * 4 * share(first + middle, first + middle + last)


@pytest.mark.parametrize("seed", range(150))
def test_rounds_are_those_of_a_simulation_of_every_event(seed: int) -> None:
    generator = np.random.default_rng(seed)
    settings, clock = settings_of(generator), 0.0
    demand = {"epochs": int(generator.integers(1, 4)), "beside": int(generator.integers(0, 3))}
    if settings.partial_work is None and seed % 5 == 0:
        demand = {"epochs": 0}
    system = made(settings, seed, **demand)
    count = int(generator.integers(1, NUM_CLIENTS + 1))
    for number in range(1, 9):
        order = generator.permutation(NUM_CLIENTS).tolist()
        slow = Slow(system, number, clock, order, count)
        plan = system.begin(number, order, count, DOWN, UP)
        assert system.end() is plan
        assert plan.num_available == slow.num_available
        assert [part.client for part in plan.parts] == sorted(slow.asked)
        assert set(plan.counted) == slow.counted
        assert len(plan.counted) <= count
        assert plan.seconds == pytest.approx(slow.seconds, abs=1e-9)
        clock += plan.seconds
        assert system.time_s == plan.end_s == pytest.approx(clock)
        for part in plan.parts:
            assert part.lost == slow.reasons.get(part.client), part
            assert part.seconds == pytest.approx(slow.stops[part.client], abs=1e-9)
            assert part.work == slow.share[part.client]
            down, up = slow.bytes_of(part.client, settings.latency_s)
            assert part.bytes_down == pytest.approx(down, abs=1.001)
            assert part.bytes_up == pytest.approx(up, abs=1.001)
            if part.lost is None:
                assert (part.bytes_down, part.bytes_up) == (DOWN * 4, UP * 4)


def test_the_cases_above_are_of_every_kind() -> None:
    """The oracle would prove little on rounds in which nothing happens."""
    seen: dict[str, int] = {}
    for seed in range(150):
        generator = np.random.default_rng(seed)
        settings = settings_of(generator)
        system = made(settings, seed)
        for number in range(1, 9):
            plan = system.begin(number, list(range(NUM_CLIENTS)), 5, DOWN, UP)
            system.end()
            kinds = [part.lost or "counted" for part in plan.parts]
            kinds += ["nobody"] if not plan.num_available else [] if plan.counted else ["no answer"]
            kinds += ["partial"] if plan.shares else []
            kinds += ["at the deadline"] if plan.seconds == settings.deadline_s else []
            for kind in kinds:
                seen[kind] = seen.get(kind, 0) + 1
    assert {"counted", DROPPED, LEFT, LATE, "nobody", "no answer", "partial", "at the deadline"} <= set(seen)
    assert min(seen.values()) > 15


def test_a_round_by_hand() -> None:
    """1000 numbers at 8 kbit/s take 4 s each way, 20 examples twice at 10 a second 4 s; and half a second."""
    rate = Constant(value=0.008)
    settings = SystemSettings(speed=Constant(value=10.0), bandwidth_down=rate, bandwidth_up=rate, latency_s=0.5)
    system = System(settings, Crowd(0, 3), Demand(np.array([20, 40, 10]), 8, 2))
    plan = system.begin(1, [2, 0, 1], 2, 1000, 1000)
    assert [part.seconds for part in plan.parts] == [12.5, 10.5]
    assert [part.client for part in plan.parts] == [0, 2]
    assert plan.row() == {
        "simulated_seconds": 12.5,
        "simulated_time": 12.5,
        "bytes_down": 8000,
        "bytes_up": 8000,
        "num_available": 3,
        "num_selected": 2,
        "num_dropped": 0,
        "num_late": 0,
    }
    system.ask([0, 2], 1000, 1)  # half a second, four down, and a number up
    assert system.end().seconds == pytest.approx(12.5 + 0.5 + 4.0 + 0.004)
    assert system.time_s == pytest.approx(17.004)
    assert [(part.bytes_down, part.bytes_up) for part in system.plan.parts] == [(8000, 4004)] * 2
    assert system.end() is system.plan
    assert system.time_s == pytest.approx(17.004)


def test_nothing_given_takes_no_time_and_loses_nobody() -> None:
    system = made(SystemSettings())
    plan = system.begin(1, list(range(NUM_CLIENTS)), 4, DOWN, UP)
    assert plan.counted == [0, 1, 2, 3]
    assert (plan.seconds, plan.shares) == (0.0, {})
    assert [part.bytes_down for part in plan.parts] == [DOWN * 4] * 4


def test_over_selection_takes_exactly_the_first_answers() -> None:
    settings = SystemSettings(speed=Lognormal(median=20.0, sigma=1.0), over_selection=2.0)
    for seed in range(30):
        system = made(settings, seed)
        order = np.random.default_rng(seed).permutation(NUM_CLIENTS).tolist()
        alone = made(settings.model_copy(update={"over_selection": 1.0}), seed)
        times = {c: alone.begin(1, [c], 1, DOWN, UP).seconds for c in order[:8]}
        plan = system.begin(1, order, 4, DOWN, UP)
        fastest = sorted(order[:8], key=times.__getitem__)
        assert plan.counted == sorted(fastest[:4])
        assert plan.seconds == times[fastest[3]]
        assert {part.client for part in plan.parts if part.lost == LATE} == set(fastest[4:])


@pytest.mark.parametrize(("over", "count", "asked"), [(1.3, 10, 13), (1.1, 10, 11), (1.01, 10, 11), (1.0, 7, 7)])
def test_how_many_are_asked(over: float, count: int, asked: int) -> None:
    system = System(SystemSettings(over_selection=over), Crowd(0, 40), Demand(np.full(40, 5), 5, 1))
    assert len(system.begin(1, list(range(40)), count, 1, 1).parts) == asked


def test_dropouts_are_as_many_as_they_should_be_and_uniform_in_time() -> None:
    crowd = Crowd(2, 500)
    system = System(SystemSettings(speed=Constant(value=1.0), dropout=0.2), crowd, Demand(np.full(500, 100), 10, 1))
    lost = [
        part.seconds / 100.0
        for number in range(1, 21)
        for part in system.begin(number, list(range(500)), 500, 1, 1).parts
        if part.lost == DROPPED
    ]
    assert abs(len(lost) - 2000) < 5 * math.sqrt(10_000 * 0.2 * 0.8)
    ends = np.sort(lost)
    distance = np.abs(ends - np.arange(1, len(ends) + 1) / len(ends)).max()
    assert distance * math.sqrt(len(ends)) < 2.7  # Kolmogorov: once in a million


def test_a_plan_does_not_depend_on_the_method_but_through_the_clock_and_what_travels() -> None:
    """What a rule sends along makes the round longer; who is there, drops out and how much work stay."""
    settings = SystemSettings(
        availability=Bernoulli(p=0.6),
        speed=Lognormal(median=20.0),
        bandwidth_down=Constant(value=0.01),
        dropout=0.3,
        partial_work=Uniform(),
    )
    one, other = made(settings), made(settings)
    for number in range(1, 10):
        order = np.random.default_rng(number).permutation(NUM_CLIENTS).tolist()
        plans = one.begin(number, order, 5, DOWN, UP), other.begin(number, order, 5, 2 * DOWN, UP)
        one.end(), other.end()
        first, second = ([(p.client, p.work, p.lost) for p in plan.parts] for plan in plans)
        assert first == second
        assert plans[0].seconds < plans[1].seconds or not plans[0].counted
    assert one.time_s < other.time_s


def test_the_clock_set_to_what_it_was_plans_the_same_rounds() -> None:
    settings = SystemSettings(
        availability=DayCycle(share=0.3, period_s=50.0), speed=Lognormal(median=10.0), dropout=0.2
    )
    through = made(settings)
    for number in range(1, 11):
        fresh = made(settings)
        fresh.memory = dict(through.memory)
        order = np.random.default_rng(number).permutation(NUM_CLIENTS).tolist()
        expected = through.begin(number, order, 4, DOWN, UP)
        assert fresh.begin(number, order, 4, DOWN, UP) == expected
        through.end(), fresh.end()
        assert fresh.memory == through.memory == {"time_s": expected.end_s}
    assert through.memory["time_s"] > 0.3 * 50.0  # those who were there at first have left


def test_nobody_there_costs_the_wait_whatever_the_deadline() -> None:
    settings = SystemSettings(
        availability=DayCycle(share=0.01, period_s=86400.0), speed=Constant(value=1.0), deadline_s=5.0
    )
    system = made(settings)
    system.time_s = 0.0
    first = system.begin(1, list(range(NUM_CLIENTS)), 5, DOWN, UP)
    assert (first.num_available, first.parts) == (0, ())
    assert first.seconds == pytest.approx(DayCycle().phases(system.crowd).min())
    system.end()
    assert system.begin(2, list(range(NUM_CLIENTS)), 5, DOWN, UP).num_available == 1


def test_answers_that_are_of_no_use_are_recorded_as_such() -> None:
    system = made(SystemSettings(speed=Constant(value=1.0)))
    before = system.begin(1, list(range(NUM_CLIENTS)), 3, DOWN, UP)
    system.abandon()
    assert system.plan.counted == []
    assert [part.lost for part in system.plan.parts] == [TOO_FEW] * 3
    assert system.plan.row() == before.row()


class Wrong(Availability):
    """Says what cannot be."""

    what: str

    def remaining(self, moment: Moment) -> Floats:  # noqa: ARG002
        wrong = {"short": np.ones(2), "nan": np.full(NUM_CLIENTS, np.nan)}
        return wrong.get(self.what, np.zeros(NUM_CLIENTS))

    def wait(self, moment: Moment) -> float:  # noqa: ARG002
        return 0.0 if self.what == "now" else math.inf


class Lazy(PartialWork):
    """Takes no step."""

    def steps(self, job: Any) -> int:  # noqa: ARG002
        return 0


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("short", "system.availability: Wrong must give a number for each of 12 clients"),
        ("nan", "system.availability: Wrong must give a number for each of 12 clients"),
        ("now", "round 1: system.availability: Wrong must say in how many seconds .* got 0.0"),
        ("never", "round 1: system.availability: Wrong must say in how many seconds .* got inf"),
    ],
)
def test_a_model_of_ones_own_that_says_what_cannot_be_is_named(what: str, said: str) -> None:
    with pytest.raises(RoundError, match=said):
        made(SystemSettings(availability=Wrong(what=what))).begin(1, list(range(NUM_CLIENTS)), 3, 1, 1)


def test_work_of_no_step_is_refused() -> None:
    system = made(SystemSettings(partial_work=Lazy()))
    with pytest.raises(
        RoundError, match=r"system.partial_work: Lazy must have client \d+ take 1 to \d+ steps, got 0"
    ):
        system.begin(1, list(range(NUM_CLIENTS)), 3, 1, 1)


@pytest.mark.parametrize("name", plugins.names("fedsim.system.work"))
def test_every_model_of_partial_work_takes_from_one_step_to_all(name: str) -> None:
    work = plugins.find("fedsim.system.work", name, PartialWork)(min_share=0.05)  # type: ignore[type-abstract, call-arg]
    settings = SystemSettings(speed=Lognormal(median=20.0, sigma=2.0), deadline_s=2.0, partial_work=work)
    shares = set()
    for seed in range(20):
        system = made(settings, seed)
        for part in system.begin(1, list(range(NUM_CLIENTS)), NUM_CLIENTS, 1, 1).parts:
            total = system.demand.steps(part.client)
            assert 1 <= round(part.work * total) <= total
            shares.add(part.work)
    assert len(shares) > 20


def test_totals_are_sums_of_rounds() -> None:
    rows: list[dict[str, Any]] = [{"round": 0, "num_sampled": 0, **Plan().row()}]
    system = made(SystemSettings(speed=Constant(value=1.0), dropout=0.9, availability=Bernoulli(p=0.2)))
    for number in range(1, 30):
        plan = system.begin(number, list(range(NUM_CLIENTS)), 3, DOWN, UP)
        system.end()
        rows.append({"round": number, "num_sampled": len(plan.counted), **plan.row()})
    found = totals(rows)
    assert found["simulated_time"] == system.time_s
    assert found["bytes_down"] == sum(row["bytes_down"] for row in rows)
    assert found["num_dropped"] == sum(row["num_dropped"] for row in rows) > 0
    assert found["rounds_without_answers"] == sum(row["num_sampled"] == 0 for row in rows[1:]) > 0
