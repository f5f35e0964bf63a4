"""MLflow: a run in a local SQLite store beside the run folders, or on a server (`mlflow ui`)."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, final

from fedsim.sinks import Session, Sink, Status, Told, Tracked, flat

STORE = "mlruns"
"""Folder beside the run folder that holds the local store."""

BUSY_S = 30
"""Seconds to wait for a local store that other runs are writing."""

PARAMS, METRICS, LONGEST = 100, 1000, 500
"""What MLflow takes: parameters and metrics of one request, characters of a parameter."""

STATUS: Mapping[str, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


@final
class MLflow(Sink):
    """Writes metrics, parameters and tags of the run.

    Attributes:
        uri: Of a tracking server ("http://...") or a store ("sqlite:///..."); None takes mlruns/mlflow.db beside
            the run folder. Names and passwords belong into MLflow's environment variables.
        experiment: Which experiment the run joins; None takes the study's name, without one "fedsim".
    """

    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    extra: ClassVar[str] = "mlflow"

    uri: str | None = None
    experiment: str | None = None

    def start(self, run: Tracked) -> Session:
        """Open a run in the store."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would report its use over the network
        return _Run(run, self.uri, self.experiment or run.study or "fedsim")


class _Run(Session):
    def __init__(self, run: Tracked, uri: str | None, experiment: str) -> None:
        from mlflow.tracking import MlflowClient

        # It says that it makes tables.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        super().__init__(run)
        if uri is None:
            store = run.folder.parent / STORE
            store.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{store}/mlflow.db?timeout={BUSY_S}", (store / "artifacts").as_uri()
            with _alone(store / "lock"):  # runs that begin together would each make the tables
                self._client: Any = MlflowClient(uri)
                joined = self._joined(experiment, artifacts)
        else:
            self._client = MlflowClient(uri)
            joined = self._joined(experiment, None)
        if run.id:
            self._client.update_run(self.id, status="RUNNING")
            # What the store has counts: the process may have died before it noted that it had told a round.
            held = self._client.get_metric_history(self.id, "seconds")
            self.reached = max((point.step for point in held), default=-1)
        else:
            self.id = self._client.create_run(joined, run_name=run.name, tags=dict(run.tags)).info.run_id
            self._describe(run)

    def _joined(self, experiment: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):
            found = self._client.get_experiment_by_name(experiment)
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(experiment, artifacts))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
                    raise
        raise RuntimeError(f'experiment "{experiment}" can neither be found nor made')

    def _describe(self, run: Tracked) -> None:
        from mlflow.entities import Param, RunTag

        known = flat(run.scenario, separator=".").items()
        params = [Param(_allowed(name), str(value)[:LONGEST]) for name, value in known]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(self.id, params=params[first : first + PARAMS])
        self._client.log_batch(self.id, tags=[RunTag("folder", str(run.folder))])

    def _log(self, metrics: Sequence[Any]) -> None:
        for first in range(0, len(metrics), METRICS):
            self._client.log_batch(self.id, metrics=metrics[first : first + METRICS])

    def round(self, told: Told) -> None:
        self._log(_metrics(told.numbers, told.number))

    def rounds(self, several: Sequence[Told]) -> None:
        self._log([metric for told in several for metric in _metrics(told.numbers, told.number)])

    def finish(self, status: Status, summary: Mapping[str, float]) -> None:
        self._log(_metrics(summary, self.reached))
        self._client.set_terminated(self.id, STATUS[status])


def _metrics(numbers: Mapping[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    # The one that is asked for when a run is taken up again comes last: it stands for the whole round.
    names = sorted(numbers, key=lambda name: name == "seconds")
    return [Metric(_allowed(name), numbers[name], now, step) for name in names]


def _allowed(name: str) -> str:
    """Return a name without what MLflow refuses in one."""
    return re.sub(r"[^\w\-. :/]", "_", name)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes of this machine out."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
