"""Inner products and weighted sums: right to float64 rounding, whatever the blocks, layers, parts and threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies import kernel
from strategies.kernel import combine, combine_layers, gram, layer_grams, one_thread
from tests.strategies.rows import Array, normal, quick


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensor(rows: Array) -> torch.Tensor:
    return torch.from_numpy(rows)


# gram


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_equals_inner_products_one_by_one(dtype: torch.dtype) -> None:
    updates = tensor(normal(0, 4, 7)).to(dtype)
    rows = updates.double().tolist()
    expected = [[math.fsum(a * b for a, b in zip(left, right, strict=True)) for right in rows] for left in rows]
    result = gram(updates)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14, atol=1e-14)


def test_gram_of_long_float32_rows_is_accumulated_in_float64() -> None:
    """Entries 1 and 1 + 2^-12, a quarter million of them: float32 sums lose what float64 keeps."""
    length = 262_147  # a prime, so that no block size divides it
    updates = torch.ones(3, length)
    updates[1] += 2.0**-12
    updates[2, ::2] = -1.0
    near, odd = 1 + 2.0**-12, length // 2
    expected = [
        [length, length * near, odd - (length - odd)],
        [length * near, length * near * near, (odd - (length - odd)) * near],
        [odd - (length - odd), (odd - (length - odd)) * near, length],
    ]
    np.testing.assert_allclose(gram(updates).numpy(), expected, rtol=1e-13)


def test_gram_errs_by_rounding_of_the_lengths() -> None:
    """Beside ||a|| ||b|| the error after 200,003 products is some 1e-14; float32 sums would have 1e-6."""
    updates = tensor(normal(21, 3, 200_003)).float()
    rows = updates.double().numpy()
    expected = np.array([[math.fsum(left * right) for right in rows] for left in rows])
    lengths = np.sqrt(np.diag(expected))
    assert np.abs((gram(updates).numpy() - expected) / np.outer(lengths, lengths)).max() < 5e-14


def test_many_long_rows_are_summed_over_every_block() -> None:
    """64 rows of 70,001 numbers, more than any block should hold at once; the last column alone is large."""
    updates = tensor(normal(19, 64, 70_001)).float()
    updates[:, -1] = torch.arange(64.0)
    rows, weights = updates.double().numpy(), normal(20, 64)
    np.testing.assert_allclose(gram(updates).numpy(), rows @ rows.T, rtol=1e-11, atol=1e-9)
    sums = combine(tensor(weights), updates)
    np.testing.assert_allclose(sums.numpy(), weights @ rows, rtol=2.0**-23, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 11, 23, 101])
def test_gram_of_any_number_of_rows_is_exactly_symmetric(count: int) -> None:
    rows = normal(count, count, 2_111)
    result = gram(tensor(rows))
    assert torch.equal(result, result.mT)
    np.testing.assert_allclose(result.numpy(), rows @ rows.T, rtol=1e-12, atol=1e-11)


def test_gram_accepts_rows_that_are_not_contiguous() -> None:
    updates = tensor(normal(1, 9, 5)).T
    assert not updates.is_contiguous()
    np.testing.assert_allclose(gram(updates).numpy(), (updates @ updates.T).numpy(), rtol=1e-13, atol=1e-14)


def test_no_columns_are_orthogonal_and_no_rows_are_nothing() -> None:
    assert gram(torch.empty(3, 0)).tolist() == [[0.0] * 3] * 3
    assert gram(torch.empty(0, 5)).shape == (0, 0)
    assert combine(torch.empty(0), torch.empty(0, 5)).tolist() == [0.0] * 5
    assert combine(torch.ones(3), torch.empty(3, 0)).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_spoils_its_own_products_only(bad: float) -> None:
    updates = tensor(normal(22, 9, 3_001))
    updates[4, 1_234] = bad
    finite = torch.isfinite(gram(updates))
    expected = torch.ones(9, 9, dtype=torch.bool)
    expected[4] = expected[:, 4] = False
    assert torch.equal(finite, expected)


def test_inputs_that_require_gradients_give_plain_numbers() -> None:
    updates = torch.ones(2, 3, requires_grad=True)
    assert not gram(updates).requires_grad
    assert not combine(torch.ones(2, requires_grad=True), updates).requires_grad


# parts


def test_parts_are_rows_below_one_another_whatever_their_types() -> None:
    parts = tensor(normal(30, 3, 1_500)).float(), tensor(normal(31, 1, 1_500)), tensor(normal(32, 4, 1_500)).float()
    rows = np.vstack([part.double().numpy() for part in parts])
    weights = normal(33, 8)
    np.testing.assert_allclose(gram(*parts).numpy(), rows @ rows.T, rtol=1e-12, atol=1e-12)
    total = combine(tensor(weights), *parts)
    assert total.dtype == torch.float32
    np.testing.assert_allclose(total.numpy(), weights @ rows, rtol=2.0**-23, atol=1e-7)
    assert combine(tensor(weights), *parts[1:], parts[0]).dtype == torch.float64


def test_an_empty_part_changes_nothing() -> None:
    updates, none = tensor(normal(34, 3, 40)), torch.empty(0, 40, dtype=torch.float64)
    assert torch.equal(gram(none, updates, none), gram(updates))


# layers


def layers_of(sizes: list[int], rows: Array) -> list[Array]:
    return np.split(rows, np.cumsum(sizes)[:-1], axis=1)


@quick
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 7))
def test_layers_are_grams_and_sums_of_their_columns(sizes: list[int], count: int) -> None:
    rows, weights = normal(40, count, sum(sizes)), normal(41, len(sizes), count)
    grams = layer_grams(sizes, tensor(rows))
    sums = combine_layers(tensor(weights), sizes, tensor(rows))
    assert grams.shape == (len(sizes), count, count)
    assert torch.equal(grams, grams.mT)
    pieces = layers_of(sizes, rows)
    for found, piece in zip(grams.numpy(), pieces, strict=True):
        np.testing.assert_allclose(found, piece @ piece.T, rtol=1e-12, atol=1e-13)
    expected = np.concatenate([factor @ piece for factor, piece in zip(weights, pieces, strict=True)])
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_layers_of_unequal_sizes_longer_than_blocks_and_lanes() -> None:
    sizes, parts = [30_011, 1, 0, 9_000, 2_049], (tensor(normal(42, 30, 41_061)), tensor(normal(43, 3, 41_061)))
    rows, weights = np.vstack([part.numpy() for part in parts]), normal(44, len(sizes), 33)
    grams, sums = layer_grams(sizes, *parts), combine_layers(tensor(weights), sizes, *parts)
    pieces = layers_of(sizes, rows)
    for found, piece in zip(grams.numpy(), pieces, strict=True):
        np.testing.assert_allclose(found, piece @ piece.T, rtol=1e-11, atol=1e-10)
    expected = np.concatenate([factor @ piece for factor, piece in zip(weights, pieces, strict=True)])
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(grams.sum(0).numpy(), gram(*parts).numpy(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("sizes", [[], [4], [3, 3], [6, -1]])
def test_sizes_that_do_not_add_up_are_refused(sizes: list[int]) -> None:
    updates = torch.ones(2, 5)
    with pytest.raises(ValueError, match="5 columns"):
        layer_grams(sizes, updates)
    with pytest.raises(ValueError, match="5 columns"):
        combine_layers(torch.ones(len(sizes), 2), sizes, updates)


@pytest.mark.parametrize("parts", [(), (torch.ones(3),), (torch.ones(2, 3), torch.ones(2, 4))])
def test_parts_that_are_not_matrices_of_one_width_are_refused(parts: tuple[torch.Tensor, ...]) -> None:
    for call in (lambda: gram(*parts), lambda: combine(torch.ones(4), *parts), lambda: layer_grams([3], *parts)):
        with pytest.raises(ValueError, match="parts must be matrices"):
            call()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
def test_weights_that_are_not_one_a_row_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        combine(torch.ones(shape), torch.ones(2, 5))


def test_layer_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="2 layers and 3 rows"):
        combine_layers(torch.ones(3, 2), [2, 3], torch.ones(3, 5))


# combine


def test_combine_is_the_weighted_sum_in_the_dtype_of_the_updates() -> None:
    updates = tensor(normal(2, 3, 11))
    weights = torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64)
    expected = 0.5 * updates[0] - updates[1] + 3.0 * updates[2]
    np.testing.assert_allclose(combine(weights, updates).numpy(), expected.numpy(), rtol=1e-14, atol=1e-14)
    assert combine(weights, updates.float()).dtype == torch.float32


def test_combine_rounds_once_when_large_weights_cancel() -> None:
    """Weights of +-1e6 that nearly cancel: the float64 sum is rounded once, to float32, at the end."""
    updates = tensor(normal(3, 1, 200_003) + 1e-3 * normal(4, 4, 200_003)).float()
    weights = torch.tensor([1e6, -1e6, 2e6, -2e6 + 1], dtype=torch.float64)
    exact = weights.numpy() @ updates.double().numpy()
    np.testing.assert_allclose(combine(weights, updates).numpy(), exact, rtol=2.0**-23, atol=1e-6)


# blocks and threads


@pytest.mark.parametrize("block_bytes", [1, 4_000, 8_000])
def test_results_do_not_hang_on_the_size_of_blocks(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights, sizes = normal(50, 6, 300), normal(51, 2, 6), [203, 97]
    whole, sums = layer_grams(sizes, tensor(rows)), combine_layers(tensor(weights), sizes, tensor(rows))
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(kernel, "LANE_COLUMNS", 70)
    monkeypatch.setattr(kernel, "ALIGNED", 7)
    np.testing.assert_allclose(layer_grams(sizes, tensor(rows)).numpy(), whole.numpy(), rtol=1e-12, atol=1e-13)
    pieces = combine_layers(tensor(weights), sizes, tensor(rows))
    np.testing.assert_allclose(pieces.numpy(), sums.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("count", [10, 101])
@pytest.mark.usefixtures("_threads_as_before")
def test_the_last_bit_does_not_depend_on_the_number_of_threads(count: int) -> None:
    updates, weights = tensor(normal(52, count, 60_001)).float(), tensor(normal(53, count))
    assert 8 * updates.numel() > kernel.BLOCK_BYTES, "too small to be shared among threads"
    found = []
    for threads in (1, 2, 3, 8, 11):
        torch.set_num_threads(threads)
        found.append((gram(updates), combine(weights, updates.double())))
    for products, sums in found[1:]:
        assert torch.equal(products, found[0][0])
        assert torch.equal(sums, found[0][1])


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("rows", [3, 80])
def test_the_number_of_threads_is_afterwards_what_it_was(rows: int) -> None:
    torch.set_num_threads(3)
    updates = tensor(normal(54, rows, 10_000))
    gram(updates)
    combine(torch.ones(rows), updates)
    assert torch.get_num_threads() == 3
    seen: list[int] = []
    begun_later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    begun_later.start()
    begun_later.join()
    assert seen == [3]


@pytest.mark.usefixtures("_threads_as_before")
def test_one_thread_ends_with_an_error_too() -> None:
    @one_thread()
    def fail() -> None:
        assert torch.get_num_threads() == 1
        raise ArithmeticError

    torch.set_num_threads(3)
    with pytest.raises(ArithmeticError):
        fail()
    assert torch.get_num_threads() == 3


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[None]:
        raise MemoryError("no room")

    monkeypatch.setattr(kernel, "_blocks", fail)
    updates = torch.ones(80, 10_000)
    calls: list[Callable[[], object]] = [lambda: gram(updates), lambda: combine(-torch.ones(80), updates)]
    for call in calls:
        with pytest.raises(MemoryError, match="no room"):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parts_on_a_gpu_are_worked_on_there() -> None:
    rows, weights = normal(55, 20, 50_001), normal(56, 20)
    updates = tensor(rows).cuda()
    products, sums = gram(updates), combine(tensor(weights), updates)
    assert products.device == sums.device == updates.device
    np.testing.assert_allclose(products.cpu().numpy(), rows @ rows.T, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(sums.cpu().numpy(), weights @ rows, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wide_bytes", [0, kernel.WIDE_BYTES])
@pytest.mark.parametrize("width", [1, 17, 1000, 140_001])
def test_a_mean_of_float32_rows_is_exact_to_their_rounding_whoever_sums_and_wherever_they_lie(
    width: int, wide_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "WIDE_BYTES", wide_bytes)
    monkeypatch.setattr(kernel, "ALONE_BYTES", 0)
    generator = torch.Generator().manual_seed(width)
    parts = [torch.randn(count, width, generator=generator) for count in (70, 0, 13)]
    weights = torch.rand(83, generator=generator, dtype=torch.float64)
    weights[::7] = 0.0
    found = combine(weights, *parts)
    exact = weights @ torch.cat(parts).double()
    # A float32 sum of few rows errs by few units in the last place of the terms, not of the result.
    scale = weights @ torch.cat(parts).double().abs()
    assert ((found - exact).abs() <= 4 * torch.finfo(torch.float32).eps * scale).all()
    assert found.dtype == torch.float32
    elsewhere = [torch.empty(part.numel() + 3)[3:].view_as(part).copy_(part) for part in parts]
    assert any(part.data_ptr() % 64 for part in elsewhere)
    assert torch.equal(found, combine(weights, *elsewhere))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(found, combine(weights, *parts))
    finally:
        torch.set_num_threads(before)
