"""The tables of runs and studies against the files they are read from."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.errors import DataError
from fedsim.fairness import CONVENTIONS, fairness_block
from fedsim.frames import KEYS
from tests.report.runs import make_run
from tests.study_report.studies import edit, make_study


def test_a_run_is_its_tables(tmp_path):
    folder = make_run(tmp_path / "run", num_clients=7, rounds=4, every=2)
    run = fedsim.load_run(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert run.scenario["name"] == "digits"
    assert run.summary == summary
    assert len(run.clients) == 7 * 5
    table = run.measures.set_index(["metric", "measure"])["value"]
    for metric in ("test_accuracy", "test_loss"):
        for measure in CONVENTIONS:
            assert table[metric, measure] == summary["fairness"][metric][measure]
    assert len(table) == 2 * len(CONVENTIONS)


def test_measures_of_a_run_that_was_killed_are_those_of_its_last_evaluation(tmp_path):
    folder = make_run(tmp_path / "run", rounds=5, every=2, status="interrupted")
    run = fedsim.load_run(str(folder))
    assert run.summary == {}
    assert run.problems == ("summary.json is missing",)
    last = run.clients[(run.clients["round"] == 4)]
    expected = fairness_block(last["test_accuracy"], last["test_examples"], higher_is_better=True)
    found = run.measures[run.measures["metric"] == "test_accuracy"].set_index("measure")["value"]
    assert found["worst_10"] == pytest.approx(expected["worst_10"])


def test_a_round_written_twice_counts_once(tmp_path):
    folder = make_run(tmp_path / "run", rounds=2)
    for name in ("clients", "rounds"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        again = table[table["round"] == 2].assign(seconds=99.0)
        pd.concat([table, again]).to_parquet(folder / f"{name}.parquet")
    run = fedsim.load_run(folder)
    assert not run.clients.duplicated(["round", "client"]).any()
    assert (run.clients.loc[run.clients["round"] == 2, "seconds"] == 99.0).all()
    assert run.rounds["round"].is_unique


def test_what_is_no_run_or_study_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="not a run folder"):
        fedsim.load_run(tmp_path)
    with pytest.raises(DataError, match=r"study\.json: no such file"):
        fedsim.load_study(tmp_path)
    (tmp_path / "study.json").write_text('{"layout": 1, ')
    with pytest.raises(DataError, match="cannot be read"):
        fedsim.load_study(tmp_path)
    (tmp_path / "study.json").write_text('{"layout": 2}')
    with pytest.raises(DataError, match="layout must be 1, got 2"):
        fedsim.load_study(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(DataError, match="layout must be 1, got list"):
        fedsim.load_study(tmp_path)


def test_a_study_has_a_row_for_each_run_and_result(tmp_path):
    methods = ("fedavg", "term")
    study = fedsim.load_study(make_study(tmp_path / "s", methods=methods, seeds=3, scenarios=("a", "b")))
    assert list(study.runs.columns[:4]) == KEYS
    assert len(study.runs) == 2 * 2 * 3
    assert study.runs["partition"].isna().all()
    assert len(study.results) == 2 * 2 * (len(CONVENTIONS) + 1)  # all but n, and two of the losses
    # The flat columns are the nested ones, and means are those of the runs.
    for entry in study.info["results"]:
        mask = study.results[["scenario", "method", "metric"]] == [
            entry[k] for k in ("scenario", "method", "metric")
        ]
        row = study.results[mask.all(axis=1)].iloc[0]
        assert row["mean"] == entry["mean"]
        if entry["metric"] in CONVENTIONS:
            mine = study.runs[
                (study.runs["scenario"] == entry["scenario"]) & (study.runs["method"] == entry["method"])
            ]
            assert mine[entry["metric"]].mean() == pytest.approx(row["mean"])
        difference = entry["difference"]
        if difference is None:
            assert entry["method"] == "fedavg"
            assert np.isnan(row["difference"])
        else:
            assert row["difference"] == difference["mean"]
            assert row["difference_low"] == difference["interval"][0]
            assert row["t_p"] == difference["t"]["p"]
            assert row["significant"] == difference["significant"]


def test_tables_of_all_runs_begin_with_what_names_them(tmp_path):
    study = fedsim.load_study(make_study(tmp_path / "s", seeds=2, num_clients=5, rounds=4, every=2))
    for table in (study.clients, study.rounds, study.final):
        assert list(table.columns[:4]) == KEYS
    assert len(study.final) == 4 * 2 * 5
    assert len(study.clients) == 4 * 2 * 5 * 3
    assert len(study.rounds) == 4 * 2 * 5
    by_run = study.final.groupby(["method", "seed"])["test_accuracy"].mean()
    for _, run in study.runs.iterrows():
        assert by_run[run["method"], run["seed"]] == pytest.approx(run["mean"])
    assert study.problems == ()


def test_values_stand_beside_their_pairs_whichever_pairs_are_finished(tmp_path):
    folder = make_study(tmp_path / "s", methods=("fedavg", "afl"), seeds=3, partitions=2)

    def half_done(info):
        info["pairs"] = [pair for pair in info["pairs"] if pair["seed"] != 0][::-1]

    study = fedsim.load_study(edit(folder, half_done))
    values = study.values[study.values["metric"] == "worst_10"].set_index(KEYS)["value"]
    assert len(values) == 12
    for _, run in study.runs.iterrows():
        assert values[tuple(run[KEYS])] == run["worst_10"]


def test_runs_that_failed_or_are_gone_leave_the_rest(tmp_path):
    scenario = "mnist_shards"
    study = fedsim.load_study(
        make_study(
            tmp_path / "s",
            failed=[(scenario, "term", 1)],
            missing=[(scenario, "qfedavg", 0)],
            lost=[(scenario, "fedavg", 2)],
            num_clients=5,
        )
    )
    there = set(study.final[["method", "seed"]].drop_duplicates().itertuples(index=False, name=None))
    assert len(there) == 4 * 5 - 3
    assert not {("term", 1), ("qfedavg", 0), ("fedavg", 2)} & there
    assert len(study.problems) == 1
    assert "no such folder" in study.problems[0]
    assert study.runs.set_index(["method", "seed"]).loc[("term", 1), "error"].startswith("client 3, round 4")


def test_an_empty_study_has_the_same_columns(tmp_path):
    folder = make_study(tmp_path / "s", seeds=1, num_clients=4)
    full = fedsim.load_study(folder)

    def emptied(info):
        info["runs"], info["results"], info["pairs"], info["wins"] = [], [], [], []

    study = fedsim.load_study(edit(folder, emptied))
    assert list(study.results.columns) == list(full.results.columns)
    assert (study.results.dtypes == full.results.dtypes).all()
    assert list(study.wins.columns) == list(full.wins.columns)
    assert len(study.final) == len(study.rounds) == len(study.clients) == 0


def test_importing_fedsim_stays_light():
    code = "import fedsim, sys; print(sorted({'pandas', 'matplotlib', 'torch', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        fedsim.load_nothing  # noqa: B018
