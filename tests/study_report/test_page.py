"""The page of a study: what is shown is what study.json says, and every kind of study has a page."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.errors import DataError
from fedsim.report import style
from fedsim.study_report import (
    captions,
    files,
    labels,
    latex,
    paired,
    progress,
    ranks,
    spread,
    tables,
    tradeoff,
    write_study_report,
)
from fedsim.study_report.scene import scenes
from tests.report.test_report import Page
from tests.study_report.studies import EVIL, edit, make_study

KINDS = ("tradeoff", "distribution", "paired", "rounds", "clients")


def page_of(folder):
    return Page(write_study_report(folder).read_text(encoding="utf-8"))


def scene_of(folder, place=0):
    return scenes(fedsim.load_study(folder))[place]


def test_everything_is_there_and_nothing_is_fetched(rich):
    page = Page((rich / "study.html").read_text(encoding="utf-8"))
    expected = {f"{kind}-{slug}" for kind in (*KINDS, "cost") for slug in ("mnist-shards", "heart-2")}
    expected |= {f"ranks-{metric}" for metric in ("mean", "worst-10", "std")}
    assert set(page.figures) == expected
    for name, svg in page.figures.items():
        assert svg is not None, name
        assert len(svg["aria-label"]) > 30
        assert (rich / "figures" / f"{name}.svg").stat().st_size > 1000
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for tag, key, value in page.attributes:
        if key == "href" and tag == "a" and not value.startswith("#"):
            # PNG and PDF are looked for below, in a study that has them.
            assert (rich / value).is_file() or value.endswith((".png", ".pdf"))
        elif key in ("href", "xlink:href") and value.startswith("#"):
            assert value[1:] in ids
        elif key in ("href", "xlink:href", "src"):
            assert value.startswith("data:"), (tag, key, value[:60])


def test_numbers_are_those_of_study_json(rich):
    info = json.loads((rich / "study.json").read_text())
    page = Page((rich / "study.html").read_text(encoding="utf-8"))
    shown = [float(value) for _, key, value in page.attributes if key == "data-value"]
    at = {(r["scenario"], r["method"], r["metric"]): r for r in info["results"]}
    labels = [method["label"] for method in info["design"]["methods"]]
    assert shown == [
        at[scenario["name"], label, metric]["mean"]
        for scenario in info["design"]["scenarios"]
        for label in labels
        for metric in info["design"]["metrics"]
    ]
    everything = {float(value) for _, key, value in page.attributes if key == "data-measure"}
    assert everything == {r["mean"] for r in info["results"] if r["metric"] != "n"}
    entry = at["heart <2>", "term", "worst_10"]
    low, high = entry["difference"]["interval"]
    text = page.text.replace("\u2212", "-")
    assert f"{100 * entry['mean']:.2f} ± {100 * entry['std']:.2f}" in text
    assert f"{100 * entry['difference']['mean']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]" in text


def test_marks_are_those_of_the_test(rich):
    scene = scene_of(rich, 1)
    html = (rich / "study.html").read_text(encoding="utf-8")
    section = html[html.index('id="scenario-heart-2"') : html.index('id="ranks"')]
    known = [scene.result(m, k)["difference"] for m in scene.methods if m != scene.baseline for k in scene.tested]
    better = sum(d["significant"] and d["improves"] for d in known)
    worse = sum(d["significant"] and not d["improves"] for d in known)
    assert better > 0
    assert section.count('title="significantly better"') == better
    assert section.count('title="significantly worse"') == worse


def test_a_worse_method_is_marked_as_worse(tmp_path, words_only):
    folder = make_study(tmp_path / "s", methods=("fedavg", "bad"), gaps={"fedavg": 0.15, "bad": -0.2}, seeds=6)
    page = page_of(folder)
    scene = scene_of(folder)
    assert {paired.verdict(scene, "bad", metric) for metric in ("mean", "worst_10", "std")} == {"worse"}
    assert "\u25bc" in page.text
    assert not any(key == "title" and value == "significantly better" for _, key, value in page.attributes)


def test_names_are_text_wherever_they_stand(rich):
    page = Page((rich / "study.html").read_text(encoding="utf-8"))
    assert EVIL in page.text
    assert "its update is not finite <nan>" in page.text
    assert "nan" not in page.tags
    # One for each place that says <b>: ours are facts, headings of notes and details; none comes from the name.
    assert "<b>bold</b>" not in (rich / "study.html").read_text(encoding="utf-8")
    assert "python run_sim.py compare scenarios/fair_rules.toml --out 'studies/a b'" in page.text


def test_what_is_missing_is_said(rich):
    page = Page((rich / "study.html").read_text(encoding="utf-8"))
    assert "This study is not finished" in page.text
    assert "client 3, round 4" in page.text
    assert "no such folder" in page.text
    assert "(4 of 5 pairs)" in page.text
    assert "runs 48 of 50" in page.text


def test_csv_has_the_exact_numbers(rich):
    info = json.loads((rich / "study.json").read_text())

    def rows(name):
        # Not pandas: its parser is not the inverse of repr in the last digit.
        return list(csv.DictReader((rich / "tables" / f"{name}.csv").read_text(encoding="utf-8").splitlines()))

    for slug, scenario in (("mnist-shards", "mnist shards"), ("heart-2", "heart <2>")):
        mine = [r for r in info["results"] if r["scenario"] == scenario]
        measures = rows(f"measures-{slug}")
        assert [float(row["mean"]) for row in measures] == [r["mean"] for r in mine]
        assert [row["method"] for row in measures] == [r["method"] for r in mine]
        tested = [(r["difference"] or {"t": {"p_holm": None}})["t"]["p_holm"] for r in mine if r["tested"]]
        found = [float(row["t_p_holm"]) if row["t_p_holm"] else None for row in rows(f"comparison-{slug}")]
        assert found == tested
        assert len(rows(f"statistics-{slug}")) == sum(p is not None for p in tested)
    assert len(rows("runs")) == len(info["runs"])


def test_latex_is_balanced_and_every_row_is_as_long_as_the_header(rich):
    found = sorted((rich / "tables").glob("*.tex"))
    assert {
        "comparison-heart-2.tex",
        "measures-heart-2.tex",
        "statistics-heart-2.tex",
        "ranks.tex",
        "tuning.tex",
    } <= {path.name for path in found}
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert text.count("\\label{tab:") == 1
        bare = re.sub(r"\\[{}$&%#_]", "", re.sub(r"(?m)(?<!\\)%.*$", "", text))  # what is escaped is text
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert "#" not in bare
        for columns, body in re.findall(
            r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", bare, flags=re.DOTALL
        ):
            rows = [line for line in body.splitlines() if line.endswith("\\\\")]
            assert {row.count("&") + 1 for row in rows} == {len(columns)}, path.name
            assert not any(row.lstrip().startswith("[") for row in rows)
        assert text.isascii()


def test_a_long_latex_table_breaks_over_pages():
    text = latex.table(["a", "b"], [["[x]", f"row_{i} & 5%"] for i in range(60)], caption="c", label="tab:x")
    assert "\\begin{longtable}{lr}" in text
    assert "\\begin{table}" not in text
    rows = [line for line in text.splitlines() if line.startswith("{[}x{]}")]
    assert len(rows) == 60
    assert all(row.count("&") == 2 and r"\& 5\%" in row for row in rows)


def test_names_beside_points_keep_apart():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 2)) * [1.0, 0.4]
    drawing = style.figure(6.0, 4.7)
    axes = drawing.add_subplot()
    axes.scatter(*points.T)
    axes.margins(0.12)
    names = [str(k) for k in range(40)]
    boxes = labels.place(axes, points, names, size=8.0, colours=["black"] * 40, mark="n")
    room = axes.get_window_extent()
    for place, box in enumerate(boxes):
        assert room.x0 - 1 <= box.x0
        assert box.x1 <= room.x1 + 1
        for other in boxes[:place]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(width, height) <= 1


def test_short_names_stay_different():
    many = [f"adafed[scale=min,normalise=true,gamma={i}]" for i in range(12)]
    short = labels.short_names([*many, "afl"], 20)
    assert len(set(short)) == 13
    assert max(map(len, short)) <= 20
    assert short[-1] == "afl"


def test_every_format_is_there_and_the_same_folder_gives_the_same_bytes(tmp_path, all_formats, monkeypatch):
    folder = make_study(tmp_path / "s", seeds=2, num_clients=6, rounds=4, methods=("fedavg", "afl"), system=True)
    entry = {
        "metric": "mean", "scenarios": ["mnist_shards", "b"], "methods": list("abcd"), "average": [1, 2, 3, 4],
        "friedman": {"statistic": 6.0, "p": 0.11}, "critical_difference": 2.3, "cliques": [list("abcd")],
    }  # fmt: skip
    edit(folder, lambda info: info["ranks"].append(entry))

    def written():
        write_study_report(folder)
        made = [
            folder / "study.html",
            *sorted((folder / "figures").iterdir()),
            *sorted((folder / "tables").iterdir()),
        ]
        return {path.name: path.read_bytes() for path in made}

    first = written()
    monkeypatch.setattr(files, "DRAWN", {})  # a second PDF takes longer than all else here
    assert written() == first
    monkeypatch.setattr(files, "DRAWN", all_formats)
    scene = scene_of(folder)
    with style.styled():
        files.save_figure(tmp_path, "tradeoff-mnist-shards", tradeoff.accuracy_against_fairness(scene), "again")
    for suffix in ("png", "pdf"):
        name = f"tradeoff-mnist-shards.{suffix}"
        assert (tmp_path / "figures" / name).read_bytes() == first[name]
    names = {f"{kind}-mnist-shards" for kind in (*KINDS, "cost")} | {"ranks-mean"}
    begin = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    drawn = {name: made for name, made in first.items() if name.endswith(tuple(begin))}
    assert set(drawn) == {f"{name}.{suffix}" for name in names for suffix in begin}
    for name, made in drawn.items():
        assert made.startswith(begin[name[-3:]])
        assert len(made) > 1000
    links = [
        value
        for tag, key, value in Page((folder / "study.html").read_text()).attributes
        if (tag, key) == ("a", "href")
    ]
    assert {f"figures/{name}" for name in drawn} <= set(links)
    assert all((folder / link).is_file() for link in links if not link.startswith("#"))
    assert not any(name.endswith(".part") for name in first)


@pytest.mark.parametrize(
    "kind",
    [
        {"seeds": 1, "methods": ("fedavg", "afl")},
        {"seeds": 2, "methods": ("only",)},
        {"seeds": 3, "partitions": 2, "num_clients": 8, "methods": ("fedavg", "afl")},
        {"scenarios": ("a", "b"), "seeds": 2, "num_clients": 1, "rounds": 2, "metrics": ("mean",)},
        {"seeds": 2, "metrics": ("worst_10",)},
        {"seeds": 5, "metrics": ("mean", "angle_deg", "jain", "gini", "min"), "methods": ("fedavg", "afl")},
    ],
    ids=["one seed", "one method", "crossed", "two scenarios, one client", "one measure", "five measures"],
)
def test_every_kind_of_study_has_a_page(tmp_path, kind):
    page = page_of(make_study(tmp_path / "s", **kind))
    methods = kind.get("methods", ("fedavg", "qfedavg", "adafed[scale=min]", "term"))
    slugs = [scenario.replace("_", "-") for scenario in kind.get("scenarios", ("mnist_shards",))]
    drawn = {name for name, svg in page.figures.items() if svg}
    for slug in slugs:
        for figure in ("distribution", "rounds", "clients"):
            assert f"{figure}-{slug}" in drawn
        assert (f"paired-{slug}" in drawn) == (len(methods) > 1)
    assert ("ranks-mean" in drawn) == (len(slugs) > 1)
    assert "nan" not in page.text.split("Definitions")[0].replace("name", "").lower().split()


def test_a_study_before_its_first_run_has_a_page(tmp_path):
    every = [("mnist_shards", m, s) for m in ("fedavg", "afl") for s in range(2)]
    page = page_of(
        make_study(tmp_path / "s", methods=("fedavg", "afl"), seeds=2, missing=every, status="interrupted")
    )
    assert all(svg is None for svg in page.figures.values())
    assert "No run of this scenario is finished" in page.text


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"study\.json"):
        write_study_report(tmp_path)


def test_a_front_is_read_or_else_worked_out(tmp_path):
    folder = make_study(tmp_path / "s", methods=("fedavg", "afl", "term"), seeds=2, num_clients=6)
    scene = scene_of(folder)
    points = {m: (scene.result(m, "mean")["mean"], scene.result(m, "std")["mean"]) for m in scene.methods}
    expected = {
        m
        for m, (mean, std) in points.items()
        if not any(a >= mean and b <= std and (a, b) != (mean, std) for a, b in points.values())
    }
    assert set(tradeoff.on_front(scene, "mean", "std")) == expected
    edit(
        folder,
        lambda info: info["pareto"].append({"scenario": "mnist_shards", "x": "mean", "y": "std", "methods": ["x"]}),
    )
    assert tradeoff.on_front(scene_of(folder), "mean", "std") == ["x"]


def test_curves_are_means_over_pairs_of_the_rounds_all_of_them_have(tmp_path):
    folder = make_study(tmp_path / "s", methods=("fedavg", "afl"), seeds=3, rounds=6, every=2, system=True)
    cut = next(r for r in json.loads((folder / "study.json").read_text())["runs"] if r["method"] == "afl")
    path = folder / cut["folder"] / "rounds.parquet"
    pd.read_parquet(path).query("round <= 4").to_parquet(path)
    scene = scene_of(folder)
    found = progress.curve(scene, "afl", "worst_10")
    assert found.x.tolist() == [0, 2, 4]
    rows = scene.rounds[(scene.rounds["method"] == "afl") & (scene.rounds["round"] == 4)]["worst_10"]
    assert found.mean[-1] == pytest.approx(rows.mean())
    assert (found.low[-1], found.high[-1]) == (rows.min(), rows.max())
    assert progress.curve(scene, "fedavg", "worst_10").x.tolist() == [0, 2, 4, 6]
    traffic = progress.curve(scene, "fedavg", "mean_accuracy", "traffic")
    assert traffic.x.tolist() == [0, 2 * 1.5e6, 4 * 1.5e6, 6 * 1.5e6]


def test_client_k_is_averaged_over_pairs_only_where_it_is_the_same_client(tmp_path):
    kind = {"methods": ("fedavg", "afl"), "seeds": 3, "num_clients": 7}
    apart = spread.heat(scene_of(make_study(tmp_path / "apart", **kind)))
    assert apart.clients == []
    assert "another client in each pair" in apart.about
    scene = scene_of(make_study(tmp_path / "one", shared_partition=True, **kind))
    one = spread.heat(scene)
    assert sorted(one.clients) == [str(k) for k in range(7)]
    means = scene.final[scene.final["method"] == "afl"].groupby("client")["test_accuracy"].mean()
    assert one.values[1].tolist() == pytest.approx([means[int(k)] for k in one.clients])
    assert (np.diff(one.values[0]) >= 0).all()
    named = spread.heat(scene_of(make_study(tmp_path / "named", names=[f"H{k}" for k in range(7)], **kind)))
    assert sorted(named.clients) == [f"H{k}" for k in range(7)]
    crossed = spread.heat(scene_of(make_study(tmp_path / "crossed", partitions=2, **kind)))
    assert "partition 0" in crossed.about
    assert len(crossed.clients) == 7


def test_places_follow_the_baseline_within_each_pair(tmp_path):
    scene = scene_of(make_study(tmp_path / "s", methods=("fedavg", "afl"), seeds=2, num_clients=5))
    expected = np.zeros((2, 5))
    for seed in (0, 1):
        rows = scene.final[scene.final["seed"] == seed].sort_values("client")
        base, other = (rows[rows["method"] == m]["test_accuracy"].to_numpy() for m in ("fedavg", "afl"))
        order = np.argsort(base, kind="stable")
        expected += np.array([base[order], other[order]]) / 2
    np.testing.assert_allclose(spread.heat(scene).values, expected)


def test_ranks_say_what_they_cannot_tell(rich):
    entry = fedsim.load_study(rich).info["ranks"][0]
    assert "cannot tell any two methods apart" in ranks.words(entry)[-1]
    apart = {**entry, "critical_difference": 1.0, "cliques": [entry["methods"][:3], entry["methods"][2:]]}
    # 10 pairs of 5 methods; 3 are joined in each of two cliques that share one method.
    assert "4 of 10 pairs of methods are told apart" in ranks.words(apart)[-1]


def table_of(page, heading):
    """Return the text of the page from a heading on."""
    return page.text[page.text.index(heading) :]


def test_settings_of_every_method_are_shown_and_written(rich):
    info = json.loads((rich / "study.json").read_text())
    wanted = [
        (scenario["name"], method["label"], name, value)
        for scenario in info["design"]["scenarios"]
        for method in info["design"]["methods"]
        for name, value in method["settings"][scenario["name"]].items()
    ]
    rows = list(csv.DictReader((rich / "tables" / "settings.csv").read_text(encoding="utf-8").splitlines()))
    found = [tuple(row.values()) for row in rows]
    assert found == [(s, m, n, v if isinstance(v, str) else json.dumps(v)) for s, m, n, v in wanted]
    shown = tables.settings(scene_of(rich))
    assert shown.columns == ["client.lr", "server.lr", "server.lr_decay"]
    by_method = {row.method: row for row in shown.rows}
    assert by_method["term"].cells == ["0.05", "1.0", "null"]
    assert by_method["term"].options == "t = 2.0, weighting = examples"
    assert by_method["term"].others == "client.local_epochs = 3"
    text = table_of(Page((rich / "study.html").read_text(encoding="utf-8")), "Settings in full")
    for said in ("t = 2.0, weighting = examples", "client.local_epochs = 3", f"scale = {EVIL}"):
        assert text.count(said) == 2  # a table for each scenario


def test_a_study_that_does_not_say_its_settings_has_a_page_without(tmp_path, words_only):
    folder = make_study(tmp_path / "s", seeds=2, num_clients=4, rounds=2, methods=("fedavg",))
    edit(folder, lambda info: [method.pop("settings") for method in info["design"]["methods"]])
    assert "Settings in full" not in page_of(folder).text
    assert not (folder / "tables" / "settings.csv").exists()
    assert list(fedsim.load_study(folder).settings.columns) == ["scenario", "method", "setting", "value"]


def dots(drawing, label):
    """Return the x of a figure's marks with a label, sorted, for each panel."""
    return [
        np.sort(np.concatenate([c.get_offsets()[:, 0] for c in axes.collections if c.get_label() == label]))
        for axes in drawing.axes
    ]


