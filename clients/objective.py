"""The objective of a local step: cross-entropy and what the hooks make of it; pure functions of one client's batch.

`fit_each` differentiates `Objective.value` by autograd, `fit_stacked` maps `Objective.gradient` over clients: there
is no second version of a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from clients.hooks import Draws, Hook, Memory, Predict, Privacy, Shapes, Step
from clients.methods import LocalRound, Terms
from fedsim.datasets import Split
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork

CHUNK = 2048
"""Examples per forward pass where no gradient step follows; fixed, because it decides the last bits of a sum."""

PREDICTOR_PASSES = 2
"""Passes over a shard before predicting: one for what the other is measured against (a centre, then means)."""

Memories = dict[str, Memory]
"""Hook's name -> its memory."""

Named = dict[str, Tensor]
Drawn = dict[str, Named]
"""Hook's name -> "example" or "step" -> random numbers; plain dicts, which torch.func can map over."""

Forward = Callable[[Named, Tensor], Outputs]
"""Parameters by name and inputs -> outputs; pure."""


@dataclass(frozen=True)
class Batch:
    """One client's batch.

    Attributes:
        x: [B, ...].
        y: [B].
        mask: 1 for an example, 0 for a row that only fills up, [B].
        drawn: The hooks' random numbers.
        teachers: Hook's name -> its teacher's outputs.
    """

    x: Tensor
    y: Tensor
    mask: Tensor
    drawn: Drawn
    teachers: Mapping[str, Outputs]


class Objective:
    """What the hooks of a scenario make of the training loss.

    Args:
        hooks: Name -> hook, in the order of the scenario.
        shapes: Of the network's outputs; not needed without hooks.
    """

    def __init__(self, hooks: Mapping[str, Hook] | None = None, shapes: Shapes | None = None) -> None:
        self.hooks = dict(hooks or {})
        self._shapes = shapes
        self.plain = not self.hooks
        self.predictor = next((hook for hook in self.hooks.values() if hook.predicts), None)
        self.privacy: Privacy | None = next((h.privacy for h in self.hooks.values() if h.privacy), None)
        self.files: dict[str, Tensor] = {}
        """Hook's name -> weights of its teacher, [D], where they come from a file."""
        self._replaced = any(hook.replaces_loss for hook in self.hooks.values())

    def init(self, targets: Tensor, state: Mapping[str, Tensor]) -> Memories:
        """Return the memories a client starts its round with.

        Args:
            targets: Classes of its train examples, [N].
            state: What it kept.
        """
        memories: Memories = {}
        for name, hook in self.hooks.items():
            assert self._shapes is not None, "hooks need to know the network's outputs"
            fresh = hook.init(self._shapes, targets)
            memories[name] = {key: state.get(f"{name}.{key}", value) for key, value in fresh.items()}
        return memories

    def predictor_of(self, model: FlatNetwork, train: Split) -> Callable[[Outputs], Tensor] | None:
        """Return how a client turns its model's outputs into scores, [B, C]; None where the logits are the scores.

        Args:
            model: The network at the weights to predict with.
            train: The client's train shard.
        """
        hook = self.predictor
        if hook is None:
            return None
        assert self._shapes is not None, "hooks need to know the network's outputs"
        memory = hook.init(self._shapes, train.y)
        model.network.eval()
        with torch.no_grad():
            for _ in range(PREDICTOR_PASSES):
                memory = dict(hook.refit(memory, collected(hook, memory, model, train)))
        return partial(hook.scores, memory)

    def kept(self, memories: Memories) -> Named:
        """Return what the client keeps until its next round."""
        return {
            f"{name}.{key}": value
            for name, hook in self.hooks.items()
            if hook.stateful
            for key, value in memories[name].items()
            if not key.startswith("_")
        }

    def terms(self, this: LocalRound, method: Terms) -> Terms:
        """Return the sum of what hooks and the rule's client half add to the gradient."""
        found = [method, *(hook.terms(this) for hook in self.hooks.values())]
        shifts = [terms.shift for terms in found if terms.shift is not None]
        shift = torch.stack(shifts).sum(dim=0) if len(shifts) > 1 else next(iter(shifts), None)
        return Terms(shift, sum(terms.proximal for terms in found))

    def report(self, memories: Memories) -> dict[str, float]:
        """Return the hooks' numbers, each after its hook's name."""
        return {
            f"{hook.plugin_name}-{key}": float(value)
            for name, hook in self.hooks.items()
            for key, value in hook.report(memories[name]).items()
        }

    def draw(self, generators: Mapping[str, torch.Generator], shape: tuple[int, ...]) -> Drawn:
        """Return the random numbers of one client's step."""
        drawn: Drawn = {}
        for name, hook in self.hooks.items():
            found = hook.draw(generators[name], shape)
            named = {"example": found.example, "step": found.step}
            drawn[name] = {key: value for key, value in named.items() if value is not None}
        return drawn

    def inputs(self, predict: Predict, memories: Memories, batch: Batch) -> Tensor:
        """Return the inputs after every hook has changed them, [B, ...]."""
        x = batch.x
        for name, hook in self.hooks.items():
            x = hook.inputs(_step(name, memories, batch), x, batch.y, predict)
        return x

    def value(self, predict: Predict, memories: Memories, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the mean loss over the batch's examples, and the outputs it comes from."""
        outputs = predict(self.inputs(predict, memories, batch))
        if self._replaced:
            rows = torch.zeros_like(batch.mask)
        else:
            rows = cross_entropy(outputs.logits, batch.y, reduction="none")
        for name, hook in self.hooks.items():
            joined = hook.loss(_step(name, memories, batch), outputs, batch.y)
            if joined.shape != rows.shape:  # broadcasting would make a matrix of it, and nobody would notice
                raise ValueError(
                    f"loss of hook {name} must return one number for each example, {list(rows.shape)}, "
                    f"got {list(joined.shape)}"
                )
            rows = rows + joined
        # A row that only fills up may hold anything, and 0 times that need not be 0.
        rows = torch.where(batch.mask > 0, rows, 0.0)
        return rows.sum() / batch.mask.sum().clamp(min=1.0), outputs

    def update(self, memories: Memories, outputs: Outputs, batch: Batch) -> Memories:
        """Return the memories after a step."""
        detached = Outputs(outputs.logits.detach(), outputs.features.detach())
        with torch.no_grad():
            return {
                name: dict(hook.update(_step(name, memories, batch), detached, batch.y))
                for name, hook in self.hooks.items()
            }

    def gradient(
        self, forward: Forward, parameters: Named, memories: Memories, batch: Batch, expected: int | Tensor
    ) -> tuple[Named, Memories]:
        """Return the gradient of a step and the memories after it, by torch.func alone.

        Args:
            forward: The network.
            parameters: Its weights by name.
            memories: The hooks'.
            batch: The client's batch.
            expected: Expected batch size, by which a private gradient is divided.
        """
        if self.privacy is not None:
            gradients, outputs = self._clipped(forward, parameters, memories, batch, expected)
        else:

            def value(weights: Named) -> tuple[Tensor, Outputs]:
                return self.value(lambda x: forward(weights, x), memories, batch)

            gradients, outputs = grad(value, has_aux=True)(parameters)
        return gradients, self.update(memories, outputs, batch)

    def _clipped(
        self, forward: Forward, parameters: Named, memories: Memories, batch: Batch, expected: int | Tensor
    ) -> tuple[Named, Outputs]:
        """Return the sum of the examples' clipped gradients over the expected batch size (without noise)."""
        assert self.privacy is not None
        shared = {name: {k: v for k, v in drawn.items() if k == "step"} for name, drawn in batch.drawn.items()}
        own = {name: {k: v for k, v in drawn.items() if k == "example"} for name, drawn in batch.drawn.items()}

        def value(
            weights: Named, x: Tensor, y: Tensor, mask: Tensor, drawn: Drawn, teachers: Mapping[str, Outputs]
        ) -> tuple[Tensor, Outputs]:
            one = Batch(
                x.unsqueeze(0),
                y.unsqueeze(0),
                mask.unsqueeze(0),
                {name: {**shared[name], **{k: v.unsqueeze(0) for k, v in drawn[name].items()}} for name in drawn},
                {name: Outputs(*(part.unsqueeze(0) for part in said)) for name, said in teachers.items()},
            )
            loss, outputs = self.value(lambda inputs: forward(weights, inputs), memories, one)
            return loss, Outputs(outputs.logits[0], outputs.features[0])

        per_example = vmap(grad(value, has_aux=True), in_dims=(None, 0, 0, 0, 0, 0))
        gradients, outputs = per_example(parameters, batch.x, batch.y, batch.mask, own, dict(batch.teachers))
        # A row that only fills up may hold anything, and 0 times that need not be 0.
        real = {name: torch.where(_like(batch.mask > 0, g), g, 0.0) for name, g in gradients.items()}
        squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in real.values()])
        norms = squares.sum(dim=0).sqrt()
        factors = batch.mask * (self.privacy.norm / norms.clamp(min=1e-12)).clamp(max=1.0) / expected
        summed = {name: torch.tensordot(factors, g, dims=1) for name, g in real.items()}
        return summed, cast(Outputs, outputs)


