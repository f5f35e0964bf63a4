"""What every model promises, checked on each one in the folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import plugins
from fedsim.errors import ScenarioError
from fedsim.models import Model, Outputs
from fedsim.models._check import build_model
from fedsim.models.char_lstm import CharLSTM
from fedsim.models.cnn import Cnn
from fedsim.models.cnn_wide import CnnWide
from fedsim.models.logistic import Logistic
from fedsim.models.mlp import Mlp
from fedsim.models.resnet18_gn import ResNet18GN

NAMES = plugins.names("fedsim.models")
C = 7
IMAGES = [(1, 28, 28), (3, 32, 32)]
FLAT = ("char_lstm", "logistic", "mlp")
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "char_lstm": [(12,)],
    "logistic": [(25,), (1, 8, 8), *IMAGES],
    "mlp": [(25,), (1, 8, 8), *IMAGES],
    "resnet18_gn": [(1, 16, 16), (3, 20, 20)],  # small for speed
}
CASES = [(name, shape) for name in NAMES for shape in SHAPES.get(name, IMAGES)]


def model(name: str) -> Model:
    return plugins.find("fedsim.models", name, Model)()


def batch(name: str, shape: tuple[int, ...], size: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if name == "char_lstm":
        return torch.randint(0, C, (size, *shape), dtype=torch.uint8, generator=generator)
    return torch.randn((size, *shape), generator=generator)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_features_are_the_input_of_the_last_linear_layer(name: str, shape: tuple[int, ...]) -> None:
    network = build_model(model(name), shape, C, seed=0)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        outputs = network(batch(name, shape))
    assert isinstance(outputs, Outputs)
    assert outputs.logits.shape == (3, C)
    assert outputs.features.shape == (3, last.in_features)
    torch.testing.assert_close(outputs.logits, outputs.features @ last.weight.T + last.bias)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_parameter_learns(name: str, shape: tuple[int, ...]) -> None:
    network = build_model(model(name), shape, C, seed=0)
    network(batch(name, shape)).logits.square().sum().backward()
    for path, parameter in network.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.abs().sum() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_start(name: str) -> None:
    shape = SHAPES.get(name, IMAGES)[0]

    def start(seed: int) -> Tensor:
        network = build_model(model(name), shape, C, seed)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    torch.manual_seed(0)
    first = start(1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(first, start(1))
    assert not torch.equal(first, start(2))
    assert torch.equal(before, torch.get_rng_state())  # the caller's stream is left alone


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_not_see_each_other(name: str) -> None:
    """A batch gives each example what it would get alone: nothing like batch normalisation."""
    shape = SHAPES.get(name, IMAGES)[0]
    network = build_model(model(name), shape, C, seed=0)
    x = batch(name, shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x).logits[1:2], network(x[1:2]).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in NAMES if name not in FLAT for shape in [(1, 8, 8), (3, 32, 15), (25,), (80,)]]
    + [("char_lstm", (3, 32, 32))],
)
def test_data_of_the_wrong_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ScenarioError) as caught:
        build_model(model(name), shape, C, seed=0)
    assert caught.value.where == "model.name"
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name} expects ")
    assert f"the data set gives {shape}" in problem


@pytest.mark.parametrize(
    ("name", "x"), [("logistic", torch.uint8), ("mlp", torch.uint8), ("char_lstm", torch.float32)]
)
def test_texts_and_vectors_are_told_apart_by_type(name: str, x: torch.dtype) -> None:
    network = build_model(model(name), (12,), C, seed=0)
    with pytest.raises(ScenarioError, match=f"{name} expects"):
        network(torch.zeros(2, 12, dtype=x))


def test_the_cnn_flattens_a_28_pixel_image_to_512() -> None:
    network = Cnn().build((1, 28, 28), 10)
    shapes = [tuple(parameter.shape) for parameter in network.parameters() if parameter.dim() > 1]
    assert shapes == [(16, 1, 5, 5), (32, 16, 5, 5), (128, 512), (10, 128)]


def test_the_wide_cnn_has_its_published_layers() -> None:
    network = CnnWide().build((3, 32, 32), 10)
    shapes = [tuple(parameter.shape) for parameter in network.parameters() if parameter.dim() > 1]
    assert shapes == [(64, 3, 5, 5), (64, 64, 5, 5), (384, 1600), (192, 384), (10, 192)]


def test_the_wide_cnn_drops_where_fedlf_s_does() -> None:
    network = CnnWide(dropout=(0.2, 0.5)).build((3, 32, 32), 10)
    dense = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Dropout))]
    assert [layer.p if isinstance(layer, nn.Dropout) else layer.out_features for layer in dense] == [
        384,
        0.2,
        192,
        0.5,
        10,
    ]
    x = batch("cnn_wide", (3, 32, 32))
    assert not torch.equal(network(x).logits, network(x).logits)
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)


def test_a_network_that_drops_nothing_keeps_the_names_of_its_parameters() -> None:
    plain, zero = (CnnWide(**options).build((3, 32, 32), 10) for options in ({}, {"dropout": (0.0, 0.0)}))
    assert list(plain.state_dict()) == list(zero.state_dict())
    assert [name for name in plain.state_dict() if name.endswith("weight")] == [
        f"body.{place}.weight" for place in (0, 3, 7, 9)
    ] + ["head.weight"]


def test_the_mlp_has_the_published_size() -> None:
    # McMahan et al.: 199,210 parameters on MNIST.
    assert num_parameters(Mlp().build((1, 28, 28), 10)) == 199_210


def test_the_lstm_has_leaf_s_size() -> None:
    # Embedding 8, LSTM 8 -> 256 -> 256 with two bias vectors, linear 256 -> 80.
    expected = 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + 256 * 80 + 80
    assert num_parameters(CharLSTM().build((80,), 80)) == expected


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"), [((3, 32, 32), 3, 1), ((3, 65, 65), 7, 2), ((1, 96, 96), 7, 2)]
)
def test_the_stem_follows_the_image_size(shape: tuple[int, ...], kernel: int, stride: int) -> None:
    network: Any = ResNet18GN().build(shape, 10)
    stem = network.body.conv1
    assert (stem.in_channels, stem.kernel_size, stem.stride) == (shape[0], (kernel, kernel), (stride, stride))
    assert isinstance(network.body.maxpool, nn.Identity) == (kernel == 3)
    assert network(torch.zeros(1, *shape)).logits.shape == (1, 10)


def test_the_groups_are_those_asked_for() -> None:
    network = ResNet18GN(groups=8).build((3, 32, 32), 10)
    groups = {layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)}
    assert groups == {8}


def test_zero_weights_give_a_uniform_logistic_model() -> None:
    network = Logistic().build((4,), 3)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert network(torch.ones(2, 4)).logits.abs().sum() == 0


class _WithBatchNorm(Model):
    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        del input_shape, num_classes
        return nn.Sequential(nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)), nn.Flatten())


def test_batch_normalisation_is_refused_with_its_place_and_a_remedy() -> None:
    with pytest.raises(
        ScenarioError, match=r"layer 0\.1 is BatchNorm2d.*use torch\.nn\.GroupNorm\(num_groups, 12\)"
    ):
        build_model(_WithBatchNorm(), (3, 32, 32), 10, seed=0)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
