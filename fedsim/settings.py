"""The plain tables of a scenario: [client], [server], [engine] and [tracking]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from clients.hooks import Hook
from fedsim import plugins
from fedsim.plugins import Options, Plugin
from fedsim.sinks import Sink

SINKS = "fedsim.sinks"

Decay = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(Options):
    """A table of plain settings."""


class ClientSettings(Section):
    """Local training, the same for every client.

    Attributes:
        local_epochs: Passes over the client's train shard; 0 sends one full-batch gradient instead, and of the
            settings below only weight_decay matters.
        batch_size: Examples per step; the last batch of an epoch may be smaller.
        lr: Learning rate of SGD.
        lr_decay: Factor on lr after each round.
        momentum: Heavy-ball momentum of SGD, reset at the start of a round.
        weight_decay: L2 coefficient: weight_decay / 2 * ||theta||^2 is part of the training loss f_k.
        clip_norm: Largest norm of a step's gradient; None does not clip.
        augment: Random changes of images: "flip" mirrors half of them, "crop_flip" also moves each by up to 4
            pixels; from each client's own generator.
        hooks: What joins local training, see clients/hooks; tables of a name and options.
        losses: "exact": every client of a round reports its training loss before and after local training, two more
            passes over its shard. "needed": only what the strategy reads; the columns of the others stay empty.
        cohort: "each": clients are trained one after the other. "stacked": a block of them at once
            (torch.func.vmap); the same numbers to rounding. "auto": blocks on a GPU, and on a CPU for small
            networks without convolutions if 32 clients or more train in a round; the resolved scenario says which.
        block_size: Most clients trained at once; None chooses by the size of the model and the memory.
    """

    lists: ClassVar[Mapping[str, tuple[str, type[Plugin]]]] = {"hooks": ("clients.hooks", Hook)}

    local_epochs: NonNegativeInt = 1
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 0.05
    lr_decay: Decay = 1.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    augment: Literal["none", "flip", "crop_flip"] = "none"
    hooks: tuple[Hook, ...] = ()
    losses: Literal["exact", "needed"] = "exact"
    cohort: Literal["auto", "each", "stacked"] = "auto"
    block_size: PositiveInt | None = None

    @field_validator("hooks")
    @classmethod
    def _no_hook_twice(cls, hooks: tuple[Hook, ...]) -> tuple[Hook, ...]:
        names = [plugins.spelled(hook, "clients.hooks") for hook in hooks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there more than once, keep one of them")
        return hooks

    @property
    def private_by(self) -> str | None:
        """The hook that makes updates private, if there is one."""
        return next((name for name, hook in self.named_hooks.items() if hook.privacy), None)

    @property
    def named_hooks(self) -> dict[str, Hook]:
        """The hooks by the name they have in a scenario, in order."""
        return {plugins.spelled(hook, "clients.hooks"): hook for hook in self.hooks}


class ServerSettings(Section):
    """What the server does around the rule.

    Attributes:
        lr: Server learning rate eta in theta <- theta - eta d; None takes the rule's default. Not for strategies of
            Flower's, which take a step of their own.
        lr_decay: Factor on lr after each round.
        clients_per_round: Clients drawn without replacement each round; None takes all.
        average: Which model is served, that is evaluated and kept; training goes on from the last one in any case.
            "none": the last. "all": the mean over all rounds, as AFL returns. "recent": a mean that reaches back
            about as many rounds as it takes to sample every client once; under full participation the last.
        initial: Weights to start from, in a safetensors file of the scenario's model, such as another run's; None
            initialises from the seed.
    """

    lr: PositiveFloat | None = None
    lr_decay: Decay = 1.0
    clients_per_round: PositiveInt | None = None
    average: Literal["none", "all", "recent"] = "none"
    initial: str | None = None


class EngineSettings(Section):
    """Where clients are trained. `backend`, `address`, `workers`, `checkpoint_every` change no bit of a result.

    Attributes:
        backend: "ray": resident workers in processes of their own. "local": this process.
        address: Of a Ray cluster to join, "host:port", or "auto" for the one this machine belongs to; workers are
            spread over its machines. None starts a Ray of its own on this machine.
        workers: Number of Ray workers; None takes one per CPU core of the cluster (per share of a GPU).
        gpus_per_worker: Share of a GPU each worker takes, of its memory too; 0 trains on CPUs.
        memory_per_worker_mb: MiB that Ray sets aside for each worker: no more are placed on a machine than fit.
            None counts cores (and GPUs) alone.
        threads_per_worker: Threads of one worker's linear algebra on a CPU.
        precision: Of training and evaluation: "float32"; "tf32" lets a GPU multiply with 10-bit mantissas; "bf16"
            runs forward and backward passes in bfloat16 where PyTorch deems it safe, with weights in float32.
        max_failures: Clients that may fail in one round before the run stops.
        timeout_s: Seconds to wait for the clients of one round; None waits without end.
        checkpoint_every: Rounds between two checkpoints, from which `resume` goes on; 0 keeps none.
    """

    movable: ClassVar[tuple[str, ...]] = (
        "backend",
        "address",
        "workers",
        "memory_per_worker_mb",
        "max_failures",
        "timeout_s",
        "checkpoint_every",
    )
    """What a resumed run may change."""

    backend: Literal["ray", "local"] = "ray"
    address: str | None = None
    workers: PositiveInt | None = None
    gpus_per_worker: NonNegativeFloat = 0.0
    memory_per_worker_mb: PositiveFloat | None = None
    threads_per_worker: PositiveInt = 1
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    max_failures: NonNegativeInt = 0
    timeout_s: PositiveFloat | None = None
    checkpoint_every: NonNegativeInt = 1


class TrackingSettings(Section):
    """Where a run's numbers are passed on to, round by round. Changes no result.

    Attributes:
        sinks: Trackers: names, or tables with a name and options.
        tags: What tells runs apart in a tracker, beside scenario, method, partition and seed, or in place of
            them; a tag "study" makes runs a group.
    """

    lists: ClassVar[Mapping[str, tuple[str, type[Plugin]]]] = {"sinks": (SINKS, Sink)}

    sinks: tuple[Sink, ...] = ()
    tags: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(default_factory=dict)

    @field_validator("sinks")
    @classmethod
    def _no_sink_twice(cls, sinks: tuple[Sink, ...]) -> tuple[Sink, ...]:
        names = [plugins.spelled(sink, SINKS) for sink in sinks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there more than once, keep one of them")
        return sinks

    def missing(self) -> Iterator[str]:
        """Yield a problem for each sink whose packages are not installed."""
        for place, sink in enumerate(self.sinks):
            absent = [package for package in sink.packages if find_spec(package.partition(".")[0]) is None]
            if absent:
                how = f"pip install 'fedsim[{sink.extra}]'" if sink.extra else f"pip install {' '.join(absent)}"
                yield (
                    f"tracking.sinks.{place}: {plugins.spelled(sink, SINKS)} needs {', '.join(absent)}, not "
                    f"installed here; {how}, or leave the sink out"
                )
