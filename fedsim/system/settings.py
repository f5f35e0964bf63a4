"""The table [system] of a scenario: what the clients' devices are like, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from fedsim.plugins import Options, Plugin
from fedsim.system.availability import Availability
from fedsim.system.availability.always import Always
from fedsim.system.rates import Rates
from fedsim.system.work import PartialWork

if TYPE_CHECKING:
    from fedsim.settings import ClientSettings, ServerSettings

RATES = ("fedsim.system.rates", Rates)


class SystemSettings(Options):
    """Devices on a virtual clock: who is there, how long each takes, who is lost. docs/system.md has the formulas.

    Attributes:
        availability: Which clients are there when a round begins; a table of a name and options.
        speed: Examples a client trains on per second; None takes no time. A table of a name and options.
        bandwidth_down: Mbit/s to a client; None takes no time. A table of a name and options.
        bandwidth_up: Mbit/s from a client; None takes no time. A table of a name and options.
        latency_s: Seconds before anything arrives at a client.
        deadline_s: Seconds after which a round ends, whoever is missing; None waits for everybody.
        over_selection: Asks ceil(over_selection * server.clients_per_round) clients and takes the answers of the
            first server.clients_per_round.
        dropout: Probability that a client that was asked is lost before its answer, at a time that is uniform over
            the time it would have taken.
        partial_work: Which share of its local steps a client takes; None has all take all. A table of a name and
            options.
    """

    plugged: ClassVar[Mapping[str, tuple[str, type[Plugin]]]] = {
        "availability": ("fedsim.system.availability", Availability),
        "speed": RATES,
        "bandwidth_down": RATES,
        "bandwidth_up": RATES,
        "partial_work": ("fedsim.system.work", PartialWork),
    }

    availability: Availability = Always()
    speed: Rates | None = None
    bandwidth_down: Rates | None = None
    bandwidth_up: Rates | None = None
    latency_s: NonNegativeFloat = 0.0
    deadline_s: PositiveFloat | None = None
    over_selection: Annotated[float, Field(ge=1.0)] = 1.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    partial_work: PartialWork | None = None

    @property
    def complete(self) -> bool:
        """Whether every round has as many answers as the server asked for."""
        return self.availability.certain and self.dropout == 0.0 and self.deadline_s is None

    def misfits(self, client: ClientSettings, server: ServerSettings) -> Iterator[str]:
        """Yield what does not go with the other sections of a scenario, each "option: problem"."""
        if self.over_selection > 1.0 and server.clients_per_round is None:
            yield (
                "over_selection: all clients are asked already, must be 1 without server.clients_per_round, got "
                f"{self.over_selection:g}; set server.clients_per_round"
            )
        takes_time = self.latency_s > 0 or any((self.speed, self.bandwidth_down, self.bandwidth_up))
        if self.deadline_s is not None and not takes_time:
            yield (
                f"deadline_s: nothing takes time, so nobody can be late, got {self.deadline_s:g}; set speed, "
                "bandwidth_down, bandwidth_up or latency_s"
            )
        if self.partial_work is None:
            return
        if client.local_epochs == 0:
            yield (
                "partial_work: client.local_epochs = 0 sends one full-batch gradient, which has no parts; leave it "
                "out or set client.local_epochs to 1 or more"
            )
        if self.partial_work.needs_deadline and self.deadline_s is None:
            name = self.partial_work.plugin_name
            yield f"partial_work: {name} fits the work to the deadline; set system.deadline_s"
