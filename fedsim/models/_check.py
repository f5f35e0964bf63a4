"""What the models share: building with a seed, and refusing data a model cannot read."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim import seeds
from fedsim.errors import ScenarioError
from fedsim.models import Model


def build_model(model: Model, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Return the network, initialised from the seed alone.

    Args:
        model: The model family and its options.
        input_shape: Shape of one example.
        num_classes: Number of classes C.
        seed: The run's seed.

    Raises:
        ScenarioError: The model does not fit the data, or it holds batch normalisation.
    """
    with seeds.global_stream(seed, "model"):
        network = model.build(input_shape, num_classes)
    refuse_batch_norm(network, model.plugin_name)
    return network


def refuse_batch_norm(network: nn.Module, name: str) -> None:
    """Refuse layers whose running statistics would mix clients, and that average meaninglessly.

    Raises:
        ScenarioError: Names every such layer and its replacement.
    """
    problems = [
        f"{name}: layer {path} is {type(layer).__name__}, whose statistics mix the examples of a batch "
        "and do not "
        f"average over clients; use torch.nn.GroupNorm(num_groups, {layer.num_features}) in its place"
        for path, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
    ]
    if problems:
        raise ScenarioError("model.name", problems)


def require_image(name: str, input_shape: tuple[int, ...], min_side: int) -> tuple[int, int, int]:
    """Return (channels, height, width), or refuse other shapes and images too small.

    Raises:
        ScenarioError: Says what the model expects and what the data set gives.
    """
    expected = f"{name} expects images (channels, height, width) of at least {min_side} x {min_side} pixels"
    if len(input_shape) != 3 or min(input_shape[1:]) < min_side:
        raise misfit(expected, input_shape, 'use mlp or logistic, or larger images (dataset "imagefolder" resizes)')
    channels, height, width = input_shape
    return channels, height, width


def require_floats(name: str, x: Tensor) -> None:
    """Refuse character codes where numbers are expected; the shape alone does not tell them apart.

    Raises:
        ScenarioError: The inputs are not floating point.
    """
    if not x.is_floating_point():
        raise ScenarioError(
            "model.name",
            [f"{name} expects float inputs, the data set gives {x.dtype} character codes; use char_lstm"],
        )


def misfit(expected: str, input_shape: tuple[int, ...], remedy: str) -> ScenarioError:
    """Return the error of a model that cannot read data of this shape."""
    return ScenarioError("model.name", [f"{expected}, the data set gives {input_shape}; {remedy}"])
