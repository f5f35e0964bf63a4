#!/usr/bin/env python3
"""The command line of fedsim: run, compare, verify, resume, app, report, check, list, doctor.

python run_sim.py run scenarios/quickstart.toml --set strategy.name=fedavg --set seed=1
"""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedsim.errors import FedSimError

# Flower would otherwise report its use over the network.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

INTERRUPTED = 130

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help has brackets of its own
    help="Federated-learning simulation for fairness research.",
)


class Parallel(StrEnum):
    """What of a study is done at once."""

    RUNS = "runs"
    CLIENTS = "clients"


class Backend(StrEnum):
    """Where clients run."""

    RAY = "ray"
    LOCAL = "local"


ScenarioArgument = Annotated[str, typer.Argument(help="A scenario file, or the name of a bundled one.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the scenario; repeatable."),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="SINK", help="Pass the numbers on: tensorboard, mlflow, wandb; repeatable."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the data sets (default: FEDSIM_DATA, else ~/.cache/fedsim)."),
]


@cli.command()
def run(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder (default: a new one under runs/).")] = None,
    data: DataOption = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say at the end where the time went and how busy each worker was.")
    ] = False,
    track: TrackOption = None,
) -> None:
    """Run a scenario and leave a run folder with every number and a report."""
    from fedsim import interrupt
    from fedsim.simulation import simulate
    from fedsim.tracking import changes_of

    interrupt.install()
    _set_data(data)
    folder = simulate(scenario, [*(changes or []), *changes_of(track or [])], out, profile=profile)
    typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(folder)


@cli.command()
def compare(
    scenario: ScenarioArgument,
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies", metavar="A,B,...", help='Methods: names, or "adafed[scale=min; server.average=all]".'
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="N|A,B,...", help="Seeds, or how many.")] = None,
    partitions: Annotated[
        str | None,
        typer.Option(
            "--partitions",
            metavar="N|A,B,...",
            help="Seeds of partitions, or how many, crossed with the seeds (default: each seed has its own).",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The method that others are compared with.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="A,B,...", help="Measures over clients that are tested.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First tune every method on validation shards, with one budget for all.")
    ] = False,
    parallel: Annotated[
        Parallel | None,
        typer.Option("--parallel", help="Whole runs at once, or one run's clients (default: runs)."),
    ] = None,
    changes: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Study folder (default: one under runs/, by what is compared).")
    ] = None,
    replaces: Annotated[
        bool, typer.Option("--replace", help="Take the place of another study in --out; shared runs are kept.")
    ] = False,
    data: DataOption = None,
    track: TrackOption = None,
) -> None:
    """Compare methods over seeds, paired, and say which differences are real; go on where it was interrupted."""
    from fedsim import interrupt
    from fedsim.study import command, conductor
    from fedsim.study.design import Design
    from fedsim.tracking import changes_of

    interrupt.install()
    _set_data(data)
    changes = [*(changes or []), *changes_of(track or [])]
    asked = command.options(
        strategies=strategies, seeds=seeds, partitions=partitions, baseline=baseline, metrics=metrics, tune=tune
    )
    design = Design.load(scenario, changes, asked)
    folder = out or design.default_folder()
    line = command.line(scenario, asked, changes, out)
    found = conductor.compare(design, folder, line, parallel.value if parallel else None, replaces=replaces)
    typer.echo(folder)
    conductor.raise_for(found, folder)


@cli.command()
def verify(
    scenario: ScenarioArgument,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="N|A,B,...", help="Seeds, or how many.")] = None,
    parallel: Annotated[
        Parallel | None,
        typer.Option("--parallel", help="Whole runs at once, or one run's clients (default: runs)."),
    ] = None,
    changes: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Study folder.")] = None,
    data: DataOption = None,
) -> None:
    """Run a scenario with a table [expect] again and say what is within, and what is not: exit code 1."""
    from fedsim import interrupt
    from fedsim.study import verification

    interrupt.install()
    _set_data(data)
    within = verification.verify(scenario, changes or [], seeds, out, parallel.value if parallel else None)
    raise typer.Exit(0 if within else 1)


