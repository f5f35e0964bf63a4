"""A client's round of local training: PyTorch only, so that it runs and can be measured without Flower and Ray.

`fit_each` trains clients one after the other, `fit_stacked` a block of them at once; what a round consists of is
written once, for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clients import quasi_newton
from clients.hooks import Shapes
from clients.methods import LocalMethod, LocalRound, Terms
from clients.objective import Objective
from clients.stacked import StackedSteps
from clients.steps import Client, EachSteps, Steps, layers_stream, shard_loss
from fedsim.datasets import Split
from fedsim.parameters import FlatNetwork, weights_file

if TYPE_CHECKING:
    from fedsim.settings import ClientSettings

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
class Work:
    """What the clients of a round have in common.

    Attributes:
        settings: Local training.
        lr: Learning rate of this round.
        objective: What the hooks make of the loss.
        newton: Set when the rule needs a quasi-Newton rate.
        method: What the rule changes in local training.
        received: What the rule sent along with the weights.
        before: Report the exact loss at the received weights.
        after: Report the exact loss after local training.
        largest: Examples of the federation's largest shard; 0 where that is not known.
    """

    settings: ClientSettings
    lr: float
    objective: Objective = field(default_factory=Objective)
    newton: QuasiNewton | None = None
    method: LocalMethod | None = None
    received: Mapping[str, Tensor] = field(default_factory=dict)
    before: bool = True
    after: bool = True
    largest: int = 0


@dataclass(frozen=True)
class Fit:
    """What one client's local training gives.

    Attributes:
        update: theta_received - theta_local, or the full-batch gradient when local_epochs = 0, [D].
        report: Numbers for the server: loss (cross-entropy at the received weights, on the whole train shard, the
            L2 term included), loss-after, steps, lr, num-examples, update-norm, block (clients trained at once,
            where they were), and what the rule and the hooks add.
        state: What the client keeps for its next round.
    """

    update: Tensor
    report: Mapping[str, float]
    state: State = field(default_factory=dict)


def fit_each(model: FlatNetwork, theta: Tensor, pool: Split, clients: Sequence[Client], work: Work) -> list[Fit]:
    """Train clients from the received weights, one after the other.

    Args:
        model: Resident network; its parameters are overwritten.
        theta: Received weights, [D].
        pool: Train examples of all clients, on the model's device.
        clients: Whom to train.
        work: How.
    """
    fits = []
    for client in clients:
        with layers_stream(client.stream("layers"), theta.device):
            fits += _fit(EachSteps, model, theta, pool, [client], work)
    return fits


def fit_stacked(model: FlatNetwork, theta: Tensor, pool: Split, clients: Sequence[Client], work: Work) -> list[Fit]:
    """Train clients from the received weights, all at once; the same numbers as `fit_each` to rounding.

    The arguments are those of `fit_each`. A network with layers that torch.func cannot map over clients with the
    same result is for `clients.cohort.misfit` to refuse beforehand.

    Raises:
        RuntimeError: A layer draws random numbers, or memory ran out.
    """
    order = sorted(range(len(clients)), key=lambda place: -len(clients[place].rows))
    fits = [
        replace(fit, report={**fit.report, "block": float(len(clients))})
        for fit in _fit(StackedSteps, model, theta, pool, [clients[place] for place in order], work)
    ]
    back = sorted(range(len(order)), key=order.__getitem__)
    return [fits[place] for place in back]


def losses_each(
    model: FlatNetwork, theta: Tensor, pool: Split, clients: Sequence[Client], work: Work
) -> list[float]:
    """Return f_k at given weights: mean loss over the whole shard plus the L2 term, as `fit_each` reports it."""
    model.theta.copy_(theta)
    return [shard_loss(model, client.shard(pool), work.settings.weight_decay) for client in clients]


def losses_stacked(
    model: FlatNetwork, theta: Tensor, pool: Split, clients: Sequence[Client], work: Work
) -> list[float]:
    """Return f_k at given weights, as `fit_stacked` reports it for the same block."""
    order = sorted(range(len(clients)), key=lambda place: -len(clients[place].rows))
    block = [clients[place] for place in order]
    steps = StackedSteps(model, pool, block, work.settings, work.lr, Objective(), theta, {}, work.largest)
    losses, _ = steps.full_pass(with_gradient=False)
    back = sorted(range(len(order)), key=order.__getitem__)
    return [losses[place] for place in back]


def shapes_of(model: FlatNetwork, x: Tensor, batch_size: int) -> Shapes:
    """Return what hooks must know of a network.

    Args:
        model: The network.
        x: One example, [1, ...].
        batch_size: Examples of a full batch.
    """
    model.network.eval()
    outputs = model.outputs(x)
    return Shapes(
        outputs.logits.shape[1],
        outputs.features.shape[1],
        model.theta.dtype,
        model.theta.device,
        batch_size,
        outputs.features.requires_grad,
    )


def teachers_of(objective: Objective, model: FlatNetwork) -> dict[str, Tensor]:
    """Read the weights of those teachers that come from a file.

    Raises:
        ValueError: A file cannot be read or holds another network.
    """
    read: dict[str, Tensor] = {}
    for name, hook in objective.hooks.items():
        if hook.teacher in (None, "received"):
            continue
        try:
            read[name] = weights_file(str(hook.teacher), model)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return read


def _fit(
    how: type[Steps], model: FlatNetwork, theta: Tensor, pool: Split, clients: Sequence[Client], work: Work
) -> list[Fit]:
    settings, newton, method, objective = work.settings, work.newton, work.method, work.objective
    rounds = [LocalRound(theta, work.lr, work.received, _own(client.state)) for client in clients]
    terms = [objective.terms(this, method.terms(this) if method is not None else Terms()) for this in rounds]
    steps = how(
        model, pool, clients, settings, work.lr, objective, theta, _teachers(objective, theta), work.largest
    )

    losses: list[float] | None = None
    losses_after: list[float] | None = None
    points: list[tuple[Tensor, Tensor]] = []  # weights and gradients, [K, D] each
    wants_gradient = settings.local_epochs == 0 or newton is not None
    if work.before or wants_gradient:
        losses, gradients = steps.full_pass(with_gradient=wants_gradient)
        if gradients is not None:
            points.append((steps.theta.clone(), gradients))
    follows = newton is not None and not newton.from_rounds
    steps.begin(terms, settings.local_epochs)
    refreshing = _refreshing(objective, clients)
    for epoch in range(1, settings.local_epochs + 1):
        _refresh(steps, refreshing, epoch)
        steps.epoch()
        if follows and epoch < settings.local_epochs:
            points.append(_point(steps))
    taken = list(steps.taken)
    if settings.local_epochs == 0:
        updates, losses_after = points[0][1], losses
    else:
        wants_last = newton is not None and (follows or newton.final_gradient)
        if work.after or wants_last:
            losses_after, gradients = steps.full_pass(with_gradient=wants_last)
            if gradients is not None:
                points.append((steps.theta.clone(), gradients))
        final = newton is not None and newton.final_gradient
        updates = points[-1][1] if final else theta - steps.theta
    memories = steps.memories

    beside = _train_beside(steps, rounds, work)
    fits = []
    norms = torch.linalg.vector_norm(updates, dim=1).tolist()
    for row, (client, this) in enumerate(zip(clients, rounds, strict=True)):
        update = updates[row]
        report = {"num-examples": float(len(client.rows)), "steps": float(taken[row]), "lr": work.lr}
        report["update-norm"] = norms[row]
        if losses is not None and (work.before or newton is not None):
            report["loss"] = losses[row]
        if losses_after is not None and work.after:
            report["loss-after"] = losses_after[row]
        kept: State = {}
        if newton is not None:
            numbers, kept = _quasi_newton([(w[row], g[row]) for w, g in points], client.state, work, taken[row])
            report |= numbers
        elif method is not None:
            kept = dict(method.keep(this, update, taken[row], beside[row] if beside is not None else None))
            report |= method.report(this, update, kept)
        report |= objective.report(memories[row])
        fits.append(Fit(update, report, {**kept, **objective.kept(memories[row])}))
    return fits


def _own(state: Mapping[str, Tensor]) -> State:
    """Return what a client kept for its rule; what it kept for hooks has the hook's name and a dot in front."""
    return {name: value for name, value in state.items() if "." not in name}


