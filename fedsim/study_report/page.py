"""The page of a study: figures and tables of a study folder put into one file, and kept beside it as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedsim.files import replace
from fedsim.frames import Study, load_study, ranked_scenarios
from fedsim.report import style
from fedsim.sentences import some
from fedsim.study_report import captions, files, paired, progress, ranks, spread, tables, tradeoff
from fedsim.study_report.scene import Scene, scenes, units_of
from fedsim.study_report.template import TEMPLATE
from fedsim.study_report.units import heading

MOST_PROBLEMS = 10

FEW_METHODS = 6
"""Methods up to which they are the columns of the table of all measures; more are its rows."""

_NOTHING = "No run of this scenario left anything to show here."


class Picture(NamedTuple):
    """One place for a figure: the figure and its caption, or why there is none."""

    name: str
    image: Markup | None
    caption: str
    missing: str


def write_study_report(folder: Path) -> Path:
    """Write study.html, figures/ and tables/ into a study folder; again at any time, with the same result.

    Args:
        folder: A folder with a study.json, of a study that is finished or under way.

    Returns:
        The page, which loads nothing from anywhere else.

    Raises:
        DataError: The folder has no study.json that can be read.
    """
    study = load_study(folder)
    every = scenes(study)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    content = _content(study, every)
    return replace(folder / "study.html", environment.from_string(TEMPLATE).render(content))


def _content(study: Study, every: list[Scene]) -> dict[str, Any]:
    info, design = study.info, study.info["design"]
    return {
        "title": str(info.get("name") or study.path.resolve().name),
        "description": info.get("description") or "",
        "status": str(info.get("status") or "interrupted"),
        "unfinished": _unfinished(study),
        "units": units_of(study),
        "facts": _facts(study),
        "words": [str(sentence) for sentence in info.get("words") or []],
        "warnings": [str(sentence) for sentence in info.get("warnings") or []],
        "problems": _problems(study),
        "baseline": str(design["baseline"]),
        "tested": [heading(metric) for metric in design["metrics"]],
        "scenes": [_scene(scene) for scene in every],
        "ranks": _ranks(study),
        "tuning": _tuning(study),
        "methods": [
            {"label": m["label"], "strategy": m.get("strategy", ""), "changes": m.get("changes") or [],
             "notes": m.get("notes") or []}
            for m in design["methods"]
        ],
        "command": info.get("command") or "",
        "origin": _origin(study),
        "environment": [(k, _said(v)) for k, v in (info.get("environment") or {}).items()],
        "definitions": tables.definitions(study),
        "terms": captions.terms(study),
        "tables": files.save_tables(study.path, study, every),
    }  # fmt: skip


def _unfinished(study: Study) -> str:
    """Return what a page of a study that is not finished is about."""
    runs = study.info.get("runs") or []
    finished = sum(run["status"] == "finished" for run in runs)
    trials = (study.info.get("tuning") or {}).get("trials") or []
    open_ = sum(t.get("score") is None and not t.get("error") for t in trials)
    tuned = f" {open_} of {len(trials)} trials of its tuning have not been made yet." if open_ else ""
    return f"What follows is about the {finished} of {len(runs)} runs that are finished.{tuned}"


def _facts(study: Study) -> list[tuple[str, str]]:
    design, runs = study.info["design"], study.info.get("runs") or []
    finished = sum(run["status"] == "finished" for run in runs)
    partitions = design.get("partitions")
    seeds = len(design["seeds"])
    count = len(partitions or [None])
    pairs = f"{seeds * count} ({count} partitions x {seeds} seeds)" if partitions else str(seeds)
    facts = {
        "tier": study.info.get("tier"),
        "scenarios": len(design["scenarios"]),
        "methods": len(design["methods"]),
        "pairs in each": pairs,
        "runs": f"{finished} of {len(runs)}" if finished < len(runs) else str(len(runs)),
        "baseline": design["baseline"],
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _problems(study: Study) -> list[str]:
    found = list(study.problems)
    more = len(found) - MOST_PROBLEMS
    return found if more <= 0 else [*found[:MOST_PROBLEMS], f"... ({more} more)"]


def _scene(scene: Scene) -> dict[str, Any]:
    record = scene.record
    clients, asked = record.get("num_clients"), record.get("clients_per_round")
    facts = {
        "data": record.get("dataset"),
        "partition": record.get("partition"),
        "model": record.get("model"),
        "clients": f"{clients}, {asked} a round" if clients and asked and asked != clients else clients,
        "rounds": record.get("rounds"),
        "pairs": len(scene.pairs),
    }
    hashes = ("partition_sha256", "data_sha256", "initial_sha256", "samples_sha256")
    return {
        "slug": scene.slug,
        "name": scene.name,
        "description": _own_description(scene),
        "notes": record.get("notes") or [],
        "toml": record.get("toml") or "",
        "facts": [(name, str(value)) for name, value in facts.items() if value not in (None, "")],
        "comparison": tables.against_baseline(scene),
        "comparison_hint": captions.comparison(scene),
        "wins": tables.has_wins(scene),
        "figures": list(_figures(scene)),
        "not_finished": tables.not_finished(scene),
        "level_columns": tables.level_columns(scene),
        "levels": tables.levels(scene),
        "few": len(scene.measured) <= FEW_METHODS,
        "details": tables.details(scene),
        "settings": tables.settings(scene),
        "tuned": tables.tuned(scene),
        "trials": tables.trials(scene),
        "pairs": [(tables.pair_name(p), [str(p.get(name) or "\u2013") for name in hashes]) for p in scene.pairs],
    }


def _own_description(scene: Scene) -> str:
    """Return the scenario's description where it is not that of the whole study."""
    said = str(scene.record.get("description") or "")
    return "" if said == scene.study.info.get("description") else said