@cli.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a study folder.")],
    changes: SetOption = None,
    data: DataOption = None,
) -> None:
    """Go on with a run or a study that was killed, interrupted or stopped by a failure."""
    from fedsim import interrupt
    from fedsim.study.design import is_study

    interrupt.install()
    _set_data(data)
    if is_study(folder):
        from fedsim.study import conductor

        conductor.raise_for(conductor.resume(folder, changes or []), folder)
        typer.echo(folder)
        return
    from fedsim.simulation import resume as go_on

    go_on(folder, changes or [])
    typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(folder)


@cli.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder, or a study folder.")]) -> None:
    """Write the report of a run or a study again, from what its folder holds."""
    from fedsim.report import write_report
    from fedsim.study.design import is_study

    if is_study(folder):
        from fedsim.study import conductor

        typer.echo(conductor.report(folder))
        return
    from fedsim.resume import bring_up

    reached = bring_up(folder)
    typer.echo(write_report(folder))
    if reached is not None:
        typer.echo(
            f"the run stopped after round {reached}; go on with: python run_sim.py resume {folder}", err=True
        )


@cli.command()
def check(scenario: ScenarioArgument, changes: SetOption = None, data: DataOption = None) -> None:
    """Check a scenario, with its data where they are, and print it with everything filled in that a run would."""
    from fedsim.scenario import is_of_others
    from fedsim.simulation import checked

    _set_data(data)
    if is_of_others(scenario):
        from fedsim.study import conductor
        from fedsim.study.design import Design

        typer.echo(conductor.checked(Design.load(scenario, changes or [])))
        return
    found, unread = checked(scenario, changes or [])
    typer.echo(found.to_toml(), nl=False)
    if unread is not None:
        typer.echo(f"the scenario is well formed; not checked with its data: {unread}", err=True)


@cli.command(name="list")
def list_(
    family: Annotated[
        str | None,
        typer.Argument(
            help="strategies, datasets, partitions, models, hooks, metrics, sinks, availability, "
            "rates, partial_work or scenarios; one of them by name; or a table: client, server, engine, "
            "evaluation, system, tracking."
        ),
    ] = None,
) -> None:
    """List what a scenario can name, a line each."""
    from fedsim.catalogue import lines

    for line in lines(family):
        typer.echo(line)


@cli.command()
def doctor(
    data: DataOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also start Ray with one worker, and end it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for what on this machine would stop a run; exit code 2 if something does."""
    from fedsim import doctor as examination

    _set_data(data)
    root = Path(os.environ.get("FEDSIM_DATA") or Path.home() / ".cache" / "fedsim").expanduser()
    findings = []
    for finding in examination.examine(root, deep=deep):
        findings.append(finding)
        if not as_json:
            typer.echo(finding.text)
    typer.echo(examination.as_json(findings) if as_json else examination.summary(findings))
    raise typer.Exit(examination.exit_code(findings))


@cli.command()
def app(
    folder: Annotated[str, typer.Argument(metavar="PATH", help="The folder of a Flower app: its pyproject.toml.")],
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of virtual nodes.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--run-config", metavar="'KEY=VALUE ...'|FILE", help="Change keys that the app declares; repeatable."
        ),
    ] = None,
    backend: Annotated[Backend, typer.Option("--backend", help="Ray workers, or this process.")] = Backend.RAY,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Number of Ray workers (default: one a core).")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option("--gpus-per-worker", min=0.0, help="Share of a GPU that each takes.")
    ] = 0.0,
) -> None:
    """Run any Flower app of the Message API, unchanged."""
    from fedsim.engine.app_run import run_app
    from fedsim.settings import EngineSettings

    settings = EngineSettings(backend=backend.value, workers=workers, gpus_per_worker=gpus_per_worker)
    run_app(folder, nodes, changes or [], settings, lambda line: typer.echo(line, err=True))


def _set_data(data: Path | None) -> None:
    if data is not None:
        os.environ["FEDSIM_DATA"] = str(data.expanduser().resolve())


def main() -> None:
    """Run the command line; mistakes are one clear message, never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end leaves a readable folder too
    try:
        code = cli(standalone_mode=False)
        if code == INTERRUPTED:
            typer.echo("interrupted", err=True)
        sys.exit(code or 0)
    except FedSimError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors explain themselves
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