def _teachers(objective: Objective, theta: Tensor) -> dict[str, Tensor]:
    named = {name: hook.teacher for name, hook in objective.hooks.items()}
    return {
        name: theta if source == "received" else objective.files[name]
        for name, source in named.items()
        if source is not None
    }


def _refreshing(objective: Objective, clients: Sequence[Client]) -> dict[str, tuple[list[bool], bool]]:
    """Return for each hook that sees whole shards: whose, and whether in every epoch or before the first only."""
    found = {}
    for name, hook in objective.hooks.items():
        if hook.passes == "never":
            continue
        known = [any(key.startswith(f"{name}.") for key in client.state) for client in clients]
        rows = [not k for k in known] if hook.passes == "first" else [True] * len(clients)
        found[name] = rows, hook.passes == "epoch"
    return found


def _refresh(steps: Steps, refreshing: Mapping[str, tuple[list[bool], bool]], epoch: int) -> None:
    training = [not steps.done(row) for row in range(len(steps.clients))]
    wanted = {
        name: [wants and trains for wants, trains in zip(rows, training, strict=True)]
        for name, (rows, always) in refreshing.items()
        if always or epoch == 1
    }
    wanted = {name: rows for name, rows in wanted.items() if any(rows)}
    if wanted:
        steps.refresh(wanted)


