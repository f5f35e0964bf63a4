"""Tidy tables of finished work: `load_run` reads a run folder, `load_study` a study folder.

Only files are read: no scenario, data or model is needed. Accuracies are fractions, losses nats; unknown numbers
are NaN. Whatever cannot be read is a line of `problems`, and the rest is there.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim import manifest
from fedsim.errors import DataError
from fedsim.fairness import CONVENTIONS
from fedsim.report.folder import RunFolder, read

Record = dict[str, Any]

KEYS = ["scenario", "method", "partition", "seed"]
"""What names a run of a study; the first columns of every table of runs."""

LAYOUT = 1
"""The layout of study.json that is understood here."""

_RUN = ["status", "folder", "digest", "error", "rounds", "seconds", "model_sha256", "commit"]

_DIFFERENCE = ["n", "mean", "std", "low", "high", "t_low", "t_high", "effect_size", "rank_biserial"]

_TESTS = ["t", "wilcoxon"]

_RANKS = ["metric", "method", "average_rank", "scenarios", "friedman", "friedman_p", "critical_difference"]

_SETTINGS = ["scenario", "method", "setting", "value"]

_WINS = ["scenario", "method", "better", "equal", "worse", "low", "high", "n"]


@dataclass(frozen=True)
class Run:
    """The tables of one run.

    Attributes:
        scenario: The resolved scenario as TOML tables; {} where there is none.
        summary: summary.json; {} where the run was killed before it wrote one.
        clients: One row per (round, client).
        rounds: One row per round.
        measures: Columns metric ("test_accuracy", ...), measure (a name of `fedsim.fairness.CONVENTIONS`) and
            value, at the last evaluation.
        problems: What could not be read, one line each.
    """

    scenario: Record
    summary: Record
    clients: pd.DataFrame
    rounds: pd.DataFrame
    measures: pd.DataFrame
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """The tables of a comparison study; those of its runs are read from their folders when first asked for.

    Attributes:
        path: The study folder.
        info: study.json.
        runs: One row a run: `KEYS`, status and origin, every measure of test accuracy under its own name, of
            test loss as "loss_<measure>", "central_<name>" and "system_<name>" where the study has them.
        results: One row per scenario x method x metric: level and interval of the method, then "difference" to the
            baseline with its interval, effect sizes and tests.
        values: One row per scenario x method x metric x pair: the numbers that the results summarise.
        wins: Per scenario and method, the mean shares of clients better, equal and worse than with the baseline.
        ranks: One row per metric x method: its average rank over the study's scenarios.
        settings: One row per scenario x method x option that the study names, as that method ran: "strategy.q",
            "client.lr", ...; empty for a study that does not say.
    """

    path: Path
    info: Record
    runs: pd.DataFrame
    results: pd.DataFrame
    values: pd.DataFrame
    wins: pd.DataFrame
    ranks: pd.DataFrame
    settings: pd.DataFrame
    _problems: list[str] = field(default_factory=list, repr=False)

    @cached_property
    def final(self) -> pd.DataFrame:
        """The last evaluation of every client in every finished run: `KEYS`, client and what was measured."""
        return self._parts["final"]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per round of every run that left a table: `KEYS`, then the columns of its rounds.parquet."""
        return self._parts["rounds"]

    @cached_property
    def manifests(self) -> dict[tuple[Any, ...], Record]:
        """Scenario, method, partition (None where it follows the seed) and seed -> the partition's manifest.

        Its hash and its clients' names only.
        """
        self._parts  # noqa: B018  reads the folders
        return self._manifests

    @cached_property
    def clients(self) -> pd.DataFrame:
        """One row per (round, client) of every run that left a table: `KEYS` first. May be large."""
        return _stacked(_keyed(key, _clients(run)) for key, _, run in self._folders())

    @property
    def problems(self) -> tuple[str, ...]:
        """Run folders, or parts of them, that could not be read: one line each."""
        self._parts  # noqa: B018  reads the folders
        return tuple(dict.fromkeys(self._problems))

    @cached_property
    def _manifests(self) -> dict[tuple[Any, ...], Record]:
        return {}

    @cached_property
    def _parts(self) -> dict[str, pd.DataFrame]:
        # One pass that keeps what is small: the rows of all rounds of all clients are read only when asked for.
        final, rounds = [], []
        for key, finished, run in self._folders():
            rounds.append(_keyed(key, _rounds(run)))
            self._manifests[key] = {"sha256": run.manifest.get("sha256"), "names": manifest.names(run.manifest)}
            if finished:
                final.append(_keyed(key, _final(run)))
        return {"final": _stacked(final), "rounds": _stacked(rounds)}

    def _folders(self) -> Iterator[tuple[tuple[Any, ...], bool, RunFolder]]:
        for record in self.info.get("runs") or []:
            if not record.get("folder") or record.get("status") in ("missing", "refused"):
                continue
            try:
                run = read(self.path / record["folder"])
            except DataError as error:
                if record.get("status") == "finished":
                    self._problems.append(str(error).replace(f"{self.path}/", ""))
                continue
            if record.get("status") == "finished":
                self._problems.extend(f"{record['folder']}: {problem}" for problem in run.problems)
            key = tuple(record.get(name) for name in KEYS)
            yield key, record.get("status") == "finished", run


