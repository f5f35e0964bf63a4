"""The page: figures and tables of a run folder put into one file that needs nothing else."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedsim import files, manifest
from fedsim.errors import DataError
from fedsim.report import certificate, figures, hooks, measured, partition, style, system, tables, words
from fedsim.report.folder import RunFolder, read
from fedsim.report.template import TEMPLATE

_LABELS = {
    "system": "Test accuracy against simulated time and traffic: mean of the clients and mean of the worst 10 %.",
    "hooks": "What the clients' hooks reported, over rounds.",
    "concentration": "CMI, Gamma and NCMI of all clients' test examples together, over rounds.",
    "quality": "Calibration error and macro F1 over rounds, of all examples together and of the clients.",
    "groups": "Accuracy of each group and differences between groups, over rounds.",
}


class Picture(NamedTuple):
    """One place for a figure: the figure, or why there is none."""

    name: str
    image: Markup | None
    label: str
    missing: str


def write_report(folder: Path) -> Path:
    """Write report.html into a run folder; again at any time, with the same result.

    Args:
        folder: A folder that a run wrote, finished or not.

    Returns:
        The page, which loads nothing from anywhere else.

    Raises:
        DataError: The folder is not a run folder.
    """
    run = read(folder)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.from_string(TEMPLATE).render(_content(run))
    return files.replace(folder / "report.html", html)


def save_partition_figure(folder: Path) -> Path:
    """Write partition.svg from the folder's manifest, before the first round has run.

    Raises:
        DataError: The folder has no readable manifest.
    """
    run = read(folder)
    if not run.counts_by_client("train"):
        raise DataError(f"{folder}: no clients in manifest.json; write the manifest first")
    with style.styled():
        drawing = _draw_partition(run)
    header = '<?xml version="1.0" encoding="utf-8"?>\n'
    return files.replace(folder / "partition.svg", header + style.svg(drawing, _partition_label(run), prefix="p"))


def _content(run: RunFolder) -> dict[str, Any]:
    summary, sentences = run.summary, words.sentences(run)
    return {
        "title": str(summary.get("scenario") or run.path.resolve().name),
        "status": str(summary.get("status") or "interrupted"),
        "error": summary.get("error"),
        "facts": _facts(run),
        "sentences": sentences,
        "class_note": any("hold much" in sentence for sentence in sentences),
        "highlights": _highlights(run),
        "problems": run.problems,
        "pictures": {picture.name: picture for picture in _pictures(run)},
        "measures": tables.measures(run),
        "measured": measured.rows(run),
        "improved": words.percent(tables.as_float((summary.get("fairness") or {}).get("improved"))),
        "improved_value": repr(tables.as_float((summary.get("fairness") or {}).get("improved"))),
        "central": _central(run),
        "clients": tables.badly_served(run),
        "num_clients": run.num_clients,
        "unevaluated": run.num_clients - len(run.final) if len(run.final) else 0,
        "last_evaluated": run.last_evaluated,
        "environment": tables.environment(run),
        "origin": _origin(run),
        "cost": system.summary(run),
        "scenario": run.scenario,
    }


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    reached = int(run.rounds["round"].max()) if len(run.rounds) and "round" in run.rounds else None
    planned = run.summary.get("rounds")
    rounds = str(planned) if reached in (None, planned) or planned is None else f"{reached} of {planned}"
    if planned is None:
        rounds = str(reached if reached is not None else "")
    facts = {
        "strategy": run.summary.get("strategy"),
        "model": _named(run, "model"),
        "client hooks": _hooks(run),
        "data": run.manifest.get("dataset"),
        "partition": _with_options(run.manifest.get("partition"), run.manifest.get("partition_options")),
        "clients": run.num_clients or None,
        "rounds": rounds,
        "seed": run.summary.get("seed", run.manifest.get("seed")),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _scenario(run: RunFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(run.scenario)
    except tomllib.TOMLDecodeError:
        return {}


def _named(run: RunFolder, key: str) -> str | None:
    section = _scenario(run).get(key)
    return str(section["name"]) if isinstance(section, dict) and "name" in section else None


def _losses_left_out(run: RunFolder) -> bool:
    client = _scenario(run).get("client")
    return isinstance(client, dict) and client.get("losses") == "needed"


def _hooks(run: RunFolder) -> str | None:
    client = _scenario(run).get("client")
    entries = client.get("hooks", []) if isinstance(client, dict) else []
    named = [entry if isinstance(entry, dict) else {"name": entry} for entry in entries]
    return ", ".join(
        _with_options(entry.get("name"), {k: v for k, v in entry.items() if k != "name"}) or "" for entry in named
    )


def _with_options(name: Any, options: Any) -> str | None:
    if not name or not isinstance(options, dict) or not options:
        return str(name) if name else None
    return f"{name} ({', '.join(f'{key} {value}' for key, value in options.items() if value is not None)})"


def _highlights(run: RunFolder) -> list[tuple[str, str]]:
    block = run.fairness("test_accuracy")
    if not block:
        return []
    value = {name: tables.as_float(block.get(name)) for name in block}
    return [
        ("mean accuracy", words.percent(value["mean"])),
        ("worst 10 %", words.percent(value["worst_10"])),
        ("best 10 %", words.percent(value["best_10"])),
        ("standard deviation", f"{100 * value['std']:.1f} points"),
        ("angle to equal", f"{value['angle_deg']:.1f}°"),
    ]


def _central(run: RunFolder) -> dict[str, str] | None:
    central = run.summary.get("central")
    if not central:
        return None
    accuracy, loss = (tables.as_float(central.get(name)) for name in ("accuracy", "loss"))
    return {
        "accuracy": words.percent(accuracy, 2),
        "accuracy_value": repr(accuracy),
        "loss": tables.number(loss),
    }


def _origin(run: RunFolder) -> list[tuple[str, str]]:
    lines = {
        "time": tables.time_spent(run),
        "partition (SHA-256)": run.summary.get("partition_sha256") or run.manifest.get("sha256"),
        "model (SHA-256)": run.summary.get("model_sha256"),
    }
    return [(name, str(value)) for name, value in lines.items() if value]


def _pictures(run: RunFolder) -> list[Picture]:
    final, nothing = run.final, "No round was evaluated, so there is nothing to show here."
    accuracies = final["test_accuracy"].to_numpy(float)
    has_loss = "mean_loss" in run.rounds and bool(np.isfinite(run.rounds["mean_loss"].to_numpy(float)).any())
    has_certificate = "round" in run.rounds and bool(
        certificate.present(run.rounds) or certificate.modes(run.rounds)
    )
    return [
        _picture(
            "accuracy",
            f"Test accuracy of the clients over rounds: median, bands and the worst tenth, up to round "
            f"{run.last_evaluated}.",
            (lambda: figures.accuracy_over_rounds(run.evaluations, run.rounds)) if len(final) else None,
            nothing,
        ),
        _picture(
            "distribution",
            "Test accuracy of every client from worst to best, and a histogram of the same values.",
            (lambda: figures.accuracy_distribution(accuracies)) if len(final) else None,
            nothing,
        ),
        _picture(
            "size",
            "Final test accuracy of each client against its number of training examples.",
            (lambda: figures.accuracy_against_size(accuracies, final["train_examples"].to_numpy(float)))
            if len(final)
            else None,
            nothing,
        ),
        _picture(
            "partition",
            _partition_label(run),
            (lambda: _draw_partition(run)) if run.counts_by_client("train") and run.class_names else None,
            "The folder holds no manifest of the partition.",
        ),
        _picture(
            "certificate",
            "What each round's step promised the clients, over rounds.",
            (lambda: certificate.certificate(run.rounds)) if has_certificate else None,
            "The rule of this run records no certificate, or no round was finished.",
        ),
        _picture(
            "loss",
            "Mean training loss of the sampled clients over rounds.",
            (lambda: figures.training_loss(run.rounds)) if has_loss else None,
            (
                'Left out: client.losses = "needed", and the strategy reads no loss.'
                if _losses_left_out(run)
                else "No round with a training loss was finished."
            ),
        ),
        *(_picture(name, _LABELS[name], draw, nothing) for name, draw in measured.figures(run).items()),
        *(
            [_picture("hooks", _LABELS["hooks"], lambda: hooks.reported(run), nothing)]
            if hooks.columns(run)
            else []
        ),
        *(
            [_picture("system", _LABELS["system"], lambda: system.accuracy_against_cost(run), nothing)]
            if len(system.known(run))
            else []
        ),
    ]


def _picture(name: str, label: str, draw: Callable[[], Figure] | None, missing: str) -> Picture:
    if draw is None:
        return Picture(name, None, label, missing)
    with style.styled():
        drawing = draw()
    # Safe: the markup is matplotlib's, which escapes every name it draws.
    return Picture(name, Markup(style.svg(drawing, label, prefix=name)), label, missing)


def _partition_label(run: RunFolder) -> str:
    clients, classes = run.num_clients, len(run.class_names)
    return f"Training examples by client and class, {clients} clients and {classes} classes."


def _draw_partition(run: RunFolder) -> Figure:
    ids = sorted(run.counts_by_client("train"))
    names = manifest.names(run.manifest)
    return partition.partition(run.matrix("train"), run.class_names, [names.get(k, str(k)) for k in ids])