def _point(steps: Steps) -> tuple[Tensor, Tensor]:
    _, gradients = steps.full_pass(with_gradient=True)
    assert gradients is not None
    return steps.theta.clone(), gradients


def _train_beside(steps: Steps, rounds: Sequence[LocalRound], work: Work) -> Tensor | None:
    """Train what the method wants trained beside the local models; return the weights reached, [K, D]."""
    if work.method is None:
        return None
    wanted = [work.method.beside(this) for this in rounds]
    first = wanted[0]
    if first is None:
        return None
    every = [each for each in wanted if each is not None]
    assert len(every) == len(wanted), "a method trains beside for every client or for none"
    hooked = [work.objective.terms(this, each.terms) for this, each in zip(rounds, every, strict=True)]
    epochs = work.settings.local_epochs if first.epochs is None else first.epochs
    steps.begin(hooked, epochs, [each.start for each in every])
    refreshing = _refreshing(work.objective, steps.clients)
    for epoch in range(1, epochs + 1):
        _refresh(steps, refreshing, epoch)
        steps.epoch()
    return steps.theta.clone()


def _quasi_newton(
    points: Sequence[tuple[Tensor, Tensor]], state: Mapping[str, Tensor], work: Work, taken: int
) -> tuple[dict[str, float], State]:
    """Return one client's rates, and what it keeps."""
    newton = work.newton
    assert newton is not None
    if newton.from_rounds:
        pairs, kept = _pairs_over_rounds(*points[0], state, newton)
    else:
        pairs, kept = _pairs_of(points, newton), State()
    gradient = points[-1][1] if newton.final_gradient else points[0][1]
    return _rates(pairs, gradient, newton, work.lr * taken), kept


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


def _pairs_of(points: Sequence[tuple[Tensor, Tensor]], newton: QuasiNewton) -> Tensor | None:
    """Return the L-BFGS pairs of successive iterates, each with its full gradient."""
    found: Tensor | None = None
    for (theta_0, grad_0), (theta_1, grad_1) in pairwise(points):
        found = quasi_newton.append(found, theta_1 - theta_0, grad_1 - grad_0, newton.pairs, newton.curvature)
    return found


def _pairs_over_rounds(
    theta: Tensor, gradient: Tensor, state: Mapping[str, Tensor], newton: QuasiNewton
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
