"""Seconds a round and memory of the driver, by how many clients are registered: `python -m benchmarks.registered`.

    python -m benchmarks.registered
    python -m benchmarks.registered --clients 1000,100000 --contenders fedsim-local --passes 5
    python -m benchmarks.registered --skip-flower

1,000 clients train in every round, of 1,000, 10,000 and 100,000 that are registered and share MNIST's examples
(partition "resampled", MNIST below FEDSIM_DATA). A round should cost what 1,000 clients cost, and a client that
does not train a few hundred bytes. Federations of one engine take turns of a few rounds, over and over; "x fewest"
is the median over the passes of how many times as fast a federation is as the smallest in the same pass. Evaluation
is off, that of the initial model too. "B a client" is the growth of the driver's private memory from the smallest
federation on, divided by the clients it has more, when all rounds are done.

Flower's own simulation runs the same ClientApp up to --flower-most clients, and is given up after --flower-limit
seconds in which it makes no round; what happened is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.latest import OUT, write
from benchmarks.simulators.__main__ import (
    APART,
    CONTENDERS,
    FLOWER,
    ROOT,
    WARM_ROUNDS,
    machine,
    prepare_environment,
)
from benchmarks.simulators.contender import PATIENCE_S, Contender, ContenderError, Seat
from benchmarks.simulators.workloads import registered
from fedsim.errors import FedSimError

OURS = ("fedsim-local", "fedsim-ray")

ALL = (
    Contender("fedsim-local", "fedsim local, 1 thread", "ours:single"),
    *(contender for contender in CONTENDERS if contender.key in ("fedsim-ray", FLOWER)),
)


@dataclass(frozen=True)
class Result:
    """What one federation needed on one engine.

    Attributes:
        passes: Seconds of each round, by pass.
        private: Bytes of the driver that no other process shares, or None where the system does not say.
        accuracy: On MNIST's test images, after all rounds.
    """

    num_clients: int
    contender: Contender
    passes: list[list[float]]
    first: float
    private: int | None
    accuracy: float

    @property
    def seconds(self) -> float:
        return statistics.median(second for one in self.passes for second in one)

    def faster_than(self, other: Result) -> float:
        """Return how many times as fast this is, pass by pass where they took turns."""
        pairs = zip(self.passes, other.passes, strict=False)
        return statistics.median(statistics.median(theirs) / statistics.median(mine) for mine, theirs in pairs)

    def bytes_more(self, other: Result) -> float | None:
        """Return the bytes that each client beyond the other federation's takes."""
        more = self.num_clients - other.num_clients
        if more <= 0 or self.private is None or other.private is None:
            return None
        return (self.private - other.private) / more


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registered", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="1000,10000,100000", help="numbers of clients, with commas between")
    parser.add_argument("--contenders", default=",".join((*OURS, FLOWER)), help="keys, with commas between")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a federation in one pass")
    parser.add_argument("--passes", type=int, default=3, help="how often every federation has a turn")
    parser.add_argument("--skip-flower", action="store_true", help="leave Flower out: it takes most of the time")
    parser.add_argument("--flower-most", type=int, default=10_000, help="clients up to which Flower is tried")
    parser.add_argument("--flower-limit", type=float, default=300.0, help="seconds without a round until given up")
    options = parser.parse_args()
    counts = sorted({int(number) for number in options.clients.split(",")})
    known = {contender.key: contender for contender in ALL}
    wanted = options.contenders.split(",")
    if unknown := [key for key in wanted if key not in known]:
        parser.error(f"--contenders: no {', '.join(unknown)}; there are {', '.join(known)}")
    if counts[0] < 1000 or options.rounds < 1 or options.passes < 1:
        parser.error("--clients must be at least 1000, --rounds and --passes at least 1")
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as home:
        prepare_environment(home)
        print(machine())
        print(registered(counts[-1]).title)
        for key in (key for key in OURS if key in wanted):
            found += _in_turns(known[key], counts, options.rounds, options.passes)
        if FLOWER in wanted and not options.skip_flower:
            # One after the other: each takes cores and memory even while it waits.
            for count in (count for count in counts if count <= options.flower_most):
                found += _in_turns(known[FLOWER], [count], 1, min(3, options.passes), options.flower_limit)
            for count in (count for count in counts if count > options.flower_most):
                print(f"{known[FLOWER].title}, {count:,} registered: not tried (--flower-most)")
    if not found:
        sys.exit("nothing was measured")
    write(_table(found))
    print(f"\n{OUT.relative_to(ROOT)} has the same numbers")
    ours = [one.accuracy for one in found if one.contender.key in OURS]
    if ours and max(ours) - min(ours) > APART:
        sys.exit("the federations did not reach the same accuracy: these times cannot be compared")


