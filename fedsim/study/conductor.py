"""Carries out a study: what is not finished is run, in parallel; what cannot be run is listed; then the results."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from clients.app import LocalApp
from fedsim import files
from fedsim.engine.pool import LocalPool, Lost, RayPool, Said
from fedsim.errors import DataError, FedSimError, RoundError, ScenarioError
from fedsim.lock import RunLock
from fedsim.log_file import log_file
from fedsim.resume import hashes_of
from fedsim.server_app import build_federation
from fedsim.study import tuning
from fedsim.study.design import DESIGN, Design, Run
from fedsim.study.folder import (
    LOG,
    RESULTS,
    RUNS,
    TRIALS,
    is_finished,
    measures_of,
    note_failure,
    status_of,
    summary_of,
)
from fedsim.study.perform import Order, Outcome, Together, perform
from fedsim.study.results import gathered
from fedsim.study.screen import Standing, headline, progress, say, tables
from fedsim.study.words import name_of
from fedsim.study_report import write_study_report

Parallel = Literal["runs", "clients"]

log = logging.getLogger("fedsim")


def compare(
    design: Design,
    folder: Path,
    command: str = "",
    parallel: Parallel | None = None,
    *,
    replaces: bool = False,
) -> dict[str, Any]:
    """Carry out a study, or what is left of one; return its results, which are also in the folder.

    Args:
        design: What is compared.
        folder: The study folder; runs in it that are finished are not made again.
        command: The line that makes the study again, for the report.
        parallel: "runs": as many at once as there are workers. "clients": one run after the other, its clients on
            all workers. None chooses: runs, unless workers are on other machines or clients have a timeout.
        replaces: Whether the folder may hold a study that this one does not go on with; shared runs are kept.

    Raises:
        FedSimError: The study cannot be carried out.
        KeyboardInterrupt: Passed on after the folder is written; the same command goes on.
    """
    console = Console()
    refuse_foreign(folder, None if replaces else design)
    say(console, headline(design))
    _try_out(design)  # a mistake leaves no folder, and a study that is there as it is
    plan = tuning.plan(design)
    with RunLock(folder, folder / "lock"), log_file(folder / LOG):
        _refuse_other_data(design, folder, plan)
        _call_interrupted(folder)
        design = replace(design, command=command)
        files.replace(folder / DESIGN, design.to_toml())
        chosen: Mapping[tuple[str, str], Mapping[str, Any]] = {}
        status = "interrupted"
        runs: list[Run] = []
        try:
            if plan is not None:
                say(
                    console, f"tuning: {plan.budget} trials of every method in every scenario, on validation shards"
                )
                trials = {run.id: _trial_name(trial, run) for trial in plan.trials for run in trial.runs}
                _carry_out(console, plan.runs, folder / TRIALS, design, parallel, trials)
                chosen = tuning.chosen_values(plan, folder / TRIALS)
            runs = design.runs(chosen)
            failed = _carry_out(console, runs, folder / RUNS, design, parallel)
            status = "failed" if failed else "finished"
        except FedSimError:
            status = "failed"
            raise
        finally:
            found = _leave(design, folder, runs or design.runs(chosen), plan, command, status)
            if found is not None and (folder / "study.html").exists():
                say(console, f"report: {folder / 'study.html'}")
            if status == "interrupted":
                say(console, f"go on with: python run_sim.py resume {folder}")
    for table in tables(design, found or {}):
        console.print(table)
    for choice in ((found or {}).get("tuning") or {}).get("chosen", ()):
        values = ", ".join(f"{key}={value}" for key, value in choice["values"].items()) or "as it is"
        say(console, f"tuned: {choice['scenario']}, {choice['method']}: {values} (score {choice['score']:.4f})")
    for warning in (found or {}).get("warnings", ()):
        say(console, f"beware: {warning}")
    for words in (found or {}).get("words", ()):
        say(console, words)
    return found or {}


def _leave(
    design: Design, folder: Path, runs: Sequence[Run], plan: tuning.Plan | None, command: str, status: str
) -> dict[str, Any] | None:
    """Write the results of what has been run; trouble with that must not hide why a study ended."""
    try:
        found = gathered(design, folder, runs, plan, command=command, status=status)
        files.replace(folder / RESULTS, json.dumps(found, indent=1, allow_nan=False))
        if any(run["status"] == "finished" for run in found["runs"]):
            write_study_report(folder)
    except Exception:
        log.exception("the results could not be written")
        if status != "interrupted":
            raise
        return None
    return found


def refuse_foreign(folder: Path, design: Design | None) -> None:
    """Refuse a folder that holds something else, or a study that this one does not go on with.

    Args:
        folder: The folder; there may be none.
        design: The study; None lets it take the place of any.

    Raises:
        DataError: It does.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / DESIGN).is_file():
        raise DataError(f"{folder}: is not empty and holds no study; name another folder with --out")
    if design is None:
        return
    before = Design.read(folder)
    if not design.extends(before) or not _trial_ids(before) <= _trial_ids(design):
        raise DataError(
            f"{folder}: holds another study, whose results would be lost: it has runs that this one has not, or "
            "is tuned otherwise. Name another folder with --out, or say --replace; without, methods, seeds and "
            "scenarios may be added."
        )


