"""Seconds a round of this platform, of Flower's simulation and of PyTorch loops by hand, side by side in one run.

    python -m benchmarks.simulators
    python -m benchmarks.simulators --only W1,W3 --rounds 3 --passes 2 --skip-flower
    python -m benchmarks.simulators --only W2 --contenders bare-tuned,fedsim-ray

Every contender trains from the same weights on the same shards (MNIST below FEDSIM_DATA), in processes of its own
that stay for the whole run. They take turns of a few rounds, over and over; a ratio is the median over the passes
of the ratio of two contenders' medians in one pass, since what else the machine does slows both. (It slows those
most that have two threads in one process.) Evaluation is off. `first` is the time from the start of the process to
the end of the first round; that round and the next two are not part of the others. The models reached are tested
in the end, after as many rounds each.

benchmarks/out/latest.json gets the same numbers; a ratio is how many times as fast as the baseline.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latest import OUT, write
from benchmarks.simulators.contender import MALLOC, Contender, ContenderError, Seat
from benchmarks.simulators.workloads import NUM_WORKERS, WORKLOADS, Floats, Workload
from fedsim.errors import FedSimError

ROOT = Path(__file__).resolve().parents[2]

WARM_ROUNDS = 2
"""Rounds after the first that are not measured: allocators, caches and Flower's second actor settle in them."""

APART = 0.02
"""Accuracies after the same number of rounds differ by less if all train alike."""

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


TUNED, FLOWER = "bare-tuned", "flower"
CONTENDERS = (
    Contender("bare-1", f"loop, 1 process x {NUM_WORKERS} threads", "bare:one_process"),
    Contender("bare-2", f"loop, {NUM_WORKERS} processes x 1 thread", "bare:many_processes"),
    Contender(TUNED, "the same, malloc not trimming", "bare:many_processes", MALLOC),
    Contender(FLOWER, f"Flower's simulation, {NUM_WORKERS} actors", "flower:simulation", restless=True),
    Contender("fedsim-ray", f"fedsim, {NUM_WORKERS} Ray workers", "ours:ray"),
    Contender("fedsim-local", f"fedsim local, {NUM_WORKERS} threads", "ours:local"),
)


