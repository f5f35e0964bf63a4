"""System: plans each round on the virtual clock, before anybody trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clients.batches import num_steps, num_visits
from fedsim.errors import RoundError
from fedsim.system.crowd import Crowd, Floats, Moment, Whole
from fedsim.system.plan import DROPPED, LATE, LEFT, Part, Plan
from fedsim.system.rates import Rates
from fedsim.system.settings import SystemSettings
from fedsim.system.work import Job

BYTES = 4
"""Of a number that travels: everything is float32."""

BITS = 8e-6
"""Mbit in a byte."""


@dataclass(frozen=True)
class Demand:
    """The local training that a scenario asks of its clients.

    Attributes:
        sizes: Train examples of each client, [K].
        batch_size: Examples per step.
        epochs: Passes over the shard; 0 computes one full-batch gradient, a pass and a step.
        beside: Passes of a second training, of a model of the client's own.
    """

    sizes: Whole
    batch_size: int
    epochs: int
    beside: int = 0

    def steps(self, client: int) -> int:
        """Return the local steps S of all of a client's work."""
        return num_steps(int(self.sizes[client]), self.batch_size, self.epochs) or 1

    def examples(self, client: int, steps: int) -> int:
        """Return how many examples a client goes through in a number of steps, those of the second training too."""
        size, total = int(self.sizes[client]), self.steps(client)
        if self.epochs == 0:
            return size
        found = num_visits(size, self.batch_size, steps)
        if self.beside:
            own = num_steps(size, self.batch_size, self.beside, steps / total)
            found += num_visits(size, self.batch_size, own)
        return found


@dataclass(frozen=True)
class _Pace:
    """How long one client takes, in seconds from the beginning of the round.

    Attributes:
        demand: What it is asked to do.
        client: Its number.
        received: When it has the weights.
        per_example: Seconds for an example.
        upload: Seconds for its answer to arrive.
    """

    demand: Demand
    client: int
    received: float
    per_example: float
    upload: float

    def trained(self, steps: int) -> float:
        """Return when it has taken a number of steps."""
        return self.received + float(self.demand.examples(self.client, steps) * self.per_example)

    def answered(self, steps: int) -> float:
        """Return when its answer is there."""
        return self.trained(steps) + self.upload


@dataclass(frozen=True)
class _Course:
    """When one client does what, in seconds from the beginning of the round.

    Attributes:
        client: Its number.
        work: Share of its steps.
        received: When it has the weights.
        trained: When it has trained.
        finish: When its answer is there.
        gone: When it is lost, infinite for never.
        why: Why it is lost then.
    """

    client: int
    work: float
    received: float
    trained: float
    finish: float
    gone: float
    why: str


