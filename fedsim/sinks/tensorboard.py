"""TensorBoard: event files in the run folder, with histograms over clients (`tensorboard --logdir runs`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import tomli_w

from fedsim.sinks import Session, Sink, Status, Told, Tracked, flat


@final
class TensorBoard(Sink):
    """Writes event files into <run folder>/tensorboard.

    Attributes:
        histograms: Whether the clients' test accuracies and losses are written as histograms.
    """

    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)
    extra: ClassVar[str] = "tensorboard"

    histograms: bool = True

    def start(self, run: Tracked) -> Session:
        """Open an event file."""
        return _Events(run, histograms=self.histograms)


class _Events(Session):
    def __init__(self, run: Tracked, *, histograms: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run)
        self._histograms = histograms
        known = {**flat(run.scenario, separator="."), **{f"tag.{name}": value for name, value in run.tags.items()}}
        self._hparams = {k: v for k, v in known.items() if isinstance(v, bool | int | float | str)}
        # A round that was being written when the process died is to be read once.
        resumed = run.reached >= 0
        self._writer: Any = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=run.reached + 1 if resumed else None
        )
        if not resumed:
            text = tomli_w.dumps(dict(run.scenario)).replace("\n", "\n    ")
            self._writer.add_text("scenario", f"    {text}")

    def round(self, told: Told) -> None:
        for name, value in told.numbers.items():
            self._writer.add_scalar(name, value, told.number)
        if self._histograms:
            for name, values in told.clients.items():
                if len(values):
                    self._writer.add_histogram(f"clients/{name}", values, told.number)
        self._writer.flush()

    def finish(self, status: Status, summary: Mapping[str, float]) -> None:
        del status
        if summary:
            from torch.utils.tensorboard.summary import hparams

            for name, value in summary.items():
                self._writer.add_scalar(name, value, self.reached)
            # As add_hparams does, but about this run rather than a run of its own beside it.
            for record in hparams(self._hparams, dict(summary)):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(record)
        self._writer.close()
