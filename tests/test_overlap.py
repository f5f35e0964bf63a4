"""Clients that share examples: indices instead of copies, and the same bits as copies would give."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.app import LocalApp
from fedsim import manifest
from fedsim.datasets import Split
from fedsim.engine.base import BlockGrid
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.partitions import Lists
from fedsim.partitions.iid import Iid
from fedsim.partitions.resampled import Resampled
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation
from tests.test_determinism import HOOKED, assert_same, run
from tests.test_federation import Numbered, numbers

HOME = Path(__file__).resolve().parents[1]


def small(**options: Any) -> Federation:
    scheme = Resampled(num_clients=12, examples=20, **options)
    return Federation.build(Numbered(grouped=True), scheme, 0, Path())


def copied(federation: Federation) -> Federation:
    """The same clients with examples of their own, side by side."""

    def gathered(side: str) -> Split:
        shards = [getattr(federation.client(i), side) for i in range(federation.num_clients)]
        groups = [shard.groups for shard in shards]
        return Split(
            torch.cat([shard.x for shard in shards]),
            torch.cat([shard.y for shard in shards]),
            None if groups[0] is None else torch.cat(groups),
        )

    return replace(federation, train=gathered("train"), test=gathered("test"), train_rows=None, test_rows=None)


class TestFederation:
    def test_a_client_has_what_the_partition_drew(self) -> None:
        federation = small()
        train, test = Resampled(num_clients=12, examples=20).sides(Numbered().load(Path()).train.y.numpy(), 0)
        for client in range(12):
            shard = federation.client(client)
            assert numbers(shard.train) == train[client].tolist()  # example i has the input i
            assert numbers(shard.test) == test[client].tolist()
            assert shard.train.groups is not None
            assert shard.train.groups.tolist() == [number % 3 for number in train[client]]
        assert federation.train_sizes.tolist() == [16] * 12
        assert federation.test_sizes.tolist() == [4] * 12

    def test_examples_are_there_once(self) -> None:
        federation = small()
        assert federation.test is federation.train
        assert len(federation.train) == 100
        assert (federation.train_rows is not None, len(federation.train_rows)) == (True, 12 * 16)  # type: ignore[arg-type]

    def test_a_limit_is_kept(self) -> None:
        scheme = Resampled(num_clients=12, examples=20)
        limited = Federation.build(Numbered(limit=57), scheme, 0, Path())
        owned = {
            n for i in range(12) for side in ("train", "test") for n in numbers(getattr(limited.client(i), side))
        }
        allowed = Federation.build(Numbered(limit=57), Iid(num_clients=1), 0, Path()).client(0)
        assert owned <= set(numbers(allowed.train) + numbers(allowed.test))
        assert len(owned) > 50

    def test_what_is_prepared_for_each_client_is_its_own(self) -> None:
        federation = Federation.build(Numbered(shift=True), Resampled(num_clients=12, examples=20), 0, Path())
        assert federation.train_rows is None
        plain = small()
        for client in range(12):
            mine = federation.client(client)
            top = plain.client(client).train.x.max()
            torch.testing.assert_close(mine.train.x, plain.client(client).train.x - top)
            torch.testing.assert_close(mine.test.x, plain.client(client).test.x - top)

    def test_workers_share_the_one_pool(self) -> None:
        federation = small()
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        pickle.Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(federation)
        read_only = [memoryview(bytes(buffer)).toreadonly() for buffer in buffers]
        copy = pickle.loads(stream.getvalue(), buffers=read_only)
        assert copy.test is copy.train
        assert copy.client(3).train.y.tolist() == federation.client(3).train.y.tolist()
        sizes = [memoryview(buffer).nbytes for buffer in buffers]
        assert sizes.count(100 * 4) == 1  # x, once
        assert sizes.count(12 * 16 * 4) == 1  # the train rows

    def test_sizes_cannot_be_changed_by_who_asks(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            small().train_sizes[0] = 5


BASE: dict[str, Any] = {
    "name": "overlap",
    "rounds": 2,
    "seed": 3,
    "data": {"name": "digits", "limit": 600},
    "partition": {"name": "resampled", "num_clients": 40, "examples": 30, "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [12]},
    "client": {"batch_size": 8, "lr": 0.05},
    "server": {"clients_per_round": 6},
    "strategy": {"name": "fedavg"},
}

CASES: dict[str, dict[str, Any]] = {
    "each": {"client": {"batch_size": 8, "lr": 0.05, "cohort": "each"}},
    "stacked": {"client": {"batch_size": 8, "lr": 0.05, "cohort": "stacked", "block_size": 4}},
    "hooks, each": {"client": {**HOOKED, "cohort": "each"}},
    "hooks, stacked": {"client": {**HOOKED, "cohort": "stacked"}},
    "private, each": {"client": {"batch_size": 8, "lr": 0.05, "cohort": "each", "hooks": [{"name": "dp_sgd"}]}},
    "private, stacked": {
        "client": {"batch_size": 8, "lr": 0.05, "cohort": "stacked", "hooks": [{"name": "dp_sgd"}]}
    },
    "predictor": {"client": {"batch_size": 8, "lr": 0.05, "hooks": [{"name": "ncmi"}]}},
    "line search": {"strategy": {"name": "fedmdfg"}},
    "states": {"strategy": {"name": "dqnfed", "pairs_from": "rounds"}},
    "personal": {"strategy": {"name": "ditto"}},
}


@pytest.mark.parametrize("case", CASES)
def test_indices_give_the_bits_of_copies(case: str, tmp_path: Path) -> None:
    scenario = Scenario.of({**BASE, **CASES[case]})
    federation = build_federation(scenario)

    def once(name: str, owned: Federation) -> dict[str, Any]:
        app = LocalApp(scenario, owned)
        app.check()
        return run(scenario, owned, LocalGrid(app), tmp_path / name)

    found = once("indices", federation)
    assert_same(found, once("copies", copied(federation)))
    assert found["clients"]["test_accuracy"].notna().sum() == 3 * 40


@pytest.mark.slow
def test_ray_workers_give_the_bits_of_one_process(tmp_path: Path, ray_cluster: None) -> None:
    from fedsim.engine.grid import RayGrid

    scenario = Scenario.of({**BASE, "engine": {"workers": 2}})
    federation = build_federation(scenario)
    expected = run(scenario, federation, LocalGrid(LocalApp(scenario, federation)), tmp_path / "local")
    with RayGrid(LocalApp(scenario, federation), scenario.engine) as grid:
        assert_same(run(scenario, federation, grid, tmp_path / "ray"), expected)


class TestManifest:
    def lists(self, sizes: list[int], seed: int = 0) -> Lists:
        stream = np.random.default_rng(seed)
        return Lists.of([np.sort(stream.choice(100, size, replace=False)) for size in sizes])

    def slow_digest(self, name: str, labels: Any, train: Lists, test: Lists) -> str:
        import hashlib

        digest = hashlib.sha256(f"{name}\n".encode())
        digest.update(hashlib.sha256(labels.astype("<i8").tobytes()).digest())
        for client in range(len(train)):
            for rows in (train[client], test[client]):
                digest.update(len(rows).to_bytes(8, "little"))
                digest.update(rows.astype("<i8").tobytes())
        return digest.hexdigest()

    @pytest.mark.parametrize("at_once", [1, 3, 4096])
    def test_the_hash_is_that_of_one_client_after_the_other(
        self, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(manifest, "_AT_ONCE", at_once)
        labels = np.arange(100) % 7
        train, test = self.lists([3, 0, 50, 1, 9]), self.lists([1, 2, 0, 30, 4], seed=1)
        assert manifest.digest("x", labels, train, test) == self.slow_digest("x", labels, train, test)

    def test_many_clients_are_arrays_that_say_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        listed = small().manifest
        monkeypatch.setattr(manifest, "MOST_LISTED", 11)
        packed = json.loads(json.dumps(small().manifest))
        assert "clients" not in packed
        assert packed["sha256"] == listed["sha256"]
        for split in ("train", "test"):
            by_client = {row["client"]: row[split] for row in listed["clients"]}
            assert manifest.counts(packed, split) == manifest.counts(listed, split) == by_client
            assert sum(map(sum, by_client.values())) == 12 * (16 if split == "train" else 4)

    def test_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        train, test, labels = self.lists([3, 2]), self.lists([1, 2]), np.arange(100) % 7
        listed = manifest.shares(labels, 7, ("a", "b"), train, test)
        monkeypatch.setattr(manifest, "MOST_LISTED", 1)
        packed = manifest.shares(labels, 7, ("a", "b"), train, test)
        assert manifest.names(listed) == manifest.names(packed) == {0: "a", 1: "b"}
        assert manifest.names(manifest.shares(labels, 7, None, train, test)) == {}

    def test_damage_is_said(self) -> None:
        with pytest.raises(ValueError, match="the counts of the train examples"):
            manifest.counts({"counts": {"train": "AAAA"}, "num_clients": 3}, "train")


def test_clients_that_never_trained_have_no_state() -> None:
    scenario = Scenario.of({**BASE, **CASES["states"], "partition": {**BASE["partition"], "num_clients": 3000}})
    federation = build_federation(scenario)
    grid: BlockGrid = LocalGrid(LocalApp(scenario, federation))
    from clients.resident import initial_weights
    from fedsim.rounds import run_rounds
    from fedsim.server_app import strategy_of
    from fedsim.wire import pack_arrays

    strategy: Any = strategy_of(scenario)
    strategy.configure_evaluate = lambda *_: []
    strategy.aggregate_evaluate = lambda *_: None
    run_rounds(strategy, grid, pack_arrays(initial_weights(scenario, federation)), num_rounds=2)
    assert 6 <= len(grid.client_states()) <= 12


def test_a_run_of_many_clients_leaves_a_light_folder(tmp_path: Path) -> None:
    from fedsim.report import save_partition_figure, write_report

    changed = {"partition": {"name": "resampled", "num_clients": 11_000, "examples": 20, "alpha": 0.3}}
    scenario = Scenario.of({**BASE, **changed, "model": {"name": "logistic"}, "rounds": 1})
    federation = build_federation(scenario)
    folder = tmp_path / "run"
    found = run(scenario, federation, LocalGrid(LocalApp(scenario, federation)), folder)
    assert len(found["clients"]) == 2 * 11_000
    assert save_partition_figure(folder).stat().st_size < 300_000
    page = write_report(folder).read_text()
    assert len(page) < 1_500_000
    assert "11000 clients, in order of their main class; a column is the mean of about 11" in page


MEASURE = """
import gc
from clients.app import LocalApp
from clients.resident import initial_weights
from fedsim.engine.local import LocalGrid
from fedsim.rounds import run_rounds
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, strategy_of
from fedsim.wire import pack_arrays

def private():
    gc.collect()
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024

def trained(count):
    scenario = Scenario.of({
        "name": "many", "rounds": 3, "data": {"name": "digits"}, "model": {"name": "logistic"},
        "partition": {"name": "resampled", "num_clients": count, "examples": 50, "alpha": 0.5},
        "strategy": {"name": "fedavg"}, "server": {"clients_per_round": 50},
    })
    federation = build_federation(scenario)
    app = LocalApp(scenario, federation)
    grid, strategy = LocalGrid(app), strategy_of(app.scenario, min_available_nodes=count)
    strategy.configure_evaluate = lambda *_: []
    strategy.aggregate_evaluate = lambda *_: None
    run_rounds(strategy, grid, pack_arrays(initial_weights(scenario, federation)), num_rounds=3)
    return grid

kept = trained(1000)
before = private()
kept = [kept, trained(100_000)]
print((private() - before) / 100_000)
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason="skipped: a process's private memory is read from /proc/self/smaps_rollup, which only Linux has",
)
def test_a_registered_client_takes_less_than_two_kilobytes() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=HOME, capture_output=True, text=True, check=True)
    # 50 indices of four bytes, two offsets and two sizes, and what of its counts compression leaves.
    assert 150 < float(done.stdout) < 2000