def test_where_partitions_are_crossed_seeds_are_what_is_shown(tmp_path, words_only):
    missing = [("mnist_shards", "afl", 3)]
    folder = make_study(
        tmp_path / "s", methods=("fedavg", "afl"), seeds=5, partitions=3, num_clients=6, rounds=2, missing=missing,
        metrics=("mean", "std"),
    )  # fmt: skip
    scene = scene_of(folder)
    runs = fedsim.load_study(folder).runs.set_index(["method", "seed"])
    expected = [
        runs.loc[("afl", seed), "mean"].mean() - runs.loc[("fedavg", seed), "mean"].mean() for seed in (0, 1, 2, 4)
    ]
    found = dots(paired.differences(scene), "a seed, mean over its partitions")[0]
    np.testing.assert_allclose(found, 100 * np.sort(expected))
    difference = scene.result("afl", "mean")["difference"]
    assert difference["n"] == 4
    assert difference["mean"] == pytest.approx(np.mean(expected))
    page = page_of(folder)
    assert "Seed by seed" in page.text
    assert "the seeds, each the mean of its pairs over the partitions" in page.text
    assert "5 seeds (each the mean over its partitions)" in page.text
    assert "at least 5 seeds" in page.text
    assert "(12 of 15 pairs)" in page.text
    assert "standard deviation over pairs" not in page.text.lower()
    assert "crossed partitions" in page.text
    latex_rows = (folder / "tables" / "comparison-mnist-shards.tex").read_text().splitlines()
    assert any(line.startswith("Method & Seeds & ") for line in latex_rows)
    assert any(line.startswith("afl & 4 & ") for line in latex_rows)


