"""The only source of randomness: a generator is a pure function of a seed and labels.

Two draws never share a stream unless they share every label, so the order in which clients are trained, and
on which worker, cannot change a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *labels: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on every label, in order.

    >>> derive(0, "sample", 3) == derive(0, "sample", 3)
    True
    >>> derive(0, "sample", 3) == derive(0, "sample", 4)
    False
    """
    text = "\x1f".join([str(seed), *(str(label) for label in labels)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *labels: object) -> torch.Generator:
    """Return a CPU generator for the stream named by `labels`."""
    return torch.Generator().manual_seed(derive(seed, *labels))


@contextmanager
def global_stream(seed: int, *labels: object) -> Iterator[None]:
    """Seed torch's global generator inside the block and put it back after.

    For code that takes no generator, such as the initialisation of torch.nn layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *labels))
        yield
