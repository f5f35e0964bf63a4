"""Client hooks: what joins a client's training loss, its inputs or its gradient; one file each, PyTorch only.

A hook is written once, as pure functions of one client's batch, and trains one client in a plain loop or a block
of clients in one `torch.func.vmap`, with the same numbers. So it never branches on data, never edits a tensor in
place, and is random only through what `draw` drew from the generator it was given.

    [[client.hooks]]
    name = "cmi"          # or "package.module:Class" for a hook of your own
    lam = 0.7

Several hooks may be named: what they add to the loss is summed, so their order does not matter there. Those that
change the inputs do so one after the other, in the order of the scenario. At most one may replace cross-entropy,
and at most one may make the gradient private.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clients.methods import LocalRound, Terms
from fedsim.models import Outputs
from fedsim.plugins import Plugin

Memory = Mapping[str, Tensor]
"""What a hook knows of one client, by name; a client's own, never seen by the server.

A name that begins with "_" belongs to the round: it is not kept for the next one.
"""

Predict = Callable[[Tensor], Outputs]
"""The network at the present local weights: inputs [B, ...] -> Outputs."""

Pass = Literal["never", "first", "round", "epoch"]
"""When a hook sees the whole shard: at a client's first participation, at the start of each round or epoch."""


@dataclass(frozen=True)
class Shapes:
    """What a hook must know to make its memory.

    Attributes:
        num_classes: C.
        num_features: F, of the input of the network's last linear layer.
        dtype: Floating point type of the weights.
        device: Where the client trains.
        batch_size: Examples of a full batch.
        learned_features: Whether the features depend on weights, rather than being the input itself.
    """

    num_classes: int
    num_features: int
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    batch_size: int = 1
    learned_features: bool = True


@dataclass(frozen=True)
class Draws:
    """Random numbers of one step, drawn outside the pure functions.

    Attributes:
        example: One row per example of the batch, [B, ...], or None.
        step: The same for the whole step, any shape, or None.
    """

    example: Tensor | None = None
    step: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One local step of one client, as a hook sees it.

    Attributes:
        memory: What the hook keeps.
        mask: 1 for an example and 0 for a row that only fills the batch up, [B].
        draws: Random numbers of the hook.
        teacher: What the teacher says of the batch, without gradient; only for hooks with a `teacher`.
    """

    memory: Memory
    mask: Tensor
    draws: Draws = Draws()
    teacher: Outputs | None = None

    @property
    def count(self) -> Tensor:
        """Number of examples in the batch, a scalar tensor, at least 1 so that an empty batch divides."""
        return self.mask.sum().clamp(min=1.0)


@dataclass(frozen=True)
class Privacy:
    """How per-example gradients become a private one: (sum_i clip(g_i, norm) + norm * noise * z) / batch size.

    Examples join a batch independently, each with probability q = batch size / shard size, 1 / q steps an epoch.

    Attributes:
        norm: Largest norm of an example's gradient.
        noise: Standard deviation of the noise, in units of `norm`.
    """

    norm: float
    noise: float


class Hook(Plugin, ABC):
    """One change to local training; what it does not define changes nothing.

    Attributes:
        replaces_loss: `loss` stands in place of cross-entropy instead of joining it.
        batch_loss: `loss` of an example depends on the other examples of the batch, so that no gradient of a single
            example exists.
        predicts: `scores` replaces the logits when the client's model is evaluated.
        counts_classes: `init` keeps how many examples of each class the client has.
    """

    noun: ClassVar[str] = "client hook"
    replaces_loss: ClassVar[bool] = False
    predicts: ClassVar[bool] = False
    counts_classes: ClassVar[bool] = False

    @property
    def batch_loss(self) -> bool:
        """Whether an example's loss depends on the rest of its batch."""
        return False

    @property
    def passes(self) -> Pass:
        """When the hook wants to see the whole shard (`collect`, `refit`)."""
        return "never"

    @property
    def stateful(self) -> bool:
        """Whether the client keeps the memory from one participation to the next."""
        return False

    @property
    def teacher(self) -> str | None:
        """Whose outputs on each batch `loss` needs: "received" weights, a weights file's path, or None."""
        return None

    @property
    def privacy(self) -> Privacy | None:
        """How gradients are made private, or None."""
        return None

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:  # noqa: ARG002
        """Return the memory a client starts with.

        Args:
            shapes: Numbers of classes and features.
            targets: Classes of the client's train examples, [N].
        """
        return {}

    def collect(self, memory: Memory, outputs: Outputs, targets: Tensor, mask: Tensor) -> Memory:  # noqa: ARG002
        """Return statistics of a batch that add up over the shard.

        Args:
            memory: What the hook keeps.
            outputs: Of the batch, without gradient.
            targets: [B].
            mask: 1 for an example, 0 for a row that only fills up, [B].
        """
        return {}

    def refit(self, memory: Memory, sums: Memory) -> Memory:  # noqa: ARG002
        """Return the memory after a pass over the shard, from the sum of what `collect` returned."""
        return memory

    def draw(self, generator: torch.Generator, shape: tuple[int, ...]) -> Draws:  # noqa: ARG002
        """Return the random numbers of one step.

        Args:
            generator: This client's in this round, for this hook alone.
            shape: Shape of the batch's inputs, [B, ...].
        """
        return Draws()

    def inputs(self, step: Step, x: Tensor, targets: Tensor, predict: Predict) -> Tensor:  # noqa: ARG002
        """Return the inputs to train on, [B, ...]."""
        return x

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return what the hook adds to each example's loss (or puts in its place), [B].

        The step's loss is the mean over the examples of the batch.

        Args:
            step: Memory, mask and random numbers.
            outputs: logits [B, C] and features [B, F].
            targets: [B].
        """
        return outputs.logits.new_zeros(targets.shape)

    def update(self, step: Step, outputs: Outputs, targets: Tensor) -> Memory:  # noqa: ARG002
        """Return the memory after a step, from the outputs before it, without gradient."""
        return step.memory

    def terms(self, this: LocalRound) -> Terms:  # noqa: ARG002
        """Return what joins the gradient whatever the examples: a shift and a pull to the received weights."""
        return Terms()

    def report(self, memory: Memory) -> Mapping[str, float]:  # noqa: ARG002
        """Return numbers for the run record; columns of clients.parquet, after the hook's name."""
        return {}

    def notes(self) -> list[str]:
        """Return what a reader of the results must know, in sentences."""
        return []

    def scores(self, memory: Memory, outputs: Outputs) -> Tensor:  # noqa: ARG002
        """Return what predictions are made from, [B, C]; only where `predicts`.

        Args:
            memory: As `init` and two passes of `collect` and `refit` over the client's train shard leave it, at the
                weights that are evaluated; what training left in it is not there.
            outputs: Of the batch.
        """
        return outputs.logits


