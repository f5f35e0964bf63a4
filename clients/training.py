"""Local training: PyTorch only, so that it runs and can be measured without Flower and Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients import quasi_newton
from clients.methods import LocalMethod, LocalRound, Terms
from fedsim.datasets import Split
from fedsim.parameters import FlatNetwork

if TYPE_CHECKING:
    from fedsim.scenario import ClientSettings

CHUNK = 2048
"""Examples per forward pass where no gradient step follows; fixed, because it decides the last bits of a sum."""

State = dict[str, Tensor]
"""What a client keeps between rounds."""


@dataclass(frozen=True)
class QuasiNewton:
    """How a client finds its quasi-Newton rate c = g^T H g (DQN-Fed).

    Attributes:
        pairs: L-BFGS pairs kept.
        from_rounds: Pairs from the weights received at successive participations, else from local epochs.
        final_gradient: Send the full gradient at the last local iterate in place of the update.
        curvature: Smallest cosine between s and y of a pair kept.
        within_reach: With local steps, bound H by lr * steps (pairs of B + I / (lr * steps)): a client's
            quasi-Newton step is then no longer than its own local training could take it.
    """

    pairs: int
    from_rounds: bool
    final_gradient: bool
    curvature: float = quasi_newton.CURVATURE
    within_reach: bool = False


@dataclass(frozen=True)
class Fit:
    """What one client's local training gives.

    Attributes:
        update: theta_received - theta_local, or the full-batch gradient when local_epochs = 0, [D].
        report: Numbers for the server: loss (at the received weights, on the whole train shard, the L2 term
            included), loss-after, steps, lr, num-examples, update-norm, and what the rule asked for.
        state: What the client keeps for its next round.
    """

    update: Tensor
    report: Mapping[str, float]
    state: State = field(default_factory=dict)


def fit_each(
    model: FlatNetwork,
    theta: Tensor,
    train: Split,
    settings: ClientSettings,
    lr: float,
    generator: torch.Generator,
    newton: QuasiNewton | None = None,
    state: State | None = None,
    method: LocalMethod | None = None,
    received: Mapping[str, Tensor] | None = None,
) -> Fit:
    """Train one client from the received weights.

    Args:
        model: Resident network; its parameters are overwritten.
        theta: Received weights, [D].
        train: The client's train shard, on the model's device.
        settings: Local training.
        lr: Learning rate of this round.
        generator: Source of the batch order.
        newton: Set when the rule needs a quasi-Newton rate.
        state: What this client kept from its last participation.
        method: What the rule changes in local training.
        received: What the rule sent along with the weights.
    """
    this = LocalRound(theta, lr, received or {}, state or {})
    terms = method.terms(this) if method is not None else Terms()
    model.theta.copy_(theta)
    wants_gradient = settings.local_epochs == 0 or newton is not None
    loss = _full_pass(model, train, settings.weight_decay, with_gradient=wants_gradient)
    points = [(theta, model.grad.clone())] if wants_gradient else []
    follows = newton is not None and not newton.from_rounds
    local = _LocalTraining(model, train, settings, this, generator)
    sgd = local.start(terms)
    for epoch in range(1, settings.local_epochs + 1):
        sgd.epoch()
        if follows and epoch < settings.local_epochs:
            _full_pass(model, train, settings.weight_decay, with_gradient=True)
            points.append((model.theta.clone(), model.grad.clone()))
    steps = sgd.steps
    if settings.local_epochs == 0:
        update, loss_after = points[0][1], loss
    else:
        wants_last = newton is not None and (follows or newton.final_gradient)
        loss_after = _full_pass(model, train, settings.weight_decay, with_gradient=wants_last)
        if wants_last:
            points.append((model.theta.clone(), model.grad.clone()))
        update = points[-1][1] if newton is not None and newton.final_gradient else theta - model.theta
    report = {
        "num-examples": float(len(train)),
        "loss": loss,
        "loss-after": loss_after,
        "steps": float(steps),
        "lr": lr,
        "update-norm": float(update.norm()),
    }
    if newton is None:
        if method is None:
            return Fit(update, report)
        after = method.keep(this, update, steps, local.again)
        return Fit(update, {**report, **method.report(this, update, after)}, dict(after))
    if newton.from_rounds:
        pairs, kept = _pairs_over_rounds(*points[0], state or {}, newton)
    else:
        pairs, kept = _pairs_of(points, newton), State()
    gradient = points[-1][1] if newton.final_gradient else points[0][1]
    return Fit(update, {**report, **_rates(pairs, gradient, newton, lr * steps)}, kept)


def _rates(pairs: Tensor | None, gradient: Tensor, newton: QuasiNewton, reach: float) -> dict[str, float]:
    """Return the quasi-Newton rate of a client, and what it would be without pairs.

    Args:
        pairs: [m, 2, D] or None.
        gradient: The client's full gradient, [D].
        newton: Settings.
        reach: lr * steps, 0 without local steps.
    """
    bounded = newton.within_reach and reach > 0
    damped = [(s, y + s / reach if bounded else y) for s, y in pairs] if pairs is not None else []
    plain = quasi_newton.quasi_newton_rate([], gradient) * (reach if bounded else 1.0)
    rate = quasi_newton.quasi_newton_rate(damped, gradient) if damped else plain
    # The rate speaks of gradients; an update is about lr * steps times one, and falls as much faster along x.
    length = reach if reach > 0 and not newton.final_gradient else 1.0
    return {"rate": length * rate, "rate-identity": length * plain, "pairs": float(len(damped))}


def train_loss(model: FlatNetwork, theta: Tensor, train: Split, weight_decay: float) -> float:
    """Return f_k at given weights: mean loss over the whole shard plus the L2 term, as `fit_each` reports it."""
    model.theta.copy_(theta)
    return _full_pass(model, train, weight_decay, with_gradient=False)


def _pairs_of(points: Sequence[tuple[Tensor, Tensor]], newton: QuasiNewton) -> Tensor | None:
    """Return the L-BFGS pairs of successive iterates, each with its full gradient."""
    found: Tensor | None = None
    for (theta_0, grad_0), (theta_1, grad_1) in pairwise(points):
        found = quasi_newton.append(found, theta_1 - theta_0, grad_1 - grad_0, newton.pairs, newton.curvature)
    return found


class _LocalTraining:
    """One client's shard and settings in one round; several trainings may draw on its one stream of batches."""

    def __init__(
        self,
        model: FlatNetwork,
        train: Split,
        settings: ClientSettings,
        this: LocalRound,
        generator: torch.Generator,
    ) -> None:
        self.model, self.train, self.settings, self.this, self.generator = model, train, settings, this, generator

    def start(self, terms: Terms) -> _Sgd:
        """Begin at the model's present weights."""
        return _Sgd(self, terms)

    def again(self, start: Tensor, terms: Terms, epochs: int | None = None) -> Tensor:
        """Train from other weights; see `clients.methods.Trainer`."""
        self.model.theta.copy_(start)
        sgd = self.start(terms)
        for _ in range(self.settings.local_epochs if epochs is None else epochs):
            sgd.epoch()
        return self.model.theta.clone()


