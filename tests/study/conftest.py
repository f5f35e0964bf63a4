"""One finished study that many tests read; those that do harm copy it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.study import conductor
from tests.study.studies import DIVERGES, design, scenario

METHODS = ("qfedavg[q=0.5]", "fedavg", {"strategy": "fedavg", "label": "twin"}, DIVERGES)
SEEDS, PARTITIONS = (0, 1, 2), (0, 5)


@pytest.fixture(scope="package", autouse=True)
def without_a_page() -> Iterator[None]:
    """Figures take longer than such a study, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conductor, "write_study_report", lambda _folder: None)
        yield


@pytest.fixture(scope="package")
def finished(without_a_page: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions crossed with three seeds; of four methods one is another's twin, and one diverges."""
    del without_a_page
    folder = tmp_path_factory.mktemp("finished")
    made = design(scenario(folder), *METHODS, seeds=SEEDS, partitions=PARTITIONS)
    conductor.compare(made, folder / "study")
    return folder / "study"