def _trial_ids(design: Design) -> set[str]:
    plan = tuning.plan(design)
    return set() if plan is None else {run.id for run in plan.runs}


def _refuse_other_data(design: Design, folder: Path, plan: tuning.Plan | None) -> None:
    """Refuse to go on where a run that is finished was made with other data than there are now.

    Of each scenario one run is looked at, a trial where there are some: data that change, change for all.

    Raises:
        DataError: One was.
    """
    trials = [(folder / TRIALS / run.id, run) for run in plan.runs] if plan is not None else []
    runs = [*trials, *((folder / RUNS / run.id, run) for run in design.runs({}))]
    for scenario in (base.name for base in design.bases):
        here = ((done, run) for done, run in runs if run.scenario == scenario and is_finished(done))
        done, run = next(here, (None, None))
        if done is None or run is None:
            continue
        before, now = summary_of(done).get("data_sha256"), hashes_of(run.resolved, build_federation(run.resolved))
        if before != now["examples"]:
            raise DataError(
                f"{done}: the data of {scenario} have changed since this run was made (SHA-256 {str(before)[:12]} "
                f"-> {now['examples'][:12]}); bring back what the study began with, or name another folder"
            )


def _call_interrupted(folder: Path) -> None:
    """Let the results that are there say that the study goes on: they are of what was done before."""
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    files.replace(folder / RESULTS, json.dumps({**found, "status": "interrupted"}, indent=1, allow_nan=False))


def _try_out(design: Design) -> None:
    """Let every method see the data and the model of every scenario: mistakes are found before hours of runs.

    Raises:
        ScenarioError: Lists what does not fit.
        DataError: Data are missing.
    """
    problems: list[str] = []
    for base in design.bases:
        scenarios = {m.label: base.with_method(m, design.pairs[0]) for m in design.methods}
        federation = build_federation(next(iter(scenarios.values())))
        for label, scenario in scenarios.items():
            device = "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu"
            try:
                LocalApp(scenario, federation, device).check()
            except ScenarioError as error:
                problems += [f"{base.name}, {label}: {line}" for line in error.problems]
    if problems:
        raise ScenarioError(design.name, problems)


