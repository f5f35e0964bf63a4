"""One finished study that many tests read; those that do harm copy it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.study import conductor
from tests.study.studies import DIVERGES, design, scenario

METHODS = ("qfedavg[q=0.5]", "fedavg", {"strategy": "fedavg", "label": "twin"}, DIVERGES)
SEEDS, PARTITIONS = (0, 1, 2), (0, 5)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions crossed with three seeds; of four methods one is another's twin, and one diverges."""
    folder = tmp_path_factory.mktemp("finished")
    made = design(scenario(folder), *METHODS, seeds=SEEDS, partitions=PARTITIONS)
    conductor.compare(made, folder / "study")
    return folder / "study"
