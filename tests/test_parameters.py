"""Flat vectors: join and split are inverse, and a network's parameters are views of one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.parameters import FlatNetwork, Layout, tensor_of

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)
CPU = torch.device("cpu")


def layout_of(shapes: list[tuple[int, ...]]) -> Layout:
    return Layout(tuple(f"layer{i}.weight" for i in range(len(shapes))), tuple(shapes))


@given(SHAPES)
def test_split_and_join_are_inverse(shapes: list[tuple[int, ...]]) -> None:
    layout = layout_of(shapes)
    vector = np.arange(layout.size, dtype=np.float32)
    arrays = layout.split(vector)
    assert list(arrays) == list(layout.names)
    assert [array.shape for array in arrays.values()] == shapes
    joined = layout.join(arrays)
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, vector)
    assert Layout.of(arrays) == layout


def test_the_order_is_row_by_row() -> None:
    arrays = layout_of([(2, 3), (2,)]).split(np.arange(8, dtype=np.float32))
    np.testing.assert_array_equal(arrays["layer0.weight"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(arrays["layer1.weight"], [6, 7])


def test_split_makes_views_and_join_copies() -> None:
    layout = layout_of([(2,), ()])
    vector = np.zeros(3, np.float32)
    arrays = layout.split(vector)
    arrays["layer0.weight"][1] = 5
    assert vector.tolist() == [0, 5, 0]
    single = layout_of([(3,)])
    assert not np.shares_memory(single.join({"layer0.weight": vector}), vector)


def test_join_converts_and_reads_any_memory_order() -> None:
    layout = layout_of([(2, 3)])
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    joined = layout.join({"layer0.weight": np.asfortranarray(values)})
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, np.arange(6))


def test_an_empty_layout_joins_to_nothing() -> None:
    assert Layout((), ()).join({}).shape == (0,)
    assert Layout((), ()).size == 0


def test_join_says_what_differs() -> None:
    layout = layout_of([(2, 3), (2,)])
    good = layout.split(np.zeros(8, np.float32))
    with pytest.raises(ValueError, match=r"layer1.weight must have shape \[2\], got \[3\]"):
        layout.join({**good, "layer1.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=r"missing \['layer1.weight'\], unexpected \['bias'\]"):
        layout.join({"layer0.weight": good["layer0.weight"], "bias": np.zeros(2)})
    with pytest.raises(ValueError, match="missing"):
        layout.join({})


def test_join_refuses_another_order_of_the_names() -> None:
    layout = layout_of([(2,), (2,)])
    arrays = layout.split(np.arange(4, dtype=np.float32))
    with pytest.raises(ValueError, match=r"arrays must be layer0\.weight, layer1\.weight"):
        layout.join(dict(reversed(arrays.items())))


def test_tensor_of_shares_read_only_memory_without_a_warning() -> None:
    array = np.arange(3, dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = tensor_of(array)
    assert tensor.tolist() == [0, 1, 2]
    assert tensor.data_ptr() == array.ctypes.data


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class TestFlatNetwork:
    def test_the_flat_vector_holds_the_parameters_in_order(self) -> None:
        plain = network()
        flat = FlatNetwork(network(), CPU)
        assert flat.layout.names == tuple(name for name, _ in plain.named_parameters())
        torch.testing.assert_close(flat.theta, nn.utils.parameters_to_vector(plain.parameters()).detach())

    def test_writing_the_vector_changes_what_the_network_computes(self) -> None:
        flat, plain = FlatNetwork(network(), CPU), network()
        x = torch.randn(5, 3)
        vector = torch.randn_like(flat.theta)
        flat.theta.copy_(vector)
        nn.utils.vector_to_parameters(vector, plain.parameters())
        assert torch.equal(flat.network(x), plain(x))

    def test_backward_accumulates_in_the_flat_gradient(self) -> None:
        flat, plain = FlatNetwork(network(), CPU), network()
        x = torch.randn(5, 3)
        for _ in range(2):
            flat.network(x).square().sum().backward()
            plain(x).square().sum().backward()
        expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.grad is not None])
        torch.testing.assert_close(flat.grad, expected)
        flat.grad.zero_()
        assert all(not p.grad.any() for p in flat.network.parameters() if p.grad is not None)