def test_pairs_that_follow_the_seed_are_shown_one_by_one(tmp_path):
    scene = scene_of(make_study(tmp_path / "s", methods=("fedavg", "afl"), seeds=3, num_clients=6, rounds=2))
    gaps = 100 * (scene.values("afl", "worst_10") - scene.values("fedavg", "worst_10"))
    np.testing.assert_allclose(dots(paired.differences(scene), "a pair")[1], np.sort(gaps))
    assert "Open marks: the pairs" in captions.differences(scene)


def test_a_method_with_fewer_pairs_is_in_no_front_and_the_caption_says_so(rich):
    scene, whole = scene_of(rich, 0), scene_of(rich, 1)
    assert scene.incomplete == ["qfedavg", "term"]
    assert "Not considered for the front, with fewer pairs than others: qfedavg, term." in captions.tradeoff(scene)
    assert whole.incomplete == []
    assert "Not considered" not in captions.tradeoff(whole)
    # Worked out, for the panel that study.json says nothing of.
    best = max(scene.measured, key=lambda m: scene.result(m, "mean")["mean"])
    assert not {"qfedavg", "term"} & set(tradeoff.on_front(scene, "mean", "std"))
    assert best in scene.incomplete or best in tradeoff.on_front(scene, "mean", "std")


def test_the_worst_tenth_of_the_figure_is_that_of_the_table(rich):
    scene = scene_of(rich)
    with style.styled():
        axes = spread.distribution(scene).axes[-1]
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert marks == [100 * scene.result(m, "worst_10")["mean"] for m in scene.evaluated]


