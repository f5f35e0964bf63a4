"""Within a pair every method has the same data, partition, initial weights and clients; what has not is refused."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fedsim.study import conductor
from fedsim.study.fair_play import unlike
from tests.study.conftest import PARTITIONS, SEEDS
from tests.study.studies import Counted, copied, design, entry, rewrite, scenario, study_of, told

OURS = "qfedavg[q=0.5]"


def asked(folder: Path) -> list[tuple[int, int]]:
    """Return (round, client) of everyone who was asked to train."""
    rows = pd.read_parquet(folder / "clients.parquet")
    rows = rows[rows["sampled"] | (rows["failed"] & (rows["round"] > 0))]
    return sorted(zip(rows["round"].tolist(), rows["client"].tolist(), strict=True))


def first_losses(folder: Path) -> list[float]:
    """Return the test loss of the initial model on every client: of its weights, the data and who has which."""
    rows = pd.read_parquet(folder / "clients.parquet")
    return [float(loss) for loss in rows[rows["round"] == 0].sort_values("client")["test_loss"]]


def by_pair(folder: Path) -> dict[tuple[int, int], dict[str, Path]]:
    found: dict[tuple[int, int], dict[str, Path]] = defaultdict(dict)
    for run in study_of(folder)["runs"]:
        if run["status"] == "finished":
            found[run["partition"], run["seed"]][run["method"]] = folder / run["folder"]
    return found


class TestOfRunFolders:
    def test_every_method_of_a_pair_has_the_same_to_work_with(self, finished: Path) -> None:
        pairs = by_pair(finished)
        assert len(pairs) == len(PARTITIONS) * len(SEEDS)
        for runs in pairs.values():
            assert set(runs) == {"fedavg", OURS, "twin"}
            ours, theirs = runs[OURS], runs["fedavg"]
            assert asked(ours) == asked(theirs)
            assert len(asked(ours)) == 2 * 2  # rounds x clients a round
            assert first_losses(ours) == first_losses(theirs)
            manifests = [json.loads((run / "manifest.json").read_text()) for run in (ours, theirs)]
            assert manifests[0] == manifests[1]
            models = [load_file(run / "model.safetensors") for run in (ours, theirs)]
            assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])

    def test_pairs_differ_in_what_they_are_drawn_from(self, finished: Path) -> None:
        hashes = {
            pair: json.loads((runs["fedavg"] / "manifest.json").read_text())["sha256"]
            for pair, runs in by_pair(finished).items()
        }
        for (partition, seed), found in hashes.items():
            for (other, _), theirs in hashes.items():
                assert (found == theirs) == (partition == other), seed
        samples = {tuple(asked(runs["fedavg"])) for pair, runs in by_pair(finished).items() if pair[0] == 0}
        assert len(samples) == len(SEEDS)
        initial = {tuple(first_losses(runs["fedavg"])) for runs in by_pair(finished).values()}
        assert len(initial) == len(PARTITIONS) * len(SEEDS)

    def test_the_hashes_of_a_pair_are_those_of_its_runs(self, finished: Path) -> None:
        study = study_of(finished)
        for pair in study["pairs"]:
            for run in study["runs"]:
                if (run["partition"], run["seed"], run["status"]) == (pair["partition"], pair["seed"], "finished"):
                    summary = json.loads((finished / run["folder"] / "summary.json").read_text())
                    for name in ("partition_sha256", "data_sha256", "initial_sha256"):
                        assert pair[name] == run[name] == summary[name]


class TestTampered:
    @pytest.mark.parametrize(
        ("key", "words"),
        [("data_sha256", "data"), ("initial_sha256", "initial weights"), ("partition_sha256", "partition")],
    )
    def test_a_run_of_something_else_is_refused_by_name(
        self, finished: Path, tmp_path: Path, key: str, words: str
    ) -> None:
        folder = copied(finished, tmp_path / "study")
        victim = self.victim(folder, OURS)
        rewrite(folder / victim["folder"] / "summary.json", **{key: "0" * 64})
        self.refused(folder, victim, f"has another {words} than fedavg with the same seed")

    def test_other_clients_are_refused(self, finished: Path, tmp_path: Path) -> None:
        folder = copied(finished, tmp_path / "study")
        victim = self.victim(folder, OURS)
        path = folder / victim["folder"] / "clients.parquet"
        rows = pd.read_parquet(path)
        first = rows["round"] == 1
        rows.loc[first, "sampled"] = ~rows.loc[first, "sampled"]
        rows.to_parquet(path)
        self.refused(folder, victim, "has another clients a round than fedavg")

    def test_where_the_baseline_is_the_odd_one_its_pair_has_no_difference(
        self, finished: Path, tmp_path: Path
    ) -> None:
        folder = copied(finished, tmp_path / "study")
        victim = self.victim(folder, "fedavg")
        rewrite(folder / victim["folder"] / "summary.json", data_sha256="0" * 64)
        conductor.report(folder)
        found = study_of(folder)
        assert entry(found, OURS, "mean")["difference"]["n"] == len(SEEDS) - 1

    def test_a_study_with_such_a_run_does_not_end_well(self, finished: Path, tmp_path: Path) -> None:
        folder = copied(finished, tmp_path / "study")
        rewrite(folder / self.victim(folder, OURS)["folder"] / "summary.json", data_sha256="0" * 64)
        made = design(scenario(tmp_path), "fedavg", OURS, seeds=SEEDS, partitions=PARTITIONS)
        found = conductor.compare(made, folder, replaces=True)
        assert found["status"] == "failed"
        with pytest.raises(conductor.RoundError, match=r"1 of 12 runs failed\n  small, qfedavg.*another data"):
            conductor.raise_for(found, folder)

    @staticmethod
    def victim(folder: Path, method: str) -> dict[str, Any]:
        return next(
            dict(r) for r in study_of(folder)["runs"] if (r["method"], r["partition"], r["seed"]) == (method, 5, 1)
        )

    @staticmethod
    def refused(folder: Path, victim: dict[str, Any], words: str) -> None:
        before = study_of(folder)
        conductor.report(folder)
        found = study_of(folder)
        bad = [run for run in found["runs"] if run["status"] == "refused"]
        assert [(run["method"], run["partition"], run["seed"]) for run in bad] == [(OURS, 5, 1)]
        assert words in bad[0]["error"]
        place = [(run["partition"], run["seed"]) for run in found["pairs"]].index((5, 1))
        values = entry(before, OURS, "mean")["values"]
        values[place] = None
        assert entry(found, OURS, "mean")["values"] == values
        assert entry(found, OURS, "mean")["difference"]["n"] == len(SEEDS) - 1
        assert entry(found, "twin", "mean")["difference"]["n"] == len(SEEDS)
        assert any(
            "1 of 24 runs are not compared: small, qfedavg[q=0.5], seed 1, partition 5." in w
            for w in found["warnings"]
        )
        assert victim["folder"] == bad[0]["folder"]


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("clients.parquet", None),
        ("clients.parquet", -9),
        ("environment.json", None),
        ("environment.json", 0),
        ("manifest.json", None),
        ("summary.json", -9),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_made_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keep: int | None
) -> None:
    """A file is missing, or ends early."""
    folder = copied(finished, tmp_path / "study")
    whole = told(folder)
    victim = TestTampered.victim(folder, OURS)
    path = folder / victim["folder"] / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    conductor.report(folder)
    bad = TestTampered.victim(folder, OURS)
    assert bad["status"] == "failed"
    assert bad["error"].startswith("its folder is damaged (")
    assert bad["error"].endswith("); the next `compare` makes it again")
    assert entry(study_of(folder), OURS, "mean")["n"] == len(SEEDS) - 1
    assert study_of(folder)["status"] == "failed"
    made = Counted(monkeypatch).during(lambda: conductor.resume(folder))
    assert sorted(set(made) - {name for name in made if ", wild, " in name}) == [f"small, {OURS}, p5-s1"]
    assert told(folder)["runs"] == whole["runs"]
    assert told(folder)["results"] == whole["results"]


def test_devices_that_are_away_may_answer_differently(tmp_path: Path) -> None:
    """With a system model, whom a round has depends on how long a method's rounds take."""
    away: dict[str, Any] = {"system": {"dropout": 0.1}}
    for tables, allowed in (({}, False), (away, True)):
        made = design(scenario(tmp_path, **tables), "fedavg", OURS, seeds=1)
        hashes = {"partition_sha256": "a", "data_sha256": "b", "initial_sha256": "c"}
        records = [
            (run, {**hashes, "method": run.method, "samples_sha256": str(place)})
            for place, run in enumerate(made.runs({}))
        ]
        refused = list(unlike(records, "fedavg"))
        assert (not refused) == allowed


def test_a_client_that_failed_under_one_method_was_still_asked(finished: Path, tmp_path: Path) -> None:
    """With max_failures a run goes on without it, and is compared with the runs in which it answered."""
    folder = copied(finished, tmp_path / "study")
    victim = TestTampered.victim(folder, OURS)
    path = folder / victim["folder"] / "clients.parquet"
    rows = pd.read_parquet(path)
    lost = rows.index[(rows["round"] == 1) & rows["sampled"]][0]
    rows.loc[lost, ["sampled", "failed"]] = [False, True]
    rows.to_parquet(path)
    conductor.report(folder)
    assert TestTampered.victim(folder, OURS)["status"] == "finished"
