"""The kernel that nearly every fair rule shares: Gram matrix -> K weights -> weighted sum.

Only these functions touch the K x D updates, in float64 blocks over D, so memory stays bounded. What lies between
them is K x K and in strategies/solvers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

ALONE_BYTES = 2**24
"""Work on fewer bytes is over before a second thread has begun."""

BLOCK_BYTES = 4 * 2**20
"""Size of one float64 block of the rows: small enough for the cache, large enough that calls cost nothing."""

ALIGNED = 64
"""The width of a full block is a multiple of this: rows that all begin on a cache line multiply faster."""

LANES = 8
"""Parts a layer's columns are split into, each summed by one thread. The number of threads changes nothing in them,
so the sums are the same to the last bit."""

LANE_COLUMNS = 1024
"""Fewest columns worth a lane of their own."""

FEW_ROWS = 32
"""Float32 rows that are added up before they join a float64 sum."""

WIDE_BYTES = 2**28
"""Float32 rows of fewer bytes are added up before a second thread has begun."""

QUIET_WIDTH = 2**22
"""Most numbers of a vector that one thread is enough for."""

_intended: ContextVar[int | None] = ContextVar("intended", default=None)

LINE = 16
"""Float32 numbers in a cache line."""

STRIPS = 5
"""Horizontal strips of a Gram matrix. Each is computed up to its diagonal only: 0.6 of the products."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch from sharing the work of this thread with others.

    Small work gains nothing from it, and on a busy machine waits for them far longer than it takes.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)  # here, and for threads begun from now on


@contextmanager
def quiet(width: int) -> Iterator[None]:
    """Keep torch's threads out of what is done with single small vectors, [D]; the kernel still has them.

    They would share a fraction of a millisecond and then turn idly for some more, on cores that clients train on.
    """
    if width > QUIET_WIDTH or _intended.get() is not None:
        yield
        return
    token = _intended.set(torch.get_num_threads())
    try:
        with one_thread():
            yield
    finally:
        _intended.reset(token)


def gram(*parts: Tensor) -> Tensor:
    """Return the inner products of all rows, accumulated in float64.

    Args:
        parts: [K_i, D] float32 or float64 each, on one device; the rows of one below those of the other,
            R = sum K_i.

    Returns:
        [R, R] float64, exactly symmetric, on the device of the parts.

    Raises:
        ValueError: No part, or parts that are not matrices of one width.
    """
    return layer_grams((_width(parts),), *parts)[0]


def layer_grams(sizes: Sequence[int], *parts: Tensor) -> Tensor:
    """Return the inner products of all rows, layer by layer, accumulated in float64.

    Args:
        sizes: Columns of each of the L layers, which lie one after the other; their sum is D.
        parts: [K_i, D] float32 or float64 each, on one device; R = sum K_i.

    Returns:
        [L, R, R] float64, each exactly symmetric, on the device of the parts; their sum over L is
        `gram(*parts)` up to rounding.

    Raises:
        ValueError: No part, parts that are not matrices of one width, or sizes that do not add up to it.
    """
    layers = _layers(sizes, _width(parts))
    num_rows, device = sum(len(part) for part in parts), parts[0].device
    products = torch.zeros(len(layers), num_rows, num_rows, dtype=torch.float64, device=device)
    with _threads(parts) as each:
        for product, layer in zip(products, layers, strict=True):
            for share in each(lambda columns: _lower_gram(columns, parts), _lanes(layer)):
                product += share
    return products.tril() + products.tril(-1).mT


def combine(weights: Tensor, *parts: Tensor) -> Tensor:
    """Return the weighted sum of all rows, accumulated in float64.

    Where no weight is negative nothing cancels but what cancels in the rows themselves, and float32 rows are added
    up in float32, a few at a time, before they join the float64 sum: no less exact than the rows are, and faster.

    Args:
        weights: [R], one for each row of the parts.
        parts: [K_i, D] float32 or float64 each, on one device; R = sum K_i.

    Returns:
        [D] in the dtype of the first part, rounded once.

    Raises:
        ValueError: No part, parts that are not matrices of one width, or weights that are not one a row.
    """
    width = _width(parts)
    if weights.shape == (sum(len(part) for part in parts),) and _mild(weights, parts):
        return _mean_like(weights, width, parts)
    return combine_layers(weights.unsqueeze(0), (width,), *parts)


def combine_layers(weights: Tensor, sizes: Sequence[int], *parts: Tensor) -> Tensor:
    """Return the weighted sum of all rows with weights of its own for each layer, accumulated in float64.

    Args:
        weights: [L, R], one for each layer and row.
        sizes: Columns of each of the L layers, which lie one after the other; their sum is D.
        parts: [K_i, D] float32 or float64 each, on one device; R = sum K_i.

    Returns:
        [D] in the dtype of the first part, rounded once.

    Raises:
        ValueError: No part, parts that are not matrices of one width, sizes that do not add up to it, or weights
            of another shape.
    """
    width = _width(parts)
    layers, num_rows = _layers(sizes, width), sum(len(part) for part in parts)
    if weights.shape != (len(layers), num_rows):
        raise ValueError(
            f"weights must be one for each of {len(layers)} layers and {num_rows} rows, got {list(weights.shape)}"
        )
    factors = weights.detach().to(parts[0].device, torch.float64)
    vector = torch.empty(width, dtype=parts[0].dtype, device=parts[0].device)

    def fill(task: tuple[Tensor, slice]) -> None:
        factor, lane = task
        for columns, block in _blocks(lane, parts):
            vector[columns] = factor @ block

    with _threads(parts) as each:
        tasks = ((factor, lane) for factor, layer in zip(factors, layers, strict=True) for lane in _lanes(layer))
        for _ in each(fill, tasks):
            pass
    return vector


