"""Figures and tables as files beside the page: PNG, SVG and PDF; CSV in full precision and LaTeX."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from fedsim import files
from fedsim.frames import KEYS, Study
from fedsim.report import style
from fedsim.study_report import captions, latex, tables
from fedsim.study_report.scene import Scene
from fedsim.study_report.units import DASH, heading

FIGURES, TABLES = "figures", "tables"

DPI = 160

DRAWN: dict[str, dict[str, None]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
"""Formats beside SVG, and what is left out of them so that the same figure is the same bytes."""

_HEADER = '<?xml version="1.0" encoding="utf-8"?>\n'

# Real fonts: a journal's check of a PDF refuses the outlines that are matplotlib's default.
_PDF: Any = {"pdf.fonttype": 42}


def save_figure(folder: Path, name: str, drawing: Figure, label: str) -> str:
    """Write a figure three times, and return it as an <svg> element for the page.

    Args:
        folder: The study folder.
        name: Of the files, without suffix.
        drawing: The figure.
        label: What it shows, for those who do not see it.
    """
    place = folder / FIGURES
    place.mkdir(exist_ok=True)
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")  # laid out once, not once for each format
    text = style.svg(drawing, label, prefix=name)
    files.replace(place / f"{name}.svg", _HEADER + text)
    with style.styled(), mpl.rc_context(_PDF), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for suffix, metadata in DRAWN.items():
            buffer = io.BytesIO()
            drawing.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
            files.replace(place / f"{name}.{suffix}", buffer.getvalue())
    return text


def save_tables(folder: Path, study: Study, scenes: list[Scene]) -> list[str]:
    """Write all tables of a study; return their files' names in the order of the page.

    Args:
        folder: The study folder.
        study: Its contents.
        scenes: Its scenarios.
    """
    (folder / TABLES).mkdir(exist_ok=True)
    names: list[str] = []

    def both(name: str, table: pd.DataFrame, tex: str | None) -> None:
        _write_with(folder / TABLES / f"{name}.csv", lambda file: table.to_csv(file, index=False))
        names.append(f"{name}.csv")
        if tex is not None:
            files.replace(folder / TABLES / f"{name}.tex", tex)
            names.append(f"{name}.tex")

    for scene in scenes:
        results = study.results[study.results["scenario"] == scene.name]
        tested = results[results["tested"].fillna(False)]
        wins = study.wins[study.wins["scenario"] == scene.name].add_prefix("clients_")
        wins = wins.rename(columns={"clients_method": "method"}).drop(columns="clients_scenario")
        level = ["scenario", "method", "metric", "better", "n", "mean", "std", "low", "high", "t_low", "t_high"]
        if len(results):
            both(f"comparison-{scene.slug}", tested.merge(wins, on="method", how="left"), _comparison(scene))
            both(f"measures-{scene.slug}", results[level], _measures(scene))
            later = tested[tested["difference"].notna()]
            both(f"statistics-{scene.slug}", later.drop(columns=[*level[5:], "tested"]), _statistics(scene))
        if scene.evaluated:
            both(f"clients-{scene.slug}", _clients(scene), None)
    if len(study.settings):
        exact = study.settings.assign(value=study.settings["value"].map(tables.setting))
        both("settings", exact, _settings(scenes))
    if len(study.ranks):
        both("ranks", study.ranks, _ranks(study))
    if study.info.get("tuning"):
        both("tuning", _trials(study), _tuning(study, scenes))
    both("values", study.values, None)
    both("runs", study.runs, None)
    return names


def _write_with(path: Path, fill: Callable[[IO[str]], object]) -> None:
    buffer = io.StringIO()
    fill(buffer)
    files.replace(path, buffer.getvalue())


def _comparison(scene: Scene) -> str:
    wins = tables.has_wins(scene)
    rows: list[list[str]] = []
    for row in tables.against_baseline(scene):
        last = [row.wins or DASH] if wins else []
        rows.append([row.method, str(row.n), *(cell.level for cell in row.cells), *last])
        if row.method != scene.baseline:
            # The mark is a superscript of the difference: it is what the test is about.
            gaps = [latex.Small(f"{cell.gap}{cell.mark} {cell.interval}".strip()) for cell in row.cells]
            rows.append(["", "", *gaps, *("" for _ in last)])
    header = ["Method", scene.units.capitalize(), *map(heading, scene.tested)]
    alpha = scene.study.info["design"].get("alpha", 0.05)
    caption = (
        f"{scene.name}: mean \u00b1 standard deviation over {scene.units}{captions.averaged(scene.study)}; "
        "below, the mean paired difference to "
        f"{scene.baseline} with its {scene.level} interval. A raised + (-) marks what is significantly better "
        f"(worse): paired t test, Holm-corrected over methods and measures of this scenario, alpha = {alpha:g}."
        + (f" Clients: % served better / equally / worse than by {scene.baseline}." if wins else "")
    )
    return latex.table(
        [*header, *(["Clients"] if wins else [])], rows, caption=caption, label=f"tab:comparison-{scene.slug}"
    )


def _measures(scene: Scene) -> str:
    header = ["Method", *(name for _, name in tables.level_columns(scene))]
    rows = [[method, *(text for text, _ in cells)] for method, cells in tables.levels(scene)]
    over = f"{scene.units}{captions.averaged(scene.study)}"
    caption = f"{scene.name}: all measures, mean \u00b1 standard deviation over {over}."
    return latex.blocks(header, rows, caption=caption, label=f"tab:measures-{scene.slug}")


def _statistics(scene: Scene) -> str:
    header = ["n", "Difference", "Interval", "dz", "r", "t", "p (t)", "Holm (t)", "W", "p (W)", "Holm (W)"]
    rows = [
        [d.method, d.metric, d.pairs, d.difference, d.interval, d.effect_size, d.rank_biserial,
         d.t, d.t_p, d.t_p_holm, d.wilcoxon, d.wilcoxon_p, d.wilcoxon_p_holm]
        for d in tables.details(scene)
    ]  # fmt: skip
    caption = (
        f"{scene.name}: paired differences to {scene.baseline} with their {scene.level} bootstrap intervals, "
        "effect sizes (dz, matched-pairs rank-biserial r), paired t test and Wilcoxon's signed-rank test, raw and "
        f"Holm-corrected; n {scene.units}{captions.averaged(scene.study)}."
    )
    return latex.table(
        ["Method", "Measure", *header], rows, caption=caption, label=f"tab:statistics-{scene.slug}", words=2
    )


def _settings(scenes: list[Scene]) -> str:
    rows = []
    for scene in scenes:
        found = tables.settings(scene)
        for row in found.rows if found else []:
            named = [
                f"{name} = {value}" for name, value in zip(found.columns if found else [], row.cells, strict=True)
            ]
            rows.append(
                [scene.name, row.method, row.options or DASH, ", ".join(filter(None, [*named, row.others]))]
            )
    header = ["Scenario", "Method", "Options of the strategy", "Others"]
    caption = "Settings of the methods, as they ran."
    return latex.table(header, rows, caption=caption, label="tab:settings", words=4)


def _ranks(study: Study) -> str:
    metrics = list(dict.fromkeys(study.ranks["metric"]))
    wide = study.ranks.pivot_table(index="method", columns="metric", values="average_rank", sort=False)
    rows = [[str(m), *(f"{wide.loc[m, metric]:.2f}" for metric in metrics)] for m in wide.index]
    critical = study.ranks["critical_difference"].dropna()
    said = f"; critical difference {critical.iloc[0]:.2f} (Nemenyi)" if len(critical) else ""
    count = int(study.ranks["scenarios"].iloc[0])
    caption = f"Average ranks over {count} scenarios, 1 is best{said}."
    return latex.table(["Method", *map(heading, metrics)], rows, caption=caption, label="tab:ranks")


def _tuning(study: Study, scenes: list[Scene]) -> str:
    rows = [[scene.name, *choice] for scene in scenes for choice in tables.tuned(scene)]
    tuning = study.info["tuning"]
    caption = (
        f"Chosen values: the best {heading(str(tuning.get('metric') or 'mean'))} of {tuning.get('budget')} trials "
        "a method on data held out for tuning."
    )
    header = ["Scenario", "Method", "Chosen values", "Score", "At the edge"]
    return latex.table(header, rows, caption=caption, label="tab:tuning", words=3)


def _trials(study: Study) -> pd.DataFrame:
    rows = [
        {"scenario": t["scenario"], "method": t["method"], **(t.get("values") or {}), "score": t.get("score"),
         "error": t.get("error")}
        for t in study.info["tuning"].get("trials") or []
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["scenario", "method", "score", "error"])


def _clients(scene: Scene) -> pd.DataFrame:
    """Return every client's last evaluation in every run: what distributions and the heat map are made of."""
    shown = [*KEYS, "client", "name", "test_accuracy", "test_loss", "test_examples", "train_examples"]
    return scene.final[[name for name in shown if name in scene.final]]
