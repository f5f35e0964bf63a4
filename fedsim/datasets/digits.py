"""The handwritten digits that scikit-learn ships: no files and no network, so the quick start uses them."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch

from fedsim.datasets import Dataset, RawData, Split


@final
class Digits(Dataset):
    """1,797 images of shape (1, 8, 8) scaled to [0, 1], 10 classes, no official test set."""

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        del root  # shipped with scikit-learn
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = (pixels.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
        train = Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
        return RawData(train, None, 10, tuple("0123456789"))