def misfits(hooks: Mapping[str, Hook], local_epochs: int) -> list[str]:
    """Return what keeps hooks from working together, in words; nothing when all is well.

    Args:
        hooks: Name -> hook.
        local_epochs: Passes over the shard in a round.
    """
    problems = []

    def at_most_one(what: str, wanted: Callable[[Hook], object]) -> list[str]:
        names = [name for name, hook in hooks.items() if wanted(hook)]
        if len(names) > 1:
            problems.append(f"only one may {what}, got {' and '.join(names)}; leave one out")
        return names

    at_most_one("replace cross-entropy", lambda hook: hook.replaces_loss)
    at_most_one("say what predictions are made from", lambda hook: hook.predicts)
    private = at_most_one("make gradients private", lambda hook: hook.privacy)
    if private:
        problems += [
            f"{name} looks at several examples at once, so no single example's gradient exists for {private[0]} to "
            "clip; leave one of them out"
            for name, hook in hooks.items()
            if hook.batch_loss
        ]
        problems += [
            f"{name} goes through the whole shard without noise, which {private[0]} does not account for; leave "
            "one of them out"
            for name, hook in hooks.items()
            if hook.passes != "never"
        ]
        problems += [
            f"{name} counts a client's classes without noise, which {private[0]} does not account for; leave one "
            "of them out"
            for name, hook in hooks.items()
            if hook.counts_classes
        ]
        problems += [
            f"{name} keeps numbers about a client's batches without noise, which {private[0]} does not account "
            "for; leave one of them out"
            for name, hook in hooks.items()
            if type(hook).update is not Hook.update and hook.passes == "never" and name != private[0]
        ]
    for first, second in combinations(hooks, 2):
        file = hooks[first].plugin_name
        if file == hooks[second].plugin_name:
            problems.append(
                f"{first} and {second} come from files of one name, so both would report in columns {file}_...; "
                "rename one of the files"
            )
    if hooks and local_epochs == 0:
        problems.append("they change local steps, and client.local_epochs = 0 takes none; set it to 1 or more")
    return problems