def _carry_out(
    console: Console,
    runs: Sequence[Run],
    folder: Path,
    design: Design,
    parallel: Parallel | None,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Carry out what is not finished; return the ids of runs that failed."""
    wanted = {run.id: run for run in runs}  # methods that are the same run share it
    left = [run for run in wanted.values() if not is_finished(folder / run.id)]
    if len(left) < len(wanted):
        told = " (trackers are not told of them)" if any("tracking" in r.resolved.table() for r in runs) else ""
        say(console, f"{len(wanted) - len(left)} of {len(wanted)} runs are finished already{told}")
    if not left:
        return []
    named = names or {}
    orders = [
        Order(named.get(run.id) or _name(run), _table(run, design), str((folder / run.id).resolve()))
        for run in left
    ]
    of_order = dict(zip((order.folder for order in orders), left, strict=True))
    standing = Standing(len(left), {order.folder: of_order[order.folder].resolved.rounds for order in orders})
    failed: list[str] = []
    with _pool(console, design, len(orders), parallel) as pool, progress(console, standing) as show:

        def heard(said: Said[Order]) -> None:
            standing.reached[said.order.folder] = said.what
            show(None)

        for event in pool.run(orders, heard):
            run, name = of_order[event.order.folder], event.order.name
            if isinstance(event, Lost):
                if event.again:
                    log.warning("%s: its worker died (%s); it goes on with another", name, event.cause)
                    show(f"{name}: its worker died ({event.cause}); it goes on with another")
                    continue
                outcome = Outcome("failed", f"its worker died: {event.cause}")
                note_failure(Path(event.order.folder), str(outcome.error))
            else:
                outcome = event.result
            standing.reached[event.order.folder] = run.resolved.rounds
            standing.finished += 1
            if outcome.status == "finished":
                log.info("%s: %s", name, _reached(folder / run.id))
                show(f"{name}: {_reached(folder / run.id)}")
            else:
                failed.append(run.id)
                standing.failed += 1
                log.error("%s failed: %s", name, outcome.error)
                show(f"{name} FAILED: {outcome.error}")
    return failed


@contextmanager
def _pool(console: Console, design: Design, num_runs: int, parallel: Parallel | None) -> Iterator[Any]:
    settings = design.engine
    apart = settings.address is not None or settings.timeout_s is not None
    if settings.backend == "local":
        pool: Any = LocalPool(perform)
        closing = pool.close
    elif (parallel or ("clients" if apart else "runs")) == "clients":
        together = Together()
        pool, closing = LocalPool(together.perform), together.close
    else:
        pool = RayPool(perform, settings, num_runs)
        say(console, f"{pool.num_workers} Ray workers, a run each")
        closing = pool.close
    try:
        yield pool
    finally:
        closing()


def _trial_name(trial: tuning.Trial, run: Run) -> str:
    return ", ".join([_name(run), *(f"{key}={value}" for key, value in trial.values.items())])


def _name(run: Run) -> str:
    return f"{run.scenario}, {run.method}, {run.pair.text}"


def _table(run: Run, design: Design) -> dict[str, Any]:
    """Return the scenario of a run as it is carried out: trackers can tell runs of a study apart."""
    table = run.resolved.table()
    if "tracking" in table:
        drawn = {} if run.pair.partition is None else {"partition": str(run.pair.partition)}
        tags = {"study": design.name, "scenario": run.scenario, "method": run.method, **drawn}
        table["tracking"] = {**table["tracking"], "tags": {**tags, **table["tracking"].get("tags", {})}}
    return table


def _reached(folder: Path) -> str:
    block = measures_of(summary_of(folder), "test_accuracy")
    return f"accuracy {block['mean']:.3f}, worst 10 % {block['worst_10']:.3f}" if block else "no test accuracy"


def raise_for(found: Mapping[str, Any], folder: Path) -> None:
    """Raise if a study that was carried out lacks runs, with their names and causes.

    Raises:
        RoundError: Some did.
    """
    failed = [run for run in found.get("runs", ()) if run["status"] != "finished"]
    if not failed:
        return
    lines = [f"{name_of(run)}: {run['error'] or 'not made'} ({folder / run['folder']})" for run in failed[:10]]
    more = [f"and {len(failed) - 10} more, see {folder / RESULTS}"] if len(failed) > 10 else []
    raise RoundError("\n  ".join([f"{len(failed)} of {len(found['runs'])} runs failed", *lines, *more]))


def resume(folder: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Go on with a study that was interrupted or had runs that failed; see `compare`.

    Args:
        folder: The study folder.
        changes: None is possible; another study has another folder.

    Raises:
        ScenarioError: Something was to be changed.
    """
    if changes:
        raise ScenarioError(
            str(folder), [f"--set: {', '.join(changes)} would make other runs; begin another study with `compare`"]
        )
    design = Design.read(folder)
    return compare(design, folder, design.command)


def checked(design: Design) -> str:
    """Return what a study would run, after every method has seen the data and the model of every scenario.

    Raises:
        FedSimError: Something would not work.
    """
    _try_out(design)
    plan = tuning.plan(design)
    trials = "" if plan is None else f"; before them {len(plan.runs)} runs of tuning, {plan.budget} trials a method"
    return headline(design) + trials


def report(folder: Path) -> Path:
    """Write results and report of a study folder again, from the runs that it holds.

    Raises:
        DataError: It holds no study.
    """
    design = Design.read(folder)
    plan = tuning.plan(design)
    chosen = (
        tuning.chosen_values(plan, folder / TRIALS)
        if plan is not None and tuning.is_complete(plan, folder / TRIALS)
        else {}
    )
    runs = design.runs(chosen)
    whole = all(status_of(folder / RUNS / run.id) != "missing" for run in runs)
    with log_file(folder / LOG):
        _leave(design, folder, runs, plan, design.command, "finished" if whole else "interrupted")
    return folder / "study.html"
