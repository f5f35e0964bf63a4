"""Data, model and training."""

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


@lru_cache(maxsize=8)
def load_data(partition_id, num_partitions):
    """Return a node's images [N, 64] and labels [N]: mostly some of the classes."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].sort(stable=True).indices]
    return images[order][partition_id::num_partitions], labels[order][partition_id::num_partitions]


def network(hidden):
    """Return the shared network; its last layer has no bias, that is each node's own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10, bias=False))


def train(model, bias, images, labels, lr, seed, epochs=1):
    """Train model and bias by SGD; return the mean loss before."""
    torch.set_num_threads(1)
    before = functional.cross_entropy(model(images) + bias, labels).item()
    optimizer = torch.optim.SGD([*model.parameters(), bias], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]) + bias, labels[batch]).backward()
            optimizer.step()
    return before


@torch.no_grad()
def accuracy(model, bias, images, labels):
    """Return the share of labels that are met."""
    return float(((model(images) + bias).argmax(dim=1) == labels).float().mean())