def load_run(folder: str | Path) -> Run:
    """Read a run folder.

    Args:
        folder: Of a run, finished or not.

    Raises:
        DataError: The folder holds nothing that a run writes.
    """
    run = read(Path(folder))
    problems = list(run.problems)
    scenario: Record = {}
    try:
        scenario = tomllib.loads(run.scenario)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"scenario.toml cannot be read: {error}")
    blocks = {name: run.fairness(name) for name in ("test_accuracy", "test_loss")}
    blocks |= {k: v for k, v in (run.summary.get("fairness") or {}).items() if isinstance(v, dict)}
    rows = [
        (metric, measure, value)
        for metric, block in blocks.items()
        for measure, value in block.items()
        if measure in CONVENTIONS
    ]
    measures = pd.DataFrame(rows, columns=["metric", "measure", "value"]).astype({"value": float})
    return Run(scenario, run.summary, _clients(run), _rounds(run), measures, tuple(problems))


def load_study(folder: str | Path) -> Study:
    """Read a study folder.

    Args:
        folder: Of a comparison study, finished or under way.

    Raises:
        DataError: There is no study.json, or it cannot be read.
    """
    path = Path(folder) / "study.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give a folder that a comparison study has written") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; run the study again to have it written") from error
    if not isinstance(info, dict) or info.get("layout") != LAYOUT:
        found = info.get("layout") if isinstance(info, dict) else type(info).__name__
        raise DataError(f"{path}: layout must be {LAYOUT}, got {found}; read it with the fedsim that wrote it")
    return Study(
        path=Path(folder),
        info=info,
        runs=_table([_run_row(run) for run in info.get("runs") or []], [*KEYS, *_RUN]),
        results=_table(
            [_result_row(result) for result in info.get("results") or []], _result_columns(), _WORDS | {"better"}
        ),
        values=_table(list(_value_rows(info)), [*KEYS, "metric", "value"]),
        wins=_table([{**win, **_bounds(win, "interval", "")} for win in info.get("wins") or []], _WINS)[_WINS],
        ranks=_table(list(_rank_rows(info)), _RANKS),
        settings=pd.DataFrame(list(_setting_rows(info)), columns=_SETTINGS, dtype=object),
    )


def planned_pairs(info: Mapping[str, Any], scenario: str) -> list[Record]:
    """Return the pairs of a scenario in the order of its `values`, with their fingerprints where these are known.

    Args:
        info: study.json, whose own list has the pairs that a run is finished of.
        scenario: The scenario's name.
    """
    design = info["design"]
    known = {(p.get("partition"), p["seed"]): p for p in info.get("pairs") or [] if p["scenario"] == scenario}
    plan = [(partition, seed) for partition in design.get("partitions") or [None] for seed in design["seeds"]]
    return [{"partition": partition, "seed": seed, **known.get((partition, seed), {})} for partition, seed in plan]


def ranked_scenarios(entry: Mapping[str, Any]) -> list[str]:
    """Return the scenarios that an entry of study.json's ranks is over; the key was once "datasets"."""
    return list(entry["scenarios"] if "scenarios" in entry else entry["datasets"])


def _run_row(run: Mapping[str, Any]) -> Record:
    row = {name: run.get(name) for name in (*KEYS, *_RUN)}
    row |= dict(run.get("measures") or {})
    for prefix, block in (("loss", "loss"), ("central", "central"), ("system", "system")):
        row |= {f"{prefix}_{name}": value for name, value in (run.get(block) or {}).items()}
    return row


def _result_columns() -> list[str]:
    level = [
        "scenario",
        "method",
        "metric",
        "better",
        "tested",
        "n",
        "mean",
        "std",
        "low",
        "high",
        "t_low",
        "t_high",
    ]
    tests = [f"{test}{part}" for test in _TESTS for part in ("", "_p", "_p_holm")]
    agree = ["partitions_agree", "partitions"]
    return [*level, *(_difference_name(name) for name in _DIFFERENCE), *tests, "significant", "improves", *agree]


