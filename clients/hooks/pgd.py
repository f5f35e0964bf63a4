"""Adversarial local training by projected gradient descent (Madry et al., ICLR 2018, arXiv 1706.06083, eq. 2.1)."""

from __future__ import annotations

from typing import Self, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy

from clients.hooks import Draws, Hook, Predict, Step
from fedsim.models import Outputs


@final
class Pgd(Hook):
    """Trains on x + delta in place of x: delta maximises cross-entropy within ||delta||_inf <= epsilon.

    Attributes:
        epsilon: Radius, in units of the standardised inputs; 0 is plain training. On MNIST 0.3 of the pixel range
            is about 1.0, on CIFAR-10 8/255 is about 0.13.
        step_size: Length of an attack step, in the same units.
        steps: Attack steps; each costs a forward and a backward pass.
        random_start: Begin at a random point of the box, else at x.
        low: Smallest value an input may take, to which any below is raised; None does not clip.
        high: Largest value.
    """

    epsilon: NonNegativeFloat = 0.1
    step_size: PositiveFloat = 0.025
    steps: PositiveInt = 7
    random_start: bool = True
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be below high = {self.high:g}, got {self.low:g}")
        return self

    def draw(self, generator: torch.Generator, shape: tuple[int, ...]) -> Draws:
        """Draw each example's start, uniform on [-1, 1]."""
        if not self.random_start:
            return Draws()
        return Draws(example=2.0 * torch.rand(shape, generator=generator) - 1.0)

    def inputs(self, step: Step, x: Tensor, targets: Tensor, predict: Predict) -> Tensor:
        """Return the attacked inputs, [B, ...].

        Raises:
            TypeError: The inputs are no floating-point numbers, so there is no gradient to follow.
        """
        if not x.is_floating_point():
            raise TypeError(f"pgd needs inputs that are numbers, got {x.dtype} codes; leave the hook out")

        def attacked(moved: Tensor) -> Tensor:
            outputs: Outputs = predict(x + moved)
            return cross_entropy(outputs.logits, targets, reduction="sum")

        start = torch.zeros_like(x) if step.draws.example is None else step.draws.example.to(x.dtype)
        # The attack is a constant of the loss that is trained on: no gradient flows through how it was found.
        with torch.no_grad():
            moved = self._inside(x, self.epsilon * start)
            for _ in range(self.steps):
                ascent = grad(attacked)(moved)
                moved = self._inside(x, moved + self.step_size * ascent.sign())
        return x + moved

    def _inside(self, x: Tensor, moved: Tensor) -> Tensor:
        boxed = moved.clamp(-self.epsilon, self.epsilon)
        if self.low is None and self.high is None:
            return boxed
        return (x + boxed).clamp(self.low, self.high) - x
