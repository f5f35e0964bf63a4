"""Accuracy: the share of test examples whose most likely class is the right one."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fedsim.metrics import Metric


@final
class Accuracy(Metric):
    """1 where the largest logit is the target's, else 0; on a tie the lowest class counts.

    >>> import torch
    >>> Accuracy().per_example(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])).tolist()
    [1.0, 0.0]
    """

    higher_is_better: ClassVar[bool] = True

    def per_example(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return 1.0 for a right answer and 0.0 for a wrong one.

        Args:
            logits: [B, C].
            targets: [B] int64.

        Returns:
            [B] float32.
        """
        return logits.argmax(dim=1).eq(targets).float()
