"""However a study is spread over processes, and whichever of them die: the same study.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.study import conductor
from tests.study.studies import design, scenario, study_of, told

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

RAY = ("engine.backend=ray", "engine.workers=2")


def without_the_engine(study: dict[str, Any]) -> dict[str, Any]:
    """Return study.json without where it was run, which is in the text of its scenarios alone."""
    for about in study["design"]["scenarios"]:
        head, _, rest = about.pop("toml").partition("[engine]")
        about["toml"] = head + rest.partition("\n[")[2]
    return study


def test_any_parallelism_gives_the_same_study(tmp_path: Path) -> None:
    """Clients that keep a state, a method that fails: one run after the other, runs at once, clients at once."""
    methods = ("fedavg", {"strategy": "tests.study.rules:Unsound", "label": "unsound"}, "scaffold")
    path = scenario(tmp_path)
    found = {}
    for name, changes, parallel in (("local", (), None), ("runs", RAY, "runs"), ("clients", RAY, "clients")):
        made = design(path, *methods, changes=changes, seeds=2)
        conductor.compare(made, tmp_path / name, parallel=parallel)  # type: ignore[arg-type]
        found[name] = told(tmp_path / name)
    assert [run["status"] for run in found["local"]["runs"]] == ["finished", "failed", "finished"] * 2
    assert found["runs"] == found["clients"]
    assert without_the_engine(found["runs"]) == without_the_engine(found["local"])


def test_a_worker_that_is_killed_costs_nothing_and_one_that_always_is_costs_its_run(tmp_path: Path) -> None:
    marks = {name: tmp_path / name for name in ("once", "twice")}
    for folder in marks.values():
        folder.mkdir()
    deadly = [
        {
            "strategy": "tests.study.rules:Deadly",
            "label": name,
            "changes": [f'strategy.marks="{folder}"', f"strategy.deaths={deaths}"],
        }
        for deaths, (name, folder) in enumerate(marks.items(), 1)
    ]
    path, out = scenario(tmp_path, rounds=3), tmp_path / "out"
    found = conductor.compare(design(path, "fedavg", *deadly, seeds=1, changes=RAY), out)
    assert {name: len(list(folder.iterdir())) for name, folder in marks.items()} == {"once": 1, "twice": 2}
    by_method = {run["method"]: run for run in found["runs"]}
    assert {name: run["status"] for name, run in by_method.items()} == {
        "fedavg": "finished",
        "once": "finished",
        "twice": "failed",
    }
    assert "its worker died" in by_method["twice"]["error"]
    assert any("1 of 3 runs failed and are left out: small, twice, seed 0." in line for line in found["warnings"])
    with pytest.raises(conductor.RoundError, match="small, twice, seed 0: its worker died") as caught:
        conductor.raise_for(found, out)
    assert caught.value.exit_code == 1
    log = (out / "log.txt").read_text()
    assert log.count("it goes on with another") == 2
    # Their rules kill nobody any more: the failed run goes on, and all are what nobody disturbed makes.
    calm = design(path, "fedavg", *deadly, seeds=1)
    again = conductor.compare(calm, out)
    assert again["status"] == "finished"
    resumed = out / next(run["folder"] for run in again["runs"] if run["method"] == "twice") / "log.txt"
    assert "resumed after round 1" in resumed.read_text()
    conductor.compare(calm, tmp_path / "calm")
    assert told(out) == told(tmp_path / "calm")
    assert all(run["model_sha256"] for run in study_of(out)["runs"])
