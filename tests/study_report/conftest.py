from __future__ import annotations

import pytest

from fedsim.study_report import files, write_study_report
from tests.study_report.studies import EVIL, make_study


@pytest.fixture(scope="package", autouse=True)
def drawn_as_svg():
    """Figures as SVG only: PNG and PDF take most of the time, and have tests of their own (`all_formats`)."""
    formats = files.DRAWN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "DRAWN", {})
        yield formats


@pytest.fixture
def all_formats(drawn_as_svg, monkeypatch):
    """Figures in every format, as users get them."""
    monkeypatch.setattr(files, "DRAWN", drawn_as_svg)
    return drawn_as_svg


@pytest.fixture
def words_only(monkeypatch):
    """Figures are made, but not laid out and written: for what a page says."""
    monkeypatch.setattr(files, "save_figure", lambda _folder, name, _drawing, _label: f'<svg id="{name}"></svg>')


@pytest.fixture(scope="package")
def rich(tmp_path_factory, drawn_as_svg):
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