def _mild(weights: Tensor, parts: Sequence[Tensor]) -> bool:
    """Say whether a sum can do without float64 products."""
    single = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts)
    return single and bool((weights >= 0).all())


def _mean_like(weights: Tensor, width: int, parts: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of float32 rows whose weights are not negative, [D] float32.

    Lanes depend on the size alone, and rows begin at the same places of a cache line wherever they lie: so the bits
    depend neither on the number of threads nor on whose memory the rows are in.
    """
    factors = torch.split(weights.detach().float(), [len(part) for part in parts])
    vector = torch.empty(width)

    def fill(columns: slice) -> None:
        total = torch.zeros(columns.stop - columns.start, dtype=torch.float64)
        for factor, part in zip(factors, placed, strict=True):
            for few, rows in zip(torch.split(factor, FEW_ROWS), torch.split(part, FEW_ROWS), strict=True):
                total += few @ rows[:, columns]
        vector[columns] = total

    placed = [part.detach() if part.data_ptr() % (4 * LINE) == 0 else part.detach().clone() for part in parts]
    size = sum(part.numel() for part in parts)
    count = LANES if 4 * size > WIDE_BYTES else 1
    cuts = [*(width // LINE * lane // count * LINE for lane in range(count)), width]
    with _threads(parts) if count > 1 else _alone() as each:
        for _ in each(fill, [slice(start, stop) for start, stop in pairwise(cuts)]):
            pass
    return vector


@contextmanager
def _alone() -> Iterator[Callable[[Callable[[_Task], _Result], Iterable[_Task]], Iterator[_Result]]]:
    with one_thread():
        yield map


def _width(parts: Sequence[Tensor]) -> int:
    if not parts or any(part.ndim != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise ValueError(f"parts must be matrices [K_i, D] of one D, got {shapes or 'none'}")
    return parts[0].shape[1]


def _layers(sizes: Sequence[int], width: int) -> list[slice]:
    if sum(sizes) != width or any(size < 0 for size in sizes):
        raise ValueError(f"sizes of the layers must add up to the {width} columns, got {list(sizes)}")
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def _lanes(layer: slice) -> list[slice]:
    size = layer.stop - layer.start
    count = min(LANES, -(-size // LANE_COLUMNS))
    cuts = [layer.start + size * lane // max(1, count) for lane in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _lower_gram(columns: slice, parts: Sequence[Tensor]) -> Tensor:
    """Return the inner products over some columns, [R, R]; above the diagonal only some."""
    num_rows = sum(len(part) for part in parts)
    height = max(1, -(-num_rows // STRIPS))
    strips = [slice(start, min(start + height, num_rows)) for start in range(0, num_rows, height)]
    product = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=parts[0].device)
    for _, block in _blocks(columns, parts):
        for strip in strips:
            product[strip, : strip.stop].addmm_(block[strip], block[: strip.stop].T)
    return product


def _blocks(columns: slice, parts: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Yield some columns of all rows in float64, and which they are; each block overwrites the one before."""
    num_rows = sum(len(part) for part in parts)
    fitting = BLOCK_BYTES // (8 * ALIGNED * max(1, num_rows)) * ALIGNED
    widest = max(1, min(columns.stop - columns.start, max(ALIGNED, fitting)))
    buffer = torch.empty(num_rows * widest, dtype=torch.float64, device=parts[0].device)
    for start in range(columns.start, columns.stop, widest):
        here = slice(start, min(start + widest, columns.stop))
        width = here.stop - here.start
        block = buffer[: num_rows * width].view(num_rows, width)
        row = 0
        for part in parts:
            block[row : row + len(part)] = part.detach()[:, here]
            row += len(part)
        yield here, block


@contextmanager
def _threads(
    parts: Sequence[Tensor],
) -> Iterator[Callable[[Callable[[_Task], _Result], Iterable[_Task]], Iterator[_Result]]]:
    """Yield a `map` that shares its tasks among as many threads as torch would, where they are worth it.

    Threads of our own with one of torch's each: torch's wait for one another after every product, which takes
    longer than the products on a machine that has other work too.
    """
    num_threads = _intended.get() or torch.get_num_threads()
    small = 8 * sum(part.numel() for part in parts) <= ALONE_BYTES
    with one_thread():
        if small or num_threads == 1 or parts[0].device.type != "cpu":
            yield map
        else:
            with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield pool.map
