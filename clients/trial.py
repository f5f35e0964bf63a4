"""A few local steps before a run: what is wrong with a hook is said by its name, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from clients import cohort
from clients.hooks import Hook, Shapes
from clients.objective import Objective
from clients.steps import Client
from clients.training import Work, fit_each, fit_stacked
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings

SIZES = (7, 4)
"""Examples of the two clients of a trial; different, and no multiple of the batch size."""

BATCH = 3

AGREEMENT = 1e-2
"""Largest relative difference of the two ways' updates in float32; wider than a gradient's because signs of it may
turn (adversarial examples)."""


def fault(
    model: FlatNetwork, pool: Split, hooks: Mapping[str, Hook], shapes: Shapes, files: Objective
) -> str | None:
    """Return what goes wrong when one client trains with each hook alone, or None.

    Args:
        model: Resident network; its parameters are overwritten.
        pool: Examples, at least a few.
        hooks: Name -> hook.
        shapes: Of the network's outputs.
        files: Where the weights of teachers are, once they have been read.
    """
    for name, hook in hooks.items():
        try:
            fit_each(model, model.theta.clone(), pool, _clients(pool)[:1], _work(name, hook, shapes, files))
        except (ValueError, TypeError) as error:  # words of the hook
            return f"{name}: {error}"
        except Exception as error:  # a hook may be anybody's code
            return f"{name}: a first step on a few examples failed with {type(error).__name__}: {error}"
    return None


def misfit(
    model: FlatNetwork, pool: Split, hooks: Mapping[str, Hook], shapes: Shapes, files: Objective
) -> str | None:
    """Return why clients with one of these hooks cannot be trained in a block with the same result, or None.

    The arguments are those of `fault`.
    """
    clients = _clients(pool)
    theta = model.theta.clone()
    for name, hook in hooks.items():
        work = _work(name, hook, shapes, files)
        each = fit_each(model, theta, pool, clients, work)
        try:
            stacked = fit_stacked(model, theta, pool, clients, work)
        except Exception as error:  # torch.func raises many kinds
            return f"torch.func cannot map hook {name} over clients: {cohort.first_sentence(error)}"
        for one, other in zip(each, stacked, strict=True):
            apart = float((one.update - other.update).norm() / one.update.norm().clamp(min=1e-12))
            if not apart <= (AGREEMENT if not model.half else 0.1):
                return f"an update with hook {name} in a block differs from that of a client alone by {apart:.1e}"
    return None


def _clients(pool: Split) -> list[Client]:
    def client(number: int, rows: range) -> Client:
        return Client(rows, lambda purpose: seeds.generator(0, "trial", purpose, number))

    first = min(SIZES[0], len(pool))
    rest = range(first, min(first + SIZES[1], len(pool)))
    return [client(0, range(first)), *([client(1, rest)] if rest else [])]


def _work(name: str, hook: Hook, shapes: Shapes, files: Objective) -> Work:
    objective = Objective({name: hook}, replace(shapes, batch_size=BATCH))
    objective.files = files.files
    return Work(ClientSettings(batch_size=BATCH, lr=1e-3), 1e-3, objective, before=False, after=False)