class _Sgd:
    """Plain SGD from the model's present weights.

    Attributes:
        steps: Steps taken.
    """

    def __init__(self, local: _LocalTraining, terms: Terms) -> None:
        self.steps = 0
        self._local, self._terms = local, terms
        self._velocity = torch.zeros_like(local.model.theta) if local.settings.momentum else None

    def epoch(self) -> None:
        """Make one pass over the shard."""
        train, size = self._local.train, self._local.settings.batch_size
        order = torch.randperm(len(train), generator=self._local.generator).to(train.y.device)
        x, y = train.x[order], train.y[order]
        for begin in range(0, len(y), size):
            self._step(x[begin : begin + size], y[begin : begin + size])
            self.steps += 1

    def _step(self, x: Tensor, y: Tensor) -> None:
        model, settings, terms = self._local.model, self._local.settings, self._terms
        model.grad.zero_()
        torch.autograd.backward(cross_entropy(model.network(x).logits, y))
        if settings.weight_decay:
            model.grad.add_(model.theta, alpha=settings.weight_decay)
        if terms.proximal:
            model.grad.add_(model.theta - self._local.this.theta, alpha=terms.proximal)
        if terms.shift is not None:
            model.grad.add_(terms.shift)
        if settings.clip_norm is not None:
            model.grad.mul_((settings.clip_norm / (model.grad.norm() + 1e-12)).clamp(max=1.0))
        step = model.grad
        if self._velocity is not None:
            step = self._velocity.mul_(settings.momentum).add_(model.grad)
        model.theta.sub_(step, alpha=self._local.this.lr)


def _full_pass(model: FlatNetwork, data: Split, weight_decay: float, *, with_gradient: bool) -> float:
    """Return the mean loss plus the L2 term at the model's weights; leave their gradient in model.grad if asked."""
    total = 0.0
    if with_gradient:
        model.grad.zero_()
    with torch.set_grad_enabled(with_gradient):
        for start in range(0, len(data), CHUNK):
            logits = model.network(data.x[start : start + CHUNK]).logits
            loss = cross_entropy(logits, data.y[start : start + CHUNK], reduction="sum")
            if with_gradient:
                torch.autograd.backward(loss / len(data))
            total += loss.item()
    if with_gradient and weight_decay:
        model.grad.add_(model.theta, alpha=weight_decay)
    penalty = 0.5 * weight_decay * float(model.theta.double().square().sum()) if weight_decay else 0.0
    return total / len(data) + penalty


def _pairs_over_rounds(
    theta: Tensor, gradient: Tensor, state: State, newton: QuasiNewton
) -> tuple[Tensor | None, State]:
    """Add the pair between this participation and the last one to those kept."""
    pairs = state.get("pairs")
    if "theta" in state:
        s = theta - state["theta"].to(theta.device)
        y = gradient - state["gradient"].to(theta.device)
        pairs = quasi_newton.append(pairs, s, y, newton.pairs, newton.curvature)
    kept = {"theta": theta.clone(), "gradient": gradient}
    if pairs is not None:
        kept["pairs"] = pairs
    return pairs, kept
