"""Who answers what, and what happens when a worker dies or hangs. Knows no Ray: a crew does what it is told.

Tasks are cut into pieces; each worker has one piece in hand and one in its queue, so that none waits for the
driver. Which worker answers which piece, in what order and how often changes times, never results: a piece is made
of units, and an answer depends on its unit alone.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from logging import getLogger
from typing import Any

from fedsim.engine import flower
from fedsim.engine.board import Boards, Note
from fedsim.engine.desk import IDLE
from fedsim.engine.flower import Fault
from fedsim.engine.jobs import Answered, Crew, Done, Job, Live, Member, Piece
from fedsim.engine.schedule import balance
from fedsim.engine.states import States
from fedsim.engine.task import BlockApp, Patience, Task
from fedsim.engine.usage import Usage
from fedsim.errors import EngineError
from fedsim.sentences import some
from fedsim.wire import Block

DEPTH = 2
"""Pieces a worker has at most: one in hand, one in its queue."""

PIECE_S = 0.05
"""Seconds of work that are worth a piece of their own."""

MOST_PIECES = 4
"""Pieces of one task for each worker at most."""

LIVES = 2
"""Deaths of workers that one piece may cost."""

BARREN = 32
"""Deaths in a row, without an answer between them, after which nobody is started again."""

Late = tuple[Piece, list[list[int]], list[int]]
"""A piece whose time is over, the units in it that its worker was busy with, and the clients, where known."""

log = getLogger("fedsim")


class Dispatcher:
    """Brings tasks to their end.

    Args:
        app: The application the workers have, for what tasks cost.
        crew: The workers.
        states: Where clients' states are.
    """

    def __init__(self, app: BlockApp, crew: Crew, states: States) -> None:
        self._app, self._crew, self._states = app, crew, states
        self._boards = Boards()
        self._lives: dict[Task, Live] = {}
        self._timed: list[Live] = []  # those with a timeout, in their order
        self._waiting: list[Task] = []
        self._queue: deque[Piece] = deque()
        self._numbers = count()
        self._rates: dict[str, float] = {}  # kind -> seconds per unit of cost
        self._barren = 0
        self.used = Usage(workers=[member.worked for member in crew.members])

    def add(self, task: Task, slips_for: Any) -> None:
        """Take on a task.

        Args:
            task: The task.
            slips_for: Returns where what its clients kept is, once the tasks before it are done.
        """
        if not task.clients:
            task.done = True
            return
        self._waiting.append(task)
        self._slips_for = slips_for
        self._admit()
        self._hand_out()

    def run(self, tasks: Sequence[Task], *, wait: bool) -> None:
        """Go on until these tasks are done; without waiting, take note of what has happened.

        Raises:
            EngineError: Workers cannot be started any more.
        """
        pending = deque(tasks)
        while pending:
            if pending[0].done:
                pending.popleft()
                continue
            self._arm()
            began = time.perf_counter()
            events = self._crew.events(self._patience() if wait else 0.0)
            self.used.wait_s += time.perf_counter() - began
            for event in events:
                if isinstance(event, Answered):
                    self._answered(event.member, event.done)
                else:
                    self._died(event.member, event.cause)
            self._expire()
            self._admit()
            self._hand_out()
            if not wait and not events:
                return

    def close(self) -> None:
        """Remove what lies in shared memory."""
        self._boards.close()
        for live in self._lives.values():
            if live.board is not None:
                live.board.close()

    def _admit(self) -> None:
        """Cut tasks into pieces, once those they wait for are done."""
        for task in [task for task in self._waiting if all(other.done for other in task.after)]:
            began = time.perf_counter()
            self._waiting.remove(task)
            live = self._lives[task] = Live(task, next(self._numbers), self._slips_for(task))
            if task.timeout is not None:
                self._timed.append(live)
            pieces = self._pieces(live)
            live.left = len(pieces)
            self._queue.extend(pieces)
            self.used.dispatch_s += time.perf_counter() - began

    def _pieces(self, live: Live) -> list[Piece]:
        """Return pieces of about equal cost, the longest first."""
        task, num_workers = live.task, len(self._crew.members)
        units = self._app.units(task.kind, task.clients)
        costs = [sum(self._app.cost(task.kind, client) for client in unit) for unit in units]
        seconds = self._rates.get(task.kind, 0.0) * sum(costs) / num_workers
        count_each = max(1, min(MOST_PIECES, int(seconds / PIECE_S)))
        shares = [share for share in balance(costs, num_workers * count_each) if share]
        pieces = [
            Piece(live, [units[place] for place in share], sum(costs[place] for place in share)) for share in shares
        ]
        return sorted(pieces, key=lambda piece: -piece.cost)

    def _hand_out(self) -> None:
        """Give every worker something to do, and then something for afterwards."""
        began = time.perf_counter()
        for depth in range(1, DEPTH + 1):
            for member in self._crew.members:
                if member.up and self._queue and len(member.pieces) < depth:
                    self._send(member, self._queue.popleft())
        self.used.dispatch_s += time.perf_counter() - began

    def _send(self, member: Member, piece: Piece) -> None:
        live, task = piece.live, piece.live.task
        try:
            note = self._posted(live)
        except EngineError as error:
            self._fail(live, error)
            return
        places = [task.place_of[client] for client in piece.members]
        piece.number = next(self._numbers)
        job = Job(
            piece.number,
            live.number,
            task.kind,
            note,
            piece.units,
            places,
            [live.slips[place] for place in places] if live.slips else [],
            self._states.new_file() if task.keeps else None,
        )
        try:
            self._crew.send(member, job, task)
        except EngineError as error:
            self._fail(live, error)
            return
        member.pieces.append(piece)

    def _posted(self, live: Live) -> Note:
        """Return where a task's request is."""
        if live.note is None:
            packed = pickle.dumps(live.task.content, protocol=pickle.HIGHEST_PROTOCOL)
            shape = (len(live.task.clients), self._app.width(live.task.kind, live.task.content))
            live.board = self._boards.take(len(packed), shape)
            live.note = live.board.post(packed, shape)
        return live.note

    def _answered(self, member: Member, done: Done) -> None:
        piece = member.pieces.popleft()
        assert piece.number == done.number, "workers answer in the order they are asked"
        self._barren = 0
        member.worked.busy_s += done.busy_s
        member.worked.transfer_s += done.transfer_s
        live = piece.live
        if live.task not in self._lives:
            return  # it ended without this answer
        if done.error is not None or done.block is None:
            self._fail(live, EngineError(f"a worker failed on clients {some(piece.members)}: {done.error}"))
            return
        member.worked.answered += len(piece.members)
        self._rates[live.task.kind] = done.busy_s / max(piece.cost, 1e-9)
        live.parts.append(([live.task.place_of[client] for client in piece.members], done.block))
        if live.task.keeps:
            live.task.kept |= zip(piece.members, (str(slip) for slip in done.kept), strict=True)
        self._settle(live)

    def _died(self, member: Member, cause: str) -> None:
        pieces, (first, size) = list(member.pieces), self._crew.marker(member)
        member.pieces.clear()
        member.worked.restarts += 1
        self._barren += 1
        if self._barren > BARREN:
            raise EngineError(f"engine: {BARREN} workers died one after the other without an answer: {cause}")
        log.warning(
            "worker %d died%s: %s; another takes its place",
            member.number,
            f" while it had clients {some(pieces[0].members)}" if pieces else "",
            cause,
        )
        if pieces:
            pieces[:1] = self._again(pieces[0], cause, first, size)
        for piece in reversed(pieces):
            if piece.live.task in self._lives:
                piece.live.deadline = None  # time starts again with whoever takes over
                self._queue.appendleft(piece)

    def _again(self, piece: Piece, cause: str, first: int, size: int) -> list[Piece]:
        """Return what is to be tried again of a piece that cost a worker its life."""
        if piece.live.task not in self._lives:
            return []
        piece.deaths += 1
        suspects = self._suspects(piece, first, size)
        rest = [unit for unit in piece.units if unit not in suspects]
        if not rest:
            if piece.deaths < LIVES:
                return [piece]
            if len(piece.members) == 1:
                piece.live.task.failed[piece.members[0]] = (
                    f"its worker died {piece.deaths} times while it was answered for: {cause}; if memory ran out, "
                    "use fewer engine.workers"
                )
                self._settle(piece.live)
                return []
            # Halves even of what belongs together: it agrees to rounding then, which is better than no answer.
            units = piece.units if len(piece.units) > 1 else [[client] for client in piece.members]
            middle = len(units) // 2
            suspects, rest = units[:middle], units[middle:]
            if len(piece.units) == 1:
                log.warning("clients %s are answered for in halves", some(piece.members))
                suspects, rest = [piece.members[:middle]], [piece.members[middle:]]
            piece.deaths -= 1  # halves: one of them is innocent
            deaths = piece.deaths
        else:
            deaths = 0
        share = piece.cost / len(piece.members)
        piece.live.left += 1
        return [
            Piece(piece.live, units, share * sum(map(len, units)), number)
            for units, number in ((suspects, piece.deaths), (rest, deaths))
        ]

    def _suspects(self, piece: Piece, first: int, size: int) -> list[list[int]]:
        """Return the units a worker was busy with when it died; all where that is not known."""
        if (first, size) == IDLE:
            return piece.units
        busy = set(piece.members[first : first + size])
        return [unit for unit in piece.units if busy.intersection(unit)] or piece.units

    def _patience(self) -> float | None:
        deadlines = [live.deadline for live in self._timed if live.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _arm(self) -> None:
        """Let time run for tasks, unless somebody is missing who should work on them."""
        members = self._crew.members
        for live in self._timed:
            behind = live.task.patience is Patience.BEHIND and live is not next(iter(self._lives.values()))
            if live.deadline is not None or live.task.timeout is None or behind:
                continue
            flying = any(piece.live is live for member in members for piece in member.pieces)
            queued = any(piece.live is live for piece in self._queue)
            missing = any(not member.up for member in members)
            if not missing or (flying and not queued):
                live.deadline = time.monotonic() + live.task.timeout

    def _expire(self) -> None:
        """Give up on clients whose time is over; workers that have them in hand are started again."""
        now = time.monotonic()
        for live in [live for live in self._timed if live.deadline is not None and live.deadline <= now]:
            reason = f"no answer within {live.task.timeout:g} s"
            late = self._stopped(live, reason)
            if late and live.task.patience is not Patience.STRICT and not live.extended:
                self._extend(live, late, reason)
            else:
                self._give_up(live, late, reason)

    def _stopped(self, live: Live, reason: str) -> list[Late]:
        """Start workers again that have a task in hand; return what they had and were busy with."""
        late: list[Late] = []
        for member in self._crew.members:
            if not member.pieces or member.pieces[0].live is not live:
                continue
            piece, (first, size) = member.pieces[0], self._crew.marker(member)
            named = piece.members[first : first + size] if (first, size) != IDLE else []
            late.append((piece, self._suspects(piece, first, size), named))
            log.warning("worker %d is late and started again: %s", member.number, reason)
            self._queue.extendleft(reversed(list(member.pieces)[1:]))
            member.pieces.clear()
            member.worked.restarts += 1
            self._crew.restart(member)
        return late

    def _extend(self, live: Live, late: Sequence[Late], reason: str) -> None:
        """Fail the clients that workers were busy with, and give the others as long again."""
        live.extended, live.deadline = True, None
        for piece, units, named in late:
            busy = [client for unit in units for client in unit]
            why = Fault(f"{reason}; its worker was busy with client {some(named or busy)}", flower.NO_ANSWER)
            live.task.failed |= dict.fromkeys(busy, why)
            rest = [unit for unit in piece.units if unit not in units]
            if rest:
                share = piece.cost * len(rest) / len(piece.units)
                self._queue.appendleft(Piece(live, rest, share, piece.deaths))
            else:
                self._settle(live)

    def _give_up(self, live: Live, late: Sequence[Late], reason: str) -> None:
        """Fail all clients of a task that have no answer."""
        missing: dict[int, str] = {}
        culprits: list[int] = []
        for piece, _, named in late:
            culprits += named
            if named:
                missing |= dict.fromkeys(piece.members, f"{reason}; its worker was busy with client {some(named)}")
        answered = {live.task.clients[place] for places, _ in live.parts for place in places}
        others = f"{reason}; workers were busy with client {some(culprits)}" if culprits else reason
        missing = {client: others for client in live.task.clients if client not in answered} | missing
        live.task.failed = {c: Fault(why, flower.NO_ANSWER) for c, why in missing.items()} | live.task.failed
        live.late = True
        live.left = 0
        self._drop(live)
        self._end(live)

    def _fail(self, live: Live, error: EngineError) -> None:
        live.task.error = error
        live.late = True  # others may be at work on it
        self._drop(live)
        self._end(live)

    def _drop(self, live: Live) -> None:
        self._queue = deque(piece for piece in self._queue if piece.live is not live)

    def _settle(self, live: Live) -> None:
        """Take note that one more piece is done with."""
        live.left -= 1
        if live.left == 0:
            self._end(live)

    def _end(self, live: Live) -> None:
        began = time.perf_counter()
        task = live.task
        del self._lives[task]
        if task.timeout is not None:
            self._timed.remove(live)
        rows = live.board.rows(live.note) if live.board is not None and live.note is not None else None
        if live.parts and task.error is None:
            task.merged = type(live.parts[0][1]).merged(live.parts, len(task.clients), rows)
        if live.board is not None:
            if live.late:
                live.board.close()  # whoever still writes to it harms nobody
            else:
                used = isinstance(task.merged, Block) and task.merged.updates is rows
                self._boards.give_back(live.board, rows if used else None)
        task.done = True
        self.used.transfer_s += time.perf_counter() - began
