"""How local steps are taken: `EachSteps` one client by autograd, `stacked.StackedSteps` a block by torch.func.

Both keep the weights of K clients as [K, D] (K = 1 for the first) and do the same arithmetic on them, so that
`clients.training` says only once what a client's round consists of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.batches import Batches, Epoch, Stream, augment, num_steps
from clients.methods import Terms
from clients.objective import CHUNK, Batch, Memories, Objective, collected, fill_up, moved
from fedsim.datasets import Split
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork

if TYPE_CHECKING:
    from fedsim.settings import ClientSettings


@dataclass(frozen=True)
class Client:
    """One client of a block.

    Attributes:
        rows: Its train examples in the pool: a range of it, or their numbers, [n] int64 on the pool's device.
        stream: Purpose -> its generator of this round.
        state: What it kept from its last participation.
        share: Share of its local steps that it takes.
    """

    rows: range | Tensor
    stream: Stream
    state: Mapping[str, Tensor] = field(default_factory=dict)
    share: float = 1.0

    def shard(self, pool: Split) -> Split:
        """Return its train examples, without copying them where they are a range."""
        return pool[self._places]

    def labels(self, pool: Split) -> Tensor:
        """Return the classes of its train examples, [n]."""
        return pool.y[self._places]

    def visits(self, pool: Split, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and classes in the order in which examples are visited, numbered within the shard."""
        if isinstance(self.rows, range):
            shard = self.shard(pool)
            return shard.x[order], shard.y[order]
        places = self.rows[order]
        return pool.x[places], pool.y[places]

    @property
    def _places(self) -> slice | Tensor:
        return slice(self.rows.start, self.rows.stop) if isinstance(self.rows, range) else self.rows


class Steps(ABC):
    """Local steps of K clients that started from the same weights.

    Attributes:
        model: Resident network.
        clients: The K clients.
        memories: Each client's hook memories.
        taken: Steps each client has taken since the last `begin`.
    """

    def __init__(
        self,
        model: FlatNetwork,
        pool: Split,
        clients: Sequence[Client],
        settings: ClientSettings,
        lr: float,
        objective: Objective,
        received: Tensor,
        teachers: Mapping[str, Tensor],
        largest: int = 0,
    ) -> None:
        self.model, self.pool, self.clients, self.settings, self.lr = model, pool, clients, settings, lr
        self.objective, self._received, self._teachers = objective, received, teachers
        self.memories = self._fresh_memories()
        privacy = objective.privacy
        self._batches = [Batches(len(c.rows), settings, c.stream, privacy) for c in clients]
        self._generators = [{name: c.stream(f"hook {name}") for name in objective.hooks} for c in clients]
        self._noise = [c.stream("noise") for c in clients] if privacy is not None else []
        self.taken = [0] * len(clients)
        self._limits = [0] * len(clients)
        # Shapes decide the last bits of a product, so they come from the federation, not from who is in the block.
        self._largest = max(largest, *(len(client.rows) for client in clients))

    @property
    @abstractmethod
    def theta(self) -> Tensor:
        """The clients' weights, [K, D]; a view that later steps change."""

    @abstractmethod
    def full_pass(self, *, with_gradient: bool) -> tuple[list[float], Tensor | None]:
        """Return each client's mean cross-entropy plus L2 term at its weights, and its gradient, [K, D]."""

    @abstractmethod
    def begin(self, terms: Sequence[Terms], epochs: int, starts: Sequence[Tensor] | None = None) -> None:
        """Start with momentum zero.

        Args:
            terms: What joins each client's gradient.
            epochs: Passes that are to come; clients that take a share of their steps stop before the last.
            starts: Each client's weights, [D], for a second training, whose hooks start afresh; None goes on from
                the received weights.
        """

    @abstractmethod
    def epoch(self) -> None:
        """Let every client that is not done make one pass over its shard."""

    def done(self, row: int) -> bool:
        """Say whether a client has taken all steps it takes."""
        return self.taken[row] >= self._limits[row]

    @abstractmethod
    def refresh(self, wanted: Mapping[str, Sequence[bool]]) -> None:
        """Show hooks the whole shard of those clients that want it, at their weights."""

    def _count_from_zero(self, epochs: int) -> None:
        self.taken = [0] * len(self.clients)
        size = self.settings.batch_size
        self._limits = [num_steps(len(client.rows), size, epochs, client.share) for client in self.clients]

    def _next_epochs(self) -> list[Epoch]:
        """Return each client's next pass, cut off where it has taken its steps."""
        left = [limit - taken for limit, taken in zip(self._limits, self.taken, strict=True)]
        return [batches.epoch().first(count) for batches, count in zip(self._batches, left, strict=True)]

    def _fresh_memories(self) -> list[Memories]:
        return [self.objective.init(client.labels(self.pool), client.state) for client in self.clients]

    def _expected(self, row: int) -> int:
        """Return the expected size of a client's random batch."""
        return min(self.settings.batch_size, len(self.clients[row].rows))

    def _draw_noise(self, row: int) -> Tensor:
        """Return the noise of one step on the clipped mean gradient, [D]."""
        privacy = self.objective.privacy
        assert privacy is not None
        size, dtype = self.theta.shape[1], self.theta.dtype
        normal = torch.randn(size, generator=self._noise[row], dtype=dtype)
        return normal.to(self.theta.device) * (privacy.norm * privacy.noise / self._expected(row))


