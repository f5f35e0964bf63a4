"""What every data set promises, checked on each one that can be read here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import plugins
from fedsim.datasets import Dataset, RawData
from fedsim.datasets.digits import Digits
from fedsim.datasets.mnist import Mnist
from fedsim.datasets.shakespeare import Shakespeare
from fedsim.errors import DataError
from tests.datasets import samples

NAMES = plugins.names("fedsim.datasets")


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RawData]:
    root = tmp_path_factory.mktemp(request.param)
    dataset = plugins.find("fedsim.datasets", request.param, Dataset)(**samples.OPTIONS.get(request.param, {}))
    with pytest.MonkeyPatch.context() as patch:
        samples.WRITERS[request.param](root, patch)
        return request.param, dataset.load(root)


def test_every_data_set_has_a_sample() -> None:
    assert set(samples.WRITERS) == set(NAMES)


def test_shapes_and_types(loaded: tuple[str, RawData]) -> None:
    name, raw = loaded
    for split in filter(None, (raw.train, raw.test)):
        assert split.y.dtype == torch.int64
        assert split.y.shape == (len(split),)
        assert split.x.dtype == (torch.uint8 if name == "shakespeare" else torch.float32)
        assert split.x.shape[1:] == raw.train.x.shape[1:]
        assert split.x.is_contiguous()


def test_classes(loaded: tuple[str, RawData]) -> None:
    _, raw = loaded
    assert len(raw.class_names) == len(set(raw.class_names)) == raw.num_classes
    assert int(raw.train.y.min()) >= 0
    assert int(raw.train.y.max()) < raw.num_classes


def test_owners_match_the_examples(loaded: tuple[str, RawData]) -> None:
    name, raw = loaded
    assert (raw.owners is not None) == (name in {"heart", "shakespeare"})
    if raw.owners is not None:
        assert raw.owners.shape == (len(raw.train),)


def test_groups_match_the_examples(loaded: tuple[str, RawData]) -> None:
    name, raw = loaded
    assert bool(raw.group_names) == (name == "heart")
    for split in filter(None, (raw.train, raw.test)):
        if not raw.group_names:
            assert split.groups is None
        elif split.groups is not None:
            assert split.groups.dtype == torch.int64
            assert -1 <= int(split.groups.min()) <= int(split.groups.max()) < len(raw.group_names)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_missing_files_are_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    options = (
        {"download": False} if "download" in plugins.find("fedsim.datasets", name, Dataset).model_fields else {}
    )
    dataset = plugins.find("fedsim.datasets", name, Dataset)(**options)
    with pytest.raises(DataError) as caught:
        dataset.load(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)
    assert "--data" in str(caught.value)
    assert "FEDSIM_DATA" in str(caught.value)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    raw = plugins.find("fedsim.datasets", "digits", Dataset)().load(tmp_path)
    assert raw.train.x.shape == (1797, 1, 8, 8)
    assert raw.train.x.min() == 0.0
    assert raw.train.x.max() == 1.0
    # Hand-checked: a 0 has a hole in the middle, a 1 does not.
    centre = raw.train.x[:, 0, 3:5, 3:5].mean((1, 2))
    assert centre[raw.train.y == 0].mean() < 0.2 < 0.6 < centre[raw.train.y == 1].mean()


@pytest.mark.parametrize("loaded", list(samples.CHANNELS), indirect=True)
def test_standardised_bytes(loaded: tuple[str, RawData]) -> None:
    """A torchvision sample has every byte value equally often, so its mean and deviation are known."""
    name, raw = loaded
    mean, std = samples.CHANNELS[name]
    uniform_mean, uniform_std = 0.5, math.sqrt((256**2 - 1) / 12) / 255
    values = raw.train.x.double().numpy()
    for channel in range(len(mean)):
        got = values[:, channel]
        np.testing.assert_allclose(got.mean(), (uniform_mean - mean[channel]) / std[channel], atol=1e-5)
        np.testing.assert_allclose(got.std(), uniform_std / std[channel], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "shakespeare"])
def test_chosen_classes_are_kept_and_numbered_anew(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.WRITERS[name](tmp_path, monkeypatch)
    kind, options = plugins.find("fedsim.datasets", name, Dataset), samples.OPTIONS.get(name, {})
    whole = kind(**options).read(tmp_path)
    chosen = [whole.num_classes - 1, 0]  # neither adjacent nor ascending
    raw = kind(**options, classes=chosen).read(tmp_path)
    assert raw.num_classes == 2
    assert raw.class_names == tuple(whole.class_names[number] for number in chosen)
    assert (raw.test is None) == (whole.test is None)
    for before, after in ((whole.train, raw.train), (whole.test, raw.test)):
        if before is None or after is None:
            continue
        rows = [row for row, label in enumerate(before.y.tolist()) if label in chosen]
        assert after.y.tolist() == [chosen.index(before.y[row]) for row in rows]
        torch.testing.assert_close(after.x, before.x[rows], equal_nan=True)
        assert (after.groups is None) == (before.groups is None)
        if after.groups is not None and before.groups is not None:
            assert after.groups.tolist() == before.groups[rows].tolist()
    if raw.owners is not None and whole.owners is not None:
        rows = [row for row, label in enumerate(whole.train.y.tolist()) if label in chosen]
        assert raw.owners.tolist() == whole.owners[rows].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_official_halves_are_divided_together_where_there_are_two(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.WRITERS[name](tmp_path, monkeypatch)
    kind, options = plugins.find("fedsim.datasets", name, Dataset), samples.OPTIONS.get(name, {})
    whole = kind(**options).read(tmp_path)
    dataset = kind(**options, pool_test=True)
    if whole.test is None:
        with pytest.raises(DataError, match=f"data.pool_test: {name} has no official test set"):
            dataset.read(tmp_path)
        return
    raw = dataset.read(tmp_path)
    assert raw.test is None
    torch.testing.assert_close(raw.train.x, torch.cat([whole.train.x, whole.test.x]))
    assert raw.train.y.tolist() == [*whole.train.y.tolist(), *whole.test.y.tolist()]
    assert raw.class_names == whole.class_names


def test_texts_cannot_do_without_some_of_their_characters() -> None:
    with pytest.raises(ValueError, match="the classes are the characters"):
        Shakespeare(classes=(3, 4))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((3, 3, 1), "3 is there more than once"),
        ((3,), "at least 2 items"),
        ((-1, 3), "greater than or equal to 0"),
    ],
)
def test_a_choice_that_is_none_is_refused(classes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(classes=classes)


def test_a_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.classes: the data set has the classes 0 to 9, got 10, 12; choose"):
        Digits(classes=(1, 10, 12)).read(tmp_path)
    samples.write_idx(
        tmp_path / "MNIST" / "raw", "train", samples.bytes_of((3, 28, 28)), np.array([0, 1, 2], np.uint8)
    )
    samples.write_idx(
        tmp_path / "MNIST" / "raw", "t10k", samples.bytes_of((3, 28, 28)), np.array([0, 1, 5], np.uint8)
    )
    with pytest.raises(
        DataError, match=r"data.classes: the data set has no train example of class 5; leave it out"
    ):
        Mnist(download=False, classes=(0, 5)).read(tmp_path)