def _in_turns(
    contender: Contender, counts: Sequence[int], rounds: int, passes: int, patience_s: float = PATIENCE_S
) -> list[Result]:
    """Measure federations of several sizes on one engine."""
    seats: dict[int, Seat] = {}
    times: dict[int, list[list[float]]] = {}
    try:
        for count in counts:
            print(f"starting {contender.title}, {count:,} registered", flush=True)
            try:
                seats[count] = Seat(contender, registered(count), patience_s)
                seats[count].turn(WARM_ROUNDS if contender.key in OURS else 1)
            except ContenderError as error:
                print(f"{contender.title}, {count:,} registered: left out: {error}", flush=True)
                if count in seats:
                    seats.pop(count).leave()
        for _ in range(passes):
            for count, seat in list(seats.items()):
                try:
                    times.setdefault(count, []).append(seat.turn(rounds))
                except ContenderError as error:
                    print(f"{contender.title}, {count:,} registered: stopped: {error}", flush=True)
                    seats.pop(count).leave()
        results = []
        for count, seat in seats.items():
            private = seat.private_bytes()
            accuracy = registered(count).accuracy(seat.end())
            results.append(Result(count, contender, times[count], seat.first_round, private, accuracy))
        return results
    finally:
        for seat in seats.values():
            seat.leave()


def _table(found: Sequence[Result]) -> list[dict[str, Any]]:
    """Print what was found, and return it as rows of the JSON file."""
    flower = [one for one in found if one.contender.key == FLOWER]
    print(f"\n{'':34s}{'registered':>11s}{'s a round':>10s}{'x fewest':>10s}{'x Flower':>10s}", end="")
    print(f"{'B a client':>12s}{'first':>8s}{'accuracy':>10s}")
    rows: list[dict[str, Any]] = []
    for one in found:
        fewest = min((other for other in found if other.contender is one.contender), key=lambda r: r.num_clients)
        # Where Flower was not tried, the largest federation that it managed.
        beside = [other for other in flower if other.num_clients <= one.num_clients]
        bases = {f"{one.contender.key}-{fewest.num_clients}": fewest}
        if beside:
            bases[FLOWER if beside[-1].num_clients == one.num_clients else f"flower-{beside[-1].num_clients}"] = (
                beside[-1]
            )
        each = one.bytes_more(fewest)
        row = {
            "name": f"registered-{one.num_clients}",
            "contender": one.contender.key,
            "seconds": one.seconds,
            "first_round": one.first,
            "accuracy": one.accuracy,
            "bytes_per_client": each,
        }
        ratios = {key: one.faster_than(base) for key, base in bases.items()}
        rows += [{**row, "baseline": key, "ratio": ratio} for key, ratio in ratios.items()]
        shown = [f"{ratio:.3g}" for ratio in ratios.values()]
        against = shown[1] + ("" if FLOWER in bases else "*") if len(shown) > 1 else ""
        memory = "" if each is None else f"{each:,.0f}"
        print(
            f"{one.contender.title:34s}{one.num_clients:11,d}{one.seconds:10.4f}{shown[0]:>10s}{against:>10s}",
            end="",
        )
        print(f"{memory:>12s}{one.first:8.1f}{one.accuracy:10.4f}")
    if any(row["baseline"].startswith("flower-") for row in rows):
        print("* beside Flower with the most clients that it was tried with")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except FedSimError as error:
        sys.exit(f"{error}")
