"""One client trained alone, as tests of what it does want it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clients.methods import LocalMethod
from clients.objective import Objective
from clients.steps import Client
from clients.training import Fit, QuasiNewton, Work, fit_each
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings


def fit_one(
    model: FlatNetwork,
    theta: Tensor,
    train: Split,
    settings: ClientSettings,
    lr: float,
    generator: torch.Generator,
    newton: QuasiNewton | None = None,
    state: Mapping[str, Tensor] | None = None,
    method: LocalMethod | None = None,
    received: Mapping[str, Tensor] | None = None,
    objective: Objective | None = None,
) -> Fit:
    """Train on one shard, with this generator for the order of its batches."""

    def stream(purpose: str) -> torch.Generator:
        return generator if purpose == "batches" else seeds.generator(0, purpose)

    client = Client(range(len(train)), stream, state or {})
    work = Work(settings, lr, objective or Objective(), newton, method, received or {})
    return fit_each(model, theta, train, [client], work)[0]