def _figures(scene: Scene) -> Iterator[tuple[str, str, list[Picture]]]:
    """Yield each heading, the table that its figures are made of where there is one, and the figures."""
    there = bool(scene.evaluated)

    def one(
        name: str,
        caption: Callable[[Scene], str],
        draw: Callable[[Scene], Figure],
        known: bool,
        missing: str = _NOTHING,
    ) -> Picture:
        name = f"{name}-{scene.slug}"
        if not known:
            return Picture(name, None, "", missing)
        said = caption(scene)
        return _drawn(scene.study, name, f"{scene.name}: {said}", said, partial(draw, scene))

    known = bool(tradeoff.panels(scene))
    shown = [one("tradeoff", captions.tradeoff, tradeoff.accuracy_against_fairness, known)]
    yield "Accuracy against fairness", "", shown
    shown = [one("distribution", captions.distribution, spread.distribution, there)]
    yield "How accuracy is spread over clients", "", shown
    nothing = "There is no difference to the baseline to show yet."
    shown = [one("paired", captions.differences, paired.differences, bool(paired.rivals(scene)), nothing)]
    yield ("Seed by seed" if scene.crossed else "Pair by pair"), "", shown
    shown = [one("rounds", captions.rounds, progress.accuracy_over_rounds, progress.has_rounds(scene))]
    if progress.has_clock(scene):
        shown.append(one("cost", captions.cost, progress.accuracy_against_cost, known=True))
    yield "Over the rounds", "", shown
    shown = [one("clients", captions.clients, spread.client_heat, there)]
    yield "Who gains and who loses", "clients", shown


def _drawn(study: Study, name: str, label: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    with style.styled():
        drawing = draw()
        svg = files.save_figure(study.path, name, drawing, label)
    # Safe: the markup is matplotlib's, which escapes every name it draws.
    return Picture(name, Markup(svg), caption, "")


def _ranks(study: Study) -> dict[str, Any] | None:
    entries = study.info.get("ranks") or []
    if not entries:
        return None
    metrics = [entry["metric"] for entry in entries]
    labels = list(dict.fromkeys(label for entry in entries for label in entry["methods"]))
    at = {(e["metric"], m): r for e in entries for m, r in zip(e["methods"], e["average"], strict=True)}
    return {
        "cautions": ranks.cautions(study),
        "words": list(dict.fromkeys(sentence for entry in entries for sentence in ranks.words(entry))),
        "header": [heading(metric) for metric in metrics],
        "rows": [
            (m, [f"{at[metric, m]:.2f}" if (metric, m) in at else "\u2013" for metric in metrics]) for m in labels
        ],
        "names": ", ".join(dict.fromkeys(name for entry in entries for name in ranked_scenarios(entry))),
        "pictures": [
            _drawn(
                study, f"ranks-{entry['metric'].replace('_', '-')}",
                f"Average ranks of the methods by {heading(entry['metric'])}.",
                captions.ranks(entry), partial(ranks.critical_difference, entry),
            )
            for entry in ranks.drawn(study)
        ],
    }  # fmt: skip


def _tuning(study: Study) -> dict[str, Any] | None:
    tuning = study.info.get("tuning")
    if not tuning:
        return None
    return {
        "said": captions.tuning(tuning),
        "score": heading(str(tuning.get("metric") or "mean")),
        "grids": tables.grids(study),
    }


def _origin(study: Study) -> list[tuple[str, str]]:
    design, runs = study.info["design"], study.info.get("runs") or []
    commits = sorted({str(c) for run in runs for c in run.get("commits") or [run.get("commit")] if c})
    versions: dict[str, set[str]] = {}
    for run in runs:
        for name, version in (run.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
    lines = {
        "seeds": some(design["seeds"]),
        "partitions": some(design["partitions"]) if design.get("partitions") else "follow the seed",
        "commit": ", ".join(commits),
        "versions": ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items())),
        "time, all runs": tables.time_spent(study),
    }
    return [(name, value) for name, value in lines.items() if value]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "\u2013" if value is None else str(value)