def collected(hook: Hook, memory: Memory, model: FlatNetwork, train: Split) -> Named:
    """Return the sums of what a hook collects over a shard."""
    sums: Named = {}
    for start in range(0, len(train), CHUNK):
        part = train[start : start + CHUNK]
        outputs = model.outputs(part.x)
        found = hook.collect(memory, outputs, part.y, outputs.logits.new_ones(len(part)))
        sums = {key: sums[key] + value if sums else value for key, value in found.items()}
    return sums


def fill_up(drawn: Sequence[Drawn], width: int) -> Drawn:
    """Stack the random numbers of several clients; examples' rows are filled up to the width of the block.

    Args:
        drawn: One per client.
        width: Rows of the block's batch.
    """
    stacked: Drawn = {}
    for name, named in drawn[0].items():
        stacked[name] = {}
        for key in named:
            parts = [each[name][key] for each in drawn]
            if key == "example":
                filled = parts[0].new_zeros(len(parts), width, *parts[0].shape[1:])
                for row, part in enumerate(parts):
                    filled[row, : len(part)] = part
                stacked[name][key] = filled
            else:
                stacked[name][key] = torch.stack(parts)
    return stacked


def moved(drawn: Drawn, device: torch.device) -> Drawn:
    """Return random numbers on a device."""
    return {name: {key: value.to(device) for key, value in named.items()} for name, named in drawn.items()}


def _like(rows: Tensor, other: Tensor) -> Tensor:
    """Return one value per row, [B], in a shape that is broadcast against [B, ...]."""
    return rows.view(-1, *(1 for _ in other.shape[1:]))


def _step(name: str, memories: Memories, batch: Batch) -> Step:
    drawn = batch.drawn.get(name, {})
    draws = Draws(drawn.get("example"), drawn.get("step"))
    return Step(memories[name], batch.mask, draws, batch.teachers.get(name))
