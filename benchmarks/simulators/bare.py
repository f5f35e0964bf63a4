"""FedAvg in a plain PyTorch loop, as fast as it is written by hand: what simulators are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.simulators.contender import Meter
from benchmarks.simulators.workloads import NUM_WORKERS, WORKLOADS, Workload
from fedsim import seeds
from fedsim.parameters import FlatNetwork

LOOK_S = 5.0
"""Seconds between looks whether the other process is still there."""


@dataclass
class _Shared:
    """What the processes of a loop share: data, weights, this round's clients and each process's sum.

    Attributes:
        x: Train examples of all clients, client after client.
        y: Their classes.
        offsets: Client i owns rows offsets[i] to offsets[i + 1].
        theta: The weights, [D].
        sums: Each process's weighted sum of its clients' weights, [P, D].
        drawn: Clients of this round.
    """

    x: Tensor
    y: Tensor
    offsets: list[int]
    theta: Tensor
    sums: Tensor
    drawn: Tensor

    @staticmethod
    def of(workload: Workload, processes: int) -> _Shared:
        federation, theta = workload.federation, workload.network().theta
        count = workload.scenario().server.clients_per_round
        assert count is not None, "every workload says how many clients take part"
        return _Shared(
            x=federation.train.x.share_memory_(),
            y=federation.train.y.share_memory_(),
            offsets=federation.train_offsets.tolist(),
            theta=theta.share_memory_(),
            sums=torch.zeros(processes, len(theta)).share_memory_(),
            drawn=torch.zeros(count, dtype=torch.int64).share_memory_(),
        )


class _Trainer:
    """One process's part of every round."""

    def __init__(self, workload: Workload, shared: _Shared, network: FlatNetwork, place: int) -> None:
        client = workload.scenario().client
        self._shared, self._network, self._place = shared, network, place
        self._trains, self._size, self._lr = workload.trains, client.batch_size, client.lr

    def round(self) -> None:
        """Train every P-th client of the round, from the place of this process on."""
        shared, network = self._shared, self._network
        mine = shared.sums[self._place].zero_()
        drawn: list[int] = shared.drawn.tolist()
        total = sum(shared.offsets[client + 1] - shared.offsets[client] for client in drawn)
        for client in drawn[self._place :: len(shared.sums)]:
            begin, end = shared.offsets[client], shared.offsets[client + 1]
            network.theta.copy_(shared.theta)
            if self._trains:
                self._epoch(shared.x[begin:end], shared.y[begin:end])
            mine.add_(network.theta, alpha=(end - begin) / total)

    def _epoch(self, x: Tensor, y: Tensor) -> None:
        network, order = self._network, torch.randperm(len(y))
        x, y = x[order], y[order]
        for inputs, labels in zip(x.split(self._size), y.split(self._size), strict=True):
            network.grad.zero_()
            cross_entropy(network.network(inputs).logits, labels).backward()
            network.theta.sub_(network.grad, alpha=self._lr)


class _Server:
    """Draws the clients as the platform does, and sums."""

    def __init__(self, workload: Workload, shared: _Shared) -> None:
        self._shared, self._seed, self._round = shared, workload.scenario().seed, 0

    def draw(self) -> None:
        self._round += 1
        generator = seeds.generator(self._seed, "sample", self._round)
        order = torch.randperm(len(self._shared.offsets) - 1, generator=generator)
        self._shared.drawn.copy_(order[: len(self._shared.drawn)].sort().values)

    def step(self) -> None:
        torch.sum(self._shared.sums, 0, out=self._shared.theta)


def one_process(workload: Workload, meter: Meter) -> None:
    """Make rounds in this process, with as many threads as others have processes."""
    torch.set_num_threads(NUM_WORKERS)
    torch.manual_seed(0)
    shared = _Shared.of(workload, 1)
    trainer, server = _Trainer(workload, shared, workload.network(), 0), _Server(workload, shared)
    meter.begin()
    while True:
        server.draw()
        trainer.round()
        server.step()
        meter.lap(lambda: shared.theta.numpy())


def many_processes(workload: Workload, meter: Meter) -> None:
    """Make rounds in this process and others, a thread each, with weights in shared memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spawn: Any = torch.multiprocessing.get_context("spawn")
    shared = _Shared.of(workload, NUM_WORKERS)
    trainer, server = _Trainer(workload, shared, workload.network(), 0), _Server(workload, shared)
    go, done = [spawn.Semaphore(0) for _ in range(1, NUM_WORKERS)], spawn.Semaphore(0)
    others = [
        spawn.Process(target=_help, args=(workload.name, shared, place, go[place - 1], done), daemon=True)
        for place in range(1, NUM_WORKERS)
    ]
    for other in others:
        other.start()
    meter.begin()
    while True:
        server.draw()
        for start in go:
            start.release()
        trainer.round()
        for other in others:
            while not done.acquire(timeout=LOOK_S):
                if not other.is_alive():
                    raise RuntimeError("the other process of the loop died")
        server.step()
        meter.lap(lambda: np.array(shared.theta))


def _help(name: str, shared: _Shared, place: int, go: Any, done: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(place)
    workload = WORKLOADS[name]
    trainer = _Trainer(workload, shared, workload.network(), place)
    while True:
        go.acquire()
        trainer.round()
        done.release()
