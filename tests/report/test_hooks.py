"""The page of a run whose clients had hooks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedsim.report import hooks
from fedsim.report.folder import read
from tests.report.runs import make_run
from tests.report.test_report import assert_self_contained, report


@pytest.fixture
def folder(tmp_path):
    """A run with two hooks, one of them somebody's own; five of ten clients report in each round."""
    made = make_run(tmp_path / "run", num_clients=10)
    (made / "scenario.toml").write_text(
        '[client]\nhooks = ["dp_sgd", {name = "mine.far:Away", x = 1}, "proximal"]\n[strategy]\nname = "fedavg"\n'
    )
    clients = pd.read_parquet(made / "clients.parquet")
    known = (clients["round"] > 0) & (clients["client"] < 5)
    clients["dp_sgd_epsilon"] = (clients["round"] + clients["client"]).astype(float).where(known)
    clients["far_distance"] = np.where(clients["client"] == 0, math.inf, 2.0 * clients["round"])
    clients["dp_sgd_infinite"] = math.inf
    clients["farther"] = 1.0
    clients.to_parquet(made / "clients.parquet")
    return made


def test_every_finite_column_of_a_hook_is_drawn_with_the_clients_that_have_it(folder):
    run = read(folder)
    assert hooks.columns(run) == ["dp_sgd_epsilon", "far_distance"]
    left, right = (axes for axes in hooks.reported(run).axes if axes.get_visible())
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [3, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0, 2, 4, 6, 8, 10, 12])
    page = report(folder)
    assert page.figures["hooks"]
    assert "What the clients' hooks reported" in page.text
    assert_self_contained(page)


def test_without_hooks_or_with_a_scenario_that_cannot_be_read_there_is_no_such_figure(folder):
    for text in ('[strategy]\nname = "fedavg"\n', "not [ toml"):
        (folder / "scenario.toml").write_text(text)
        assert hooks.columns(read(folder)) == []
        assert "hooks" not in report(folder).figures
