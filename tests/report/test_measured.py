"""The page of a run with metrics beyond accuracy and loss."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from fedsim.report import measured
from fedsim.report.folder import read
from tests.report.runs import make_run
from tests.report.test_report import EVIL, assert_self_contained, report

SAID = {
    "accuracy": {"definition": "Not shown again.", "better": "higher"},
    "cmi": {"definition": "How concentrated.", "better": "lower"},
    "gamma": {"definition": "How separated.", "better": "higher"},
    "ncmi": {"definition": "Their ratio.", "better": "lower"},
    "macro_f1": {"definition": "F1 of classes.", "better": "higher"},
    "group_accuracy": {"definition": "By group.", "better": "higher"},
    "accuracy_gap": {"definition": "Between groups.", "better": "lower"},
    "brier": {"definition": EVIL, "better": "lower"},
}
POOLED = {
    "cmi": 0.25,
    "gamma": 0.5,
    "ncmi": 0.5,
    "macro_f1": 0.8125,
    "group_accuracy": [0.75, None],
    "brier": 0.125,
}


@pytest.fixture
def folder(tmp_path):
    """A run of six rounds, evaluated in every second one, with what metrics add to the files."""
    made = make_run(tmp_path / "run")
    rounds, clients = (pd.read_parquet(made / f"{name}.parquet") for name in ("rounds", "clients"))
    evaluated = rounds["round"] % 2 == 0
    for name, value in {**POOLED, "accuracy_gap": 0.0}.items():
        pairs = [[0.75, math.nan] if isinstance(value, list) else value for _ in range(len(rounds))]
        rounds[f"pooled_{name}"] = pd.Series(pairs).where(evaluated.to_numpy())
    clients["test_macro_f1"] = clients["test_accuracy"] * 0.9
    rounds.to_parquet(made / "rounds.parquet")
    clients.to_parquet(made / "clients.parquet")
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "group_names": [EVIL, "others"]}))
    summary = json.loads((made / "summary.json").read_text())
    summary["fairness"]["test_macro_f1"] = {"mean": 0.6875, "worst_10": 0.375}
    (made / "summary.json").write_text(json.dumps({**summary, "pooled": POOLED, "metrics": SAID}))
    return made


def test_the_page_has_the_figures_and_a_line_for_every_value(folder):
    page = report(folder)
    assert {"concentration", "quality", "groups"} <= set(page.figures)
    assert all(page.figures[name] for name in ("concentration", "quality", "groups"))
    shown = {value for _, key, value in page.attributes if key == "data-metric" and value}
    assert {float(v) for v in shown if not v.startswith("[")} == {0.25, 0.5, 0.8125, 0.125, 0.6875, 0.375}
    for name, meaning in SAID.items():
        assert (meaning["definition"] in page.text) == (name != "accuracy")
    assert_self_contained(page)


def test_every_figure_has_a_caption_with_definitions(folder):
    text = report(folder).text
    for sentence in ("CMI: mean KL divergence", "Calibration error: mean distance", "MacroStd (our definition)"):
        assert sentence in text


def test_figures_and_table_follow_what_there_is(folder):
    rounds = pd.read_parquet(folder / "rounds.parquet")
    kept = rounds[[c for c in rounds if not c.startswith("pooled_") or c == "pooled_ncmi"]]
    kept.to_parquet(folder / "rounds.parquet")
    assert set(measured.figures(read(folder))) == {"concentration"}
    rounds.assign(pooled_cmi=np.nan, pooled_gamma=np.nan, pooled_ncmi=np.nan).to_parquet(folder / "rounds.parquet")
    assert set(measured.figures(read(folder))) == {"quality", "groups"}


def test_what_is_drawn_are_the_evaluated_rounds(folder):
    drawing = measured.groups(read(folder))
    left, right = drawing.axes
    assert [line.get_xdata().tolist() for line in right.lines] == [[2, 4, 6]]
    assert left.lines[0].get_ydata().tolist() == [75.0] * 3
    assert np.isnan(left.lines[1].get_ydata()).all()  # a group without test examples
    bands = measured.quality(read(folder)).axes[0]
    assert bands.lines[-1].get_ydata().tolist() == [0.8125] * 3


def test_a_run_without_metrics_has_no_such_section(tmp_path):
    page = report(make_run(tmp_path / "run"))
    assert "Beyond accuracy" not in page.text
    assert not {"concentration", "quality", "groups"} & set(page.figures)


def test_an_interrupted_run_has_figures_and_no_table(folder):
    (folder / "summary.json").unlink()
    page = report(folder)
    assert page.figures["concentration"]
    assert "How concentrated." not in page.text
