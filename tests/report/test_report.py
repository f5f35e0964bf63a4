from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from fedsim.errors import DataError
from fedsim.fairness import CONVENTIONS
from fedsim.report import save_partition_figure, write_report
from fedsim.report.folder import read
from fedsim.report.partition import by_main_class
from fedsim.report.tables import badly_served
from fedsim.report.words import sentences
from tests.report.runs import make_run

FIGURES = ("accuracy", "distribution", "size", "partition", "certificate", "loss")
VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = '<script>alert(1)</script> & $x^2$ --> \u4e2d\u6587 id="a"'


class Page(HTMLParser):
    """The parsed page: tags must nest, and everything asked about is collected on the way."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.figures, self.words = [], [], [], {}, []
        self.inside = None
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "figure":
            self.inside = attributes["id"].removeprefix("figure-")
            self.figures[self.inside] = None
        if tag == "svg" and self.inside:
            self.figures[self.inside] = attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "figure":
            self.inside = None

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split()).replace("\u00a0", " ")


def report(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def assert_self_contained(page):
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for tag, key, value in page.attributes:
        if key in ("src", "href", "xlink:href", "srcset", "data"):
            assert value.startswith(("#", "data:")), (tag, key, value[:80])
        assert "url(http" not in value
    assert "@import" not in "".join(page.words)
    assert "url(" not in "".join(page.words)


@pytest.mark.parametrize(
    ("num_clients", "num_classes", "rounds"),
    [(1, 2, 1), (4, 2, 6), (20, 10, 60), (100, 80, 12), (1000, 10, 4)],
)
def test_every_figure_at_every_size(tmp_path, num_clients, num_classes, rounds):
    page = report(
        make_run(tmp_path, num_clients=num_clients, num_classes=num_classes, rounds=rounds, certificate=True)
    )
    assert set(page.figures) == set(FIGURES)
    for name, svg in page.figures.items():
        assert svg is not None, name
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 30
    assert_self_contained(page)


def test_ids_are_unique_and_every_reference_is_there(tmp_path):
    page = report(make_run(tmp_path, certificate=True))
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, key, value in page.attributes if key in ("href", "xlink:href") and value[0] == "#"}
    targets |= {value[5:-1] for _, key, value in page.attributes if key == "clip-path"}
    assert targets
    assert targets <= set(ids)


def test_numbers_are_those_of_the_summary(tmp_path):
    make_run(tmp_path, num_clients=30)
    summary = json.loads((tmp_path / "summary.json").read_text())
    page = report(tmp_path)
    shown = [float(value) for _, key, value in page.attributes if key == "data-value"]
    fairness = summary["fairness"]
    expected = [fairness[metric][name] for name in CONVENTIONS for metric in ("test_accuracy", "test_loss")]
    assert shown == [*expected, fairness["improved"], summary["central"]["accuracy"]]
    assert f"{100 * fairness['test_accuracy']['worst_10']:.1f} %" in page.text
    assert f"{100 * fairness['test_accuracy']['mean']:.2f} %" in page.text
    assert all(definition in page.text for definition, _ in CONVENTIONS.values())


def test_summary_wins_over_the_table(tmp_path):
    make_run(tmp_path)
    path = tmp_path / "summary.json"
    summary = json.loads(path.read_text())
    summary["fairness"]["test_accuracy"]["worst_10"] = 0.123456
    path.write_text(json.dumps(summary))
    assert "12.35 %" in report(tmp_path).text


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    make_run(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert not list(tmp_path.glob("*.part"))


def test_names_are_escaped_everywhere(tmp_path):
    page = report(make_run(tmp_path, num_clients=5, names=[EVIL, *"abcd"], rounds=2))
    assert_self_contained(page)
    assert EVIL in page.text
    assert "<b>" in page.text  # the scenario's comment, shown as text
    assert "run <it>" in page.text


def test_an_interrupted_run_is_reported_up_to_its_last_evaluation(tmp_path):
    make_run(tmp_path, num_clients=20, rounds=5, every=2, status="interrupted", certificate=True)
    page = report(tmp_path)
    assert "was interrupted" in page.text
    assert "summary.json is missing" in page.text
    assert "round 4, the last one evaluated" in page.text
    table = pd.read_parquet(tmp_path / "clients.parquet")
    mean = table[table["round"] == 4]["test_accuracy"].mean()
    assert f"{100 * mean:.2f} %" in page.text
    assert all(page.figures.values())


def test_only_the_manifest_is_there(tmp_path):
    make_run(tmp_path)
    for name in ("clients.parquet", "rounds.parquet", "summary.json", "environment.json", "scenario.toml"):
        (tmp_path / name).unlink()
    page = report(tmp_path)
    assert {name for name, svg in page.figures.items() if svg} == {"partition"}
    assert "nothing can be said yet" in page.text


def test_a_table_cut_short_is_named_and_the_rest_shown(tmp_path):
    make_run(tmp_path)
    whole = (tmp_path / "rounds.parquet").read_bytes()
    (tmp_path / "rounds.parquet").write_bytes(whole[: len(whole) // 2])
    page = report(tmp_path)
    assert "rounds.parquet cannot be read" in page.text
    assert page.figures["accuracy"]
    assert page.figures["loss"] is None


def test_without_common_test_set_and_certificate(tmp_path):
    page = report(make_run(tmp_path, central=False))
    assert "records no certificate" in page.text
    assert page.figures["certificate"] is None
    assert page.figures["accuracy"]
    assert "common test set" not in page.text.lower()


def test_certificate_columns_full_of_nan(tmp_path):
    make_run(tmp_path, certificate=True)
    table = pd.read_parquet(tmp_path / "rounds.parquet")
    for column in ("descent_min", "rate_spread", "weight_min", "cond", "cos_mean", "norm_ratio"):
        table[column] = math.nan
    table.loc[0, "norm_ratio"] = math.inf
    table["mode"] = None
    table["mean_loss"] = math.nan
    table["central_accuracy"] = math.nan
    table.to_parquet(tmp_path / "rounds.parquet")
    page = report(tmp_path)
    assert page.figures["certificate"]  # the share of improved clients is left
    assert page.figures["loss"] is None


def test_clients_without_test_examples_are_counted_and_not_scored_zero(tmp_path):
    make_run(tmp_path, num_clients=12, untested=(3, 7))
    page = report(tmp_path)
    assert "2 of 12 clients have no test value" in page.text
    assert len(read(tmp_path).final) == 10
    assert all(row.client not in (3, 7) for row in badly_served(read(tmp_path)))


def test_no_round_was_evaluated(tmp_path):
    make_run(tmp_path, status="interrupted")
    table = pd.read_parquet(tmp_path / "clients.parquet")
    table["test_accuracy"] = math.nan
    table.to_parquet(tmp_path / "clients.parquet")
    page = report(tmp_path)
    assert page.figures["accuracy"] is None
    assert page.figures["loss"]
    assert "No round was evaluated" in page.text


def test_everyone_the_same(tmp_path):
    make_run(tmp_path, num_clients=10, rounds=1, status="interrupted", certificate=True)
    table = pd.read_parquet(tmp_path / "clients.parquet")
    table["test_accuracy"], table["train_examples"], table["test_loss"] = 1.0, 50, 0.0
    table.to_parquet(tmp_path / "clients.parquet")
    page = report(tmp_path)
    assert "all clients see the same" in page.text
    assert all(page.figures.values())


def test_a_round_written_twice_by_a_resumed_run_counts_once(tmp_path):
    make_run(tmp_path, rounds=2)
    table = pd.read_parquet(tmp_path / "clients.parquet")
    again = table[table["round"] == 2].assign(test_accuracy=0.5)
    pd.concat([table, again]).to_parquet(tmp_path / "clients.parquet")
    assert (read(tmp_path).final["test_accuracy"] == 0.5).all()
    assert len(read(tmp_path).final) == 12


def test_the_hard_classes_are_named_only_if_the_numbers_say_so(tmp_path):
    run = read(make_run(tmp_path / "hard", num_clients=200, rounds=4, hard_classes=(8, 9)))
    blamed = [s for s in sentences(run) if s.startswith("The worst tenth is marked by")]
    assert len(blamed) == 1
    named = blamed[0].split(";")[0]
    assert "8 (" in named or "9 (" in named
    even = read(make_run(tmp_path / "even", num_clients=200, rounds=4, hard_classes=()))
    assert not any("worst tenth is marked" in s for s in sentences(even))


def test_few_clients_are_named_one_by_one(tmp_path):
    make_run(tmp_path, num_clients=4, names=["north", "east", "south", "west"])
    final = read(tmp_path).final
    worst = int(final["test_accuracy"].idxmin())
    assert f"client {worst} ({final['name'][worst]}) worst with" in report(tmp_path).text


def test_worst_clients_come_first_and_are_at_most_twenty(tmp_path):
    run = read(make_run(tmp_path, num_clients=300, rounds=2))
    rows = badly_served(run)
    assert len(rows) == 20
    accuracies = [run.final["test_accuracy"][row.client] for row in rows]
    assert accuracies == sorted(run.final["test_accuracy"])[:20]


def test_partition_figure_alone(tmp_path):
    make_run(tmp_path, names=[EVIL] * 12)
    path = save_partition_figure(tmp_path)
    assert path.name == "partition.svg"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert "<script" not in text
    first = path.read_bytes()
    assert save_partition_figure(tmp_path).read_bytes() == first


def test_partition_figure_is_well_formed_xml(tmp_path):
    from xml.etree import ElementTree as ET

    make_run(tmp_path, names=[EVIL] * 12)
    assert ET.parse(save_partition_figure(tmp_path)).getroot().tag.endswith("svg")


def test_clients_are_ordered_by_main_class():
    counts = np.array([[5, 5, 0], [0, 1, 9], [9, 1, 0], [0, 10, 0]])
    assert by_main_class(counts).tolist() == [2, 0, 3, 1]


def test_not_a_run_folder(tmp_path):
    with pytest.raises(DataError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{broken")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        save_partition_figure(tmp_path)
