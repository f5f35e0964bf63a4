"""W&B: a run in the run folder, offline unless asked otherwise; upload it with `wandb sync`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

from fedsim.sinks import Session, Sink, Status, Told, Tracked


@final
class WandB(Sink):
    """Writes a Weights & Biases run into <run folder>/wandb; a study's runs are a group.

    Attributes:
        project: Which project the run joins.
        entity: Whose project; None takes the default of whoever is logged in.
        mode: "offline" keeps everything in the run folder; "online" sends it, which needs `wandb login` or
            WANDB_API_KEY.
        histograms: Whether the clients' test accuracies and losses are logged as histograms.
    """

    packages: ClassVar[tuple[str, ...]] = ("wandb",)
    extra: ClassVar[str] = "wandb"

    project: str = "fedsim"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    histograms: bool = True

    def start(self, run: Tracked) -> Session:
        """Open a run."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B would report its own faults over the network
        return _Run(run, self)


class _Run(Session):
    def __init__(self, run: Tracked, sink: WandB) -> None:
        import wandb

        if sink.mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError('not logged in; run `wandb login`, set WANDB_API_KEY, or take mode = "offline"')
        self._histogram: Any = wandb.Histogram if sink.histograms else None
        super().__init__(run)
        self.id = run.id or secrets.token_hex(6)
        self._run: Any = wandb.init(
            project=sink.project,
            entity=sink.entity,
            id=self.id,
            name=run.name,
            group=run.study or None,
            tags=[f"{name}={value}"[:64] for name, value in run.tags.items()],
            config={**run.scenario, "tags": dict(run.tags)},
            dir=str(run.folder),
            mode=sink.mode,
            resume="allow" if sink.mode == "online" else None,
            # Other runs may be open in this process; the terminal and the machine are not the tracker's business.
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

        if sink.mode == "offline":
            # What a process that was killed has left is cut short somewhere. So each session holds the run from its
            # start, and the last one is the one to upload.
            self.reached = -1
        elif self._run.resumed:
            self.reached = self._run.starting_step - 1

    def round(self, told: Told) -> None:
        logged: dict[str, Any] = dict(told.numbers)
        if self._histogram is not None:
            logged |= {f"clients/{name}": self._histogram(v) for name, v in told.clients.items() if len(v)}
        self._run.log(logged, step=told.number, commit=True)

    def finish(self, status: Status, summary: Mapping[str, float]) -> None:
        self._run.summary.update({**summary, "status": status})
        self._run.finish(exit_code=0 if status == "finished" else 1)
