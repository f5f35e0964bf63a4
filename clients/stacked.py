"""A block of clients in one vmapped step; the numbers are those of `steps.EachSteps` to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.nn.functional import log_softmax

from clients.batches import Epoch, augment
from clients.methods import Terms
from clients.objective import Batch, Drawn, Memories, Named, fill_up, moved
from clients.steps import Steps
from clients.traced import recorder_of
from fedsim.models import Outputs

CHUNK = 128
"""Examples of each client per forward pass where no gradient step follows."""


class StackedSteps(Steps):
    """A block of clients, each with weights of its own, in one vmapped step.

    The clients come with the largest shard first. Those with fewer steps drop out of the block when they are done,
    so nobody waits and no step is computed in vain; the rows that fill up a smaller batch count for nothing.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        sizes = [len(client.rows) for client in self.clients]
        assert sizes == sorted(sizes, reverse=True), "the largest shard comes first"
        self._theta = self._received.repeat(len(sizes), 1)
        self._parameters = self.model.named(self._theta)
        device = self.pool.y.device
        self._firsts, self._numbers = _places([client.rows for client in self.clients], device)
        self._sizes = torch.tensor(sizes, device=device)
        self._expected_sizes = self._theta.new_tensor([self._expected(row) for row in range(len(sizes))])
        self._stacked = _stack(self.memories)
        self._step_of_all = vmap(self._one_step, randomness="error")
        self._plain_step_of_all = vmap(grad(self._summed_loss), randomness="error")

    @property
    def theta(self) -> Tensor:
        """The clients' weights, [K, D]."""
        return self._theta

    def full_pass(self, *, with_gradient: bool) -> tuple[list[float], Tensor | None]:
        """Return each client's loss at its weights, and its gradient."""
        totals = torch.zeros(len(self.clients), dtype=torch.float64, device=self._theta.device)
        gradients = torch.zeros_like(self._theta) if with_gradient else None
        views = self.model.named(gradients) if gradients is not None else {}
        losing = vmap(self._summed_loss)
        descending: Any = vmap(grad_and_value(self._summed_loss))  # PyTorch does not say what it returns
        self.model.network.eval()
        with torch.no_grad():
            for count, x, y, mask in self._chunks():
                here = {name: value[:count] for name, value in self._parameters.items()}
                if with_gradient:
                    found, losses = descending(here, x, y, mask, self._sizes[:count].to(mask.dtype))
                    for name, view in views.items():
                        view[:count].add_(found[name])
                else:
                    losses = losing(here, x, y, mask, self._sizes[:count].to(mask.dtype))
                totals[:count] += losses.double()
        decay = self.settings.weight_decay
        if decay:
            totals += 0.5 * decay * self._theta.double().square().sum(dim=1)
            if gradients is not None:
                gradients.add_(self._theta, alpha=decay)
        return totals.tolist(), gradients

    def begin(self, terms: Sequence[Terms], epochs: int, starts: Sequence[Tensor] | None = None) -> None:
        """Start with momentum zero."""
        if starts is not None:
            self._theta.copy_(torch.stack(list(starts)))
            self.memories = self._fresh_memories()
            self._stacked = _stack(self.memories)
        zero = torch.zeros_like(self._received)
        shifts = [term.shift for term in terms]
        some = any(shift is not None for shift in shifts)
        self._shift = torch.stack([zero if s is None else s for s in shifts]) if some else None
        pulls = [term.proximal for term in terms]
        self._pull = self._theta.new_tensor(pulls).unsqueeze(1) if any(pulls) else None
        self._velocity = torch.zeros_like(self._theta) if self.settings.momentum else None
        self._count_from_zero(epochs)

    def epoch(self) -> None:
        """Let every client that is not done make one pass over its shard."""
        epochs = self._next_epochs()
        counts = [len(epoch.sizes) for epoch in epochs]
        if not any(counts):
            return
        order = sorted(range(len(counts)), key=lambda row: -counts[row])
        if order == list(range(len(counts))):
            self._pass(epochs)
        else:  # clients that take a share of their steps: those that take most come first for as long as this lasts
            self._arrange(order)
            self._pass([epochs[row] for row in order])
            self._arrange(sorted(order, key=order.__getitem__))
        self.memories = _unstack(self._stacked, len(self.clients))

    def _arrange(self, order: Sequence[int]) -> None:
        """Put the rows of the block into another order."""
        places = torch.tensor(list(order), device=self._theta.device)
        rows = [self._theta, self._firsts, self._sizes, self._expected_sizes]
        rows += [each for each in (self._shift, self._pull, self._velocity) if each is not None]
        rows += [value for memory in self._stacked.values() for value in memory.values()]
        for each in rows:
            each.copy_(each[places])  # in place: the parameters are views
        self.clients = [self.clients[row] for row in order]
        self.taken = [self.taken[row] for row in order]
        self._limits = [self._limits[row] for row in order]
        self._batches = [self._batches[row] for row in order]
        self._generators = [self._generators[row] for row in order]
        self._noise = [self._noise[row] for row in order] if self._noise else []

    def _pass(self, epochs: Sequence[Epoch]) -> None:
        """Take the steps of one pass; the clients with most of them come first."""
        visits, filled, shifts = self._plan(epochs)
        self.model.network.train()
        for step in range(visits.shape[1]):
            count = sum(len(epoch.sizes) > step for epoch in epochs)
            at = visits[:count, step]
            x = self.pool.x.index_select(0, at.flatten()).view(*at.shape, *self.pool.x.shape[1:])
            if shifts is not None:
                x = augment(x, shifts[:count, step])
            self._step(x, self.pool.y[at], filled[:count, step], [e.sizes[step] for e in epochs[:count]])
            for row in range(count):
                self.taken[row] += 1

    def refresh(self, wanted: Mapping[str, Sequence[bool]]) -> None:
        """Show hooks the whole shards."""
        sums: dict[str, Named] = {}
        self.model.network.eval()
        with torch.no_grad():
            for count, x, y, mask in self._chunks():
                here = {name: value[:count] for name, value in self._parameters.items()}
                outputs = vmap(self.model.outputs_at)(here, x)
                for name in wanted:
                    memory = {key: value[:count] for key, value in self._stacked[name].items()}
                    found = vmap(self.objective.hooks[name].collect)(memory, outputs, y, mask)
                    for key, value in found.items():
                        total = sums.setdefault(name, {})
                        if key not in total:
                            total[key] = value.new_zeros(len(self.clients), *value.shape[1:])
                        total[key][:count] += value
            for name, rows in wanted.items():
                new = vmap(self.objective.hooks[name].refit)(self._stacked[name], sums[name])
                takes = torch.tensor(list(rows), device=self._theta.device)
                for key, value in new.items():
                    old = self._stacked[name][key]
                    old[takes] = value[takes]
        self.memories = _unstack(self._stacked, len(self.clients))

    def _plan(self, epochs: Sequence[Epoch]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Lay the clients' batches out side by side.

        Returns:
            Rows of the pool, [K, steps, B]; 1 where they are examples and 0 where they fill up, [K, steps, B]; and
            how each is moved by augmentation, [K, steps, B, 3].
        """
        steps = max(len(epoch.sizes) for epoch in epochs)
        most = max(max(epoch.sizes, default=0) for epoch in epochs)
        width = max(min(self.settings.batch_size, self._largest), most)
        # Where each visit goes in [steps * B]: only random batches leave places free before the last one.
        if self.objective.privacy is None:
            counts = torch.tensor([len(epoch.rows) for epoch in epochs])
            filled = torch.arange(steps * width) < counts.unsqueeze(1)
        else:
            sizes = torch.zeros(len(epochs), steps, dtype=torch.int64)
            for row, epoch in enumerate(epochs):
                sizes[row, : len(epoch.sizes)] = torch.tensor(epoch.sizes, dtype=torch.int64)
            filled = (torch.arange(width) < sizes.unsqueeze(2)).view(len(epochs), -1)
        visits = torch.zeros(len(epochs), steps * width, dtype=torch.int64)
        visits[filled] = torch.cat([epoch.rows for epoch in epochs])
        device = self.pool.y.device
        rows = self._in_pool(visits.to(device) + self._firsts.unsqueeze(1))
        moves: Tensor | None = None
        shifts = [epoch.shifts for epoch in epochs if epoch.shifts is not None]
        if shifts:
            moves = torch.zeros(len(epochs), steps * width, 3, dtype=torch.int64)
            moves[filled] = torch.cat(shifts)
            moves = moves.view(len(epochs), steps, width, 3).to(device)
        shape = (len(epochs), steps, width)
        return rows.view(shape), filled.view(shape).to(device, self._theta.dtype), moves

    def _step(self, x: Tensor, y: Tensor, mask: Tensor, sizes: Sequence[int]) -> None:
        count, width = mask.shape
        parameters = {name: value[:count] for name, value in self._parameters.items()}
        if self.objective.plain:  # without the hooks' arguments, whose mapping costs as much as a small network
            with torch.no_grad():
                step = self._plain_step_of_all
                given = (parameters, x, y, mask, mask.sum(dim=1))
                # Autocast keeps copies of weights between calls, which a recording would not renew.
                gradients = step(*given) if self.model.half else recorder_of(self.model).run(step, *given)
                self._apply(gradients, count)
            return
        memories: Memories = {
            name: {k: v[:count] for k, v in memory.items()} for name, memory in self._stacked.items()
        }
        shapes = [(size, *x.shape[2:]) for size in sizes]
        draws = [self.objective.draw(self._generators[row], shape) for row, shape in enumerate(shapes)]
        drawn = moved(fill_up(draws, width), x.device)
        said: dict[str, Outputs] = {}
        for name, weights in self._teachers.items():
            # Expanded, not shared: a product with shared weights would depend in its last bit on who else is there.
            teacher = self.model.named(weights.expand(count, -1))
            said[name] = vmap(self.model.outputs_at)(teacher, x)
        with torch.no_grad():
            gradients, after = self._step_of_all(
                parameters, memories, x, y, mask, (drawn, said), self._expected_sizes[:count]
            )
            self._apply(gradients, count)
            for name, memory in after.items():
                for key, value in memory.items():
                    self._stacked[name][key][:count] = value

    def _one_step(
        self,
        parameters: Named,
        memories: Memories,
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        others: tuple[Drawn, dict[str, Outputs]],
        expected: Tensor,
    ) -> tuple[Named, Memories]:
        batch = Batch(x, y, mask, *others)
        return self.objective.gradient(self.model.outputs_at, parameters, memories, batch, expected)

    def _apply(self, gradients: Named, count: int) -> None:
        """Take one SGD step of the first `count` clients."""
        settings, theta = self.settings, self._theta[:count]
        bare = self._shift is None and self._pull is None and self._velocity is None
        if bare and not settings.weight_decay and settings.clip_norm is None and not self._noise:
            for name, gradient in gradients.items():
                self._parameters[name][:count].sub_(gradient, alpha=self.lr)
            return
        flat = torch.cat([gradient.reshape(count, -1) for gradient in gradients.values()], dim=1)
        if self._noise:
            flat = flat + torch.stack([self._draw_noise(row) for row in range(count)])
        if settings.weight_decay:
            flat.add_(theta, alpha=settings.weight_decay)
        if self._pull is not None:
            flat.add_((theta - self._received) * self._pull[:count])
        if self._shift is not None:
            flat.add_(self._shift[:count])
        if settings.clip_norm is not None:
            norms = flat.norm(dim=1, keepdim=True)
            flat.mul_((settings.clip_norm / (norms + 1e-12)).clamp(max=1.0))
        step = flat
        if self._velocity is not None:
            step = self._velocity[:count].mul_(settings.momentum).add_(flat)
        theta.sub_(step, alpha=self.lr)

    def _summed_loss(self, parameters: Named, x: Tensor, y: Tensor, mask: Tensor, size: Tensor) -> Tensor:
        # PyTorch maps its own cross-entropy over clients in Python, which takes longer than a small network.
        logs = log_softmax(self.model.outputs_at(parameters, x).logits, dim=1)
        rows = -logs.gather(1, y.unsqueeze(1)).squeeze(1)
        return torch.where(mask > 0, rows, 0.0).sum() / size

    def _chunks(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Go through all shards side by side: how many clients are left, and their inputs, classes and masks."""
        sizes = [len(client.rows) for client in self.clients]
        offsets = torch.arange(CHUNK, device=self.pool.y.device)
        for start in range(0, sizes[0], CHUNK):
            count = sum(size > start for size in sizes)
            width = min(CHUNK, self._largest - start)
            places = start + offsets[:width]
            real = places < self._sizes[:count].unsqueeze(1)
            rows = self._in_pool(self._firsts[:count].unsqueeze(1) + torch.where(real, places, 0))
            yield count, self.pool.x[rows], self.pool.y[rows], real.to(self._theta.dtype)

    def _in_pool(self, places: Tensor) -> Tensor:
        """Return the examples at places in the pool, or in the lists one after the other."""
        return places if self._numbers is None else self._numbers[places]


def _places(rows: Sequence[range | Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return where each client's examples begin, [K], and their numbers where clients have lists of them."""
    lists = [numbers for numbers in rows if not isinstance(numbers, range)]
    if not lists:
        starts = [numbers.start for numbers in rows if isinstance(numbers, range)]
        return torch.tensor(starts, device=device), None
    assert len(lists) == len(rows), "all clients of a federation have ranges, or all have lists"
    sizes = torch.tensor([len(numbers) for numbers in lists], device=device)
    return sizes.cumsum(0) - sizes, torch.cat(lists)


def _stack(memories: Sequence[Memories]) -> dict[str, Named]:
    return {
        name: {key: torch.stack([memory[name][key] for memory in memories]) for key in first}
        for name, first in memories[0].items()
    }


def _unstack(stacked: Mapping[str, Named], count: int) -> list[Memories]:
    return [
        {name: {key: value[row] for key, value in memory.items()} for name, memory in stacked.items()}
        for row in range(count)
    ]
