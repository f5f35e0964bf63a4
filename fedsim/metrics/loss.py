"""Loss: the cross entropy of each test example, in nats."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor
from torch.nn import functional

from fedsim.metrics import Metric


@final
class Loss(Metric):
    """-log softmax(logits)[target].

    >>> import torch
    >>> Loss().per_example(torch.zeros(1, 4), torch.tensor([2])).exp().round().tolist()
    [4.0]
    """

    higher_is_better: ClassVar[bool] = False

    def per_example(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy of each example.

        Args:
            logits: [B, C].
            targets: [B] int64.

        Returns:
            [B] float32, in nats.
        """
        # In float32 whatever the model ran in: half precision would lose the losses of well fitted examples.
        return functional.cross_entropy(logits.float(), targets, reduction="none")