def test_ranks_say_which_data_they_are_about_and_what_is_left_out(rich):
    study = fedsim.load_study(rich)
    said = " ".join(ranks.cautions(study))
    assert "2 scenarios have 1 data set (digits)" in said
    assert "below some 10 scenarios" in said
    assert "Without" not in said
    assert study.ranks["scenarios"].tolist() == [2] * len(study.ranks)
    for scenario, dataset in zip(study.info["design"]["scenarios"], ("mnist", "heart"), strict=True):
        scenario["dataset"] = dataset
    assert "data set" not in " ".join(ranks.cautions(study))
    study.info["design"]["scenarios"].append({"name": "third", "dataset": "mnist"})
    assert "Without third: a method lacks pairs there" in ranks.cautions(study)[-1]


def test_ranks_of_an_older_study_are_read(tmp_path, rich):
    info = json.loads((rich / "study.json").read_text())
    for entry in info["ranks"]:
        entry["datasets"] = entry.pop("scenarios")
    (tmp_path / "study.json").write_text(json.dumps(info))
    old, new = fedsim.load_study(tmp_path), fedsim.load_study(rich)
    pd.testing.assert_frame_equal(old.ranks, new.ranks)
    assert captions.ranks(old.info["ranks"][0]) == captions.ranks(new.info["ranks"][0])
    assert ranks.cautions(old) == ranks.cautions(new)


def test_a_study_interrupted_in_its_tuning_says_how_far_it_is(tmp_path):
    every = [("mnist_shards", m, s) for m in ("fedavg", "afl") for s in range(2)]
    folder = make_study(
        tmp_path / "s", methods=("fedavg", "afl"), seeds=2, missing=every, tuned=True, status="interrupted"
    )

    def half_tuned(info):
        info["tuning"]["chosen"] = []
        for trial in info["tuning"]["trials"][2:]:
            trial["score"], trial["error"] = None, None

    text = page_of(edit(folder, half_tuned)).text
    assert "0 of 4 runs that are finished. 4 of 6 trials of its tuning have not been made yet." in text
    assert "2 of 6 trials have a score. No values are chosen yet." in text
    assert "was given the values" not in text