def _difference_name(name: str) -> str:
    """Return the column of a number about the difference to the baseline."""
    if name in ("effect_size", "rank_biserial"):
        return name
    return "difference" if name == "mean" else f"difference_{name}"


def _result_row(result: Mapping[str, Any]) -> Record:
    row = {
        name: result.get(name) for name in ("scenario", "method", "metric", "better", "tested", "n", "mean", "std")
    }
    row |= {**_bounds(result, "interval", ""), **_bounds(result, "t_interval", "t_")}
    difference = result.get("difference")
    if difference is None:
        return row
    numbers = {**difference, **_bounds(difference, "interval", ""), **_bounds(difference, "t_interval", "t_")}
    row |= {_difference_name(name): numbers.get(name) for name in _DIFFERENCE}
    for test in _TESTS:
        block = difference.get(test) or {}
        row |= {test: block.get("statistic"), f"{test}_p": block.get("p"), f"{test}_p_holm": block.get("p_holm")}
    row |= {name: difference.get(name) for name in ("significant", "improves")}
    agree, of = difference.get("partitions_agree") or (None, None)
    return {**row, "partitions_agree": agree, "partitions": of}


def _bounds(record: Mapping[str, Any], name: str, prefix: str) -> Record:
    low, high = record.get(name) or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _value_rows(info: Mapping[str, Any]) -> Iterator[Record]:
    for result in info.get("results") or []:
        pairs = planned_pairs(info, result["scenario"])
        for pair, value in zip(pairs, result.get("values") or [], strict=True):
            yield {
                "scenario": result["scenario"],
                "method": result["method"],
                "partition": pair.get("partition"),
                "seed": pair.get("seed"),
                "metric": result["metric"],
                "value": value,
            }


def _rank_rows(info: Mapping[str, Any]) -> Iterator[Record]:
    for entry in info.get("ranks") or []:
        friedman = entry.get("friedman") or {}
        for method, average in zip(entry["methods"], entry["average"], strict=True):
            yield {
                "metric": entry["metric"],
                "method": method,
                "average_rank": average,
                "scenarios": len(ranked_scenarios(entry)),
                "friedman": friedman.get("statistic"),
                "friedman_p": friedman.get("p"),
                "critical_difference": entry.get("critical_difference"),
            }


def _setting_rows(info: Mapping[str, Any]) -> Iterator[Record]:
    methods = info["design"]["methods"]
    for scenario in info["design"]["scenarios"]:
        for method in methods:
            of = (method.get("settings") or {}).get(scenario["name"]) or {}
            for name, value in of.items():
                yield {"scenario": scenario["name"], "method": method["label"], "setting": name, "value": value}


_WORDS = frozenset({*KEYS[:2], "metric", "status", "folder", "digest", "error", "model_sha256", "commit"})
_TRUTHS = {"tested", "significant", "improves"}
_COUNTS = {"partition", "seed", "rounds", "partitions_agree", "partitions", "scenarios"}


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], words: frozenset[str] = _WORDS
) -> pd.DataFrame:
    """Return a table with these columns first, whatever the rows hold, and types that do not depend on the rows."""
    found = pd.DataFrame(list(rows))
    further = [name for name in found.columns if name not in columns]
    table = found.reindex(columns=[*columns, *further])
    for name in table.columns:
        if name in _TRUTHS:
            table[name] = table[name].astype("boolean")
        elif name in _COUNTS:
            table[name] = table[name].astype("Int64")
        elif name in words:
            table[name] = table[name].astype(object).where(table[name].notna(), None)
        elif name in columns or table[name].dtype == object:
            table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    return table


def _clients(run: RunFolder) -> pd.DataFrame:
    """Return the rows of all clients; of a round that a resumed run wrote twice, those it went on from."""
    if not {"round", "client"} <= set(run.clients.columns):
        return run.clients
    return run.clients.drop_duplicates(["round", "client"], keep="last").reset_index(drop=True)


def _rounds(run: RunFolder) -> pd.DataFrame:
    if "round" not in run.rounds:
        return run.rounds
    return run.rounds.drop_duplicates("round", keep="last").sort_values("round").reset_index(drop=True)


def _final(run: RunFolder) -> pd.DataFrame:
    rows = run.evaluations
    rows = rows[rows["round"] == run.last_evaluated].set_index("client")
    known = run.final
    return known.join(rows.drop(columns=[name for name in known.columns if name in rows])).reset_index()


def _keyed(key: tuple[Any, ...], table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the columns that name its run in front."""
    keys = pd.DataFrame([key] * len(table), columns=KEYS, index=table.index)
    return pd.concat([keys.astype({"partition": "Int64", "seed": "Int64"}), table], axis=1)


def _stacked(tables: Iterator[pd.DataFrame] | Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=KEYS)