class System:
    """What the devices of a federation do on a virtual clock.

    Args:
        settings: The table [system].
        crowd: The clients.
        demand: Their local training.

    Attributes:
        time_s: The virtual clock, in seconds since the run began.
        plan: The round that was planned last.

    Raises:
        DataError: A trace cannot be used; says why.
    """

    def __init__(self, settings: SystemSettings, crowd: Crowd, demand: Demand) -> None:
        self.settings, self.crowd, self.demand = settings, crowd, demand
        self.time_s = 0.0
        self.plan = Plan()
        self._per_example = _slowness(settings.speed, crowd, "speed", 1.0)
        self._per_byte_down = _slowness(settings.bandwidth_down, crowd, "bandwidth_down", BITS)
        self._per_byte_up = _slowness(settings.bandwidth_up, crowd, "bandwidth_up", BITS)
        self._remaining(Moment(crowd, 1, 0.0))  # a trace that cannot be used fails before the run

    @property
    def memory(self) -> dict[str, float]:
        """What it keeps between rounds, as plain data that a checkpoint can hold: the clock."""
        return {"time_s": self.time_s}

    @memory.setter
    def memory(self, kept: dict[str, float]) -> None:
        self.time_s = float(kept["time_s"])

    def begin(self, server_round: int, order: Sequence[int], count: int, down: int, up: int) -> Plan:
        """Plan a round and return it.

        Args:
            server_round: Round, from 1.
            order: The connected clients, in the random order in which they are asked.
            count: Answers m that the server wants.
            down: Numbers sent to each client.
            up: Numbers that each sends back.

        Raises:
            RoundError: An availability model of one's own says what cannot be.
        """
        moment = Moment(self.crowd, server_round, self.time_s)
        remaining = self._remaining(moment)
        there = [client for client in order if remaining[client] > 0]
        if not there:
            self.plan = Plan(self.time_s, self._wait(moment), 0)
            return self.plan
        asked = there[: math.ceil(self.settings.over_selection * count - 1e-9)]
        courses = self._courses(moment, asked, remaining, down * BYTES, up * BYTES)
        counted, seconds = _race(courses, count, self.settings.deadline_s or math.inf)
        parts = (
            self._part(course, seconds, counted=course.client in counted, down=down * BYTES, up=up * BYTES)
            for course in sorted(courses, key=lambda course: course.client)
        )
        self.plan = Plan(self.time_s, seconds, len(there), tuple(parts))
        return self.plan

    def ask(self, clients: Sequence[int], down: int, up: int) -> None:
        """Add to the round a question to clients that took part in it, such as a trial of a line search.

        Args:
            clients: Whom.
            down: Numbers sent to each.
            up: Numbers that each sends back.
        """
        down, up = down * BYTES, up * BYTES
        times = (
            self.settings.latency_s + down * self._per_byte_down[client] + up * self._per_byte_up[client]
            for client in clients
        )
        self.plan = self.plan.with_query(float(max(times, default=0.0)), dict.fromkeys(clients, (down, up)))

    def abandon(self) -> None:
        """Note that the answers of the round are too few for the strategy."""
        self.plan = self.plan.abandoned()

    def end(self) -> Plan:
        """Put the clock to the end of the round and return what became of it; once more changes nothing."""
        self.time_s = self.plan.end_s
        return self.plan

    def _remaining(self, moment: Moment) -> Floats:
        name = type(self.settings.availability).__name__
        remaining = self.settings.availability.remaining(moment)
        if remaining.shape != (self.crowd.num_clients,) or np.isnan(remaining).any():
            raise RoundError(
                f"round {moment.server_round}: system.availability: {name} must give a number for each of "
                f"{self.crowd.num_clients} clients, got {remaining!r}"
            )
        return remaining

    def _wait(self, moment: Moment) -> float:
        seconds = self.settings.availability.wait(moment)
        if not 0 < seconds < math.inf:
            name = type(self.settings.availability).__name__
            raise RoundError(
                f"round {moment.server_round}: system.availability: {name} must say in how many seconds somebody "
                f"may be there, positive and finite, got {seconds}"
            )
        return seconds

    def _courses(
        self, moment: Moment, asked: Sequence[int], remaining: Floats, down: int, up: int
    ) -> list[_Course]:
        settings, demand = self.settings, self.demand
        work = settings.partial_work
        luck = None if work is None else work.luck(moment)
        coins = self.crowd.uniform("dropout", moment.server_round)
        moments = self.crowd.uniform("dropout moment", moment.server_round)
        courses = []
        for client in asked:
            received = settings.latency_s + float(down * self._per_byte_down[client])
            pace = _Pace(demand, client, received, self._per_example[client], float(up * self._per_byte_up[client]))
            steps = total = demand.steps(client)
            if work is not None and luck is not None:
                deadline = settings.deadline_s or math.inf
                steps = work.steps(Job(client, total, pace.answered, float(luck[client]), deadline))
                if not 1 <= steps <= total:
                    raise RoundError(
                        f"round {moment.server_round}: system.partial_work: {type(work).__name__} must have client "
                        f"{client} take 1 to {total} steps, got {steps}"
                    )
            finish = pace.answered(steps)
            drops = float(moments[client]) * finish if coins[client] < settings.dropout else math.inf
            leaves = float(remaining[client])
            courses.append(
                _Course(
                    client,
                    steps / total,
                    received,
                    pace.trained(steps),
                    finish,
                    min(drops, leaves),
                    DROPPED if drops <= leaves else LEFT,
                )
            )
        return courses

    def _part(self, course: _Course, end: float, *, counted: bool, down: int, up: int) -> Part:
        """Return what a client did until it was done, lost, or the round was over."""
        stop = min(course.finish, course.gone, end)
        lost = None
        if not counted:
            lost = course.why if course.gone < course.finish and course.gone <= end else LATE
        return Part(
            course.client,
            stop,
            int(down * _progress(stop, self.settings.latency_s, course.received)),
            int(up * _progress(stop, course.trained, course.finish)),
            course.work,
            lost,
        )


def _slowness(rates: Rates | None, crowd: Crowd, label: str, size: float) -> Floats:
    """Return the seconds each client takes for something of a size, [K]: 0 where no rates are given."""
    if rates is None:
        return np.zeros(crowd.num_clients)
    return np.asarray(size / rates.draw(crowd, label), np.float64)


def _race(courses: Sequence[_Course], count: int, deadline: float) -> tuple[set[int], float]:
    """Return whose answers count, and how long the round lasts.

    It ends with the answer that makes it complete; without that with the deadline if somebody is missing, and where
    there is none, when the last client has answered or is known to be lost.
    """
    answers = sorted((c.finish, c.client) for c in courses if c.finish <= min(c.gone, deadline))
    counted = answers[:count]
    if len(counted) == count:
        seconds = counted[-1][0]
    elif len(counted) < len(courses) and deadline < math.inf:
        seconds = deadline
    else:
        seconds = max(min(c.finish, c.gone) for c in courses)
    return {client for _, client in counted}, seconds


def _progress(now: float, start: float, end: float) -> float:
    """Return which share of something that lasts from start to end is done."""
    if now >= end:
        return 1.0
    return (now - start) / (end - start) if now > start else 0.0