class EachSteps(Steps):
    """One client, in the resident network itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model.theta.copy_(self._received)

    @property
    def theta(self) -> Tensor:
        """The network's weights, [1, D]."""
        return self.model.theta.unsqueeze(0)

    def full_pass(self, *, with_gradient: bool) -> tuple[list[float], Tensor | None]:
        """Return the loss at the network's weights, and its gradient."""
        shard = self.clients[0].shard(self.pool)
        loss = shard_loss(self.model, shard, self.settings.weight_decay, with_gradient=with_gradient)
        return [loss], self.model.grad.clone().unsqueeze(0) if with_gradient else None

    def begin(self, terms: Sequence[Terms], epochs: int, starts: Sequence[Tensor] | None = None) -> None:
        """Start with momentum zero."""
        if starts is not None:
            self.model.theta.copy_(starts[0])
            self.memories = self._fresh_memories()
        self._terms = terms[0]
        self._velocity = torch.zeros_like(self.model.theta) if self.settings.momentum else None
        self._count_from_zero(epochs)

    def epoch(self) -> None:
        """Make one pass over the shard."""
        epoch = self._next_epochs()[0]
        x, y = self.clients[0].visits(self.pool, epoch.rows.to(self.pool.y.device))
        self.model.network.train()
        end = 0
        for size in epoch.sizes:
            begin, end = end, end + size
            inputs = x[begin:end]
            if epoch.shifts is not None and size:
                inputs = augment(inputs, epoch.shifts[begin:end])
            self._step(inputs, y[begin:end])
            self.taken[0] += 1

    def refresh(self, wanted: Mapping[str, Sequence[bool]]) -> None:
        """Show hooks the whole shard."""
        shard = self.clients[0].shard(self.pool)
        memories = self.memories[0]
        self.model.network.eval()
        with torch.no_grad():
            for name in (name for name, rows in wanted.items() if rows[0]):
                hook = self.objective.hooks[name]
                sums = collected(hook, memories[name], self.model, shard)
                memories[name] = dict(hook.refit(memories[name], sums))

    def _step(self, x: Tensor, y: Tensor) -> None:
        model, settings, terms = self.model, self.settings, self._terms
        model.grad.zero_()
        if self.objective.plain:
            torch.autograd.backward(cross_entropy(model.outputs(x).logits, y))
        else:
            self._hooked_step(x, y)
        if settings.weight_decay:
            model.grad.add_(model.theta, alpha=settings.weight_decay)
        if terms.proximal:
            model.grad.add_(model.theta - self._received, alpha=terms.proximal)
        if terms.shift is not None:
            model.grad.add_(terms.shift)
        if settings.clip_norm is not None:
            model.grad.mul_((settings.clip_norm / (model.grad.norm() + 1e-12)).clamp(max=1.0))
        step = model.grad
        if self._velocity is not None:
            step = self._velocity.mul_(settings.momentum).add_(model.grad)
        model.theta.sub_(step, alpha=self.lr)

    def _hooked_step(self, x: Tensor, y: Tensor) -> None:
        """Leave the objective's gradient in model.grad, and update the hooks' memories."""
        model, objective = self.model, self.objective
        drawn = moved(objective.draw(self._generators[0], tuple(x.shape)), x.device)
        mask = model.theta.new_ones(len(x))
        if not len(x):  # a random batch may be empty; a row that counts for nothing keeps every shape valid
            shard = self.clients[0].shard(self.pool)
            x, y, mask = shard.x[:1], shard.y[:1], model.theta.new_zeros(1)
            drawn = fill_up([drawn], 1)
            drawn = {name: {key: value[0] for key, value in named.items()} for name, named in drawn.items()}
        said: dict[str, Outputs] = {}
        if self._teachers:
            model.network.eval()  # a teacher says what it would say in evaluation: no dropout
            with torch.no_grad():
                for name, weights in self._teachers.items():
                    said[name] = model.outputs_at(model.named(weights), x)
            model.network.train()
        batch = Batch(x, y, mask, drawn, said)
        if objective.privacy is None:
            loss, outputs = objective.value(model.outputs, self.memories[0], batch)
            torch.autograd.backward(loss)
            self.memories[0] = objective.update(self.memories[0], outputs, batch)
            return
        parameters = model.named(model.theta.detach())
        gradients, self.memories[0] = objective.gradient(
            model.outputs_at, parameters, self.memories[0], batch, self._expected(0)
        )
        for name, view in model.named(model.grad).items():
            view.copy_(gradients[name])
        model.grad.add_(self._draw_noise(0))


def shard_loss(model: FlatNetwork, data: Split, weight_decay: float, *, with_gradient: bool = False) -> float:
    """Return the mean cross-entropy plus the L2 term at the model's weights.

    Args:
        model: Resident network; with a gradient, it is left in `model.grad`.
        data: A shard.
        weight_decay: L2 coefficient.
        with_gradient: Whether to compute the gradient.
    """
    total = 0.0
    model.network.eval()
    if with_gradient:
        model.grad.zero_()
    with torch.set_grad_enabled(with_gradient):
        for start in range(0, len(data), CHUNK):
            logits = model.outputs(data.x[start : start + CHUNK]).logits
            loss = cross_entropy(logits, data.y[start : start + CHUNK], reduction="sum")
            if with_gradient:
                torch.autograd.backward(loss / len(data))
            total += loss.item()
    if with_gradient and weight_decay:
        model.grad.add_(model.theta, alpha=weight_decay)
    penalty = 0.5 * weight_decay * float(model.theta.double().square().sum()) if weight_decay else 0.0
    return total / len(data) + penalty


@contextmanager
def layers_stream(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed what layers such as dropout draw from, inside the block only."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def set_precision(precision: str, device: torch.device) -> None:
    """Say how a GPU multiplies, for this process; also that convolutions choose the same algorithm every time.

    Args:
        precision: `engine.precision`.
        device: Where the network is; nothing is said about a CPU.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # PyTorch's own default is True
    torch.backends.cudnn.deterministic = True
