"""A Ray cluster of two nodes: both work, and the bits are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

HOME = Path(__file__).parents[2]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def address() -> Iterator[str]:
    """Where a head and a second raylet wait, each with room for one worker."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()  # its word to end
        process.wait(60)
        process.stdout.close()


def run(folder: Path, *changes: str) -> dict[str, Any]:
    command = [sys.executable, "run_sim.py", "run", "quickstart", "--out", str(folder)]
    for change in ("rounds=2", "client.cohort=each", "strategy.name=scaffold", *changes):
        command += ["--set", change]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        "summary": json.loads((folder / "summary.json").read_text()),
        "profile": json.loads((folder / "profile.json").read_text()),
        "clients": pd.read_parquet(folder / "clients.parquet"),
    }


@pytest.mark.slow
def test_two_nodes_share_the_work_and_change_no_bit(address: str, tmp_path: Path) -> None:
    there = run(tmp_path / "cluster", f"engine.address={address}")
    here = run(tmp_path / "local", "engine.backend=local")
    assert there["summary"]["model_sha256"] == here["summary"]["model_sha256"]
    pd.testing.assert_frame_equal(there["clients"], here["clients"], check_exact=True)
    workers = there["profile"]["workers"]
    assert len({worker["node"] for worker in workers}) == len(workers) == 2
    assert all(worker["answered"] > 0 for worker in workers)
    assert sum(worker["answered"] for worker in workers) == 20 * (2 + 3)  # two trainings, three evaluations
    assert "answers, busy" in (tmp_path / "cluster" / "log.txt").read_text()
