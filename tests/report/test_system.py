"""Accuracy against time and traffic in the report: what is drawn, and that it is there only where it is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.report import system, write_report
from fedsim.report.folder import read
from fedsim.report.style import styled
from tests.report.runs import make_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose rounds took 30 minutes and 1.5 MB each, evaluated in every second round."""
    folder = make_run(tmp_path / "run", rounds=6, every=2)
    rounds = np.arange(7)
    evaluated = np.where(rounds % 2 == 0, 0.1 * rounds, np.nan)
    pd.DataFrame(
        {
            "round": rounds,
            "simulated_time": 1800.0 * rounds,
            "bytes_down": np.where(rounds > 0, 1_000_000, 0),
            "bytes_up": np.where(rounds > 0, 500_000, 0),
            "mean_accuracy": evaluated,
            "worst_10": evaluated / 2,
        }
    ).to_parquet(folder / "rounds.parquet")
    summary = json.loads((folder / "summary.json").read_text())
    summary["system"] = {
        "simulated_time": 10800.0,
        "bytes_down": 6_000_000,
        "bytes_up": 3_000_000,
        "num_selected": 60,
        "num_dropped": 6,
        "num_late": 15,
        "rounds_without_answers": 1,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_lines_are_the_tables_in_units_one_can_read(folder: Path) -> None:
    with styled():
        drawing = system.accuracy_against_cost(read(folder))
    left, right = drawing.axes
    assert left.get_xlabel() == "simulated time (hours)"
    assert right.get_xlabel() == "traffic, down and up (MB)"
    for axes, x in ((left, [0, 1, 2, 3]), (right, [0, 3, 6, 9])):
        mean, worst = axes.lines
        np.testing.assert_allclose(mean.get_xdata(), x)
        np.testing.assert_allclose(mean.get_ydata(), [0, 20, 40, 60])
        np.testing.assert_allclose(worst.get_ydata(), [0, 10, 20, 30])


def test_the_page_shows_the_figure_and_what_the_run_cost(folder: Path) -> None:
    page = write_report(folder).read_text()
    section = page.split('id="system"')[1].split("<h2")[0]
    assert "<svg" in section
    cells = dict(re.findall(r'<tr><th scope="row">([^<]*)</th><td[^>]*>([^<]*)</td>', section))
    assert cells["simulated time"] == "3 hours"
    assert cells["sent to clients"] == "6 MB"
    assert cells["sent by clients"] == "3 MB"
    assert cells["lost on the way"].replace("\u00a0", " ") == "6 of 60 clients asked (10.0 %)"
    assert cells["late"].startswith("15 of 60")
    assert cells["rounds without an answer"] == "1"


def test_a_run_without_devices_has_no_such_section(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "plain")).read_text()
    assert 'id="system"' not in page
    assert not len(system.known(read(tmp_path / "plain")))


def test_a_round_written_twice_counts_once(folder: Path) -> None:
    rounds = pd.read_parquet(folder / "rounds.parquet")
    pd.concat([rounds, rounds.tail(2)]).to_parquet(folder / "rounds.parquet")
    assert system.known(read(folder))["traffic"].tolist() == [0, 3e6, 6e6, 9e6]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 seconds"), (90.0, "90 seconds"), (150.0, "2.5 minutes"), (200_000.0, "2.31 days")]
)
def test_amounts(value: float, text: str) -> None:
    assert system._amount(value, system.TIMES) == text
