from __future__ import annotations

import pytest

from fedsim.study_report import write_study_report
from tests.study_report.studies import EVIL, make_study


@pytest.fixture(scope="session")
def rich(tmp_path_factory):
    """The folder of a study that has everything, reported on."""
    folder = make_study(
        tmp_path_factory.mktemp("rich") / "study",
        scenarios=("mnist shards", "heart <2>"),
        methods=("fedavg", "qfedavg", "adafed[scale=min]", "term", EVIL),
        num_clients=100,
        rounds=8,
        system=True,
        tuned=True,
        failed=[("mnist shards", "term", 1)],
        missing=[("mnist shards", "qfedavg", 4)],
        lost=[("heart <2>", "fedavg", 2)],
        status="interrupted",
    )
    write_study_report(folder)
    return folder
