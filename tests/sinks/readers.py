"""What a tracker holds of a run, read back with the tracker's own reader: name -> round -> values."""

from __future__ import annotations

import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

Held = dict[str, dict[int, list[float]]]
"""Every value that a tracker has for a name and a round: one, unless a round was told twice."""


def expected(folder: Path, *, columns: str = "") -> Held:
    """The numbers of rounds.parquet by their flat names."""
    held: Held = {}
    for row in pd.read_parquet(folder / "rounds.parquet").to_dict("records"):
        for column, value in row.items():
            parts = (
                enumerate(value) if hasattr(value, "__len__") and not isinstance(value, str) else [(None, value)]
            )
            for place, part in parts:
                if column == "round" or isinstance(part, str) or part is None or part != part:
                    continue
                name = column if place is None else f"{column}/{place}"
                if name.startswith(columns):
                    held.setdefault(name, {})[row["round"]] = [float(part)]
    return held


def fairness_of(folder: Path) -> dict[str, float]:
    """The fairness block of summary.json by its flat names."""
    block = json.loads((folder / "summary.json").read_text())["fairness"]
    flat = {
        f"fairness/{of}/{measure}": value
        for of, measures in block.items()
        if isinstance(measures, dict)
        for measure, value in measures.items()
    }
    return {**flat, "fairness/improved": block["improved"]}


def of_tensorboard(folder: Path) -> tuple[Held, dict[str, dict[int, Any]]]:
    """Scalars, and histograms by name and round."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    scalars: Held = defaultdict(lambda: defaultdict(list))
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            scalars[name][event.step].append(event.value)
    histograms = {
        name: {event.step: event.histogram_value for event in events.Histograms(name)}
        for name in events.Tags()["histograms"]
    }
    return {name: dict(rounds) for name, rounds in scalars.items()}, histograms


def of_mlflow(folder: Path) -> tuple[Held, Any]:
    """Metrics, and the run, which the store must hold once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(experiments) if run.info.run_name == folder.name]
    assert len(runs) == 1
    held: Held = defaultdict(lambda: defaultdict(list))
    for name in runs[0].data.metrics:
        for point in client.get_metric_history(runs[0].info.run_id, name):
            held[name][point.step].append(point.value)
    return {name: dict(rounds) for name, rounds in held.items()}, runs[0]


def of_wandb(folder: Path) -> tuple[Held, list[dict[str, Any]]]:
    """The history of the last session, which holds the run from its start, and what each says of itself."""
    held: Held = {}
    sessions = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        about: dict[str, Any] = {"summary": {}}
        held = defaultdict(lambda: defaultdict(list))
        for record in _records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                about |= {"id": record.run.run_id, "group": record.run.run_group, "name": record.run.display_name}
                about |= {"project": record.run.project, "config": config, "tags": list(record.run.tags)}
            elif kind == "history":
                step = record.history.step.num
                for item in record.history.item:
                    name, value = "/".join(item.nested_key) or item.key, json.loads(item.value_json)
                    if isinstance(value, int | float) and not name.startswith(("_", "clients/")):
                        held[name][step].append(float(value))
            elif kind == "summary":
                pairs = ((item.key or item.nested_key[0], item.value_json) for item in record.summary.update)
                about["summary"] |= {key: json.loads(text) for key, text in pairs}
        sessions.append(about)
    return {name: dict(rounds) for name, rounds in held.items()}, sessions


def _records(file: Path) -> Iterator[Any]:
    """W&B's records in a LevelDB log: blocks of 32 KiB; fragments of a checksum, a length, a kind and a payload.

    The package has the messages; what reads the log is a program of its own.
    """
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    place, whole = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        checksum, size, kind = struct.unpack("<IHB", data[place : place + 7])
        body = data[place + 7 : place + 7 + size]
        assert checksum == zlib.crc32(bytes([kind]) + body)
        place += 7 + size
        whole += body
        if kind in (1, 4):  # whole, or the last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