@dataclass(frozen=True)
class Result:
    """What one contender needed for one workload.

    Attributes:
        passes: Seconds of each round, by pass.
        first: Seconds from the start of its process to the end of its first round.
        theta: The weights it reached.
    """

    contender: Contender
    passes: list[list[float]]
    first: float
    theta: Floats

    @property
    def seconds(self) -> float:
        return statistics.median(second for one in self.passes for second in one)

    def faster_than(self, other: Result) -> float:
        pairs = zip(self.passes, other.passes, strict=True)
        return statistics.median(statistics.median(theirs) / statistics.median(mine) for mine, theirs in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulators", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas between")
    keys = [one.key for one in CONTENDERS]
    parser.add_argument("--contenders", default=",".join(keys), help="keys, with commas between")
    parser.add_argument(
        "--rounds", type=int, help="rounds of a contender in one pass (default: 5, or 40 short ones)"
    )
    parser.add_argument("--passes", type=int, default=3, help="how often every contender has a turn")
    parser.add_argument("--skip-flower", action="store_true", help="leave Flower out: it takes most of the time")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"--only: no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if (options.rounds or 1) < 1 or options.passes < 1:
        parser.error("--rounds and --passes must be at least 1")
    wanted = set(options.contenders.split(","))
    if unknown := wanted - set(keys):
        parser.error(f"--contenders: no {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    if options.skip_flower:
        wanted.discard(FLOWER)
    contenders = [one for one in CONTENDERS if one.key in wanted]
    with tempfile.TemporaryDirectory() as home:
        prepare_environment(home)
        print(machine())
        found = [
            _workload(WORKLOADS[name], contenders, options.rounds or WORKLOADS[name].rounds, options.passes)
            for name in names
        ]
    write([row for rows, _ in found for row in rows])
    print(f"\n{OUT.relative_to(ROOT)} has the same numbers")
    if not all(alike for _, alike in found):
        sys.exit("the contenders did not do the same work: these times cannot be compared")


def prepare_environment(home: str) -> None:
    """Set what processes of the contenders inherit: the code is found, and Flower stays at home."""
    for name, value in {**SETTINGS, "FLWR_HOME": home}.items():
        os.environ.setdefault(name, value)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["RAY_ADDRESS"] = "local"  # a cluster that somebody else has is not what is measured


def machine() -> str:
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "flwr", "ray"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    load = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    return f"{_processor()}, {os.cpu_count()} cores{load}; {', '.join(versions)}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _workload(
    workload: Workload, contenders: Sequence[Contender], rounds: int, passes: int
) -> tuple[list[dict[str, Any]], bool]:
    """Measure one workload; return its rows and whether all contenders did the same work."""
    try:
        start = workload.network().theta.numpy()
    except FedSimError as error:
        sys.exit(f"{error}")
    print(f"\n{workload.name}: {workload.title}; {len(start):,} parameters", flush=True)
    results = _measure(workload, contenders, rounds, passes)
    by_key = {result.contender.key: result for result in results}
    tuned, flower = by_key.get(TUNED), by_key.get(FLOWER)
    checked = "accuracy" if workload.trains else "weights"
    print(f"{'':34s}{'s a round':>10s}{'x tuned loop':>14s}{'x Flower':>10s}{'first':>8s}{checked:>10s}")
    rows: list[dict[str, Any]] = []
    accuracies: list[float] = []
    kept = True
    for result in results:
        ratios = {key: result.faster_than(base) for key, base in ((TUNED, tuned), (FLOWER, flower)) if base}
        row = {"name": workload.name, "contender": result.contender.key, "seconds": result.seconds}
        row |= {"first_round": result.first}
        if workload.trains:
            accuracies.append(workload.accuracy(result.theta))
            row["accuracy"] = accuracies[-1]
            verdict = f"{accuracies[-1]:.4f}"
        else:
            same = bool(np.allclose(result.theta, start, atol=1e-5))
            kept, verdict = kept and same, "same" if same else "CHANGED"
        rows += [{**row, "baseline": key, "ratio": ratio} for key, ratio in ratios.items()]
        shown = [f"{ratios[key]:.3g}" if key in ratios else "" for key in (TUNED, FLOWER)]
        title = result.contender.title
        print(f"{title:34s}{result.seconds:10.4f}{shown[0]:>14s}{shown[1]:>10s}{result.first:8.1f}{verdict:>10s}")
    apart = max(accuracies) - min(accuracies) if accuracies else 0.0
    total = 1 + WARM_ROUNDS + rounds * passes
    print(f"medians of {passes} passes of {rounds} rounds; models after {total} rounds", flush=True)
    return rows, kept and apart < APART


def _measure(workload: Workload, contenders: Sequence[Contender], rounds: int, passes: int) -> list[Result]:
    seats: dict[str, Seat] = {}
    times: dict[str, list[list[float]]] = {}
    results = []
    try:
        for contender in contenders:
            print(f"starting {contender.title}", flush=True)
            try:
                seats[contender.key] = Seat(contender, workload)
                seats[contender.key].turn(WARM_ROUNDS)
            except ContenderError as error:
                print(f"{contender.title} cannot run, left out: {error}", flush=True)
                seats.pop(contender.key, None)
        for _ in range(passes):
            for key, seat in seats.items():
                times.setdefault(key, []).append(seat.turn(rounds))
        for contender in contenders:
            if contender.key in seats:
                seat = seats[contender.key]
                results.append(Result(contender, times[contender.key], seat.first_round, seat.end()))
    finally:
        for seat in seats.values():
            seat.leave()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
